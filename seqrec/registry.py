"""Classes by name and by path, as configs, checkpoints, error messages and tables name them.

A class is registered by its own name when it is imported: subclassing is registering. The argument parser finds
classes in the same way, so a name means the same class everywhere.
"""

from __future__ import annotations

import difflib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
        ['BERT4Rec', 'GRU4Rec', 'HRNN', 'HSTU', 'MambaRec', 'MoEMaTrRec', 'RecMamba', 'SASRec', 'SSD4Rec', 'Samba']
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
    """Return the class at a path that the user gave, or that code contains; it imports any module.

    A path from a file of others goes through `class_from_file`.

    Args:
        path: Dotted path, such as `seqrec.FullSoftmax`, `mypackage.MyEncoder`, or `seqrec.losses.bce.BCE` as
            configs of version 0.1 have it.

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


def class_from_file(path: object, kinds: tuple[type[Any], ...]) -> type[Any]:
    """Return the class at a path that a file names, such as a checkpoint, without running code of others.

    Allowed are subclasses of `kinds` that are classes of seqrec, are imported already, or are in a package that the
    user trusts; see `trusting`. Only modules of seqrec and of trusted packages are imported.

    Args:
        path: What the file has in place of a dotted path.
        kinds: Classes of which it must be a subclass.

    Raises:
        UntrustedClassError: if the class is not allowed.
        InputError: if there is no such class, or it is of another kind.

    Example:
        >>> from seqrec.training.losses import Loss
        >>> class_from_file("seqrec.FullSoftmax", (Loss,)).__name__
        'FullSoftmax'
        >>> class_from_file("subprocess.Popen", (Loss,))
        Traceback (most recent call last):
        seqrec.errors.InputError: subprocess.Popen is no Loss
    """
    if not isinstance(path, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path):
        raise InputError(f"{path!r} is no path of a class, such as seqrec.FullSoftmax")
    package = path.partition(".")[0]
    own = package == "seqrec" or package in trusted_packages()
    try:
        found = class_named(path) if own else _imported(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no {path}: {error}") from error
    if found is None:
        raise UntrustedClassError(path)
    if not isinstance(found, type) or not issubclass(found, kinds):
        raise InputError(f"{path} is no {' or '.join(kind.__name__ for kind in kinds)}")
    return found


def _imported(path: str) -> object:
    """Return what a path names if its module is imported; None if it is not."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:count]))
        if module is None:
            continue
        found: object = module
        for name in parts[count:]:
            # Not getattr, because a module's or a class's hook is code.
            found = inspect.getattr_static(found, name, None)
        return found
    return None


class UntrustedClassError(InputError):
    """A file names a class of a package that the user does not trust."""

    def __init__(self, path: str) -> None:
        package = path.partition(".")[0]
        super().__init__(
            f"{path} is not a class of seqrec, and using it would run code of the package {package!r}. If you trust "
            f"{package!r}, import it first, or add --trust {package} (in Python: trust=[{package!r}])"
        )
        self.path = path

    def __reduce__(self) -> tuple[type[UntrustedClassError], tuple[str]]:
        return type(self), (self.path,)


TRUST_VARIABLE = "SEQREC_TRUST"
_TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted packages", default=frozenset())


def trusted_packages() -> frozenset[str]:
    """Return the packages of which files may name classes: those of `trusting`, and those of SEQREC_TRUST."""
    listed = os.environ.get(TRUST_VARIABLE, "").split(",")
    return _TRUSTED.get() | {name.strip() for name in listed if name.strip()}


@contextmanager
def trusting(packages: Iterable[str]) -> Iterator[None]:
    """Let files name classes of some packages, by the first part of their paths.

    Args:
        packages: Names of packages, such as "mypackage".

    Raises:
        InputError: if one is no name of a package.

    Example:
        >>> with trusting(["mypackage"]):
        ...     sorted(trusted_packages())
        ['mypackage']
    """
    if isinstance(packages, str):
        packages = [packages]
    wrong = [name for name in packages if not str(name).isidentifier()]
    if wrong:
        raise InputError(f"trust={wrong[0]!r} is no name of a package; give its first part alone, such as mypackage")
    token = _TRUSTED.set(_TRUSTED.get() | frozenset(packages))
    try:
        yield
    finally:
        _TRUSTED.reset(token)
