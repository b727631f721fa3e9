"""Sessions whose events are computed by recorded steps, with tapes in place of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tape import TapeRecorder, use_operations_of_torch

from seqrec.encoders.event_time import EventTime
from seqrec.errors import InputError, UnknownItemError
from seqrec.inference.sessions import Event, Request, SessionRecommender, SQLiteStore, StreamedState, user_state
from seqrec.models import SequentialRecommender
from seqrec.models.graphed_stream import GraphedStream

Build = Callable[..., SequentialRecommender]
MODELS: dict[str, dict[str, Any]] = {
    "MambaRec": {}, "GRU4Rec": {"num_users": 3, "user_embedding": True}, "SASRec": {"rotary": True},
    "RecMamba": {"time": EventTime(hour=True)},
}  # fmt: skip


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    use_operations_of_torch(monkeypatch)
    found = TapeRecorder()
    monkeypatch.setattr(user_state, "GraphedStream", partial(GraphedStream, max_users=4, recorder=found))
    return found


def events(user: int, first: int, count: int) -> list[Event]:
    return [Event(user, 10 * (1 + (7 * user + each**2) % 30), time=100 * each) for each in range(first, first + count)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("durable", [False, True])
def test_sessions_are_those_of_plain_steps(
    name: str, durable: bool, build: Build, tmp_path: Path, recorder: TapeRecorder
):
    """One event at a time is computed by a recording, several of a user as without."""
    found = []
    for graphs in (True, False):
        model = build(name, **MODELS[name])
        stores = [SQLiteStore(tmp_path / f"{graphs}.db") if durable else None for _ in range(2)]
        sessions = SessionRecommender(model, stores[0], memory=StreamedState(model, cuda_graphs=graphs))
        for each in range(6):
            # More users than the recordings have room for.
            sessions.observe_many([events(user, each, 1)[0] for user in range(9)])
        sessions.observe_many([event for user in (1, 4) for event in events(user, 6, 3)])
        if durable:
            sessions.close()
            sessions = SessionRecommender(model, stores[1], memory=StreamedState(model, cuda_graphs=graphs))
        sessions.observe_many([events(user, 9, 1)[0] for user in (4, 2, 30)])
        found.append(sessions.recommend_many([Request(user, 5) for user in (*range(9), 30)]))
        sessions.close()
    assert len(recorder.tapes) == (6 if durable else 3)
    for recorded, plain in zip(*found, strict=True):
        assert [each.item for each in recorded] == [each.item for each in plain]
        assert [each.score for each in recorded] == pytest.approx([each.score for each in plain], rel=1e-4)


def test_a_refused_batch_changes_nothing(build: Build):
    model = build()
    with SessionRecommender(model, memory=StreamedState(model, cuda_graphs=True)) as sessions:
        sessions.observe("ada", 10)
        before = sessions.recommend("ada", 5)
        with pytest.raises(UnknownItemError):
            sessions.observe_many([Event("ada", 20), Event("bob", 5)])
        assert sessions.recommend("ada", 5) == before


def test_models_that_are_encoded_again_have_no_graphs(build: Build):
    with pytest.raises(InputError, match="SASRec cannot be streamed: positions=True"):
        StreamedState(build("SASRec", positions=True), cuda_graphs=True)
