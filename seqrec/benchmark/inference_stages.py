"""What `benchmark inference` times, in a process of its own: plain values in, plain values out."""

from __future__ import annotations

import inspect
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqrec.inference.sessions import SessionRecommender, StateStore
    from seqrec.models import SequentialRecommender

# Steps of a round, of which the fastest counts: a step is so short that what else the machine does often misses one.
STEPS = 20
# Events of each user before sessions are timed.
SESSION_EVENTS = 200


def time_events(
    *, encoder: str, num_items: int, d_model: int, lengths: Sequence[int], rounds: int, seed: int, device: str
) -> dict[str, Any]:
    """Time one further event of one user by a step from the state, and by encoding the history again.

    Lengths and the two ways take turns, round by round, so that what else the machine does meets all of them. The
    model sees as many events as the longest history has, without learned positions; attention has rotary ones. Scores
    of items, which cost the same in either way, are no part of it.

    Args:
        encoder: Name of a preset.
        num_items: Items of the catalogue.
        d_model: Width.
        lengths: Events before the further one.
        rounds: Rounds, each of `STEPS` steps and one pass over the history at each length.
        seed: Seed of weights and items.
        device: cpu or cuda.

    Returns:
        `state_bytes` a user; `step_seconds` and `again_seconds`, for each length those of each round, the former of
        the fastest step.
    """
    import torch

    from seqrec.types import History, RaggedItems, SequenceBatch

    model = _model(encoder, num_items, d_model, max(lengths) + 1, seed, device)
    item_ids = torch.randint(1, num_items + 1, (1, max(lengths) + 1), device=device)
    nobody = torch.zeros(1, dtype=torch.int64, device=device)
    ways = []
    for length in lengths:
        before = History(item_ids[:, :length], torch.tensor([length], device=device))
        state = model.extend(before, model.init_state(1))[1]
        whole = item_ids[:, : length + 1]
        seen = RaggedItems(whole[0], torch.tensor([0, length + 1], device=device))
        batch = SequenceBatch(History(whole, before.lengths + 1), None, nobody, seen)
        ways.append((partial(model.step, whole[:, -1], state), partial(model.last_states, batch)))
    steps: list[list[float]] = [[] for _ in lengths]
    again: list[list[float]] = [[] for _ in lengths]
    with torch.no_grad():
        # The first round builds what is built but once.
        for counts in [False] + [True] * rounds:
            for place, (step, encode) in enumerate(ways):
                timed = min(_timed(step, device) for _ in range(STEPS)), _timed(encode, device)
                if counts:
                    steps[place].append(timed[0])
                    again[place].append(timed[1])
    return {"state_bytes": model.init_state(1).row_bytes, "step_seconds": steps, "again_seconds": again}


def time_sessions(
    *,
    encoder: str,
    num_items: int,
    d_model: int,
    batch_sizes: Sequence[int],
    rounds: int,
    seed: int,
    device: str,
    folder: str | None,
) -> list[dict[str, Any]]:
    """Time `observe_many` and `recommend_many` of sessions in each store, beside bare steps of the model.

    Each batch holds one event, or one request for 10 unseen items, of each of so many users.

    Args:
        encoder: Name of a preset.
        num_items: Items of the catalogue.
        d_model: Width.
        batch_sizes: Users a batch.
        rounds: Rounds, in which stores and sizes take turns.
        seed: Seed of weights and items.
        device: cpu or cuda.
        folder: Where the SQLite file lies meanwhile; None is the system's folder of temporary files.

    Returns:
        For each store and size `store`, `batch_size`, and the median seconds of a batch: `step`, `observe`,
        `recommend`.
    """
    import torch

    from seqrec.inference.sessions import Event, Request

    model = _model(encoder, num_items, d_model, SESSION_EVENTS, seed, device)
    draws = torch.Generator().manual_seed(seed)

    def observe(sessions: SessionRecommender, users: Sequence[int]) -> None:
        drawn = torch.randint(1, num_items + 1, (len(users),), generator=draws).tolist()
        sessions.observe_many([Event(user, item) for user, item in zip(users, drawn, strict=True)])

    with tempfile.TemporaryDirectory(dir=folder) as place:
        opened = _sessions(model, Path(place))
        cells = []
        for store, sessions in opened.items():
            observe(sessions, list(range(max(batch_sizes))) * SESSION_EVENTS)
            for size in batch_sizes:
                new = torch.ones(size, dtype=torch.int64, device=device)
                calls: dict[str, Callable[[], object]] = {
                    "step": partial(model.step, new, model.init_state(size)),
                    "observe": partial(observe, sessions, range(size)),
                    "recommend": partial(sessions.recommend_many, [Request(user) for user in range(size)]),
                }
                cells.append((store, size, calls))
        seconds: dict[tuple[str, int, str], list[float]] = {}
        for _ in range(rounds):
            for store, size, calls in cells:
                for name, call in calls.items():
                    seconds.setdefault((store, size, name), []).append(_timed(call, device))
        for sessions in opened.values():
            sessions.close()
    return [
        {"store": store, "batch_size": size}
        | {name: statistics.median(seconds[store, size, name]) for name in calls}
        for store, size, calls in cells
    ]


def _model(
    encoder: str, num_items: int, d_model: int, max_length: int, seed: int, device: str
) -> SequentialRecommender:
    import numpy as np
    import torch

    from seqrec import models
    from seqrec.data.vocabulary import Vocabulary

    torch.manual_seed(seed)
    preset = getattr(models, encoder)
    rotary = {"rotary": True} if "rotary" in inspect.signature(preset).parameters else {}
    model: SequentialRecommender = preset(
        num_items, d_model=d_model, max_length=max_length, positions=False, **rotary
    )
    model.item_vocabulary = Vocabulary(np.arange(1, num_items + 1))
    return model.to(device).eval()


def _sessions(model: SequentialRecommender, folder: Path) -> dict[str, SessionRecommender]:
    from seqrec.inference.sessions import InMemoryStore, SessionRecommender, SQLiteStore

    stores: dict[str, StateStore] = {
        "InMemoryStore": InMemoryStore(),
        "SQLiteStore": SQLiteStore(folder / "sessions.db"),
    }
    return {name: SessionRecommender(model, store) for name, store in stores.items()}


def _timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began
