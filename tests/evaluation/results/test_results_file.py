from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from results_problems import frame, header, write

from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.metrics import hit_rate, ndcg, recall
from seqrec.evaluation.results import Results, file, read_results
from seqrec.types import JudgedTargets, TargetRanks


def test_what_is_written_is_read_ordered_by_user_and_item(tmp_path: Path):
    rows = frame(targets=2)
    path = write(tmp_path / "results.parquet", rows.sample(fraction=1, shuffle=True, seed=0))
    results = read_results(path)
    assert results.name == path
    assert results.header == header()
    assert results.frame.equals(rows.sort("user_id", "item_id"))
    assert results.num_users == 400


def test_a_run_folder_holds_its_results(tmp_path: Path):
    write(tmp_path / "test_results.parquet", frame())
    assert read_results(tmp_path).frame.equals(frame().sort("user_id"))


@pytest.mark.parametrize("users_at_a_time", [1, 7, 1 << 15])
@pytest.mark.parametrize("normaliser", ["achievable", "cutoff"])
def test_metrics_are_those_of_the_targets_as_they_were_judged(
    monkeypatch: pytest.MonkeyPatch, users_at_a_time: int, normaliser: str
):
    monkeypatch.setattr(file, "USERS_AT_A_TIME", users_at_a_time)
    rows = frame(users=20, targets=3)
    # Users with one, two and three targets.
    rows = rows.filter(~((pl.col("user_id") % 2 == 0) & (pl.int_range(pl.len()) % 3 == 1)))
    better, tied = (torch.from_numpy(rows[name].to_numpy().copy()) for name in ("better", "tied"))
    users = np.unique(rows["user_id"].to_numpy(), return_inverse=True)[1]
    judged = JudgedTargets(
        torch.arange(1, 21),
        torch.zeros(20, dtype=torch.int64),
        torch.from_numpy(users),
        torch.from_numpy(rows["item_id"].to_numpy().copy()),
        TargetRanks(better, tied),
        torch.zeros(len(rows), dtype=torch.bool),
    )
    found = Results("run", header(normaliser=normaliser), rows).metrics(["HR@10", "NDCG@20", "Recall@5"])
    expected = [hit_rate(judged, 10), ndcg(judged, 20, normaliser), recall(judged, 5)]
    assert np.array_equal(found, torch.stack(expected, dim=1).numpy())


def test_users_without_a_kept_target_are_left_out():
    results = Results("run", header(), frame(users=5, targets=2).sort("user_id", "item_id"))
    part = results.only(np.array([1, 0, 0, 0, 1, 1, 0, 0, 0, 1], dtype=bool))
    assert part.num_users == 3
    assert part.metrics(["HR@10"]).shape == (3, 1)
    assert results.only(np.zeros(10, dtype=bool)).metrics(["HR@10", "MRR@5"]).shape == (0, 2)


def test_a_folder_without_results_is_refused(tmp_path: Path):
    with pytest.raises(
        MissingInputError, match=r"no results at .* \(test_results.parquet is missing\); give a run folder"
    ):
        read_results(tmp_path)
    with pytest.raises(MissingInputError, match=r"no results at .*nowhere"):
        read_results(tmp_path / "nowhere")


def test_files_of_other_kinds_and_versions_are_refused(tmp_path: Path):
    path = tmp_path / "file.parquet"
    path.write_text("model,HR@10\n")
    with pytest.raises(InputError, match=r"file.parquet is not a Parquet file"):
        read_results(path)
    frame(users=3).write_parquet(path)
    with pytest.raises(InputError, match="contains no results of seqrec, expected version 1"):
        read_results(path)
    write(path, frame(users=3), version=9)
    with pytest.raises(InputError, match="contains version 9, expected version 1; write it again: seqrec test"):
        read_results(path)
