"""A test also ranks the videos that KuaiRand showed at random, from small files in the published format."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from seqrec import (
    EventTime,
    ExposureReport,
    GlobalTime,
    KuaiRand,
    LeaveOneOut,
    Popularity,
    SASRec,
    SequenceDataModule,
    Split,
)
from seqrec.errors import InputError, MissingInputError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is used with fresh weights")
NAMES = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
STANDARD = ("log_standard_4_08_to_4_21_1k.csv", "log_standard_4_22_to_5_08_1k.csv")
RANDOM = "log_random_4_22_to_5_08_1k.csv"
USERS, VIDEOS = 20, 15
# The morning of April 8 and of April 22, 2022, in milliseconds.
FIRST, SECOND = 1_649_376_000_000, 1_650_585_600_000
SPLIT = GlobalTime("2022-04-22", "2022-04-20")


def row(user: int, video: int, time: int, click: int, is_rand: int) -> str:
    return f"{user},{video},20220410,1700,{time},{click},0,0,0,0,0,{1 - click},46186,45916,0,7639,0,{is_rand},1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(3).random
    folder = tmp_path_factory.mktemp("KuaiRand")

    def write(name: str, lines: list[str]) -> None:
        (folder / name).write_text("\n".join([NAMES, *lines, ""]))

    for name, begin in zip(STANDARD, (FIRST, SECOND), strict=True):
        write(
            name,
            [
                # User 0 comes late, so it has no history.
                row(user, int(VIDEOS * draw() ** 2), begin + 7_200_000 * place + int(1000 * draw()), 1, 0)
                for user in range(USERS)
                for place in range(12 if name == STANDARD[1] else 12 * (user > 0))
            ],
        )
    # Videos 15 and 16 and user 20 are in no other file. User 1 clicks everything, user 2 nothing.
    clicks = {1: 1.0, 2: 0.0}
    shown = [
        row(user, int((VIDEOS + 2) * draw()), SECOND + int(10**9 * draw()), int(draw() < clicks.get(user, 0.4)), 1)
        for user in range(USERS + 1)
        for _ in range(9)
    ]
    # The last one is before the end of the history.
    write(RANDOM, [*shown, row(3, 0, FIRST, 1, 1)])
    return folder


def data_of(folder: Path, split: Split = SPLIT) -> SequenceDataModule:
    source = KuaiRand(str(folder), "1K")
    return SequenceDataModule(source, store=str(folder / "store"), split=split, max_length=10, eval_batch_size=8)


@pytest.fixture
def data(folder: Path) -> SequenceDataModule:
    return data_of(folder)


def model(data: SequenceDataModule, **settings: Any) -> SASRec:
    torch.manual_seed(0)
    return SASRec(data.num_items, d_model=8, max_length=10, num_layers=1, num_heads=1, **settings).eval()


def run(tested: Any, data: SequenceDataModule, report: ExposureReport, *, verbose: bool = False) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[report], enable_progress_bar=False, enable_model_summary=False
    )
    (values,) = trainer.test(tested, data, verbose=verbose)
    return values


def naive(scores: np.ndarray, clicked: np.ndarray) -> dict[str, float]:
    pairs = list(itertools.product(scores[clicked], scores[~clicked]))
    places = (-scores).argsort().argsort()[clicked]
    gains = 1 / np.log2(np.arange(2, 12))
    found = {"AUC": float(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))}
    for k in (5, 10):
        found[f"HR@{k}"] = float((places < k).any())
        ideal = gains[: min(k, len(places))].sum()
        found[f"NDCG@{k}"] = float(gains[[place for place in places if place < k]].sum() / ideal)
    return found


@torch.no_grad()
def test_metrics_equal_those_of_each_users_exposures_after_its_history(folder: Path, data: SequenceDataModule):
    tested, report = model(data), ExposureReport(str(folder / RANDOM))
    values = run(tested, data, report)
    shown: dict[int, dict[int, int]] = {}
    for line in (folder / RANDOM).read_text().splitlines()[1:]:
        user, video, _, _, time, click, *_ = map(int, line.split(","))
        if 0 < user < USERS and video < VIDEOS and time >= SECOND:
            own = shown.setdefault(user, {})
            own[video] = max(own.get(video, 0), click)
    expected = []
    for batch in data.test_dataloader():
        states = tested.last_states(batch)
        for state, user in zip(states, data.store.user_vocabulary.external_ids(batch.user_ids.numpy()), strict=True):
            videos, clicked = np.array([*shown[user]]), np.array([*shown[user].values()], bool)
            if clicked.any() and not clicked.all():
                items = torch.from_numpy(data.store.item_vocabulary.lookup(videos))
                scores = tested.scorer().score(state[None], items[None])[0].numpy()
                expected.append(naive(scores, clicked))
    means = {name: np.mean([each[name] for each in expected]) for name in expected[0]}
    assert report.models["SASRec"] == pytest.approx(means, abs=1e-9)
    assert report.users == len(expected) > USERS / 2
    assert values["test_exposed_AUC"] == pytest.approx(means["AUC"], abs=1e-6)
    assert "test_HR@10" in values
    assert report.models["Chance"]["AUC"] == 0.5
    assert report.intervals["Chance"]["AUC"] == (0.5, 0.5)
    low, high = report.intervals["SASRec"]["NDCG@10"]
    assert low < means["NDCG@10"] < high


def test_the_table_names_protocol_and_users_and_json_has_the_same(folder: Path, data: SequenceDataModule, capsys):
    report = ExposureReport(str(folder / RANDOM), positive="long_view  = 1")
    run(model(data), data, report, verbose=True)
    output = capsys.readouterr().out
    protocol = f"exposed(long_view = 1)-seenin-tiemean-{SPLIT.id}"
    assert f"\nitems shown at random to {report.users} of these users, protocol {protocol}\nmodel" in output
    assert [line.split()[0] for line in str(report.table()).splitlines()[2:]] == ["SASRec", "Popularity", "Chance"]
    found = json.loads(json.dumps(report.as_dict()))
    assert found["protocol"] == protocol
    assert found["models"] == report.models


def test_a_model_that_reads_the_time_is_asked_at_the_first_exposure(folder: Path, data: SequenceDataModule):
    report = ExposureReport(str(folder / RANDOM))
    times = []
    tested = model(data, time=EventTime(request=True, unit="ms"), positions=False)
    states = tested.last_states

    def last_states(batch):
        times.append({(int(user), int(at)) for user, at in zip(batch.user_ids, batch.request_times[:, 0], strict=True)})
        return states(batch)

    tested.last_states = last_states
    run(tested, data, report)
    assert report.protocol.endswith("-requesttime")
    lines = [line.split(",") for line in (folder / RANDOM).read_text().splitlines()[1:]]
    first = min(int(line[4]) for line in lines if line[0] == "5" and int(line[1]) < VIDEOS)
    assert (int(data.store.user_vocabulary.lookup([5])[0]), first) in set().union(*times)


def test_popularity_is_one_row_of_its_own_table(folder: Path, data: SequenceDataModule):
    report = ExposureReport(str(folder / RANDOM))
    run(model(data), data, report)
    of_counts = report.models["Popularity"]
    run(Popularity.from_counts(data.train_item_counts()), data, report)
    assert list(report.models) == ["Popularity", "Chance"]
    assert report.models["Popularity"] == pytest.approx(of_counts)


def test_nothing_is_read_unless_a_log_is_named(data: SequenceDataModule):
    report = ExposureReport()
    assert not any("exposed" in name for name in run(model(data), data, report))
    assert (report.table(), report.as_dict()) == (None, None)


def test_bad_logs_of_exposures_are_refused(folder: Path, data: SequenceDataModule, tmp_path: Path):
    def refused(
        message: str, error: type[Exception] = InputError, path: Path = folder / RANDOM, **changes: str
    ) -> None:
        with pytest.raises(error, match=message):
            run(model(data), data, ExposureReport(str(path), **changes))

    refused("exposures: path='.*nothing.csv': no such file", MissingInputError, tmp_path / "nothing.csv")
    refused("exposures: .*'video'", item="video")
    refused("exposures.positive='is_clicked = 1': .*is_clicked.*columns: .*is_click", positive="is_clicked = 1")
    refused("exposures.positive='tab' gives Int64; it must be true or false", positive="tab")
    refused("none of its 190 rows can be judged: .* of users without both kinds of 'tab = 5'", positive="tab = 5")
    strangers = tmp_path / "strangers.csv"
    strangers.write_text(f"{NAMES}\n{row(900, 1, SECOND, 1, 1)}\n{row(1, 900, SECOND, 1, 1)}\n{row(1, 1, 5, 1, 1)}\n")
    counted = "3 rows can be judged: 1 of users that the store lacks, 1 of items that it lacks, 1 not after the history"
    refused(counted, path=strangers)


def test_splits_that_ask_before_each_target_are_refused(folder: Path):
    data = data_of(folder, GlobalTime("2022-04-22", "2022-04-20", prequential=True))
    with pytest.raises(InputError, match=r"exposures\.path judges one state a user, but the split time"):
        run(model(data), data, ExposureReport(str(folder / RANDOM)))


def test_only_exposures_after_the_newest_known_event_count(folder: Path):
    data = data_of(folder, LeaveOneOut())
    report = ExposureReport(str(folder / RANDOM))
    run(model(data), data, report)
    assert 0 < report.users < USERS
    assert report.protocol == "exposed(is_click = 1)-seenin-tiemean-loo"
