"""Models as streams of item ids."""

from __future__ import annotations

import re

import pytest
import torch

import seqrec.models
from seqrec.encoders import ENCODERS
from seqrec.encoders.state import StateFormat
from seqrec.errors import InputError
from seqrec.models import SequentialRecommender
from seqrec.types import History

NUM_ITEMS, MAX_LENGTH = 20, 8
STREAMED = [name for name in ENCODERS if not ENCODERS[name].bidirectional]
every_preset = pytest.mark.parametrize("name", STREAMED)


def model(name: str = "MambaRec", **arguments: object) -> SequentialRecommender:
    torch.manual_seed(0)
    chosen = {"d_model": 8, "max_length": MAX_LENGTH, "positions": False} | arguments
    return getattr(seqrec.models, name)(NUM_ITEMS, **chosen).eval()


def history(lengths: list[int], seed: int = 1) -> History:
    counts, generator = torch.tensor(lengths), torch.Generator().manual_seed(seed)
    item_ids = torch.randint(1, NUM_ITEMS + 1, (len(lengths), max(lengths)), generator=generator)
    return History(item_ids * (torch.arange(max(lengths)) < counts.unsqueeze(1)), counts)


@every_preset
@torch.no_grad()
def test_steps_and_extensions_are_the_full_pass(name: str):
    recommender, events = model(name), history([8, 3])
    users = torch.tensor([1, 2])
    expected = recommender(events, users)
    states, state = recommender.extend(events, recommender.init_state(2), users)
    torch.testing.assert_close(states[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[1, :3], expected[1, :3], rtol=0, atol=1e-5)
    state = recommender.init_state(1)
    for t in range(8):
        states, state = recommender.step(events.item_ids[:1, t], state)
        torch.testing.assert_close(states, expected[:1, t], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_vector_of_each_user_is_added_to_each_event():
    recommender, events = model(user_embedding=True, num_users=5), history([6, 6])
    users, start = torch.tensor([3, 5]), recommender.init_state(2)
    expected = recommender(events, users)
    states, _ = recommender.extend(events, start, users)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    _, state = recommender.extend(History(events.item_ids[:, :5], torch.tensor([5, 5])), start, users)
    last, _ = recommender.step(events.item_ids[:, 5], state, users)
    torch.testing.assert_close(last, expected[:, 5], rtol=0, atol=1e-5)
    without, _ = recommender.step(events.item_ids[:, 5], state)
    assert not torch.allclose(without, last)


def test_users_without_new_events_stand_in_one_batch_with_others():
    recommender = model()
    state = recommender.extend(history([4, 2]), recommender.init_state(2))[1]
    new = History(torch.tensor([[0, 0], [5, 6]]), torch.tensor([0, 2]))
    _, later = recommender.extend(new, state)
    for name, x in later.tensors.items():
        assert torch.equal(x[0], state.tensors[name][0])
        assert not torch.equal(x[1], state.tensors[name][1])


@every_preset
def test_positions_that_count_back_are_refused_with_what_to_train_instead(name: str):
    recommender = model(name, positions=True)
    state = recommender.encoder.init_state(1, max_length=MAX_LENGTH)
    message = "positions=True cannot be streamed: .*train with positions: false, and .* with rotary: true"
    with pytest.raises(InputError, match=message):
        recommender.init_state(1)
    with pytest.raises(InputError, match=message):
        recommender.step(torch.tensor([1]), state)
    with pytest.raises(InputError, match=message):
        recommender.extend(history([2]), state)


@pytest.mark.parametrize("item_id", [0, -1, NUM_ITEMS + 1])
def test_items_that_are_not_in_the_catalogue_are_refused(item_id: int):
    recommender = model()
    state = recommender.init_state(2)
    message = re.escape("but the catalogue has items 1..20; leave unknown items out")
    with pytest.raises(InputError, match=message):
        recommender.step(torch.tensor([item_id, 3]), state)
    with pytest.raises(InputError, match=message):
        recommender.extend(History(torch.tensor([[1, item_id], [1, 2]]), torch.tensor([2, 2])), state)
    behind_the_end = History(torch.tensor([[1, item_id], [1, 2]]), torch.tensor([1, 2]))
    assert recommender.extend(behind_the_end, state)[0].isfinite().all()


def test_several_events_a_user_are_refused_where_one_is_meant():
    recommender = model()
    with pytest.raises(InputError, match=re.escape("item_ids must be (B,), got (1, 2); use `extend`")):
        recommender.step(torch.tensor([[1, 2]]), recommender.init_state(1))


def test_training_mode_is_refused_with_the_fix():
    recommender = model()
    state = recommender.init_state(1)
    with pytest.raises(InputError, match=r"call `.eval\(\)` on the model first"):
        recommender.train().step(torch.tensor([1]), state)


def test_attention_keeps_max_length_events_and_a_recurrence_none():
    for name, grows in (("SASRec", True), ("MoEMaTrRec", True), ("MambaRec", False), ("GRU4Rec", False)):
        short, long = (model(name, max_length=length).init_state(1).row_bytes for length in (8, 16))
        assert (long > short) == grows


def test_states_have_the_documented_sizes():
    d, inner, states, conv, window, layers = 8, 16, 32, 4, MAX_LENGTH, 2
    attention, mamba = 2 * window * d * 4 + 8, inner * (conv - 1 + states) * 4
    mamba2 = ((inner + 2 * states) * (conv - 1) + inner * states) * 4
    expected = {"GRU4Rec": 4 * d, "SASRec": layers * attention, "RecMamba": layers * mamba}
    expected |= {"MambaRec": layers * mamba, "MoEMaTrRec": layers * (attention + mamba)}
    expected |= {"HSTU": layers * attention, "Samba": 2 * window * d * 4 + 8 + mamba}
    expected |= {"HRNN": 2 * layers * mamba + 2 * d * 4 + 8}
    assert {name: model(name).init_state(3).row_bytes for name in STREAMED} == expected
    assert model("MambaRec", mixer="mamba2").init_state(3).row_bytes == layers * mamba2


@torch.no_grad()
def test_a_stored_stream_goes_on_where_it_stopped():
    recommender, events = model("MoEMaTrRec", rotary=True), history([7])
    form = StateFormat(recommender.encoder, recommender.init_state(1))
    expected = recommender(events)
    state = recommender.init_state(1)
    for t in range(7):
        states, state = recommender.step(events.item_ids[:, t], form.from_bytes(form.to_bytes(state)))
        torch.testing.assert_close(states, expected[:, t], rtol=0, atol=1e-5)
