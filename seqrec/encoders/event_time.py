"""When events happened and when a recommendation is asked for, as inputs of a model. B batch, L events, D width."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers.gaps import DOUBLINGS, GapBuckets
from seqrec.encoders.layers.positionwise import Linear
from seqrec.errors import InputError
from seqrec.ops.event_input import EventTimes, TableRows, TimeCode, added
from seqrec.types import NO_TIME, History

# Timestamps in a second, by unit.
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Waves of the continuous form, each with twice the frequency of the one before; the slowest has half a turn over all
# doublings.
WAVES = 6
# Other times are not of a log of clicks: the unit is wrong, or they only count.
EARLIEST, LATEST = datetime(1990, 1, 1).timestamp(), datetime(2100, 1, 1).timestamp()


@dataclass(frozen=True)
class EventTime:
    """Settings of what a model reads of time.

    Attributes:
        gap: How it reads the time since the event before: "buckets" gives each half doubling of the gap a vector,
            "continuous" maps waves of the gap's logarithm, None leaves gaps out.
        hour: Whether each hour of the day has a vector.
        weekday: Whether each day of the week has a vector.
        request: Whether the model reads the time of a request: the gap from the newest event to then,
            and hour and weekday of then if these are on. It is read after the encoder, so a stored state can be asked
            at any time. In training, and when targets are judged, each target's own time is that of the request.
        in_mixers: Whether attention reads gaps too, with a number for each bucket, 0 at first: the time between two
            events then changes their score. See `seqrec.encoders.layers.CausalSelfAttention`. Encoders without
            attention refuse it: gaps in the step size of Mamba did not help.
        unit: Unit of the log's timestamps, counted from 1970: "s", "ms", "us" or "ns".
        utc_offset: Hours that are added to the timestamps' UTC for hour and weekday.

    Raises:
        InputError: if a value is unknown, the offset is more than a day, or nothing is read.

    Example:
        >>> import torch
        >>> from seqrec import EventTime, History, MambaRec
        >>> model = MambaRec(num_items=20, d_model=8, positions=False, time=EventTime(hour=True, request=True))
        >>> history = History(torch.tensor([[3, 7]]), torch.tensor([2]), timestamps=torch.tensor([[10, 60]]))
        >>> model.recommend(history, top_k=5, at=90).item_ids.shape
        torch.Size([1, 5])
    """

    gap: Literal["buckets", "continuous"] | None = "buckets"
    hour: bool = False
    weekday: bool = False
    request: bool = False
    in_mixers: bool = False
    unit: Literal["s", "ms", "us", "ns"] = "s"
    utc_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.gap not in ("buckets", "continuous", None):
            raise InputError(f"time.gap={self.gap!r} must be buckets, continuous or null")
        if self.unit not in UNITS:
            raise InputError(f"time.unit={self.unit!r} must be one of {', '.join(UNITS)}")
        if not -24 <= self.utc_offset <= 24:
            raise InputError(f"time.utc_offset={self.utc_offset} must be hours between -24 and 24")
        if not (self.gap or self.hour or self.weekday):
            raise InputError("time reads nothing: set time.gap, time.hour or time.weekday, or leave time out")
        if self.in_mixers and not self.gap:
            raise InputError("time.in_mixers=True needs time.gap: set it to buckets or continuous")

    def check_log(self, first: int, last: int) -> None:
        """Refuse a log whose times are dates of this age in another unit than this one.

        Times that are none in any unit, such as counters, are refused if hours or weekdays are read.

        Raises:
            InputError: if the first or last timestamp is before 1990 or after 2100; it names a unit that would fit.
        """
        fitting = [unit for unit, ticks in UNITS.items() if first / ticks >= EARLIEST and last / ticks <= LATEST]
        if self.unit in fitting or not (fitting or self.hour or self.weekday):
            return
        cure = f"set time.unit: {fitting[0]}" if fitting else "leave time.hour and time.weekday out"
        raise InputError(
            f"time.unit={self.unit!r}, but the log's timestamps, {first} to {last}, are then no dates between 1990 "
            f"and 2100: {cure}"
        )

    def timestamp(self, at: int | datetime) -> int:
        """Return a moment as a timestamp of the log.

        Raises:
            InputError: if it is a datetime without a time zone, or neither that nor a whole number.
        """
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise InputError(f"at={at!r} has no time zone: use datetime.now(timezone.utc), or a timestamp")
            return math.floor(at.timestamp() * UNITS[self.unit])
        if isinstance(at, bool) or not hasattr(at, "__index__"):
            raise InputError(f"at={at!r} must be a timestamp in {self.unit} or a datetime with a time zone")
        return operator.index(at)


class TimeEmbedding(nn.Module):
    """Vectors of gaps, hours and weekdays, as `EventTime` asks for them, added up.

    Args:
        settings: What is read.
        d_model: Width D.
    """

    def __init__(self, settings: EventTime, d_model: int) -> None:
        super().__init__()
        self.settings = settings
        self.buckets = GapBuckets(UNITS[settings.unit])
        self.gaps = nn.Embedding(len(self.buckets), d_model) if settings.gap == "buckets" else None
        self.curve = Linear(2 * WAVES + 1, d_model) if settings.gap == "continuous" else None
        self.hours = nn.Embedding(24, d_model) if settings.hour else None
        self.weekdays = nn.Embedding(7, d_model) if settings.weekday else None
        # Found once, as finding a module's parts takes a good part of the time of one event.
        tables: dict[TimeCode, nn.Embedding | None] = {
            "gap": self.gaps, "hour": self.hours, "weekday": self.weekdays
        }  # fmt: skip
        read = {code: f"{code}s" for code, table in tables.items() if table is not None}
        second = UNITS[settings.unit]
        self._read = read, second, round(settings.utc_offset * 3600) * second
        for part in (self.gaps, self.hours, self.weekdays, self.curve):
            if part is not None:
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, times: Tensor, before: Tensor) -> Tensor:
        """Return vectors (..., D) of timestamps (...) int64 and those of the events before, `NO_TIME` without one."""
        return added(*self.parts(times, before))

    def parts(self, times: Tensor, before: Tensor) -> tuple[list[TableRows], list[Tensor]]:
        """Return what `forward` adds up: rows of tables, and vectors (..., D)."""
        tables, second, offset = self._read
        event_times = EventTimes(times, before, self.buckets.boundaries, second, offset)
        rows = [TableRows(getattr(self, name).weight, event_times, code) for code, name in tables.items()]
        if self.settings.gap != "continuous":
            return rows, []
        assert self.curve is not None
        return rows, [self.curve(self._waves(times, before))]

    def _waves(self, times: Tensor, before: Tensor) -> Tensor:
        """Return sines and cosines (..., 2 * WAVES) of the gap's logarithm, and whether there is no event before."""
        first = before == NO_TIME
        gap = (times - torch.where(first, times, before)).clamp_min(0)
        share = torch.log2(1 + gap.to(torch.float32) / UNITS[self.settings.unit]) / DOUBLINGS
        angles = share.unsqueeze(-1) * (math.pi * 2.0 ** torch.arange(WAVES, device=share.device))
        waves = torch.cat([angles.sin(), angles.cos()], -1).masked_fill(first.unsqueeze(-1), 0)
        waves = torch.cat([waves, first.unsqueeze(-1).to(waves.dtype)], -1)
        assert self.curve is not None
        return waves.to(self.curve.weight.dtype)


class RequestReadOut(nn.Module):
    """`state + W2 gelu(W1 [state, time])`: an encoder's state as asked at a given time.

    `time` is the `TimeEmbedding` of the request, with the newest event as the event before. W2 starts at 0, so an
    untrained read-out changes nothing.

    Args:
        settings: What is read of the request's time.
        d_model: Width D.
    """

    def __init__(self, settings: EventTime, d_model: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(settings, d_model)
        self.hidden = Linear(2 * d_model, 4 * d_model)
        self.out = Linear(4 * d_model, d_model)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor, newest: Tensor, request: Tensor) -> Tensor:
        """Return states (..., D) as asked at times `request` (...), after newest events at times `newest` (...)."""
        joined = torch.cat([states, self.time(request, newest).to(states.dtype)], -1)
        out: Tensor = states + self.out(F.gelu(self.hidden(joined)))
        return out


def needed_times(history: History) -> Tensor:
    """Return a history's timestamps (B, L).

    Raises:
        InputError: if it has none.
    """
    return given_times(history.timestamps)


def given_times(timestamps: Tensor | None) -> Tensor:
    """Return timestamps.

    Raises:
        InputError: if there are none.
    """
    if timestamps is None:
        raise InputError(
            "the model reads the time of events, but the history has no timestamps: give a frame with a column "
            "timestamp or History(.., timestamps=..), or train a model without `time`"
        )
    return timestamps
