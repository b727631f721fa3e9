"""Small runs of all encoders, one after the other, as each process of a job makes them.

`python cluster_runs.py OUT RANKS HOSTS [compiled]` in the folder that is the host's own disk; all hosts see OUT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from seqrec import models
from seqrec.catalogue.distributed import leave_job
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.encoders import ENCODERS
from seqrec.runs.callbacks import EncoderCompile
from seqrec.training.losses import FullSoftmax
from seqrec.training.optim import Adam, WarmupCosine

BATCH_SIZE, STEPS = 16, 20
PLAIN: dict[str, Any] = {"accumulate": 1, "schedule": False, "clip": None, "execution": {}}
# Bidirectional encoders draw what is masked, which is another thing for each number of ranks.
CAUSAL = [name for name in ENCODERS if not ENCODERS[name].bidirectional]
RUNS: dict[str, dict[str, Any]] = {name: {**PLAIN, "encoder": name} for name in CAUSAL}
RUNS["accumulated, scheduled, clipped"] = {
    **PLAIN,
    "encoder": "MambaRec",
    "accumulate": 2,
    "schedule": True,
    "clip": 0.05,
}
RUNS["recomputed"] = {**PLAIN, "encoder": "MoEMaTrRec", "execution": {"activation_checkpointing": True}}
# A minute of compilers.
COMPILED = {
    **PLAIN,
    "encoder": "MambaRec",
    "execution": {"compile": True, "activation_checkpointing": True},
}


def run(options: dict[str, Any], ranks: int, hosts: int) -> dict[str, Any]:
    """Weights after 20 steps and metrics of the test, with batches that join to the same for any number of ranks."""
    # Weights are equal only because DDP sends those of the first rank.
    torch.manual_seed(int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))))
    steps = STEPS * options["accumulate"]
    data = SequenceDataModule(
        Synthetic(num_users=STEPS * BATCH_SIZE // 2, num_items=60, mean_events=25),
        store="store",
        max_length=40,
        batch_size=BATCH_SIZE // ranks,
    )
    model = getattr(models, options["encoder"])(
        data.num_items,
        d_model=8,
        num_layers=1,
        dropout=0.0,
        max_length=40,
        # The one objective that draws nothing, since what ranks draw is another thing for each number of them.
        loss=FullSoftmax(),
        optimizer=Adam(1e-2, schedule=WarmupCosine(4) if options["schedule"] else None),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks // hosts,
        num_nodes=hosts,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=steps // (STEPS // 2),
        accumulate_grad_batches=options["accumulate"],
        gradient_clip_val=options["clip"],
        callbacks=[EncoderCompile(**options["execution"])],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    assert (trainer.global_step, trainer.world_size) == (STEPS, ranks)
    (metrics,) = trainer.test(model, data, verbose=False)
    return {"weights": model.state_dict(), "metrics": metrics, "rank": trainer.global_rank}


def main(out: str, ranks: int, hosts: int, *, compiled: bool = False) -> None:
    runs = {"compiled": COMPILED} if compiled else RUNS
    results = {name: run(options, ranks, hosts) for name, options in runs.items()}
    (rank,) = {result["rank"] for result in results.values()}
    torch.save(results, Path(out) / f"{rank}.pt")
    leave_job()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), compiled="compiled" in sys.argv)
