from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqrec.encoders import MambaRec
from seqrec.encoders.layers import GatedDeltaNetMixer
from seqrec.errors import InputError


def naive_mixer(mixer: GatedDeltaNetMixer, x: torch.Tensor) -> torch.Tensor:
    """The mixer event by event, from the layer's parameters and nothing else of it."""
    heads, inner = len(mixer.A_log), mixer.out_projection.in_features
    convolved, taps = mixer.conv_weight.shape
    keys = (convolved - inner) // 2
    gate, path, beta, dt = (x @ mixer.in_projection.weight.T).split([inner, convolved, heads, heads], dim=-1)
    state = torch.zeros(len(x), heads, inner // heads, keys // heads)
    outputs = []
    for t in range(x.shape[1]):
        seen = sum(mixer.conv_weight[:, taps - 1 - back] * path[:, t - back] for back in range(min(taps, t + 1)))
        q, k, v = (each.unflatten(1, (heads, -1)) for each in F.silu(seen).split([keys, keys, inner], dim=-1))
        q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (q, k))
        alpha = torch.exp(-mixer.A_log.exp() * F.softplus(dt[:, t] + mixer.dt_bias))[..., None, None]
        share = beta[:, t].sigmoid()[..., None, None]
        outer = k.unsqueeze(-1) * k.unsqueeze(-2)
        kept = torch.eye(outer.shape[-1]) - share * outer
        state = alpha * state @ kept + share * v.unsqueeze(-1) * k.unsqueeze(-2)
        y = (state @ q.unsqueeze(-1)).squeeze(-1)
        normed = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
        outputs.append((normed.flatten(1) * F.silu(gate[:, t])) @ mixer.out_projection.weight.T)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(("length", "d_conv"), [(1, 4), (3, 1), (40, 4)])
def test_mixer_and_its_gradients_equal_the_papers_recurrence_event_by_event(length: int, d_conv: int):
    torch.manual_seed(0)
    mixer = GatedDeltaNetMixer(10, d_state=3, d_conv=d_conv, head_dim=5)
    torch.nn.init.uniform_(mixer.norm.weight, 0.5, 2)
    x, direction = torch.randn(2, length, 10), torch.randn(2, length, 10)
    fast, slow = mixer(x), naive_mixer(mixer, x)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    parameters = dict(mixer.named_parameters())
    found, expected = (torch.autograd.grad((y * direction).sum(), [*parameters.values()]) for y in (fast, slow))
    for name, one, other in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_parameters_are_the_documented_ones_and_no_more():
    inner, keys, heads = 128, 2 * 32, 2
    assert {name: tuple(p.shape) for name, p in GatedDeltaNetMixer(64).named_parameters()} == {
        "in_projection.weight": (2 * inner + 2 * keys + 2 * heads, 64),
        "conv_weight": (inner + 2 * keys, 4),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "norm.weight": (64,),
        "out_projection.weight": (64, inner),
    }


def test_a_width_of_heads_that_does_not_divide_is_refused_with_the_ones_that_do():
    with pytest.raises(
        InputError, match=r"head_dim=3 must divide the inner width 16 .*; try one of \[1, 2, 4, 8, 16\]"
    ):
        GatedDeltaNetMixer(8, head_dim=3)


def test_a_stream_has_the_documented_size_and_is_not_written_in_place():
    encoder = MambaRec(8, num_layers=1, mixer="gated_deltanet", d_state=4, d_conv=3)
    inner, heads = 16, 1
    assert encoder.init_state(3, max_length=5).row_bytes == ((inner + 2 * heads * 4) * 2 + inner * 4) * 4
    assert not encoder.takes_slab_rows


def test_a_memory_that_starts_with_pairs_is_asked_what_followed_the_present_event():
    torch.manual_seed(0)
    mixer = GatedDeltaNetMixer(64)
    mixer.start_with_pairs()

    def influence(x: torch.Tensor) -> torch.Tensor:
        """Gradients of the newest output for each event, (L,)."""
        x = x.clone().requires_grad_()
        mixer(x)[:, -1].square().sum().backward()
        assert x.grad is not None
        return x.grad.norm(dim=2).mean(0)

    x = torch.randn(64, 30, 64)
    never_before = influence(x)
    x[:, -1] = x[:, 7]
    times = influence(x) / never_before
    # The value of event 8 is a convolution of events 5 to 8.
    assert times[8] > 1.5
    assert times[9:12].max() < 1.1
    assert times[:5].max() < 1.1


def test_pairs_need_a_convolution_of_two_events():
    with pytest.raises(InputError, match=r"d_conv of at least 2, got 1"):
        GatedDeltaNetMixer(8, d_conv=1).start_with_pairs()


def test_a_memory_that_starts_with_pairs_keeps_half_of_a_value_for_40_events_or_more():
    mixer = GatedDeltaNetMixer(64, head_dim=1, d_conv=2)
    mixer.start_with_pairs()
    decays = torch.exp(-mixer.A_log.exp() * F.softplus(mixer.dt_bias))
    assert decays.min() ** 40 > 0.5
    assert decays.max() < 1
