from __future__ import annotations

import pytest
import torch

from seqrec.encoders.layers import FeedForward, TokenGate
from seqrec.errors import InputError


def test_feed_forward_equals_its_equation():
    layer = FeedForward(4, d_feedforward=6, dropout=0.5).eval()
    first, last = layer.layers[0], layer.layers[3]
    x = torch.randn(2, 3, 4)
    hidden = (x @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(layer(x), hidden @ last.weight.T + last.bias)


def test_gelu_takes_the_place_of_relu():
    layer = FeedForward(4, d_feedforward=6, feed_forward="gelu").eval()
    first, last = layer.layers[0], layer.layers[3]
    x = torch.randn(2, 3, 4)
    hidden = x @ first.weight.T + first.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    torch.testing.assert_close(layer(x), hidden @ last.weight.T + last.bias)


def test_swiglu_equals_its_equation():
    layer = FeedForward(4, d_feedforward=6, dropout=0.5, feed_forward="swiglu").eval()
    w, v = layer.layers[0].weight.chunk(2)
    x = torch.randn(2, 3, 4)
    gate = x @ w.T
    hidden = gate / (1 + (-gate).exp()) * (x @ v.T)
    torch.testing.assert_close(layer(x), hidden @ layer.layers[3].weight.T)
    assert sum(weight.numel() for weight in layer.parameters()) == 3 * 4 * 6


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="feed_forward='tanh' is unknown; known: relu, gelu, swiglu"):
        FeedForward(4, feed_forward="tanh")


def test_each_position_is_mapped_by_itself():
    layer = FeedForward(4).eval()
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x[:, 1:2]), layer(x)[:, 1:2])


def test_dropout_falls_on_outputs_and_feedforward_units_in_training():
    torch.manual_seed(0)
    layer = FeedForward(1, d_feedforward=50, dropout=0.5).train()
    out = layer(torch.ones(100, 2, 1))
    assert 0.3 < (out == 0).float().mean() < 0.7
    # Outputs that are kept still differ, by the hidden units behind them.
    assert len(out[out != 0].unique()) > 50


def test_weights_are_positive_and_sum_to_one():
    weights = TokenGate(4, 3)(torch.randn(2, 5, 4))
    assert weights.shape == (2, 5, 3)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_weights_of_a_position_come_from_that_position_alone():
    gate, x = TokenGate(4, 3), torch.randn(2, 5, 4)
    before = gate(x)
    x[:, 2] += 1
    after = gate(x)
    kept = [0, 1, 3, 4]
    assert torch.equal(after[:, kept], before[:, kept])
    assert (after[:, 2] != before[:, 2]).any(-1).all()
