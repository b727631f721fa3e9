from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from seqrec import encoders
from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.encoders.layers import recompute_blocks, run_block
from seqrec.errors import InputError
from seqrec.types import History


def make(name: str, **arguments: Any) -> SequenceEncoder:
    torch.manual_seed(0)
    encoder: SequenceEncoder = getattr(encoders, name)(8, num_layers=2, **{"dropout": 0.5} | arguments)
    return encoder


def results(encoder: SequenceEncoder, recompute: bool, precision: torch.dtype | None = None) -> list[Tensor]:
    """States and gradients, and the next random number, which shows where the generator stands."""
    recompute_blocks(encoder, recompute)
    torch.manual_seed(1)
    x = torch.randn(3, 40, 8, requires_grad=True)
    history = History(torch.ones(3, 40, dtype=torch.int64), torch.full((3,), 40))
    with torch.autocast("cpu", precision, enabled=precision is not None):
        states = encoder(x, history)
    gradients = torch.autograd.grad(states.float().square().sum(), [x, *encoder.parameters()])
    return [states, *gradients, torch.rand(1)]


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "arguments"), [*((name, {}) for name in ENCODERS), ("RecMamba", {"mixer": "mamba2"})])
def test_recomputed_blocks_give_the_same_bits(name: str, arguments: dict[str, str], precision: torch.dtype | None):
    encoder = make(name, **arguments)
    for plain, recomputed in zip(results(encoder, False, precision), results(encoder, True, precision), strict=True):
        assert torch.equal(plain, recomputed)


def test_a_block_runs_again_only_where_gradients_are_wanted():
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.training)
            return x * x

    x = torch.ones(2, requires_grad=True)
    run_block(Counted(), x, recompute=True).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        run_block(Counted(), x, recompute=True)
    run_block(Counted(), x, recompute=False).sum().backward()
    assert len(calls) == 4


def tensor_bytes(call: Callable[[], object]) -> int:
    """The most that tensors held at once; resident memory is as well what the allocator happens to keep."""
    with profile(profile_memory=True) as profiled:
        call()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("name", "length"), [("MambaRec", 10_000), pytest.param("SASRec", 2000, marks=pytest.mark.slow)]
)
def test_a_step_of_eight_blocks_holds_less_than_half_the_tensors(name: str, length: int):
    encoder = getattr(encoders, name)(16, num_layers=8, dropout=0.1)
    x = torch.randn(1, length, 16, requires_grad=True)
    history = History(torch.ones(1, length, dtype=torch.int64), torch.tensor([length]))

    def step() -> None:
        encoder(x, history).sum().backward()
        encoder.zero_grad()

    peaks = []
    for recompute in (False, True):
        recompute_blocks(encoder, recompute)
        step()
        peaks.append(tensor_bytes(step))
    assert 0 < peaks[1] < 0.45 * peaks[0]


def test_a_step_of_sessions_holds_less_than_three_tenths_of_mambarecs_tensors():
    length = 10_000
    x = torch.randn(1, length, 64, requires_grad=True)
    history = History(torch.ones(1, length, dtype=torch.int64), torch.tensor([length]))

    def peak(name: str) -> int:
        encoder = getattr(encoders, name)(64)
        recompute_blocks(encoder, True)
        encoder(x, history).sum().backward()
        return tensor_bytes(lambda: encoder(x, history).sum().backward())

    assert 0 < peak("HRNN") < 0.3 * peak("MambaRec")


def test_an_encoder_without_such_blocks_is_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"Linear has no blocks that can be recomputed.*ResidualStack.*run_block"):
        recompute_blocks(nn.Linear(2, 2), True)
    recompute_blocks(nn.Linear(2, 2), False)
