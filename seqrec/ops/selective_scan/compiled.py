"""The scan by the compiled CPU library. Shapes: B batch, L events, D channels, N states per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.ops.compiled_library import call, contiguous
from seqrec.ops.problems import empty_like
from seqrec.ops.selective_scan.autograd import differentiable_scan, new_outputs
from seqrec.ops.selective_scan.problem import ScanProblem

# Events between two states that forward keeps; backward recomputes the states in between.
INTERVAL = 32
# D of the kept states is rounded up to a multiple of this, so their shape does not depend on the vector width.
PADDING = 16


def _kept_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    batch, length, channels = u.shape
    return batch, -(-length // INTERVAL), A.shape[1], -(-channels // PADDING) * PADDING


def _numbers(problem: ScanProblem, groups: int) -> dict[str, int]:
    names = ("batch", "length", "channels", "states", "interval", "softplus", "groups")
    sizes = (*problem.u.shape, problem.A.shape[1], INTERVAL, int(problem.delta_softplus), groups)
    return dict(zip(names, sizes, strict=True))


def _inputs(problem: ScanProblem) -> dict[str, Tensor | None]:
    return contiguous(**{name: x for name, x in problem._asdict().items() if not isinstance(x, bool)})


def _forward(problem: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    u, A = problem.u, problem.A
    inputs = _inputs(problem)
    y, last, kept = new_outputs(u, A, _kept_shape(u, A) if keep else None)
    results = {"y": y, "last_state": last, "kept_states": kept if keep else None}
    call("scan_forward", _numbers(problem, groups=1), {**inputs, **results})
    return y, last, kept


def _backward(problem: ScanProblem, kept: Tensor, dy: Tensor | None, dlast: Tensor | None) -> list[Tensor]:
    u, delta, A, _, _, D, z, delta_bias, *_ = problem
    inputs = _inputs(problem) | contiguous(kept_states=kept, dy=dy, dlast_state=dlast)
    batch, length, channels = u.shape
    states = A.shape[1]
    # Twice as many tasks as threads if there are fewer rows than that. Each group has its own dB and dC.
    groups = max(1, min(-(-channels // PADDING), -(-2 * torch.get_num_threads() // max(batch, 1))))
    du, ddelta, dz = empty_like(u, delta, z)
    dA = u.new_empty(batch, channels, states)
    dD, dbias = u.new_empty(batch, channels), u.new_empty(batch, channels)
    dB, dC = u.new_zeros(groups, batch, length, states), u.new_zeros(groups, batch, length, states)
    dinitial = u.new_empty(batch, channels, states)
    results = {"du": du, "ddelta": ddelta, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dinitial_state": dinitial}
    results |= {"ddelta_bias": dbias} | ({} if z is None else {"dz": dz})
    call("scan_backward", _numbers(problem, groups), {**inputs, **results})
    total = [x[0] if groups == 1 else x.sum(0) for x in (dB, dC)]
    dD = torch.empty(0) if D is None else dD.sum(0)
    dbias = torch.empty(0) if delta_bias is None else dbias.sum(0)
    return [du, ddelta, dA.sum(0), *total, dD, dz, dbias, dinitial]


# Same as `selective_scan` in float32 on CPU, with bias, softplus, skip, gate, padding and starts in one pass.
scan_compiled = differentiable_scan(
    "selective_scan", _forward, _backward, _kept_shape, device_types="cpu", label="compiled"
)
