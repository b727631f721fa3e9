"""A test judges the lists that the model recommends, on demand, and by the protocol's rules."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch

from seqrec import (
    BaselineComparison,
    ColdItems,
    FullRanking,
    GlobalTime,
    ListReport,
    Popularity,
    Protocol,
    SampledRanking,
    SASRec,
    Schema,
    SequenceDataModule,
    Synthetic,
    Table,
    WholeCatalogue,
)
from seqrec.errors import InputError
from seqrec.evaluation.metrics import LIST_METRICS

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is used with fresh weights")
COLUMNS = {"genres": "categories", "text": "vector", "year": "numeric"}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("log")
    Synthetic(num_users=30, num_items=40, mean_events=14).scan().collect().write_parquet(folder / "log.parquet")
    items = polars.DataFrame({"item_id": range(40)}).with_columns(
        genres=polars.col("item_id").map_elements(lambda item: "abc"[item % 3] + "|d" * (item % 2), polars.String),
        text=polars.concat_list(polars.col("item_id") % 5 + 0.5, polars.col("item_id") % 3).cast(
            polars.List(polars.Float32)
        ),
        year=polars.col("item_id") + 1990,
    )
    items.with_columns(polars.col("genres").str.split("|")).write_parquet(folder / "items.parquet")
    source = Table(str(folder / "log.parquet"), items={"path": str(folder / "items.parquet"), "key": "item_id"})

    def data(**arguments: Any) -> SequenceDataModule:
        settings = {"store": str(folder / "store"), "schema": Schema(items=COLUMNS), "max_length": 10}
        return SequenceDataModule(source, **settings | {"eval_batch_size": 8} | arguments)

    return data


def model(data: SequenceDataModule, protocol: Protocol | None = None) -> SASRec:
    torch.manual_seed(0)
    made = SASRec(data.num_items, d_model=8, max_length=10, num_layers=1, num_heads=1)
    made.protocol = protocol or FullRanking(filter_seen=False)
    return made


def run(tested: Any, data: SequenceDataModule, report: ListReport, stage: str = "test") -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[report], enable_progress_bar=False, enable_model_summary=False
    )
    (values,) = getattr(trainer, stage)(tested, data, verbose=False)
    return values


def report(**changes: Any) -> ListReport:
    given = {"cutoffs": [5, 3], "diversity_column": "genres", "calibration_column": "genres"}
    return ListReport(LIST_METRICS, **given | changes)


def test_all_metrics_equal_those_of_the_lists_that_the_model_recommends(make):
    data = make()
    tested, judged = model(data), report()
    values = run(tested, data, judged)
    lists = tested.recommend(polars_histories(data), top_k=5, filter_seen=False)
    genres = {item: {"abc"[item % 3], *"d" * (item % 2)} for item in range(40)}
    per_user = [own["item_id"].to_list() for _, own in lists.group_by("user_id", maintain_order=True)]
    seen = [own["item_id"].to_list() for _, own in polars_histories(data).group_by("user_id", maintain_order=True)]
    ids = data.store.item_vocabulary.external_ids(np.arange(1, 40)).tolist()
    counts = dict(zip(ids, data.train_item_counts()[1:].tolist(), strict=True))
    for k in (3, 5):
        short = [row[:k] for row in per_user]
        shown = [item for row in short for item in row]
        pairs = [(a, b) for row in short for place, a in enumerate(row) for b in row[:place]]
        distances = [1 - len(genres[a] & genres[b]) / len(genres[a] | genres[b]) for a, b in pairs]
        repeats = [sum(item in own for item in row) / k for row, own in zip(short, seen, strict=True)]
        bits = [math.log2(sum(counts.values()) / max(counts[item], 1)) for item in shown]
        expected = {
            "Coverage": len(set(shown)) / 39,
            "Popularity": sum(counts[item] for item in shown) / len(shown),
            "Novelty": sum(bits) / len(bits),
            "Diversity": sum(distances) / len(distances),
            "Repeats": sum(repeats) / len(repeats),
        }
        found = {name: judged.values[f"{name}@{k}"] for name in expected}
        assert found == pytest.approx(expected, abs=1e-9)
    assert {f"test_{name}" for name in judged.values} < set(values)
    assert values["test_Gini@5"] == pytest.approx(judged.values["Gini@5"], abs=1e-6)
    assert set(judged.intervals) == {f"{n}@{k}" for n in LIST_METRICS[3:] for k in (3, 5)}
    assert all(low < judged.values[name] < high for name, (low, high) in judged.intervals.items())
    assert [line.split()[0] for line in str(judged.table()).splitlines()[1:]] == list(judged.values)
    assert json.loads(json.dumps(judged.as_dict()))["calibration_column"] == "genres"


def polars_histories(data: SequenceDataModule) -> polars.DataFrame:
    """Return the events before each user's target, in the order of users that the store has."""
    data.setup("test")
    rows = []
    for batch in data.test_dataloader():
        users = data.store.user_vocabulary.external_ids(batch.user_ids[batch.seen_events.rows].numpy())
        items = data.store.item_vocabulary.external_ids(batch.seen_events.item_ids.numpy())
        rows.append(polars.DataFrame({"user_id": users, "item_id": items}))
    return polars.concat(rows)


def test_seen_items_are_left_out_if_the_protocol_filters_them_and_validation_is_judged_too(make):
    data, judged = make(), ListReport(["Repeats", "Diversity"], diversity_column="text")
    values = run(model(data, FullRanking()), data, judged, "validate")
    assert values["val_Repeats@10"] == 0
    assert 0 < values["val_Diversity@10"] < 1


def test_only_candidates_of_the_protocol_are_recommended(make):
    data, judged = make(split=ColdItems()), ListReport(["Popularity", "Coverage"], cutoffs=[39])
    run(model(data, Protocol(candidates=WholeCatalogue(trained_only=True), filter_seen=False)), data, judged)
    trained = (data.train_item_counts() > 0).sum()
    assert judged.values["Coverage@39"] == trained / 39 < 1


def test_nothing_is_computed_unless_metrics_are_named(make):
    data, judged = make(), ListReport()
    assert all("HR" in name or "NDCG" in name for name in run(model(data), data, judged))
    assert (judged.table(), judged.as_dict()) == (None, None)


def test_the_model_gives_the_distance_unless_a_column_is_named(make):
    data = make()
    judged = ListReport(["Diversity"], cutoffs=[2])
    tested = model(data)
    run(tested, data, judged)
    lists = tested.recommend(polars_histories(data), top_k=2, filter_seen=False)
    ids = torch.from_numpy(data.store.item_vocabulary.lookup(lists["item_id"].to_numpy())).view(-1, 2)
    first, second = tested.items(ids).detach().unbind(1)
    expected = 1 - torch.nn.functional.cosine_similarity(first, second).mean()
    assert judged.values["Diversity@2"] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(InputError, match="Popularity has no similarity of items"):
        run(Popularity.from_counts(data.train_item_counts()), data, ListReport(["Diversity"]))
    run(Popularity.from_counts(data.train_item_counts()), data, ListReport(["Diversity"], diversity_column="genres"))


def test_a_fit_refuses_before_it_trains_what_its_test_would_refuse(make):
    data, judged = make(), ListReport(["Diversity"], diversity_column="genre")
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[judged], max_epochs=1, enable_checkpointing=False)
    with pytest.raises(InputError, match=r"lists.diversity_column='genre' is no column"):
        trainer.fit(model(data), data)
    assert trainer.global_step == 0


def test_lists_of_baselines_are_judged_by_the_rules_of_the_model(
    make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    data, judged = make(), ListReport(["Gini", "Novelty", "Diversity"], cutoffs=[4])
    compared = BaselineComparison()

    def tested(report: ListReport, with_baselines: bool, limit: int | None = None) -> None:
        callbacks: list[pl.Callback] = [compared, report] if with_baselines else [report]
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "limit_test_batches": limit}
        trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, enable_model_summary=False, **options)
        trainer.test(given, data, verbose=False)

    given = model(data)
    tested(judged, True)
    assert compared.report is not None
    assert list(judged.others) == ["Popularity", "Markov", "ItemKNN", "RecentItems"]
    popular, alone = Popularity.from_counts(data.train_item_counts()), ListReport(["Gini", "Novelty"], cutoffs=[4])
    popular.protocol = given.protocol
    run(popular, data, alone)
    found = judged.others["Popularity"]
    assert {name: found[name] for name in alone.values} == pytest.approx(alone.values, abs=1e-12)
    # Popularity recommends the same items to all, and their distance is that of the tested model.
    best = data.store.item_vocabulary.lookup(popular.recommend([[3]], top_k=4, filter_seen=False)[0])
    vectors = torch.nn.functional.normalize(given.items(torch.from_numpy(best)).detach())
    assert found["Diversity@4"] == pytest.approx(float((1 - vectors @ vectors.T).sum() / 12), abs=1e-6)
    assert str(judged.table()).splitlines()[0].split()[-4:] == list(judged.others)
    assert json.loads(json.dumps(judged.as_dict()))["baselines"]["Markov"].keys() == judged.values.keys()
    with monkeypatch.context() as patch:
        # Of several processes only the first judges them, and must not wait for the others.
        patch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
        judged.others = {}
        judged.judge_others([popular, popular], given, data, data.test_dataloader)
    assert judged.others["Popularity"] == pytest.approx(found)
    tested(judged, True, limit=1)
    assert compared.report is not None
    assert judged.others == {}
    assert compared.report.notes[-1].endswith("RecentItems are not judged, as the trainer limited its batches")


@pytest.mark.parametrize(
    ("protocol", "split", "message"),
    [
        (SampledRanking(10), None, "protocol uniform10-.* ranks other candidates: choose --protocol FullRanking"),
        (FullRanking(alive_only=True), None, "protocol full-alive-.* ranks other candidates"),
        (FullRanking(), GlobalTime(prequential=True), "judges one list a user, but the split time.* asks before each"),
    ],
)
def test_lists_that_the_protocol_does_not_have_are_refused(make, protocol: Protocol, split: Any, message: str):
    data = make(**({} if split is None else {"split": split}))
    with pytest.raises(InputError, match=message):
        run(model(data, protocol), data, ListReport(["Gini"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["Ginny"]}, r"lists.metrics has 'Ginny', which is unknown; known: Coverage, .*mean Gini"),
        ({"metrics": ["Gini", "Gini"]}, r"lists.metrics=\['Gini', 'Gini'\] has a value twice"),
        ({"metrics": ["Gini"], "cutoffs": []}, "lists.cutoffs is empty"),
        ({"metrics": ["Gini"], "cutoffs": [0]}, "lists.cutoffs=0 must be at least 1"),
        ({"metrics": ["Diversity"], "cutoffs": [1]}, "lists.cutoffs=1 must be at least 2"),
        ({"metrics": ["Gini"], "diversity_column": "text"}, "diversity_column='text' has no effect without Diversity"),
        ({"metrics": ["Calibration"]}, "Calibration needs the column"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        ListReport(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"diversity_column": "genre"}, "lists.diversity_column='genre' is no column of .*it has genres.*mean genres"),
        ({"diversity_column": "year"}, "lists.diversity_column='year' is a column of numbers"),
        ({"calibration_column": "text"}, "lists.calibration_column='text' is of kind vector"),
        ({"cutoffs": [5, 41]}, "lists.cutoffs has 41, but the catalogue has 39 items"),
    ],
)
def test_columns_that_the_store_lacks_are_refused(make, arguments: dict[str, Any], message: str):
    data = make()
    with pytest.raises(InputError, match=message):
        run(model(data), data, report(**arguments))


def test_a_data_module_is_needed(make):
    data = make()
    data.setup("test")
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[ListReport(["Gini"])], enable_progress_bar=False)
    with pytest.raises(InputError, match="ListReport needs a SequenceDataModule"):
        trainer.test(model(data), data.test_dataloader(), verbose=False)


def test_a_python_user_sees_the_table(make, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    data = make()
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[ListReport(["Gini"])], enable_progress_bar=False)
    trainer.test(model(data), data)
    assert "\nlists      value" in capsys.readouterr().out
