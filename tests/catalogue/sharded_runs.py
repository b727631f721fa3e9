"""Jobs on several ranks that `test_sharded_tables` looks at; `main` runs all of them.

Ranks are forked from one process, so that nothing is imported twice.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.sharding import ShardedEmbedding, exchange
from seqrec.catalogue.table import ItemTable
from seqrec.data.columns import Column
from seqrec.errors import InputError
from seqrec.evaluation.target_ranks import Targets, catalogue_ranks
from seqrec.models import SASRec
from seqrec.models.similar_items import ItemSimilarity
from seqrec.runs.callbacks.gather_tables import sharded_tables
from seqrec.training.losses import SampledSoftmax
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.training.optim import Adam, LazyAdam, RowwiseAdagrad
from seqrec.types import History, RaggedItems, SequenceBatch

ROWS, LENGTH, STEPS = 6, 5, 10  # steps an epoch; runs have two epochs
ADAGRAD = {
    "num_items": 100,
    "optimizer": "adagrad",
    "table": {},
    "clip": None,
    "accumulate": 1,
    "double": True,
}
ADAM = ADAGRAD | {
    "num_items": 90,
    "optimizer": "adam",
    "table": {"separate_output": True, "bias": True, "temperature": 0.5},
    "clip": 0.02,
    "accumulate": 2,
    "users": True,
}
BFLOAT16 = ADAGRAD | {"table": {"dtype": "bfloat16"}, "double": False}
CONTENT = ADAGRAD | {"table": {"content": ("text", "year"), "id_dropout": 0.0, "temperature": 0.5}}
OPTIONS = {"adagrad": ADAGRAD, "adam": ADAM, "content": CONTENT, "bfloat16": BFLOAT16}


class NextItems(NegativeSampler):
    """Draws nothing at random, so that ranks draw what one process does."""

    exclude_seen, shared = False, False

    def num_draws(self, num_positions: int) -> int:
        return 2

    def sample(self, rows: Tensor, targets: Tensor, seen: Any, num_items: int) -> Negatives:
        item_ids = torch.stack([targets * 7 % num_items + 1, targets * 13 % num_items + 1], dim=1)
        return Negatives(item_ids, self.log_probabilities(item_ids, rows, seen, num_items))

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: Any, num_items: int) -> Tensor:
        return torch.zeros(item_ids.shape, dtype=torch.float64)


class Shares(Dataset):
    """A rank's part of the rows of each step's batch."""

    def __init__(self, num_items: int, steps: int, *, fails: bool = False) -> None:
        self.num_items, self.steps, self.fails = num_items, steps, fails

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> SequenceBatch:
        if self.fails and step == 1:
            raise OSError("the disk is gone")
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        mine = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
        generator = torch.Generator().manual_seed(step)
        events = torch.randint(1, self.num_items + 1, (ROWS, LENGTH + 1), generator=generator)[mine]
        return SequenceBatch(
            History(events[:, :-1].contiguous(), torch.full((len(events),), LENGTH)),
            events[:, 1:].contiguous(),
            torch.arange(1, ROWS + 1)[mine],
            RaggedItems.from_rows(list(events[:, :-1])),
        )


def make(options: dict[str, Any], *, sharded: bool) -> SASRec:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    torch.manual_seed(rank)  # ranks agree only where they are made to
    table = LazyAdam() if options["optimizer"] == "adam" else RowwiseAdagrad(1e-1)
    columns = columns_of(options["num_items"])
    model = SASRec(
        options["num_items"],
        d_model=8,
        num_layers=1,
        dropout=0.0,
        max_length=LENGTH,
        user_embedding="users" in options,
        num_users=ROWS,
        loss=SampledSoftmax(NextItems()),
        item_table=ItemTable(sparse=True, sharded=sharded, **options["table"]),
        item_columns={name: column.sizes for name, column in columns.items()},
        optimizer=Adam(1e-2, table=table),
    )
    if model.items.content is not None:
        model.items.content.read(columns)
    return model.double() if options["double"] else model


def columns_of(num_items: int) -> dict[str, Column]:
    rng = np.random.default_rng(0)
    vectors, years = rng.normal(size=(num_items + 1, 4)), rng.normal(size=num_items + 1)
    vectors[0], years[0] = 0, np.nan
    return {"text": Column("vector", vectors.astype(np.float16)), "year": Column("numeric", years.astype(np.float32))}


def as_unsharded(options: dict[str, Any]) -> SASRec:
    """The model that holds all rows, from the same start."""
    start, model = make(options, sharded=True), make(options, sharded=False)
    start.configure_model()
    model.load_state_dict(start.state_dict())
    return model


def make_trainer(options: dict[str, Any], epochs: int) -> pl.Trainer:
    ranks = int(os.environ["JOB_RANKS"])  # Lightning removes WORLD_SIZE
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        max_epochs=epochs,
        logger=False,
        use_distributed_sampler=False,
        gradient_clip_val=options["clip"],
        accumulate_grad_batches=options["accumulate"],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fit(model: SASRec, options: dict[str, Any], *, epochs: int = 2, resume: Path | None = None) -> pl.Trainer:
    trainer = make_trainer(options, epochs)
    data = DataLoader(Shares(options["num_items"], STEPS * options["accumulate"]), batch_size=None)
    trainer.fit(model, data, ckpt_path=resume, weights_only=False)
    return trainer


def judge(model: SASRec, options: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a test, and what prediction recommends to the rank's users."""
    trainer = make_trainer(options, 1)
    data = DataLoader(Shares(options["num_items"], 3), batch_size=None)
    (metrics,) = trainer.test(model, data, verbose=False)
    return {"metrics": metrics, "predicted": [r.item_ids for r in trainer.predict(model, data)]}


def held(trainer: pl.Trainer) -> dict[str, int]:
    """Bytes of the tables and of their optimiser state that this rank holds."""
    tables = [model.weight for model in sharded_tables(trainer.lightning_module)]
    states = [state for table in tables for state in trainer.optimizers[0].state[table].values()]
    return {
        "weights": sum(table.nbytes for table in tables),
        "state": sum(state.nbytes for state in states if isinstance(state, Tensor)),
    }


def alone(folder: Path) -> dict[str, Any]:
    """Runs of one process on the joined batches, with whole tables."""
    found: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        if name == "bfloat16":
            continue
        model = as_unsharded(options)
        fit(model, options, epochs=1).save_checkpoint(folder / f"{name}-alone.ckpt", weights_only=False)
        fit(model := as_unsharded(options), options)
        found[name] = {"weights": model.state_dict()} | judge(model, options)
        if name == "adam":
            fit(resumed := make(options, sharded=True), options, resume=folder / f"{name}-2.ckpt")
            found["resumed from two"] = resumed.state_dict()
            fit(resumed := make(options, sharded=False), options, resume=folder / f"{name}-2.ckpt")
            found["resumed unsharded"] = resumed.state_dict()
    return found


def spread(folder: Path) -> dict[str, Any]:
    """Runs of ranks that each hold a part."""
    found: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        model = make(options, sharded=True)
        trainer = fit(model, options)
        found[name] = {"weights": model.state_dict(), "held": held(trainer)}
        if name != "bfloat16":
            found[name] |= judge(model, options)
        trainer = fit(make(options, sharded=True), options, epochs=1)
        trainer.save_checkpoint(path := folder / f"{name}-2.ckpt", weights_only=False)
        fit(resumed := make(options, sharded=True), options, resume=path)
        found[name]["resumed"] = resumed.state_dict()
    found["after an error"] = after_an_error(model, BFLOAT16)
    return found


def after_an_error(model: SASRec, options: dict[str, Any]) -> dict[str, Any]:
    try:
        make_trainer(options, 1).test(model, DataLoader(Shares(100, 3, fails=True), batch_size=None), verbose=False)
    except OSError as error:
        message = str(error)
    (table,) = sharded_tables(model)
    return {"message": message, "closed": table._host_copy is None}


def resumed_from_one(folder: Path) -> dict[str, Any]:
    """Ranks that go on from checkpoints of one process."""
    found = {}
    for name in ("adagrad", "adam"):
        model = make(OPTIONS[name], sharded=True)
        fit(model, OPTIONS[name], resume=folder / f"{name}-alone.ckpt")
        found[name] = model.state_dict()
    return found


def tables_alone(folder: Path) -> dict[str, Any]:
    """Tables without models or trainers, on three ranks, the last of which has no row of the smallest."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (ranks,))
    found: dict[str, Any] = {}
    for num_rows in (2, 4, 7, 70_001):
        torch.manual_seed(rank)
        exchange.PIECE_BYTES = max(24, num_rows)  # two rows at a time of small tables
        table = ShardedEmbedding(num_rows, 3, std=0.5, zeros_from=2)
        table.make_rows(ranks, rank)
        whole = torch.arange(num_rows).unsqueeze(1)
        expected = distribute_tensor(whole, mesh, [Shard(0)]).to_local().flatten().tolist()
        layout = list(range(num_rows))[table.shards.local]
        found[num_rows] = {"layout": layout == expected, "state": table.state_dict()}
        if num_rows >= 7:
            found[num_rows]["sent"] = bytes_sent(table)
        if num_rows != 70_001:
            found[num_rows] |= gradient_of(table, rank) | scores_of(table, rank)
    found["message"] = message_of(lambda: table(torch.tensor([1])))
    found |= copies_refused(table, rank)
    dist.barrier()
    found["files"] = os.listdir(tempfile.gettempdir())
    dist.destroy_process_group()
    return found


def bytes_sent(table: ShardedEmbedding) -> int:
    """Bytes that this rank hands to all-to-alls for a lookup of items 1 and 2 and for their gradients."""
    sent = 0
    plain = dist.all_to_all_single

    def counted(out: Tensor, values: Tensor, *arguments: Any) -> Any:
        nonlocal sent
        sent += values.nbytes
        return plain(out, values, *arguments)

    dist.all_to_all_single = counted
    table(torch.tensor([1, 2, 1, 1])).sum().backward()
    table.share_gradient()
    dist.all_to_all_single = plain
    return sent


def gradient_of(table: ShardedEmbedding, rank: int) -> dict[str, Any]:
    """Rank r reads row 1 once and row V - 1 r times, in two lookups, one of them with padding."""
    last = table.num_embeddings - 1
    (table(torch.tensor([[0, 1, 0]])).sum() + (table(torch.full((rank,), last)) * 2).sum()).backward()
    table.share_gradient()
    assert table.weight.grad is not None
    return {"gradient": table.weight.grad.to_dense(), "first": table.shards.local.start}


@torch.no_grad()
def scores_of(table: ShardedEmbedding, rank: int) -> dict[str, Any]:
    """Ranks and recommendations by a scorer that reads the host's copy in parts; ranks have different work."""
    whole = [table.state_dict()["weight"]]
    dist.broadcast_object_list(whole)
    table.open_whole()
    states = torch.randn(rank + 1, 3)
    targets = torch.arange(rank + 1) % (table.num_embeddings - 1) + 1
    answers = []
    for source in (table, whole[0]):
        scorer = Scorer(source, sparse=True, unit_columns=2, score_budget=2 * len(states))
        ranks = catalogue_ranks(scorer, states, Targets(torch.arange(len(targets)), targets))
        best = scorer.top_k(states, 1, targets)
        answers.append(
            [ranks.better, ranks.tied, best.item_ids, best.scores, scorer.score(states, targets.unsqueeze(1))]
        )
        last = table.num_embeddings - 1
        # Few candidates, whose rows are read alone, and more, for which all are.
        for allowed in (torch.tensor([last]), torch.arange(1, last + 1)):
            among = scorer.top_k(states, 1, targets, allowed=allowed)
            similar = ItemSimilarity.of_vectors(scorer, 2).best(targets, 1, allowed)
            answers[-1] += [among.item_ids, among.scores, similar.item_ids, similar.scores]
    open_files = os.listdir(tempfile.gettempdir())
    table.close_whole()
    return {"scores": answers, "open files": open_files}


def copies_refused(table: ShardedEmbedding, rank: int) -> dict[str, str]:
    """What all ranks are told where the disk is full, and where rank 2 has another folder than its host's first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 3 * table.num_embeddings - 1))
        full = message_of(table.open_whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/" if rank == 2 else tempfile.tempdir)
        elsewhere = message_of(table.open_whole)
    return {"full": full, "elsewhere": elsewhere}


def message_of(call: Callable[[], Any]) -> str:
    with torch.no_grad():
        try:
            call()
        except InputError as error:
            return str(error)
    return ""


def run_ranks(job: Callable[[Path], dict[str, Any]], ranks: int, folder: Path, port: int) -> None:
    """Fork ranks that each save what the job returns as NAME-RANK.pt, and wait for them."""
    children = []
    for rank in range(ranks):
        if (child := os.fork()) == 0:
            names = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "NODE_RANK": 0,
                "WORLD_SIZE": ranks,
                "JOB_RANKS": ranks,
            }
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                torch.save(job(folder), folder / f"{job.__name__}-{rank}.pt")
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit(f"{job.__name__} failed")


def main(target: str, port: int) -> None:
    folder = Path(target)
    (folder / "files").mkdir()
    tempfile.tempdir = str(folder / "files")
    jobs: list[tuple[Callable[[Path], dict[str, Any]], int]] = [
        (tables_alone, 3),
        (spread, 2),
        (alone, 1),
        (resumed_from_one, 2),
    ]
    for number, (job, ranks) in enumerate(jobs):
        run_ranks(job, ranks, folder, port + number)
