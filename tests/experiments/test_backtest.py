"""Backtests of a tiny log: judged before it is appended, resumed, and figures that agree with those of a plain loop."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
import yaml
from grid_runs import Process

from seqrec import EventStore, Filters, GRU4Rec, History, InputError, Schema, Table
from seqrec.cli import main
from seqrec.data.prepare import append
from seqrec.errors import StoreError
from seqrec.experiments import runner
from seqrec.experiments.backtest import backtest, of_some_users
from seqrec.experiments.report.backtest import METRIC, POPULAR, RETRAINED, WARM
from seqrec.experiments.slices import Plan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
DAY, FIRST = 86_400, 1_700_000_000 // 86_400 * 86_400
# Days with events, of which the first two are trained on before the first slice. The second slice is empty.
DAYS = (0, 1, 2, 4)
MODEL: dict[str, Any] = {
    "class_path": "GRU4Rec",
    "init_args": {"d_model": 8, "positions": False, "loss": {"class_path": "FullSoftmax"}},
}
SETTINGS: dict[str, Any] = {"every": "1d", "start": "2023-11-16", "retrain": True, "updates": 20, "share": 0.25}


class Commands:
    """Stands in for `runner.start`: runs commands in this process, and keeps each with its place.

    `stop_at` is the number of the command that a kill interrupts; None for none.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.stop_at = stop_at

    def __call__(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> Process:
        self.calls.append(f"{words[1]} {'/'.join(log.parent.parts[-2:])}")
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        output, status = io.StringIO(), 0
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                main(words[1:])
            except SystemExit as end:
                status = int(end.code or 0)
        log.write_text(output.getvalue())
        return Process(status)


def write_log(folder: Path) -> Path:
    """Write 16 users with one to three events a day among items, of which each day has some that are new."""
    rng, rows = np.random.default_rng(0), []
    for day in DAYS:
        for user in range(16):
            # Some users come later.
            for _ in range(rng.integers(1, 4) if user < 8 + 2 * day else 0):
                item, kind = (
                    int(rng.integers(0, 20 + 4 * day)),
                    str(rng.choice(["click", "buy", "spam"], p=[0.6, 0.3, 0.1])),
                )
                rows.append((user, item, FIRST + day * DAY + int(rng.integers(DAY)), kind))
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "kind"], orient="row")
    frame.write_csv(folder / "log.csv")
    data = {"source": {"class_path": "Table", "init_args": {"path": str(folder / "log.csv")}}}
    data |= {"max_length": 8, "batch_size": 8, "train_windows": {"class_path": "StridedWindows"}}
    # The condition on events stays, and filters that count events are left out.
    data |= {"filters": {"min_item_events": 50, "event_filter": "kind <> 'spam'"}}
    data |= {"schema": {"events": {"kind": "categorical"}}}
    config = folder / "config.yaml"
    # The config's folder of runs is not used.
    trainer = {"logger": {"class_path": "RunFolder", "init_args": {"name": "own"}}, "max_epochs": 1}
    config.write_text(yaml.safe_dump({"data": data, "model": MODEL, "trainer": trainer}))
    return config


def run(folder: Path, commands: Commands, **settings: Any) -> list[dict[str, Any]]:
    """Run the backtest of a folder, and return its slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "start", commands)
        patch.setattr(runner, "_POLL_SECONDS", 0.001)
        plan = Plan([str(folder / "config.yaml")], **{**SETTINGS, **settings})
        backtest(plan, folder=str(folder / "work"), device="cpu")
    return list(json.loads((folder / "work/results/backtest.json").read_text())["slices"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], list[list[str]]]:
    """Folder, slices, and the commands of a backtest that was killed while it trained, and of its second start."""
    folder = tmp_path_factory.mktemp("backtest")
    write_log(folder)
    killed, resumed = Commands(stop_at=9), Commands()
    with pytest.raises(KeyboardInterrupt):
        run(folder, killed)
    return folder, run(folder, resumed), [killed.calls, resumed.calls]


def test_a_killed_backtest_repeats_only_what_was_not_finished(done):
    folder, rows, (killed, resumed) = done
    assert killed == [
        "prepare work/prepare",
        "prepare slice_000/append",
        "fit slice_000/warm_start",
        "append judge/append",
        "test judge/warm_start",
        "fit judge/RecentPopularity",
        "append slice_001/append",
        "fit slice_001/retrained",
        "fit slice_001/warm_start",
    ]
    assert resumed[:2] == ["fit slice_001/warm_start", "append judge/append"]
    assert resumed[2:] == ["test judge/retrained", "test judge/warm_start", "fit judge/RecentPopularity"]
    again = Commands()
    assert run(folder, again) == rows
    assert again.calls == []


def test_rows_have_both_models_popularity_and_an_empty_day(done):
    folder, rows, _ = done
    assert [row["slice"] for row in rows] == [1, 2, 3]
    assert rows[1]["events"] == 0
    assert "models" not in rows[1]
    assert list(rows[0]["models"]) == [WARM, POPULAR]
    assert list(rows[2]["models"]) == [RETRAINED, WARM, POPULAR]
    retrained, warm, _ = rows[2]["models"].values()
    assert warm["updates"] == round(SETTINGS["share"] * retrained["updates"]) > 0
    change = warm["difference"][METRIC]
    assert change["mean"] == pytest.approx(warm["metrics"][METRIC]["mean"] - retrained["metrics"][METRIC]["mean"])
    assert change["low"] <= change["mean"] <= change["high"]
    table = (folder / "work/results/backtest.md").read_text()
    assert table.count("no event |") == 1
    assert "of 1 slices the warm start is not worse" in table
    assert (folder / "work/results/backtest.png").stat().st_size > 0


def test_figures_are_those_of_a_loop_over_the_events(done):
    # The last slice, by a model of its checkpoint, with dictionaries and sorting.
    folder, rows, _ = done
    row, log = rows[2], polars.read_csv(folder / "log.csv").filter(polars.col("kind") != "spam")
    log = log.sort("user_id", "timestamp", maintain_order=True)
    model = row["models"][WARM]
    store = EventStore.open(folder / "work/store")
    net = GRU4Rec.load_from_checkpoint(model["ckpt"]).eval()
    before = log.filter(polars.col("timestamp") < row["start"])
    assert store.num_events == len(before)
    assert store.event_columns["kind"].series(0, store.num_events).to_list() == before["kind"].to_list()
    assert torch.load(model["ckpt"], weights_only=True)["seqrec"]["newest"] == before["timestamp"].max()
    ids = {item: int(store.item_vocabulary.lookup([item])[0]) for item in log["item_id"].unique().to_list()}
    is_new = polars.col("timestamp") >= rows[0]["start"]
    fresh = set(before.filter(is_new)["item_id"]) - set(before.filter(~is_new)["item_id"])
    hits, ndcgs, missed, fresh_hits = {}, {}, 0, 0
    for user, item, time, _ in log.rows():
        if not row["start"] <= time < row["end"]:
            continue
        known = log.filter(polars.col("user_id") == user)
        place = known["timestamp"].to_list().index(time)
        history = [ids[each] for each in known["item_id"].to_list()[:place] if ids[each]]
        if not history:
            continue
        rank = 99
        if ids[item]:
            state = net(History(torch.tensor([history]), torch.tensor([len(history)])))[:, -1]
            scores = net.scorer().score_chunk(state, 1, store.num_items)[0].tolist()
            others = set(range(1, store.num_items + 1)) - {ids[item]} - set(history)
            rank = sum(scores[other - 1] > scores[ids[item] - 1] for other in others)
        missed += not ids[item]
        fresh_hits += rank < 10 and item in fresh
        hits.setdefault(user, []).append(rank < 10)
        ndcgs.setdefault(user, []).append(1 / np.log2(rank + 2) if rank < 10 else 0)
    assert row["targets"] == sum(map(len, hits.values()))
    assert row["targets_of_new_items"] == missed > 0
    assert model["hits"] == sum(map(sum, hits.values()))
    assert model["fresh_hits"] == fresh_hits
    assert model["metrics"]["HR@10"]["mean"] == pytest.approx(np.mean([np.mean(own) for own in hits.values()]))
    assert model["metrics"][METRIC]["mean"] == pytest.approx(np.mean([np.mean(own) for own in ndcgs.values()]))


def test_a_slice_is_not_judged_after_it_was_learned(done, tmp_path: Path):
    # As if the order were reversed: the store has grown, or the model was trained, before the judgement.
    folder, rows, _ = done
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(folder / "config.yaml", tmp_path)
    (tmp_path / "work/results/slice_003.json").unlink()
    done_file = tmp_path / "work/slice_001/warm_start/done.json"
    trained = json.loads(done_file.read_text())
    torch.save({"seqrec": {"newest": rows[2]["start"]}}, tmp_path / "later.ckpt")
    done_file.write_text(json.dumps({**trained, "ckpt": str(tmp_path / "later.ckpt")}))
    with pytest.raises(StoreError, match=r"later\.ckpt was trained on events of the slice that it is to judge"):
        run(tmp_path, Commands())
    source, new = (
        Table(str(folder / "work/log/slice_000.parquet"), missing_values=[]),
        folder / "work/log/slice_003.parquet",
    )
    append(source, Filters(), tmp_path / "work/store", str(new), schema=Schema(events={"kind": "categorical"}))
    with pytest.raises(StoreError, match=r"has events up to .*, of the slice from .* that is to be judged"):
        run(tmp_path, Commands())


def test_results_of_other_settings_are_refused(done):
    with pytest.raises(InputError, match=r"cut\.json is the result of other settings, updates=20, now it is 30"):
        run(done[0], Commands(), updates=30)


def test_a_log_without_times_is_refused(tmp_path: Path):
    config = yaml.safe_load(write_log(tmp_path).read_text())
    config["data"]["source"]["init_args"]["timestamp"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="the log has no timestamps, which divide it into slices"):
        run(tmp_path, Commands())


def test_what_a_failed_command_said_is_shown(tmp_path: Path):
    write_log(tmp_path)
    (tmp_path / "log.csv").write_text("user,item\n1,2\n")
    with pytest.raises(InputError, match=r"seqrec prepare failed: error: .*user_id.*full log: .*log\.txt"):
        run(tmp_path, Commands())


def test_a_sample_of_users_keeps_all_of_their_events():
    frame = polars.DataFrame({"user_id": ["b", "a", "c", "a", "b"], "item_id": range(5)})
    some = of_some_users(frame, 2, seed=0)
    assert some["user_id"].n_unique() == 2
    assert some.equals(frame.filter(polars.col("user_id").is_in(some["user_id"].unique().implode())))
    assert some.equals(of_some_users(frame, 2, seed=0))
    assert of_some_users(frame, 9, seed=0).equals(frame)


def test_slices_begin_where_equally_many_events_or_times_divide_the_log():
    times = np.arange(100, 200).repeat(2)
    assert Plan([], slices=4).bounds(times) == [125, 150, 175, 200]
    days = FIRST + DAY * np.arange(10)
    assert Plan([], every="2d", start="2023-11-17", end="2023-11-22").bounds(days) == [
        FIRST + DAY * day for day in (3, 5, 7, 8)
    ]
    assert Plan([], every="1w", start=str(FIRST + 5)).bounds(days) == [
        FIRST + 5,
        FIRST + 5 + 7 * DAY,
        FIRST + 9 * DAY + 1,
    ]
    # A log in thousandths of a second.
    assert Plan([], every="12h", start="2023-11-22").bounds(days * 1000)[1] == (FIRST + 8 * DAY + DAY // 2) * 1000


def test_the_command_is_repeated_with_all_that_decides_the_numbers():
    plan = Plan(["c"], every="1d", start="2024-05-01T00:00Z", end="2024-05-02 12:00", replay=None)
    assert shlex.split(plan.words())[2:10] == [
        "c", "--every", "1d", "--start", "2024-05-01T00:00Z", "--end", "2024-05-02 12:00", "--updates",
    ]  # fmt: skip
    assert "--replay null --retrain false" in plan.words()


def test_times_that_real_numbers_round_are_refused():
    with pytest.raises(InputError, match="give the log's times in milliseconds"):
        Plan(["c"], slices=2).bounds(np.array([1, 2**53 + 1]))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "give either slices"),
        ({"slices": 3, "every": "1d", "start": "2023-11-17"}, "give either slices"),
        ({"slices": 3, "end": "2023-11-17"}, "start and end belong to every"),
        ({"every": "1d"}, "every=1d needs start"),
        ({"slices": 1}, "slices=1 must be at least 2"),
        ({"slices": 3, "share": 0.0}, "share=0.0 must be above 0"),
        ({"slices": 3, "replay": 1.0}, "replay=1.0 must be at least 0 and below 1"),
        ({"slices": 3, "updates": 0}, "updates=0 must be at least 1"),
        ({"slices": 3, "judged_users": 0}, "judged_users=0 must be at least 1"),
        ({"slices": 20}, "slices=20 are too many for 10 different times"),
        ({"every": "1y", "start": "2023-11-17"}, "every='1y' must be a number and a unit"),
        ({"every": "30d", "start": "2023-11-17"}, "every=30d is longer than the time from start=2023-11-17"),
        (
            {"every": "1d", "start": "2023-11-17", "end": "2023-11-16"},
            "start=2023-11-17 must lie before end=2023-11-16",
        ),
        ({"every": "1d", "start": "2024-11-17"}, "start=2024-11-17 must lie"),
        ({"every": "1d", "start": "soon"}, "start='soon' is no date"),
        ({"every": "1d", "start": "inf"}, "start='inf' is no date"),
    ],
)
def test_plans_that_cannot_be_are_refused(settings: dict[str, Any], match: str):
    with pytest.raises(InputError, match=match):
        Plan([], **settings).bounds(FIRST + DAY * np.arange(10))
