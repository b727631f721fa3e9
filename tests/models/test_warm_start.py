"""Training that starts from a checkpoint: rows by the log's ids, optimizer state, new items, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch

from seqrec import (
    Adam,
    Filters,
    GRU4Rec,
    InputError,
    ItemTable,
    SASRec,
    Schema,
    SequenceDataModule,
    StridedWindows,
    Table,
)
from seqrec.data.prepare import append, compact
from seqrec.errors import StoreError
from seqrec.models.warm_start import WarmStart
from seqrec.runs.checkpoints import read_checkpoint
from seqrec.training.losses import BCE, SampledSoftmax
from seqrec.training.optim import AdamW, LazyAdam, RowwiseAdagrad, Schedule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
SCHEMA = Schema(events={"kind": "categorical", "score": "numeric"})
SPARSE: dict[str, Any] = {"item_table": ItemTable(sparse=True), "loss": BCE()}


class Never(Schedule):
    """A schedule without any update."""

    def ratio(self, total_steps: float) -> Any:
        return lambda update: 0.0


def write(file: Path, seed: int, *, users: int, items: range, times: range, kinds: str = "ab") -> str:
    rng = np.random.default_rng(seed)
    count = 8 * users
    columns = {
        "user_id": np.sort(rng.integers(1, users + 1, count)),
        "item_id": rng.choice(items, count),
        "timestamp": np.sort(rng.choice(times, count)),
        "kind": rng.choice(list(kinds), count),
        "score": rng.normal(5, 2, count),
    }
    polars.DataFrame(columns).write_parquet(file)
    return str(file)


def data_of(folder: Path, file: str = "old.parquet", **settings: Any) -> SequenceDataModule:
    return SequenceDataModule(
        Table(str(folder.parent / file)),
        store=str(folder),
        **{"max_length": 8, "batch_size": 8, "train_windows": StridedWindows(), "schema": SCHEMA, **settings},
    )


def model_of(data: SequenceDataModule, cls: type[SASRec] | type[GRU4Rec] = SASRec, **settings: Any) -> Any:
    torch.manual_seed(1)
    return cls(data.num_items, **{"d_model": 8, "max_length": 8, "dropout": 0.0, "optimizer": Adam(0.01), **settings})


def fit(data: SequenceDataModule, model: Any, steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    trainer = pl.Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    trainer.fit(model, data)
    return trainer


def checkpoint(folder: Path, data: SequenceDataModule, model: Any) -> str:
    """The file of a model after three steps."""
    fit(data, model, 3).save_checkpoint(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store `old`, one that has grown from it, `grown`, and the checkpoint of a model of the old one, `old.ckpt`."""
    folder = tmp_path_factory.mktemp("logs")
    write(folder / "old.parquet", 0, users=20, items=range(10, 30), times=range(1000, 2000))
    write(folder / "new.parquet", 1, users=25, items=range(5, 35), times=range(2000, 3000), kinds="bcd")
    data = data_of(folder / "old")
    data.prepare_data()
    shutil.copytree(folder / "old", folder / "grown")
    append(data.source, Filters(), folder / "grown", str(folder / "new.parquet"), schema=SCHEMA)
    checkpoint(folder / "old.ckpt", data, model_of(data))
    return folder


def saved_state(file: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    saved = read_checkpoint(Path(file))
    return saved["state_dict"], saved["optimizer_states"][0]["state"]


def rows_of(data: SequenceDataModule, old: SequenceDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the old items here, and there."""
    there = np.arange(1, old.num_items + 1)
    here = data.store.item_vocabulary.lookup(old.store.item_vocabulary.external_ids(there))
    return torch.from_numpy(here), torch.from_numpy(there)


@pytest.mark.parametrize("settings", [{}, SPARSE, {"optimizer": AdamW(0.01)}])
def test_without_new_data_weights_and_optimizer_state_continue_to_the_bit(folder: Path, tmp_path: Path, settings: Any):
    data = data_of(folder / "old")
    file = checkpoint(tmp_path / "a.ckpt", data, model_of(data, **settings))
    model = model_of(data, **settings)
    fit(data, model, 0, WarmStart(file)).save_checkpoint(tmp_path / "b.ckpt")
    weights, state = saved_state(file)
    again, same = saved_state(tmp_path / "b.ckpt")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert state.keys() == same.keys()
    assert all(
        torch.equal(torch.as_tensor(state[number][key]), torch.as_tensor(same[number][key]))
        for number in state
        for key in state[number]
    )


def test_training_without_step_size_changes_nothing(folder: Path):
    data, weights = data_of(folder / "old"), saved_state(folder / "old.ckpt")[0]
    model = model_of(data, optimizer=Adam(0.01, schedule=Never()))
    trainer = fit(data, model, 3, WarmStart(str(folder / "old.ckpt")))
    assert trainer.global_step == 3
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("is_compact", [False, True])
@pytest.mark.parametrize("settings", [{}, SPARSE, {"item_table": ItemTable(sparse=True, dtype="bfloat16")}])
def test_rows_of_known_items_are_carried_over_to_a_grown_store(
    folder: Path, tmp_path: Path, settings: Any, is_compact: bool
):
    old, place = data_of(folder / "old"), tmp_path / "store"
    file = checkpoint(tmp_path / "a.ckpt", old, model_of(old, **settings))
    shutil.copytree(folder / "grown", place)
    shutil.copy(folder / "old.parquet", tmp_path)
    if is_compact:
        compact(place)
    data = data_of(place, str(folder / "old.parquet"))
    model = model_of(data, **settings)
    trainer = fit(data, model, 0, WarmStart(file, new_items="mean"))
    weights, state = saved_state(file)
    known, table = old.num_items + 1, weights["items.table.weight"]
    assert data.num_items > old.num_items
    assert torch.equal(model.items.weight[:known], table)
    fresh = model.items.weight[known:].float()
    assert torch.allclose(fresh, table[1:].float().mean(0).expand_as(fresh), atol=1e-2 if "bf" in str(settings) else 0)
    moments = trainer.optimizers[0].state[model.items.weight]["exp_avg"]
    (there,) = [each["exp_avg"] for each in state.values() if len(each["exp_avg"]) == known]
    assert torch.equal(moments[:known], there)
    assert not moments[known:].any()


def test_rows_are_carried_over_to_another_catalogue_by_external_id(folder: Path, tmp_path: Path):
    write(tmp_path / "other.parquet", 5, users=20, items=range(15, 40), times=range(2000, 3000))
    data, old = data_of(tmp_path / "other", "other.parquet"), data_of(folder / "old")
    model = model_of(data)
    trainer = fit(data, model, 0, WarmStart(str(folder / "old.ckpt")))
    weights, state = saved_state(folder / "old.ckpt")
    here, there = rows_of(data, old)
    here, there = here[here > 0], there[here > 0]
    assert 5 < len(here) < data.num_items
    assert torch.equal(model.items.weight[here], weights["items.table.weight"][there])
    moments = trainer.optimizers[0].state[model.items.weight]["exp_avg"]
    assert torch.equal(moments[here], state[0]["exp_avg"][there])
