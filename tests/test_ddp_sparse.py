"""Ranks with a row-sparse item table train as one rank does on their joined batches, and send touched rows alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from forked_commands import run_ranks

pytestmark = pytest.mark.process

RUN = """
import json, os, sys
import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from seqrec.catalogue.distributed import leave_job
from seqrec.catalogue.table import ItemTable
from seqrec.training.losses import SampledSoftmax
from seqrec.models import SASRec
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.training.optim import Adam, LazyAdam, RowwiseAdagrad
from seqrec.types import History, RaggedItems, SequenceBatch

ranks, runs = int(sys.argv[1]), json.loads(sys.argv[2])
ROWS, LENGTH, STEPS = 6, 5, 20


class NextItems(NegativeSampler):
    exclude_seen, shared = False, False

    def num_draws(self, num_positions):
        return 2

    def sample(self, rows, targets, seen, num_items):
        ids = torch.stack([targets * 7 % 90 + 1, targets * 13 % 90 + 1], dim=1)
        return Negatives(ids, self.log_probabilities(ids, rows, seen, num_items))

    def log_probabilities(self, item_ids, rows, seen, num_items):
        return torch.zeros(item_ids.shape, dtype=torch.float64)


def batch(step, rows):
    events = torch.randint(1, 91, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))[rows]
    n = len(events)
    return SequenceBatch(
        History(events[:, :-1].contiguous(), torch.full((n,), LENGTH)), events[:, 1:].contiguous(),
        torch.arange(n) + 1, RaggedItems.from_rows(list(events)),
    )


class Shards(torch.utils.data.Dataset):
    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        rank = dist.get_rank() if dist.is_initialized() else 0
        return batch(step, slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks))


sent = {"rows": 0, "dense": 0}
plain_gather = dist.all_gather


def counted_gather(out, values, *arguments, **named):
    sent["rows"] += values.numel() * values.element_size()
    return plain_gather(out, values, *arguments, **named)


def counted_reduce(state, bucket):
    sent["dense"] += bucket.buffer().numel() * bucket.buffer().element_size()
    return allreduce_hook(state, bucket)


def fit(options):
    sent.update(rows=0, dense=0)
    # Seeds differ, so that ranks agree only where they are made to.
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    model = SASRec(
        options["num_items"], d_model=8, num_layers=1, dropout=0.0, max_length=LENGTH,
        loss=SampledSoftmax(NextItems()),
        item_table=ItemTable(sparse=True, dtype=options["dtype"], separate_output=options["separate"]),
        optimizer=Adam(1e-2, table=LazyAdam() if options["lazy"] else RowwiseAdagrad(1e-1)),
    )
    if options["double"]:
        model.double()  # Adam divides by what may be rounding errors alone
    strategy = DDPStrategy(process_group_backend="gloo", ddp_comm_hook=counted_reduce) if ranks > 1 else "auto"
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, max_epochs=1, logger=False, use_distributed_sampler=False,
        gradient_clip_val=options["clip"], accumulate_grad_batches=options["accumulate"],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(model, torch.utils.data.DataLoader(Shards(STEPS * options["accumulate"]), batch_size=None))
    assert trainer.global_step == STEPS
    return {"weights": model.state_dict(), "sent": dict(sent)}


dist.all_gather = counted_gather
results = {name: fit(options) for name, options in runs.items()}
torch.save(results, f"{ranks}-{os.environ.get('LOCAL_RANK', 0)}.pt")
leave_job()
"""
DEFAULTS = {
    "num_items": 100,
    "lazy": False,
    "separate": False,
    "clip": None,
    "accumulate": 1,
    "dtype": "float32",
    "double": True,
}


RUNS: dict[str, dict[str, Any]] = {
    "row-wise Adagrad": {},
    "lazy Adam": {"lazy": True, "clip": 0.05, "separate": True, "accumulate": 2},
    "large catalogue": {"num_items": 50_000},
    "bfloat16": {"dtype": "bfloat16", "double": False},
}
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """Weights and bytes sent of one rank alone and of two, for each of `RUNS`."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = json.dumps({name: DEFAULTS | options for name, options in RUNS.items()})
    for ranks in (1, 2):
        run_ranks(folder, ranks, RUN, str(ranks), runs)
    alone, first, second = (torch.load(folder / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    return alone, first, second


@pytest.mark.parametrize("name", ["row-wise Adagrad", "lazy Adam"])
def test_two_ranks_train_as_one_does_on_the_joined_batches(name: str, trained: tuple[Results, Results, Results]):
    alone, first, second = (results[name]["weights"] for results in trained)
    for key, weight in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], weight, rtol=1e-6, atol=1e-6, msg=key)


def test_bytes_sent_are_those_of_touched_rows_whatever_the_catalogue(
    trained: tuple[Results, Results, Results],
):
    small, large = trained[1]["row-wise Adagrad"]["sent"], trained[1]["large catalogue"]["sent"]
    assert small == large
    # 20 steps; 3 histories of 5 events, their targets and two negatives of each are at most 60 items of 8 float64.
    assert 0 < small["rows"] <= 20 * (60 * (8 + 1) * 8 + 100)


def test_ranks_round_bfloat16_tables_alike(trained: tuple[Results, Results, Results]):
    first, second = (results["bfloat16"]["weights"] for results in trained[1:])
    assert first["items.table.weight"].dtype == torch.bfloat16
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
