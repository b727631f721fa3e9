from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqrec.benchmark import catalogue
from seqrec.benchmark.catalogue import OBJECTIVES, OPTIMIZERS, benchmark_catalogue, time_steps
from seqrec.benchmark.measurement import MemoryLimitError, run_measured
from seqrec.errors import InputError

pytestmark = pytest.mark.process

SMALL = {
    "encoder": "GRU4Rec",
    "d_model": 4,
    "batch_size": 2,
    "length": 6,
    "steps": 2,
    "seed": 0,
    "device": "cpu",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_steps(objective: str):
    optimizer = "dense_adam" if objective == "FullSoftmax" else "rowwise_adagrad"
    figures = time_steps(300, objective, optimizer, 0, SMALL)
    assert len(figures["step_seconds"]) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_steps(optimizer: str):
    assert len(time_steps(300, "BCE", optimizer, 0, SMALL)["step_seconds"]) == 2


def test_content_steps():
    assert len(time_steps(300, "SampledSoftmax", "rowwise_adagrad", 8, SMALL)["step_seconds"]) == 2


@pytest.mark.slow
def test_a_table_of_all_combinations_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = []

    def run(function, arguments, **options):
        calls.append(arguments)
        if arguments["optimizer"] == "dense_adam" and arguments["num_items"] == 2_000_000_000:
            raise MemoryLimitError("not enough memory")
        return run_measured(function, {**arguments, "num_items": 50}, **options)

    monkeypatch.setattr(catalogue, "run_measured", run)
    small = {name: SMALL[name] for name in ("encoder", "d_model", "batch_size", "length", "steps")}
    written = tmp_path / "figures.json"
    benchmark_catalogue(
        (100, 2_000_000_000), objectives=("BCE", "FullSoftmax"), optimizers=("dense_adam", "rowwise_adagrad"),
        content=4, json_file=str(written), **small,
    )  # fmt: skip
    out = capsys.readouterr().out
    figures = json.loads(written.read_text())["figures"]
    cells = [
        (f["objective"], f["optimizer"], f["num_items"], f["seconds"] is not None, *[4] * (f["content"] == 4))
        for f in figures
    ]
    assert cells == [
        ("BCE", "dense_adam", 100, True),
        ("BCE", "dense_adam", 2_000_000_000, False),
        ("BCE", "rowwise_adagrad", 100, True),
        ("BCE", "rowwise_adagrad", 2_000_000_000, True),
        ("BCE", "rowwise_adagrad", 100, True, 4),
        ("BCE", "rowwise_adagrad", 2_000_000_000, True, 4),
        ("FullSoftmax", "dense_adam", 100, True),
        ("FullSoftmax", "dense_adam", 2_000_000_000, False),
    ]
    assert len(calls) == 7
    assert "BCE, dense_adam, 2,000,000,000: not enough memory" in out
    assert "2e+10 scores a step are left out" in out
    assert "BCE, rowwise_adagrad, 4 numbers of content" in out
    assert figures[2]["peak_bytes"] > 50 << 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": ()}, "items="),
        ({"items": (1,)}, "items="),
        ({"objectives": ("BPR",)}, "objectives="),
        ({"optimizers": ()}, "optimizers="),
        ({"steps": 0}, "steps=0"),
        ({"content": -1}, "content=-1"),
        ({"encoder": "Caser"}, "unknown model 'Caser'; known: .*SASRec"),
        ({"json_file": "no/such/folder/f.json"}, "json_file="),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        benchmark_catalogue(**arguments)


@pytest.mark.slow
def test_a_step_over_thirty_million_items_costs_what_one_over_a_hundred_thousand_does():
    settings = {**SMALL, "encoder": "MambaRec", "d_model": 32, "batch_size": 16, "length": 1000}
    arguments = {"objective": "BCE", "optimizer": "rowwise_adagrad", "content": 0, "settings": settings}
    large = run_measured(time_steps, {**arguments, "num_items": 30_000_000})
    assert large.peak_resident < 6 << 30
