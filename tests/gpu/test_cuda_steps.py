"""What a training step draws, moves and reads on a GPU, and what Python waits for meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqrec.runs.callbacks import StepSeeds
from seqrec.runs.measurement import PendingCopy
from seqrec.training.optim import LazyAdamOptimizer
from seqrec.types import History, RaggedItems, SequenceBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
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
    read_early = PendingCopy(value * 2)
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    done.record()
    assert read_early.read().tolist() == [0, 2, 4]
    assert not done.query()
    torch.cuda.synchronize()


def test_a_batch_in_page_locked_memory_moves_while_the_gpu_is_busy():
    item_ids, lengths = torch.arange(1, 7).view(2, 3), torch.tensor([3, 3])
    batch = SequenceBatch(
        History(item_ids, lengths), item_ids + 1, torch.tensor([1, 2]), RaggedItems.from_rows(list(item_ids))
    )
    pinned, done = batch.pin_memory(), torch.cuda.Event()
    # Memory that is there already need not be asked for, which waits.
    batch.to("cuda")
    torch.cuda._sleep(2_000_000_000)
    done.record()
    moved = pinned.to(torch.device("cuda", 0))
    assert not done.query()
    assert torch.equal(moved.history.item_ids.cpu(), item_ids)
    assert torch.equal(moved.seen_events.item_ids.cpu(), batch.seen_events.item_ids)


def test_row_adam_on_the_gpu_is_that_of_the_cpu():
    tables = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        table = torch.nn.Parameter(torch.randn(50, 8, generator=generator).to(device))
        optimizer = LazyAdamOptimizer([table], lr=0.05, betas=(0.9, 0.98))
        for _ in range(5):
            row_ids = torch.randint(1, 50, (1, 40), generator=generator)
            rows = torch.randn(40, 8, generator=generator)
            table.grad = torch.sparse_coo_tensor(row_ids, rows, table.shape, check_invariants=True).to(device)
            optimizer.step()
        tables.append(table.detach().cpu())
    torch.testing.assert_close(tables[1], tables[0], rtol=1e-5, atol=1e-5)
