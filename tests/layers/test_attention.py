from __future__ import annotations

import pytest
import torch

from seqrec.errors import InputError
from seqrec.layers import CausalSelfAttention


def naive_attention(layer: CausalSelfAttention, x: torch.Tensor) -> torch.Tensor:
    """Event by event and head by head: softmax over the event itself and older ones."""
    _, length, width = x.shape
    size = width // layer.num_heads
    query, key, value = layer.in_projection(x).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    for t in range(length):
        for head in range(layer.num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = (key[:, : t + 1, part] * query[:, t : t + 1, part]).sum(-1) / size**0.5
            out[:, t, part] = (scores.softmax(-1).unsqueeze(-1) * value[:, : t + 1, part]).sum(1)
    return layer.out_projection(out)


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_attention_equals_a_loop_over_events_and_heads(num_heads: int):
    layer = CausalSelfAttention(8, num_heads=num_heads)
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(layer(x), naive_attention(layer, x))


def test_the_first_event_attends_to_itself_alone():
    layer = CausalSelfAttention(8, num_heads=2)
    x = torch.randn(1, 5, 8)
    value = layer.in_projection(x)[:, :1, 16:]
    torch.testing.assert_close(layer(x)[:, :1], layer.out_projection(value))


def test_dropout_falls_on_attention_weights_in_training_alone():
    layer = CausalSelfAttention(8, num_heads=2, dropout=0.5)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    torch.testing.assert_close(layer.eval()(x), naive_attention(layer, x))


@pytest.mark.parametrize("num_heads", [0, -1, 5])
def test_heads_that_do_not_divide_the_width_are_refused(num_heads: int):
    with pytest.raises(
        InputError, match=rf"num_heads={num_heads} must divide d_model=12; try one of \[1, 2, 3"
    ):
        CausalSelfAttention(12, num_heads=num_heads)
