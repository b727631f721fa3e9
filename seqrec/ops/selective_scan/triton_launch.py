"""Cut the Triton scan between programs, and launch its kernels, which are imported at first use.

Few rows and channels leave most of a GPU idle, so events are cut into runs: (1) each run's last state from a zero
state, (2) from those, one run after another, the state before each, (3) each run again from its true first state.
Backward is the same against time. Shapes: B batch, L events, D channels, N states per channel, K chunks, R runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqrec.ops.block_sizes import block_sizes
from seqrec.ops.compiled_library import by_event, distance
from seqrec.ops.problems import at_least_float32, empty_like
from seqrec.ops.scans import differentiable_scan, new_outputs, new_parts, new_states, sum_parts
from seqrec.ops.selective_scan.reference import ScanProblem, state_shape
from seqrec.ops.triton_support import DEVICES, launching_on, power_of_two, programs_at_once

# Events between two states that forward keeps; backward recomputes the states in between.
CHUNK = 32
# Of those, events between two states that backward stores; the ones in between stay in registers.
GROUP = 2
# AMD's compiler has no such option.
FORWARD_REGISTERS = {} if torch.version.hip else {"maxnreg": 128}
CARRY_BLOCK = 128


def kernels() -> Any:
    """Import the kernels."""
    from seqrec.ops.selective_scan import triton_kernels

    return triton_kernels


class Room(NamedTuple):
    """Work that a device does at a time.

    Attributes:
        tile: States of a program.
        programs: Programs that run at the same time.
        widest: Most channels of a program.
    """

    tile: int
    programs: int
    widest: int


def room(device: torch.device, states: int, way: str) -> Room:
    """Return the room on a device for the way "forward" or "backward"; few and large programs in the interpreter."""
    sizes = block_sizes("selective_scan", device, states)
    tile = 1 << 16 if device.type == "cpu" else sizes["tile"]
    return Room(tile, programs_at_once(device, sizes[f"{way}_programs"]), sizes["widest"])


class Cut(NamedTuple):
    """The cut of a problem between programs.

    Attributes:
        block_d: Channels of a program, a power of two.
        block_n: States of a channel, rounded up to a power of two.
        blocks: Blocks of channels.
        chunks: Chunks of a row's events.
        run_chunks: Chunks of a run.
        runs: Runs of a row's events.
    """

    block_d: int
    block_n: int
    blocks: int
    chunks: int
    run_chunks: int
    runs: int


def cut(u: Tensor, A: Tensor, room: Room) -> Cut:
    """Cut a problem into about as many programs as run at the same time.

    Runs cost each event a second pass, so a row has only one if rows and blocks alone fill half of the room.

    Args:
        u: (B, L, D), not empty.
        A: (D, N).
        room: Room on the device.
    """
    batch, length, channels = u.shape
    block_n = power_of_two(A.shape[1])
    block_d = min(power_of_two(channels), room.widest, max(room.tile // block_n, 1))
    blocks, chunks = -(-channels // block_d), -(-length // CHUNK)
    run_chunks = -(-chunks // max(room.programs // (batch * blocks), 1))
    return Cut(block_d, block_n, blocks, chunks, run_chunks, -(-chunks // run_chunks))


def _forward(problem: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, L, D), the last state (B, D, N) and, if `keep`, those before chunks (B, K, N, D), else (0,)."""
    u, delta, A, B, C, D, z, bias, softplus, initial_state, valid, start, _ = _prepared(problem)
    (batch, length, channels), states = u.shape, A.shape[1]
    if u.numel() == 0:
        y, last, kept = new_outputs(u, state_shape(problem), _kept_shape(problem) if keep else None)
        return y, last.zero_() if initial_state is None else last.copy_(initial_state), kept
    way = cut(u, A, room(u.device, states, "forward"))
    begins, distances = _states_first(initial_state), _distances(z, B)
    blocks = {"BLOCK_D": way.block_d, "BLOCK_N": way.block_n, "num_warps": 1, **FORWARD_REGISTERS}
    with launching_on(u):
        if way.runs > 1:
            part = _Runs(u, states, way.runs, start)
            kernels().run_ends[(batch * way.runs * way.blocks,)](
                *(u, delta, A, B, bias, valid, start, part.ends, part.sums, part.cuts, distances[1]),
                *(length, channels, states, way.runs, way.run_chunks * CHUNK),
                SOFTPLUS=softplus,
                **blocks,
            )
            begins = part.carried(A, begins, against_time=False)
        y, last, kept = new_outputs(u, state_shape(problem), _kept_shape(problem) if keep else None)
        kernels().outputs[(batch * way.runs * way.blocks,)](
            *(u, delta, A, B, C, D, z, bias, valid, start, begins, y, last, kept if keep else None),
            *(*distances, length, channels, states, way.runs, way.run_chunks, way.chunks),
            SOFTPLUS=softplus,
            CHUNK=CHUNK,
            **blocks,
        )
    return y, last, kept


def _backward(problem: ScanProblem, kept: Tensor, dy: Tensor | None, dlast: Tensor | None) -> list[Tensor]:
    """Return gradients of u, delta, A, B, C, D, z, delta_bias and initial state; empty if the input is None."""
    u, delta, A, B, C, D, z, bias, softplus, _, valid, start, _ = _prepared(problem)
    (batch, length, channels), states = u.shape, A.shape[1]
    if u.numel() == 0:
        nothing = [u.new_zeros(0 if x is None else x.shape) for x in (u, delta, A, B, C, D, z, bias)]
        dfirst = new_states(u, (batch, channels, states))
        return [*nothing, dfirst.zero_() if dlast is None else dfirst.copy_(dlast)]
    way = cut(u, A, room(u.device, states, "backward"))
    dy, distances = torch.zeros_like(u) if dy is None else dy.contiguous(), _distances(z, B)
    blocks = {"BLOCK_D": way.block_d, "BLOCK_N": way.block_n, "num_warps": 1}
    programs = batch * way.runs * way.blocks
    dafter, dfirst = _states_first(dlast), new_states(u, (batch, channels, states))
    with launching_on(u):
        if way.runs > 1:
            part = _Runs(u, states, way.runs, start)
            kernels().run_begins[(programs,)](
                *(delta, A, C, z, dy, bias, valid, start, part.ends, part.sums, part.cuts),
                *(*distances, length, channels, states, way.runs, way.run_chunks * CHUNK),
                SOFTPLUS=softplus,
                **blocks,
            )
            dafter = part.carried(A, dafter, against_time=True)
        scratch = new_states(u, (programs, CHUNK // GROUP, way.block_n, way.block_d))
        du, ddelta, dz = empty_like(u, delta, z)
        # One part per run or per block: their sums have a fixed order, which atomic additions would not.
        of_weights = ((channels, states), (channels,), (channels,))
        dA, dD, dbias = (new_states(u, (batch * way.runs, *shape)) for shape in of_weights)
        dB, dC = (new_parts(x, way.blocks) for x in (B, C))
        kernels().gradients[(programs,)](
            *(u, delta, A, B, C, D, z, bias, valid, start, kept, dy, dafter, scratch),
            *(du, ddelta, dA, dB, dC, dD, dz, dbias, dfirst),
            *(*distances, length, channels, states, batch, way.runs, way.run_chunks, way.chunks),
            SOFTPLUS=softplus,
            CHUNK=CHUNK,
            GROUP=GROUP,
            **blocks,
        )
    dB, dC = sum_parts(dB, B), sum_parts(dC, C)
    dA, dD, dbias = (u.new_empty(0) if x is None else sum_parts(dx, x) for x, dx in ((A, dA), (D, dD), (bias, dbias)))
    return [du, ddelta, dA, dB, dC, dD, dz, dbias, dfirst]


def _kept_shape(problem: ScanProblem) -> tuple[int, ...]:
    """Return the shape of the kept states (B, K, N, D)."""
    return problem.u.shape[0], -(-problem.u.shape[1] // CHUNK), *problem.A.shape[::-1]


def _prepared(problem: ScanProblem) -> ScanProblem:
    """Make tensors contiguous but for parts of wider ones, and flags bytes, as kernels read them."""
    ready = problem._asdict()
    ready["B"], ready["C"] = by_event(problem.B, problem.C)
    ready["z"] = None if problem.z is None else by_event(problem.z)[0]
    for name, value in ready.items():
        if isinstance(value, Tensor) and name not in ("B", "C", "z"):
            value = value.contiguous()
            ready[name] = value.view(torch.uint8) if value.dtype == torch.bool else value
    return ScanProblem(**ready)


def _distances(z: Tensor | None, B: Tensor) -> tuple[int, int]:
    """Return the numbers from one event to the next of z, and of B and C."""
    return 0 if z is None else distance(z), distance(B)


def _states_first(x: Tensor | None) -> Tensor | None:
    # (B, D, N) as (B, N, D).
    return None if x is None else at_least_float32(x.transpose(1, 2)).contiguous()


class _Runs:
    """Results of each run by itself: last states (B, R, N, D), sums of step sizes (B, R, D), cuts (B, R) or None."""

    def __init__(self, u: Tensor, states: int, runs: int, start: Tensor | None) -> None:
        batch, _, channels = u.shape
        self.ends = new_states(u, (batch, runs, states, channels))
        self.sums = new_states(u, (batch, runs, channels))
        self.cuts = None if start is None else start.new_empty(batch, runs)

    def carried(self, A: Tensor, state: Tensor | None, against_time: bool) -> Tensor:
        """Return the state before each run (B, R, N, D) from the first one (B, N, D); None is zero."""
        batch, runs, states, channels = self.ends.shape
        begins = torch.empty_like(self.ends)
        kernels().carry[(batch * -(-states * channels // CARRY_BLOCK),)](
            *(self.ends, self.sums, self.cuts, A, state, begins, channels, states, runs),
            REVERSE=against_time,
            BLOCK=CARRY_BLOCK,
        )
        return begins


# Same as `selective_scan` in float32 on a GPU, of inputs in float32 or 16 bits, with everything in the same pass.
scan_triton = differentiable_scan(
    ScanProblem,
    "selective_scan_triton",
    _forward,
    _backward,
    state_shape,
    _kept_shape,
    device_types=DEVICES,
    label="triton",
)
