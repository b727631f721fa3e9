from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.inference import recommend
from seqrec.models import Popularity, SASRec
from seqrec.types import History

NAMES = [f"song-{letter}" for letter in "abcdefghijkl"]
HISTORIES = [list("abc"), list("ghijkl"), list("d"), list("fedcb"), list("ab")]
HISTORIES = [[f"song-{letter}" for letter in history] for history in HISTORIES]


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    model = SASRec(len(NAMES), d_model=8, max_length=4)
    torch.nn.init.normal_(model.items.weight[1:].detach())
    return model


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(NAMES)


@torch.no_grad()
def naive(model: SASRec, history: list[str], top_k: int, *, filter_seen: bool) -> list[str]:
    """One user at a time, without padding: score every item and sort."""
    newest = [NAMES.index(name) + 1 for name in history][-4:]
    model.eval()
    state = model(History(torch.tensor([newest]), torch.tensor([len(newest)])))[0, -1]
    model.train()
    scores = {name: float(model.items.weight[row + 1] @ state) for row, name in enumerate(NAMES)}
    allowed = [name for name in NAMES if not (filter_seen and name in history)]
    return sorted(allowed, key=scores.__getitem__, reverse=True)[:top_k]


@pytest.mark.parametrize("batch_size", [1, 2, 128])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_recommendations_equal_a_naive_computation_in_the_order_given(
    model: SASRec, vocabulary: Vocabulary, batch_size: int, filter_seen: bool
):
    best = recommend(model, HISTORIES, vocabulary, top_k=5, filter_seen=filter_seen, batch_size=batch_size)
    assert best == [naive(model, history, 5, filter_seen=filter_seen) for history in HISTORIES]


def test_seen_items_are_left_out_even_where_the_model_no_longer_sees_them(
    model: SASRec, vocabulary: Vocabulary
):
    (best,) = recommend(model, [NAMES[:9]], vocabulary, top_k=12)
    assert sorted(best) == NAMES[9:]
    (all_items,) = recommend(model, [NAMES[:9]], vocabulary, top_k=12, filter_seen=False)
    assert sorted(all_items) == NAMES


def test_max_length_cuts_to_the_newest_events(model: SASRec, vocabulary: Vocabulary):
    long, short = [["song-a", "song-b", "song-c", "song-d"]], [["song-c", "song-d"]]
    cut = recommend(model, long, vocabulary, max_length=2, filter_seen=False)
    assert cut == recommend(model, short, vocabulary, filter_seen=False)


def test_unknown_items_are_dropped_with_a_count(model: SASRec, vocabulary: Vocabulary):
    histories = [["song-a", "noise", "song-b"], ["hum", "song-c", "hiss"]]
    with pytest.warns(UserWarning, match="dropped 3 of 6 events whose item the vocabulary does not know"):
        best = recommend(model, histories, vocabulary)
    assert best == recommend(model, [["song-a", "song-b"], ["song-c"]], vocabulary)


def test_the_warning_points_at_the_caller(model: SASRec, vocabulary: Vocabulary):
    with pytest.warns(UserWarning, match="dropped 1 of 2") as caught:
        recommend(model, [["song-a", "noise"]], vocabulary)
    assert caught[0].filename == __file__


def test_known_items_alone_give_no_warning(model: SASRec, vocabulary: Vocabulary):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recommend(model, HISTORIES, vocabulary)


@pytest.mark.parametrize(("history", "unknown"), [([], 0), (["noise", "hum"], 2)])
def test_a_history_without_known_items_is_refused(
    model: SASRec, vocabulary: Vocabulary, history: list[str], unknown: int
):
    with pytest.raises(
        InputError, match=rf"history 1 has no item that the vocabulary knows \({unknown} unknown"
    ):
        recommend(model, [["song-a"], history], vocabulary)


@pytest.mark.parametrize("top_k", [0, -1, 13])
def test_top_k_out_of_range_is_refused(model: SASRec, vocabulary: Vocabulary, top_k: int):
    with pytest.raises(InputError, match=rf"top_k={top_k} must be between 1 and num_items=12"):
        recommend(model, HISTORIES, vocabulary, top_k=top_k)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"max_length": -1}, "max_length=-1 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 .* must be at least 1"),
        ({"batch_size": -3}, "batch_size=-3 .* must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(
    model: SASRec, vocabulary: Vocabulary, arguments: dict, message: str
):
    with pytest.raises(InputError, match=message):
        recommend(model, HISTORIES, vocabulary, **arguments)


def test_more_events_than_the_model_has_positions_for_are_refused(model: SASRec, vocabulary: Vocabulary):
    with pytest.raises(InputError, match="a history of 6 events exceeds max_length=4"):
        recommend(model, HISTORIES, vocabulary, max_length=10)


def test_a_vocabulary_of_another_catalogue_is_refused(model: SASRec):
    with pytest.raises(InputError, match="vocabulary has 2 items, but the model was trained on 12"):
        recommend(model, HISTORIES, Vocabulary(["song-a", "song-b"]))


def test_no_histories_give_no_recommendations(model: SASRec, vocabulary: Vocabulary):
    assert recommend(model, [], vocabulary) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_comes_back(model: SASRec, vocabulary: Vocabulary, training: bool):
    recommend(model.train(training), HISTORIES, vocabulary)
    assert model.training is training
    with pytest.raises(InputError, match="top_k=99"):
        recommend(model, HISTORIES, vocabulary, top_k=99)
    assert model.training is training


def test_popularity_recommends_the_most_frequent_unseen_items():
    popularity = Popularity.from_counts(np.array([0, 1, 9, 5, 7]))
    assert recommend(popularity, [[20], [10, 30]], Vocabulary(np.array([10, 20, 30, 40])), top_k=2) == [
        [40, 30],
        [20, 40],
    ]
