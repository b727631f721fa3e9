"""Recorded steps of a stream against `step`, with tapes in place of CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from streams import COLUMNS, NUM_ITEMS, SETTINGS, STREAMED, assert_same, make_model, random_events
from tape import TapeRecorder, use_operations_of_torch
from torch import Tensor

from seqrec import EventTime, models
from seqrec.encoders.state import State
from seqrec.errors import InputError
from seqrec.models.graphed_stream import GraphedStream


@pytest.fixture(autouse=True)
def operations_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    use_operations_of_torch(monkeypatch)


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [*((encoder, {}) for encoder in STREAMED), *(("SASRec", each) for each in SETTINGS.values())],
)
def test_recorded_steps_are_those_of_step(encoder: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """With more events than attention sees, and with batches whose users the graphs have room for and more."""
    if encoder == "HRNN":
        # On a CPU it reads whether a session begins. On a GPU, and in an exported program, it computes both ways.
        monkeypatch.setattr("seqrec.encoders.hrnn.is_exporting", lambda: True)
    model, draws, recorder = make_model(encoder, **settings), torch.Generator().manual_seed(0), TapeRecorder()
    graphed = GraphedStream(model, max_users=4, recorder=recorder)
    for users in (3, 1, 4, 9):
        state = other = model.init_state(users)
        for number in range(7):
            events = random_events(users, number, draws)
            before = {name: x.clone() for name, x in other.tensors.items()}
            out, after = graphed.step(**events, state=other)
            assert_same((out, after), (expected := model.step(**events, state=state)))
            for name, x in before.items():
                assert torch.equal(other.tensors[name], x)
            state, other = expected[1], after
    assert graphed.num_graphs == len(recorder.tapes) == 2
    assert graphed.launches == 7 * (1 + 1 + 1 + 3)


def test_mixers_that_read_gaps_are_recorded():
    model, draws = make_model("SASRec", time=EventTime(in_mixers=True)), torch.Generator().manual_seed(0)
    graphed, state = GraphedStream(model, max_users=2, recorder=TapeRecorder()), model.init_state(2)
    for number in range(7):
        events = random_events(2, number, draws)
        found, expected = graphed.step(**events, state=state), model.step(**events, state=state)
        assert_same(found, expected)
        state = expected[1]


def test_results_are_kept_while_others_step():
    model, draws = make_model("GRU4Rec"), torch.Generator().manual_seed(0)
    graphed, start = GraphedStream(model, max_users=2, recorder=TapeRecorder()), model.init_state(2)
    events = [random_events(2, number, draws) for number in range(2)]
    found = [graphed.step(**each, state=start) for each in events]
    for each, own in zip(events, found, strict=True):
        assert_same(own, model.step(**each, state=start))


def test_users_without_a_vector_follow_users_with_one():
    model = make_model("GRU4Rec", num_users=9, user_embedding=True)
    graphed, start, items = GraphedStream(model, recorder=TapeRecorder()), model.init_state(1), torch.tensor([3])
    known = graphed.step(items, start, torch.tensor([5]))
    assert_same(known, model.step(items, start, torch.tensor([5])))
    assert_same(unknown := graphed.step(items, start), model.step(items, start))
    assert not torch.equal(known[0], unknown[0])


def test_autocast_has_no_effect():
    model, items = make_model("MambaRec"), torch.tensor([3, 5])
    graphed, start = GraphedStream(model, max_users=2, recorder=TapeRecorder()), model.init_state(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = graphed.step(items, start)
    assert_same(found, model.step(items, start))


def test_graphs_are_recorded_before_they_are_needed():
    recorder = TapeRecorder()
    graphed = GraphedStream(make_model("GRU4Rec"), max_users=12, recorder=recorder)
    graphed.prepare()
    # 1, 2, 4, 8 and 12 users.
    assert graphed.num_graphs == len(recorder.tapes) == 5
    for users in (0, 1, 5, 12):
        graphed.step(torch.ones(users, dtype=torch.int64), graphed._model.init_state(users))
    assert graphed.num_graphs == 5


def test_a_launch_takes_the_place_of_many_operations():
    for encoder, most in (("MambaRec", 100), ("SASRec", 100), ("GRU4Rec", 10)):
        recorder = TapeRecorder()
        GraphedStream(make_model(encoder), max_users=1, recorder=recorder).prepare()
        assert len(recorder.tapes[0].operations) > most, encoder


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"item_ids": torch.tensor([1, 31])}, r"item_ids hold 1\.\.31, but the catalogue has items 1\.\.30"),
        ({"item_ids": torch.tensor([0, 3])}, r"item_ids hold 0\.\.3"),
        ({"item_ids": torch.tensor([[1], [2]])}, r"item_ids must be \(B,\)"),
        ({"item_ids": torch.tensor([1, 2, 3])}, r"item_ids must be .* for the state's 2 rows, got \(3,\)"),
        ({"item_ids": torch.tensor([1.5, 2.0])}, r"item_ids must be \(B,\) int64 .*, got \(2,\) torch.float32"),
        ({"user_ids": torch.tensor([3])}, r"user_ids must be \(B,\) int64 .*, got \(1,\)"),
        ({"user_ids": torch.tensor([3, 4, 5])}, r"user_ids must be \(B,\) int64 .*, got \(3,\)"),
        ({"timestamps": torch.tensor([5])}, r"timestamps must be \(B,\) int64 .*, got \(1,\)"),
        ({"timestamps": torch.tensor([5.0, 5.0])}, r"timestamps must be \(B,\) int64 .*, got \(2,\) torch.float32"),
        ({"timestamps": None}, "the model reads the time of events"),
        ({"timestamps": torch.tensor([5, -1])}, "timestamps of row 1 go back: -1 after 0"),
        ({"features": {"tab": torch.tensor([0, 3])}}, r"features\['tab'\] has the codes 0\.\.3"),
        ({"features": None}, "the model reads the column 'tab'"),
        ({"state": None}, "start with `init_state`"),
        ({"state": "longer"}, "state has rows of"),
        ({"state": "narrow"}, r"state has rows of .*torch\.bfloat16"),
    ],
    ids=str,
)
def test_what_step_refuses_is_refused_before_the_launch(events: dict[str, Any], message: str):
    model = make_model("SASRec", time=EventTime(), event_columns=COLUMNS[:1])
    graphed, start = GraphedStream(model, max_users=2, recorder=TapeRecorder()), model.init_state(2)
    state = State({**start.tensors, "newest_time": torch.zeros(2, dtype=torch.int64)}, start.encoder)
    if events.get("state") == "longer":
        longer = {name: torch.cat([x, x], 2) if x.dim() == 4 else x for name, x in state.tensors.items()}
        events = {"state": State(longer, state.encoder)}
    elif events.get("state") == "narrow":
        narrow = {name: x.bfloat16() if x.is_floating_point() else x for name, x in state.tensors.items()}
        events = {"state": State(narrow, state.encoder)}
    elif "state" in events:
        events = {"state": make_model("GRU4Rec").init_state(2)}
    given = {"item_ids": torch.tensor([1, 2]), "state": state, "timestamps": torch.tensor([5, 5])}
    with pytest.raises(InputError, match=message):
        graphed.step(**{**given, "features": {"tab": torch.tensor([0, 1])}, **events})
    assert not graphed.launches


@pytest.mark.parametrize(
    ("model", "recorder", "message"),
    [
        (lambda: make_model("GRU4Rec"), None, "CUDA graphs need a CUDA device, and the model is on cpu"),
        (lambda: make_model("GRU4Rec").train(), TapeRecorder(), r"call `\.eval\(\)` on the model first"),
        (lambda: models.SASRec(NUM_ITEMS, d_model=8).eval(), TapeRecorder(), "positions=True cannot be streamed"),
        (lambda: models.BERT4Rec(NUM_ITEMS, d_model=8).eval(), TapeRecorder(), "cannot be streamed"),
    ],
)
def test_a_model_whose_step_cannot_be_recorded_is_refused(model: Any, recorder: TapeRecorder | None, message: str):
    with pytest.raises(InputError, match=message):
        GraphedStream(model(), recorder=recorder)


def test_a_step_that_reads_a_value_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = make_model("GRU4Rec")
    advance = model.encoder.advance

    def reads(x: Tensor, *others: Any) -> Any:
        return advance(x * (1 + 0 * x.sum().item()), *others)

    monkeypatch.setattr(model.encoder, "advance", reads)
    graphed = GraphedStream(model, recorder=TapeRecorder())
    with pytest.raises(InputError, match="the streamed step of GRU4Rec cannot be recorded as a CUDA graph"):
        graphed.step(torch.tensor([1]), model.init_state(1))
