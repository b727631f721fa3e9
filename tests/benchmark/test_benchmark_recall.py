from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec.benchmark import recall
from seqrec.benchmark.abilities import ABILITIES, Ability, History
from seqrec.benchmark.measurement import Measurement, MemoryLimitError
from seqrec.benchmark.recall import Answerer, benchmark_recall, build_encoder, find_ability
from seqrec.errors import InputError

SHARED = {"steps": 400, "batch_events": 400, "item_std": 0.02, "device": "cpu", "d_model": 32, "num_layers": 1}
SHARED |= {"pairs": False}


def _echo(lag: int, kept: int, generator: np.random.Generator) -> History:
    """Asks at each event for the item of the event itself."""
    items = generator.integers(1, 9, 10 + lag)
    return History(items, items, np.arange(len(items)))


def test_training_ends_when_the_ability_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ABILITIES, "delay", Ability("the event itself", _echo, names_lag=True))
    monkeypatch.setattr(recall, "INTERVAL", 20)
    found = find_ability("delay", "GRU4Rec", 5, 0.01, 0, SHARED)
    assert found["HR@1"] > 0.9
    assert found["validation"] > 0.95
    assert 0 < found["steps"] < 400
    assert found["events"] == found["steps"] * 26 * 15
    assert found["state_bytes"] == 4 * 32


@pytest.mark.parametrize("names_lag", [True, False])
def test_training_has_distances_from_10_events_to_the_judged_one(monkeypatch: pytest.MonkeyPatch, names_lag: bool):
    lags = []

    def echo(lag: int, kept: int, generator: np.random.Generator) -> History:
        lags.append(lag)
        return _echo(lag, kept, generator)

    monkeypatch.setitem(ABILITIES, "delay", Ability("the event itself", echo, names_lag=names_lag))
    find_ability("delay", "GRU4Rec", 50, 0.01, 0, SHARED | {"steps": 20})
    trained = set(lags) - {50}
    assert max(lags) == 50
    assert (not trained) if names_lag else (len(trained) > 5 and min(trained) in range(10, 20))


def test_training_ends_when_the_updates_are_used_up():
    stopped = find_ability("recall", "MambaRec", 10, 1e-5, 0, SHARED | {"steps": 3})
    assert stopped["steps"] == 3
    assert stopped["HR@1"] < 0.1


def test_pairs_are_refused_for_an_encoder_without_the_delta_rule():
    with pytest.raises(InputError, match=r"pairs=True needs mixer=gated_deltanet, but 'SASRec' has none"):
        benchmark_recall([10], encoders=["SASRec"], abilities=["recall"], pairs=True)


@pytest.mark.slow
def test_the_delta_rule_that_starts_with_pairs_learns_recall(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ABILITIES, "recall", replace(ABILITIES["recall"], most=4))
    shared = SHARED | {"steps": 200, "batch_events": 1000, "item_std": 0.2}
    random, pairs = (
        find_ability("recall", "MambaRec:mixer=gated_deltanet", 10, 0.01, 0, shared | {"pairs": start})["HR@1"]
        for start in (False, True)
    )
    assert pairs > random + 0.3


def test_encoders_have_the_arguments_after_the_colon():
    assert build_encoder("MambaRec:mixer=mamba2,d_state=8", 16, 1).mixer == "mamba2"
    assert build_encoder("SASRec:rotary=true", 16, 2).rotary is True
    assert Answerer(build_encoder("SASRec:rotary=true", 16, 2), 50).positions is None
    assert Answerer(build_encoder("SASRec", 16, 2), 50).positions is not None
    assert 0.4 < Answerer(build_encoder("SASRec", 16, 2), 50, 0.5).items.weight.std() < 0.6
    with pytest.raises(InputError, match="encoders: BERT4Rec sees newer events, and so the answers"):
        build_encoder("BERT4Rec", 16, 1)
    with pytest.raises(InputError, match="unknown encoder 'SASrec'"):
        build_encoder("SASrec", 16, 1)
    with pytest.raises(InputError, match=r"'SASRec:roteryy=1': .*roteryy.*; write NAME:argument=value"):
        build_encoder("SASRec:roteryy=1", 16, 1)


def test_the_table_has_the_chosen_step_size_and_stops_behind_a_lag_that_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(function: object, arguments: dict[str, Any], **options: object) -> Measurement:
        encoder, lag = arguments["encoder"], arguments["lag"]
        if encoder == "GRU4Rec":
            raise MemoryLimitError("not enough memory")
        right = 0.97 if lag == 10 and arguments["lr"] == 0.003 else 0.5 - 0.1 * arguments["seed"]
        cost = {"steps": 40, "events": 9000, "train_seconds": 3.0, "state_bytes": 2048}
        return Measurement(5.0, 0, 1 << 30, 0, {"HR@1": right, "validation": right, **cost})

    monkeypatch.setattr(recall, "run_measured", run)
    file = tmp_path / "figures.json"
    benchmark_recall(
        [10, 100, 1000], encoders=["SASRec", "GRU4Rec"], abilities=["recall"], seeds=2, json_file=str(file)
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    cost = ["40", "3", "3,000", "0.003", "2", "KiB", "1.0", "GiB"]
    assert ["SASRec", "recall", "10", "yes", "0.970", *cost] in lines
    assert ["SASRec", "recall", "100", "no", "0.450", *cost] in lines
    assert ["GRU4Rec", "recall", "10", "did", "not", "run"] in lines
    cells = [(cell["encoder"], cell["lag"], cell["lr"], cell["seed"]) for cell in json.loads(file.read_text())["cells"]]
    assert cells == [
        *(("SASRec", 10, lr, 0) for lr in (0.001, 0.003)),
        ("SASRec", 10, 0.003, 1),
        *(("SASRec", 100, 0.003, seed) for seed in (0, 1)),
        *(("GRU4Rec", 10, lr, 0) for lr in (0.001, 0.003)),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lags": []}, r"lags=\[\] must be one or more, and all at least 1"),
        ({"lags": [100, 10]}, r"lags=\[100, 10\] must be ascending"),
        ({"encoders": ["SASrec"]}, "unknown encoder 'SASrec'"),
        ({"abilities": ["memory"]}, r"abilities=\['memory'\] must be some of delay, recall, selection, count"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"lrs": [0.001, np.nan]}, r"lrs=\[0.001, nan\] must be one or more, and all positive"),
        ({"item_std": 0}, "item_std=0 must be positive, as in 0.02"),
        ({"device": "tpu"}, "device='tpu' must be cpu or cuda"),
        ({"json_file": "nowhere/figures.json"}, "json_file='nowhere/figures.json' is in a folder that does not"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        benchmark_recall(**changed)
