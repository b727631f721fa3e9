"""The arguments of dropout as one object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class DropoutProblem(NamedTuple):
    """Input of a backend; see `dropout` for each argument."""

    x: Tensor
    share: float
    seed: Tensor | None = None


Dropout = Callable[[DropoutProblem], Tensor]
