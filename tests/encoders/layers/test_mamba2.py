from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqrec.encoders.layers import MIXERS, GatedDeltaNetMixer, Mamba2Mixer, MambaMixer, make_mixer
from seqrec.errors import InputError


def naive_mixer(mixer: Mamba2Mixer, x: torch.Tensor) -> torch.Tensor:
    """Mamba-2's block event by event, from the layer's parameters and nothing else of it."""
    heads, states = len(mixer.A_log), (len(mixer.conv_bias) - mixer.out_projection.in_features) // 2
    inner = mixer.out_projection.in_features
    projected = x @ mixer.in_projection.weight.T
    gate, convolved, dt = projected.split([inner, inner + 2 * states, heads], dim=-1)
    taps = mixer.conv_weight.shape[1]
    A = -mixer.A_log.exp()
    state = torch.zeros(len(x), heads, inner // heads, states)
    outputs = []
    for t in range(x.shape[1]):
        u = mixer.conv_bias.expand(len(x), -1)
        for back in range(min(taps, t + 1)):
            u = u + mixer.conv_weight[:, taps - 1 - back] * convolved[:, t - back]
        u, B, C = (u * u.sigmoid()).split([inner, states, states], dim=-1)
        u = u.view(len(x), heads, -1)
        step = F.softplus(dt[:, t] + mixer.dt_bias)
        pushed = step[..., None, None] * u.unsqueeze(-1) * B[:, None, None]
        state = (step * A).exp()[..., None, None] * state + pushed
        y = (state * C[:, None, None]).sum(-1) + mixer.D[:, None] * u
        gated = y.flatten(1) * F.silu(gate[:, t])
        normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
        outputs.append(normed @ mixer.out_projection.weight.T)
    return torch.stack(outputs, 1)


def make(d_model: int, **arguments: int) -> Mamba2Mixer:
    """A mixer whose constant parameters are not constant, so that a mix-up shows."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(d_model, **arguments)
    with torch.no_grad():
        for parameter in (mixer.D, mixer.norm.weight):
            parameter.uniform_(0.5, 2)
    return mixer


@pytest.mark.parametrize("length", [1, 2, 17, 70])
@pytest.mark.parametrize("d_conv", [1, 4])
@pytest.mark.parametrize("head_dim", [None, 8])
def test_mixer_equals_the_papers_recurrence_event_by_event(length: int, d_conv: int, head_dim: int | None):
    mixer = make(20, d_state=5, d_conv=d_conv, expand=2, head_dim=head_dim)
    x = torch.randn(2, length, 20)
    torch.testing.assert_close(mixer(x), naive_mixer(mixer, x), rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_recurrence():
    mixer = make(8, d_state=3, head_dim=4)
    x, direction = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    parameters = list(mixer.parameters())
    fast = torch.autograd.grad((mixer(x) * direction).sum(), parameters)
    slow = torch.autograd.grad((naive_mixer(mixer, x) * direction).sum(), parameters)
    for (name, _), one, other in zip(mixer.named_parameters(), fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_initial_step_sizes_lie_in_the_papers_range():
    torch.manual_seed(0)
    steps = F.softplus(Mamba2Mixer(256, head_dim=1).dt_bias.detach())
    assert steps.min() >= 0.001 * (1 - 1e-3)
    assert steps.max() <= 0.1 * (1 + 1e-3)
    # Log-uniform: half of them lie below the geometric mean, 0.01.
    assert 0.4 < (steps < 0.01).float().mean() < 0.6


def test_initial_decays_are_uniform_between_1_and_16():
    torch.manual_seed(0)
    mixer = Mamba2Mixer(256, head_dim=1)
    A = mixer.A_log.detach().exp()
    assert 1 - 1e-5 <= A.min() < 1.2
    assert 15.8 < A.max() <= 16 + 1e-4
    assert 0.4 < (A < 8.5).float().mean() < 0.6
    assert torch.equal(mixer.D, torch.ones(512))


@pytest.mark.parametrize(
    ("d_model", "head_dim", "heads"), [(8, 16, 1), (64, 64, 2), (100, 50, 4), (63, 63, 2), (37, 37, 2)]
)
def test_heads_are_64_wide_or_the_widest_divisor_below(d_model: int, head_dim: int, heads: int):
    mixer = Mamba2Mixer(d_model)
    assert mixer.head_dim == head_dim
    assert mixer.A_log.shape == mixer.dt_bias.shape == mixer.D.shape == (heads,)


@pytest.mark.parametrize("head_dim", [0, -2, 3, 17])
def test_a_width_of_heads_that_does_not_divide_is_refused_with_the_ones_that_do(head_dim: int):
    message = rf"head_dim={head_dim} must divide the inner width 16 .*; try one of \[1, 2, 4, 8, 16\]"
    with pytest.raises(InputError, match=message):
        Mamba2Mixer(8, head_dim=head_dim)


def test_parameters_are_those_of_the_paper_and_no_more():
    d_model, d_state, d_conv = 64, 32, 4
    inner, heads = 2 * d_model, 2
    convolved = inner + 2 * d_state
    assert {name: tuple(p.shape) for name, p in Mamba2Mixer(64, d_state=32).named_parameters()} == {
        "in_projection.weight": (inner + convolved + heads, d_model),
        "conv_weight": (convolved, d_conv),
        "conv_bias": (convolved,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (inner,),
        "out_projection.weight": (d_model, inner),
    }


def test_mixers_are_made_by_name():
    arguments = {"d_state": 3, "d_conv": 2, "expand": 3}
    for name, kind in zip(MIXERS, (MambaMixer, Mamba2Mixer, GatedDeltaNetMixer), strict=True):
        mixer = make_mixer(name, 8, **arguments)
        assert type(mixer) is kind is MIXERS[name]
        assert mixer.d_inner == 24
        assert mixer.d_state == 3
        assert mixer.conv_weight.shape[1] == 2
        assert mixer(torch.randn(2, 5, 8)).shape == (2, 5, 8)


def test_an_unknown_mixer_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="unknown mixer 'mamba3'; known: mamba, mamba2, gated_deltanet; did you mean"):
        make_mixer("mamba3", 8, d_state=3, d_conv=2, expand=3)
