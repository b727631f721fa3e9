"""What the command line does with configs before they are parsed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.protocols import PRESETS, Protocol
from seqrec.runs.checkpoints import NEWEST, newest_point
from seqrec.runs.job import folder_of_slurm_job
from seqrec.specs import to_spec

# Where runs are looked for that are named by "last" or by a SLURM job.
RUNS = Path("runs")


def with_checkpoint_file(words: list[str]) -> list[str]:
    """Put a checkpoint's file in the place of what names it: `last`, a run's folder, or a folder of runs.

    `last` is the newest resume point below `runs`, as a folder of runs is the newest in it. Of a run's folder `fit`
    takes the newest resume point, and the other commands take the best checkpoint if there is one. Where SLURM starts
    a `fit` again that names no checkpoint, it goes on with what the job left below `runs`.

    Args:
        words: Words behind `seqrec`.

    Raises:
        MissingInputError: there is no checkpoint.
    """
    words = _with_slurm_job(words)
    replaced = list(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != "--ckpt_path":
            continue
        if equals:
            replaced[number] = f"--ckpt_path={_file_of(value, words[0])}"
        elif number + 1 < len(words):
            replaced[number + 1] = _file_of(words[number + 1], words[0])
    return replaced


def _file_of(name: str, command: str) -> str:
    folder = RUNS if name == "last" and not Path(name).exists() else Path(name)
    if not folder.is_dir():
        if name == "last":
            raise MissingInputError(
                f"--ckpt_path last: there is no folder {RUNS} here, so no run to go on with"
            )
        return name
    if command != "fit" and name != "last":
        for best in (folder / "best.ckpt", folder / "checkpoints" / "best.ckpt"):
            if best.is_file():
                return str(best)
    try:
        return str(newest_point(folder))
    except MissingInputError:
        found = max(folder.rglob(NEWEST), key=lambda file: file.stat().st_mtime, default=None)
        if found is None:
            raise
        return str(found)


def _with_slurm_job(words: list[str]) -> list[str]:
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    if not words or words[0] != "fit" or job is None or restarts == "0":
        return words
    if any(True for _ in _values(words, "--ckpt_path")):
        return words
    folder = folder_of_slurm_job(RUNS, job)
    if folder is None or not (folder / NEWEST).is_file():
        sys.stderr.write(
            f"SLURM started job {job} again, which left no resume point below {RUNS}: a new run\n"
        )
        return words
    sys.stderr.write(f"SLURM started job {job} again: it goes on from {folder / NEWEST}\n")
    return [*words, "--ckpt_path", str(folder / NEWEST)]


def with_config_of_checkpoint(words: list[str]) -> list[str]:
    """Put the config beside a checkpoint first, where a command names a checkpoint and no config.

    Args:
        words: Words behind `seqrec`.

    Returns:
        The words, with `--config <run folder>/config.yaml` behind the command where it was put.
    """
    if any(True for _ in _values(words, "--config", "-c")):
        return words
    for path in _values(words, "--ckpt_path"):
        config = Path(path).parent.parent / "config.yaml"
        if config.is_file():
            return [words[0], "--config", str(config), *words[1:]]
    return words


def refuse_model_max_length(words: list[str]) -> None:
    """Refuse a `max_length` of the model: it is the data's, and two that differ would contradict each other.

    Args:
        words: Words behind `seqrec`.

    Raises:
        InputError: the words or a config among them give it.
    """
    places = [
        word for word in words if word.split("=")[0] in ("--model.max_length", "--model.init_args.max_length")
    ]
    for path in _values(words, "--config", "-c"):
        if not Path(path).is_file():
            continue
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        model = content.get("model") if isinstance(content, dict) else None
        if isinstance(model, dict) and "max_length" in {*model, *(model.get("init_args") or {})}:
            places.append(f"{path}: model.init_args.max_length")
    if places:
        raise InputError(
            f"{places[0]} is not accepted: a model's max_length is the data's; set data.max_length"
        )


def refuse_slurm_without_srun(plugins: object) -> None:
    """Refuse a trainer for tasks of SLURM in a process that is none.

    Args:
        plugins: `trainer.plugins` of the parsed config.

    Raises:
        InputError: SLURM's environment is among them, and `srun` did not start this process.
    """
    if "SLURMEnvironment" in str(plugins) and "SLURM_NTASKS" not in os.environ:
        raise InputError(
            "trainer.plugins has SLURMEnvironment, but SLURM_NTASKS is not set: start the command with srun in an "
            "sbatch script, or take configs/trainer/ddp.yaml"
        )


def with_protocol_presets(words: list[str]) -> list[str]:
    """Put the arguments of a preset in the place of its name, as in `--protocol sasrec-100`.

    Args:
        words: Words behind `seqrec`.

    Returns:
        The words, with the protocol as one JSON object; arguments behind it may still change parts of it.
    """
    replaced = list(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != "--protocol":
            continue
        if equals and value in PRESETS:
            replaced[number] = f"--protocol={_preset_words(value)}"
        elif not equals and number + 1 < len(words) and words[number + 1] in PRESETS:
            replaced[number + 1] = _preset_words(words[number + 1])
    return replaced


def with_named_target(words: list[str]) -> list[str]:
    """Name what `tune` searches, as in `tune --what lr` for `tune lr`: Lightning's commands take options alone.

    Args:
        words: Words behind `seqrec`.
    """
    if words[:1] != ["tune"] or len(words) < 2 or words[1].startswith("-"):
        return words
    return ["tune", "--what", *words[1:]]


def _preset_words(name: str) -> str:
    return json.dumps(to_spec(Protocol.preset(name)))


def _values(words: list[str], *options: str) -> Iterator[str]:
    """Values of an option, given as `--option value` or `--option=value`."""
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in options:
            yield value if equals else "".join(words[number + 1 : number + 2])
