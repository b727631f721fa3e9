"""The shifted sum against torch's convolution, and what a causal convolution must not see."""

import pytest
import torch

from seqrec.ops import causal_conv1d
from seqrec.ops.causal_conv1d import causal_conv1d_reference


def make_inputs(batch=2, length=9, channels=5, taps=4):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, length, channels), (channels, taps), (channels,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_the_reference(length, taps, with_bias):
    inputs = make_inputs(length=length, taps=taps)[: 3 if with_bias else 2]
    results = []
    for convolve in (causal_conv1d, causal_conv1d_reference):
        out = convolve(*inputs)
        gradients = torch.autograd.grad(out.sin().sum(), inputs)
        results.append((out, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_outputs_ignore_future_events():
    x, weight, bias = make_inputs()
    changed = x.detach().clone()
    changed[:, 5:] += 1
    before, after = causal_conv1d(x, weight, bias), causal_conv1d(changed, weight, bias)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_output_sees_as_many_events_as_taps():
    x, weight, bias = make_inputs(taps=3)
    (dx,) = torch.autograd.grad(causal_conv1d(x, weight, bias)[0, 6].sum(), x)
    assert dx[0].abs().sum(1).nonzero().flatten().tolist() == [4, 5, 6]
    assert not dx[1].any()


def test_no_rows():
    x, weight, bias = make_inputs(batch=0)
    assert causal_conv1d(x, weight, bias).shape == x.shape


def test_a_nan_stays_in_its_row():
    x, weight, bias = (value.detach() for value in make_inputs())
    clean = causal_conv1d(x, weight, bias)
    x[1, 3] = float("nan")
    assert torch.equal(causal_conv1d(x, weight, bias)[0], clean[0])
