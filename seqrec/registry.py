"""Name -> class tables, so that a paper's name is enough in a config, a test or a table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from seqrec.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: What is registered, in one word, for error messages: "encoder".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that files the class under `name`.

        Raises:
            ValueError: `name` is taken.
        """

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._classes[name]!r}")
            self._classes[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        """Return the class registered as `name`.

        Raises:
            InputError: no such name; the message lists the known ones.
        """
        if name not in self._classes:
            raise InputError(self.unknown(name))
        return self._classes[name]

    def unknown(self, name: str) -> str:
        """Message for a name that is not here, with the nearest known one."""
        near = difflib.get_close_matches(name, self._classes, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown {self.kind} {name!r}; known: {', '.join(self)}{hint}"

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)
