from __future__ import annotations

import pytest
import torch
from torch import nn

from seqrec.encoders.layers import ResidualStack
from seqrec.encoders.layers.residual import Residual


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_branch_is_added_to_its_input_behind_the_norm(layer_norm: bool):
    layer = nn.Linear(4, 4)
    branch = Residual(layer, 4, layer_norm=layer_norm)
    x = torch.randn(2, 3, 4)
    inner = torch.nn.functional.layer_norm(x, (4,)) if layer_norm else x
    torch.testing.assert_close(branch(x), x + layer(inner))


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
