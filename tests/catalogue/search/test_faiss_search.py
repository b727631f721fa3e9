from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.search import ExactSearch, FaissSearch, ItemSearch
from seqrec.errors import InputError
from seqrec.types import SeenItems

pytestmark = pytest.mark.process

# Training the index of ivf_pq takes 12 s.
every_kind = pytest.mark.parametrize("kind", [pytest.param("ivf_pq", marks=pytest.mark.slow), "ivf_flat", "hnsw"])
USERS = torch.arange(30)


def clustered(num_items: int, num_users: int = 30, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An item table and states that lie around common centres, as a trained model's do."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, width, generator=generator)

    def around(number: int) -> Tensor:
        own = centres[torch.randint(40, (number,), generator=generator)]
        return own + 0.4 * torch.randn(number, width, generator=generator)

    return around(num_items + 1), around(num_users)


def sets(rows: list[set[int]]) -> SeenItems:
    counts = torch.tensor([len(row) for row in rows])
    return SeenItems(
        torch.tensor([item for row in rows for item in sorted(row)], dtype=torch.int64),
        torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    )


def overlap(found: Tensor, exact: Tensor) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)) / exact.numel()


def prepared(scorer: Scorer, kind: str, **settings: int | str) -> FaissSearch:
    search = FaissSearch(kind, **settings)
    search.prepare(scorer)
    return search


@every_kind
def test_most_of_the_best_items_are_found_with_their_exact_scores(kind: str):
    table, states = clustered(5000)
    scorer = Scorer(table)
    exact = ExactSearch().top_k(scorer, states, 20, USERS)
    found = prepared(scorer, kind).top_k(scorer, states, 20, USERS)
    assert overlap(found.item_ids, exact.item_ids) > 0.9
    torch.testing.assert_close(found.scores, (states.unsqueeze(1) * table[found.item_ids]).sum(-1))
    assert (found.scores.diff(dim=1) <= 0).all()
    assert found.user_ids.equal(USERS)


@every_kind
def test_biases_and_cosines_are_part_of_the_scores(kind: str):
    table, states = clustered(3000)
    biases = 3 * torch.randn(len(table), 1, generator=torch.Generator().manual_seed(1))
    scorer = Scorer(torch.cat([table, biases], 1), unit_columns=16)
    states = torch.cat([torch.nn.functional.normalize(states, dim=1) / 0.1, torch.ones(30, 1)], 1)
    exact = scorer.top_k(states, 10, USERS)
    found = prepared(scorer, kind, probes=24).top_k(scorer, states, 10, USERS)
    assert overlap(found.item_ids, exact.item_ids) > 0.9


@every_kind
def test_seen_and_blocked_items_are_never_found(kind: str):
    table, states = clustered(2000)
    scorer = Scorer(table)
    search = prepared(scorer, kind)
    best = scorer.top_k(states, 40, USERS).item_ids
    seen = sets([set(row[: 5 + 1 * user].tolist()) for user, row in enumerate(best)])
    blocked = best[:, 20:25].flatten().unique()
    found = search.top_k(scorer, states, 20, USERS, exclude=seen, blocked=blocked)
    exact = scorer.top_k(states, 20, USERS, exclude=seen, blocked=blocked)
    for user, row in enumerate(found.item_ids.tolist()):
        own = seen.item_ids[seen.offsets[user] : seen.offsets[user + 1]].tolist()
        assert not {0, *own, *blocked.tolist()} & set(row)
        assert len(set(row)) == 20
    assert overlap(found.item_ids, exact.item_ids) > 0.9


@every_kind
def test_only_candidates_are_found(kind: str):
    table, states = clustered(2000)
    scorer = Scorer(table)
    search = prepared(scorer, kind)
    generator = torch.Generator().manual_seed(0)
    for share, blocks in itertools.product((0.01, 0.05, 0.5), (False, True)):
        allowed = (torch.rand(2000, generator=generator) < share).nonzero().flatten() + 1
        best = scorer.top_k(states, 10, USERS, allowed=allowed).item_ids
        seen = sets([set(row[:2].tolist()) - {0} for row in best])
        blocked = best[:, 2].unique() if blocks else None
        exact_before = search.counts()["exact_rows"]
        found = search.top_k(scorer, states, 10, USERS, exclude=seen, blocked=blocked, allowed=allowed)
        exact = scorer.top_k(states, 10, USERS, exclude=seen, blocked=blocked, allowed=allowed)
        assert set(found.item_ids.flatten().tolist()) <= {0, *allowed.tolist()}
        assert blocked is None or not torch.isin(found.item_ids, blocked).any()
        for row, own in zip(found.item_ids, best[:, :2], strict=True):
            assert not set(row.tolist()) & set(own.tolist()) - {0}
        assert overlap(found.item_ids, exact.item_ids) > 0.9
        if share < 1 / 64:
            # So few are all scored.
            assert found.item_ids.equal(exact.item_ids)
            assert search.counts()["exact_rows"] == exact_before


def test_users_for_whom_too_few_are_found_are_searched_exactly_and_counted():
    table, states = clustered(2000)
    scorer = Scorer(table)
    search = prepared(scorer, "ivf_flat", lists=50, probes=1, overfetch=1)
    everything, few = set(range(1, 2001)), set(scorer.top_k(states[:1], 1500, USERS[:1]).item_ids[0].tolist())
    seen = sets([few, everything - {3, 7}, *({item} for item in range(1, 29))])
    found = search.top_k(scorer, states, 20, USERS, exclude=seen)
    exact = scorer.top_k(states, 20, USERS, exclude=seen)
    assert found.item_ids[:2].equal(exact.item_ids[:2])
    assert sorted(found.item_ids[1].tolist()) == [0] * 18 + [3, 7]
    assert 2 <= search.counts()["exact_rows"] < 30
    assert (found.item_ids[2:] > 0).all()


@every_kind
def test_a_catalogue_smaller_than_what_is_asked_for_is_whole(kind: str):
    table, states = clustered(30)
    scorer = Scorer(table)
    found = prepared(scorer, kind).top_k(scorer, states, 30, USERS)
    assert found.item_ids.equal(scorer.top_k(states, 30, USERS).item_ids)


def test_an_index_is_kept_and_taken_only_for_its_own_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (table, states), (other, _) = clustered(500), clustered(500, seed=1)
    path, builds = tmp_path / "items.faiss", []
    build = FaissSearch._build
    monkeypatch.setattr(FaissSearch, "_build", lambda self, s: builds.append(s) or build(self, s))

    def best(vectors: Tensor) -> Tensor:
        search = prepared(Scorer(vectors), "hnsw", index_file=str(path))
        return search.top_k(Scorer(vectors), states, 5, USERS).item_ids

    first = best(table)
    assert best(table).equal(first)
    assert len(builds) == 1
    assert overlap(best(other), Scorer(other).top_k(states, 5, USERS).item_ids) > 0.9
    assert len(builds) == 2
    path.write_bytes(path.read_bytes()[:1000])
    best(other)
    assert len(builds) == 3
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    best(other)
    assert len(builds) == 4


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"needs the package faiss .* pip install 'seqrec\[faiss\]'"):
        FaissSearch()


def test_values_out_of_range_are_refused():
    for name in ("lists", "probes", "neighbours", "overfetch"):
        with pytest.raises(InputError, match=f"{name}=0 must be at least 1"):
            FaissSearch(**{name: 0})
    with pytest.raises(InputError, match="kind='lsh' must be one of ivf_pq, ivf_flat, hnsw"):
        FaissSearch("lsh")  # type: ignore[arg-type]
    scorer = Scorer(torch.ones(5, 2))
    for search in (ExactSearch(), FaissSearch()):
        assert isinstance(search, ItemSearch)
        with pytest.raises(InputError, match="top_k=5 must be between 1 and num_items=4"):
            search.top_k(scorer, torch.ones(1, 2), 5, torch.zeros(1))


def test_what_cannot_be_searched_is_refused():
    scorer = Scorer(torch.ones(5, 2))
    with pytest.raises(InputError, match="no index yet; call prepare"):
        FaissSearch().top_k(scorer, torch.ones(1, 2), 2, torch.zeros(1))

    class Distances(Scorer):
        pass

    with pytest.raises(InputError, match="Distances scores otherwise; use ExactSearch"):
        FaissSearch().prepare(Distances(torch.ones(5, 2)))
