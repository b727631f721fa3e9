"""`seqrec benchmark inference`: one further event at any length of history, and sessions of many users."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec.benchmark import harness
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured, timed
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Progress, print_line
from seqrec.data.report_table import ReportTable
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError
from seqrec.experiments import ENCODERS as IN_TABLE_ORDER
from seqrec.experiments import MODELS
from seqrec.inference import sessions
from seqrec.models import SequentialRecommender
from seqrec.types import History, RaggedItems, SequenceBatch

# Steps of a round; the fastest counts. A step is so short that other work of the machine often misses one.
STEPS = 20
# Events of each user before sessions are timed.
SESSION_EVENTS = 200
# Encoders that can be streamed.
STREAMED = tuple(name for name in IN_TABLE_ORDER if not ENCODERS[name].bidirectional)


def benchmark_inference(
    encoders: Sequence[str] = STREAMED,
    *,
    lengths: Sequence[int] = (200, 1000, 5000),
    batch_sizes: Sequence[int] = (1, 32, 256),
    session_encoder: str = "MambaRec",
    num_items: int = 10_000,
    d_model: int = 64,
    rounds: int = 15,
    seed: int = 0,
    device: str = "cpu",
    folder: str | None = None,
    json_file: str | None = None,
) -> None:
    """Time one further event by a step and by encoding the history again, and the throughput of sessions.

    Each encoder runs in a process of its own, in which the lengths and the two ways take turns. The default takes
    two minutes on two cores.

    Args:
        encoders: Names of presets; an empty list leaves the first table out.
        lengths: Events before the further one, ascending.
        batch_sizes: Users per batch of sessions; an empty list leaves the second table out.
        session_encoder: Name of the preset for the sessions.
        num_items: Items of the catalogue.
        d_model: Width.
        rounds: Rounds. The fastest counts.
        seed: Seed of weights and items.
        device: cpu or cuda.
        folder: Folder for the SQLite file of sessions; null is that of temporary files.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range.
    """
    for argument, names in (("encoders", encoders), ("session_encoder", [session_encoder])):
        for name in names:
            if ENCODERS[name].bidirectional:
                raise InputError(
                    f"{argument}: {name} sees newer events and cannot be streamed; take one of {', '.join(STREAMED)}"
                )
    harness.check_numbers(1, lengths=lengths, empty=False)
    harness.check_numbers(1, batch_sizes=batch_sizes, num_items=num_items, d_model=d_model, rounds=rounds)
    harness.check_device(device)
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"folder={folder!r} does not exist; make it first")
    shared = {"num_items": num_items, "d_model": d_model, "rounds": rounds, "seed": seed, "device": device}
    settings = {**shared, "session_encoder": session_encoder}
    on = harness.machine(device)
    total = len(encoders) + bool(batch_sizes)
    benchmark = Benchmark(json_file, total, settings=settings, machine=on, events=[], sessions=[])
    for encoder in encoders:
        arguments = {"lengths": sorted(lengths), "settings": {**shared, "encoder": encoder}}
        with benchmark.cell(f"one further event, {encoder}"):
            benchmark["events"].extend(run_measured(time_events, arguments, show=benchmark.show).value)
    if batch_sizes:
        settings = {**shared, "encoder": session_encoder}
        cell = {"batch_sizes": list(batch_sizes), "folder": folder, "settings": settings}
        with benchmark.cell(f"sessions of {session_encoder}"):
            benchmark["sessions"].extend(run_measured(time_sessions, cell, show=benchmark.show).value)
    sizes = f"width {d_model}, {num_items:,} items"
    title = f"{sizes}, {on['device']}, {on['threads']} threads, torch {on['torch']}"
    sessions_text = session_table(benchmark["sessions"], session_encoder, rounds)
    benchmark.finish(title, event_table(benchmark["events"], rounds), sessions_text)


def event_table(rows: Sequence[Row], rounds: int) -> ReportTable | None:
    """Return the table of further events, None if there are none; rows as `time_events` returns them."""
    title = f"one further event, fastest of {rounds} rounds"
    head = f"{title} | events before | step us | of the shortest | again us | faster | state"
    cells = []
    for row, shortest in harness.with_first(rows, "encoder"):
        step, again = row["step_seconds"], row["again_seconds"]
        times = [f"{step * 1e6:,.0f}", f"{step / shortest['step_seconds']:.2f}", f"{again * 1e6:,.0f}"]
        state = spoken_bytes(row["state_bytes"])
        cells.append([row["encoder"], f"{row['length']:,}", *times, f"{again / step:,.1f} x", state])
    return harness.table(head, cells) if rows else None


def session_table(rows: Sequence[Row], encoder: str, rounds: int) -> ReportTable | None:
    """Return the table of sessions, None if there are none; rows as `time_sessions` returns them."""
    title = f"sessions of {encoder}, fastest of {rounds} rounds"
    head = [title, "users a batch", "events/s", "of bare steps", "lists/s", "ms a batch"]
    cells = []
    for row in rows:
        size, observe, recommend = row["batch_size"], row["observe"], row["recommend"]
        events = [f"{size / observe:,.0f}", f"{row['step'] / observe:.2f}"]
        both = f"{observe * 1e3:,.2f} + {recommend * 1e3:,.2f}"
        cells.append([row["store"], f"{size:,}", *events, f"{size / recommend:,.0f}", both])
    return harness.table(head, cells) if rows else None


def time_events(lengths: Sequence[int], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time one further event of one user by a step from the state, and by encoding the history again.

    Lengths and the two ways take turns, round by round, to expose all of them to other work of the machine. The model
    sees as many events as the longest history has, without learned positions; attention has rotary ones. Scores of
    items, which cost the same in either way, are not included. See `benchmark_inference` for the arguments.

    Returns:
        For each length `encoder`, `length`, the events before the further one; `step_seconds` and `again_seconds`, of
        the fastest step and the fastest pass over the history; `state_bytes`, of a user's state.
    """
    encoder, num_items, device = settings["encoder"], settings["num_items"], settings["device"]
    model = _model(max(lengths) + 1, settings)
    item_ids = torch.randint(1, num_items + 1, (1, max(lengths) + 1), device=device)
    users = torch.zeros(1, dtype=torch.int64, device=device)
    ways = []
    for length in lengths:
        before = History(item_ids[:, :length], torch.tensor([length], device=device))
        state = model.extend(before, model.init_state(1))[1]
        whole = item_ids[:, : length + 1]
        seen = RaggedItems(whole[0], torch.tensor([0, length + 1], device=device))
        batch = SequenceBatch(History(whole, before.lengths + 1), None, users, seen)
        ways.append((partial(model.step, whole[:, -1], state), partial(model.last_states, batch)))
    seconds = np.full((settings["rounds"] + 1, len(lengths), 2), np.inf)
    with torch.no_grad():
        for fastest in Progress(print_line).each("timing", seconds, "rounds"):
            for place, (step, encode) in enumerate(ways):
                fastest[place] = min(timed(step, device) for _ in range(STEPS)), timed(encode, device)
    # The first round builds objects that are built only once.
    pairs = seconds[1:].min(0).tolist()
    state_bytes = model.init_state(1).row_bytes
    keys = ("encoder", "length", "step_seconds", "again_seconds", "state_bytes")
    rows = ([encoder, length, *pair, state_bytes] for length, pair in zip(lengths, pairs, strict=True))
    return [dict(zip(keys, row, strict=True)) for row in rows]


def time_sessions(batch_sizes: Sequence[int], folder: str | None, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Time `observe_many` and `recommend_many` of sessions in each store, and bare steps of the model.

    Each batch contains one event, or one request for 10 unseen items, per user. A bare step continues a state that
    contains all users of the batch. Stores, sizes and ways take turns. See `benchmark_inference` for the arguments.

    Returns:
        For each store and size `store`, `batch_size`, and the seconds of the fastest batch: `step`, `observe`,
        `recommend`.
    """
    num_items, device = settings["num_items"], settings["device"]
    model = _model(SESSION_EVENTS, settings)
    draws = torch.Generator().manual_seed(settings["seed"])

    def events(users: Sequence[int]) -> list[sessions.Event]:
        drawn = torch.randint(1, num_items + 1, (len(users),), generator=draws).tolist()
        return [sessions.Event(user, item) for user, item in zip(users, drawn, strict=True)]

    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place) / "sessions.db"
        stores: list[sessions.StateStore] = [sessions.InMemoryStore(), sessions.SQLiteStore(file)]
        recommenders = {type(store).__name__: sessions.SessionRecommender(model, store) for store in stores}
        cells = []
        for store, opened in recommenders.items():
            opened.observe_many(events(list(range(max(batch_sizes))) * SESSION_EVENTS))
            for size in batch_sizes:
                new = torch.ones(size, dtype=torch.int64, device=device)
                requests = [sessions.Request(user) for user in range(size)]
                calls: dict[str, Callable[[], object]] = {
                    "step": partial(model.step, new, model.init_state(size)),
                    "recommend": partial(opened.recommend_many, requests),
                }
                cells.append((store, size, calls))
        seconds: dict[tuple[str, int, str], float] = {}
        for _ in Progress(print_line).each("timing", range(settings["rounds"]), "rounds"):
            for store, size, calls in cells:
                calls["observe"] = partial(recommenders[store].observe_many, events(range(size)))
                for name, call in calls.items():
                    last = timed(call, device)
                    seconds[store, size, name] = min(last, seconds.get((store, size, name), last))
        for opened in recommenders.values():
            opened.close()
    return [
        {"store": store, "batch_size": size} | {name: seconds[store, size, name] for name in calls}
        for store, size, calls in cells
    ]


def _model(max_length: int, settings: Mapping[str, Any]) -> SequentialRecommender:
    torch.manual_seed(settings["seed"])
    num_items = settings["num_items"]
    preset: Any = MODELS[settings["encoder"]]
    rotary = {"rotary": True} if "rotary" in inspect.signature(preset).parameters else {}
    sizes = {"d_model": settings["d_model"], "max_length": max_length}
    model: SequentialRecommender = preset(num_items, **sizes, positions=False, **rotary)
    model.item_vocabulary = Vocabulary(np.arange(1, num_items + 1))
    return model.to(settings["device"]).eval()
