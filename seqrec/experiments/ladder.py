"""`seqrec benchmark ladder`: one model moved step by step over a log, each step a cell of a grid."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from seqrec.data.output import show
from seqrec.data.progress import STATUS, Progress
from seqrec.errors import InputError
from seqrec.experiments.grid import Budget, Cell, Settings, run_grid
from seqrec.experiments.grid.cells import merged
from seqrec.experiments.grid.result import RESULTS_FOLDER, read_result, result_file
from seqrec.experiments.report.ladder import write_ladder
from seqrec.experiments.runner import make_slots
from seqrec.runs.config_files import CONFIGS, find_config

LADDERS = "ladders"
PARTS = ("protocol", "recipe")
# Key of a ladder, or of a step -> its type.
_SHARED = {"data": str, "length": int, "model": str, "study": str, "budget": str, "seed": int, "steps": list}
_OF_STEP = {
    "name": str,
    "part": str,
    "from": str,
    "set": dict,
    "checkpoint": str,
    **{key: _SHARED[key] for key in ("data", "length", "model", "seed")},
}


@dataclass(frozen=True)
class Step:
    """One step of a ladder.

    Attributes:
        name: Name in tables.
        part: "protocol" if it changes how a model is judged, or "recipe" if it changes the model.
        base: Number of the step that it changes and is compared with, from 0; None for the first one.
        cell: The run, which trains a model, or tests that of an earlier step by another protocol.
    """

    name: str
    part: str
    base: int | None
    cell: Cell


def benchmark_ladder(
    ladder: str = "ml_1m",
    *,
    set: Sequence[str] = (),  # the word of the command line
    paths: Sequence[str] = (),
    budget: str | None = None,
    configs: str | None = None,
    folder: str = "ladder",
    results: str | None = None,
    jobs: int = 1,
    device: str = "auto",
    keep_checkpoints: bool = False,
) -> None:
    """Move one model step by step over a log, and show what each step is worth, as JSON, Markdown and PNG.

    Each step changes settings of an earlier one, and is compared with it user by user. A step that changes only the
    protocol or the checkpoint is tested on the model of the earlier step. The command may be stopped or killed at any
    time: started again, with another number of jobs or on another machine that has the results, it leaves out finished
    steps.

    Args:
        ladder: YAML file of the steps, or the name of one among the package's configs in `ladders`.
        set: Settings of all steps, as arguments of `seqrec fit` without dashes, such as model.d_model=32.
        paths: Files or folders of the logs, such as ml_1m=ml-1m.zip, by the names of their fragments.
        budget: Training of each step instead of the ladder's; see `seqrec benchmark paper`.
        configs: Folder of the fragments; None is `fragments` among the package's configs.
        folder: Folder of the runs, which may be deleted when the command has ended.
        results: Folder of a small JSON file for each step, of ladder.json, ladder.md and ladder.png; None is `results`
            in `folder`.
        jobs: Steps at a time on a CPU, which share its cores. On GPUs, one step runs per visible GPU.
        device: auto, cpu or cuda.
        keep_checkpoints: Whether the checkpoints of finished steps stay.

    Raises:
        InputError: if an argument or the ladder is wrong, a step of other settings has a result, or steps fail; the
            others are finished then.
    """
    content = read_ladder(ladder)
    steps = plan_ladder(content)
    fragments = CONFIGS / "fragments" if configs is None else Path(configs)
    terms = Budget.parse(budget or content["budget"])
    settings = Settings(fragments, content["study"], terms, overrides=tuple(set), paths=_by_name(paths))
    logs = {step.cell.data for step in steps}
    if unknown := sorted(settings.paths.keys() - logs):
        raise InputError(f"paths: no step reads {unknown[0]}, only {', '.join(sorted(logs))}")
    for step in steps:
        settings.fragments(step.cell)
    given = {"set": set, "paths": [f"{name}={Path(path).name}" for name, path in settings.paths.items()]}
    given["budget"] = [] if budget is None else [budget]
    words = [f"--{key} {' '.join(map(shlex.quote, values))}" for key, values in given.items() if values]
    made_by = " ".join(["seqrec benchmark ladder", shlex.quote(Path(ladder).name), *words])
    kept, cells = Path(folder, RESULTS_FOLDER) if results is None else Path(results), [step.cell for step in steps]
    slots, progress = make_slots(jobs, device), Progress(STATUS)
    run_grid(Path(folder), kept, cells, settings, slots, progress, made_by, keep_checkpoints=keep_checkpoints)
    found = [read_result(result_file(kept, cell), settings.record(cell)) for cell in cells]
    runs = [run for run in found if run is not None]
    assert len(runs) == len(steps)
    about = [
        {"name": step.name, "part": step.part, "base": step.base, "trained": step.cell.model_of is None}
        for step in steps
    ]
    table, line, content = write_ladder(kept, Path(ladder).stem, about, runs, made_by, terms)
    show("", table, "", line, **content)


def read_ladder(name: str) -> dict[str, Any]:
    """Return the content of a ladder's YAML, with the defaults of what it leaves out.

    Raises:
        InputError: if a key is unknown, missing or has a value of another type.
    """
    file = Path(name) if Path(name).is_file() else find_config(f"{LADDERS}/{name}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    _check(str(file), content, _SHARED, needed=("data", "length", "model", "budget", "steps"))
    for number, step in enumerate(content["steps"], start=1):
        _check(f"{file}: step {number}", step, _OF_STEP, needed=("name", "part"))
    return {"study": "small", "seed": 0, **content}


def plan_ladder(content: Mapping[str, Any]) -> list[Step]:
    """Return the steps of a ladder: those that train, and those that test the model of an earlier one.

    Raises:
        InputError: if a name occurs twice or is unknown, or a step that trains tests the last checkpoint.

    Example:
        >>> steps = [{"name": "full", "part": "protocol"}]
        >>> steps += [{"name": "seen in", "part": "protocol", "set": {"protocol.filter_seen": False}}]
        >>> steps += [{"name": "deep", "part": "recipe", "set": {"model.num_layers": 4}, "from": "full"}]
        >>> ladder = {"data": "ml_1m", "length": 50, "model": "SASRec", "seed": 0, "steps": steps}
        >>> [(step.base, step.cell.model_of is None) for step in plan_ladder(ladder)]
        [(None, True), (0, False), (0, True)]
    """
    steps: list[Step] = []
    settings: list[dict[str, Any]] = []
    models: dict[str, Cell] = {}
    for number, given in enumerate(content["steps"], start=1):
        names = [step.name for step in steps]
        name, where = given["name"], f"step {number}, {given['name']!r}"
        if given["part"] not in PARTS:
            raise InputError(f"{where}: part={given['part']!r} must be {' or '.join(PARTS)}")
        if given.get("checkpoint", "best") not in ("best", "last"):
            raise InputError(f"{where}: checkpoint={given['checkpoint']!r} must be best or last")
        if "from" in given and given["from"] not in names:
            raise InputError(
                f"{where}: from={given['from']!r} is no earlier step; earlier: {', '.join(names) or 'none'}"
            )
        base = names.index(given["from"]) if "from" in given else number - 2 if steps else None
        before = {"checkpoint": "best", "set": {}, **content} if base is None else settings[base]
        now = {key: given.get(key, before[key]) for key in ("data", "length", "model", "seed", "checkpoint")}
        now["set"] = merged(before["set"], given.get("set", {}))
        label = re.sub(r"[^-A-Za-z0-9_]+", "_", name)
        if label in [step.cell.label for step in steps]:
            raise InputError(f"{where}: an earlier step has the same name, apart from signs that files cannot have")
        changes = tuple(f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in now["set"].items())
        cell = Cell(now["data"], now["length"], now["model"], "", now["seed"], label, changes)
        judged = {key: value for key, value in now["set"].items() if key.partition(".")[0] != "protocol"}
        key = json.dumps([{**now, "set": judged, "checkpoint": None}], sort_keys=True)
        if key in models:
            cell = replace(cell, model_of=models[key], checkpoint=now["checkpoint"])
        elif now["checkpoint"] == "last":
            raise InputError(
                f"{where} trains a model and tests its best checkpoint: set checkpoint: best, or add it first"
            )
        models.setdefault(key, cell)
        steps.append(Step(name, given["part"], base, cell))
        settings.append(now)
    return steps


def _by_name(paths: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=")[::2] for word in paths]
    for word, (name, path) in zip(paths, pairs, strict=True):
        if not name or not path:
            raise InputError(
                f"paths={word!r} must be the name of a log's fragments and its file, as in ml_1m=ml-1m.zip"
            )
    return dict(pairs)


def _check(where: str, content: Any, known: Mapping[str, type], needed: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where} must have keys such as {', '.join(needed)}")
    if wrong := sorted(set(content) - set(known)):
        raise InputError(f"{where}: {wrong[0]} is not known; known: {', '.join(known)}")
    if missing := [key for key in needed if not content.get(key)]:
        raise InputError(f"{where}: {missing[0]} is missing")
    for key, value in content.items():
        if not isinstance(value, known[key]):
            raise InputError(f"{where}: {key}={value!r} must be of type {known[key].__name__}")
