"""What ops of one further event have in common: rows of a state, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.backends import MIXED_DTYPES, Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.problems import wants_gradient


@dataclass(frozen=True)
class SlabRows:
    """One tensor of a state, whose rows are some of a slab's: a step reads them in place and writes others.

    Attributes:
        slab: (R, ...), each row contiguous; the rows themselves may be apart.
        before: (B,) int64 rows of the state; repeats are allowed.
        after: (B,) int64 rows to write, each of them once and none of them in `before`.
    """

    slab: Tensor
    before: Tensor
    after: Tensor

    def __len__(self) -> int:
        return len(self.before)


# Output (B, M), and the two large tensors of the state after the event.
Stepped = tuple[Tensor, Tensor | SlabRows, Tensor | SlabRows]
Step = Callable[[Any], Stepped]


def step_backends(op: str, variable: str, compiled: Step, reference: Step) -> Backends[Step]:
    """Return the backends of a step: the compiled one for what it can compute, and the plain one."""
    unsupported = frozenset({"gradients", "compilation", "autocast"})
    return Backends(op, variable, [compiled_backend(compiled, unsupported), Backend("reference", reference)])


def run_step(problem: Any, wanted: str, backends: Backends[Step], reference: Step) -> Stepped:
    """Return the output and the state after the event, by the `wanted` backend; `reference` is the one to export."""
    unusual = {
        "gradients": wants_gradient(problem),
        "compilation": torch.compiler.is_compiling(),
        "autocast": torch.is_autocast_enabled(problem.x.device.type),
        # A stream may keep its events in another dtype than the weights'.
        MIXED_DTYPES: any(x.slab.dtype != problem.x.dtype for x in problem if isinstance(x, SlabRows)),
    }
    given = tuple(name for name, holds in unusual.items() if holds)
    stepped: Stepped = backends.run(problem, wanted, exported=reference, given=given, precise=False)
    return stepped
