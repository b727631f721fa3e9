from __future__ import annotations

import pytest
import torch

from seqrec.encoders.layers import CausalSelfAttention, rotary_turns, rotate
from seqrec.errors import InputError


def naive_attention(layer: CausalSelfAttention, x: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
    """Event by event and head by head: softmax over the event itself and older ones, with the number of each gap."""
    _, length, width = x.shape
    size = width // layer.num_heads
    query, key, value = layer.in_projection(x).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    for t in range(length):
        for head in range(layer.num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = (key[:, : t + 1, part] * query[:, t : t + 1, part]).sum(-1) / size**0.5
            if layer.gaps is not None and times is not None:
                gaps = (times[:, t : t + 1] - times[:, : t + 1]).double()
                # Two buckets for each doubling; the first two are "no event before" and a gap of 0.
                buckets = torch.where(gaps < 1, 1, 2 + (2 * gaps.clamp_min(1).log2()).floor()).long()
                scores = scores + layer.gaps.weight[buckets, head]
            out[:, t, part] = (scores.softmax(-1).unsqueeze(-1) * value[:, : t + 1, part]).sum(1)
    return layer.out_projection(out)


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_attention_equals_a_loop_over_events_and_heads(num_heads: int):
    layer = CausalSelfAttention(8, num_heads=num_heads)
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(layer(x), naive_attention(layer, x))


@pytest.mark.parametrize("chunk", [256, 3])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_gaps_add_a_number_to_each_score(num_heads: int, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seqrec.encoders.layers.attention.CHUNK_EVENTS", chunk)
    layer = CausalSelfAttention(8, num_heads=num_heads)
    x, times = torch.randn(3, 7, 8), torch.randint(0, 100_000, (3, 7)).cumsum(1)
    before = layer(x)
    layer.read_gaps(1)
    torch.testing.assert_close(layer(x, None, (times, times)), before)
    torch.nn.init.normal_(layer.gaps.weight)
    found, expected, weights = (
        layer(x, None, (times, times)),
        naive_attention(layer, x, times),
        list(layer.parameters()),
    )
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), weights) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="passes no times"):
        layer(x)


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
    with pytest.raises(InputError, match=rf"num_heads={num_heads} must divide d_model=12; try one of \[1, 2, 3"):
        CausalSelfAttention(12, num_heads=num_heads)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_rotary_attention_equals_a_loop_over_turned_queries_and_keys(num_heads: int):
    layer = CausalSelfAttention(8, num_heads=num_heads, rotary=True)
    x = torch.randn(3, 7, 8)
    size = 8 // num_heads
    query, key, value = (y.unflatten(-1, (num_heads, size)) for y in layer.in_projection(x).chunk(3, dim=-1))
    turned = torch.arange(7).unsqueeze(1).expand(7, num_heads)
    query, key = (rotate(y, turned, rotary_turns(size)) for y in (query, key))
    scores = torch.einsum("bqhc,bkhc->bhqk", query, key) / size**0.5
    weights = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)
    expected = layer.out_projection(torch.einsum("bhqk,bkhc->bqhc", weights, value).flatten(2))
    torch.testing.assert_close(layer(x), expected)


def test_rotary_attention_tells_orders_apart_where_plain_attention_does_not():
    x = torch.randn(1, 5, 8)
    swapped = x[:, [1, 0, 2, 3, 4]]
    for rotary in (False, True):
        layer = CausalSelfAttention(8, num_heads=2, rotary=rotary)
        assert torch.allclose(layer(x)[:, -1], layer(swapped)[:, -1], atol=1e-6) != rotary


def test_rotary_attention_adds_no_weights():
    plain, rotary = (CausalSelfAttention(8, num_heads=2, rotary=rotary) for rotary in (False, True))
    assert plain.state_dict().keys() == rotary.state_dict().keys()


def test_rotary_attention_needs_heads_of_even_width():
    message = r"even width, got d_model=12 / num_heads=4 = 3; try d_model=16"
    with pytest.raises(InputError, match=message):
        CausalSelfAttention(12, num_heads=4, rotary=True)
