from __future__ import annotations

import pytest
import torch
from torch import nn

from seqrec.encoders.layers import FeedForward, ResidualStack, as_streaming, joined, separated
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
