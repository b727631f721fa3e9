"""Models and protocols under a filter of targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_events import NUM_ITEMS, logs, training_events

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prepare import Filters
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.targets import LogTargets
from seqrec.errors import InputError
from seqrec.evaluation.protocols import FullRanking, Protocol
from seqrec.evaluation.results import Header, Results, compare
from seqrec.models import ItemKNN, Markov, Popularity, RecentPopularity, Recommender, SASRec, evaluate
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.training.losses import FullSoftmax
from seqrec.training.optim import Adam


@st.composite
def filtered_logs(draw: st.DrawFn) -> tuple[TrainingEvents, list[list[tuple[int, bool]]]]:
    """Training events with random targets, and each user's training part as (item, is target)."""
    events = training_events(draw(logs))
    size = len(events.item_ids)
    flags = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=bool)
    events = replace(events, targets=LogTargets.from_flags("bought", [flags]), timestamps=np.arange(size))
    users = [
        [(int(events.item_ids[place]), bool(flags[place])) for place in range(start, stop)]
        for start, stop in zip(events.starts, events.stops, strict=True)
    ]
    return events, users


@settings(max_examples=40, deadline=None)
@given(filtered_logs())
def test_popularity_counts_targets(log):
    events, users = log
    model = Popularity(NUM_ITEMS)
    model.count(events)
    expected = Counter(item for user in users for item, is_target in user if is_target)
    assert model.item_counts.tolist() == [expected[item] for item in range(NUM_ITEMS + 1)]


@settings(max_examples=40, deadline=None)
@given(filtered_logs(), st.sampled_from([0.3, 1.0]))
def test_recent_popularity_counts_the_newest_targets(log, share: float):
    events, users = log
    model = RecentPopularity(NUM_ITEMS, share=share)
    targets = [item for user in users for item, is_target in user if is_target]
    if targets:
        model.count(events)
        # Times are the log's order.
        newest = Counter(targets[-int(np.ceil(share * len(targets))) :])
        assert model.item_counts.tolist() == [newest[item] for item in range(NUM_ITEMS + 1)]


@settings(max_examples=40, deadline=None)
@given(filtered_logs())
def test_markov_counts_targets_after_any_event(log):
    events, users = log
    model = Markov(NUM_ITEMS, num_successors=NUM_ITEMS)
    model.count(events)
    follows = Counter[tuple[int, int]]()
    for user in users:
        for (before, _), (item, is_target) in pairwise(user):
            follows[before, item] += is_target
    states = torch.arange(1, NUM_ITEMS + 1).unsqueeze(1)
    scores = model.scorer().score_chunk(states, 1, NUM_ITEMS).long().tolist()
    assert scores == [[follows[i, j] for j in range(1, NUM_ITEMS + 1)] for i in range(1, NUM_ITEMS + 1)]


@settings(max_examples=40, deadline=None)
@given(filtered_logs(), st.integers(1, 3), st.sampled_from([0.0, 2.0]))
def test_item_neighbours_are_targets_near_any_event(log, window: int, shrinkage: float):
    events, users = log
    model = ItemKNN(NUM_ITEMS, num_neighbors=NUM_ITEMS, window=window, shrinkage=shrinkage, half_life=None)
    model.count(events)
    of_any, of_targets, together = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
    for user in users:
        of_any.update({item for item, _ in user})
        of_targets.update({item for item, is_target in user if is_target})
        together.update(
            {
                (i, j)
                for a, (i, _) in enumerate(user)
                for b, (j, is_target) in enumerate(user)
                if is_target and i != j and 0 < abs(a - b) <= window
            }
        )
    scores = model.scorer().score_chunk(torch.arange(1, NUM_ITEMS + 1).unsqueeze(1), 1, NUM_ITEMS)
    for i in range(1, NUM_ITEMS + 1):
        expected = [
            together[i, j] / np.sqrt((of_any[i] + shrinkage) * (of_targets[j] + shrinkage)) if together[i, j] else 0.0
            for j in range(1, NUM_ITEMS + 1)
        ]
        assert scores[i - 1].tolist() == pytest.approx(expected, rel=1e-6)


def shop(folder: Path, *, context: bool) -> SequenceDataModule:
    """A log in which one event of three is a purchase: of the item that goes with the one viewed just before.

    Views are random, so what was bought before tells nothing. Without `context`, purchases are the whole log.
    """
    path, num_items = folder / "log.parquet", 30
    if not path.exists():
        rng = np.random.default_rng(0)
        viewed = rng.integers(num_items, size=(150, 12, 2))
        goes_with = rng.permutation(num_items)
        items = np.concatenate([viewed, goes_with[viewed[:, :, 1:]]], axis=2).reshape(150, -1)
        kinds = ["view", "view", "buy"] * 12
        rows = [(user, item, at, kinds[at]) for user, line in enumerate(items.tolist()) for at, item in enumerate(line)]
        polars.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event_type"], orient="row").write_parquet(
            path
        )
    what: dict[str, Any] = {"filters": Filters(event_filter="event_type = 'buy'")}
    if context:
        # The two lines of a config for "use all behaviours, predict purchases".
        what = {"schema": Schema(events={"event_type": "categorical"}), "targets": "event_type = 'buy'"}
    return SequenceDataModule(
        Table(str(path)), store=str(folder / f"store{context}"), max_length=36, batch_size=10, **what
    )


def judged(model: Recommender, data: SequenceDataModule) -> dict[str, float]:
    model.protocol = FullRanking(filter_seen=False)
    return evaluate(model, data.test_dataloader())


def trained(data: SequenceDataModule) -> SASRec:
    pl.seed_everything(0, verbose=False)
    parts: dict[str, Any] = {"loss": FullSoftmax(), "optimizer": Adam(lr=0.01)}
    model = SASRec(data.num_items, d_model=16, num_heads=1, num_layers=1, max_length=36, dropout=0.0, **parts)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=15,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    return model


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_all_behaviours_as_context_predict_purchases_that_purchases_alone_cannot(tmp_path: Path):
    """Of 30 items, chance has an HR@5 of 1/6. The bounds were stated before the first run."""
    for fit in (trained, counted):
        context, alone = (shop(tmp_path, context=flag) for flag in (True, False))
        with_context, without = (judged(fit(data), data)["HR@5"] for data in (context, alone))
        assert with_context > 0.8
        assert without < 0.4


def counted(data: SequenceDataModule) -> Markov:
    model = Markov(data.num_items)
    model.count(TrainingEvents.of(data.store, data.split))
    return model


def test_the_id_of_a_protocol_names_the_targets():
    protocol = Protocol(targets="event_type  =\n'buy'")
    assert protocol.id == "full-seenout-tiemean-loo-targets(event_type = 'buy')"
    assert protocol.describe()["targets"] == "event_type  =\n'buy'"
    assert Protocol().id == "full-seenout-tiemean-loo"


def test_the_data_decides_about_the_targets_of_a_protocol(tmp_path: Path):
    data = shop(tmp_path, context=True)
    found = Protocol().on(data.split, data.event_order, targets=data.targets)
    assert found.targets == "event_type = 'buy'"
    assert found.on(data.split, data.event_order, targets=data.targets) == found
    with pytest.raises(InputError, match=r"protocol\.targets=.*but data\.targets=None: leave it out"):
        found.on(data.split, data.event_order)


def results(name: str, protocol: Protocol) -> Results:
    header = Header("SASRec", protocol.id, protocol.describe(), "achievable", 100, 9, 3)
    ranks = {"user_id": [7, 9], "item_id": [1, 2], "better": [0, 4], "tied": [0, 0]}
    return Results(name, header, polars.DataFrame({**ranks, "history_length": [5, 8], "repeated": [False, False]}))


def test_results_of_other_targets_are_not_compared(tmp_path: Path):
    all_events, purchases = results("a", Protocol()), results("b", Protocol(targets="event_type = 'buy'"))
    with pytest.raises(InputError, match=r"different protocols, full-seenout-tiemean-loo and .*targets"):
        compare([all_events, purchases])
    # Files from before the filter have no such setting.
    settings_before = {key: value for key, value in Protocol().describe().items() if key != "targets"}
    before = replace(all_events, name="c", header=replace(all_events.header, settings=settings_before))
    assert len(compare([all_events, before]).estimates) == 6
