"""`seqrec benchmark inference`: one further event at any length of history, and sessions of many users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from seqrec.benchmark.inference_stages import time_events, time_sessions
from seqrec.benchmark.inference_tables import EventRow, InferenceFigures, SessionRow
from seqrec.benchmark.measured_child import run_measured
from seqrec.data.progress import Progress, print_line
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError

IMPORTS = ["torch", "seqrec.models", "seqrec.inference.sessions"]


def benchmark_inference(
    encoders: Sequence[str] = ("GRU4Rec", "SASRec", "RecMamba", "MambaRec", "MoEMaTrRec"),
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
        encoders: Names of presets; none leaves the first table out.
        lengths: Events before the further one, ascending.
        batch_sizes: Users a batch of sessions; none leaves the second table out.
        session_encoder: Name of the preset that the sessions are of.
        num_items: Items of the catalogue.
        d_model: Width.
        rounds: Rounds, of which the fastest counts for events, and the median for sessions.
        seed: Seed of weights and items.
        device: cpu or cuda.
        folder: Folder on the disk that the SQLite file of sessions is to be on; null is that of temporary files.
        json_file: File that the figures are written to, as JSON.

    Raises:
        InputError: an argument is out of range.
    """
    _check([*encoders, session_encoder], lengths, batch_sizes, device, folder, json_file)
    for name, value in (("num_items", num_items), ("d_model", d_model), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    shared = {"num_items": num_items, "d_model": d_model, "rounds": rounds, "seed": seed, "device": device}
    progress = Progress(print_line)
    events: list[EventRow] = []
    for encoder in encoders:
        progress.note(f"one further event, {encoder} ...")
        arguments = {**shared, "encoder": encoder, "lengths": sorted(lengths)}
        events += _event_rows(
            encoder, sorted(lengths), run_measured(time_events, arguments, imports=IMPORTS).value
        )
    sessions: list[SessionRow] = []
    if batch_sizes:
        progress.note(f"sessions of {session_encoder} ...")
        arguments = {**shared, "encoder": session_encoder, "batch_sizes": list(batch_sizes), "folder": folder}
        found = run_measured(time_sessions, arguments, imports=IMPORTS).value
        sessions = [SessionRow(**each) for each in found]
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    settings = {**shared, "session_encoder": session_encoder}
    figures = InferenceFigures(settings, machine, events, sessions)
    print(f"\n{figures.as_text()}")
    if json_file is not None:
        Path(json_file).write_text(figures.as_json() + "\n", encoding="utf-8")


def _event_rows(encoder: str, lengths: Sequence[int], found: dict[str, list[list[float]]]) -> list[EventRow]:
    return [
        EventRow(encoder, length, min(steps), min(again), found["state_bytes"])  # type: ignore[arg-type]
        for length, steps, again in zip(lengths, found["step_seconds"], found["again_seconds"], strict=True)
    ]


def _check(
    encoders: Sequence[str],
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
    device: str,
    folder: str | None,
    json_file: str | None,
) -> None:
    for name in encoders:
        ENCODERS[name]  # raises with the known ones
    if not lengths or min(lengths) < 1:
        raise InputError(f"lengths={list(lengths)} must be numbers of at least 1, one or more")
    if batch_sizes and min(batch_sizes) < 1:
        raise InputError(f"batch_sizes={list(batch_sizes)} must all be at least 1")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device={device!r} must be cpu or cuda")
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"folder={folder!r} does not exist; make it first")
    # Now rather than after minutes.
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"json_file={json_file!r} lies in a folder that does not exist; make it first")
