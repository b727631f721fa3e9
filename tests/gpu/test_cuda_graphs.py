"""Training steps as CUDA graphs against the same steps without, and their time and memory."""

from __future__ import annotations

import os
import time
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from graphed_runs import ENCODERS, LOSSES, ROWS, Breaks, fit, make_batch, make_model, padded, varied
from torch import Tensor

from seqrec import models
from seqrec.benchmark.catalogue import full_batch
from seqrec.catalogue.table import ItemTable
from seqrec.data.prefetch import PrefetchedBatches
from seqrec.errors import DivergenceError, InputError
from seqrec.runs.callbacks import FiniteLoss, GraphedStep
from seqrec.training.graphs import GraphedLoss
from seqrec.training.losses import BCE, FullSoftmax
from seqrec.training.recorder import CudaRecorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}


def compare(
    encoder: str, loss: str, *, rel: float = 1e-4, item_table: ItemTable | None = None, **settings: Any
) -> None:
    """Train on ten batches with and without graphs, and compare losses and weights."""
    graphed = GraphedStep()
    shared = {} if item_table is None else {"item_table": item_table}
    model, other = (make_model(encoder, LOSSES[loss](), **shared) for _ in range(2))
    losses = fit(model, varied(), graphed, **GPU, **settings)
    assert losses == pytest.approx(fit(other, [padded(batch) for batch in varied()], **GPU, **settings), rel=rel)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight.cpu(), other.state_dict()[name].cpu(), rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_losses_and_weights_are_those_without_graphs(encoder: str):
    compare(encoder, "BCE")


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "BCE"])
def test_each_objective_has_the_losses_and_weights_without_graphs(loss: str):
    compare("SASRec", loss)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01},
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
    ],
    ids=str,
)
@pytest.mark.parametrize("encoder", ["MambaRec", "SASRec"])
def test_settings_of_the_trainer_hold(encoder: str, settings: dict[str, Any]):
    compare(encoder, "BCE", rel=1e-3 if "precision" in settings else 1e-4, **settings)


@pytest.mark.parametrize("settings", [{"sparse": True}, {"temperature": 0.1}, {"sparse": True, "temperature": 0.1}])
@pytest.mark.parametrize("loss", ["BCE", "BCE, seen", "SampledSoftmax"])
def test_tables_of_each_kind_hold(loss: str, settings: dict[str, Any]):
    compare("SASRec", loss, item_table=ItemTable(**settings))


def test_each_launch_draws_other_negatives_and_drops_other_values():
    batch = varied(1)[0].to(torch.device("cuda"))
    model = make_model("SASRec", BCE()).cuda()
    graphed = GraphedLoss(
        model, CudaRecorder(torch.device("cuda", 0)), num_rows=ROWS, max_length=64, needs_seen=True, max_graphs=4
    )
    losses = {float(graphed(batch)) for _ in range(5)}
    assert len(losses) == 5
    torch.manual_seed(3)
    first = float(graphed(batch))
    torch.manual_seed(3)
    assert float(graphed(batch)) == first


def test_a_loss_of_nan_stops_the_run_before_the_update():
    model, breaks = make_model("SASRec", BCE()), Breaks()
    with pytest.raises(DivergenceError, match="step 5; the update was not made"):
        fit(model, varied(), GraphedStep(), breaks, FiniteLoss(), **GPU)
    assert torch.equal(model.items.weight.cpu(), breaks.before.cpu())


def test_one_rank_of_ddp_trains_as_none_does():
    found = []
    for settings in ({}, {"strategy": "ddp"}):
        model = make_model("MambaRec", BCE())
        losses = fit(model, varied(), GraphedStep(), **GPU, **settings)
        found.append((losses, model.cpu()))
    torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, weight in found[0][1].state_dict().items():
        torch.testing.assert_close(weight, found[1][1].state_dict()[name], rtol=1e-3, atol=2e-4, msg=name)


def test_lengths_share_the_memory_of_the_longest():
    generator = torch.Generator().manual_seed(0)
    held = []
    for lengths in ((1000,), (1000, 768, 512, 384, 256, 192, 128)):
        model = models.SASRec(60, d_model=32, num_layers=2, max_length=1000).cuda()
        graphed = GraphedLoss(
            model, CudaRecorder(torch.device("cuda", 0)), num_rows=16, max_length=1000, needs_seen=True, max_graphs=20
        )
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for length in lengths:
            graphed(make_batch([length] * 16, generator).to(torch.device("cuda"))).backward()
        assert graphed.num_graphs == len(lengths)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved() - before)
        del graphed, model
    print(f"\nmemory of one length {held[0] / 2**20:.0f} MiB, of seven {held[1] / 2**20:.0f} MiB")
    assert held[1] < 1.6 * held[0]


def test_batches_are_copied_ahead_while_the_gpu_is_busy():
    generator = torch.Generator().manual_seed(0)
    batches = [make_batch([length] * ROWS, generator) for length in (20, 30, 40, 50, 60)]
    ahead = PrefetchedBatches((batch.pin_memory() for batch in batches), torch.device("cuda", 0))
    found = [next(ahead)]
    # The copies do not wait for this.
    torch.cuda._sleep(500_000_000)
    found += ahead
    for batch, moved in zip(batches, found, strict=True):
        for own, new in zip(batch.tensors(), moved.tensors(), strict=True):
            assert new.is_cuda
            assert torch.equal(own, new.cpu())


def test_a_loss_that_waits_for_the_device_is_refused():
    class Reads(FullSoftmax):
        def forward(self, states: Any, batch: Any, scorer: Any) -> Tensor:
            loss = super().forward(states, batch, scorer)
            return loss * (1 + 0 * loss.item())

    with pytest.raises(InputError, match="cannot be recorded as a CUDA graph"):
        fit(make_model("SASRec", Reads()), varied(1), GraphedStep(), **GPU)
    # The device works as before.
    assert float(torch.ones(3, device="cuda").sum()) == 3


class Clock(pl.Callback):
    """Seconds of ten steps at a time, without waiting for the device in between."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 10 == 0:
            torch.cuda.synchronize()
            now = time.perf_counter()
            if batch_idx > 10:
                self.seconds.append((now - self._began) / 10)
            self._began = now


@pytest.mark.parametrize("length", [1000, 5000])
@pytest.mark.parametrize("encoder", ["MambaRec", "SASRec"])
def test_the_step_is_faster(encoder: str, length: int, capsys: pytest.CaptureFixture[str]):
    rows, lines, seconds = 16, [], []
    torch.manual_seed(0)
    batches = [full_batch(20_000, rows, length).pin_memory() for _ in range(4)] * 13
    for graphed in (None, GraphedStep()):
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        clock = Clock()
        model = getattr(models, encoder)(20_000, d_model=32, num_layers=2, max_length=length, loss=BCE())
        fit(model, batches, graphed, clock, FiniteLoss(), **GPU)
        seconds.append(min(clock.seconds))
        lines.append(
            f"{encoder}, {rows} x {length:,}, {'graphs' if graphed else 'eager '}: {seconds[-1] * 1e3:.2f} ms a step, "
            f"{rows * length / seconds[-1] / 1e6:.2f} M events/s, {torch.cuda.max_memory_reserved() / 2**20:.0f} MiB"
        )
        del model
        torch.cuda.empty_cache()
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert seconds[1] < seconds[0]
