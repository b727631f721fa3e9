"""Classes by name and by path, as configs, checkpoints, error messages and tables name them.

A class is registered by its own name when it is imported: subclassing is registering. The argument parser finds
classes in the same way, so a name means the same class everywhere.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from seqrec.aliases import present_module
from seqrec.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Concrete classes of one kind by name.

    Iteration yields the names that seqrec ships, in alphabetical order. Look-ups also find subclasses that other
    packages define, once they are imported.

    Args:
        kind: Kind of the classes in one word, for error messages, such as "encoder".
        base: The class that they inherit from.

    Example:
        >>> from seqrec.encoders import ENCODERS
        >>> list(ENCODERS)
        ['GRU4Rec', 'MambaRec', 'MoEMaTrRec', 'RecMamba', 'SASRec']
        >>> ENCODERS["SASRec"].__name__
        'SASRec'
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self.base = base

    def __getitem__(self, name: str) -> type[T]:
        """Return the class called `name`.

        Raises:
            InputError: if no class has the name, or more than one has it; the message lists the known ones.
        """
        found = [cls for cls in concrete_subclasses(self.base) if cls.__name__ == name]
        if not found:
            raise InputError(f"unknown {self.kind} {name!r}; known: {', '.join(self)}{did_you_mean(name, self)}")
        if len(found) > 1:
            paths = " and ".join(public_path(cls) for cls in found)
            raise InputError(f"{self.kind} {name!r} is {paths}; give the path of the one that you mean")
        return found[0]

    def __contains__(self, name: object) -> bool:
        return any(cls.__name__ == name for cls in concrete_subclasses(self.base))

    def __iter__(self) -> Iterator[str]:
        shipped = (cls for cls in concrete_subclasses(self.base) if cls.__module__.startswith("seqrec."))
        return iter(sorted(cls.__name__ for cls in shipped))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def concrete_subclasses(base: type[T]) -> Iterator[type[T]]:
    """Yield the imported subclasses of `base`, at any depth, that can be instantiated."""
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from concrete_subclasses(cls)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known name nearest to a misspelt one; empty if none is near.

    Example:
        >>> did_you_mean("sasrec", ["GRU4Rec", "SASRec"])
        '; did you mean SASRec?'
    """
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def public_path(cls: type[Any]) -> str:
    """Return the shortest path from which a class can be imported; configs and checkpoints name it by this path.

    A class of ours is `seqrec.<Name>` if the front door offers it, else `seqrec.<room>.<Name>`. The path never contains
    the defining file, because files may move.

    Example:
        >>> from seqrec.encoders import SASRec
        >>> from seqrec.training.losses import FullSoftmax
        >>> public_path(SASRec), public_path(FullSoftmax)
        ('seqrec.encoders.SASRec', 'seqrec.FullSoftmax')
    """
    parts = cls.__module__.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if package in sys.modules and getattr(sys.modules[package], cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def class_named(path: str) -> type[Any]:
    """Return the class at `path`, also if a file names it by a path that it had earlier.

    Args:
        path: Dotted path, such as `seqrec.FullSoftmax`, `mypackage.MyEncoder`, or `seqrec.losses.bce.BCE` as
            checkpoints of version 0.1 have it.

    Raises:
        ImportError: if the module does not exist.
        AttributeError: if the module has no such name.
        ValueError: if `path` is no dotted path.

    Example:
        >>> class_named("seqrec.losses.bce.BCE")
        <class 'seqrec.training.losses.bce.BCE'>
    """
    module, _, name = path.rpartition(".")
    found: type[Any] = pkgutil.resolve_name(f"{present_module(module) or module}.{name}")
    return found
