"""State-space-dual scan of Mamba-2. Shapes: B batch, L events, H heads, P head width, G groups, N states."""

from __future__ import annotations

from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.cuda_packages import package_backend
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.ssd.chunked import ssd_chunked
from seqrec.ops.ssd.compiled import ssd_compiled
from seqrec.ops.ssd.cuda_package import PLAIN_STEPS, missing, ssd_mamba_ssm
from seqrec.ops.ssd.reference import Ssd, SsdProblem, check_operands, ssd_exported, ssd_reference, ssd_step
from seqrec.ops.ssd.triton_launch import MAX_STATES, TOO_MANY_STATES, kernels, ssd_triton
from seqrec.ops.triton_support import LOW_PRECISION, triton_backend

__all__ = ["SSD_BACKENDS", "ssd_scan", "ssd_step"]

# In the order in which "auto" prefers them.
SSD_BACKENDS: Backends[Ssd] = Backends(
    "ssd scan",
    "SEQREC_SSD_BACKEND",
    [
        package_backend(
            "mamba_ssm", with_gate_and_padding(ssd_mamba_ssm), missing, unsupported_args={"start", PLAIN_STEPS}
        ),
        compiled_backend(with_gate_and_padding(ssd_compiled)),
        Backend("chunked", with_gate_and_padding(ssd_chunked)),
        triton_backend(ssd_triton, kernels, frozenset({TOO_MANY_STATES}), narrow=LOW_PRECISION),
        Backend("reference", with_gate_and_padding(ssd_reference)),
    ],
)


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute Mamba-2's recurrence with one decay per head (Transformers are SSMs: Generalized Models and Efficient
    Algorithms Through Structured State Space Duality, Dao & Gu 2024, sections 5 and 6).

    With step = delta + delta_bias, through softplus if asked, and the state h a (P, N) matrix of each head:
    `h_t = exp(step_t A) h_{t-1} + step_t x_t B_t^T`, `y_t = (h_t C_t + D x_t) * silu(z_t)`.
    This is `selective_scan` with the same A for all states and channels of a head, which makes it possible to compute
    whole chunks by matrix products. Causal, padding and precision as there: right padding never reaches a valid
    position, `valid` masks it in the last state, and the recurrence runs in float32 at least, also under autocast.

    Backends, in the order in which "auto" prefers them; all give the same values and gradients:

    - "mamba_ssm": the Triton kernels of that package, float32 on CUDA, for states that fade (A negative, steps through
      softplus), no `start`. An extra that users install. Its matrix products are TF32, so it counts as missing
      unless `torch.set_float32_matmul_precision` allows that, or the environment variable TRITON_F32_DEFAULT=ieee
      makes them exact; and under `torch.use_deterministic_algorithms`. After a step so large that the state fades
      at once, the decays of the same chunk lose digits.
    - "cpp": compiled library (`seqrec.ops.compiled_library`), float32 on CPU; matrix products inside chunks.
    - "chunked": plain torch, any device, float32 and float64; matrix products inside chunks.
    - "triton": kernels for float32 on CUDA, up to 512 states, with gate, skip, softplus and padding in the same pass.
      Reads and writes 16-bit inputs without a cast.
      Forward takes at most three launches, backward three and the sums of its parts. A product of float32 is three
      TF32 products (an error of about 2^-22 of a factor), or a single one if `torch.set_float32_matmul_precision`
      allows that. "auto" does not take it, because it has no times on a GPU yet: the interpreter compares it with the
      reference.
    - "reference": sequential, for tests; the only one with second derivatives. Never "auto".

    float16 and bfloat16 are computed in float32, with states in float32. While `torch.export` traces, "auto" is plain
    torch, whatever the environment variable.

    Args:
        x: (B, L, H, P) inputs.
        delta: (B, L, H) step sizes before bias and softplus.
        A: (H,), negative for a state that fades.
        B: (B, L, G, N) input weights of each group; G divides H, and H / G consecutive heads share a group.
        C: (B, L, G, N) output weights of each group.
        D: (H,) skip weights or None.
        z: (B, L, H, P) gate or None.
        delta_bias: (H,) or None.
        delta_softplus: Whether step sizes go through softplus.
        initial_state: (B, H, P, N) state before the first event; None is zero.
        return_last_state: Whether to return the state after the last event too. It has a gradient.
        valid: (B, L) bool, True at events, False at padding, which may be anywhere. The state passes through padding
            unchanged, y is 0 there, and the contents of the inputs there have no effect. None is True everywhere.
        start: (B, L) bool, True where a new history begins (packed rows), also at padding: the state before it
            counts as zero. None is False everywhere.
        backend: A name above, or "auto": the environment variable SEQREC_SSD_BACKEND if set, else the first
            that can compute this.

    Returns:
        y (B, L, H, P) in x's dtype; with `return_last_state` also h_L (B, H, P, N) in the recurrence's dtype.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this, or an argument's shape, device or dtype
            does not fit.

    Example:
        >>> import torch
        >>> from seqrec.ops import ssd_scan
        >>> x, ones = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
        >>> y = ssd_scan(x, torch.ones(1, 3, 1), -torch.log(torch.tensor([2.0])), ones, ones)
        >>> [round(float(value), 4) for value in y.flatten()]  # The state halves with each event.
        [1.0, 0.5, 0.25]
    """
    problem = SsdProblem(*(x, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, valid, start))
    check_operands(problem._asdict(), "B, L")
    unusual = [] if delta_softplus else [PLAIN_STEPS]
    unusual += [TOO_MANY_STATES] if B.shape[-1] > MAX_STATES else []
    y, last = SSD_BACKENDS.compute(problem, backend, exported=ssd_exported, unusual=unusual)
    return (y, last) if return_last_state else y
