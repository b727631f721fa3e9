"""Cold items of a log with a known effect are found by their content; metrics of cold and warm targets are apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import ColdItems, ItemTable, Schema, Table
from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.evaluation.metrics import ranking_metrics
from seqrec.models import GRU4Rec, evaluate
from seqrec.training.losses import FullSoftmax
from seqrec.types import JudgedTargets, TargetRanks

CATEGORIES, ITEMS_EACH, EVENTS = 8, 20, 25
NUM_ITEMS = CATEGORIES * ITEMS_EACH


@pytest.fixture
def log(tmp_path: Path) -> Table:
    """After an item of category c comes a uniform item of category c + 1; nothing else distinguishes items."""
    rng = np.random.default_rng(3)
    rows = [
        (user, int(CATEGORIES * rng.integers(ITEMS_EACH) + (start + time) % CATEGORIES), time)
        for user, start in enumerate(rng.integers(CATEGORIES, size=400))
        for time in range(EVENTS)
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(tmp_path / "log.parquet")
    items = pl.DataFrame(
        {"item_id": range(NUM_ITEMS), "category": [f"c{item % CATEGORIES}" for item in range(NUM_ITEMS)]}
    )
    items.write_parquet(tmp_path / "items.parquet")
    return Table(str(tmp_path / "log.parquet"), items={"path": str(tmp_path / "items.parquet"), "key": "item_id"})


def fitted(log: Table, folder: Path, make_trainer: Callable[..., Any], **table: Any) -> tuple[Any, SequenceDataModule]:
    data = SequenceDataModule(
        log,
        store=str(folder / "store"),
        schema=Schema(items={"category": "categorical"}),
        split=ColdItems(0.1, seed=1),
        max_length=EVENTS,
        batch_size=32,
    )
    torch.manual_seed(0)
    model = GRU4Rec(
        data.num_items,
        d_model=32,
        dropout=0.0,
        max_length=EVENTS,
        positions=False,
        loss=FullSoftmax(),
        item_table=ItemTable(temperature=0.1, **table),
        item_columns=data.item_columns,
    )
    model.lr = 3e-3
    make_trainer(max_epochs=12, limit_val_batches=0).fit(model, data)
    return model, data


def test_cold_items_are_found_by_what_they_have_in_common_with_others(
    log: Table, tmp_path: Path, make_trainer: Callable[..., Any]
):
    """Chance is 10 of 160 items, .06. Who knows the category finds 10 of its some 19 unseen items, .5."""
    chance = 10 / NUM_ITEMS
    found = {}
    for name, table in {"content": {"content": ("category",)}, "ids": {}}.items():
        model, data = fitted(log, tmp_path, make_trainer, **table)
        (values,) = make_trainer().test(model, data, verbose=False)
        found[name] = values
    assert found["content"]["test_cold_HR@10"] > 4 * chance
    assert found["content"]["test_warm_HR@10"] > 4 * chance
    assert found["ids"]["test_warm_HR@10"] > 3 * chance
    assert found["ids"]["test_cold_HR@10"] < chance


def test_cold_and_warm_targets_are_apart_in_metrics(log: Table, tmp_path: Path, make_trainer: Callable[..., Any]):
    model, data = fitted(log, tmp_path, make_trainer, content=("category",), ids=False)
    (values,) = make_trainer().test(model, data, verbose=False)
    data.setup("test")
    hidden = data.hidden_items
    own = evaluate(model, data.test_dataloader(), cold_items=hidden)
    assert own == pytest.approx({name.removeprefix("test_"): value for name, value in values.items()})
    targets = torch.cat([batch.held_out.item_ids for batch in data.test_dataloader()])
    share = torch.from_numpy(hidden)[targets].double().mean()
    parts = share * own["cold_NDCG@20"] + (1 - share) * own["warm_NDCG@20"]
    assert own["NDCG@20"] == pytest.approx(float(parts))


def test_a_user_counts_with_its_targets_of_a_kind():
    judged = JudgedTargets(
        user_ids=torch.tensor([7, 8, 9]),
        history_lengths=torch.tensor([3, 4, 5]),
        rows=torch.tensor([0, 0, 1, 2]),
        item_ids=torch.tensor([1, 2, 1, 2]),
        ranks=TargetRanks(torch.tensor([0, 99, 99, 3]), torch.zeros(4, dtype=torch.int64)),
        repeated=torch.zeros(4, dtype=torch.bool),
    )
    metrics = ranking_metrics(cold_items=torch.tensor([False, False, True]))
    metrics.update(judged)
    metrics.update(judged.only(torch.tensor([True, False, True, False])))
    values = metrics.compute()
    assert values["HR@10"] == pytest.approx(3 / 5)
    assert values["cold_HR@10"] == pytest.approx(1 / 2)
    assert values["warm_HR@10"] == pytest.approx(2 / 4)
    without = ranking_metrics(cold_items=torch.tensor([False, False, False]))
    without.update(judged)
    assert torch.isnan(without.compute()["cold_HR@5"])


@pytest.mark.process
def test_the_command_line_trains_and_reports_cold_items(
    log: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    config = {
        "data": {
            "source": {"class_path": "Table", "init_args": {"path": "log.parquet", "items": log.items}},
            "schema": {"items": {"category": "categorical"}},
            "split": {"class_path": "ColdItems", "init_args": {"share": 0.1}},
            "max_length": EVENTS,
        },
        "model": {
            "class_path": "GRU4Rec",
            "init_args": {"d_model": 8, "item_table": {"content": ["category"], "temperature": 0.1}},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    Path("config.yaml").write_text(json.dumps(config))
    main(("fit", "--config", "config.yaml", "--trainer.logger.name", "run"))
    out = capsys.readouterr().out
    assert "loo-cold0.1seed0" in out
    assert "GRU4Rec, cold items" in out
    assert "Popularity, warm items" in out
    (file,) = tmp_path.rglob("test_metrics.json")
    assert "cold_HR@10" in json.loads(file.read_text())["models"]["GRU4Rec"]
