"""How an op's backends are described, chosen and shown."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from seqrec.errors import InputError

Function = TypeVar("Function")

_LOG = logging.getLogger(__name__)


def supports_real_numbers(device: str, dtype: torch.dtype) -> bool:
    """Return True for float32 and float64, on any device."""
    return dtype in (torch.float32, torch.float64)


def _present() -> str | None:
    return None


@dataclass(frozen=True)
class Backend(Generic[Function]):
    """One way to compute an op.

    Attributes:
        name: What users call it.
        function: Computes the op; all backends of an op share one signature and one meaning.
        runs: Devices and dtypes in words, such as "float32 on cpu".
        supports: Whether it computes on a device type in a dtype.
        missing: Why it cannot run on this machine now, with the fix; None where it can.
        unsupported_args: Names of the op's optional arguments that it cannot honour.
        extra: Whether it is an addition that most machines lack, so that nobody need hear of its absence.
        never_auto: Device types where "auto" never takes it, though it computes there, because it is for tests.
    """

    name: str
    function: Function
    runs: str
    supports: Callable[[str, torch.dtype], bool]
    missing: Callable[[], str | None] = _present
    unsupported_args: frozenset[str] = frozenset()
    extra: bool = False
    never_auto: frozenset[str] = frozenset()

    def why_unusable(self, device: str, dtype: torch.dtype, given: Iterable[str] = ()) -> str | None:
        """Why it cannot compute on a device type, in a dtype, with these optional arguments; None if it can."""
        if not self.supports(device, dtype):
            return f"runs {self.runs}, got {dtype} on {device}"
        if lacking := sorted(self.unsupported_args.intersection(given)):
            return f"has no {', '.join(lacking)}"
        reason = self.missing()
        return None if reason is None else f"is unavailable: {reason}"


class Backends(Generic[Function]):
    """The backends of one op, by name.

    Args:
        op: Name of the op, for messages.
        variable: Environment variable that decides what "auto" is.
        backends: From the one that "auto" likes best; one of them serves everywhere.
    """

    def __init__(self, op: str, variable: str, backends: Sequence[Backend[Function]]) -> None:
        self.op = op
        self.variable = variable
        self._backends = {backend.name: backend for backend in backends}

    @property
    def names(self) -> list[str]:
        """Names, from the one that "auto" likes best."""
        return list(self._backends)

    def __getitem__(self, name: str) -> Backend[Function]:
        return self._backends[name]

    def choose(
        self, wanted: str, device: str, dtype: torch.dtype, given: Iterable[str] = ()
    ) -> Backend[Function]:
        """The backend that computes.

        Args:
            wanted: A name, or "auto": what the environment variable says, else the first that can. Where that is a
                slower one because a better one is missing, the log says so once.
            device: Device type, such as "cpu".
            dtype: What is computed in.
            given: Optional arguments that were passed, and must be honoured.

        Raises:
            InputError: an unknown name, or a backend that was asked for and cannot compute this.
        """
        name, source = wanted, f"backend={wanted!r}"
        if wanted == "auto" and os.environ.get(self.variable):
            name = os.environ[self.variable]
            source = f"{self.variable}={name!r}"
        if name != "auto" and name not in self._backends:
            raise InputError(f"{source} is unknown; known: {', '.join(['auto', *sorted(self.names)])}")
        if name != "auto":
            reason = self._backends[name].why_unusable(device, dtype, given)
            if reason is not None:
                raise InputError(f"{source} {reason}; or use 'auto' or {self._anywhere()!r}")
            return self._backends[name]
        chosen, passed_over = self.auto(device, dtype, given)
        for backend in passed_over:
            _notice(self.op, backend.name, chosen.name, backend.missing() or "")
        return chosen

    def auto(
        self, device: str, dtype: torch.dtype, given: Iterable[str] = ()
    ) -> tuple[Backend[Function], list[Backend[Function]]]:
        """What "auto" is without the environment variable, and the better ones that are missing here."""
        passed_over: list[Backend[Function]] = []
        for backend in self._backends.values():
            if device in backend.never_auto:
                continue
            if backend.why_unusable(device, dtype, given) is None:
                return backend, passed_over
            if (
                not backend.extra
                and backend.supports(device, dtype)
                and not backend.unsupported_args.intersection(given)
            ):
                passed_over.append(backend)
        raise AssertionError(f"no backend of {self.op} serves everywhere")

    def _anywhere(self) -> str:
        # The best of those that run on any machine.
        return next(b.name for b in self._backends.values() if b.missing is _present)


@functools.cache
def _notice(op: str, missing: str, chosen: str, reason: str) -> None:
    """Say once a process that a slower backend serves."""
    _LOG.warning("%s: backend %r is missing, the slower %r serves: %s", op, missing, chosen, reason)
