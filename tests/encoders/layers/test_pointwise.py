"""HSTU's layer against its paper's equations, event by event; `tests/peers` compares it with RecTools' layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec.encoders.layers import PointwiseAttention
from seqrec.errors import InputError

TIMES = torch.randint(0, 100_000, (3, 7), generator=torch.Generator().manual_seed(0)).cumsum(1)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def of_the_paper(layer: PointwiseAttention, x: Tensor, times: Tensor | None) -> Tensor:
    """Equations 1 to 3 of Zhai et al. 2024, with a query's own time, and the mean over what it sees."""
    heads, width = layer.num_heads, x.shape[2] // layer.num_heads
    u, v, q, k = silu(x @ layer.in_projection.weight.T + layer.in_projection.bias).chunk(4, dim=-1)
    v, q, k = (each.unflatten(2, (heads, width)) for each in (v, q, k))
    rows = []
    for t in range(x.shape[1]):
        total = torch.zeros_like(v[:, 0])
        for s in range(t + 1):
            bias = layer.distances[min(t - s, len(layer.distances) - 1)]
            if times is not None and layer.gaps is not None:
                gap = (times[:, t] - times[:, s]).double()
                # Two buckets for each doubling; the first two are "no event before" and a gap of 0.
                bucket = torch.where(gap < 1, 1, 2 + (2 * gap.clamp_min(1).log2()).floor()).long()
                bias = bias + layer.gaps.weight[bucket]
            total = total + silu((q[:, t] * k[:, s]).sum(-1) + bias).unsqueeze(-1) * v[:, s]
        rows.append((total / (t + 1)).flatten(1))
    mixed = torch.stack(rows, 1)
    scale = (mixed.var(-1, correction=0, keepdim=True) + layer.norm.eps).sqrt()
    normed = (mixed - mixed.mean(-1, keepdim=True)) / scale * layer.norm.weight + layer.norm.bias
    return (normed * u) @ layer.out_projection.weight.T + layer.out_projection.bias


def layer_of(num_heads: int, *, gaps: bool) -> PointwiseAttention:
    torch.manual_seed(0)
    layer = PointwiseAttention(8, num_heads=num_heads, num_distances=4, dropout=0.5)
    if gaps:
        layer.read_gaps(1)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    return layer.double().eval()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_outputs_and_gradients_are_those_of_the_papers_equations(num_heads: int, gaps: bool):
    layer, x = layer_of(num_heads, gaps=gaps), torch.randn(3, 7, 8).double()
    outs = [layer(x, None, (TIMES, TIMES) if gaps else None), of_the_paper(layer, x, TIMES if gaps else None)]
    torch.testing.assert_close(*outs)
    for gradients in zip(
        *(torch.autograd.grad(out.sin().sum(), list(layer.parameters())) for out in outs), strict=True
    ):
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_newest_event_alone_has_the_output_of_the_whole_pass(gaps: bool):
    layer, x, lengths = layer_of(2, gaps=gaps), torch.randn(3, 7, 8).double(), torch.tensor([7, 1, 4])
    times = (TIMES, TIMES) if gaps else None
    expected = layer(x, None, times)[torch.arange(3), lengths - 1].unsqueeze(1)
    torch.testing.assert_close(layer.newest(x, lengths, times), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_streams_of_half_precision_sum_in_float32_as_the_whole_pass_does(autocast: bool):
    layer, lengths = layer_of(2, gaps=True).float(), torch.tensor([200, 200])
    x, moments = torch.randn(2, 200, 8).bfloat16(), torch.randint(0, 9_000, (2, 200)).cumsum(1)
    times, dtype = (moments, moments), torch.float32 if autocast else torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer, x = layer.to(dtype), x.to(dtype)
        expected = layer(x, None, times)
        streamed, _ = layer.advance(x, None, layer.zero_state(2, 200, x), times)
        newest = layer.newest(x, lengths, times)
    # In bfloat16, sums of so many events make outputs differ by up to 0.5.
    torch.testing.assert_close(streamed, expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(newest, expected[:, -1:], rtol=0.01, atol=0.01)


def test_gaps_change_nothing_before_training_and_need_times():
    layer, x = PointwiseAttention(8, num_heads=2), torch.randn(3, 7, 8)
    before = layer(x)
    layer.read_gaps(1)
    torch.testing.assert_close(layer(x, None, (TIMES, TIMES)), before)
    with pytest.raises(InputError, match="passes no times"):
        layer(x)


def test_dropout_falls_on_gated_outputs_in_training_alone():
    layer, x = PointwiseAttention(8, dropout=0.5), torch.randn(2, 6, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, r"num_heads=5 must divide d_model=12; try one of \[1, 2, 3"),
        ({"num_distances": 0}, "num_distances=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        PointwiseAttention(12, **arguments)
