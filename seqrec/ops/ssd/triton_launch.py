"""Cut the Triton scan between programs, and launch its kernels, which are imported at first use.

Few rows and heads leave most of a GPU idle, so events are cut into runs: (1) each run's last state from a zero state,
(2) from those, one run after another, the state before each, (3) each run again from its true first state. Backward is
the same against time. With enough rows and heads a row is one run, and each way one kernel.
Letters as in `ssd_scan`; S events of a chunk, K chunks, R runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec.ops.block_sizes import block_sizes
from seqrec.ops.problems import at_least_float32, empty_like, moved, with_gate_and_padding
from seqrec.ops.scans import differentiable_scan, new_outputs, new_parts, new_states, sum_parts
from seqrec.ops.ssd.reference import SsdProblem, ssd_reference, state_shape
from seqrec.ops.triton_support import DEVICES, dot_precision, launching_on, power_of_two, programs_at_once

# Most states: the tiles of more do not fit into a multiprocessor's shared memory.
MAX_STATES = 512
TOO_MANY_STATES = f"more than {MAX_STATES} states"
# The smallest side of a matrix product.
LEAST = 16
CARRY_BLOCK = 256


def kernels() -> Any:
    """Import the kernels."""
    from seqrec.ops.ssd import triton_kernels

    return triton_kernels


class Cut(NamedTuple):
    """The cut of a problem between programs.

    Attributes:
        events: Events of a chunk, a power of two.
        block_p: Width of a program, a power of two.
        block_n: States, rounded up to a power of two.
        blocks: Blocks of a head's width.
        chunks: Chunks of a row's events.
        run_chunks: Chunks of a run.
        runs: Runs of a row's events.
    """

    events: int
    block_p: int
    block_n: int
    blocks: int
    chunks: int
    run_chunks: int
    runs: int

    def constants(self, problem: SsdProblem, warps: int) -> dict[str, Any]:
        """Return the arguments of a kernel that are constant when it is compiled."""
        blocks = {"S": self.events, "BLOCK_P": self.block_p, "BLOCK_N": self.block_n}
        more = {"SOFTPLUS": problem.delta_softplus, "PRECISION": dot_precision(), "num_warps": warps}
        # No loads are pipelined: their buffers would take the memory of further programs.
        return {**blocks, **more, "num_stages": 1}


def cut(problem: SsdProblem, programs: int) -> Cut:
    """Cut a problem into about as many programs as run at the same time.

    Runs cost each event a second pass, so a row has only one if rows, heads and blocks alone fill half of the room.

    Args:
        problem: Not empty.
        programs: Room on the device.
    """
    (batch, length, heads, width), states = problem.x.shape, problem.B.shape[3]
    sizes, block_n = block_sizes("ssd", problem.x.device, states), power_of_two(states, LEAST)
    block_p = max(min(power_of_two(width), sizes["widest"], sizes["tile"] // block_n), LEAST)
    events = chunk_events(length, states, sizes)
    blocks, chunks = -(-width // block_p), -(-length // events)
    run_chunks = -(-chunks // max(programs // (batch * heads * blocks), 1))
    return Cut(events, block_p, block_n, blocks, chunks, run_chunks, -(-chunks // run_chunks))


def chunk_events(length: int, states: int, sizes: Mapping[str, int]) -> int:
    """Return the events of a chunk, a power of two, for the block sizes of `block_sizes`."""
    return max(min(sizes["chunk"], 2 * sizes["tile"] // power_of_two(states), power_of_two(length)), LEAST)


def _forward(problem: SsdProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, L, H, P), the last state (B, H, P, N) and, if `keep`, those before chunks (B, K, H, P, N)."""
    x, delta, A, B, C, D, z, bias, _, initial_state, valid, start = p = _prepared(problem)
    y, last, kept = new_outputs(x, state_shape(p), _kept_shape(p) if keep else None)
    blocks = block_sizes("ssd", x.device, B.shape[3])
    way = cut(p, programs_at_once(x.device, blocks["forward_programs"]))
    constants, grid = way.constants(p, blocks["forward_warps"]), (_programs(p, way),)
    sizes = (x.shape[1], *_sizes(p), way.runs, way.run_chunks, way.chunks)
    begins = None if initial_state is None else at_least_float32(initial_state)
    with launching_on(x):
        if way.runs > 1:
            part = _Runs(p, way.runs)
            kernels().run_ends[grid](
                *(x, delta, A, B, bias, valid, start, part.ends, part.logs),
                *_strides(x, delta, B),
                *sizes,
                **constants,
            )
            begins = part.carried(begins, against_time=False)
        kernels().outputs[grid](
            *(x, delta, A, B, C, D, z, bias, valid, start, begins, y, last, kept if keep else None),
            *_strides(x, delta, B, C, z),
            *sizes,
            **constants,
        )
    return y, last, kept


def _backward(problem: SsdProblem, kept: Tensor, dy: Tensor | None, dlast: Tensor | None) -> list[Tensor]:
    """Return gradients of x, delta, A, B, C, D, z, delta_bias and initial state; empty if the input is None."""
    x, delta, A, B, C, D, z, bias, _, _, valid, start = p = _prepared(problem)
    dlast = None if dlast is None else dlast.contiguous()
    dy = torch.zeros_like(x, memory_format=torch.contiguous_format) if dy is None else _by_event(dy)
    (batch, length, heads, _), states = x.shape, B.shape[2:]
    blocks = block_sizes("ssd", x.device, B.shape[3])
    way = cut(p, programs_at_once(x.device, blocks["backward_programs"]))
    constants, grid = way.constants(p, blocks["backward_warps"]), (_programs(p, way),)
    sizes = (*_sizes(p), way.runs, way.run_chunks, way.chunks)
    dafter = dlast
    with launching_on(x):
        if way.runs > 1:
            part = _Runs(p, way.runs)
            kernels().run_begins[grid](
                *(delta, A, C, z, dy, bias, valid, start, part.ends, part.logs),
                *_strides(delta, C, z, dy),
                *(length, *sizes),
                **constants,
            )
            dafter = part.carried(dafter, against_time=True)
        dx, dz = empty_like(x, z)
        # Parts by block or program: their sums have a fixed order, which atomic additions would not.
        ddelta = new_parts(delta, way.blocks)
        dB, dC = (new_parts(each, way.blocks * heads // states[0]) for each in (B, C))
        sums, dfirst = (new_states(x, shape) for shape in ((3, batch * way.runs * way.blocks, heads), state_shape(p)))
        kernels().gradients[grid](
            *(x, delta, A, B, C, D, z, bias, valid, start, kept, dy, dafter),
            *(dx, ddelta, dB, dC, dz, sums, dfirst),
            *_strides(x, delta, B, C, z, dy),
            *(batch, length, *sizes),
            **constants,
        )
    ddelta, dB, dC = (sum_parts(*each) for each in ((ddelta, delta), (dB, B), (dC, C)))
    dA, dD, dbias = (
        x.new_empty(0) if given is None else each.sum(0).to(given.dtype)
        for given, each in zip((A, D, bias), sums, strict=True)
    )
    return [dx, ddelta, dA, dB, dC, dD, dz, dbias, dfirst]


def _kept_shape(problem: SsdProblem) -> tuple[int, ...]:
    """Return the shape of the kept states (B, K, H, P, N)."""
    (batch, length, heads, width), states = problem.x.shape, problem.B.shape[3]
    events = chunk_events(length, states, block_sizes("ssd", problem.x.device, states))
    return batch, -(-length // events), heads, width, states


def _programs(problem: SsdProblem, way: Cut) -> int:
    return problem.x.shape[0] * problem.x.shape[2] * way.runs * way.blocks


def _sizes(problem: SsdProblem) -> tuple[int, ...]:
    """Return heads, width, groups and states."""
    return *problem.x.shape[2:], *problem.B.shape[2:]


def _prepared(problem: SsdProblem) -> SsdProblem:
    """Lay tensors out as kernels read them, and make flags bytes."""
    ready = {}
    for name, value in problem._asdict().items():
        if not isinstance(value, Tensor):
            ready[name] = value
        elif value.dtype == torch.bool:
            ready[name] = value.contiguous().view(torch.uint8)
        else:
            ready[name] = _by_event(value) if name in ("x", "delta", "B", "C", "z") else value.contiguous()
    return SsdProblem(**ready)


def _by_event(value: Tensor) -> Tensor:
    """Return a tensor (B, L, ..) whose events are contiguous: a part of a wider tensor is read where it is."""
    return value if value.shape[:2].numel() and value[0, 0].is_contiguous() else value.contiguous()


def _strides(*tensors: Tensor | None) -> list[int]:
    """Return the distances between rows and between events of each tensor; 0 for None."""
    return [stride for each in tensors for stride in ((0, 0) if each is None else each.stride()[:2])]


class _Runs:
    """Results of each run by itself: last states (B, R, H, P, N) and the sums of logarithms of decays (B, R, H)."""

    def __init__(self, problem: SsdProblem, runs: int) -> None:
        batch, *state = state_shape(problem)
        self.ends = new_states(problem.x, (batch, runs, *state))
        self.logs = new_states(problem.x, (batch, runs, state[0]))

    def carried(self, state: Tensor | None, against_time: bool) -> Tensor:
        """Return the state before each run (B, R, H, P, N) from the first one (B, H, P, N); None is zero."""
        batch, runs, heads, *size = self.ends.shape
        begins, numbers = torch.empty_like(self.ends), size[0] * size[1]
        kernels().carry[(batch * -(-heads * numbers // CARRY_BLOCK),)](
            *(self.ends, self.logs, state, begins, heads, numbers, runs),
            REVERSE=against_time,
            BLOCK=CARRY_BLOCK,
        )
        return begins


_scan = differentiable_scan(
    SsdProblem, "ssd_triton", _forward, _backward, state_shape, _kept_shape, device_types=DEVICES, label="triton"
)


def ssd_triton(problem: SsdProblem) -> tuple[Tensor, Tensor]:
    """Compute `ssd_scan` in float32 on a GPU, with everything in the same pass; memory grows with L / 64 states.

    Inputs may have 16 bits.
    """
    if not problem.x.numel() or not problem.B.numel():
        # No kernel can be launched for empty tensors.
        return with_gate_and_padding(ssd_reference)(moved(problem, torch.float32))
    return _scan(problem)
