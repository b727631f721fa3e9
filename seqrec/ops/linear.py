"""Linear maps, which are most of the work of an encoder and of a softmax over the catalogue.

N rows (of any leading shape), D inputs, E outputs.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.backends import MIXED_DTYPES, Backend, Backends
from seqrec.ops.compiled_library import call, load_error
from seqrec.ops.export import is_exporting

__all__ = ["LINEAR_BACKENDS", "add_product", "linear", "weight_gradient"]

# Most parts into which the rows of a weight's gradient are split among threads, and the fewest rows of a part. Fixed:
# results do not depend on the number of threads.
PARTS, PART_ROWS = 16, 128
# Smaller products, in multiplications, take longer in oneDNN, which starts in 12 us instead of 3.
LEAST_WORK = 1 << 20
# Most numbers of a product that oneDNN adds to a tensor: it makes one of its own first, which costs more than it saves
# once it leaves the cache.
MOST_ADDED = 1 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Return `x @ weight.T + bias`, with gradients and second derivatives.

    Backends, in the order in which "auto" prefers them:

    - "onednn": oneDNN as it comes with torch, float32 on x86 CPUs. It uses AVX-512 on any of them. torch itself calls
      MKL, which does not on AMD's and takes 2.3 times as long there. Not in autocast or `torch.compile`.
    - "reference": `torch.nn.functional.linear`, any device and dtype; also for products below 2^20 multiplications.

    Args:
        x: (..., D).
        weight: (E, D), with any strides.
        bias: (E,); None adds nothing.
        backend: A name above, or "auto": the environment variable SEQREC_LINEAR_BACKEND if set, else the first that
            can compute this.

    Returns:
        (..., E).

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.

    Example:
        >>> import torch
        >>> from seqrec.ops import linear
        >>> linear(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([0.5, 0.0])).tolist()
        [[1.5, 2.0]]
    """
    if backend == "auto" and (torch.compiler.is_compiling() or is_exporting() or x.numel() * len(weight) < LEAST_WORK):
        return F.linear(x, weight, bias)
    given = ("autocast",) if torch.is_autocast_enabled(x.device.type) else ()
    problem = LinearProblem(x, weight, bias)
    out: Tensor = LINEAR_BACKENDS.run(problem, backend, exported=linear_reference, given=given, precise=False)
    return out


def weight_gradient(gradient: Tensor, x: Tensor, *, bias: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return `gradient.T @ x` (E, D) and sums over rows (E,), the gradients of `linear`'s weight and bias.

    float32 on a CPU is computed by the compiled library, in blocks of rows, which takes about half as long as torch.
    Sums are added in an order that does not depend on the number of threads. Has no gradient of its own.

    Args:
        gradient: (N, E) gradient of the outputs.
        x: (N, D) inputs.
        bias: Whether to compute the sums; else None.
    """
    rows, outputs, inputs = *gradient.shape, x.shape[1]
    compiled = x.device.type == "cpu" and x.dtype == gradient.dtype == torch.float32 and load_error() is None
    if not compiled or rows * outputs * inputs < LEAST_WORK:
        return gradient.T @ x, gradient.sum(0) if bias else None
    operands = {"dout": gradient, "x": x}
    operands = {name: each if each.stride(1) == 1 else each.contiguous() for name, each in operands.items()}
    parts = max(1, min(PARTS, rows // PART_ROWS))
    dweight = x.new_empty(parts, outputs, inputs)
    dbias = x.new_empty(parts, outputs) if bias else None
    sizes = {"rows": rows, "outputs": outputs, "inputs": inputs, "parts": parts}
    strides = {f"{name}_row": each.stride(0) for name, each in operands.items()}
    call("weight_gradient", {**sizes, **strides}, {**operands, "dweight": dweight, "dbias": dbias})
    return dweight.sum(0), None if dbias is None else dbias.sum(0)


def add_product(out: Tensor, x: Tensor, y: Tensor) -> None:
    """Add `x.T @ y` (E, D) to `out`, in place and in its type, for x (N, E) and y (N, D). It has no gradient."""
    eager = x.numel() and out.numel() <= MOST_ADDED and not torch.compiler.is_compiling()
    if (
        eager
        and LINEAR_BACKENDS.choose("auto", y.device.type, y.dtype).name == "onednn"
        and _fault("_transposed_product") is None
    ):
        out += _transposed_product(x, y)
    elif out.dtype == x.dtype:
        out.addmm_(x.T, y)
    else:
        out += x.T @ y


class LinearProblem(NamedTuple):
    """Input of a backend; see `linear` for each argument."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None


def linear_reference(problem: LinearProblem) -> Tensor:
    """Compute `linear` by torch."""
    return F.linear(*problem)


def linear_onednn(problem: LinearProblem) -> Tensor:
    """Compute `linear` by oneDNN."""
    if not torch.is_grad_enabled():
        return _product(*problem)
    out: Tensor = _Linear.apply(*problem)  # type: ignore[no-untyped-call]
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # The operation that torch's own compiler writes for a linear layer.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _transposed_product(x: Tensor, y: Tensor) -> Tensor:
    # oneDNN's gradient of a linear layer's weight. The third argument gives its shape, the last leaves out a bias.
    shape = y.new_empty(x.shape[1], y.shape[1])
    out: Tensor = torch.ops.aten.mkldnn_linear_backward_weights(x.to_mkldnn(), y.to_mkldnn(), shape, False)[0]
    return out


# The private functions of torch that this file calls, and what they compute.
_PRIVATE: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "_product": (_product, F.linear),
    "_transposed_product": (_transposed_product, lambda x, y: x.T @ y),
}


@functools.cache
def _fault(name: str) -> str | None:
    """Return why a function of `_PRIVATE` cannot be used with this torch; None if it computes what it should."""
    function, expected = _PRIVATE[name]
    x, y = torch.arange(6.0).view(2, 3), torch.arange(6.0, 12.0).view(2, 3)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            same = torch.equal(function(x, y), expected(x, y))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"torch {torch.__version__} has another function for products of oneDNN: {error}"
    return None if same else f"torch {torch.__version__} computes something else by its function of oneDNN"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        product = linear_reference if torch.is_grad_enabled() else linear_onednn
        dx = product(LinearProblem(gradient, weight.T)) if to_x else None
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        if torch.is_grad_enabled() or not to_weight:
            return dx, rows.T @ inputs if to_weight else None, rows.sum(0) if to_bias else None
        return (dx, *weight_gradient(rows, inputs, bias=to_bias))


def _missing() -> str | None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "it is for x86 CPUs; on others torch's own products are as fast"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of torch has no oneDNN; take one from pytorch.org"
    return _fault("_product")


LINEAR_BACKENDS: Backends[Callable[[LinearProblem], Tensor]] = Backends(
    "linear maps",
    "SEQREC_LINEAR_BACKEND",
    [
        Backend(
            "onednn",
            linear_onednn,
            "float32 on cpu",
            supports=lambda device, dtype: device == "cpu" and dtype == torch.float32,
            missing=_missing,
            unsupported_args=frozenset({MIXED_DTYPES, "autocast"}),
            extra=True,
        ),
        Backend("reference", linear_reference, supports=lambda device, dtype: dtype.is_floating_point),
    ],
)
