from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_events import NUM_ITEMS, batch_of, logs, naive_pairs, training_events, training_histories

from seqrec.catalogue.recommend import RecommendOptions
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError
from seqrec.evaluation.protocols import FullRanking
from seqrec.models import Baseline, ItemKNN, Markov, Popularity, RecentItems, RecentPopularity, evaluate
from seqrec.models.baselines.training_events import TrainingEvents

BASELINES = {model.__name__: model for model in (ItemKNN, Markov, Popularity, RecentItems, RecentPopularity)}
every_baseline = pytest.mark.parametrize("name", sorted(BASELINES))
without_steps = pytest.mark.filterwarnings(
    "ignore:`LightningModule.configure_optimizers` returned `None`",
    "ignore:`training_step` returned `None`",
    "ignore:.*does not have many workers",
    "ignore:.*logging interval",
)
user_histories = st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=9), min_size=1, max_size=4)


def scores_of(model: Baseline, histories: list[list[int]]) -> torch.Tensor:
    """(B, num_items) by the model's scorer."""
    return model.scorer().score_chunk(model.last_states(batch_of(histories)), 1, NUM_ITEMS)


@settings(max_examples=40, deadline=None)
@given(users=logs, histories=user_histories)
def test_markov_scores_equal_plain_loops(users, histories):
    model = Markov(NUM_ITEMS, num_successors=NUM_ITEMS)
    model.count(training_events(users))
    follows = naive_pairs(users, [1], once_a_user=False)
    popularity = Counter(item for history in training_histories(users) for item in history)
    found = scores_of(model, histories)
    for row, history in zip(found, histories, strict=True):
        assert row.long().tolist() == [follows[history[-1], j] for j in range(1, NUM_ITEMS + 1)]
        keys = [(follows[history[-1], j], popularity[j]) for j in range(1, NUM_ITEMS + 1)]
        order = sorted(set(keys))
        assert row.unique(sorted=True, return_inverse=True)[1].tolist() == [order.index(key) for key in keys]


def naive_similarity(users, i: int, j: int, *, window: int, shrinkage: float) -> float:
    together = naive_pairs(users, [step for step in range(-window, window + 1) if step], once_a_user=True)
    alone = Counter(item for history in training_histories(users) for item in set(history))
    if i == j or not together[i, j]:
        return 0.0
    return together[i, j] / np.sqrt((alone[i] + shrinkage) * (alone[j] + shrinkage))


@settings(max_examples=40, deadline=None)
@given(
    users=logs,
    histories=user_histories,
    window=st.integers(1, 12),
    shrinkage=st.sampled_from([0.0, 2.5]),
    half_life=st.sampled_from([None, 0.5, 3.0]),
)
def test_item_knn_scores_equal_plain_loops(users, histories, window, shrinkage, half_life):
    model = ItemKNN(NUM_ITEMS, num_neighbors=NUM_ITEMS, window=window, shrinkage=shrinkage, half_life=half_life)
    model.count(training_events(users))
    similarities = np.array(
        [
            [naive_similarity(users, i, j, window=window, shrinkage=shrinkage) for j in range(1, NUM_ITEMS + 1)]
            for i in range(NUM_ITEMS + 1)
        ]
    )
    for row, history in zip(scores_of(model, histories), histories, strict=True):
        ages = range(len(history) - 1, -1, -1)
        weights = [1.0 if half_life is None else 0.5 ** (age / half_life) for age in ages]
        expected = sum(w * similarities[item] for w, item in zip(weights, history, strict=True))
        np.testing.assert_allclose(row.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_window_over_whole_histories_gives_the_cosine_of_items_as_sets_of_users():
    rng = np.random.default_rng(0)
    users = [(rng.integers(1, NUM_ITEMS + 1, 10).tolist(), 0) for _ in range(6)]
    model = ItemKNN(NUM_ITEMS, num_neighbors=NUM_ITEMS, window=9, shrinkage=0.0)
    model.count(training_events(users))
    sets = np.zeros((NUM_ITEMS + 1, len(users)))
    for user, (history, _) in enumerate(users):
        sets[history, user] = 1
    norms = np.linalg.norm(sets, axis=1).clip(min=1e-9)
    cosine = sets @ sets.T / np.outer(norms, norms)
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(scores_of(model, [[i] for i in range(1, NUM_ITEMS + 1)]), cosine[1:, 1:], atol=1e-6)


def test_the_nearest_neighbours_are_kept_and_the_smaller_id_of_equal_ones():
    # Item 1 is beside 2 in three users, beside 3, 4 and 5 in one each.
    users = [([1, 2, 7, 1, 3], 0), ([1, 2], 0), ([2, 1, 4], 0), ([5, 1], 0)]
    model = ItemKNN(NUM_ITEMS, num_neighbors=2, window=1, shrinkage=1e9)
    model.count(training_events(users))
    assert model.neighbors[1].tolist() == [2, 3]
    assert model.neighbors[6].tolist() == [0, 0]
    assert (model.similarities[6] == 0).all()


def test_the_most_frequent_successors_are_kept_and_the_more_popular_of_equal_ones():
    users = [([1, 2, 1, 2, 1, 3], 0), ([1, 4, 4, 4], 0)]
    model = Markov(NUM_ITEMS, num_successors=2)
    model.count(training_events(users))
    assert model.successors[1].tolist() == [2, 4]
    assert model.transition_counts[1].tolist() == [2, 1]
    # What is not kept falls back to its popularity.
    assert scores_of(model, [[1]])[0, 2] == model.levels[3]


def test_an_item_that_nothing_follows_leaves_the_order_to_popularity():
    model = Markov(NUM_ITEMS)
    model.count(training_events([([1, 2, 2, 3, 3, 3], 0)]))
    model.options = RecommendOptions(3, filter_seen=False)
    assert model.predict_step(batch_of([[7]]), 0).item_ids.tolist() == [[3, 2, 1]]


def test_a_newer_event_outweighs_an_older_one_by_the_half_life():
    model = ItemKNN(NUM_ITEMS, shrinkage=0.0, half_life=2.0)
    model.count(training_events([([1, 2], 0), ([3, 4], 0)]))
    assert scores_of(model, [[1, 3, 3, 6, 6]])[0].tolist() == pytest.approx([0, 0.5**2, 0, 0.5 + 0.5**1.5, 0, 0, 0])


@settings(max_examples=40, deadline=None)
@given(users=logs, histories=user_histories)
def test_recent_items_rank_the_history_from_the_newest_and_then_by_popularity(users, histories):
    model = RecentItems(NUM_ITEMS)
    model.count(training_events(users))
    popularity = Counter(item for history in training_histories(users) for item in history)
    for row, history in zip(scores_of(model, histories), histories, strict=True):
        newest = {item: place for place, item in enumerate(history, 1)}
        keys = [(newest.get(item, 0), 0 if item in newest else popularity[item]) for item in range(1, NUM_ITEMS + 1)]
        assert row.unique(sorted=True, return_inverse=True)[1].tolist() == [sorted({*keys}).index(key) for key in keys]


def test_recent_popularity_counts_the_newest_share():
    times = [10, 40, 50, 20, 30, 60, 5, 99]
    users = [([1, 2, 3], 0), ([4, 5, 6], 0), ([7, 1], 1)]
    counts = {}
    for share in (1e-9, 3 / 7, 1.0):
        model = RecentPopularity(NUM_ITEMS, share=share)
        model.count(training_events(users, timestamps=times))
        counts[share] = model.item_counts.tolist()
    assert counts[1e-9] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert counts[3 / 7] == [0, 0, 1, 1, 0, 0, 1, 0]
    assert counts[1.0] == [0, 1, 1, 1, 1, 1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(
    times=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3), min_size=1, max_size=30),
    share=st.floats(0.01, 1.0),
    piece=st.integers(1, 9),
)
def test_events_as_old_as_the_oldest_counted_one_are_counted(times, share, piece):
    users = [([index % NUM_ITEMS + 1 for index in range(len(times))], 0)]
    model = RecentPopularity(NUM_ITEMS, share=share)
    model.count(training_events(users, timestamps=times, piece_events=piece))
    oldest = sorted(times, reverse=True)[int(np.ceil(share * len(times))) - 1]
    expected = Counter(item for item, time in zip(users[0][0], times, strict=True) if time >= oldest)
    assert model.item_counts.tolist() == [expected[item] for item in range(NUM_ITEMS + 1)]


@pytest.fixture
def data(tmp_path: Path) -> SequenceDataModule:
    source = Synthetic(num_users=30, num_items=20, mean_events=15, lag=1, signal=0.9, repeat=0.0)
    return SequenceDataModule(source, store=str(tmp_path / "store"), max_length=10, batch_size=8)


@every_baseline
@without_steps
def test_a_fitted_baseline_is_judged_saved_and_loaded_like_any_model(
    name: str, data: SequenceDataModule, make_trainer: Callable, tmp_path: Path
):
    model, trainer = BASELINES[name](data.num_items), make_trainer(max_epochs=5)
    if name == "RecentPopularity":
        model = RecentPopularity(data.num_items, share=0.5)
    trainer.fit(model, datamodule=data)
    assert trainer.current_epoch == 1
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    assert tested["test_HR@5"] == pytest.approx(evaluate(model, data.test_dataloader())["HR@5"])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]["num_items"] == 20
    loaded = BASELINES[name].load_from_checkpoint(tmp_path / "model.ckpt")
    (before, after) = (trainer.predict(each, datamodule=data) for each in (model, loaded))
    assert all(torch.equal(a.item_ids, b.item_ids) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(before, after, strict=True))


def test_what_follows_the_last_item_beats_popularity_where_it_is_the_answer(data: SequenceDataModule):
    events = TrainingEvents.of(data.store, data.split)
    found = {}
    for name in ("Markov", "ItemKNN", "Popularity"):
        model = BASELINES[name](data.num_items)
        model.protocol = FullRanking(filter_seen=False)
        model.count(events)
        found[name] = evaluate(model, data.test_dataloader())["HR@5"]
    assert found["Markov"] > 0.8
    assert found["ItemKNN"] > found["Popularity"] + 0.2


@every_baseline
def test_another_catalogue_is_refused(name: str):
    events = training_events([([1, 2], 0)], timestamps=[1, 2])
    with pytest.raises(InputError, match=rf"{name} was built with num_items=9, the log has 7 items; build it with"):
        BASELINES[name](9).count(events)


@every_baseline
@without_steps
def test_fitting_without_a_data_module_is_refused(name: str, batches, make_trainer: Callable):
    with pytest.raises(InputError, match=rf"{name} is fitted from a SequenceDataModule"):
        make_trainer(max_epochs=1).fit(BASELINES[name](12), batches, batches)


def test_a_log_without_times_has_no_recent_popularity():
    with pytest.raises(InputError, match="needs timestamps and the log has none: use a source with times"):
        RecentPopularity(NUM_ITEMS).count(training_events([([1, 2], 0)]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("RecentPopularity", {"share": 0.0}, "share=0.0 must be above 0"),
        ("RecentPopularity", {"share": 1.5}, "share=1.5 must be above 0 and at most 1"),
        ("Markov", {"num_successors": 0}, "num_successors=0 must be at least 1"),
        ("ItemKNN", {"num_neighbors": 0}, "num_neighbors=0 must be at least 1"),
        ("ItemKNN", {"window": 0}, "window=0 must be at least 1"),
        ("ItemKNN", {"shrinkage": -1.0}, "shrinkage=-1.0 must be a number of at least 0"),
        ("ItemKNN", {"shrinkage": float("nan")}, "shrinkage=nan must be a number"),
        ("ItemKNN", {"half_life": 0.0}, "half_life=0.0 must be above 0, or null"),
    ],
)
def test_values_out_of_range_are_refused(name: str, arguments: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        BASELINES[name](5, **arguments)
