"""Pointwise attention: its equation, blocks against the float64 reference, causality, memory, bad input."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.encoders.layers.gaps import GapBuckets
from seqrec.errors import InputError
from seqrec.ops import pointwise_attention
from seqrec.ops.pointwise_attention import POINTWISE_BACKENDS

# The package offers the function under the same name.
MODULE = importlib.import_module("seqrec.ops.pointwise_attention")
BOUNDARIES = GapBuckets(1).boundaries
every_backend = pytest.mark.parametrize("backend", POINTWISE_BACKENDS.names)


def problem(
    batch: int = 2,
    heads: int = 2,
    length: int = 9,
    width: int = 3,
    distances: int = 4,
    gaps: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = {name: normal(batch, heads, length, width) for name in ("query", "key", "value")}
    found["distances"] = normal(distances)
    if gaps:
        found["gaps"] = normal(len(BOUNDARIES) + 2)
        found["times"] = (2.0 ** (torch.rand(batch, length, generator=generator) * 20)).long().cumsum(1)
        found["boundaries"] = BOUNDARIES
    return found


def outcome(inputs: dict[str, Tensor], backend: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The output and, by fixed weights on it, the gradients of all real inputs."""
    real = {name: x.to(dtype).requires_grad_() for name, x in inputs.items() if x.is_floating_point()}
    out = pointwise_attention(**{**inputs, **real}, backend=backend)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).cos().view(out.shape).to(dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), list(real.values()))]


@every_backend
def test_outputs_are_those_of_the_equation_event_by_event(backend: str):
    inputs = problem()
    found = pointwise_attention(**inputs, backend=backend)
    for t in range(9):
        distance = torch.tensor([min(t - s, 3) for s in range(t + 1)])
        gaps = (inputs["times"][:, t, None] - inputs["times"][:, : t + 1]).double()
        # Two buckets for each doubling; the first two are "no event before" and a gap of 0.
        buckets = torch.where(gaps < 1, 1, 2 + (2 * gaps.clamp_min(1).log2()).floor()).long()
        bias = inputs["distances"][distance] + inputs["gaps"][buckets]
        for head in range(2):
            query, key, value = (inputs[name][:, head] for name in ("query", "key", "value"))
            scores = (query[:, t, None] * key[:, : t + 1]).sum(-1) + bias
            weights = scores / (1 + (-scores).exp())
            torch.testing.assert_close(found[:, head, t], (weights.unsqueeze(-1) * value[:, : t + 1]).sum(1) / (t + 1))


SIZES = {"batch": (0, 3), "heads": (1, 3), "length": (0, 40), "width": (1, 5), "distances": (1, 50), "seed": (0, 99)}


@given(
    st.fixed_dictionaries({name: st.integers(*ends) for name, ends in SIZES.items()} | {"gaps": st.booleans()}),
    st.sampled_from([1, 7, 16, 128]),
)
@settings(max_examples=40, deadline=None)
def test_blocks_have_the_values_and_gradients_of_the_reference(sizes: dict[str, int], block: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "BLOCK_EVENTS", block)
        inputs = problem(**sizes)
        for one, other in zip(outcome(inputs, "blocked"), outcome(inputs, "reference"), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gaps", [False, True])
def test_more_events_than_a_block_agree_in_float32(gaps: bool):
    inputs = problem(length=300, width=8, distances=200, gaps=gaps)
    found, expected = outcome(inputs, "blocked", torch.float32), outcome(inputs, "reference")
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() < 1e-5 * other.abs().max()


@every_backend
def test_no_event_sees_a_newer_one(backend: str):
    inputs = problem(length=6)
    for t in range(1, 6):
        other = {name: x.clone() for name, x in inputs.items()}
        for name in ("query", "key", "value"):
            other[name][:, :, t:] += 1
        other["times"][:, t:] += 100
        after, before = (pointwise_attention(**each, backend=backend) for each in (other, inputs))
        assert torch.equal(after[:, :, :t], before[:, :, :t])
        assert not torch.equal(after[:, :, t], before[:, :, t])


@every_backend
def test_half_precision_and_autocast_are_computed_in_float32(backend: str):
    inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in problem(length=200).items()}
    wide = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
    out = pointwise_attention(**inputs, backend=backend)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, pointwise_attention(**wide, backend=backend).bfloat16())
    expected = outcome(wide, backend, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(wide, backend, torch.float32)
    if backend == "blocked":
        assert all(map(torch.equal, found, expected))
    assert torch.equal(found[0], expected[0])


def test_a_second_derivative_is_refused_but_the_reference_has_one():
    inputs = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in problem(length=4).items()}

    def again(backend: str) -> Tensor:
        loss = pointwise_attention(**inputs, backend=backend).square().sum()
        return torch.autograd.grad(loss, inputs["query"], create_graph=True)[0].sum()

    with pytest.raises(NotImplementedError, match="no second derivative; use backend='reference'"):
        again("blocked").backward()
    again("reference").backward()


@pytest.mark.slow
def test_the_ops_keep_what_torch_compile_asks_for():
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in problem(length=20).values()]
    torch.library.opcheck(torch.ops.seqrec.pointwise_attention_fwd, inputs)
    detached = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.seqrec.pointwise_attention_bwd, (detached[0], *detached))


@torch.no_grad()
def test_an_exported_program_takes_any_number_of_events():
    class Op(torch.nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return pointwise_attention(**inputs)

    length = torch.export.Dim("length")
    free = {name: {2: length} for name in ("query", "key", "value")} | {"times": {1: length}}
    example = problem()
    shapes = {name: free.get(name) for name in example}
    program = torch.export.export(Op(), (example,), dynamic_shapes=(shapes,), strict=False)
    assert not [node for node in program.graph.nodes if "seqrec" in str(node.target)]
    for events in (2, 150):
        inputs = problem(length=events, seed=1)
        torch.testing.assert_close(program.module()(inputs), pointwise_attention(**inputs))


@pytest.mark.process
def test_memory_of_a_training_step_grows_with_events_not_with_their_square():
    """Two heads of 8,000 events, with gaps: L x L weights would be 512 MB, once."""
    script = """
import resource, torch
from seqrec.encoders.layers.gaps import GapBuckets
from seqrec.ops import pointwise_attention
heads = [torch.randn(1, 2, 8000, 8, requires_grad=True) for _ in range(3)]
boundaries = GapBuckets(1).boundaries
tables = [torch.randn(size, requires_grad=True) for size in (300, len(boundaries) + 2)]
times = torch.randint(0, 1000, (1, 8000)).cumsum(1)
def step(length):
    some = [x[:, :, :length] for x in heads]
    seen = {"gaps": tables[1], "times": times[:, :length], "boundaries": boundaries}
    pointwise_attention(*some, tables[0], **seen).sum().backward()
step(300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(8000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * 1024


FOUR = torch.zeros(2, 2, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(2, 5, 4)}, r"query must be \(B, H, L, P\) with H and P of at least 1, got \(2, 5, 4\)"),
        ({"key": torch.zeros(2, 2, 4, 4)}, r"key must be \(2, 2, 5, 4\), got \(2, 2, 4, 4\)"),
        ({"value": FOUR.long()}, "value must be"),
        ({"distances": torch.zeros(0)}, r"distances must be \(R,\) with R of at least 1, got \(0,\)"),
        ({"times": torch.zeros(2, 5).long()}, "gaps, times and boundaries go together: give all of them, or none"),
        (
            {"gaps": torch.zeros(9), "times": torch.zeros(2, 5).long(), "boundaries": BOUNDARIES},
            rf"gaps must be \({len(BOUNDARIES) + 2},\), got \(9,\)",
        ),
        (
            {"gaps": torch.zeros(len(BOUNDARIES) + 2), "times": torch.zeros(2, 5), "boundaries": BOUNDARIES},
            r"times must be \(2, 5\) int64, got \(2, 5\) torch.float32",
        ),
        ({"backend": "fast"}, "backend='fast' is unknown; known: auto, blocked, reference"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Tensor], message: str):
    arguments = {"query": FOUR, "key": FOUR, "value": FOUR, "distances": torch.zeros(3)}
    with pytest.raises(InputError, match=message):
        pointwise_attention(**(arguments | changes))
