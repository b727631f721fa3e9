from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from random_events import NUM_ITEMS, batch_of, training_events

from seqrec.evaluation.protocols import FullRanking
from seqrec.evaluation.target_ranks import Targets, candidate_ranks
from seqrec.models import ItemKNN, Markov, Popularity, RecentItems, RecentPopularity
from seqrec.models.baselines.neighbors import newest_first
from seqrec.types import HeldOutItems, History


@pytest.mark.parametrize("budget", [1, 3, 1000])
@pytest.mark.parametrize("lookups", [1, 40])
def test_scores_do_not_depend_on_chunks(budget: int, lookups: int, monkeypatch: pytest.MonkeyPatch):
    users = [(np.random.default_rng(seed).integers(1, NUM_ITEMS + 1, 9).tolist(), 0) for seed in range(5)]
    model = ItemKNN(NUM_ITEMS, window=2)
    model.count(training_events(users))
    states, scorer = model.last_states(batch_of([[1, 2, 3], [4], [7, 7]])), model.scorer()
    whole = scorer.score_chunk(states, 1, NUM_ITEMS)
    monkeypatch.setattr("seqrec.models.baselines.neighbors.LOOKUPS", lookups)
    scorer.score_budget = budget
    parts = [scorer.score_chunk(states, first, 1) for first in range(1, NUM_ITEMS + 1)]
    assert torch.equal(torch.cat(parts, 1), whole)
    item_ids = torch.tensor([[7, 1], [2, 2], [5, 6]])
    assert torch.equal(scorer.score(states, item_ids), whole.gather(1, item_ids - 1))
    assert scorer.top_k(states, 1, states[:, 0]).scores[:, 0].tolist() == whole.max(1).values.tolist()


def test_item_ids_above_two_to_the_24_keep_their_last_digit():
    model = ItemKNN(5)
    assert model.scorer().cast(torch.tensor([[2**24 + 1]])).long().tolist() == [[2**24 + 1]]


@pytest.mark.parametrize("baseline", [ItemKNN, Markov, Popularity, RecentItems, RecentPopularity])
def test_sampled_candidates_meet_the_scores_of_the_whole_catalogue(baseline):
    users = [(np.random.default_rng(seed).integers(1, NUM_ITEMS + 1, 9).tolist(), 0) for seed in range(5)]
    model = baseline(NUM_ITEMS)
    model.count(training_events(users, timestamps=list(range(45))))
    batch = batch_of([[1, 2, 3], [4], [6, 6]])
    targets = HeldOutItems(torch.tensor([5, 6, 7, 1]), torch.tensor([0, 2, 3, 4]))
    batch = dataclasses.replace(batch, held_out=targets)
    states, scorer = model.last_states(batch), model.scorer()
    whole = FullRanking(filter_seen=False).judge(states, batch, scorer).ranks
    for budget in (3, NUM_ITEMS):
        scorer.score_budget = budget
        parts = FullRanking(filter_seen=False).judge(states, batch, scorer).ranks
        assert torch.equal(whole.better, parts.better)
        assert torch.equal(whole.tied, parts.tied)
    # The first user has two targets, so that the others have a place without an item.
    candidates = torch.tensor([[1, 2, 3], [4, 1, 2], [2, 3, 4]])
    drawn = candidate_ranks(scorer, states, Targets(targets.rows, targets.item_ids), candidates)
    scores = scorer.score_chunk(states, 1, NUM_ITEMS)
    for number, (row, item) in enumerate(zip(targets.rows.tolist(), targets.item_ids.tolist(), strict=True)):
        own = [other for other in targets.item_ids[targets.rows == row].tolist() if other != item]
        others = scores[row, torch.tensor([*candidates[row].tolist(), *own]) - 1]
        assert drawn.better[number] == (others > scores[row, item - 1]).sum()
        assert drawn.tied[number] == (others == scores[row, item - 1]).sum()


def test_histories_are_turned_over():
    history = History(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]))
    assert newest_first(history).tolist() == [[3, 2, 1], [4, 0, 0]]
