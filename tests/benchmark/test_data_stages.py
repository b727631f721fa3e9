from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec.benchmark import data
from seqrec.benchmark.data import append_day, prepare_store, sort_with_polars, tensor_bytes, time_loader
from seqrec.benchmark.generated_log import Profile, ensure_day, ensure_log
from seqrec.data.store import EventStore
from seqrec.types import History, TensorRecord

PROFILE = Profile("small", 300, 10, 0.9, 0.9, start=0, span=100_000)
EVENTS = 3000


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(ensure_log(tmp_path, PROFILE, EVENTS))


@pytest.mark.parametrize("streaming", [True, False])
def test_the_plain_pipeline_sorts_what_a_store_keeps(log: str, tmp_path: Path, streaming: bool):
    sort_with_polars(log, str(tmp_path / "sorted.parquet"), streaming=streaming)
    found = pl.read_parquet(tmp_path / "sorted.parquet")
    expected = pl.read_csv(f"{log}/part-000.csv").drop("is_click")
    assert found.columns == ["user_id", "item_id", "timestamp"]
    assert found.select("user_id", "timestamp").equals(
        expected.select("user_id", "timestamp").sort("user_id", "timestamp")
    )
    assert found.sort(pl.all()).equals(expected.sort(pl.all()))


def test_the_prepared_store_is_that_of_the_log(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):  # The second replaces the first.
        result = prepare_store(log, str(tmp_path / "store"), memory_limit=None)
    assert result["counts"]["events"] == EVENTS
    store = EventStore.open(tmp_path / "store")
    assert result["sha256"]["item_ids.npy"] == store.manifest["files"]["item_ids.npy"]["sha256"]
    assert "reading" in capsys.readouterr().out


def test_the_day_after_the_log_is_appended(log: str, tmp_path: Path):
    prepare_store(log, str(tmp_path / "store"), memory_limit=None)
    last = int(pl.read_csv(f"{log}/part-000.csv")["timestamp"].max())
    day = ensure_day(Path(log), PROFILE, EVENTS, 100)
    assert pl.read_csv(f"{day}/part-000.csv")["timestamp"].is_between(last, last + 2 * PROFILE.span // 30).all()
    result = append_day(log, str(tmp_path / "store"), str(day), memory_limit=4 << 30)
    assert result["counts"]["events"] == EVENTS + 100
    assert result["cpu_seconds"] > 0


@pytest.mark.parametrize(("size", "per_batch"), [({"batch_size": 4}, 4), ({"batch_size": 1, "max_tokens": 500}, 5)])
def test_a_pass_delivers_each_training_event_once(log: str, tmp_path: Path, monkeypatch, size: dict, per_batch: int):
    monkeypatch.setattr(data, "_SOURCE_BYTES", 1)
    prepare_store(log, str(tmp_path / "store"), memory_limit=None)
    result = time_loader(log, str(tmp_path / "store"), max_length=100, passes=1, **size)
    # Two events of each user are held out, and the newest of the others is a target alone.
    lengths = np.diff(EventStore.open(tmp_path / "store").offsets)
    assert result["events"] == np.maximum(lengths - 3, 0).sum()
    windows = -(-np.maximum(lengths - 3, 0) // 100)
    assert result["batches"] == pytest.approx(windows.sum() / per_batch, rel=0.5)
    assert 0 <= result["padding"] < 0.5
    # Items, times and targets of each position, 8 bytes each, and more for each user.
    assert result["bytes"] > 24 * result["events"] / (1 - result["padding"])
    assert result["seconds"] > 0
    assert result["copy_seconds"] > 0


def test_a_pass_over_a_long_log_stops(log: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(data, "_SOURCE_BYTES", 1)
    monkeypatch.setattr(data, "PASS_EVENTS", 500)
    prepare_store(log, str(tmp_path / "store"), memory_limit=None)
    result = time_loader(log, str(tmp_path / "store"), max_length=100, batch_size=1, passes=1)
    assert 500 <= result["events"] < 600


def test_a_copy_moves_every_byte():
    source, target = np.arange(10, dtype=np.uint8), np.zeros(4, np.uint8)
    moved = [target.tolist() for _ in data._copies(source, target, [4, 4, 4])]
    assert moved == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


@dataclass(frozen=True)
class Outer(TensorRecord):
    inner: History
    flags: Tensor
    absent: Tensor | None = None


def test_bytes_of_a_record_are_those_of_all_its_tensors():
    history = History(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert tensor_bytes(history) == 48 + 16
    assert tensor_bytes(Outer(history, torch.zeros(5, dtype=torch.bool))) == 48 + 16 + 5
