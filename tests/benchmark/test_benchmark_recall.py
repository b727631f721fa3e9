from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec.benchmark import recall
from seqrec.benchmark.measurement import Measurement, MemoryLimitError
from seqrec.benchmark.recall import FOUND, benchmark_recall, find_signal, signal_log
from seqrec.errors import InputError

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]

SETTINGS = {"d_model": 32, "num_layers": 1, "lr": 0.005, "batch_size": 32}


def find(folder: Path, lag: int, model: str, seconds: float = 60) -> dict[str, Any]:
    shared = {"events": 12_000, "seconds": seconds, "seed": 0, "device": "cpu", "settings": SETTINGS}
    return find_signal(str(folder), lag, model, shared)


def test_an_encoder_finds_a_near_signal_that_popularity_does_not_know(tmp_path: Path):
    found = find(tmp_path, 3, "SASRec")
    assert found["HR@10"] > FOUND
    assert found["steps"] > 0
    assert found["events"] > 1000
    by_chance = find(tmp_path, 3, "Popularity")
    assert by_chance["HR@10"] < 0.12
    assert by_chance["steps"] == 0


def test_training_ends_when_its_time_is_over(tmp_path: Path):
    stopped = find(tmp_path, 40, "GRU4Rec", seconds=1)
    assert stopped["HR@10"] < FOUND
    assert 0 < stopped["train_seconds"] < 20


def test_every_target_follows_from_the_event_so_many_places_back(tmp_path: Path):
    data = signal_log(str(tmp_path), 7, 2240, 16, seed=0)
    vocabulary = data.store.item_vocabulary
    for batch in data.test_dataloader():
        lengths = batch.history.lengths
        assert (lengths >= 7).all()
        known = batch.history.item_ids.gather(1, (lengths - 7).unsqueeze(1)).squeeze(1)
        externals = [vocabulary.external_ids(item_ids.numpy()) for item_ids in (known, batch.last_targets)]
        assert np.array_equal(data.source.successor[externals[0]], externals[1])  # type: ignore[attr-defined]


def test_logs_of_all_lags_have_as_many_events(tmp_path: Path):
    sizes = [signal_log(str(tmp_path), lag, 40_000, 16, seed=0).store.num_events for lag in (5, 50, 500)]
    # Of histories about the lag, the short ones are left out.
    assert max(sizes) < 1.5 * min(sizes)
    assert min(sizes) > 20_000


def test_the_table_says_what_was_found_at_which_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(function: object, arguments: dict[str, Any]) -> Measurement:
        if arguments["model"] == "GRU4Rec":
            raise MemoryLimitError("not enough memory")
        hits = 0.95 if arguments["model"] == "SASRec" else 0.07
        cost = {"epochs": 2, "steps": 40, "events": 9000, "train_seconds": 3.0, "parameters": 5}
        return Measurement(5.0, 0, 1 << 30, 0, {"HR@10": hits, "NDCG@10": hits / 2, **cost})

    monkeypatch.setattr(recall, "run_measured", run)
    file = tmp_path / "figures.json"
    benchmark_recall([10, 1000], encoders=["Popularity", "SASRec", "GRU4Rec"], json_file=str(file))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "SASRec",
        "(rotary)",
        "1,000",
        "yes",
        "0.9500",
        "0.4750",
        "2",
        "40",
        "3",
        "3,000",
        "1.0",
        "GiB",
    ] in lines
    assert ["Popularity", "10", "no", "0.0700", "0.0350", "2", "40", "3", "3,000", "1.0", "GiB"] in lines
    assert ["GRU4Rec", "10", "did", "not", "run"] in lines
    assert [cell["lag"] for cell in json.loads(file.read_text())["cells"]] == [10] * 3 + [1000] * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lags": []}, r"lags=\[\] must be one or more, and all at least 1"),
        ({"lags": [0]}, r"lags=\[0\] must be one or more, and all at least 1"),
        ({"encoders": ["SASrec"]}, r"encoders=\['SASrec'\] must be some of GRU4Rec, SASRec, .* ItemKNN"),
        ({"minutes": 0}, "minutes=0 must be positive"),
        ({"lr": np.nan}, "lr=nan must be positive"),
        ({"device": "tpu"}, "device='tpu' must be cpu or cuda"),
        (
            {"json_file": "nowhere/figures.json"},
            "json_file='nowhere/figures.json' is in a folder that does not",
        ),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        benchmark_recall(**changed)
