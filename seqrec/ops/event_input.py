"""The input vectors of events: sums of rows of tables, by given codes or by those of the events' times. D width.

It is one call, because starting an operation takes longer than computing it for one event of a stream.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.backends import MIXED_DTYPES, Backend, Backends
from seqrec.ops.compiled_library import call, compiled_backend
from seqrec.ops.export import is_exporting
from seqrec.ops.problems import wants_gradient
from seqrec.types import NO_TIME

__all__ = ["EVENT_INPUT_BACKENDS", "EventTimes", "TableRows", "added", "event_input", "gap_codes"]

HOUR = 60 * 60
# Code -> (seconds of a part, parts of a cycle, seconds from the cycle's start to 1970, a Thursday; Monday is 0).
CYCLES = {"hour": (HOUR, 24, 0), "weekday": (24 * HOUR, 7, 3 * 24 * HOUR)}
# Numbers of the codes in `cpp/event_input.h`.
TimeCode = Literal["gap", "hour", "weekday"]
TIME_CODES: dict[TimeCode, int] = {"gap": 1, "hour": 2, "weekday": 3}


class EventTimes(NamedTuple):
    """When events happened.

    Attributes:
        times: (...) int64, in ticks from 1970 on.
        before: (...) int64, those of the events before; `NO_TIME` without one.
        boundaries: (K,) int64, ascending: the smallest gap of each code from 2 on.
        second: Ticks of a second.
        offset: Ticks that are added to times before hour and weekday are taken.
    """

    times: Tensor
    before: Tensor
    boundaries: Tensor
    second: int = 1
    offset: int = 0


class TableRows(NamedTuple):
    """Rows of a table, one for each event.

    Attributes:
        table: (R, D) real numbers.
        codes: (...) integers, rows of the table; or the times that determine them.
        of_time: Which code of the times. "gap": 0 without an event before, else 1 + how many boundaries are at most the
            gap. "hour": 0..23. "weekday": 0..6, from Monday on. The table must have rows for all of them.
        scale: What the rows are multiplied by.
        least: Smallest code that is allowed; 1 if row 0 is that of padding.
    """

    table: Tensor
    codes: Tensor | EventTimes
    of_time: TimeCode | None = None
    scale: float = 1.0
    least: int = 0


class EventInputProblem(NamedTuple):
    """Input of a backend: the first table, which decides device and type, and all parts."""

    table: Tensor
    parts: Sequence[TableRows]


def event_input(parts: Sequence[TableRows], *, backend: str = "auto") -> Tensor:
    """Return the sum of rows of several tables for each event.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on a CPU, without gradients: all tables in one pass.
    - "reference": plain torch, any device and dtype, with gradients.

    Args:
        parts: At least one table with rows of the same width D. All codes and times have the same shape (...), and all
            times are of the same `EventTimes`.
        backend: A name above, or "auto": the environment variable SEQREC_EVENT_INPUT_BACKEND if set, else the first
            that can compute this.

    Returns:
        (..., D) sums.

    Raises:
        IndexError: on a CPU, if a code is no row of its table, or below the least that is allowed. A GPU's codes are
            not looked at.
        InputError: if there are no parts, or the backend is unknown, missing or cannot compute this.

    Example:
        >>> import torch
        >>> from seqrec.ops import TableRows, event_input
        >>> tabs, items = torch.eye(2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        >>> event_input([TableRows(items, torch.tensor([2, 1]), scale=10), TableRows(tabs, torch.tensor([0, 1]))])
        tensor([[21., 20.],
                [10., 11.]])
    """
    if not parts:
        raise InputError("parts is empty: give at least one table with codes")
    tables = [part.table for part in parts]
    first = tables[0]
    given: tuple[str, ...] = ()
    if wants_gradient(tuple(tables)):
        given = ("gradients",)
    elif torch.compiler.is_compiling():
        given = ("compilation",)
    elif any(table.dtype != first.dtype for table in tables):
        given = (MIXED_DTYPES,)
    out: Tensor = EVENT_INPUT_BACKENDS.run(
        EventInputProblem(first, parts), backend, exported=event_input_reference, given=given, precise=False
    )
    return out


def added(rows: Sequence[TableRows], vectors: Sequence[Tensor]) -> Tensor:
    """Return `event_input` of rows plus vectors (..., D); there is at least one of both."""
    return functools.reduce(operator.add, [*([event_input(rows)] if rows else []), *vectors])


def event_input_reference(p: EventInputProblem) -> Tensor:
    """Compute `event_input` in plain torch."""
    return functools.reduce(operator.add, (_rows(place, part) for place, part in enumerate(p.parts)))


def _rows(place: int, part: TableRows) -> Tensor:
    codes = part.codes if isinstance(part.codes, Tensor) else _codes(part.of_time, part.codes)
    # On a CPU `embedding` refuses what is no row.
    if part.least and codes.device.type == "cpu" and (codes < part.least).any():
        raise _no_row(place, part)
    rows = F.embedding(codes, part.table)
    return rows if part.scale == 1 else rows * part.scale


def _codes(of_time: str | None, given: EventTimes) -> Tensor:
    if of_time == "gap":
        return gap_codes(given.times, given.before, given.boundaries)
    local = given.times + given.offset if given.offset else given.times
    size, count, shift = CYCLES[str(of_time)]
    ticks = (local + shift * given.second if shift else local).remainder(size * count * given.second)
    if not is_exporting():
        return torch.div(ticks, size * given.second, rounding_mode="floor")
    # ONNX would divide in float32, which rounds.
    return (ticks.unsqueeze(-1) >= size * given.second * torch.arange(1, count, device=ticks.device)).sum(-1)


def gap_codes(times: Tensor, before: Tensor, boundaries: Tensor) -> Tensor:
    """Return the codes of gaps as of `TableRows` from times and earlier ones, which broadcast; 1 if time goes back."""
    first = before == NO_TIME
    gap = times - torch.where(first, times, before)
    if is_exporting():
        code = (gap.unsqueeze(-1) >= boundaries).sum(-1)
    else:
        code = torch.bucketize(gap, boundaries, right=True, out_int32=True)
    return torch.where(first, 0, code + 1)


def _no_row(place: int, part: TableRows) -> IndexError:
    assert isinstance(part.codes, Tensor)
    low, high = (int(code) for code in part.codes.aminmax())
    allowed = f"{part.least}..{len(part.table) - 1}"
    return IndexError(f"the codes of table {place} are {low}..{high}, but its rows are {allowed}")


class _Part(ctypes.Structure):
    """`TableRows` of `cpp/problems.h`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("table", "codes")),
        *((name, ctypes.c_int64) for name in ("rows", "stride", "least", "time")),
        ("scale", ctypes.c_double),
    ]


def event_input_compiled(p: EventInputProblem) -> Tensor:
    """Compute `event_input` in float32 on CPU by the compiled library, without gradients."""
    kept, laid_out, shapes = [], [], set()  # `kept` keeps tensors alive.
    times: EventTimes | None = None
    for table, codes, of_time, scale, least in p.parts:
        row, number = table.stride()
        if number != 1:
            table = table.contiguous()
            row = table.stride(0)
        address, time = None, 0
        if isinstance(codes, Tensor):
            # Asking is faster than calling what would return the same tensor.
            if codes.dtype is not torch.int64 or not codes.is_contiguous():
                codes = codes.to(torch.int64).contiguous()
            address = codes.data_ptr()
            shapes.add(codes.shape)
        else:
            times, time = codes, TIME_CODES[cast("TimeCode", of_time)]
        kept.append((table, codes))
        laid_out.append(_Part(table.data_ptr(), address, table.size(0), row, least, time, scale))
    operands: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    if times is not None:
        tensors = {"times": times.times, "before": times.before, "boundary": times.boundaries}
        operands = {name: x.contiguous() for name, x in tensors.items()}
        numbers = {"boundaries": len(times.boundaries), "second": times.second, "offset": times.offset}
        shapes |= {times.times.shape, times.before.shape}
    if len(shapes) > 1:
        raise InputError(f"codes and times must have one shape, got {sorted(map(tuple, shapes))}")
    shape = shapes.pop()
    width, refused, out = p.table.size(1), ctypes.c_int64(-1), p.table.new_empty(*shape, p.table.size(1))
    parts = (_Part * len(laid_out))(*laid_out)
    numbers |= {"parts": ctypes.addressof(parts), "refused": ctypes.addressof(refused), "no_time": NO_TIME}
    numbers |= {"events": shape.numel(), "width": width, "tables": len(laid_out)}
    call("event_input", numbers, {**operands, "out": out})
    if refused.value >= 0:
        raise _no_row(refused.value, p.parts[refused.value])
    return out


def _anything(device: str, dtype: torch.dtype) -> bool:
    return True


EVENT_INPUT_BACKENDS: Backends[Callable[[EventInputProblem], Tensor]] = Backends(
    "input of events",
    "SEQREC_EVENT_INPUT_BACKEND",
    [
        compiled_backend(event_input_compiled, frozenset({"gradients", "compilation"})),
        Backend("reference", event_input_reference, supports=_anything),
    ],
)
