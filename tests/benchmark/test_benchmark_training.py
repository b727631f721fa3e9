from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seqrec.benchmark import training
from seqrec.benchmark.floors import measure_rates
from seqrec.benchmark.measurement import Measurement, MemoryLimitError
from seqrec.benchmark.training import PLAIN, REFERENCE, benchmark_training, evaluate_batch, profile_on_cpu, train_steps
from seqrec.errors import InputError
from seqrec.ops import ALL_BACKENDS
from seqrec.ops.backends import Backend, Backends

SMALL = {"batch_size": 2, "d_model": 4, "num_layers": 1, "num_items": 300, "dropout": 0.0, "steps": 2}

RATES = {"copy": 1e6, "matmul": {"fp32": 1e6, "bf16": 1e7}, "launch_seconds": 1e-5, "graph_seconds": None}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("encoder", ["MambaRec", "SASRec"])
def test_variants_have_the_losses_of_float32(encoder: str):
    settings = {**SMALL, "seed": 0, "device": "cpu"}
    losses = {
        variant: train_steps(encoder, variant, 40, settings)["losses"] for variant in ("fp32", "recomputed", "bf16")
    }
    assert len(losses["fp32"]) == 4
    assert losses["recomputed"] == losses["fp32"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)


@pytest.mark.parametrize("encoder", ["MambaRec", "SASRec", "GRU4Rec"])
def test_plain_pytorch_is_the_same_model_by_other_functions(encoder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEQREC_SCAN_BACKEND", "reference")
    used = set()
    choose = Backends.choose

    def recorded(self: Backends, wanted: str, *arguments: object) -> Backend:
        backend = choose(self, wanted, *arguments)
        used.add(backend.name)
        return backend

    monkeypatch.setattr(Backends, "choose", recorded)
    settings = {**SMALL, "seed": 0, "device": "cpu"}
    plain = train_steps(encoder, PLAIN, 40, settings)["losses"]
    assert used <= {op.plain for op in ALL_BACKENDS}
    assert used
    assert os.environ["SEQREC_SCAN_BACKEND"] == "reference"
    assert "SEQREC_DROPOUT_BACKEND" not in os.environ
    assert plain == pytest.approx(train_steps(encoder, "fp32", 40, settings)["losses"], rel=1e-5)


@pytest.mark.parametrize("variant", ["fp32", REFERENCE])
def test_operations_and_the_least_time_of_a_step_on_a_cpu(variant: str):
    found = profile_on_cpu("SASRec", variant, 40, {**SMALL, "seed": 0, "device": "cpu"})
    # A block has some 20 operations forward and more backward; the optimizer and the loss have others.
    assert 60 < found["ops"] < 1000
    assert found["ops"] == profile_on_cpu("SASRec", variant, 80, {**SMALL, "seed": 0, "device": "cpu"})["ops"]
    assert 0 < found["python_seconds"] < 60


def test_dropout_takes_part():
    losses = {
        share: train_steps("SASRec", "fp32", 40, {**SMALL, "dropout": share, "seed": 0, "device": "cpu"})["losses"]
        for share in (0.0, 0.5)
    }
    assert losses[0.0] != losses[0.5]


def test_a_table_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(function, arguments, **options):
        if function is measure_rates:
            return Measurement(1.0, 0, 0, 0, {**RATES})
        if function is profile_on_cpu:
            return Measurement(1.0, 0, 0, 0, {"ops": 500.0, "python_seconds": 0.0125})
        if function is evaluate_batch:
            return Measurement(1.0, 0, 0, 0, {"histories": 4, "seconds": 0.5, "bytes": 100 << 20})
        if arguments["variant"] == "bf16":
            raise MemoryLimitError("not enough memory")
        seconds = {"fp32": 0.2, "recomputed": 0.3}[arguments["variant"]]
        value = {
            "step_seconds": [1.0, seconds],
            "first_seconds": 9.0,
            "losses": [1.5, 1.25],
            "device_bytes": None,
            "busy_seconds": seconds / 4,
            "python_seconds": None,
            "launches": 300.0,
            "kernels": 400.0,
            "ops": None,
        }
        held = {"fp32": 400, "recomputed": 300}[arguments["variant"]] << 20
        return Measurement(5.0, held, 0, 200 << 20, value)

    monkeypatch.setattr(training, "run_measured", run)
    written = tmp_path / "figures.json"
    sizes = {**SMALL, "eval_batch_size": 4}
    chosen = {"encoders": ("GRU4Rec",), "variants": ("fp32", "recomputed", "bf16"), "json_file": str(written)}
    benchmark_training((40,), **chosen, **sizes)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "recomputed" in line and "1.50" in line)
    work = json.loads(written.read_text())["figures"][1]["work"]
    shares = [f"{work['bytes'] / 1e6 / 0.3:.1%}", f"{work['flop'] / 1e6 / 0.3:.1%}"]
    times = ["300.0", "1.50", "267", *shares, "300", "400", "12.5", "75%", "500"]
    assert row.split() == ["GRU4Rec", "40", "recomputed", *times, "100", "MiB", "0.50", "1.25000", "9.0", "s"]
    assert ["GRU4Rec", "40", "4", "500.0", "100", "MiB", "0.50"] in [line.split() for line in out.splitlines()]
    assert "GRU4Rec, 40, bf16: not enough memory" in out
    assert ["GRU4Rec", "40", "bf16", "did", "not", "run"] in [line.split() for line in out.splitlines()]
    assert [each["variant"] for each in json.loads(written.read_text())["figures"]] == [
        "fp32",
        "recomputed",
        "bf16",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": ()}, "lengths="),
        ({"encoders": ("BERT",)}, "encoders="),
        ({"variants": ("fp8",)}, "variants="),
        ({"variants": (REFERENCE,), "encoders": ("MoEMaTrRec",)}, "torch.nn has no MoEMaTrRec, only GRU4Rec"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1"),
        ({"steps": 0}, "steps=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"variants": ("fp16",)}, "fp16 needs device=cuda"),
        ({"variants": ("fp32", "bf16, graphed")}, "bf16, graphed needs device=cuda"),
        ({"json_file": "no/such/folder/f.json"}, "json_file="),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        benchmark_training(**arguments)
