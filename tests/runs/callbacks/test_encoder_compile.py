from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from seqrec import models
from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.errors import InputError
from seqrec.models import Popularity, SequentialRecommender
from seqrec.runs.callbacks import EncoderCompile
from seqrec.training.losses import FullSoftmax
from seqrec.training.optim import Adam
from seqrec.types import History, RaggedItems, SequenceBatch

NUM_ITEMS = 50
# Rows and events of batches.
SHAPES = ((4, 40), (3, 33), (5, 64), (4, 130), (2, 100), (7, 41), (3, 200), (6, 65))

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs as torch.compile makes them, run by torch's own kernels: no minute of a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def batches() -> list[SequenceBatch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, length in SHAPES:
        events = torch.randint(1, NUM_ITEMS + 1, (rows, length + 1), generator=generator)
        history = History(events[:, :-1].contiguous(), torch.full((rows,), length))
        seen = RaggedItems.from_rows(list(events))
        found.append(SequenceBatch(history, events[:, 1:].contiguous(), torch.arange(1, rows + 1), seen))
    return found


class Gradients(pl.Callback):
    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found += [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]


def fit(model: SequentialRecommender, execution: EncoderCompile, **options: Any) -> list[torch.Tensor]:
    """Losses and gradients of the steps."""
    gradients = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[execution, gradients], logger=False, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(batches(), batch_size=None, collate_fn=None))
    return [trainer.callback_metrics["train_loss_epoch"], *gradients.found]


def assert_compiled_is_plain(name: str, arguments: dict[str, Any], *, recompute: bool = False) -> None:
    torch.manual_seed(0)
    plain = getattr(models, name)(
        NUM_ITEMS, d_model=8, num_layers=1, dropout=0.0, loss=FullSoftmax(), optimizer=Adam(1e-3), **arguments
    )
    compiled = copy.deepcopy(plain)
    expected = fit(plain, EncoderCompile())
    found = fit(compiled, EncoderCompile(compile=True, activation_checkpointing=recompute))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


OTHERS = itertools.product(("MambaRec", "MoEMaTrRec"), ({"mixer": "mamba2"}, {}), (False, True))


@pytest.mark.parametrize(
    ("name", "arguments", "recompute"),
    [
        ("SASRec", {}, False),
        ("MambaRec", {}, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
        pytest.param("MoEMaTrRec", {"causal": False}, True, marks=pytest.mark.slow),
    ],
)
def test_graphs_without_breaks_serve_batches_of_all_shapes(
    name: str, arguments: dict[str, Any], recompute: bool, traced_alone: None
):
    assert_compiled_is_plain(name, arguments, recompute=recompute)
    assert not counters["graph_break"]
    # Histories that fit into one stretch of a scan, which keeps a state for each, may have a graph of their own.
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), [*((name, {}) for name in ENCODERS), ("RecMamba", {"mixer": "mamba2"})])
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_kernels_give_the_same_losses_and_gradients(name: str, arguments: dict[str, Any], recompute: bool):
    assert_compiled_is_plain(name, arguments, recompute=recompute)


def test_execution_is_no_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    model = models.MambaRec(NUM_ITEMS, d_model=8, num_layers=1, loss=FullSoftmax())
    execution = EncoderCompile(compile=True, activation_checkpointing=True)
    fit(model, execution)
    assert model.encoder.stack.recompute
    assert model.encoder._compiled_call_impl is not None
    path = tmp_path / "model.ckpt"
    model.trainer.save_checkpoint(path)
    loaded = models.MambaRec.load_from_checkpoint(path)
    assert not loaded.encoder.stack.recompute
    assert loaded.encoder._compiled_call_impl is None
    assert list(loaded.state_dict()) == list(model.state_dict())


class Bare(SequenceEncoder):
    """An encoder of someone else's, without blocks."""

    def __init__(self, d_model: int = 4) -> None:
        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)
        self.layer = torch.nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor, history: History) -> torch.Tensor:
        return self.layer(x)


def test_an_encoder_or_a_model_that_cannot_is_refused():
    with pytest.raises(InputError, match="Bare has no blocks that can be recomputed"):
        fit(SequentialRecommender(NUM_ITEMS, encoder=Bare()), EncoderCompile(activation_checkpointing=True))
    with pytest.raises(InputError, match=r"Popularity has no encoder.*execution.compile"):
        EncoderCompile(compile=True).setup(pl.Trainer(logger=False), Popularity(NUM_ITEMS), "fit")
