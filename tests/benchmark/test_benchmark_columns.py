"""The benchmark of times and columns from end to end on small sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from in_process import in_this_process

from seqrec.benchmark import columns
from seqrec.benchmark.columns import benchmark_columns
from seqrec.errors import InputError


def test_small_sizes_are_measured_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(columns, "run_measured", in_this_process)
    written = tmp_path / "figures.json"
    sizes = {"length": 20, "batch_size": 3, "num_items": 300, "d_model": 8, "num_layers": 1, "rounds": 2}
    benchmark_columns(["MambaRec", "GRU4Rec"], **sizes, json_file=str(written))
    out = capsys.readouterr().out
    assert re.search(r"3 x 20 events, width 8, 1 blocks, 300 items, cpu", out)
    rows = json.loads(written.read_text())["figures"]
    assert [row["encoder"] for row in rows] == ["MambaRec", "GRU4Rec"]
    for row in rows:
        assert set(row["seconds"]) == {"training step", "batch loaded", "streamed step of 1", "streamed step of 3"}
        assert all(0 < seconds < 10 for pair in row["seconds"].values() for seconds in pair)
        plain, more = row["bytes"]
        # Two codes an event, of 8 bytes each.
        assert more - plain == 2 * 8 * 3 * 20
        ratio = row["seconds"]["training step"][1] / row["seconds"]["training step"][0]
        assert re.search(rf"{row['encoder']} +training step +[\d.]+ ms +[\d.]+ ms +{ratio:.2f}\n", out)


@pytest.mark.parametrize(("name", "value"), [("length", 0), ("rounds", 0), ("encoders", ["Nobody"]), ("device", "tpu")])
def test_arguments_out_of_range_are_refused_by_name(name: str, value: object):
    with pytest.raises(InputError, match=name):
        benchmark_columns(**{name: value})
