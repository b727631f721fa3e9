"""Runs with row-sparse tables under a trainer: updates, clipping, accumulation, fp16, resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from seqrec.catalogue.table import ItemTable
from seqrec.models import SASRec
from seqrec.training.losses import SampledSoftmax
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import Adam, LazyAdam, LinearWarmup, RowwiseAdagrad
from seqrec.types import SequenceBatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MakeTrainer = Callable[..., pl.Trainer]


def model(sparse: bool, **arguments: object) -> SASRec:
    torch.manual_seed(0)
    return SASRec(
        30,
        d_model=8,
        max_length=7,
        dropout=0.0,
        item_table=ItemTable(sparse=sparse),
        loss=SampledSoftmax(UniformNegatives(3, exclude_seen=False)),
        **arguments,
    ).double()  # Adam divides by gradients, which may be rounding errors alone


def weights_after(made: SASRec, trainer: pl.Trainer, batches: Sequence[SequenceBatch], **fit: object):
    trainer.fit(made, batches, **fit)
    return {name: weight.clone() for name, weight in made.state_dict().items()}


class Gradients(pl.Callback):
    """Dense form of the gradients that an update was made of."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.found = {name: p.grad.to_dense() for name, p in pl_module.named_parameters()}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ],
    ids=str,
)
def test_updates_are_made_of_the_gradients_of_a_dense_table(
    arguments: dict[str, object], batches: Sequence[SequenceBatch], make_trainer: MakeTrainer
):
    dense, sparse = Gradients(), Gradients()
    for kept in (dense, sparse):
        made = model(kept is sparse)
        before = made.items.weight.detach().clone()
        weights_after(made, make_trainer(max_steps=1, callbacks=[kept], **arguments), batches)
        assert not torch.equal(made.items.weight, before)
    assert max(gradient.abs().max() for gradient in dense.found.values()) > 0
    torch.testing.assert_close(sparse.found, dense.found)


def test_the_run_says_how_the_table_is_trained(
    batches: Sequence[SequenceBatch], make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO"):
        weights_after(model(False), make_trainer(max_steps=1), batches)
        weights_after(model(True, optimizer=Adam(table=RowwiseAdagrad())), make_trainer(max_steps=1), batches)
    assert (
        "items: 31 rows x 8, float64, dense gradients (row-sparse is the default from 500,000 rows on)" in caplog.text
    )
    assert "optimizer: fused Adam\n" in caplog.text
    assert "items: 31 rows x 8, float64, row-sparse gradients" in caplog.text
    assert "optimizer: fused Adam, RowwiseAdagradOptimizer of tables" in caplog.text


def test_rows_that_no_batch_touched_keep_their_bits(batches: Sequence[SequenceBatch], make_trainer: MakeTrainer):
    made = model(True, optimizer=Adam(table=RowwiseAdagrad()))
    made.loss = SampledSoftmax(UniformNegatives(1, exclude_seen=False))
    before = made.items.weight.detach().clone()
    first = batches[0]
    weights_after(made, make_trainer(max_steps=1, limit_train_batches=1), batches)
    moved = (made.items.weight != before).any(1).nonzero().flatten().tolist()
    events = set(first.history.item_ids.flatten().tolist()) | set(first.targets.flatten().tolist())
    assert events - {0} <= set(moved)
    # One negative for each of the batch's nine events.
    assert len(moved) <= len(events - {0}) + 9
    assert 0 not in moved


def test_the_schedule_moves_the_steps_of_all_parts(batches: Sequence[SequenceBatch], make_trainer: MakeTrainer):
    settings = Adam(1e-2, table=RowwiseAdagrad(0.1), schedule=LinearWarmup(4))
    trainer = make_trainer(max_epochs=1)
    weights_after(model(True, optimizer=settings), trainer, batches)
    (optimizer,) = trainer.optimizers
    # Behind the second of four steps of warm-up the third comes next.
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2 * 3 / 4, 0.1 * 3 / 4])


@pytest.mark.parametrize("clip", [None, 0.1])
def test_fp16_training_scales_and_unscales_row_sparse_gradients(
    clip: float | None, batches: Sequence[SequenceBatch], make_trainer: MakeTrainer
):
    def run(sparse: bool) -> tuple[dict[str, torch.Tensor], float]:
        scaler = torch.amp.GradScaler("cpu")
        trainer = make_trainer(
            max_steps=1, gradient_clip_val=clip, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)]
        )
        return weights_after(model(sparse).float(), trainer, batches), scaler.get_scale()

    dense, _ = run(False)
    sparse, scale = run(True)
    assert scale == 2.0**16  # no step was skipped
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("table", [LazyAdam(), RowwiseAdagrad()], ids=["LazyAdam", "RowwiseAdagrad"])
def test_a_resumed_run_ends_with_the_same_bits(
    table: LazyAdam | RowwiseAdagrad,
    batches: Sequence[SequenceBatch],
    make_trainer: MakeTrainer,
    tmp_path: Path,
):
    def made() -> SASRec:
        return model(True, optimizer=Adam(1e-2, table=table))

    whole = weights_after(made(), make_trainer(max_epochs=4), batches)
    trainer = make_trainer(max_epochs=2)
    weights_after(made(), trainer, batches)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = weights_after(made(), make_trainer(max_epochs=4), batches, ckpt_path=tmp_path / "half.ckpt")
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
