"""Training at 5,000 events in each precision, compiled and recomputed, against float32; and NCCL with one rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from seqrec import models
from seqrec.benchmark.measurement import run_measured
from seqrec.benchmark.training import PLAIN, train_steps
from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
# Of losses from those of float32, after seven steps.
TOLERANCES = {
    "bf16": 2e-2,
    "fp16": 1e-2,
    PLAIN: 1e-3,
    "graphed": 1e-2,
    "bf16, graphed": 2e-2,
    "compiled": 1e-3,
    "recomputed": 1e-3,
    "bf16, compiled, recomputed": 2e-2,
}


def train(encoder: str, variant: str) -> dict[str, Any]:
    settings = {
        "batch_size": 16,
        "d_model": 64,
        "num_layers": 4,
        "num_items": 100_000,
        "dropout": 0.0,
        "steps": 5,
        "seed": 0,
        "device": "cuda",
    }
    arguments = {"encoder": encoder, "variant": variant, "length": 5000, "settings": settings}
    value: dict[str, Any] = run_measured(train_steps, arguments).value
    return value


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    return {encoder: train(encoder, "fp32") for encoder in ("MambaRec", "SASRec")}


@pytest.mark.parametrize("variant", list(TOLERANCES))
@pytest.mark.parametrize("encoder", ["MambaRec", "SASRec"])
def test_losses_at_5000_events_are_those_of_float32(
    encoder: str, variant: str, plain: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    found, expected = train(encoder, variant), plain[encoder]
    with capsys.disabled():
        print(
            f"\n{encoder}, {variant}: {min(found['step_seconds']) * 1e3:.0f} ms a step "
            f"(fp32 {min(expected['step_seconds']) * 1e3:.0f}), {found['device_bytes'] / 2**30:.2f} GiB "
            f"(fp32 {expected['device_bytes'] / 2**30:.2f}), loss {found['losses'][-1]:.5f} "
            f"(fp32 {expected['losses'][-1]:.5f})"
        )
    assert found["losses"] == pytest.approx(expected["losses"], rel=TOLERANCES[variant])
    if "recomputed" in variant:
        assert found["device_bytes"] < 0.7 * expected["device_bytes"]


def test_one_rank_over_nccl_trains_and_tests_as_none_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("polars", reason="a log is prepared by polars")
    data = SequenceDataModule(Synthetic(num_users=40, num_items=60, mean_events=25), store=str(tmp_path / "store"))
    results = []
    for strategy in ("auto", "ddp"):
        pl.seed_everything(0, verbose=False)
        model = models.MambaRec(data.num_items, d_model=8, num_layers=1, item_table=ItemTable(sparse=True))
        trainer = pl.Trainer(
            accelerator="gpu", devices=1, strategy=strategy, max_epochs=2, default_root_dir=tmp_path, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, data)
        if strategy == "ddp":
            assert torch.distributed.get_backend() == "nccl"
        (metrics,) = trainer.test(model, data, verbose=False)
        results.append([metrics, {key: weight.cpu() for key, weight in model.state_dict().items()}])
    torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    for key, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], weight, rtol=1e-4, atol=1e-4)
    assert results[1][0] == pytest.approx(results[0][0], abs=0.05)
