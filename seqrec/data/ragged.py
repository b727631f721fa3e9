"""Index arithmetic for runs of different length that lie behind each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def ranges(starts: Int64, counts: Int64) -> Int64:
    """`starts[i], starts[i] + 1, ..., starts[i] + counts[i] - 1` for each i, one behind the other."""
    before = np.cumsum(counts) - counts
    numbers: Int64 = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return numbers
