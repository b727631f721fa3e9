from __future__ import annotations

import inspect

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.sources import Synthetic
from seqrec.errors import InputError


def histories(source: Synthetic) -> list[np.ndarray]:
    frame = source.scan().collect()
    users, items = frame["user_id"].to_numpy(), frame["item_id"].to_numpy()
    return np.split(items, np.flatnonzero(np.diff(users)) + 1)


def hit_rate(source: Synthetic, back: int) -> float:
    hits = [source.successor[items[:-back]] == items[back:] for items in histories(source)]
    return float(np.concatenate(hits).mean())


@settings(deadline=None, max_examples=20)
@given(lag=st.integers(1, 40), signal=st.sampled_from([0.0, 0.3, 0.8]), seed=st.integers(0, 5))
def test_items_are_what_following_each_chain_by_hand_gives(lag, signal, seed):
    source = Synthetic(num_users=5, num_items=30, mean_events=40, lag=lag, signal=signal, seed=seed)
    lengths = np.array([7, 50, 5])
    items = source._items(np.random.default_rng(seed), lengths)
    # The same draws in the same order, one event at a time.
    rng = np.random.default_rng(seed)
    kind, back, fresh = rng.random(62), rng.random(62), rng.random(62)
    cumulative = np.cumsum(source.popularity)
    expected: list[int] = []
    for length in lengths:
        history: list[int] = []
        for t in range(length):
            event = len(expected) + t
            if kind[event] < signal and t >= lag:
                history.append(int(source.successor[history[t - lag]]))
            elif signal <= kind[event] < signal + source.repeat and t >= 1:
                history.append(history[t - 1 - int(back[event] * min(t, 10))])
            else:
                history.append(int(np.searchsorted(cumulative, fresh[event] * cumulative[-1], side="right")))
        expected += history
    assert items.tolist() == expected


def test_the_same_arguments_make_the_same_log_and_another_seed_another():
    def log(seed: int) -> object:
        return Synthetic(num_users=20, num_items=50, seed=seed).scan().collect()

    assert log(3).equals(log(3))
    assert not log(3).equals(log(4))


def test_blocks_are_joined_in_user_order(monkeypatch):
    monkeypatch.setattr("seqrec.data.sources.synthetic._EVENTS_IN_BLOCK", 600)
    frame = Synthetic(num_users=50, num_items=20).scan().collect()
    assert frame["user_id"].is_sorted()
    assert frame["user_id"].unique().sort().to_list() == list(range(50))


def test_reading_a_part_gives_that_part_of_the_log(monkeypatch):
    monkeypatch.setattr("seqrec.data.sources.synthetic._EVENTS_IN_BLOCK", 600)
    source = Synthetic(num_users=50, num_items=20)
    whole = source.scan().collect()
    assert source.num_rows == len(whole)
    liked = pl.col("item_id") < 5
    assert source.scan().filter(liked).collect().equals(whole.filter(liked))
    assert source.scan().select("timestamp").collect().equals(whole.select("timestamp"))
    assert source.scan().head(1000).collect().equals(whole.head(1000))
    batches = source.scan().filter(liked).select("user_id").collect_batches(chunk_size=500, engine="streaming")
    assert pl.concat(batches).equals(whole.filter(liked).select("user_id"))


def test_a_block_is_made_when_it_is_collected(monkeypatch):
    made: list[int] = []
    timestamps = Synthetic._timestamps

    def counted(self: Synthetic, rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
        made.append(len(lengths))
        return timestamps(self, rng, lengths)

    monkeypatch.setattr("seqrec.data.sources.synthetic._EVENTS_IN_BLOCK", 600)
    monkeypatch.setattr(Synthetic, "_timestamps", counted)
    frame = Synthetic(num_users=5000, num_items=20).scan()
    assert made == []
    assert len(frame.head(10).collect()) == 10
    assert len(made) < 100


def test_values_stay_those_of_published_figures(monkeypatch):
    # Sums of users, items and times, as the first version of this source made them in one frame.
    monkeypatch.setattr("seqrec.data.sources.synthetic._EVENTS_IN_BLOCK", 600)
    frame = Synthetic(num_users=50, num_items=20, mean_events=30, seed=7).scan().collect()
    assert (len(frame), *frame.sum().row(0)) == (1613, 42_314, 15_728, 2_606_911_610_632)


def test_the_event_that_many_places_back_predicts_and_its_neighbours_do_not():
    source = Synthetic(num_users=400, num_items=2000, lag=6, signal=0.5)
    assert hit_rate(source, 6) == pytest.approx(0.5, abs=0.03)
    assert hit_rate(source, 5) < 0.05
    assert hit_rate(source, 7) < 0.05


def test_without_signal_the_successor_is_no_better_than_chance():
    assert hit_rate(Synthetic(num_users=200, signal=0.0), 4) < 0.02


def test_recent_items_come_back():
    def repeated(repeat: float) -> float:
        logs = histories(Synthetic(num_users=100, num_items=5000, signal=0.0, repeat=repeat))
        return float(np.mean([items[t] in items[t - 10 : t] for items in logs for t in range(10, len(items))]))

    assert repeated(0.4) > repeated(0.0) + 0.3


def test_popularity_is_skewed_as_asked():
    items = np.concatenate(histories(Synthetic(num_users=500, num_items=100, signal=0.0, repeat=0.0)))
    counts = np.sort(np.bincount(items, minlength=100))[::-1]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)
    even = Synthetic(num_users=500, num_items=100, signal=0.0, repeat=0.0, popularity_exponent=0.0)
    counts = np.bincount(np.concatenate(histories(even)), minlength=100)
    assert counts.max() < 1.3 * counts.min()


def test_lengths_vary_around_their_mean_and_are_at_least_five():
    lengths = np.array([len(items) for items in histories(Synthetic(num_users=3000, mean_events=60))])
    assert lengths.mean() == pytest.approx(60, rel=0.05)
    assert lengths.min() >= 5
    assert lengths.std() > 20


def test_times_ascend_in_sessions():
    source = Synthetic(num_users=200, session_events=20)
    frame = source.scan().collect()
    users, times = frame["user_id"].to_numpy(), frame["timestamp"].to_numpy()
    gaps = np.diff(times)[np.diff(users) == 0]
    assert gaps.min() >= 1
    assert (gaps >= 6 * 3600).mean() == pytest.approx(1 / 20, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "num_users=0 must be at least 1"),
        ({"num_items": 1}, "num_items=1 must be at least 2"),
        ({"mean_events": 2}, "mean_events=2 must be at least 5"),
        ({"lag": 0}, "lag=0 must be at least 1"),
        ({"signal": float("nan")}, "signal=nan must be at least 0"),
        ({"signal": 0.9, "repeat": 0.3}, "signal=0.9 and repeat=0.3 .* at most 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Synthetic(**arguments)


def test_description_holds_every_argument():
    described = Synthetic(num_users=7).describe()
    assert described["name"] == "synthetic"
    assert described["arguments"].keys() == inspect.signature(Synthetic).parameters.keys()
    assert described["arguments"]["num_users"] == 7
