"""Checkpoints, configs and protocols by name, resolved before a parser reads them."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from seqrec.errors import InputError, MissingInputError
from seqrec.registry import did_you_mean
from seqrec.runs.config_files import find_config

# `last` and restarted SLURM jobs look for runs here.
RUNS = Path("runs")
LAST, BEST = "last.ckpt", "best.ckpt"
# Options of a run. With one of them, `recommend` uses a trainer.
RUN_OPTIONS = {"trainer", "data", "model", "protocol", "execution", "recommendations", "seed_everything"}


def expand(name: str | None, words: Sequence[str], *, checkpoint: str) -> list[str]:
    """Return the arguments that a command's parser gets, with files and values in place of their names.

    - `--ckpt` and `--ckpt_path` are the same option: a checkpoint, a run folder, a folder of runs, or `last`.
    - `--config` is a file, or the name of a config of the package.
    - `--protocol` may be the name of a preset, or `FullRanking` or `SampledRanking` with their defaults. Later
      arguments may change parts of it.

    A run that names a checkpoint and no config gets the config of the checkpoint's run, and `recommend` without an
    output writes to that run's folder. A `fit` that SLURM restarts gets the resume point that its job left in `runs`.

    Args:
        name: The command.
        words: Its arguments, with underscores.
        checkpoint: What its parser calls the option of the checkpoint: `--ckpt_path` for a run, else `--ckpt`.

    Raises:
        MissingInputError: if no checkpoint or config has that name.
        InputError: if `max_length` of the model is set, which is the data's.
    """
    is_run = checkpoint == "--ckpt_path"
    argv: list[str] = []
    given: dict[str, list[str]] = {"--ckpt": [], "--config": [], "--output": [], "--filter_seen": []}
    waiting = deque(words)
    while waiting:
        option, equals, value = waiting.popleft().partition("=")
        option = {"-c": "--config", "--ckpt_path": "--ckpt"}.get(option, option)
        if option in ("--model.max_length", "--model.init_args.max_length"):
            raise InputError(_REFUSED_LENGTH.format(option))
        if option not in (*given, "--protocol") or not (equals or waiting):
            argv.append(option + equals + value)
            continue
        value = value if equals else waiting.popleft()
        if option == "--ckpt":
            value = _plain(find_checkpoint(value, to_resume=name == "fit"))
        elif option == "--config":
            value = _config(value, refuse_length=is_run)
        elif option == "--protocol" and is_run:
            value = _protocol(value)
        given.setdefault(option, []).append(value)
        argv += [checkpoint if option == "--ckpt" else option, value]
    if name == "fit" and not given["--ckpt"]:
        given["--ckpt"] = _resume_point_of_slurm_job()
        argv += [word for file in given["--ckpt"] for word in (checkpoint, file)]
    if given["--ckpt"] and is_run:
        argv += _new_version(given)
    if not given["--ckpt"] or given["--config"]:
        return argv
    run = Path(given["--ckpt"][0]).parent.parent
    if is_run and (run / "config.yaml").is_file():
        argv = ["--config", _plain(str(run / "config.yaml")), *argv]
    elif name in ("recommend", "predict") and not is_run:
        if not given["--output"]:
            argv += ["--output", _plain(str(run / "recommendations"))]
        if not given["--filter_seen"] and _kept_seen(run):
            sys.stderr.write(
                "note: the run was evaluated with seen items (protocol.filter_seen: false), but items of the users' "
                "histories are left out here; --filter-seen false recommends them too\n"
            )
    return argv


def _plain(path: str) -> str:
    """Return a path that no parser takes for an option (-x), a comment (#x) or the home folder (~)."""
    return path if re.match(r"[\w./]", path) or not path else f"./{path}"


def _new_version(given: Mapping[str, Sequence[str]]) -> list[str]:
    """Return arguments that let a run choose a folder of its own if the config is of a run that named its folder."""
    run = Path(given["--ckpt"][0]).parent.parent
    config = Path(given["--config"][-1]) if given["--config"] else run / "config.yaml"
    named = _setting(config, "trainer", "logger", "init_args", "version")
    return ["--trainer.logger.init_args.version", "null"] if named is not None and config.parent == run else []


def _kept_seen(run: Path) -> bool:
    """Return whether the config of a run evaluates it with the items of the users' histories."""
    return _setting(run / "config.yaml", "protocol", "init_args", "filter_seen") is False


def find_checkpoint(name: str, *, to_resume: bool) -> str:
    """Return the checkpoint of a name.

    Args:
        name: A checkpoint, which need not exist; a run folder; a folder of runs, for the run with the newest
            checkpoint; or `last`, for the newest run below `runs`.
        to_resume: Whether to prefer a run's newest resume point to its best checkpoint.

    Raises:
        MissingInputError: if a folder contains no checkpoint.
    """
    folder = Path(name)
    if name == "last" and not folder.exists():
        folder = RUNS
        if not folder.is_dir():
            raise MissingInputError(f"--ckpt last: there is no folder {RUNS} here, so there is no run")
    if not name or not folder.is_dir():
        return name
    from seqrec.runs.checkpoints import resume_points

    newest = _newest_of_runs([*folder.rglob(LAST), *folder.rglob(BEST)])
    places = [
        folder,
        folder / "checkpoints",
        *(file.parent for file in newest),
        *_checkpoints_of_resumed(folder, to_resume),
    ]
    for place in places:
        best = [file for file in (place / BEST,) if file.is_file()]
        points = resume_points(place)
        if found := [*points, *best] if to_resume else [*best, *points]:
            return str(found[0])
    raise MissingInputError(f"--ckpt {name}: {folder} contains neither {LAST} nor {BEST}, also deeper down")


def _newest_of_runs(files: list[Path]) -> list[Path]:
    """Return a checkpoint of the newest run: of the runs beside the one written last, that with the largest number.

    Numbers are compared first, because a clock may have been set back.
    """
    if not files:
        return []
    last = max(files, key=lambda file: file.stat().st_mtime)

    def number(file: Path) -> int:
        found = re.fullmatch(r"version_(\d+)", file.parent.parent.name)
        return int(found[1]) if found else -1

    beside = [file for file in files if file.parent.parent.parent == last.parent.parent.parent]
    return [max(beside, key=lambda file: (number(file), file.stat().st_mtime))] if number(last) >= 0 else [last]


def sets(argv: Sequence[str], key: str) -> bool:
    """Return whether arguments or the configs that they name set a key, such as `model` or `model.optimizer`."""
    names = key.split(".")
    for word, following in itertools.pairwise([*argv, ""]):
        option, equals, value = word.partition("=")
        if option in (f"--{key}", f"--{key}.class_path"):
            return True
        if option == "--config":
            config: object = _content(value if equals else following)
            if isinstance(config, dict) and isinstance(config.get("fit"), dict):
                config = config["fit"]
            for name in names:
                config = config.get("init_args", config) if isinstance(config, dict) else None
                config = config.get(name) if isinstance(config, dict) else None
            if config is not None:
                return True
    return False


# Argument of a model -> the class that it has by default, whose arguments may be set without naming it.
_DEFAULT_CLASSES = {"model.optimizer": "Adam", "model.loss": "BCE", "model.loss.negatives": "UniformNegatives"}


def with_default_classes(argv: Sequence[str]) -> list[str]:
    """Return arguments with the default class before an argument of it, as in `--model.optimizer.lr 0.01`."""
    found = list(argv)
    for key, cls in _DEFAULT_CLASSES.items():
        parts = [place for place, word in enumerate(found) if word.startswith(f"--{key}.")]
        if parts and not sets(found, key):
            found[parts[0] : parts[0]] = [f"--{key}", cls]
    return found


def refuse_missing_checkpoint(argv: Sequence[str]) -> None:
    """Refuse a run's checkpoint that does not exist, and one without the config that it was made with.

    Args:
        argv: Arguments as `expand` returns them.

    Raises:
        MissingInputError: with the nearest name, or what to give.
    """
    values = dict(itertools.pairwise(argv))
    name = values.get("--ckpt_path", "")
    file = Path(name)
    if name in ("", "null") or "://" in name:
        return
    if not file.exists():
        beside = [str(other) for other in file.parent.glob("*.ckpt")] if file.parent.is_dir() else []
        raise MissingInputError(f"--ckpt {name}: there is no such checkpoint or folder{did_you_mean(name, beside)}")
    if "--config" not in argv and not sets(argv, "data.source"):
        raise MissingInputError(
            f"--ckpt {name}: there is no {file.parent.parent / 'config.yaml'} that says how the run was made; give its "
            "config: --config FILE"
        )


def _checkpoints_of_resumed(run: Path, to_resume: bool) -> list[Path]:
    """Return where a run keeps its checkpoints that resumed another: in the folder of that run."""
    file = _setting(run / "summary.json", "best", "checkpoint")
    if not isinstance(file, str):
        return []
    # The path is from the folder that the run was started in, which is most often that of `runs`.
    places = [Path(file).parent, run.parent / Path(file).parent.parent.name / Path(file).parent.name]
    # A run of others may name any folder, and training writes where it resumes.
    known = (Path.cwd(), run.resolve().parent)
    return [each for each in places if not to_resume or any(each.resolve().is_relative_to(at) for at in known)]


def asks_for_a_trainer(words: Sequence[str]) -> bool:
    """Return whether the arguments of `recommend` contain options of a run, or the config of one."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option[2:].partition(".")[0] in RUN_OPTIONS:
            return True
        if option in ("--config", "-c"):
            config = value if equals else following
            # The configs of the package are those of runs.
            if not Path(config).is_file() or not RUN_OPTIONS.isdisjoint(_content(config)):
                return True
    return False


def as_prediction(words: Sequence[str]) -> list[str]:
    """Return arguments of `recommend` under the names that they have in the config of a run."""
    named = {name: f"--recommendations.{name[2:]}" for name in ("--top_k", "--filter_seen", "--block")}
    named["--output"] = "--recommendations.directory"
    pairs = (word.partition("=") for word in words)
    return [named.get(option, option) + equals + value for option, equals, value in pairs]


def refuse_slurm_without_srun(plugins: object) -> None:
    """Refuse `trainer.plugins` with SLURM's environment if `srun` did not start this process."""
    if "SLURMEnvironment" in str(plugins) and "SLURM_NTASKS" not in os.environ:
        raise InputError(
            "trainer.plugins has SLURMEnvironment, but SLURM_NTASKS is not set: start the command with srun in an "
            "sbatch script, or take --config trainer/ddp"
        )


_REFUSED_LENGTH = "{} is not accepted: a model's max_length is the data's; set data.max_length"


def _config(value: str, *, refuse_length: bool) -> str:
    # A config may also be a URL or YAML text, which the parser reads itself.
    path = str(find_config(value)) if re.fullmatch(r"[\w./+-]+", value) else value
    _refuse_unreadable(path)
    model = _content(path).get("model") if refuse_length else None
    if isinstance(model, dict) and "max_length" in {*model, *(model.get("init_args") or {})}:
        raise InputError(_REFUSED_LENGTH.format(f"{path}: model.init_args.max_length"))
    return path


def _refuse_unreadable(path: str) -> None:
    """Refuse a config file that is no YAML, or no mapping, by its name and line."""
    if not Path(path).is_file():
        return
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error)
        raise InputError(f"config {path}{line} is no YAML: {reason}") from error
    if content is not None and not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"config {path} has a {kind} at its top, expected keys such as data and model")


def _content(config: str) -> dict[str, object]:
    """Return the content of a config file; empty if it cannot be read, which the parser then reports."""
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _setting(file: Path, *keys: str) -> object:
    """Return a value inside nested mappings of a YAML or JSON file; None if the file does not have it."""
    found: object = _content(str(file))
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _protocol(value: str) -> str:
    from seqrec.evaluation.protocols import PRESETS, FullRanking, Protocol, SampledRanking
    from seqrec.specs import to_spec

    if value in PRESETS:
        return json.dumps(to_spec(Protocol.preset(value)))
    # With all settings, since the parser would keep those that the config of a run gives to the same class.
    whole = {cls.__name__: cls for cls in (FullRanking, SampledRanking)}
    return json.dumps(to_spec(whole[value]())) if value in whole else value


def _resume_point_of_slurm_job() -> list[str]:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return []
    from seqrec.runs.job import folder_of_slurm_job

    folder = folder_of_slurm_job(RUNS, job)
    if folder is None or not (folder / LAST).is_file():
        sys.stderr.write(f"SLURM restarted job {job}, which left no resume point below {RUNS}: this is a new run\n")
        return []
    sys.stderr.write(f"SLURM restarted job {job}: it resumes from {folder / LAST}\n")
    return [str(folder / LAST)]
