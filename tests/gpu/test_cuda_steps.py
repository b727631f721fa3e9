"""What a training step draws, moves and reads on a GPU, and what Python waits for meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqrec.callbacks import StepSeeds
from seqrec.callbacks.host_value import HostValue

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_step_draws_on_the_gpu_what_manual_seed_would_make_it_draw():
    torch.zeros(1, device="cuda")
    seeds = StepSeeds()
    seeds.load_state_dict({"seed": 5})
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    trainer: Any = SimpleNamespace(current_epoch=1, global_rank=0, strategy=strategy)
    seeds.on_train_batch_start(trainer, None, None, 2)  # type: ignore[arg-type]
    drawn = torch.rand(3), torch.rand(3, device="cuda")
    torch.manual_seed(torch.initial_seed())
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.rand(3, device="cuda"), drawn[1])


def test_a_value_is_read_as_it_was_without_waiting_for_what_was_launched_behind_it():
    value = torch.arange(3.0, device="cuda", requires_grad=True)
    read_early = HostValue(value * 2)
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    done.record()
    assert read_early.read().tolist() == [0, 2, 4]
    assert not done.query()
    torch.cuda.synchronize()
