"""Run on a machine with a GPU: pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from seqrec import models
from seqrec.encoders import ENCODERS
from seqrec.evaluation.protocols import FullRanking, SampledRanking
from seqrec.ops import selective_scan
from seqrec.types import History, RaggedItems, SequenceBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
NUM_ITEMS = 500


def make_batch(rows: int = 8, length: int = 64) -> SequenceBatch:
    generator = torch.Generator().manual_seed(0)
    item_ids = torch.randint(1, NUM_ITEMS + 1, (rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    item_ids *= torch.arange(length) < lengths.unsqueeze(1)
    targets = item_ids.roll(-1, 1) * (torch.arange(length) < lengths.unsqueeze(1) - 1)
    targets.scatter_(1, (lengths - 1).unsqueeze(1), 7)
    seen_events = RaggedItems.from_rows([row[row > 0] for row in item_ids])
    return SequenceBatch(History(item_ids, lengths), targets, torch.arange(1, rows + 1), seen_events)


def test_chunked_scan_on_the_device_equals_the_reference_on_cpu():
    torch.manual_seed(0)
    shapes = {"u": (2, 70, 5), "delta": (2, 70, 5), "A": (5, 3), "B": (2, 70, 3), "C": (2, 70, 3)}
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].abs()
    results = []
    for device, backend in (("cpu", "reference"), ("cuda", "chunked")):
        leaves = {name: value.to(device).requires_grad_() for name, value in inputs.items()}
        y = selective_scan(**leaves, delta_softplus=True, backend=backend)
        gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
        results.append([y, *gradients])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_states_on_the_device_equal_those_on_cpu(name: str):
    torch.manual_seed(0)
    model = getattr(models, name)(NUM_ITEMS, d_model=32).eval()
    batch = make_batch()
    # cuDNN's recurrences round to TF32 unless told otherwise.
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = model.last_states(batch)
        found = model.cuda().last_states(batch.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("protocol", [FullRanking(), SampledRanking(50)], ids=lambda protocol: protocol.id)
def test_ranks_on_the_device_equal_those_on_cpu(protocol):
    model = models.GRU4Rec(NUM_ITEMS, d_model=8).double().eval()
    batch = make_batch()
    states = torch.randn(len(batch), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = protocol.judge(states, batch, model.scorer()).ranks
    found = protocol.judge(states.cuda(), batch.to("cuda"), model.cuda().scorer()).ranks.to("cpu")
    assert found.better.tolist() == expected.better.tolist()
    assert found.tied.tolist() == expected.tied.tolist()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_training_steps_on_the_device_lower_the_loss(name: str, precision: str, tmp_path: Path):
    pl.seed_everything(0)
    model = getattr(models, name)(NUM_ITEMS, d_model=32, dropout=0.0)
    trainer = pl.Trainer(
        max_steps=30,
        accelerator="gpu",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    batch = make_batch()
    with torch.no_grad():
        before = float(model.eval().loss_of_batch(batch))
    trainer.fit(model.train(), torch.utils.data.DataLoader([batch] * 30, batch_size=None))
    with torch.no_grad():
        after = float(model.cpu().eval().loss_of_batch(batch))
    assert after < before - 0.1
