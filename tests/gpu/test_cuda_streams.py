"""Streamed steps as CUDA graphs against the same steps without, on their own and in sessions, and lists in bulk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from streams import SETTINGS, STREAMED, assert_same, make_model, random_events

from seqrec.catalogue.recommend import RecommendOptions, recommend_block
from seqrec.catalogue.scorer import Scorer
from seqrec.data.event_block import EventBlock
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.inference.sessions import Event, Request, SessionRecommender
from seqrec.inference.sessions.user_state import StreamedState
from seqrec.models.graphed_stream import GraphedStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODELS = [*((encoder, {}) for encoder in STREAMED), *(("SASRec", each) for each in SETTINGS.values())]


def on_gpu(events: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: y.cuda() for key, y in x.items()} if isinstance(x, dict) else x.cuda() for name, x in events.items()
    }


@pytest.mark.parametrize(("encoder", "settings"), MODELS)
def test_graphs_compute_the_steps(encoder: str, settings: dict[str, Any]):
    model, draws = make_model(encoder, **settings).cuda(), torch.Generator().manual_seed(0)
    graphed = GraphedStream(model, max_users=4)
    for users in (3, 1, 9):
        state = other = model.init_state(users)
        for number in range(7):
            events = random_events(users, number, draws)
            # Events may be on either device.
            found = graphed.step(**(events if number % 2 else on_gpu(events)), state=other)
            assert_same(found, expected := model.step(**on_gpu(events), state=state), atol=2e-5)
            state, other = expected[1], found[1]
    assert graphed.num_graphs == 2


def test_a_wrong_item_is_refused_and_the_gpu_works_as_before():
    model = make_model("MambaRec").cuda()
    graphed, start = GraphedStream(model), model.init_state(1)
    with pytest.raises(InputError, match=r"item_ids hold 31\.\.31"):
        graphed.step(torch.tensor([31]), start)
    assert_same(graphed.step(torch.tensor([3]), start), model.step(torch.tensor([3], device="cuda"), start), atol=2e-5)


@pytest.mark.parametrize("encoder", ["MambaRec", "SASRec"])
def test_sessions_are_those_without_graphs(encoder: str):
    found = []
    for graphs in (True, False):
        model = make_model(encoder)
        model.item_vocabulary = Vocabulary([10 * number for number in range(1, 31)])
        model.cuda()
        with SessionRecommender(model, memory=StreamedState(model, cuda_graphs=graphs)) as sessions:
            sessions.observe_many([Event(user, 10 * (1 + user % 30)) for user in range(300)])
            sessions.observe_many([Event(user, 10 * (1 + (7 * user) % 30)) for user in range(5)] * 2)
            found.append(sessions.recommend_many([Request(user) for user in range(5)]))
    for with_graphs, without in zip(*found, strict=True):
        assert [each.item for each in with_graphs] == [each.item for each in without]
        assert [each.score for each in with_graphs] == pytest.approx([each.score for each in without], rel=1e-3)


def test_lists_in_bulk_are_those_of_a_cpu():
    model, draws, lengths = make_model("MambaRec"), np.random.default_rng(0), np.arange(3000) % 9
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = draws.integers(1, 31, int(offsets[-1]))
    block = EventBlock(items, offsets, np.zeros(3000, np.int64), 30)
    # More users in a batch than a block of the search has, and several batches.
    lists = [
        recommend_block(each, block, RecommendOptions(5), max_tokens=8000)
        for each in (model, make_model("MambaRec").cuda())
    ]
    torch.testing.assert_close(lists[1].scores, lists[0].scores, rtol=1e-3, atol=1e-3)
    assert (lists[1].item_ids == lists[0].item_ids).double().mean() > 0.99


def test_memory_of_a_search_does_not_grow_with_the_catalogue():
    states, users, peaks = torch.randn(256, 64, device="cuda"), torch.arange(256), []
    for num_items in (200_000, 2_000_000):
        scorer = Scorer(torch.randn(num_items + 1, 64, device="cuda"), score_budget=1 << 22)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        scorer.top_k(states, 100, users)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    # All scores are 2 GB for the larger one, a block is 16 MiB.
    assert max(peaks) < 200 << 20
