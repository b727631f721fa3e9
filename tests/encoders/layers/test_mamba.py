from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqrec.encoders.layers import MambaMixer


def naive_mixer(mixer: MambaMixer, x: torch.Tensor) -> torch.Tensor:
    """Mamba's algorithm 2 event by event, from the layer's parameters and nothing else of it."""
    path, gate = (x @ mixer.in_projection.weight.T).chunk(2, dim=-1)
    taps = mixer.conv_weight.shape[1]
    A = -mixer.A_log.exp()
    state = torch.zeros(len(x), *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        u = mixer.conv_bias.expand(len(x), -1)
        for back in range(min(taps, t + 1)):
            u = u + mixer.conv_weight[:, taps - 1 - back] * path[:, t - back]
        u = u * u.sigmoid()
        dt, B, C = (u @ mixer.scan_projection.weight.T).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        step = F.softplus(dt @ mixer.dt_projection.weight.T + mixer.dt_bias).unsqueeze(-1)
        state = (step * A).exp() * state + step * B.unsqueeze(1) * u.unsqueeze(-1)
        y = (state * C.unsqueeze(1)).sum(-1) + mixer.D * u
        outputs.append((y * F.silu(gate[:, t])) @ mixer.out_projection.weight.T)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("d_conv", [1, 4])
def test_mixer_equals_the_papers_recurrence_event_by_event(length: int, d_conv: int):
    torch.manual_seed(0)
    mixer = MambaMixer(20, d_state=5, d_conv=d_conv, expand=2)
    x = torch.randn(2, length, 20)
    torch.testing.assert_close(mixer(x), naive_mixer(mixer, x), rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_recurrence():
    torch.manual_seed(0)
    mixer = MambaMixer(8, d_state=3)
    x, direction = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    parameters = list(mixer.parameters())
    fast = torch.autograd.grad((mixer(x) * direction).sum(), parameters)
    slow = torch.autograd.grad((naive_mixer(mixer, x) * direction).sum(), parameters)
    for (name, _), one, other in zip(mixer.named_parameters(), fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_initial_step_sizes_lie_in_the_papers_range():
    torch.manual_seed(0)
    steps = F.softplus(MambaMixer(256).dt_bias.detach())
    assert steps.min() >= 0.001 * (1 - 1e-3)
    assert steps.max() <= 0.1 * (1 + 1e-3)
    # Log-uniform: half of them lie below the geometric mean, 0.01.
    assert 0.4 < (steps < 0.01).float().mean() < 0.6


def test_initial_state_matrix_is_s4d_real():
    mixer = MambaMixer(8, d_state=4)
    torch.testing.assert_close(-mixer.A_log.exp(), -torch.arange(1.0, 5).repeat(16, 1))
    assert torch.equal(mixer.D, torch.ones(16))


@pytest.mark.parametrize(("d_model", "rank"), [(8, 1), (16, 1), (17, 2), (64, 4)])
def test_rank_of_the_step_sizes_is_a_sixteenth_of_the_width(d_model: int, rank: int):
    assert MambaMixer(d_model).dt_rank == rank
