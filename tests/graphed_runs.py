"""Training runs of small models on generated batches, for tests of recorded steps. They need no log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seqrec import models
from seqrec.data.padding import PaddedBatch, padded_size
from seqrec.models import SequentialRecommender
from seqrec.runs.callbacks import GraphedStep
from seqrec.training.losses import BCE, GBCE, FullSoftmax, Loss, SampledSoftmax
from seqrec.training.negatives import MixedNegatives, PopularityNegatives, UniformNegatives
from seqrec.training.recorder import Recorder
from seqrec.types import History, RaggedItems, SequenceBatch

NUM_ITEMS, WIDTH, ROWS = 60, 16, 4
ENCODERS = ("MambaRec", "RecMamba", "SASRec", "GRU4Rec")
LOSSES: dict[str, Callable[[], Loss]] = {
    "BCE": BCE,
    "BCE, popular": lambda: BCE(PopularityNegatives(2)),
    "BCE, seen": lambda: BCE(UniformNegatives(3, exclude_seen=False)),
    "GBCE": lambda: GBCE(UniformNegatives(8, exclude_seen=False)),
    "SampledSoftmax": lambda: SampledSoftmax(UniformNegatives(40, exclude_seen=False, shared=True)),
    "SampledSoftmax, unseen": lambda: SampledSoftmax(UniformNegatives(40, shared=True)),
    "SampledSoftmax, mixed": lambda: SampledSoftmax(MixedNegatives([UniformNegatives(4), PopularityNegatives(4)])),
    "FullSoftmax": FullSoftmax,
}


class Losses(pl.Callback):
    """The loss of each batch."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Not read here, where Python would wait for a GPU.
        self.values.append(outputs["loss"])


class CallsAgain(Recorder):
    """Calls a function again, after the memory of the batch that the step was given is overwritten."""

    def __init__(self) -> None:
        self.batch: SequenceBatch | None = None
        self.recordings = 0

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1

        def call() -> None:
            if self.batch is not None:
                for tensor in (self.batch.history.item_ids, self.batch.targets, self.batch.seen_events.item_ids):
                    tensor.fill_(-(10**6))
                for tensor in (self.batch.history.lengths, self.batch.user_ids, self.batch.seen_events.offsets):
                    tensor.fill_(-(10**6))
            function()

        return call


class GraphedOnCPU(GraphedStep):
    """`GraphedStep` with the recorder above."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls = CallsAgain()

    def recorder(self, device: torch.device) -> Recorder:
        return self.calls

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: SequenceBatch, batch_idx: int) -> None:
        # Each step needs its own batch, because the step's memory is overwritten.
        self.calls.batch = batch if len(batch) == ROWS else None


def make_batch(lengths: list[int], generator: torch.Generator) -> SequenceBatch:
    """Return rows of these lengths. The ten last items are never seen."""
    longest = max(lengths)
    events = torch.randint(1, NUM_ITEMS - 9, (len(lengths), longest + 1), generator=generator)
    count = torch.tensor(lengths)
    inside = torch.arange(longest) < count.unsqueeze(1)
    seen = RaggedItems.from_rows([row[: length + 1] for row, length in zip(events, lengths, strict=True)])
    history = History(events[:, :-1].where(inside, 0), count)
    weight = torch.tensor(sum(lengths) / (len(lengths) * 40))
    return SequenceBatch(history, events[:, 1:].where(inside, 0), torch.arange(1, len(lengths) + 1), seen, weight)


def full_rows() -> list[SequenceBatch]:
    """Return batches of four rows, which are all as long."""
    generator = torch.Generator().manual_seed(0)
    return [make_batch([length] * ROWS, generator) for length in (48, 32, 40, 48, 25)]


def rows_of(batch: SequenceBatch, first: int, count: int) -> SequenceBatch:
    """Return some rows of a batch."""
    rows, bounds = slice(first, first + count), batch.seen_events.offsets[first : first + count + 1]
    assert batch.targets is not None
    return SequenceBatch(
        History(batch.history.item_ids[rows], batch.history.lengths[rows]),
        batch.targets[rows],
        batch.user_ids[rows],
        RaggedItems(batch.seen_events.item_ids[bounds[0] : bounds[-1]], bounds - bounds[0]),
        batch.weight,
    )


def padded(batch: SequenceBatch) -> SequenceBatch:
    """The batch as the recorded step computes it, in memory of its own."""
    room = padded_size(len(batch.seen_events.item_ids))
    found = PaddedBatch.like(batch, num_events=padded_size(batch.history.item_ids.shape[1]), num_seen=room)
    found.fill(batch)
    return found


def varied(count: int = 10, *, rows: int = ROWS) -> list[SequenceBatch]:
    """Return batches whose rows are padded to 32, 48 or 64 events."""
    generator = torch.Generator().manual_seed(0)
    longest = [32, 20, 48, 40, 32, 60, 25, 64, 33, 48] * -(-count // 10)
    return [
        make_batch([*torch.randint(1, most + 1, (rows - 1,), generator=generator).tolist(), most], generator)
        for most in longest[:count]
    ]


def make_model(encoder: str, loss: Loss, **settings: Any) -> SequentialRecommender:
    """Return the preset of an encoder, the same at each call."""
    torch.manual_seed(0)
    found: SequentialRecommender = getattr(models, encoder)(
        NUM_ITEMS, d_model=WIDTH, num_layers=1, max_length=64, loss=loss, **settings
    )
    found.loss.use_item_counts(torch.tensor([0, *[5] * NUM_ITEMS]))
    return found


def fit(
    model: SequentialRecommender,
    batches: list[SequenceBatch],
    graphed: GraphedStep | None = None,
    *others: pl.Callback,
    **settings: Any,
) -> list[float]:
    """Train on the batches in turn, and return the losses."""
    losses = Losses()
    callbacks: list[pl.Callback] = [losses, *others, *([] if graphed is None else [graphed])]
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **settings}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(callbacks=callbacks, **settings)
    torch.manual_seed(1)
    trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do
    return [float(loss) for loss in losses.values]


def assert_equal_runs(model: SequentialRecommender, other: SequentialRecommender) -> None:
    """Compare weights."""
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)


class Breaks(pl.Callback):
    """Makes the loss of the sixth batch NaN."""

    before: Tensor

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 5:
            with torch.no_grad():
                pl_module.encoder.stack.norm.weight.fill_(torch.nan)
            self.before = pl_module.items.weight.detach().clone()
