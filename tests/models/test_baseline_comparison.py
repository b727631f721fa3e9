"""A model is compared with models that only count, on the same targets, and each of them is computed once."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from seqrec import BaselineComparison, FullRanking, GRU4Rec, SequenceDataModule, Synthetic
from seqrec.catalogue.scorer import Scorer
from seqrec.data.cold_items import ColdItems
from seqrec.data.splits import GlobalTime, LastN, LeaveOneOut, Split
from seqrec.errors import InputError
from seqrec.evaluation.protocols import PopularityCandidates, Protocol, SampledRanking, WholeCatalogue
from seqrec.evaluation.results import compare, read_results
from seqrec.models import ItemKNN, Markov, Popularity, RecentItems, Recommender, TrainingEvents, evaluate
from seqrec.models.baselines.comparison import BaselineReport
from seqrec.models.baselines.judged import FOLDER, BaselineResults
from seqrec.training.losses import FullSoftmax

BASELINES = {model.__name__: model for model in (Popularity, Markov, ItemKNN, RecentItems)}
SOURCE = Synthetic(num_users=40, num_items=30, mean_events=14, lag=1, signal=0.6)


class Blind(Recommender):
    """Scores all items the same."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.eye(num_items + 1))

    def last_states(self, batch):
        return self.table.new_zeros(len(batch), len(self.table))

    def scorer(self):
        return Scorer(self.table)


class Clairvoyant(Blind):
    """Knows the targets."""

    def last_states(self, batch):
        states = super().last_states(batch)
        return states.index_put_((batch.held_out.rows, batch.held_out.item_ids), states.new_ones(()), accumulate=True)

    @property
    def reads_request_time(self):
        return True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = SequenceDataModule(SOURCE, store=str(tmp_path_factory.mktemp("log") / "store"))
    return data.store.directory


@pytest.fixture
def data_of(store: Path, tmp_path: Path) -> Callable[..., SequenceDataModule]:
    """Data of a store without results."""
    shutil.copytree(store, tmp_path / "store")

    def make(**arguments: Any) -> SequenceDataModule:
        return SequenceDataModule(SOURCE, store=str(tmp_path / "store"), max_length=10, eval_batch_size=16, **arguments)

    return make


@pytest.fixture
def data(data_of: Callable[..., SequenceDataModule]) -> SequenceDataModule:
    return data_of()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each baseline has been counted."""
    calls: Counter[str] = Counter()
    for name, baseline in BASELINES.items():

        def count(self, events, name=name, count=baseline.count):
            calls[name] += 1
            count(self, events)

        monkeypatch.setattr(baseline, "count", count)
    return calls


@pytest.fixture
def reported(make_trainer: Callable[..., pl.Trainer]) -> Callable[..., BaselineReport | None]:
    def report(
        data: SequenceDataModule,
        model: Recommender | None = None,
        protocol: Protocol | None = None,
        *,
        stage: str = "test",
        enabled: bool | None = None,
        verbose: bool = False,
        **arguments: object,
    ) -> BaselineReport | None:
        model = model or Clairvoyant(data.num_items)
        model.protocol = protocol or model.protocol
        callback = BaselineComparison(enabled)
        getattr(make_trainer(callbacks=[callback], **arguments), stage)(model, data, verbose=verbose)
        return callback.report

    return report


@pytest.mark.parametrize(
    ("split", "protocol"),
    [
        (LeaveOneOut(), FullRanking(filter_seen=False, alive_only=True)),
        (LeaveOneOut(), SampledRanking(num_negatives=4)),
        (LastN(2), Protocol(candidates=WholeCatalogue(trained_only=True), normaliser="cutoff")),
        (GlobalTime(prequential=True), FullRanking(filter_seen=False)),
        (ColdItems(0.3), Protocol(candidates=PopularityCandidates(5), ties="pessimistic", filter_seen=False)),
    ],
    ids=lambda value: value.id,
)
@pytest.mark.parametrize(("stage", "targets"), [("test", None), ("validate", "item_id % 3 > 0")])
def test_baselines_are_judged_as_the_model_is(
    data_of: Callable, reported: Callable, split: Split, protocol: Protocol, targets: str | None, stage: str
):
    data = data_of(split=split, targets=targets)
    report = reported(data, Blind(data.num_items), protocol, stage=stage)
    assert set(report.rows) == {name for name in BASELINES if name != "RecentItems" or not protocol.filter_seen}
    for name, values in report.rows.items():
        model = BASELINES[name](data.num_items)
        model.protocol = protocol.on(data.split, data.event_order, targets=targets)
        model.count(TrainingEvents.of(data.store, data.split))
        expected = evaluate(
            model,
            data.test_dataloader() if stage == "test" else data.val_dataloader(),
            item_counts=data.train_item_counts(),
            first_times=data.first_event_times,
            several_targets=split.several_targets,
            separate_lists=split.prequential,
            cold_items=data.hidden_items,
        )
        assert values == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_second_run_computes_nothing_and_another_protocol_does(
    data_of: Callable, reported: Callable, counted: Counter[str]
):
    first = reported(data_of())
    assert counted == {"Popularity": 1, "Markov": 1, "ItemKNN": 1}
    assert reported(data_of()) == first
    assert reported(data_of(seed=3, batch_size=4), Blind(30)).rows == first.rows
    assert sum(counted.values()) == 3
    others = [
        reported(data_of(), protocol=FullRanking(filter_seen=False)),
        reported(data_of(), protocol=SampledRanking(5)),
        reported(data_of(), protocol=SampledRanking(5, seed=1)),
        reported(data_of(split=LastN(2))),
        reported(data_of(targets="item_id > 9")),
        reported(data_of(), stage="validate"),
    ]
    assert counted == {"Popularity": 7, "Markov": 7, "ItemKNN": 7, "RecentItems": 1}
    every = [first, *others]
    assert len({tuple(report.rows["Markov"].values()) for report in every}) == len(every)


def test_code_and_store_of_kept_results_count(
    data_of: Callable, reported: Callable, counted: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    reported(data_of())
    monkeypatch.setattr("seqrec.models.baselines.judged._digest_of_code", lambda: "another")
    reported(data_of())
    assert set(counted.values()) == {2}
    other = SequenceDataModule(Synthetic(num_users=9, num_items=9), store=str(tmp_path / "other"), max_length=10)
    shutil.copytree(tmp_path / "store" / FOLDER, other.store.directory / FOLDER)
    reported(other)
    assert set(counted.values()) == {3}


def test_two_runs_at_once_compute_once(data_of: Callable, counted: Counter[str]):
    found: list[Any] = []
    runs = [
        Thread(target=lambda: found.append(BaselineResults(data_of(), FullRanking(), "test").of([Markov, ItemKNN])))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert counted == {"Markov": 1, "ItemKNN": 1}
    one, two = found
    assert [results.frame.equals(other.frame) for results, other in zip(one, two, strict=True)] == [True, True]


def test_kept_results_are_results_files(data: SequenceDataModule, reported: Callable):
    reported(data)
    files = sorted((data.store.directory / FOLDER).iterdir())
    assert [file.name.split("-")[0] for file in files] == ["ItemKNN", "Markov", "Popularity"]
    comparison = compare([read_results(file) for file in files])
    assert list(comparison.models.values()) == ["ItemKNN", "Markov", "Popularity"]


@pytest.mark.parametrize("damage", [lambda content: content[:99], lambda content: content[:-9] + b"x" + content[-8:]])
def test_a_damaged_file_is_computed_again(
    data_of: Callable, reported: Callable, counted: Counter[str], capsys: pytest.CaptureFixture[str], damage: Callable
):
    first, data = reported(data_of()), data_of()
    (file,) = (data.store.directory / FOLDER).glob("Markov-*")
    file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    assert reported(data) == first
    assert f"{file} is damaged (its SHA-256 differs): Markov is judged again" in capsys.readouterr().out
    assert counted == {"Popularity": 1, "Markov": 2, "ItemKNN": 1}
    assert reported(data_of()) == first
    assert counted["Markov"] == 2


def test_a_store_that_cannot_be_written_is_no_obstacle(
    data: SequenceDataModule, reported: Callable, capsys: pytest.CaptureFixture[str]
):
    (data.store.directory / FOLDER).touch()
    assert set(reported(data).rows) == {"Popularity", "Markov", "ItemKNN"}
    assert re.search(r"note: results of baselines are not kept, as \S+ cannot be written", capsys.readouterr().out)


class OwnCandidates(WholeCatalogue):
    """A class whose code this package does not know."""


def test_results_by_code_of_others_are_not_kept(data: SequenceDataModule, reported: Callable, counted: Counter[str]):
    for times in (1, 2):
        reported(data, protocol=Protocol(candidates=OwnCandidates()))
        assert set(counted.values()) == {times}
    assert not (data.store.directory / FOLDER).exists()


def test_a_baseline_that_the_model_does_not_beat_is_named(
    data: SequenceDataModule, reported: Callable, capsys: pytest.CaptureFixture[str]
):
    model = Clairvoyant(data.num_items)
    report = reported(data, model, verbose=True)
    assert report.not_worse == []
    assert report.notes == ["Clairvoyant reads the time of the request, Popularity, Markov and ItemKNN do not"]
    printed = capsys.readouterr().out
    assert f"test of 40 users, protocol {model.protocol.id}" in printed
    assert re.search(r"^Clairvoyant( +1\.0000){6} +1\.0000 to 1\.0000$", printed, re.MULTILINE)
    assert re.search(r"^Markov( +0\.\d{4}){6} +0\.\d{4} to 0\.\d{4}$", printed, re.MULTILINE)
    report = reported(data, Blind(data.num_items))
    assert capsys.readouterr().out == ""
    assert report.not_worse == ["Popularity", "Markov", "ItemKNN"]
    value, blind = report.rows["Markov"]["NDCG@10"], report.comparison.estimates[4]
    assert (blind.run, blind.metric) == ("Blind", "NDCG@10")
    (line,) = [note for note in report.notes if note.startswith("Markov")]
    assert line.startswith(f"Markov is better than Blind: its NDCG@10 is higher by {value - blind.mean:.4f} (95% int")
    assert not any("to try" in note for note in report.notes)


def test_a_baseline_within_noise_is_not_worse(data: SequenceDataModule, reported: Callable):
    class Noisy(Markov):
        title = "Noisy"

        def scorer(self):
            scorer = super().scorer()
            # Moves the ranks of some users a little.
            scorer.neighbor_weights = scorer.neighbor_weights.roll(1, 0)
            return scorer

    report = reported(data, Noisy(data.num_items))
    (change,) = [x.difference for x in report.comparison.estimates if (x.run, x.metric) == ("Markov", "NDCG@10")]
    (line,) = [note for note in report.notes if note.startswith("Markov")]
    low, high = change.interval
    assert low < 0 < high
    size = f"higher by {change.mean:.4f}" if change.mean > 0 else f"lower by {-change.mean:.4f}, within noise"
    assert line == (
        f"Markov is not worse than Noisy: its NDCG@10 is {size} (95% interval of the paired difference {low:+.4f} to "
        f"{high:+.4f}, 40 users)"
    )


def test_a_model_that_is_trained_gets_what_to_try(data: SequenceDataModule, reported: Callable):
    model = GRU4Rec(data.num_items, d_model=8, max_length=10)
    torch.nn.init.zeros_(model.items.weight)
    model.has_fresh_weights = False
    assert reported(data, model).notes[-1] == (
        "to try: more updates (longer patience, smaller batches), dropout up to 0.5, FullSoftmax as the loss, "
        "a shorter max_length"
    )
    model.loss, model.hparams["dropout"] = FullSoftmax(), 0.5
    assert reported(data, model).notes[-1] == (
        "to try: more updates (longer patience, smaller batches), a shorter max_length"
    )
    model.has_fresh_weights = True
    with pytest.warns(UserWarning, match="fresh weights"):
        report = reported(data, model)
    assert (report.not_worse, report.notes) == ([], [])


def test_only_users_that_the_model_judged_are_compared(data: SequenceDataModule, reported: Callable):
    report = reported(data, Blind(data.num_items), limit_test_batches=1)
    popularity = Popularity.from_counts(data.train_item_counts())
    expected = evaluate(popularity, [next(iter(data.test_dataloader()))])
    assert report.rows["Popularity"] == pytest.approx(expected)
    assert {each.users for each in report.comparison.estimates} == {16}
    assert report.not_worse == []


@pytest.mark.parametrize(("limit", "name"), [("EVENTS", "events"), ("ITEMS", "items"), ("SCORES", "scores")])
def test_a_large_log_is_compared_only_on_demand(
    data: SequenceDataModule,
    reported: Callable,
    monkeypatch: pytest.MonkeyPatch,
    counted: Counter[str],
    capsys: pytest.CaptureFixture[str],
    limit: str,
    name: str,
):
    monkeypatch.setattr(f"seqrec.models.baselines.comparison.MAX_{limit}", 29)
    report = reported(data, verbose=True)
    (note,) = report.notes
    assert note in capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"Popularity, Markov and ItemKNN are left out: [\d,]+ {name}.* are more than 29; --baselines.enabled true, or "
        r"BaselineComparison\(enabled=True\), compares them anyway",
        note,
    )
    assert (report.rows, report.comparison, report.intervals, counted) == ({}, None, {}, {})
    assert set(reported(data, enabled=True).rows) == {"Popularity", "Markov", "ItemKNN"}


def test_nothing_is_compared_if_it_is_not_asked_for(
    data: SequenceDataModule, reported: Callable, make_trainer: Callable, counted: Counter[str]
):
    assert reported(data, enabled=False) is None
    assert reported(data, fast_dev_run=True) is None
    callback = BaselineComparison()
    make_trainer(callbacks=[callback], max_epochs=1).fit(GRU4Rec(data.num_items, d_model=8, max_length=10), data)
    assert (callback.report, counted) == (None, {})


def test_a_baseline_is_not_compared_with_itself(data: SequenceDataModule, reported: Callable):
    assert set(reported(data, Markov(data.num_items)).rows) == {"Popularity", "ItemKNN"}


def test_a_test_without_a_log_is_refused(batches: Any, make_trainer: Callable):
    with pytest.raises(InputError, match="BaselineComparison needs a Recommender and a SequenceDataModule"):
        make_trainer(callbacks=[BaselineComparison()]).test(Blind(12), batches, verbose=False)
