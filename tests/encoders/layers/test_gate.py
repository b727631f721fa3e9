from __future__ import annotations

import torch

from seqrec.encoders.layers import TokenGate


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
