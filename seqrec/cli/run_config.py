"""The config of a checkpoint's run: its `config.yaml`, or if that is lost, the copy in the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from seqrec.runs.finding import find_checkpoint

FILE_NAME = "config.yaml"
# Key of a checkpoint: `config`, the text of its run's config, and `folder`, the one that relative paths are from.
KEY = "seqrec_run"
# Options that a run does not take over when it starts from the weights of another.
_OF_ONE_RUN = (
    *("ckpt_path", "recipe", "warm_start", "validation", "early_stopping.patience", "early_stopping.patience_steps"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
    *("trainer.logger.init_args.version", "model.init_args.optimizer.init_args.schedule"),
)


def content_of(config: str) -> dict[str, Any]:
    r"""Return the content of a config, a file or YAML text; empty if it cannot be read, which the parser then reports.

    Example:
        >>> content_of("data: {seed: 1}\n")
        {'data': {'seed': 1}}
    """
    try:
        if "\n" not in config and not Path(config).is_file():
            return {}  # a pipe could be read only once
        content = yaml.safe_load(config if "\n" in config else Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def config_of_run(checkpoint: Path, words: Sequence[str] = ()) -> str | None:
    """Return the config that a checkpoint's run was made with, as a file or as YAML text; None if it is lost.

    Relative paths of data are looked up in the folder that the run was started in, if that is another one.

    Args:
        checkpoint: A file.
        words: Arguments of the command, which may name data themselves.
    """
    file = checkpoint.parent.parent / FILE_NAME
    from seqrec.runs.checkpoints import peek  # needs torch

    config, saved = content_of(str(file)), peek(checkpoint)
    if not config and "config" in saved.get(KEY, {}):
        config = content_of(saved[KEY]["config"])
        sys.stderr.write(f"note: {file} is missing or empty; the config in {checkpoint} is used\n")
    elif not config:
        return str(file) if file.is_file() else None
    elif _is_here(saved):
        return str(file)
    if not _is_here(saved):
        _resolve(config, Path(saved[KEY]["folder"]), saved.get("seqrec", {}).get("store"), words)
    return yaml.safe_dump(config, sort_keys=False)


def config_to_continue(checkpoint: Path, words: Sequence[str] = ()) -> str | None:
    """Return the config of a checkpoint's run as YAML text for a run that starts from its weights; None if it is lost.

    What belongs to the run itself is left out: its folder, how long it trained, and the schedule of its optimizer.
    """
    found = config_of_run(checkpoint, words)
    config = content_of(found) if found is not None else {}
    if not config:
        return None
    for key in _OF_ONE_RUN:
        *parts, last = key.split(".")
        place: Any = config
        for part in parts:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return yaml.safe_dump(config, sort_keys=False)


def restored_config(config: str) -> str | None:
    """Return the config in a run's checkpoint, if `config` is the missing or empty `config.yaml` of that run."""
    file = Path(config)
    if file.name != FILE_NAME or content_of(config) or not list((file.parent / "checkpoints").glob("*.ckpt")):
        return None
    return config_of_run(Path(find_checkpoint(str(file.parent))))


def _is_here(saved: dict[str, Any]) -> bool:
    return Path(saved.get(KEY, {}).get("folder", Path.cwd())) == Path.cwd()


def _resolve(config: dict[str, Any], folder: Path, store: str | None, words: Sequence[str]) -> None:
    """Replace the paths of a config's data by those in the folder that the run was started in."""
    sys.stderr.write(f"note: the run was started in {folder}: relative paths of its data are looked up there\n")
    data = config.get("data") or {}
    named = any(word.startswith(("--data.source", "--data.store", "--data.filters", "--data.schema")) for word in words)
    if store is not None and Path(store).is_dir() and not named:
        data["store"] = store  # needs no log, whose path is one of its settings
    elif isinstance(source := data.get("source"), dict):
        _resolve_paths(source.get("init_args") or {}, folder)


def _resolve_paths(arguments: dict[str, Any], folder: Path) -> None:
    for key, value in arguments.items():
        if isinstance(value, dict):
            _resolve_paths(value, folder)
        elif isinstance(value, str) and not Path(value).exists() and (folder / value).exists():
            arguments[key] = str(folder / value)
