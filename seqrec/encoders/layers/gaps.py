"""Time between events, in buckets, as mixers read it. Shapes: B batch, L events."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.ops.event_input import gap_codes

# Times (B, L) int64 of events, and of the events before them, `NO_TIME` without one.
Times = tuple[Tensor, Tensor]
# Two buckets for each doubling of a gap, from 1 second to 2^31 seconds, which is 68 years.
BUCKETS_PER_DOUBLING = 2
DOUBLINGS = 31


class GapBuckets(nn.Module):
    """Numbers of gaps: 0 without an event before, 1 for a gap of 0, then one number for each half doubling.

    Args:
        ticks: Timestamps in a second.
    """

    boundaries: Tensor

    def __init__(self, ticks: int) -> None:
        super().__init__()
        steps = range(DOUBLINGS * BUCKETS_PER_DOUBLING)
        # Gaps are compared as whole numbers, so a bucket does not depend on how a device rounds logarithms.
        boundaries = [math.ceil(ticks * 2 ** (step / BUCKETS_PER_DOUBLING)) for step in steps]
        self.register_buffer("boundaries", torch.tensor([1, *boundaries][ticks == 1 :]), persistent=False)

    def __len__(self) -> int:
        return len(self.boundaries) + 2

    def forward(self, times: Tensor, before: Tensor) -> Tensor:
        """Return the numbers of gaps between times int64 and earlier ones, which broadcast; 1 if time goes back."""
        return gap_codes(times, before, self.boundaries)


class GapTable(nn.Module):
    """Numbers of each bucket of gaps, which a mixer adds where it reads gaps. They start at 0, which changes nothing.

    Args:
        width: Numbers of a bucket.
        ticks: Timestamps in a second.
    """

    def __init__(self, width: int, ticks: int) -> None:
        super().__init__()
        self.buckets = GapBuckets(ticks)
        self.weight = nn.Parameter(torch.zeros(len(self.buckets), width))

    def forward(self, times: Tensor, before: Tensor) -> Tensor:
        """Return the numbers (..., width) of gaps as of `GapBuckets`."""
        return F.embedding(self.buckets(times, before), self.weight)

    def of_pairs(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the numbers (B, width, Q, K) of the gaps from keys at times (B, K) to queries at times (B, Q)."""
        buckets = self.buckets(queries.unsqueeze(2), keys.unsqueeze(1))
        # The gradient of an embedding of single numbers takes more than ten times as long on a CPU.
        columns = [column.index_select(0, buckets.flatten()) for column in self.weight.unbind(1)]
        return torch.stack([column.view_as(buckets) for column in columns], 1)


def needed(times: Times | None = None) -> Times:
    """Return the times that a mixer with a `GapTable` reads.

    Raises:
        InputError: if there are none.
    """
    if times is None:
        raise InputError("a mixer reads gaps, but its encoder passes no times: give it `SequenceEncoder.times_of`")
    return times
