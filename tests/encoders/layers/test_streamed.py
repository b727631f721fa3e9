from __future__ import annotations

import pytest
import torch
from torch import nn

from seqrec.encoders.layers import (
    MIXERS,
    FeedForward,
    ResidualStack,
    as_streaming,
    joined,
    make_mixer,
    separated,
)
from seqrec.errors import InputError


def test_parts_come_back_with_their_own_names():
    a, b, c = torch.arange(3.0).unbind(0)
    parts = {"0": {"keys": a, "mamba.scan": b}, "1": {}, "2": {"keys": c}}
    flat = joined(parts)
    assert list(flat) == ["0.keys", "0.mamba.scan", "2.keys"]
    assert separated(flat) == {"0": parts["0"], "2": parts["2"]}


def test_a_layer_that_cannot_go_on_is_refused_and_not_run_event_by_event():
    stack = ResidualStack([[nn.Linear(4, 4)]], 4, dropout=0.0)
    with pytest.raises(InputError, match="Linear has no streaming state; give it `zero_state` and `advance`"):
        stack.zero_state(1, 5, torch.zeros(0))
    with pytest.raises(InputError, match="Linear has no streaming state"):
        as_streaming(nn.Linear(4, 4))


def test_layers_that_mix_no_events_remember_nothing():
    layer = FeedForward(4)
    x = torch.randn(2, 3, 4)
    out, state = layer.advance(x, None, {})
    assert state == layer.zero_state(2, 5, x) == {}
    assert torch.equal(out, layer(x))


@pytest.mark.parametrize("name", list(MIXERS))
def test_a_mixer_begins_anew_at_each_start(name: str):
    torch.manual_seed(0)
    mixer, starts = make_mixer(name, 8, d_state=4, d_conv=3, expand=2), [0, 1, 5]
    x, before = torch.randn(2, 8, 8), torch.randn(2, 4, 8)
    zero = mixer.zero_state(2, 5, x)
    _, state = mixer.advance(before, None, zero)
    packed = torch.zeros(2, 8, dtype=torch.bool).index_fill(1, torch.tensor(starts), True)
    out, last = mixer.advance(x, None, state, None, packed)
    alone = [mixer.advance(x[:, begin:end], None, zero) for begin, end in zip(starts, [1, 5, 8], strict=True)]
    torch.testing.assert_close(out, torch.cat([y for y, _ in alone], 1), rtol=1e-4, atol=1e-5)
    for key, value in alone[-1][1].items():
        torch.testing.assert_close(last[key], value, rtol=1e-4, atol=1e-5)
    one, _ = mixer.advance(x[:, :1], None, state, None, packed[:, :1])
    torch.testing.assert_close(one, out[:, :1], rtol=1e-4, atol=1e-5)
