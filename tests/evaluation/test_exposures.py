"""A test also ranks the videos that KuaiRand showed at random, from small files in the published format."""

from __future__ import annotations

import itertools
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from kuairand_logs import FIRST, NAMES, RANDOM, SECOND, STANDARD, row, write

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
from seqrec.cli import main
from seqrec.errors import InputError, MissingInputError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is used with fresh weights")
USERS, VIDEOS = 20, 15
SPLIT = GlobalTime("2022-04-22", "2022-04-20")


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


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_guides_command_prints_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "KuaiRand-1K", users=60, videos=30, shown=45)
    guide = (Path(__file__).parents[2] / "notebooks/guide/evaluation.md").read_text(encoding="utf-8")
    part = guide.partition("## Items shown at random\n")[2]
    _, *words = shlex.split(part.partition("```bash\n")[2].partition("\n```")[0].replace("\\\n", ""))
    monkeypatch.chdir(tmp_path)
    main([*words, "--model", "ItemKNN", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    output = capsys.readouterr().out
    tested = json.loads(Path("runs/kuairand_5k/version_0/test_metrics.json").read_text())
    assert tested["protocol"] == "full-seenout-tiemean-time2022-04-22-val2022-04-19-warm1"
    exposed = tested["exposures"]
    assert exposed["protocol"] == "exposed(is_click = 1)-seenin-tiemean-time2022-04-22-val2022-04-19-warm1"
    # The id is the guide's, and its table is below that of the ordinary test.
    assert exposed["protocol"] in " ".join(part.split())
    assert re.search(f"protocol {tested['protocol']}.*protocol {re.escape(exposed['protocol'])}", output, re.DOTALL)
    # The kind that a user clicks is all that there is to know.
    areas = {name: values["AUC"] for name, values in exposed["models"].items()}
    assert list(areas) == ["ItemKNN", "Popularity", "Chance"]
    assert areas["ItemKNN"] > areas["Chance"] == 0.5
