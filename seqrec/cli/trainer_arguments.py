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
from seqrec.errors import DivergenceError, InputError, check_at_least
from seqrec.models import Baseline, Recommender
from seqrec.runs import RunFolder
from seqrec.runs.callbacks import RunSummary

LARGEST_SEED = 2**32 - 1
# Argument -> its least value, if Lightning takes smaller ones and fails later.
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0,
    "num_sanity_val_steps": -1,
}
# Command -> the stage that it is for.
_STAGES = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}


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
    for name in _LEAST.keys() & numbers.keys():
        check_at_least(_LEAST[name], **{f"trainer.{name}": numbers[name]})
    devices, most = str(arguments.get("devices", "auto")).strip(), max(4, os.cpu_count() or 1)
    if not re.fullmatch(r"auto|-1|0*[1-9]\d*|\[.+\]|\d+(,\d*)+", devices):
        raise InputError(f"trainer.devices={devices} must be a number of at least 1, a list of numbers, or auto")
    if arguments.get("accelerator") == "cpu" and devices.isdecimal() and int(devices) > most:
        raise InputError(f"trainer.devices={devices} processes on a CPU must be at most {most} on this machine")
    limit = f"limit_{_STAGES.get(command)}_batches"
    if numbers.get(limit) == 0:
        raise InputError(f"trainer.{limit}=0 leaves {command} nothing to do: give a number of batches, or leave it out")
    if numbers.get("val_check_interval", 1) <= 0:
        raise InputError("trainer.val_check_interval must be above 0: a number of batches, or a share of an epoch")
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
    parts = {"model": config.get("model") or {}, "data.max_length": config["data"]["max_length"]}
    sizes = sorted(((size, key) for key, part in parts.items() for size, key in _sizes(part, key)), reverse=True)
    lower = " or ".join(f"--{key} ({size})" for size, key in sizes[:2])
    needs = f"needs {spoken_bytes(int(asked[1]))} for one array" if asked else "does not fit into memory"
    return InputError(f"the model {needs}, the machine has {spoken_bytes(machine_memory())}: lower {lower}")


def _sizes(value: object, key: str) -> Iterator[tuple[int, str]]:
    """Yield the whole numbers in a part of a config, with their options."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _sizes(inner, key if name == "init_args" else f"{key}.{name}")
    elif type(value) is int and key != "model.max_length":  # that is the data's
        yield value, key
