"""A small model, and what it says without any session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

import seqrec.models
from seqrec.data.vocabulary import Vocabulary
from seqrec.inference.sessions import Scored
from seqrec.models import Recommender, SequentialRecommender
from seqrec.types import History, RaggedItems, SeenItems, SequenceBatch

NUM_ITEMS, MAX_LENGTH = 30, 12


@pytest.fixture
def build() -> Callable[..., SequentialRecommender]:
    """Builds a preset in evaluation mode whose items are 10, 20, .., 300."""

    def build(name: str = "MambaRec", *, seed: int = 0, **arguments: object) -> SequentialRecommender:
        torch.manual_seed(seed)
        chosen = {"d_model": 8, "max_length": MAX_LENGTH, "positions": False} | arguments
        model = getattr(seqrec.models, name)(NUM_ITEMS, **chosen).eval()
        torch.nn.init.normal_(model.items.weight[1:].detach(), std=0.5)
        model.item_vocabulary = Vocabulary(np.arange(10, 10 * NUM_ITEMS + 1, 10))
        return model

    return build


@pytest.fixture
def full_pass() -> Callable[..., list[Scored]]:
    """What a model recommends to a user by encoding the whole history."""

    @torch.no_grad()
    def recommend(
        model: Recommender, items: Sequence[int], k: int = 5, *, filter_seen: bool = True, user_id: int = 0
    ) -> list[Scored]:
        vocabulary = model.item_vocabulary
        assert vocabulary is not None
        item_ids = torch.from_numpy(vocabulary.lookup(items))
        history = History(item_ids.unsqueeze(0), torch.tensor([len(item_ids)]))
        users, events = torch.tensor([user_id]), RaggedItems(item_ids, torch.tensor([0, len(item_ids)]))
        states = model.last_states(SequenceBatch(history, None, users, events))
        seen = SeenItems.from_events(torch.zeros_like(item_ids), item_ids, 1) if filter_seen else None
        best = model.scorer().top_k(states, k, users, exclude=seen)
        kept = best.item_ids[0][best.item_ids[0] > 0]
        names = list(vocabulary.external_ids(kept.numpy()))
        return [Scored(*pair) for pair in zip(names, best.scores[0].tolist(), strict=False)]

    return recommend
