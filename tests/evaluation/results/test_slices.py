from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from results_problems import frame, header

from seqrec.evaluation.results import Results, Slice, slices_of
from seqrec.evaluation.results.file import popularity_bounds


def by_name(results: Results) -> dict[str, Slice]:
    return {each.name: each for each in slices_of(results)}


@pytest.fixture(params=[1, 3])
def results(request: pytest.FixtureRequest) -> Results:
    return Results("run", header(), frame(targets=request.param).sort("user_id", "item_id"))


@pytest.mark.parametrize("kind", ["history", "time"])
def test_quarters_hold_every_target_once_and_about_as_many_each(results: Results, kind: str):
    quarters = [each for name, each in by_name(results).items() if name.startswith(kind)]
    assert len(quarters) == 4
    assert (np.sum([each.kept for each in quarters], axis=0) == 1).all()
    for quarter in quarters:
        assert 0.2 < quarter.kept.mean() < 0.3


def test_a_quarter_is_named_by_the_values_in_it(results: Results):
    lengths = results.frame["history_length"].to_numpy()
    for name, each in by_name(results).items():
        if name.startswith("history"):
            low, high = name.removeprefix("history ").split(" to ")
            inside = lengths[each.kept]
            assert (inside.min(), inside.max()) == (int(low), int(high))
            assert not ((lengths >= int(low)) & (lengths <= int(high)) & ~each.kept).any()


def test_items_are_split_by_training_events_and_by_being_new(results: Results):
    slices = by_name(results)
    events = results.frame["item_train_events"].to_numpy()
    expected = {
        "head (200+ training events)": events >= 200,
        "torso (100+ training events)": (events >= 100) & (events < 200),
        "tail (fewer training events)": events < 100,
        "new item": ~results.frame["repeated"].to_numpy(),
        "repeated item": results.frame["repeated"].to_numpy(),
    }
    for name, kept in expected.items():
        assert np.array_equal(slices[name].kept, kept)


def test_items_without_training_events_are_a_slice_of_the_tail(results: Results):
    events = results.frame["item_train_events"].to_numpy().copy()
    events[::3] = 0
    slices = by_name(Results("run", results.header, results.frame.with_columns(item_train_events=events)))
    assert np.array_equal(slices["cold (no training event)"].kept, events == 0)
    assert slices["tail (fewer training events)"].kept[::3].all()
    trained = results.frame.with_columns(item_train_events=np.maximum(events, 1))
    assert "cold (no training event)" not in by_name(Results("run", results.header, trained))


def test_quarters_count_users_and_not_their_targets():
    # One user with many targets does not move the bounds of history.
    rows = frame(users=8)
    rows = rows.with_columns(history_length=pl.Series([1, 2, 3, 4, 5, 6, 7, 8]))
    many = pl.concat([rows, *[rows[:1]] * 20]).sort("user_id")
    names = [name for name in by_name(Results("run", header(), many)) if name.startswith("history")]
    assert names == [name for name in by_name(Results("run", header(), rows)) if name.startswith("history")]


def test_what_does_not_occur_is_no_slice():
    rows = frame(users=50).with_columns(
        repeated=pl.lit(False), timestamp=pl.lit(None, pl.Int64), history_length=pl.lit(9, pl.Int64)
    )
    names = list(by_name(Results("run", header(head_from=1000), rows)))
    assert names == [
        "history 9 to 9",
        "torso (100+ training events)",
        "tail (fewer training events)",
        "new item",
    ]


@pytest.mark.parametrize(
    ("counts", "bounds"),
    [
        # 30 events: 12 of the head, 10 of the torso; ties go up together.
        ([12, 5, 5, 2, 2, 2, 1, 1], (12, 5)),
        ([1, 5, 2, 12, 5, 2, 1, 2], (12, 5)),
        ([4, 4, 4], (4, 4)),
        ([0, 0], (1, 1)),
    ],
)
def test_head_and_torso_hold_a_third_of_the_training_events_each(counts: list[int], bounds: tuple[int, int]):
    assert popularity_bounds(np.array([0, *counts])) == bounds
