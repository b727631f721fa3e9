"""Refusals of the argument parser in one line: what was refused, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import inspect
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from seqrec.catalogue.search import ItemSearch
from seqrec.data.sources import Source
from seqrec.data.splits import Split
from seqrec.data.windows import TrainWindows
from seqrec.encoders import SequenceEncoder
from seqrec.errors import InputError
from seqrec.evaluation.protocols import PRESETS, Candidates, Protocol
from seqrec.inference.sessions import InMemoryStore, RedisStore, SQLiteStore
from seqrec.models import Recommender
from seqrec.training.losses import Loss
from seqrec.training.negatives import NegativeSampler
from seqrec.training.optim import OptimizerFactory, Schedule, TableOptimizer

# Config key -> the class whose subclasses it takes.
KINDS: dict[str, type] = {
    "data.source": Source,
    "data.split": Split,
    "data.train_windows": TrainWindows,
    "model": Recommender,
    "model.encoder": SequenceEncoder,
    "model.loss": Loss,
    "model.loss.negatives": NegativeSampler,
    "model.loss.extra": NegativeSampler,
    "model.optimizer": OptimizerFactory,
    "model.optimizer.table": TableOptimizer,
    "model.optimizer.schedule": Schedule,
    "protocol": Protocol,
    "protocol.candidates": Candidates,
    "protocol.split": Split,
    "search": ItemSearch,
}
# Config key -> the classes that it takes, which share no base.
CHOICES: dict[str, tuple[type, ...]] = {"sessions": (InMemoryStore, SQLiteStore, RedisStore)}


# What torch.distributed says where the process at the other end of a connection is gone.
LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def explain(message: str, parser: ArgumentParser, error: BaseException | None) -> str:
    """One line from the parser's message.

    Args:
        message: What the parser says, several lines at times.
        parser: The parser that says it.
        error: What was raised, whose traceback knows the parser of the part that was refused.
    """
    ours = our_error(error)
    if ours is not None:
        return str(ours)
    option = re.search(
        r"accept option '([^']+)'|Option '([^']+)' is not accepted|unrecognized arguments: (\S+)", message
    )
    if option:
        name = next(group for group in option.groups() if group).lstrip("-").partition("=")[0]
        # Lightning's class parsers call the argument by its name alone, subcommand parsers by its whole path.
        return _unknown_argument(name, _argument_names(_refusing_parser(error) or parser))
    key = re.search(r'Parser key "([^"]+)"', message)
    name = re.search(r"Expected a dot import path string: (\S+)", message)
    if key and name:
        return _unknown_class(key[1], name[1])
    missing = re.fullmatch(r"the following arguments are required: (\w+)", message)
    if missing:
        return _missing_argument(missing[1])
    lines = [line.strip(" -") for line in message.splitlines()]
    return " ".join(line for line in lines if line and "<class 'NoneType'>" not in line)


def our_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that lies behind an exception, if one does."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def in_one_line(error: BaseException | None) -> str | None:
    """What a user should read of an exception, without its traceback; None where it is a bug of ours."""
    ours = our_error(error)
    if ours is not None:
        # A loader process hands on its whole traceback as the message.
        return str(ours).rpartition(f"{type(ours).__name__}: ")[2].strip()
    text = str(error)
    package = re.search(r"given class_path '[\w.]*?(\w+)':\s+Requirement '([\w-]+)[^']*' not met", text)
    if package:
        return f"{package[1]} needs a package that is not installed: pip install {package[2]}"
    if _raised_in(error, "torch/utils/data/dataloader.py") and isinstance(
        error, (RuntimeError, OSError, EOFError)
    ):
        process = re.search(r"pid(?:\(s\))? ([\d, ]+)", text)
        return (
            f"a loader process{f' ({process[1]})' if process else ''} ended unexpectedly, most often killed for want "
            "of memory: lower --data.num_workers (0 reads in the main process) or --data.batch_size, or give the job "
            "more memory"
        )
    # Broken pipes and downloads are errors of the system, and have nothing to do with ranks.
    if isinstance(error, RuntimeError) and any(words in text for words in LOST_RANK):
        return f"another rank of this job has ended, and its own message says why ({text.splitlines()[0]})"
    return None


def _raised_in(error: BaseException | None, file: str) -> bool:
    """Whether an exception came through a file."""
    step = None if error is None else error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename.replace("\\", "/").endswith(file):
            return True
        step = step.tb_next
    return False


def concrete_subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """Classes below `base` that can be built."""
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from concrete_subclasses(cls)


def _unknown_class(key: str, name: str) -> str:
    base = next((kind for full, kind in KINDS.items() if full.split(".")[-1] == key.split(".")[-1]), None)
    classes = concrete_subclasses(base) if base else CHOICES.get(key, ())
    known = sorted({cls.__name__ for cls in classes})
    if base is Protocol:
        known += sorted(PRESETS)
    allowed = f"; known: {', '.join(known)}" if known else ""
    hint = f"; did you mean {near[0]}?" if (near := _nearest(name, known)) else ""
    return f"{key}: unknown class {name!r}{allowed}, or the import path of your own{hint}"


def _missing_argument(name: str) -> str:
    """The parser of a class names its argument alone; say whose it may be."""
    places = [
        f"--{key}.{name} ({cls.__name__})"
        for key, classes in (
            *((key, concrete_subclasses(base)) for key, base in KINDS.items()),
            *CHOICES.items(),
        )
        for cls in classes
        if (parameter := inspect.signature(cls).parameters.get(name)) and parameter.default is parameter.empty
    ]
    return f"the argument {name!r} is required: {' or '.join(places) or f'give --{name}'}"


def _unknown_argument(name: str, allowed: list[str]) -> str:
    parent = name.rpartition(".")[0]
    near = _nearest(name, allowed)
    siblings = sorted(x for x in allowed if x.rpartition(".")[0] == parent)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown argument {name!r}; {hint}allowed here: {', '.join(siblings) or 'none'}"


def _nearest(name: str, known: list[str]) -> list[str]:
    by_lower = {word.lower(): word for word in known}
    return [by_lower[word] for word in difflib.get_close_matches(name.lower(), list(by_lower), n=1)]


def _argument_names(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.option_strings and "help" not in action.dest]


def _refusing_parser(error: BaseException | None) -> ArgumentParser | None:
    """The parser in whose check the error was raised: that of one class, inside the command's own."""
    found = None
    while error is not None:
        if hasattr(error, "subcommand_parser"):
            return error.subcommand_parser  # type: ignore[no-any-return]
        step = error.__traceback__
        while step is not None:
            owner = step.tb_frame.f_locals.get("self")
            found = owner if isinstance(owner, ArgumentParser) else found
            step = step.tb_next
        error = error.__cause__ or error.__context__
    return found
