"""Parts that the mixers' ops share: the choice of a backend, and how torch calls the compiled one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import differentiable, schema_arguments
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend, distance
from seqrec.ops.linear import weight_gradient
from seqrec.ops.problems import wants_gradient

Mixer = Callable[[Any], Tensor]
# Output, and what backward needs.
Buffers = tuple[Tensor, ...]


def mixer_backends(op: str, variable: str, compiled: Mixer, reference: Mixer) -> Backends[Mixer]:
    """Return the backends of a mixer: the compiled library, and the ops that it consists of."""
    unsupported = frozenset({"autocast", "chosen parts"})
    return Backends(op, variable, [compiled_backend(compiled, unsupported), Backend("reference", reference)])


def gradient_of(dout: Tensor, x: Tensor) -> Tensor:
    """Return `weight_gradient` for outputs (B, L, E) and inputs (B, L, D), laid out as of `by_event`."""
    return weight_gradient(*(y.as_strided((y.shape[:2].numel(), y.shape[2]), (distance(y), 1)) for y in (dout, x)))[0]


def run_mixer(
    problem: Any, wanted: str, backends: Backends[Mixer], reference: Mixer, parts: Sequence[Backends[Any]]
) -> Tensor:
    """Compute a mixer in the dtype of its input, or in that of autocast.

    Args:
        problem: Named tuple of tensors, of which the first is the input.
        wanted: Name of a backend, or "auto".
        backends: Those of the mixer.
        reference: What `torch.export` traces.
        parts: Backends of the ops that the reference consists of. If the user chose others than "cpp" by their
            environment variables, "auto" obeys.
    """
    unusual = {
        "autocast": torch.is_autocast_enabled(problem.x.device.type),
        "chosen parts": any(os.environ.get(part.variable) not in (None, "", "auto", "cpp") for part in parts),
    }
    given = tuple(name for name, holds in unusual.items() if holds)
    out: Tensor = backends.run(problem, wanted, exported=reference, given=given, precise=False)
    return out


def compiled_mixer(
    name: str,
    problem_class: Any,
    allocate: Callable[[Any, bool], Buffers],
    num_buffers: int,
    forward: Callable[..., object],
    backward: Callable[..., list[Tensor]],
    reference: Mixer,
) -> Mixer:
    """Make the backend "cpp" of a mixer, which torch can differentiate and compile.

    Args:
        name: Name of its ops.
        problem_class: Class of its problems, named tuples of tensors.
        allocate: Maps a problem, and whether backward follows, to `Buffers`.
        num_buffers: How many buffers that are.
        forward: Fills the buffers of a problem.
        backward: Maps the gradient of the output, a problem and its buffers but the first, to the gradients of the
            problem's tensors.
        reference: Computes problems without events.
    """
    fields, count = schema_arguments(problem_class), len(problem_class._fields)
    results = ", ".join(["Tensor"] * num_buffers)

    def run_forward(*inputs: Any) -> Buffers:
        *tensors, keep = inputs
        problem = problem_class(*(x.contiguous() for x in tensors))
        buffers = allocate(problem, keep)
        forward(problem, *buffers)
        return buffers

    def run_backward(dout: Tensor, saved: list[Tensor]) -> list[Tensor]:
        problem = problem_class(*(x.contiguous() for x in saved[:count]))
        return backward(dout.contiguous(), problem, *saved[count:])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
        ctx.save_for_backward(*inputs[:-1], *output[1:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, backward: Any, dout: Tensor, *of_buffers: None) -> tuple[Tensor | None, ...]:
        return *backward(dout, list(ctx.saved_tensors)), None

    run = differentiable(
        name,
        run_forward,
        run_backward,
        schemas=(f"({fields}, bool keep) -> ({results})", "(Tensor dout, Tensor[] saved) -> Tensor[]"),
        device_types="cpu",
        new_outputs=lambda *inputs: allocate(problem_class(*inputs[:-1]), inputs[-1]),
        new_gradients=lambda dout, saved: [torch.empty_like(x) for x in saved[:count]],
        setup_context=setup_context,
        differentiate=differentiate,
        refusal="the compiled mixer has no second derivative; use backend='reference' for it",
    )

    return lambda p: run(*p, wants_gradient(p))[0] if p.x.numel() else reference(p)
