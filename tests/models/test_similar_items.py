"""`recommend` among candidates, and `similar_items`, next to computations by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars
import pytest
import torch

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.table import ItemTable
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.models import GRU4Rec, ItemKNN, MambaRec, Markov, Popularity, Recommender, SASRec, TrainingEvents
from seqrec.types import History

NAMES = [f"song-{letter}" for letter in "abcdefghijkl"]
HISTORIES = [["song-a", "song-b", "song-c"], ["song-l"], ["song-f", "song-e"]]
YEARS = polars.DataFrame({"item_id": NAMES, "year": range(1990, 2002), "genre": ["jazz", "pop", "folk"] * 4})


def build(**settings: Any) -> SASRec:
    torch.manual_seed(0)
    model = SASRec(len(NAMES), d_model=8, max_length=4, **settings)
    for table in filter(None, (model.items, model.output_items)):
        torch.nn.init.normal_(table.weight[1:].detach())
    model.item_vocabulary = Vocabulary(NAMES)
    return model


@pytest.fixture
def model() -> SASRec:
    return build()


def chosen(lists: list[list[str]], allowed: set[str], k: int) -> list[list[str]]:
    return [[name for name in names if name in allowed][:k] for names in lists]


@pytest.mark.parametrize("k", [1, 2, 12])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_recommendations_are_the_full_ranking_without_other_items(model: SASRec, k: int, filter_seen: bool):
    every = model.recommend(HISTORIES, top_k=12, filter_seen=filter_seen)
    jazz = Candidates.where("genre = 'jazz' and year > 1990", YEARS, model.item_vocabulary)
    allowed = {"song-d", "song-g", "song-j"}
    for candidates in (jazz, sorted(allowed), Candidates.of_mask([False, *(name in allowed for name in NAMES)])):
        found = model.recommend(HISTORIES, top_k=k, filter_seen=filter_seen, candidates=candidates)
        assert found == chosen(every, allowed, k)


def test_seen_and_blocked_items_are_no_candidates(model: SASRec):
    candidates = ["song-a", "song-b", "song-k"]
    assert model.recommend([["song-a"]], candidates=candidates, block=["song-k", "song-l"]) == [["song-b"]]
    assert model.recommend([["song-a", "song-b", "song-k"]], candidates=candidates) == [[]]
    with pytest.raises(InputError, match="block has all items of candidates, so nothing is left to recommend"):
        model.recommend(HISTORIES, candidates=["song-k"], block=["song-k", "song-l"])


def test_frames_and_internal_ids_are_answered_in_their_form(model: SASRec):
    frame = polars.DataFrame({"user_id": [7, 8], "item_id": ["song-a", "song-b"]})
    found = model.recommend(frame, top_k=3, candidates=["song-c", "song-d"])
    assert found["rank"].to_list() == [1, 2, 1, 2]
    assert set(found["item_id"]) == {"song-c", "song-d"}
    best = model.recommend(History(torch.tensor([[1]]), torch.tensor([1])), top_k=3, candidates=Candidates([3, 4], 12))
    assert sorted(best.item_ids[0].tolist()) == [0, 3, 4]
    assert best.scores[0, 2] == -torch.inf


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (
            "genre = 'jazz'",
            r"candidates=\"genre = 'jazz'\" must be Candidates or a collection of item ids; Candidates.wh",
        ),
        ([], "candidates has no item id, so nothing would be left to recommend"),
        (
            ["song-a", "hum"],
            r"candidates has 'hum', which is not in the catalogue of 12 items; leave out such ids \(1 of",
        ),
        (Candidates([1], 5), "candidates is of a catalogue of 5 items, but the model has 12"),
        (5, "candidates=5 must be a collection of item ids"),
    ],
)
def test_bad_candidates_are_refused(model: SASRec, candidates: Any, message: str):
    for ask in (model.recommend, model.similar_items):
        with pytest.raises(InputError, match=message):
            ask(["song-a"] if ask == model.similar_items else HISTORIES, candidates=candidates)


MODELS: dict[str, Callable[[], SASRec | GRU4Rec | MambaRec]] = {
    "plain": build,
    "cosine": lambda: build(item_table=ItemTable(temperature=0.1)),
    "bias": lambda: build(item_table=ItemTable(bias=True)),
    "both": lambda: build(item_table=ItemTable(bias=True, temperature=0.1, separate_output=True)),
    "bfloat16": lambda: build(item_table=ItemTable(dtype="bfloat16", sparse=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_similar_items_are_those_with_the_largest_cosine(name: str):
    model = MODELS[name]()
    table = (model.output_items or model.items).weight.detach()
    vectors = torch.nn.functional.normalize(table[1:, :8].double(), dim=1)
    cosines = vectors @ vectors.T
    cosines.fill_diagonal_(-torch.inf)
    expected = cosines.argsort(dim=1, descending=True)[:, :11]
    best = model.similar_items(torch.arange(1, 13), 11, batch_size=5)
    assert (best.item_ids - 1).equal(expected)
    torch.testing.assert_close(best.scores.double(), cosines.gather(1, expected), rtol=1e-5, atol=1e-5)
    names = [[NAMES[place] for place in row] for row in expected.tolist()]
    assert model.similar_items(NAMES, 11) == names
    assert model.similar_items("song-c", 4) == names[2][:4]
    allowed = {"song-a", "song-c", "song-h"}
    assert model.similar_items(NAMES, 12, candidates=sorted(allowed)) == chosen(names, allowed, 12)
    assert model.similar_items([], 3) == []


def test_similar_items_do_not_change_the_models_mode(model: SASRec):
    model.train().similar_items(["song-a"])
    assert model.training


@pytest.mark.parametrize(
    ("items", "arguments", "message"),
    [
        (["song-a", "hum"], {}, "items has 'hum', which is not in the catalogue of 12 items; leave it out"),
        ("hum", {}, "items has 'hum', which is not in the catalogue"),
        ([None], {}, "items: external id None must be an integer or a string"),
        (["song-a"], {"top_k": 0}, "top_k=0 must be between 1 and num_items=12"),
        (["song-a"], {"top_k": 13}, "top_k=13 must be between 1 and num_items=12"),
        (["song-a"], {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (torch.tensor([13]), {}, r"items has 13\.\.13, but internal ids are 1\.\.12"),
        (torch.tensor([[1]]), {}, r"items of shape \(1, 1\) and torch.int64 must be internal ids"),
    ],
)
def test_what_has_no_similar_items_is_refused(model: SASRec, items: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        model.similar_items(items, **arguments)


def log() -> TrainingEvents:
    users = [[1, 2, 3], [1, 2], [2, 3], [4, 1, 2]]
    starts = np.cumsum([0, 3, 2, 2])
    return TrainingEvents(np.concatenate(users), None, starts, starts + np.array([3, 2, 2, 3]), num_items=5)


def test_neighbourhoods_have_a_similarity_of_their_own():
    model = ItemKNN(num_items=5, num_neighbors=5, shrinkage=0.0, half_life=None)
    model.count(log())
    best = model.similar_items(torch.tensor([1, 4, 5]), top_k=4)
    similar = dict(zip(model.neighbors[1].tolist(), model.similarities[1].tolist(), strict=True))
    kept = best.item_ids[0][best.scores[0] > 0].tolist()
    assert kept == model.neighbors[1][model.similarities[1] > 0].tolist()
    assert best.scores[0][: len(kept)].tolist() == [similar[item] for item in kept]
    assert 1 not in best.item_ids[0].tolist()
    # Item 5 never occurs, so nothing is like it.
    assert best.scores[2].tolist() == [0.0] * 4
    only = model.similar_items(torch.tensor([1]), top_k=2, candidates=Candidates([1, 3], 5))
    assert only.item_ids.tolist() == [[3, 0]]


@pytest.mark.parametrize("baseline", [Popularity, Markov])
def test_baselines_without_a_similarity_say_so(baseline: type[Recommender]):
    model = baseline(num_items=5)
    with pytest.raises(
        InputError, match=f"{baseline.__name__} has no similarity of items: use a model with item vectors"
    ):
        model.similar_items(torch.tensor([1]))


def test_baselines_recommend_among_candidates():
    model = ItemKNN(num_items=5, num_neighbors=5)
    model.count(log())
    history = History(torch.tensor([[1, 2]]), torch.tensor([2]))
    every = model.recommend(history, top_k=5)
    for allowed in ([3], [3, 4, 5], [4, 5]):
        found = model.recommend(history, top_k=2, candidates=Candidates(allowed, 5))
        kept = [item for item in every.item_ids[0].tolist() if item in allowed][:2]
        assert found.item_ids[0].tolist() == kept + [0] * (2 - len(kept))
