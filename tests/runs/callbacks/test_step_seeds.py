from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqrec.runs.callbacks import StepSeeds


def trainer(epoch: int, rank: int, device: str = "cpu") -> Any:
    strategy = SimpleNamespace(broadcast=lambda value: value, root_device=torch.device(device))
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, strategy=strategy)


def drawn(seeds: StepSeeds, epoch: int, batch: int, rank: int) -> float:
    seeds.on_train_batch_start(trainer(epoch, rank), None, None, batch)  # type: ignore[arg-type]
    return float(torch.rand(()))


def test_what_a_step_draws_depends_on_run_epoch_batch_and_rank_alone():
    torch.manual_seed(5)
    seeds = StepSeeds()
    seeds.on_train_start(trainer(0, 0), None)  # type: ignore[arg-type]
    steps = list(itertools.product(range(3), range(3), range(2)))
    first = [drawn(seeds, *step) for step in steps]
    assert len(set(first)) == len(steps)
    assert [drawn(seeds, *step) for step in reversed(steps)] == first[::-1]
    other = StepSeeds()
    torch.manual_seed(6)
    other.on_train_start(trainer(0, 0), None)  # type: ignore[arg-type]
    assert not set(first) & {drawn(other, *step) for step in steps}


def test_a_resumed_run_keeps_the_seed_of_its_checkpoint():
    seeds, resumed = StepSeeds(), StepSeeds()
    torch.manual_seed(5)
    seeds.on_train_start(trainer(0, 0), None)  # type: ignore[arg-type]
    resumed.load_state_dict(seeds.state_dict())
    torch.manual_seed(6)
    resumed.on_train_start(trainer(0, 0), None)  # type: ignore[arg-type]
    assert drawn(resumed, 1, 2, 0) == drawn(seeds, 1, 2, 0)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_step_draws_what_manual_seed_would_make_it_draw(device: str, monkeypatch: pytest.MonkeyPatch):
    """Accelerators other than CUDA are left to torch, which knows them all."""
    seeds, asked, seed_all = StepSeeds(), [], torch.manual_seed
    seeds.load_state_dict({"seed": 5})
    monkeypatch.setattr(torch, "manual_seed", lambda seed: asked.append(seed) or seed_all(seed))
    seeds.on_train_batch_start(trainer(1, 0, device), None, None, 2)  # type: ignore[arg-type]
    assert len(asked) == (device == "mps")
    seed, drawn = torch.initial_seed(), torch.rand(3)
    seed_all(seed)
    assert seed > 2**32
    assert torch.equal(torch.rand(3), drawn)
