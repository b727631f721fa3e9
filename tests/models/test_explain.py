"""Contributions of past events to a score, beside closed forms and naive computations."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import seqrec.models
from seqrec.catalogue.table import ItemTable
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.encoders.layers import Tensors
from seqrec.errors import InputError
from seqrec.models import SequentialRecommender
from seqrec.types import History

NUM_ITEMS, MAX_LENGTH = 12, 6
MAMBA2 = {"mixer": "mamba2"}
every_encoder = pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in ENCODERS if not ENCODERS[name].bidirectional), ("MambaRec", MAMBA2)],
    ids=str,
)
both_methods = pytest.mark.parametrize("method", ["leave_one_out", "gradient_x_input"])


class Linear(SequenceEncoder):
    """Sums up the events behind a matrix: each contributes on its own."""

    def __init__(self, d_model: int = 4) -> None:
        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)
        self.matrix = torch.nn.Parameter(torch.randn(d_model, d_model))

    def forward(self, x: torch.Tensor, history: History) -> torch.Tensor:
        return (x @ self.matrix).cumsum(1)

    def zero_state(self, batch_size: int, max_length: int, like: torch.Tensor) -> Tensors:
        return {"sum": like.new_zeros(batch_size, self.d_model)}

    def advance(self, x: torch.Tensor, valid: object, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        states = state["sum"].unsqueeze(1) + (x @ self.matrix).cumsum(1)
        return states, {"sum": states[:, -1]}


def model(name: str = "MambaRec", **arguments: object) -> SequentialRecommender:
    torch.manual_seed(0)
    chosen = {"d_model": 8, "max_length": MAX_LENGTH} | arguments
    made = getattr(seqrec.models, name)(NUM_ITEMS, **chosen).eval()
    torch.nn.init.normal_(made.items.weight.detach()[1:], std=0.5)
    return made


def linear(**arguments: object) -> SequentialRecommender:
    torch.manual_seed(0)
    return SequentialRecommender(NUM_ITEMS, encoder=Linear(), max_length=MAX_LENGTH, **arguments).eval()


def history(*item_ids: int, padding: int = 0) -> History:
    return History(torch.tensor([[*item_ids, *[0] * padding]]), torch.tensor([len(item_ids)]))


@torch.no_grad()
def naive_score(recommender: SequentialRecommender, item_ids: list[int], item: int, *, stream: bool) -> float:
    events = history(*item_ids)
    if stream:
        states, _ = recommender.extend(events, recommender.init_state(1))
    else:
        states = recommender(events)
    return float(recommender.to_scoring_space(states[0, -1]) @ recommender.scorer().item_vectors[item])


@both_methods
@pytest.mark.parametrize("stream", [False, True])
def test_of_a_linear_encoder_each_event_contributes_its_own_product(method: str, stream: bool):
    recommender = linear(positions=False, item_table=ItemTable(bias=True))
    torch.nn.init.normal_(recommender.items.weight.detach()[1:])
    found = recommender.explain(history(3, 5, 3, 7), 2, method=method, stream=stream)
    table, matrix = recommender.items.weight.detach(), recommender.encoder.matrix.detach()
    expected = 2 * table[[3, 5, 3, 7], :4] @ matrix @ table[2, :4]
    torch.testing.assert_close(found.contributions, expected)
    assert found.baseline == pytest.approx(float(table[2, 4]))
    assert float(found.contributions.sum()) == pytest.approx(found.score - found.baseline, rel=1e-5)
    assert (found.item, found.item_ids, found.method) == (2, [3, 5, 3, 7], method)


@every_encoder
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_an_event_out_is_what_a_naive_loop_finds(name: str, settings: dict, stream: bool):
    recommender = model(name, positions=not stream, **settings)
    # Of a stream all events count, otherwise the newest; the last batch is smaller than the others.
    given = [4, 9, 1, 4, 12, 7, 3, 3]
    seen = given if stream else given[-MAX_LENGTH:]
    found = recommender.explain(history(*given, padding=3), 5, stream=stream, batch_size=4)
    whole = naive_score(recommender, seen, 5, stream=stream)
    expected = [whole - naive_score(recommender, seen[:t] + seen[t + 1 :], 5, stream=stream) for t in range(len(seen))]
    assert found.item_ids == seen
    assert found.score == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(found.contributions, torch.tensor(expected), rtol=0, atol=1e-5)


@every_encoder
@pytest.mark.parametrize("stream", [False, True])
def test_gradient_times_input_is_the_scores_slope_when_an_event_grows(name: str, settings: dict, stream: bool):
    recommender = model(name, positions=not stream, **settings).double()
    given, step = [4, 9, 1, 7], 1e-5
    found = recommender.explain(history(*given), 5, method="gradient_x_input", stream=stream)
    with torch.no_grad():
        vectors = recommender.items(torch.tensor([given])) * 8**0.5
        slopes = []
        for t in range(len(given)):
            scores = []
            for change in (step, -step):
                x = vectors.clone()
                x[0, t] *= 1 + change
                if stream:
                    state = recommender.newest_states(x, history(*given), None, stream=True)[0]
                else:
                    x = recommender.encoder_input(x, history(*given), None)
                    state = recommender.encoder(x, history(*given))[0, -1]
                scores.append(float(state @ recommender.items.weight[5]))
            slopes.append((scores[0] - scores[1]) / (2 * step))
    torch.testing.assert_close(found.contributions, torch.tensor(slopes, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_a_single_event_contributes_all_that_is_not_the_baseline(name: str):
    recommender = model(name)
    found = recommender.explain(history(7, padding=2), 5)
    assert found.contributions.tolist() == [pytest.approx(found.score - found.baseline)]
    assert recommender.explain(history(7), 5, method="gradient_x_input").contributions.shape == (1,)


@torch.no_grad()
def test_the_baseline_is_what_positions_and_the_user_say_without_items():
    recommender = model("SASRec", user_embedding=True, num_users=3)
    found = recommender.explain(history(4, 9, 1), 5, user=2)
    x = recommender.encoder_input(torch.zeros(1, 3, 8), history(4, 9, 1), torch.tensor([2]))
    states = recommender.encoder(x, history(4, 9, 1))
    assert found.baseline == pytest.approx(float(states[0, -1] @ recommender.items.weight[5]), abs=1e-6)
    assert found.score != recommender.explain(history(4, 9, 1), 5, user=1).score


@both_methods
def test_the_logs_own_ids_are_taken_and_given_back(method: str):
    recommender = model(user_embedding=True, num_users=3)
    names = [f"song-{number:02}" for number in range(1, NUM_ITEMS + 1)]
    recommender.item_vocabulary, recommender.user_vocabulary = (
        Vocabulary(names),
        Vocabulary(np.arange(3) * 10),
    )
    found = recommender.explain(["song-04", "song-09"], "song-05", user=20, method=method)
    inner = recommender.explain(history(4, 9), 5, user=3, method=method)
    assert (found.item, found.item_ids) == ("song-05", ["song-04", "song-09"])
    assert inner.item_ids == [4, 9]
    torch.testing.assert_close(found.contributions, inner.contributions)
    with pytest.warns(UserWarning, match="dropped 1 of 3 events with items that the model does not know") as caught:
        again = recommender.explain(["song-04", "noise", "song-09"], "song-05", user=20, method=method)
    assert caught[0].filename == __file__
    torch.testing.assert_close(again.contributions, found.contributions)


@both_methods
def test_dropout_is_off_and_the_mode_and_gradients_come_back(method: str):
    recommender = model(dropout=0.5).train()
    first = recommender.explain(history(4, 9, 1), 5, method=method)
    torch.testing.assert_close(
        first.contributions, recommender.explain(history(4, 9, 1), 5, method=method).contributions
    )
    assert recommender.training
    assert all(x.grad is None for x in recommender.parameters())


@pytest.mark.parametrize(
    ("given", "item", "arguments", "message"),
    [
        (history(4, 9), 0, {}, "item=0 must be an internal id, 1..12"),
        (history(4, 9), 13, {}, "item=13 must be an internal id, 1..12"),
        (history(4, 9), "song", {}, "item='song' must be an internal id, 1..12"),
        (history(4, 99), 1, {}, "history has items 4..99, but the catalogue has 1..12"),
        (history(padding=2), 1, {}, "history row 0 has no event; leave it out"),
        (
            History(torch.ones(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)),
            *(1, {}, "history has 2 rows; give one"),
        ),
        ([4, 9], 1, {}, "the model does not know the log's item ids: load it with"),
        (history(4), 1, {"method": "shap"}, "method='shap' must be one of leave_one_out, gradient_x_input"),
        (history(4), 1, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (history(4), 1, {"stream": True}, "positions=True cannot be streamed"),
    ],
)
def test_what_does_not_fit_is_refused(given: object, item: object, arguments: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        model().explain(given, item, **arguments)


def test_ids_that_the_log_does_not_know_are_refused():
    recommender = model(user_embedding=True, num_users=3)
    recommender.item_vocabulary = Vocabulary(np.arange(1, NUM_ITEMS + 1) * 10)
    with pytest.raises(InputError, match=r"history='10' must be a list of item ids, as in \['10'\]"):
        recommender.explain("10", 10)
    with pytest.raises(InputError, match=r"history 0: external id 1.5 must be an integer or a string"):
        recommender.explain([10, 1.5], 10)
    with pytest.raises(InputError, match=r"item: external id None must be an integer or a string"):
        recommender.explain([10, 20], None)
    with pytest.raises(InputError, match="item=5 is none of the log's 12 items"):
        recommender.explain([10, 20], 5)
    with pytest.raises(InputError, match=r"no item that the model knows \(2 unknown\)"):
        recommender.explain([1, 2], 10)
    with pytest.raises(InputError, match=r"no item that the model knows \(0 unknown\)"):
        recommender.explain([], 10)
    with pytest.raises(InputError, match="user=1 is one of the log's ids, which the model does not know: load it with"):
        recommender.explain([10, 20], 10, user=1)
    with pytest.raises(InputError, match=r"user=9 must be an internal id, 0..3"):
        recommender.explain(history(1), 10, user=9)
