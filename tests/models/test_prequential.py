"""Each event of the test time judged by itself, from all events of its user before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from featured_logs import NAMES, SCHEMA, featured_log

import seqrec.models
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import ML1M, Table
from seqrec.data.splits import GlobalTime
from seqrec.encoders.event_time import EventTime
from seqrec.errors import InputError
from seqrec.evaluation.metrics import ranking_metrics
from seqrec.evaluation.protocols import FullRanking
from seqrec.evaluation.results import compare, read_results
from seqrec.evaluation.results.writer import ResultsWriter
from seqrec.models import (
    ItemKNN,
    MambaRec,
    RecentPopularity,
    Recommender,
    SASRec,
    SequentialRecommender,
    TrainingEvents,
)
from seqrec.models import prequential as room
from seqrec.models.judging import evaluate
from seqrec.models.prequential import judge_batch
from seqrec.types import JudgedTargets, SequenceBatch, TargetRanks

SPLIT = GlobalTime(0.7, 0.5, prequential=True)
TIME = EventTime(hour=True, request=True)
MODELS = {
    "GRU4Rec": ("GRU4Rec", {}),
    "SASRec-rotary": ("SASRec", {"rotary": True}),
    "MambaRec": ("MambaRec", {}),
    "MambaRec-mamba2-time": ("MambaRec", {"mixer": "mamba2", "time": TIME}),
    "RecMamba-users": ("RecMamba", {"user_embedding": True}),
    "MoEMaTrRec-time": ("MoEMaTrRec", {"rotary": True, "time": TIME}),
    "SASRec-positions": ("SASRec", {"positions": True}),
    "BERT4Rec": ("BERT4Rec", {}),
    "GRU4Rec-columns": ("GRU4Rec", {"event_columns": NAMES}),
    "SASRec-positions-columns": ("SASRec", {"positions": True, "time": TIME, "event_columns": NAMES}),
}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SequenceDataModule:
    folder = tmp_path_factory.mktemp("store")
    log = featured_log(folder / "log.parquet", num_users=40, num_items=30, mean_events=14, seed=5)
    return SequenceDataModule(log, schema=SCHEMA, store=str(folder / "s"), split=SPLIT, max_length=200)


def build(name: str, data: SequenceDataModule, d_model: int = 8, max_length: int = 200) -> SequentialRecommender:
    torch.manual_seed(0)
    preset, own = MODELS[name]
    users = {"num_users": data.num_users} if own.get("user_embedding") else {}
    arguments = {"d_model": d_model, "max_length": max_length, "positions": False, "dropout": 0.0} | own | users
    arguments["log_columns"] = data.event_columns
    model: SequentialRecommender = getattr(seqrec.models, preset)(data.num_items, **arguments).eval()
    torch.nn.init.normal_(model.items.weight.detach()[1:], std=0.3)
    for weight in [] if model.column_embedding is None else model.column_embedding.parameters():
        torch.nn.init.normal_(weight.detach(), std=0.3)
    if model.read_out is not None:
        torch.nn.init.normal_(model.read_out.out.weight.detach(), std=0.3)
    return model


def test_every_event_of_the_time_is_a_target_once_with_its_user_and_position(data: SequenceDataModule):
    store = data.store
    times, offsets = np.asarray(store.timestamps), np.asarray(store.offsets)
    since = np.sort(times)[int(np.ceil(0.7 * len(times))) - 1]
    wanted = {
        (user + 1, int(event - offsets[user]), int(store.item_ids[event]), int(times[event]))
        for user in range(store.num_users)
        for event in range(offsets[user] + 1, offsets[user + 1])
        if times[event] >= since
    }
    found = []
    for batch in data.test_dataloader():
        held_out = batch.held_out
        assert held_out is not None
        assert held_out.positions is not None
        assert held_out.timestamps is not None
        columns = (batch.user_ids[held_out.rows], held_out.positions, held_out.item_ids, held_out.timestamps)
        found += list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_is_encoding_the_events_before_each_target(name: str, data: SequenceDataModule):
    model = build(name, data)
    for batch in data.test_dataloader():
        one_pass = model.states_before_targets(batch)
        encoded = Recommender.states_before_targets(model, batch)
        assert one_pass.shape == (len(batch.held_out.item_ids), 8)
        torch.testing.assert_close(one_pass, encoded, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MambaRec", "MambaRec-mamba2-time"])
def test_a_tenth_of_ml_1m_in_one_pass_is_encoding_the_events_before_each(
    name: str, real_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    split = GlobalTime(0.89, 0.85, prequential=True)
    data = SequenceDataModule(
        ML1M(str(real_data("ml-1m/ml-1m.zip"))), store=str(tmp_path), split=split, max_length=3000
    )
    model, events, seconds = build(name, data, d_model=32, max_length=3000), 0, np.zeros(2)
    for batch in data.test_dataloader():
        ways = (model.states_before_targets, partial(Recommender.states_before_targets, model))
        states = []
        with torch.inference_mode():
            for way, read in enumerate(ways):
                began = time.perf_counter()
                states.append(read(batch))
                seconds[way] += time.perf_counter() - began
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
        events += len(states[0])
    assert events >= 100_000
    with capsys.disabled():
        one_pass, prefixes = events / seconds
        print(f"\n{name}: {events:,} targets, {one_pass:,.0f} a second in one pass, {prefixes:,.0f} encoding prefixes")


def naive(model: Recommender, batch: SequenceBatch) -> tuple[list[int], list[bool]]:
    """Rank and repetition of each target, one at a time, by sorting."""
    held_out, scorer = batch.held_out, model.scorer()
    states, ranks, repeated = Recommender.states_before_targets(model, batch), [], []
    for place, (row, item, position) in enumerate(
        zip(held_out.rows.tolist(), held_out.item_ids.tolist(), held_out.positions.tolist(), strict=True)
    ):
        seen = set(batch.history.item_ids[row, :position].tolist())
        scores = scorer.score_chunk(states[place : place + 1], 1, scorer.num_items)[0]
        hidden = seen | {item} if model.protocol.filter_seen else {item}
        others = [other for other in range(1, scorer.num_items + 1) if other not in hidden]
        better = [other for other in others if scores[other - 1] > scores[item - 1]]
        ranks.append(len(better))
        repeated.append(item in seen)
    return ranks, repeated


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("held", [1, 70, 1 << 20])
def test_ranks_are_among_what_the_user_has_not_seen_by_then(
    filter_seen: bool, held: int, data: SequenceDataModule, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(room, "HELD_EVENTS", held)
    model = build("MambaRec", data)
    model.protocol = FullRanking(filter_seen=filter_seen).on(SPLIT, data.event_order)
    assert "prequential" in model.protocol.id
    for batch in data.test_dataloader():
        judged = judge_batch(model, batch, model.scorer())
        ranks, repeated = naive(model, batch)
        assert judged.ranks.better.tolist() == ranks
        assert judged.repeated.tolist() == repeated
        assert judged.user_ids.tolist() == batch.user_ids.tolist()


def test_a_users_metrics_are_means_over_its_lists():
    ranks = TargetRanks(torch.tensor([0, 11, 3, 4]), torch.tensor([0, 0, 0, 1]))
    rows, users, ones = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 2]), torch.ones(2, dtype=torch.int64)
    judged = JudgedTargets(users, ones, rows, torch.tensor([5, 5, 6, 7]), ranks, torch.zeros(4, dtype=torch.bool))
    metrics = ranking_metrics(separate_lists=True)
    metrics.update(judged)
    values = metrics.compute()
    assert float(values["HR@10"]) == pytest.approx((2 / 3 + 1) / 2)
    tied = (1 / np.log2(6) + 1 / np.log2(7)) / 2
    assert float(values["NDCG@10"]) == pytest.approx(((1 + 1 / np.log2(5)) / 3 + tied) / 2)
    assert float(values["HR@5"]) == pytest.approx((2 / 3 + 0.5) / 2)


def test_a_test_writes_one_row_a_target_and_two_runs_are_compared(data: SequenceDataModule, tmp_path: Path):
    runs = []
    for name in ("MambaRec", "SASRec-rotary"):
        writer = ResultsWriter(str(tmp_path / f"{name}.parquet"))
        model = build(name, data)
        model.has_fresh_weights = False
        trainer = pl.Trainer(callbacks=[writer], **QUIET)
        (values,) = trainer.test(model, data, verbose=False)
        results = read_results(tmp_path / f"{name}.parquet")
        assert results.metrics(["HR@10"]).mean() == pytest.approx(values["test_HR@10"], abs=1e-6)
        assert results.metrics(["NDCG@10"]).mean() == pytest.approx(values["test_NDCG@10"], abs=1e-6)
        counts = data.train_item_counts()
        alone = evaluate(model, data.test_dataloader(), item_counts=counts, separate_lists=True)
        assert alone["NDCG@10"] == pytest.approx(values["test_NDCG@10"], abs=1e-6)
        runs.append(results)
    compared = compare(runs)
    assert {each.users for each in compared.estimates} == {runs[0].num_users}


def test_long_histories_are_judged_in_parts(data: SequenceDataModule, monkeypatch: pytest.MonkeyPatch):
    model = ItemKNN(data.num_items)
    model.count(TrainingEvents.of(data.store, data.split))
    whole = evaluate(model, data.test_dataloader(), separate_lists=True)
    monkeypatch.setattr("seqrec.models.prequential.HELD_EVENTS", 40)
    assert evaluate(model, data.test_dataloader(), separate_lists=True) == whole


@pytest.mark.filterwarnings("ignore:.*no optimizer", "ignore:.*training_step")
@pytest.mark.parametrize("kind", [RecentPopularity, ItemKNN])
def test_baselines_are_judged_by_the_same_targets(kind: type, data: SequenceDataModule):
    model = kind(data.num_items)
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(model, data)
    (values,) = trainer.test(model, data, verbose=False)
    assert 0 < values["test_NDCG@10"] < 1
    assert "prequential" in model.protocol.id


def test_users_that_begin_in_the_time_are_judged_from_their_second_event(tmp_path: Path):
    log = tmp_path / "log.csv"
    rows = [("old", item, 100 + item) for item in range(1, 9)] + [("new", item, 107 + item) for item in range(1, 4)]
    rows += [("brief", 1, 108)]
    polars.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(log)
    split = GlobalTime(107, 104, prequential=True)
    source = Table(str(log), "user_id", "item_id", "timestamp")
    data = SequenceDataModule(source, store=str(tmp_path / "store"), split=split, max_length=3)
    names = data.store.user_vocabulary
    found = {}
    for batch in data.test_dataloader():
        for row, user in enumerate(names.external_ids(batch.user_ids.numpy())):
            found[user] = batch.held_out.positions[batch.held_out.rows == row].tolist()
    assert found == {"old": [6, 7], "new": [1, 2]}
    assert split.left_out(data.store, "test") == {"no event in its time": 0, "fewer than 1 event(s) before": 1}
    with pytest.raises(InputError, match="warm_up=0"):
        GlobalTime(107, 104, warm_up=0, prequential=True)


def test_a_stream_sees_more_than_the_longest_window_and_a_model_with_positions_does_not(data: SequenceDataModule):
    batch = next(iter(data.test_dataloader()))
    whole, short = MambaRec(data.num_items, d_model=8, positions=False), SASRec(data.num_items, d_model=8, max_length=3)
    changed = SequenceBatch(
        type(batch.history)(batch.history.item_ids.clone(), batch.history.lengths, batch.history.timestamps),
        None,
        batch.user_ids,
        batch.seen_events,
        held_out=batch.held_out,
    )
    changed.history.item_ids[:, 0] = changed.history.item_ids[:, 0] % data.num_items + 1
    far = batch.held_out.positions > 4
    assert far.any()
    for model, moves in ((whole.eval(), True), (short.eval(), False)):
        torch.nn.init.normal_(model.items.weight.detach()[1:], std=0.3)
        moved = (model.states_before_targets(batch) - model.states_before_targets(changed)).abs().amax(1)[far]
        assert bool((moved > 0).all()) == moves
        assert moves or not moved.any()
