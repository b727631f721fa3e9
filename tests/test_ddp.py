"""Several ranks train on all windows and judge all users, as one does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from featured_logs import SCHEMA, featured_log
from forked_commands import run_ranks

pytestmark = pytest.mark.process

RUN = """
import json, sys
import lightning.pytorch as pl
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.splits import LastN
from seqrec.catalogue.distributed import leave_job
from seqrec.models import ColumnHead, MambaRec
from seqrec.evaluation.protocols import PopularityCandidates, Protocol

ranks, options, held_out = int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])


class Record(pl.Callback):
    def __init__(self):
        self.seen = {"train": [], "test": [], "tokens": [], "judged": []}

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.seen["train"].append(batch.user_ids.tolist())
        self.seen["tokens"].append(int(batch.history.lengths.sum()))

    def on_test_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.seen["test"].append(batch.user_ids.tolist())
        self.seen["judged"] += zip(
            outputs.user_ids[outputs.rows].tolist(), outputs.item_ids.tolist(),
            outputs.ranks.better.tolist(), outputs.ranks.tied.tolist(),
        )


pl.seed_everything(0, verbose=False)
data = SequenceDataModule(
    Table("log.parquet"), store="store", max_length=40, schema=Schema(events=json.loads(sys.argv[4])),
    split=LastN(held_out) if held_out > 1 else None, **options
)
record = Record()
trainer = pl.Trainer(
    accelerator="cpu", devices=ranks, strategy="ddp", max_epochs=1, logger=False, callbacks=[record],
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
)
read = {"event_columns": list(data.schema.events), "log_columns": data.event_columns}
read["heads"] = [ColumnHead(name) for name in data.schema.events if data.schema.events[name] != "vector"]
model = MambaRec(data.num_items, d_model=8, num_layers=1, d_state=4, max_length=40, **read)
if held_out > 1:
    model.protocol = Protocol(candidates=PopularityCandidates(20), ties="pessimistic")
# Before training, where all numbers of ranks have the same weights.
(metrics,) = trainer.test(model, data, verbose=False)
trainer.fit(model, data)
with open(f"{ranks}-{trainer.global_rank}.json", "w") as file:
    json.dump({**record.seen, "metrics": metrics}, file)
leave_job()
"""
RUNS = [
    pytest.param({"batch_size": 8, "eval_batch_size": 10}, 1, marks=pytest.mark.slow),
    ({"max_tokens": 320, "eval_batch_size": 7}, 2),
]


def run(folder: Path, ranks: int, options: dict[str, Any], held_out: int) -> list[dict[str, Any]]:
    """What each rank saw, where the `held_out` newest events of each user are judged."""
    if not (folder / "log.parquet").exists():
        featured_log(folder / "log.parquet", num_users=103, num_items=60, mean_events=30)
    run_ranks(folder, ranks, RUN, str(ranks), json.dumps(options), str(held_out), json.dumps(SCHEMA.events))
    return [json.loads((folder / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("options", "held_out"), RUNS, ids=str)
def test_ranks_share_the_work_of_one(tmp_path: Path, options: dict[str, Any], held_out: int, ranks: int):
    (alone,) = run(tmp_path, 1, options, held_out)
    assert 103 * held_out >= len(alone["judged"]) > 103 * (held_out - 1)
    assert ("test_Recall@10" in alone["metrics"]) == (held_out > 1)
    assert sorted(itertools.chain(*alone["test"])) == list(range(1, 104))
    seen = run(tmp_path, ranks, options, held_out)
    for stage in ("train", "test"):
        # Equal step counts; each user once.
        assert len({len(rank[stage]) for rank in seen}) == 1
        users = [user for rank in seen for batch in rank[stage] for user in batch]
        assert sorted(users) == sorted(itertools.chain(*alone[stage]))
    tokens = [sum(rank["tokens"]) for rank in seen]
    assert max(tokens) < 1.1 * min(tokens)
    for rank in seen:
        # Sums of integers, so the same to the last digit.
        assert rank["metrics"] == alone["metrics"]
    judged = [target for rank in seen for target in rank["judged"]]
    assert sorted(judged) == sorted(alone["judged"])
