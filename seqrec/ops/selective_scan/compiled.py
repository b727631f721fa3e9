"""The scan by the compiled CPU library. Shapes: B batch, L events, D channels, N states per channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seqrec.ops.compiled_library import call, contiguous, distance
from seqrec.ops.problems import are_narrow, empty_like
from seqrec.ops.scans import differentiable_scan, new_outputs, new_states
from seqrec.ops.selective_scan.reference import ScanProblem, state_shape

# Events between two states that forward keeps; backward recomputes the states in between.
INTERVAL = 32
# D of the kept states is rounded up to a multiple of this, so their shape does not depend on the vector width.
PADDING = 16


def call_scan(function: str, tensors: Mapping[str, Tensor | None], *, groups: int = 1, softplus: bool) -> None:
    """Run `scan_forward` or `scan_backward` of the library.

    Args:
        function: Which.
        tensors: By field of `ScanProblem` in `cpp/problems.h`; z, B, C and their gradients as of `by_event`. The type
            of u decides that of the others.
        groups: The first axis of dB and dC.
        softplus: Whether delta, with its bias, goes through softplus.
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    numbers = dict(
        zip(("batch", "length", "channels", "states"), (*given["u"].shape, given["A"].shape[1]), strict=True)
    )
    for field, name in (("z", "z"), ("weights", "B"), ("dz", "dz")):
        numbers[f"{field}_event"] = distance(given[name]) if name in given else 0
    numbers["dweights_event"] = distance(given["dB"][0]) if "dB" in given else 0
    numbers |= {"interval": INTERVAL, "groups": groups, "softplus": softplus}
    call(function, {**numbers, "narrow": are_narrow(given["u"])}, given)


def groups_of(u: Tensor) -> int:
    """Return the parts of a row's channels in backward: twice as many tasks as threads if there are fewer rows."""
    batch, _, channels = u.shape
    return max(1, min(-(-channels // PADDING), -(-2 * torch.get_num_threads() // max(batch, 1))))


def kept_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Return the shape of the states that forward keeps for backward."""
    batch, length, channels = u.shape
    return batch, -(-length // INTERVAL), A.shape[1], -(-channels // PADDING) * PADDING


def _inputs(problem: ScanProblem) -> dict[str, Tensor | None]:
    """Return the inputs of events in bfloat16 if all of them are, else in float32, and all else in float32."""
    given = {name: x for name, x in problem._asdict().items() if not isinstance(x, bool)}
    events = ("u", "delta", "z", "B", "C")
    kept = events if are_narrow(*(given[name] for name in events)) else ()
    for name, x in given.items():
        if isinstance(x, Tensor) and x.is_floating_point() and name not in kept:
            given[name] = x.float()
    return contiguous(**given)


def _forward(problem: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _inputs(problem)
    u = inputs["u"]
    assert u is not None
    y, last, kept = new_outputs(u, state_shape(problem), kept_shape(u, problem.A) if keep else None)
    if u.shape[2] % PADDING:
        # Builds with narrow vectors do not write all of the padding, and results of an op are compared.
        kept.zero_()
    results = {"y": y, "last_state": last, "kept_states": kept if keep else None}
    call_scan("scan_forward", {**inputs, **results}, softplus=problem.delta_softplus)
    return y.to(problem.u.dtype), last, kept


def _backward(problem: ScanProblem, kept: Tensor, dy: Tensor | None, dlast: Tensor | None) -> list[Tensor]:
    inputs = _inputs(problem)
    u, z, A = inputs["u"], inputs["z"], problem.A
    assert u is not None
    inputs |= contiguous(kept_states=kept, dy=None if dy is None else dy.to(u.dtype), dlast_state=dlast)
    batch, length, channels = u.shape
    states, groups = A.shape[1], groups_of(u)
    du, ddelta, dz = empty_like(u, u, z)
    dA, dinitial = (new_states(u, (batch, channels, states)) for _ in range(2))
    dD, dbias = (new_states(u, (batch, channels)) for _ in range(2))
    # Each group has its own dB and dC.
    dB, dC = (new_states(u, (groups, batch, length, states)) for _ in "BC")
    results = {"du": du, "ddelta": ddelta, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dinitial_state": dinitial}
    results |= {"ddelta_bias": dbias} | ({} if z is None else {"dz": dz})
    call_scan("scan_backward", {**inputs, **results}, groups=groups, softplus=problem.delta_softplus)
    dB, dC = (x[0] if groups == 1 else x.sum(0) for x in (dB, dC))
    found = [du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dz, dbias.sum(0)]
    return [
        *(torch.empty(0) if x is None else dx.to(x.dtype) for x, dx in zip(problem[:8], found, strict=True)),
        dinitial,
    ]


# Same as `selective_scan` in float32 on CPU, of inputs in float32 or bfloat16, with bias, softplus, skip, gate, padding
# and starts in one pass.
scan_compiled = differentiable_scan(
    ScanProblem,
    "selective_scan",
    _forward,
    _backward,
    state_shape,
    lambda problem: kept_shape(problem.u, problem.A),
    device_types="cpu",
    label="compiled",
)
