"""Backends of an op: their description, and the choice among them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.export import is_exporting, without_autocast
from seqrec.ops.problems import moved

Function = TypeVar("Function", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)

# What a problem has if its tensors of real numbers are not all of its input's dtype.
MIXED_DTYPES = "mixed dtypes"


def supports_real_numbers(device: str, dtype: torch.dtype) -> bool:
    """Return True for float32 and float64, on any device."""
    return dtype in (torch.float32, torch.float64)


def _present() -> str | None:
    return None


@dataclass(frozen=True)
class Backend(Generic[Function]):
    """One way to compute an op. The defaults are those of plain torch, which runs anywhere.

    Attributes:
        name: Name that users pass as `backend`.
        function: Computes the op; all backends of an op share one signature and one meaning.
        runs: Devices and dtypes in words, such as "float32 on cpu".
        supports: Returns True if it can compute on a device type in a dtype.
        missing: Returns the reason why it cannot run on this machine now, with the fix; None if it can run.
        unsupported_args: Names of the op's optional arguments that it does not support.
        extra: True for an addition that most machines lack: its absence is not logged.
        never_auto: Device types on which "auto" never chooses it, because there it is for tests only.
        narrow: 16-bit dtypes that it reads and writes without a cast, with sums, and the states of scans, in float32;
            inputs in others are converted for it. The convolution's states are inputs, and keep their type.
    """

    name: str
    function: Function
    runs: str = "anywhere"
    supports: Callable[[str, torch.dtype], bool] = supports_real_numbers
    missing: Callable[[], str | None] = _present
    unsupported_args: frozenset[str] = frozenset()
    extra: bool = False
    never_auto: frozenset[str] = frozenset()
    narrow: tuple[torch.dtype, ...] = ()

    def why_unusable(self, device: str, dtype: torch.dtype, given: Iterable[str] = ()) -> str | None:
        """Return why it cannot compute on a device type, in a dtype, with these optional arguments; None if it can."""
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
        variable: Environment variable that overrides "auto".
        backends: In the order in which "auto" prefers them; at least one works on every machine.

    Example:
        >>> import torch
        >>> from seqrec.ops.backends import Backend, Backends
        >>> Backends("sum", "SUM_BACKEND", [Backend("plain", sum)]).choose("auto", "cpu", torch.float32).name
        'plain'
    """

    def __init__(self, op: str, variable: str, backends: Sequence[Backend[Function]]) -> None:
        self.op = op
        self.variable = variable
        self._backends = {backend.name: backend for backend in backends}

    @property
    def names(self) -> list[str]:
        """Names, in the order in which "auto" prefers them."""
        return list(self._backends)

    @property
    def plain(self) -> str:
        """The preferred backend of those that need nothing but torch, which run on every machine."""
        return next(backend.name for backend in self._backends.values() if backend.missing is _present)

    def __getitem__(self, name: str) -> Backend[Function]:
        return self._backends[name]

    def choose(self, wanted: str, device: str, dtype: torch.dtype, given: Iterable[str] = ()) -> Backend[Function]:
        """Return the backend to compute with.

        Args:
            wanted: A name, or "auto": the environment variable if it is set, else the first backend that can compute
                this. If a faster one is missing, a warning is logged once.
            device: Device type, such as "cpu".
            dtype: Dtype of the computation.
            given: Optional arguments that the caller passed.

        Raises:
            InputError: if the name is unknown, or the named backend cannot compute this.
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
                raise InputError(f"{source} {reason}; or use 'auto' or {self.plain!r}")
            return self._backends[name]
        chosen, passed_over = self.auto(device, dtype, given)
        for backend in passed_over:
            _warn(self.op, backend.name, chosen.name, backend.missing() or "")
        return chosen

    def auto(
        self, device: str, dtype: torch.dtype, given: Iterable[str] = ()
    ) -> tuple[Backend[Function], list[Backend[Function]]]:
        """Return the choice of "auto" without the environment variable, and the preferred backends missing here."""
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

    def compute(
        self, problem: Any, wanted: str, *, exported: Function, unusual: Iterable[str] = ()
    ) -> tuple[Tensor, Tensor]:
        """Compute a problem in float32 at least, also under autocast.

        Args:
            problem: Named tuple of the op's arguments, which have been checked; the first is its input.
            wanted: As in `choose`.
            exported: Computes the problem if `wanted` is "auto" and `torch.export` traces the call.
            unusual: What else the problem has that a backend may not support, besides its optional arguments.

        Returns:
            The output in the input's dtype, and the last state in that of the computation.
        """
        given = [name for name in ("initial_state", "valid", "start") if getattr(problem, name) is not None]
        out, last = self.run(problem, wanted, exported=exported, given=(*given, *unusual))
        return out.to(problem[0].dtype), last

    def run(
        self, problem: Any, wanted: str, *, exported: Function, given: tuple[str, ...], precise: bool = True
    ) -> Any:
        """Return a backend's result for a problem.

        Args:
            problem: As in `compute`.
            wanted: As in `choose`.
            exported: As in `compute`.
            given: As in `choose`.
            precise: Whether to compute in float32 at least, also under autocast; False keeps the dtype.
        """
        x = problem[0]
        dtype = torch.promote_types(x.dtype, torch.float32) if precise else x.dtype
        if not precise and any(isinstance(y, Tensor) and y.is_floating_point() and y.dtype != dtype for y in problem):
            given = (*given, MIXED_DTYPES)
        function: Any = exported
        kept: tuple[torch.dtype, ...] = (dtype,)
        if not (wanted == "auto" and is_exporting()):
            backend = self[self._chosen(wanted, x.device.type, dtype, given)]
            function, kept = backend.function, (dtype, *backend.narrow)
        if not precise:
            return function(problem)
        with without_autocast(x.device.type):
            return function(moved(problem, dtype, kept=kept))

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _chosen(self, wanted: str, device: str, dtype: torch.dtype, given: tuple[str, ...]) -> str:
        return self.choose(wanted, device, dtype, given).name


@functools.cache
def _warn(op: str, missing: str, chosen: str, reason: str) -> None:
    """Log once per process that a slower backend is used."""
    _LOG.warning("%s: backend %r is missing, the slower %r is used: %s", op, missing, chosen, reason)
