"""Refusals of what the trainer cannot do, by the argument that asks for it, before anything is made."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from seqrec.data.prepare.memory import machine_memory, spoken_bytes
from seqrec.errors import DivergenceError, InputError
from seqrec.models import Baseline, Recommender
from seqrec.runs import RunFolder
from seqrec.runs.callbacks import RunSummary

LARGEST_SEED = 2**32 - 1
# Argument -> its least value. Lightning refuses some smaller ones in words of its own, and uses others.
_LEAST = {
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
    "fast_dev_run": 0,
    "overfit_batches": 0,
    **dict.fromkeys((f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")), 0),
}
# Command -> the limit that must leave it something to do.
_LIMITS = {
    command: f"limit_{stage}_batches"
    for command, stage in (("fit", "train"), ("validate", "val"), ("test", "test"), ("predict", "predict"))
}


def check_seed(seed: object) -> None:
    """Refuse a seed that numpy does not take."""
    given = os.environ.get("PL_GLOBAL_SEED", "")
    if seed is True and given and not given.isdecimal():
        raise InputError(f"PL_GLOBAL_SEED={given!r} in the environment must be between 0 and {LARGEST_SEED}: unset it")
    if type(seed) is int and not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed_everything={seed} must be between 0 and {LARGEST_SEED}")


def check_arguments(command: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the trainer that are out of range, or leave a command nothing to do.

    Raises:
        InputError: if there is one.
    """
    numbers = {name: value for name, value in arguments.items() if type(value) in (int, float)}
    for name, least in _LEAST.items():
        if name in numbers:
            _check_least(name, numbers[name], least)
    devices = arguments.get("devices", "auto")
    if not re.fullmatch(r"auto|-1|0*[1-9]\d*|\[.+\]|\d+(,\d*)+", str(devices).strip()):
        raise InputError(f"trainer.devices={devices!r} must be a number of at least 1, a list of numbers, or auto")
    most = max(4, os.cpu_count() or 1)
    if arguments.get("accelerator") == "cpu" and str(devices).isdecimal() and int(devices) > most:
        raise InputError(f"trainer.devices={devices} processes on a CPU must be at most {most} on this machine")
    limit = _LIMITS.get(command, "")
    if numbers.get(limit) == 0:
        raise InputError(f"trainer.{limit}=0 leaves {command} nothing to do: give a number of batches, or leave it out")
    if numbers.get("val_check_interval", 1) <= 0:
        raise InputError(
            f"trainer.val_check_interval={numbers['val_check_interval']} must be above 0: a number of batches, or a "
            "share of an epoch such as 0.25"
        )
    for unit in ("epochs", "steps"):
        least, most = numbers.get(f"min_{unit}", 0), numbers.get(f"max_{unit}", -1)
        if 0 <= most < least:
            raise InputError(f"trainer.min_{unit}={least} must be at most trainer.max_{unit}={most}")


def refuse_fresh_weights(command: str, config: Mapping[str, Any], model: Recommender) -> None:
    """Refuse to judge a model that nothing was trained, which would give numbers like those of any other."""
    asked = config.get("ckpt_path") or config.get("fresh_weights")
    if command in ("test", "validate", "predict") and not asked and not isinstance(model, Baseline):
        raise InputError(
            f"{command} needs a trained model: give --ckpt_path, a run's folder, a checkpoint or last (the newest "
            "run). --fresh_weights true judges the weights before any training"
        )


def _check_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        unlimited = ", which sets no limit" if least == -1 else ""
        raise InputError(f"trainer.{name}={value} must be at least {least}{unlimited}")


def leave_nothing(trainer: pl.Trainer, error: Exception) -> None:
    """Delete the folder of a run that was refused, or could not write, before it trained on anything."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its callback connector
    begun = any(isinstance(each, RunSummary) and each.has_trained for each in callbacks)
    if begun or isinstance(error, DivergenceError) or not isinstance(error, (InputError, OSError)):
        return
    for logger in trainer.loggers:
        if isinstance(logger, RunFolder):
            logger.discard()


def refusal_of_lightning(error: Exception, arguments: Mapping[str, Any]) -> InputError | None:
    """Return an error with which Lightning refuses an argument of the trainer, by its name; None if it is another."""
    kinds = (ValueError, TypeError, ImportError, MisconfigurationException)
    theirs = isinstance(error, kinds) and "lightning" in traceback.extract_tb(error.__traceback__)[-1].filename
    text = " ".join(str(error).split()).removesuffix(".").replace("Timer(duration", "Timer(max_time")
    found = {name: re.search(rf"\b{name}\b", text) for name in arguments}
    named = sorted((place.start(), name) for name, place in found.items() if place)
    named += [(0, "accelerator")] * ("gpu backend" in text or isinstance(error, ImportError))
    if not theirs or not named or isinstance(error, InputError):
        return None
    name = named[0][1]
    remedy = "set --trainer.accelerator cpu" if name == "accelerator" else "--trainer.help lists what is allowed"
    return InputError(f"trainer.{name}={arguments[name]!r} is refused: {text}; {remedy}")


def too_large(error: BaseException, config: Mapping[str, Any]) -> InputError | None:
    """Return why a model does not fit into memory, by its largest arguments; None if the error is another."""
    asked = re.search(r"tried to allocate (\d+)", str(error))
    if not asked and not isinstance(error, MemoryError):
        return None
    sizes = sorted(_sizes({key: config.get(key) or {} for key in ("model", "data")}), reverse=True)
    lower = " or ".join(f"--{key} ({size})" for size, key in sizes[:2])
    needs = f"needs {spoken_bytes(int(asked[1]))} for one of its arrays, and" if asked else "does not fit:"
    return InputError(
        f"the model {needs} this machine has {spoken_bytes(machine_memory())} of memory; lower {lower}, or leave out "
        "rare items: --data.filters.min_item_events"
    )


def _sizes(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[int, str]]:
    """Yield the whole numbers on which the size of a model depends, with their options."""
    for name, inner in value.items():
        key = above if name == "init_args" else f"{above}.{name}".lstrip(".")
        if isinstance(inner, Mapping):
            yield from _sizes(inner, key)
        elif type(inner) is int and key != "model.max_length" and (key[:6] == "model." or key == "data.max_length"):
            yield inner, key
