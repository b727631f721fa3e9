"""Recorded training steps against steps without recordings, with a recorder for CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from graphed_runs import (
    ENCODERS,
    LOSSES,
    NUM_ITEMS,
    ROWS,
    Breaks,
    GraphedOnCPU,
    assert_equal_runs,
    fit,
    full_rows,
    make_batch,
    make_model,
    padded,
    varied,
)
from tape import TapeRecorder, use_operations_of_torch
from torch import Tensor

from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.event_columns import EventColumn
from seqrec.data.sources import Synthetic
from seqrec.errors import DivergenceError, InputError
from seqrec.models import ColumnHead, SequentialRecommender
from seqrec.runs.callbacks import FiniteLoss, GraphedStep
from seqrec.training.losses import BCE, FullSoftmax, InBatchSoftmax, Loss
from seqrec.training.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("encoder", "loss"), [*((encoder, "BCE") for encoder in ENCODERS), *(("GRU4Rec", loss) for loss in [*LOSSES][1:])]
)
def test_recorded_steps_are_those_of_the_padded_batches(encoder: str, loss: str):
    graphed, model, other = GraphedOnCPU(), make_model(encoder, LOSSES[loss]()), make_model(encoder, LOSSES[loss]())
    losses = fit(model, varied(), graphed)
    assert losses == pytest.approx(fit(other, [padded(batch) for batch in varied()]), rel=1e-6)
    assert_equal_runs(model, other)
    # 32, 48 and 64 events, forward and backward; with more seen items than before, recorded again.
    assert graphed.calls.recordings >= 6


class Taped(GraphedStep):
    """`GraphedStep` that repeats the operations it recorded, and runs no Python of ours after that."""

    def recorder(self, device: torch.device) -> Recorder:
        return TapeRecorder()


# On a CPU, unseen items of each user's own are checked by reading values, which these objectives do not need; and
# oneDNN keeps results of recurrent layers in a layout of its own, which cannot be repeated.
TAPED = [(encoder, "BCE, seen") for encoder in ENCODERS if encoder != "GRU4Rec"]
TAPED += [("SASRec", "BCE, popular"), ("SASRec", "GBCE")]
TAPED += [("SASRec", loss) for loss in ("SampledSoftmax", "SampledSoftmax, unseen", "FullSoftmax")]


@pytest.mark.parametrize(
    ("encoder", "loss", "settings"),
    [
        *((*each, {}) for each in TAPED),
        ("SASRec", "BCE, seen", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.01}),
        ("SASRec", "BCE, seen", {"precision": "bf16-mixed"}),
    ],
)
def test_operations_that_were_recorded_are_the_whole_step(
    encoder: str, loss: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """No value is read meanwhile, and nothing but the memory of the batch decides what a launch computes."""
    use_operations_of_torch(monkeypatch)
    model, other = make_model(encoder, LOSSES[loss]()), make_model(encoder, LOSSES[loss]())
    losses = fit(model, varied(4), Taped(), **settings)
    expected = fit(other, [padded(batch) for batch in varied(4)], **settings)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert_equal_runs(model, other)


class Draws(pl.Callback):
    """Draws numbers of its own after each step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        torch.rand(batch_idx + 1)


def test_draws_of_a_recorded_step_depend_on_the_step_alone():
    """Not on what is drawn, or recorded, before."""
    found = [fit(make_model("SASRec", BCE()), varied(5), GraphedOnCPU(), *others) for others in ([], [Draws()])]
    assert found[0] == found[1]
    # The third length is recorded in the fourth batch, or not at all.
    few = fit(make_model("SASRec", BCE()), [padded(batch) for batch in varied(5)], GraphedOnCPU(max_graphs=1))
    assert few == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_changes_neither_loss_nor_gradients(loss: str):
    """With draws that are the same for the batch without padding: those of full rows of a padded length."""
    generator = torch.Generator().manual_seed(0)
    model = make_model("GRU4Rec", LOSSES[loss](), dropout=0.0)
    full = make_batch([48] * ROWS, generator)
    found = []
    for batch in (full, padded(full)):
        torch.manual_seed(2)
        value = model.loss_of_batch(batch)
        found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padded_rows_have_the_loss_and_the_gradients_of_ordinary_ones(encoder: str):
    model = make_model(encoder, FullSoftmax(), dropout=0.0)
    for batch in varied(4):
        found = []
        for each in (batch, padded(batch)):
            value = model.loss_of_batch(each)
            found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def plain() -> SequentialRecommender:
    model = make_model("GRU4Rec", BCE())
    fit(model, [padded(batch) for batch in varied(4)])
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_settings_of_the_trainer_hold(settings: dict[str, Any], plain: SequentialRecommender):
    model, other = (make_model("GRU4Rec", BCE()) for _ in range(2))
    losses = fit(model, varied(4), GraphedOnCPU(), **settings)
    assert losses == pytest.approx(fit(other, [padded(batch) for batch in varied(4)], **settings), rel=1e-6)
    assert_equal_runs(model, other)
    assert not torch.equal(plain.items.weight, model.items.weight)


@pytest.mark.parametrize("loss", ["BCE", "BCE, seen", "SampledSoftmax"])
def test_row_sparse_tables_are_read_and_written_as_without_recording(loss: str, monkeypatch: pytest.MonkeyPatch):
    """With lookups as on a GPU, whose gradients repeat rows."""
    for module in ("table", "scorer"):
        monkeypatch.setattr(f"seqrec.catalogue.{module}.sums_at_lookup", lambda device: False)
    settings: dict[str, Any] = {"item_table": ItemTable(sparse=True, bias=True)}
    model, other = (make_model("GRU4Rec", LOSSES[loss](), **settings) for _ in range(2))
    losses = fit(model, varied(), GraphedOnCPU(), gradient_clip_val=0.05)
    expected = fit(other, [padded(batch) for batch in varied()], gradient_clip_val=0.05)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert_equal_runs(model, other)
    assert not model.items.weight[0].any()


def test_an_epochs_last_batch_and_lengths_beyond_the_bound_are_computed_without_recording(
    caplog: pytest.LogCaptureFixture,
):
    graphed, model = GraphedOnCPU(max_graphs=2), make_model("GRU4Rec", FullSoftmax())
    with caplog.at_level("INFO"):
        losses = fit(model, [*varied(), *varied(1, rows=ROWS - 1)], graphed)
    assert len(losses) == 11
    # 60 and 64 events come after 32 and 48; then three rows.
    assert "GraphedStep: 8 batches by CUDA graphs of 2 lengths, 3 without" in caplog.text


def test_a_loss_of_nan_stops_the_run_before_the_update():
    model, breaks = make_model("SASRec", BCE()), Breaks()
    with pytest.raises(DivergenceError, match="step 5; the update was not made"):
        fit(model, varied(), GraphedOnCPU(), breaks, FiniteLoss())
    assert torch.equal(model.items.weight, breaks.before)
    assert model.graphed_loss is None


class Moves(pl.Callback):
    """Moves a table to other memory."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            pl_module.items.table.weight.data = pl_module.items.table.weight.data.clone()


def test_weights_in_other_memory_are_recorded_again():
    found, recordings = [], []
    for others in ([Moves()], []):
        graphed, model = GraphedOnCPU(), make_model("SASRec", FullSoftmax())
        fit(model, varied(), graphed, *others)
        found.append(model)
        recordings.append(graphed.calls.recordings)
    assert_equal_runs(*found)
    assert recordings == [10, 6]


class LooksAhead(pl.Callback):
    """Computes the next loss before the backward pass of the present one."""

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        pl_module.graphed_loss(varied(1)[0])


def test_one_backward_pass_follows_each_loss():
    with pytest.raises(RuntimeError, match="one backward pass, before the next loss"):
        fit(make_model("SASRec", BCE()), varied(2), GraphedOnCPU(), LooksAhead())


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (lambda: InBatchSoftmax(), {}, "model.loss=InBatchSoftmax with InBatchNegatives does not support"),
        (lambda: BCE(), {"item_table": ItemTable(sharded=True)}, "cannot record item_table.sharded"),
    ],
)
def test_what_cannot_be_recorded_is_refused(loss: Any, settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        fit(make_model("SASRec", loss(), **settings), varied(2), GraphedOnCPU())


def test_batches_whose_rows_depend_on_lengths_are_refused(tmp_path: Path):
    data = SequenceDataModule(
        Synthetic(num_users=9, num_items=NUM_ITEMS), store=str(tmp_path / "store"), max_length=64, max_tokens=128
    )
    trainer = pl.Trainer(callbacks=[GraphedOnCPU()], accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match=r"needs batches of equal rows, but data\.max_tokens=128"):
        trainer.fit(make_model("SASRec", BCE()), data)


def test_heads_are_refused():
    liked = ColumnHead(EventColumn("liked", "categorical", values=[0, 1]))
    with pytest.raises(InputError, match=r"records the loss of the item alone: leave it or model\.heads out"):
        fit(make_model("SASRec", BCE(), heads=[liked]), varied(2), GraphedOnCPU())


def test_a_state_that_is_carried_is_refused():
    model = make_model("GRU4Rec", BCE(), positions=False, carry_state=True)
    with pytest.raises(InputError, match="cannot record a state that changes with each batch"):
        fit(model, varied(2), GraphedOnCPU())


def test_an_objective_that_may_count_padding_is_refused():
    class Own(Loss):
        def __init__(self) -> None:
            super().__init__()

        def forward(self, states: Tensor, batch: Any, scorer: Any) -> Tensor:
            here = batch.is_target
            return -scorer.score(states[here], batch.targets[here].unsqueeze(1)).mean()

    with pytest.raises(InputError, match=r"model\.loss=Own does not support"):
        fit(make_model("SASRec", Own()), varied(2), GraphedOnCPU())


def test_a_cpu_has_no_graphs():
    with pytest.raises(InputError, match="GraphedStep needs a CUDA device, and this run is on cpu"):
        fit(make_model("SASRec", BCE()), varied(2), GraphedStep())
    assert len(fit(make_model("SASRec", BCE()), varied(2), GraphedStep(enabled=False))) == 2


RANKS = """
import os
import torch
from graphed_runs import GraphedOnCPU, fit, full_rows, make_model, rows_of
from seqrec.catalogue.distributed import leave_job
from seqrec.training.losses import FullSoftmax

model, graphed = make_model("GRU4Rec", FullSoftmax(), dropout=0.0), GraphedOnCPU()
rank = int(os.environ.get("LOCAL_RANK", 0))
settings = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "gradient_clip_val": 0.1}
fit(model, [rows_of(batch, 2 * rank, 2) for batch in full_rows()], graphed, **settings)
assert graphed.calls.recordings == 4
torch.save(model.state_dict(), f"{rank}.pt")
leave_job()
"""


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_train_as_one_with_the_rows_of_both(tmp_path: Path):
    (tmp_path / "run.py").write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = make_model("GRU4Rec", FullSoftmax(), dropout=0.0)
    fit(alone, full_rows(), gradient_clip_val=0.1)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(first[name], weight, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(first[name], second[name])
