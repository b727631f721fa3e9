from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from seqrec.encoders.layers import CausalSelfAttention, Dropout, FeedForward, ResidualStack
from seqrec.encoders.layers.residual import Residual


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_branch_is_added_to_its_input_behind_the_norm(layer_norm: bool):
    layer = nn.Linear(4, 4)
    branch = Residual(layer, 4, layer_norm=layer_norm)
    x = torch.randn(2, 3, 4)
    inner = torch.nn.functional.layer_norm(x, (4,)) if layer_norm else x
    torch.testing.assert_close(branch(x), x + layer(inner))


def test_a_norm_may_come_after_the_sum_or_be_of_queries_and_what_passes_by():
    x, norm = torch.randn(2, 3, 4), partial(torch.nn.functional.layer_norm, normalized_shape=(4,))
    layer = FeedForward(4)
    torch.testing.assert_close(Residual(layer, 4, place="post")(x), norm(x + layer(x)))
    torch.testing.assert_close(Residual(layer, 4, place="queries")(x), norm(x) + layer(norm(x)))
    attention = CausalSelfAttention(4, num_heads=2)
    expected = norm(x) + attention(norm(x), keys_from=x)
    torch.testing.assert_close(Residual(attention, 4, place="queries")(x), expected)


@pytest.mark.parametrize("place", ["pre", "post", "queries"])
def test_a_gate_of_what_passes_by_weighs_a_branch(place: str):
    x, layer = torch.randn(2, 3, 4), FeedForward(4)
    plain, gated = (Residual(layer, 4, place=place, gated=gated) for gated in (False, True))
    torch.nn.init.zeros_(gated.gate.weight)
    for bias, expected in ((-100.0, x if place == "pre" else plain.norm(x)), (100.0, plain(x))):
        torch.nn.init.constant_(gated.gate.bias, bias)
        torch.testing.assert_close(gated(x), expected)


def test_dropout_falls_on_the_input_of_the_stack_in_training_alone():
    stack = ResidualStack([[nn.Identity()]], 4, dropout=0.5, layer_norm=False)
    x = torch.ones(50, 3, 4)
    # What is kept is scaled by 1 / (1 - 0.5); the block adds x to itself.
    assert set(stack.train()(x).unique().tolist()) == {0.0, 4.0}
    assert torch.equal(stack.eval()(x), 2 * x)


def test_blocks_run_in_order_and_the_norm_comes_last():
    class Add(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    stack = ResidualStack([[Add(), Add()], [Add()]], 2, dropout=0.0, layer_norm=False)
    # x becomes 2 x + 1 three times.
    assert torch.equal(stack(torch.ones(1, 1, 2)), torch.full((1, 1, 2), 15.0))
    normed = ResidualStack([[Add()]], 2, dropout=0.0)
    torch.testing.assert_close(normed(torch.randn(3, 2, 2)).mean(-1), torch.zeros(3, 2))


def two_blocks(share: float, layer_norm: bool = True) -> ResidualStack:
    torch.manual_seed(0)
    blocks = [[CausalSelfAttention(32, num_heads=2), FeedForward(32, dropout=share)] for _ in range(2)]
    stack = ResidualStack(blocks, 32, dropout=share, layer_norm=layer_norm)
    for parameter in stack.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return stack


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_stack_is_its_branches_one_after_another(layer_norm: bool, backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEQREC_RESIDUAL_NORM_BACKEND", backend)
    stack, x = two_blocks(0.3, layer_norm), torch.randn(32, 70, 32, requires_grad=True)
    for train in (True, False):
        stack.train(train)
        found = []
        for run in (stack, nn.Sequential(stack.dropout, *stack.blocks, stack.norm)):
            torch.manual_seed(5)
            out = run(x)
            found.append([out, *torch.autograd.grad(out.square().sum(), [x, *stack.parameters()])])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))


def test_the_last_dropout_of_a_feed_forward_layer_is_left_to_the_sum():
    layer, x = FeedForward(8, d_feedforward=12, dropout=0.5), torch.randn(5, 8)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(layer.before_dropout(x)), expected)
    assert torch.equal(layer.eval().before_dropout(x), layer(x))
