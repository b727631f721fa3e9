"""Checkpoints by name: a file, a run's folder, a folder of runs, or one of the words `last`, `best` and `hpc`."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqrec.data.user_files import refuse_special
from seqrec.errors import InputError, MissingInputError
from seqrec.files import write_text
from seqrec.registry import did_you_mean

# Folder of all runs, in the working folder or in `trainer.default_root_dir`.
RUNS = Path("runs")
LAST, BEST = "last.ckpt", "best.ckpt"
WORDS = ("last", "best", "hpc")
# In a run's folder: the time of its start in nanoseconds, but later than that of every run before.
START_FILE = ".started"
HELP = "give a checkpoint, a run's folder, a folder of runs, or last (the newest run), best or hpc"


def find_checkpoint(name: str, *, to_resume: bool = False, argument: str = "ckpt=", runs: Path = RUNS) -> str:
    """Return the checkpoint of a name.

    Args:
        name: A checkpoint; a run folder; a folder of runs, for the one that started last; or a word, unless a folder
            has that name: `last` (the run below `runs` that started last), `best` (the same, its best checkpoint), or
            `hpc` (the newest file that Lightning wrote as `hpc_ckpt_<n>.ckpt` when a SLURM job ended).
        to_resume: Whether to prefer a run's newest resume point, by its step, to its best checkpoint.
        argument: How the user gives the name, for messages: `--ckpt_path ` or `ckpt=`.
        runs: Folder of all runs.

    Raises:
        MissingInputError: if there is no such file, or a folder contains no checkpoint.
        InputError: if the file may not be read.
    """
    place = Path(name)
    if place.is_file() and not os.access(place, os.R_OK):
        raise InputError(f"{argument}{name}: permission denied; allow the file to be read, or {HELP}")
    refuse_special(place, f"{argument}{name}", may_be_folder=True)
    if name in ("", "null") or "://" in name or place.is_file():
        return name
    word = name if name in WORDS and not place.exists() else None
    if word is None and not place.is_dir():
        beside = [str(other) for other in place.parent.glob("*.ckpt")] if place.parent.is_dir() else []
        below = f"; did you mean {runs / name}?" if (runs / name).exists() else ""
        hint = below or did_you_mean(name, beside) or f"; {HELP}"
        raise MissingInputError(f"{argument}{name}: there is no such checkpoint or folder{hint}")
    folder = runs if word else place
    if word == "hpc":
        saved = [*runs.parent.glob("hpc_ckpt_*.ckpt"), *runs.rglob("hpc_ckpt_*.ckpt")]
        if not saved:
            raise MissingInputError(f"{argument}hpc: {runs.parent.absolute()} has no hpc_ckpt_<n>.ckpt; {HELP}")
        return str(max(saved, key=lambda file: (_number(file.stem), file.stat().st_mtime)))
    if not folder.is_dir():
        raise MissingInputError(
            f"{argument}{name}: there is no folder {folder} here, so there is no run; {HELP}, or the folder that its "
            "command had as --trainer.default_root_dir"
        )
    for files in _checkpoints(folder, to_resume):
        best = [file for file in files if file.name == BEST]
        others = _by_step([file for file in files if file.name.startswith("last")] or [*{*files} - {*best}])
        if found := best if word == "best" else [*others, *best] if to_resume else [*best, *others]:
            return str(found[0])
    closed = (each for each in folder.rglob("*") if each.is_dir() and not os.access(each, os.R_OK | os.X_OK))
    denied = next(closed, None)
    if denied is not None:
        raise InputError(f"{argument}{name}: permission denied in {denied}; allow it to be read, or {HELP}")
    wanted = BEST if word == "best" else f"neither {LAST} nor {BEST}"
    raise MissingInputError(
        f"{argument}{name}: {folder} contains {'no ' if word == 'best' else ''}{wanted}, also deeper down; {HELP}"
    )


def record_start(run: Path, runs: Path) -> None:
    """Record in a run's folder that it starts now, after all other runs below `runs`, also if a clock was set back."""
    others = (_started(file.parent) for depth in ("*", "*/*") for file in runs.glob(f"{depth}/{START_FILE}"))
    write_text(run / START_FILE, f"{max([time.time_ns(), *(other + 1 for other in others)])}\n")


def _checkpoints(folder: Path, to_resume: bool) -> Iterator[list[Path]]:
    """Yield the checkpoints of a folder, then those of the runs below, from the one that started last."""
    places = {file.parent for file in folder.rglob("*.ckpt")}
    runs = {place.parent if place.name == "checkpoints" else place for place in places} - {folder}
    runs |= {file.parent for file in folder.rglob(START_FILE)}
    newest_first = sorted(runs, key=lambda run: (_started(run), _number(run.name), str(run)), reverse=True)
    for run in [folder, *newest_first]:
        for place in [run, run / "checkpoints", *_checkpoints_of_resumed(run, to_resume)]:
            if files := sorted(place.glob("*.ckpt")):
                yield files


def _started(run: Path) -> int:
    """Return when a run started; without a record, when its newest checkpoint was written."""
    try:
        return int((run / START_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return max((file.stat().st_mtime_ns for file in run.rglob("*.ckpt")), default=0)


def _number(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else -1


def _by_step(files: list[Path]) -> list[Path]:
    """Sort checkpoints, the one with the most steps first, and a damaged one before, to be reported."""
    if len(files) < 2:
        return files
    from seqrec.runs.checkpoints import peek  # needs torch

    # `last.ckpt` is newer than `last-1.ckpt` of as many steps.
    named = sorted(files, key=lambda file: (file.name != LAST, file.name))
    return sorted(named, key=lambda file: float(peek(file).get("global_step", math.inf)), reverse=True)


def _checkpoints_of_resumed(run: Path, to_resume: bool) -> list[Path]:
    """Return where a run keeps its checkpoints that resumed another: in the folder of that run."""
    try:
        summary: Any = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        file = (summary["best"] or {}).get("checkpoint") or summary.get("resumed_from")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if not isinstance(file, str):
        return []
    # The path is from the folder that the run was started in, which is most often that of `runs`.
    places = [Path(file).parent, run.parent / Path(file).parent.parent.name / Path(file).parent.name]
    # A run of others may name any folder, and training writes where it resumes.
    known = (Path.cwd(), run.resolve().parent)
    return [each for each in places if not to_resume or any(each.resolve().is_relative_to(at) for at in known)]
