"""The mixers of Mamba and Mamba-2 as one op: the compiled one is the one by parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import weights
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops import mamba_mixer as mixers

MAMBA, MAMBA2 = "mamba", "mamba2"
both = pytest.mark.parametrize("name", [MAMBA, MAMBA2])
needs_cpp = pytest.mark.usefixtures("cpp")


def run(problem, backend: str) -> Tensor:
    compute = mixers.mamba_mixer if isinstance(problem, mixers.MambaProblem) else mixers.mamba2_mixer
    return compute(problem, backend=backend)


def make(name: str, B=2, L=40, M=12, E=24, N=5, W=4, R=2, H=3, seed=0):
    """A problem; R is for Mamba alone, H for Mamba-2 alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5

    x, out_weight = draw(B, L, M) * M**0.5, draw(M, E)
    if name == MAMBA:
        inner = (draw(2 * E, M), draw(E, W), draw(E), draw(R + 2 * N, E), draw(E, R), draw(E) * 3)
        return mixers.MambaProblem(x, *inner, -torch.exp(draw(E, N)), draw(E), out_weight)
    E = E // H * H
    convolved = E + 2 * N
    inner = (draw(E + convolved + H, M), draw(convolved, W), draw(convolved), draw(H) * 3)
    inner += (-torch.exp(draw(H)), draw(H), 1 + draw(E))
    return mixers.Mamba2Problem(x, *inner, out_weight[:, :E])


def outcome(problem, backend: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The output and all gradients."""
    problem = problem._make(x.detach().clone().to(dtype).requires_grad_() for x in problem)
    y = run(problem, backend)
    y.backward(weights(y))
    # Without events some gradients are constant.
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in problem._asdict().items()}
    return {"y": y.detach()} | gradients


def assert_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], single: dict[str, Tensor] | None = None
) -> None:
    """Both are equal to 2e-5, or as far apart as some of the same in float32."""
    for name, value in expected.items():
        if value.numel():
            # Sums over all events may cancel to much less than their terms.
            least = 1 if name in ("A", "D", "delta_bias") else 0.1
            error, scale = (actual[name].double() - value).abs().max(), max(value.abs().max(), least)
            rounding = 0 if single is None else (single[name].double() - value).abs().max()
            assert error <= 2e-5 * scale + 4 * rounding, f"{name}: {error} of {scale}, in float32 {rounding}"


@needs_cpp
@both
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    B=st.integers(0, 5),
    L=st.integers(0, 100),
    M=st.integers(1, 40),
    E=st.integers(3, 70),
    N=st.integers(1, 40),
    W=st.integers(1, 6),
    R=st.integers(1, 20),
    H=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_the_float64_reference(name: str, **sizes: int):
    problem = make(name, **sizes)
    before = [x.clone() for x in problem]
    # The norm of few, small numbers enlarges rounding errors.
    double, single = (outcome(problem, "reference", dtype) for dtype in (torch.float64, torch.float32))
    assert_close(outcome(problem, "cpp"), double, single)
    assert all(torch.equal(one, other) for one, other in zip(before, problem, strict=True)), (
        "an argument was written to"
    )


@both
@pytest.mark.parametrize("sizes", [{}, {"B": 1, "L": 300, "M": 64, "E": 128, "N": 32}, {"L": 1, "N": 16}], ids=str)
def test_every_variant_that_runs_here_agrees(variant: None, name: str, sizes: dict[str, int]):
    problem = make(name, **sizes)
    assert_close(outcome(problem, "cpp"), outcome(problem, "reference", torch.float64))


@both
def test_gradients_of_the_reference_are_right(name: str):
    problem = make(name, L=5, M=3, E=4, N=2, H=2, R=1)
    double = [x.double().requires_grad_() for x in problem]
    assert torch.autograd.gradcheck(lambda *x: run(problem._make(x), "reference"), double, fast_mode=True)


@needs_cpp
@both
def test_the_bits_do_not_depend_on_threads_or_on_other_rows(name: str):
    problem, found, before = make(name, B=9, L=150, M=64, E=128, N=32), {}, torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads] = outcome(problem, "cpp")
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        assert all(torch.equal(found[1][key], found[threads][key]) for key in found[1])
    alone = run(problem._replace(x=problem.x[7:8]), "cpp")
    assert torch.equal(alone, found[1]["y"][7:8])


@needs_cpp
@both
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_no_earlier_event_and_no_other_row(name: str, value: float):
    problem = make(name, L=70)
    clean, dirty = run(problem, "cpp"), problem.x.clone()
    dirty[0, 50] = value
    found = run(problem._replace(x=dirty), "cpp")
    assert torch.equal(found[0, :50], clean[0, :50])
    assert torch.equal(found[1], clean[1])
    assert found[0, 50].isnan().all()


@needs_cpp
@both
def test_views_are_read_as_their_values(name: str):
    problem = make(name)
    views = problem._make(torch.stack([x, x], -1)[..., 0] for x in problem)
    assert torch.equal(run(views, "cpp"), run(problem, "cpp"))


@needs_cpp
@both
def test_a_second_derivative_is_refused(name: str):
    problem = make(name)
    x = problem.x.requires_grad_()
    (gradient,) = torch.autograd.grad(run(problem, "cpp").square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="the compiled mixer has no second derivative"):
        gradient.sum().backward()


@needs_cpp
@both
def test_autocast_double_precision_and_chosen_parts_are_for_the_reference(name: str, monkeypatch: pytest.MonkeyPatch):
    problem = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(problem, "auto").dtype == torch.bfloat16
        with pytest.raises(InputError, match="has no autocast"):
            run(problem, "cpp")
    double = problem._make(x.double() for x in problem)
    assert torch.equal(run(double, "auto"), run(double, "reference"))
    monkeypatch.setenv("SEQREC_CONV_BACKEND", "fast")
    with pytest.raises(InputError, match="SEQREC_CONV_BACKEND='fast' is unknown"):
        run(problem, "auto")


@needs_cpp
@both
def test_torch_compile_traces_through_the_kernels(name: str):
    problem, expected = make(name), outcome(make(name), "cpp")
    leaves = [x.requires_grad_() for x in problem]
    compiled = torch.compile(lambda *x: run(problem._make(x), "auto"), backend="aot_eager", fullgraph=True)
    y = compiled(*leaves)
    y.backward(weights(y))
    assert_close({"y": y.detach()} | {key: x.grad for key, x in zip(problem._fields, leaves, strict=True)}, expected)
