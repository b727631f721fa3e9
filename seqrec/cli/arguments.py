"""Checkpoints, configs and protocols by name, resolved before a parser reads them."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import yaml

from seqrec.cli.errors import keys_of
from seqrec.cli.run_config import config_of_run, config_to_continue, content_of, restored_config
from seqrec.data.user_files import read_text, refuse_special
from seqrec.errors import InputError, MissingInputError
from seqrec.runs.config_files import find_config
from seqrec.runs.finding import LAST, RUNS, WORDS, find_checkpoint

# Option of the checkpoint whose weights a new run starts from.
WARM_START = "--warm_start.ckpt"
# Options of a run. With one of them, `recommend` uses a trainer.
RUN_OPTIONS = {"trainer", "data", "model", "protocol", "execution", "recommendations", "seed_everything"}


def expand(name: str | None, words: Sequence[str], *, checkpoint: str) -> list[str]:
    """Return the arguments that a command's parser gets, with files and values in place of their names.

    - `--ckpt` and `--ckpt_path` are the same option: a checkpoint, a run folder, a folder of runs, or `last`.
    - `--config` is a file, or the name of a config of the package.
    - `--protocol` may be the name of a preset, or `FullRanking` or `SampledRanking` with their defaults. Later
      arguments may change parts of it.
    - `--warm_start` is `--warm_start.ckpt`, a checkpoint.

    A run that names a checkpoint and no config gets the config of the checkpoint's run, without its budget if it only
    starts from the weights. `recommend` without an output writes to that run's folder. A `fit` that SLURM restarts gets
    the resume point that its job left in `runs`.

    Args:
        name: The command.
        words: Its arguments, with underscores.
        checkpoint: What its parser calls the option of the checkpoint: `--ckpt_path` for a run, else `--ckpt`.

    Raises:
        MissingInputError: if no checkpoint or config has that name.
        InputError: if `max_length` of the model is set, which is the data's, or a run is asked to both resume and start
            anew.
    """
    is_run = checkpoint == "--ckpt_path"
    argv: list[str] = []
    given: dict[str, list[str]] = {name: [] for name in ("--ckpt", "--config", "--output", "--filter_seen", WARM_START)}
    waiting, runs = deque(words), _folder_of_runs(words) if is_run else RUNS
    while waiting:
        option, equals, value = waiting.popleft().partition("=")
        as_typed = option
        option = {"-c": "--config", "--ckpt_path": "--ckpt", "--warm_start": WARM_START}.get(option, option)
        if option in ("--model.max_length", "--model.init_args.max_length"):
            raise InputError(_REFUSED_LENGTH.format(option))
        if option not in (*given, "--protocol") or not (equals or waiting):
            argv.append(option + equals + value)
            continue
        value = value if equals else waiting.popleft()
        if option == "--ckpt":
            # Other commands refuse a missing file after the parser has refused what is misspelt.
            if is_run or value in WORDS or Path(value).exists():
                found = find_checkpoint(value, to_resume=name == "fit", argument=f"{as_typed} ", runs=runs)
                # A server finds it again at each reload.
                value = _plain(value if name == "serve" else found)
        elif option == WARM_START and value != "null":
            value = _plain(find_checkpoint(value, argument=f"{as_typed} ", runs=runs))
        elif option == "--config":
            refuse_special(value, f"config {value}")
            value = restored_config(value) or _config(value, refuse_length=is_run)
        elif option == "--protocol" and is_run:
            value = _protocol(value)
        if (option, value) != (WARM_START, "null"):
            given.setdefault(option, []).append(value)
        argv += [checkpoint if option == "--ckpt" else option, value]
    if given[WARM_START] and given["--ckpt"]:
        raise InputError(
            "--ckpt resumes a run, and --warm_start begins one with the weights of another: give one of them"
        )
    if name == "fit" and not given["--ckpt"]:
        given["--ckpt"] = _resume_point_of_slurm_job(runs)
        argv += [word for file in given["--ckpt"] for word in (checkpoint, file)]
    return _with_config_of_run(name, argv, given, words, is_run=is_run)


def _with_config_of_run(
    name: str | None, argv: list[str], given: dict[str, list[str]], words: Sequence[str], *, is_run: bool
) -> list[str]:
    """Return arguments with the config of the run of their checkpoint, if no config is given."""
    if not given["--ckpt"]:
        starts = name == "fit" and not given["--config"]
        config = config_to_continue(Path(given[WARM_START][-1]), words) if starts and given[WARM_START] else None
        return argv if config is None else ["--config", config, *argv]
    run = Path(given["--ckpt"][0]).parent.parent
    if is_run and given["--config"]:
        own = given["--config"][-1]
        argv += _new_version(own if Path(own).parent == run or "\n" in own else None)
    elif is_run and (config := config_of_run(Path(given["--ckpt"][0]), words)) is not None:
        argv = ["--config", _plain(config), *argv, *_new_version(config)]
    elif name in ("recommend", "predict") and not is_run:
        if not given["--output"]:
            argv += ["--output", _plain(str(run / "recommendations"))]
        kept_seen = value_of(["--config", str(run / "config.yaml")], "protocol.filter_seen") is False
        if not given["--filter_seen"] and kept_seen:
            sys.stderr.write(
                "note: the run was evaluated with seen items (protocol.filter_seen: false), but items of the users' "
                "histories are left out here; --filter-seen false recommends them too\n"
            )
    return argv


def _plain(path: str) -> str:
    """Return a path that no parser takes for an option (-x), a comment (#x) or the home folder (~)."""
    return path if re.match(r"[\w./]", path) or not path else f"./{path}"


def _new_version(config: str | None) -> list[str]:
    """Return arguments that let a run choose a folder of its own if the config is of a run that named its folder."""
    named = config is not None and sets(["--config", config], "trainer.logger.version")
    return ["--trainer.logger.init_args.version", "null"] if named else []


def sets(argv: Sequence[str], key: str) -> bool:
    """Return whether arguments or the configs that they name set a key, such as `model` or `model.optimizer`."""
    return value_of(argv, key) is not None


def value_of(argv: Sequence[str], key: str) -> object:
    """Return the value of a key in arguments or the configs that they name, of which the last counts; else None."""
    names = key.split(".")
    options = {f"--{key}", f"--{key}.class_path", f"--{'.init_args.'.join(key.rsplit('.', 1))}"}
    value: object = None
    for word, following in itertools.pairwise([*argv, ""]):
        option, equals, given = word.partition("=")
        given = given if equals else following
        if option in options:
            value = given
        elif option == "--config":
            config: object = content_of(given)
            if isinstance(config, dict) and isinstance(config.get("fit"), dict):
                config = config["fit"]
            for name in names:
                config = config.get("init_args", config) if isinstance(config, dict) else None
                config = config.get(name) if isinstance(config, dict) else None
            value = value if config is None else config
    return value


def _folder_of_runs(words: Sequence[str]) -> Path:
    """Return where the runs of a command are: `trainer.logger.save_dir`, or `runs` in `trainer.default_root_dir`."""
    chosen, root = (value_of(words, f"trainer.{key}") for key in ("logger.save_dir", "default_root_dir"))
    if isinstance(chosen, str) and Path(chosen) != RUNS:
        return Path(chosen)
    return Path(root) / RUNS if isinstance(root, str) and root != "null" else RUNS


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


def refuse_missing_config(argv: Sequence[str], *, to_resume: bool) -> None:
    """Refuse a run's checkpoint without the config that it was made with.

    Args:
        argv: Arguments as `expand` returns them.
        to_resume: Whether the command resumes a run.

    Raises:
        MissingInputError: with what to give.
        CheckpointError: if the file is no checkpoint.
    """
    name = dict(itertools.pairwise(argv)).get("--ckpt_path", "")
    if Path(name).is_file():
        from seqrec.runs.checkpoints import peek, read_checkpoint  # needs torch

        content = peek(Path(name))
        # A damaged resume point may have an older one next to it.
        if "state_dict" not in content and (content or not to_resume or Path(name).suffix != ".ckpt"):
            read_checkpoint(Path(name))  # raises the reason
    if "://" in name and "--config" not in argv:
        raise MissingInputError(f"--ckpt_path {name} is an address; download the checkpoint, and give its file")
    if name not in ("", "null") and "--config" not in argv and not sets(argv, "data.source"):
        raise MissingInputError(
            f"{name} has no {Path(name).parent.parent / 'config.yaml'} that says how the run was made; give its "
            "config: --config FILE"
        )


def refuse_unused_batch_size(words: Sequence[str], argv: Sequence[str]) -> None:
    """Refuse a size of batches that is typed in `words`, if the arguments limit the tokens of a batch instead."""
    tokens = value_of(argv, "data.max_tokens")
    typed = any(word.partition("=")[0] == "--data.batch_size" for word in words)
    if typed and tokens not in (None, "null"):
        raise InputError(
            f"--data.batch_size has no effect, because max_tokens={tokens} sets the batches: add --data.max_tokens null"
        )


def asks_for_a_trainer(words: Sequence[str]) -> bool:
    """Return whether the arguments of `recommend` contain options of a run, or the config of one."""
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option[2:].partition(".")[0] in RUN_OPTIONS:
            return True
        if option in ("--config", "-c"):
            config = value if equals else following
            # The configs of the package are those of runs.
            if not Path(config).is_file() or not RUN_OPTIONS.isdisjoint(content_of(config)):
                return True
    return False


def as_prediction(words: Sequence[str]) -> list[str]:
    """Return arguments of `recommend` under the names that they have in the config of a run."""
    named = {
        name: f"--recommendations.{name[2:]}"
        for name in ("--top_k", "--filter_seen", "--block", "--candidates", "--where", "--at")
    }
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


# Files of a run's folder that look like a config.
_RECORDS = ("hparams.yaml", "summary.json", "test_metrics.json", "validate_metrics.json")


def _config(value: str, *, refuse_length: bool) -> str:
    # A config may also be a URL or YAML text, which the parser reads itself.
    path = value if re.search(r"\n|\{|://", value) else str(find_config(os.path.expanduser(value)))
    _refuse_unreadable(path)
    model = content_of(path).get("model") if refuse_length else None
    if isinstance(model, dict) and "max_length" in {*model, *(model.get("init_args") or {})}:
        raise InputError(_REFUSED_LENGTH.format(f"{path}: model.init_args.max_length"))
    return path


def _refuse_unreadable(path: str) -> None:
    """Refuse a config file that is no YAML, or no mapping, by its name and line."""
    if not Path(path).is_file():
        return
    own = Path(path).with_name("config.yaml")
    if Path(path).name in _RECORDS and own.is_file():
        raise InputError(f"config {path} is a record of a run, and no config; the run's is {own}: --config {own}")
    text = read_text(Path(path), f"config {path}")
    try:
        content = yaml.safe_load(text)
        lines: dict[str, int] = {}
        for key, number in keys_of(yaml.compose(text, yaml.SafeLoader)):
            if key in lines:
                name = key.rpartition(".")[2]
                raise InputError(
                    f"config {path} line {number} sets {name} again, which line {lines[key]} sets: leave one out"
                )
            lines[key] = number
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error)
        reason += "; write that text in single quotes" if "unknown escape" in reason else ""
        reason += "; indent with spaces" if "'\\t'" in reason else "; mend that line"
        raise InputError(f"config {path}{line} is no YAML: {reason}") from error
    if content is not None and not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"config {path} has a {kind} at its top, expected keys such as data and model")


def _protocol(value: str) -> str:
    from seqrec.evaluation.protocols import PRESETS, FullRanking, Protocol, SampledRanking
    from seqrec.specs import to_spec

    if value in PRESETS:
        return json.dumps(to_spec(Protocol.preset(value)))
    # With all settings, since the parser would keep those that the config of a run gives to the same class.
    whole = {cls.__name__: cls for cls in (FullRanking, SampledRanking)}
    return json.dumps(to_spec(whole[value]())) if value in whole else value


def _resume_point_of_slurm_job(runs: Path) -> list[str]:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return []
    from seqrec.runs.job import folder_of_slurm_job

    folder = folder_of_slurm_job(runs, job)
    if folder is None or not (folder / LAST).is_file():
        sys.stderr.write(f"SLURM restarted job {job}, which left no resume point below {runs}: this is a new run\n")
        return []
    sys.stderr.write(f"SLURM restarted job {job}: it resumes from {folder / LAST}\n")
    return [str(folder / LAST)]
