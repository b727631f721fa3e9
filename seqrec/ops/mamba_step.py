"""One further event of a Mamba mixer, from its input to its output.

Letters: B batch, M model width, E channels, N states per channel, W taps of the convolution, R rank of step sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import call, compiled_backend, contiguous
from seqrec.ops.problems import wants_gradient
from seqrec.ops.selective_scan import selective_scan_step

__all__ = ["MAMBA_STEP_BACKENDS", "MambaStepProblem", "SlabRows", "mamba_step"]


@dataclass(frozen=True)
class SlabRows:
    """One tensor of a state, whose rows are some of a slab's: `mamba_step` reads them in place and writes others.

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


class MambaStepProblem(NamedTuple):
    """Input, weights and state of a mixer; a backend does not check them.

    Attributes:
        x: (B, M) input.
        in_weight: (2 E, M), the path and then the gate.
        conv_weight: (E, W).
        conv_bias: (E,).
        scan_weight: (R + 2 N, E), step sizes, B and C.
        delta_weight: (E, R).
        delta_bias: (E,).
        A_log: (E, N), log of -A.
        D: (E,) skip weights.
        out_weight: (M, E).
        inputs: (B, W - 1, E), the last inputs of the convolution, the newest last.
        state: (B, E, N) of the scan; of rows of a slab if `inputs` are, with the same numbers.
    """

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    scan_weight: Tensor
    delta_weight: Tensor
    delta_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_weight: Tensor
    inputs: Tensor | SlabRows
    state: Tensor | SlabRows


# Output (B, M), and `inputs` and `state` after the event.
Stepped = tuple[Tensor, Tensor | SlabRows, Tensor | SlabRows]


def mamba_step(problem: MambaStepProblem, *, backend: str = "auto") -> Stepped:
    """Compute one further event per row of a Mamba mixer (Gu & Dao 2023, figure 3): its output and its state.

    In-projection, causal convolution with SiLU, step sizes, B and C, one update of the scan, gate and out-projection.
    The operations of one event are so small that starting each would take longer than computing it.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on a CPU, without gradients: all of it in one call.
    - "reference": plain torch, any device and dtype, with gradients.

    Args:
        problem: What to compute.
        backend: A name above, or "auto": the environment variable SEQREC_MAMBA_STEP_BACKEND if set, else the first that
            can compute this.

    Returns:
        The output (B, M), the last inputs (B, W - 1, E) and the state (B, E, N): new tensors, or the given rows of
        slabs, which are written.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.
    """
    unusual = {
        "gradients": wants_gradient(problem),
        "compilation": torch.compiler.is_compiling(),
        "autocast": torch.is_autocast_enabled(problem.x.device.type),
    }
    given = tuple(name for name, holds in unusual.items() if holds)
    stepped: Stepped = MAMBA_STEP_BACKENDS.run(
        problem, backend, exported=mamba_step_reference, given=given, precise=False
    )
    return stepped


def mamba_step_reference(problem: MambaStepProblem) -> Stepped:
    """Compute `mamba_step` in plain torch."""
    p, slabs = problem, [x for x in (problem.inputs, problem.state) if isinstance(x, SlabRows)]
    if slabs:
        gathered = [each.slab.index_select(0, each.before) for each in slabs]
        out, *after = mamba_step_reference(p._replace(inputs=gathered[0], state=gathered[1]))
        for each, x in zip(slabs, after, strict=True):
            each.slab.index_copy_(0, each.after, cast("Tensor", x))
        return out, p.inputs, p.state
    rank, num_states = p.delta_weight.shape[1], p.A_log.shape[1]
    inputs, before = cast("Tensor", p.inputs), cast("Tensor", p.state)
    path, gate = F.linear(p.x, p.in_weight).chunk(2, dim=-1)
    seen = torch.cat([inputs, path.unsqueeze(1).to(inputs.dtype)], 1)
    u = F.silu((seen * p.conv_weight.t()).sum(1) + p.conv_bias).to(path.dtype)
    dt, B, C = torch.split(F.linear(u, p.scan_weight), [rank, num_states, num_states], dim=-1)
    delta, A = F.linear(dt, p.delta_weight), -torch.exp(p.A_log.float())
    mixed, state = selective_scan_step(
        u, delta, A, B, C, before, p.D, gate, p.delta_bias, delta_softplus=True, check=False
    )
    return F.linear(mixed, p.out_weight), seen[:, 1:], state


def mamba_step_compiled(problem: MambaStepProblem) -> Stepped:
    """Compute `mamba_step` in float32 on CPU by the compiled library, without gradients."""
    p, out = problem, torch.empty_like(problem.x, memory_format=torch.contiguous_format)
    tensors = contiguous(**{name: x for name, x in p._asdict().items() if isinstance(x, Tensor)})
    strides: dict[str, int] = {}
    after: list[Tensor | SlabRows] = []
    for name, x in (("inputs", p.inputs), ("state", p.state)):
        if isinstance(x, SlabRows):
            tensors |= {name: x.slab, f"next_{name}": x.slab, "rows": x.before, "next_rows": x.after}
            strides[f"{name}_stride"] = x.slab.stride(0)
            after.append(x)
        else:
            new = torch.empty_like(x, memory_format=torch.contiguous_format)
            tensors[f"next_{name}"] = new
            strides[f"{name}_stride"] = new.stride(0)
            after.append(new)
    sizes = {
        "batch": p.x.shape[0],
        "width": p.x.shape[1],
        "channels": p.A_log.shape[0],
        "states": p.A_log.shape[1],
        "taps": p.conv_weight.shape[1],
        "rank": p.delta_weight.shape[1],
    }
    if p.x.shape[0]:
        call("mamba_step", {**sizes, **strides}, {**tensors, "out": out})
    return out, after[0], after[1]


MAMBA_STEP_BACKENDS: Backends[Callable[[MambaStepProblem], Stepped]] = Backends(
    "step of a Mamba mixer",
    "SEQREC_MAMBA_STEP_BACKEND",
    [
        compiled_backend(mamba_step_compiled, frozenset({"gradients", "compilation", "autocast"})),
        Backend("reference", mamba_step_reference),
    ],
)
