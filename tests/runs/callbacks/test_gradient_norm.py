from __future__ import annotations

import csv

import lightning.pytorch as pl
import pytest
import torch

from seqrec.catalogue.sharding import total_norm
from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models import GRU4Rec
from seqrec.runs import RunFolder
from seqrec.runs.callbacks import GradientNorm
from seqrec.runs.callbacks.monitoring import gradient_norms

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Norms(pl.Callback):
    """Norm of all gradients as dense ones, by step."""

    def __init__(self) -> None:
        self.whole: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, model: pl.LightningModule, optimizer) -> None:
        dense = [parameter.grad.to_dense().flatten() for parameter in model.parameters()]
        self.whole.append(float(torch.cat(dense).norm()))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_norm_of_all_gradients_before_clipping_is_logged_every_few_steps(tmp_path, sparse: bool):
    log = Synthetic(num_users=40, num_items=30, mean_events=12)
    data = SequenceDataModule(log, store=str(tmp_path / "store"), max_length=8, batch_size=8)
    model = GRU4Rec(data.num_items, d_model=4, max_length=8, item_table=ItemTable(sparse=sparse))
    norms = Norms()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[norms, GradientNorm()],
        log_every_n_steps=3,
        gradient_clip_val=0.01,
        logger=RunFolder(str(tmp_path), tensorboard=False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gradient_norm"]]
    # Lightning counts steps from 0 here.
    assert [int(row["step"]) for row in rows] == [2, 5, 8]
    for row in rows:
        assert float(row["gradient_norm"]) == pytest.approx(norms.whole[int(row["step"])], rel=1e-5)
        assert ("gradient_norm_tables" in row) == sparse
    assert len(norms.whole) == 10


def test_rows_that_occur_twice_count_as_their_sum_and_missing_gradients_as_nothing(sparse_gradient):
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(5, 2, sparse=True), "rest": torch.nn.Linear(2, 1)})
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 0.0]])
    model["table"].weight.grad = sparse_gradient([1, 2, 1], rows, rows=5)
    dense, tables = gradient_norms(model)
    assert float(dense) == 0.0
    assert float(tables) == pytest.approx((6**2 + 4**2) ** 0.5)
    model["table"].weight.grad = None
    assert gradient_norms(model)[1] is None
    assert float(total_norm([], [])) == 0.0
