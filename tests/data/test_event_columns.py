"""How a log's values become codes and numbers, from the description of a column alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec.data.columns import training_scales
from seqrec.data.event_columns import EventColumn
from seqrec.data.prepare import Filters, prepare
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.errors import BatchEntryError, InputError
from seqrec.specs import from_spec, to_spec

TEXT = EventColumn("tab", "categorical", values=["home", "search", "té"])
WHOLE = EventColumn("rating", "categorical", values=[-1, 3, 7])
NUMBER = EventColumn("watched", "numeric", mean=3.5, std=2.0)
VECTOR = EventColumn("looks", "vector", width=2)
EVERY = [TEXT, WHOLE, NUMBER, VECTOR]


def read(column: EventColumn, values: Any) -> Any:
    return column.read(values, lambda event: f"event {event}").tolist()


@pytest.mark.parametrize("column", EVERY, ids=repr)
def test_a_description_is_plain_values_and_back(column: EventColumn):
    again = from_spec(to_spec(column), EventColumn)
    assert again == column
    assert hash(again) == hash(column)
    assert again.values == column.values
    others = [EventColumn("x", "numeric"), EventColumn("tab", "categorical", values=["home", "search", "th"])]
    assert all(column != other for other in [*others, *(each for each in EVERY if each is not column)])


def test_values_have_their_codes_and_all_others_are_zero():
    # With blanks around it, with an accent of its own, and the markers of missing values.
    found = read(TEXT, ["search", " home\t", "te\u0301", "", "NULL", None, math.nan, "Home", 3, True])
    assert found == [2, 1, 3, 0, 0, 0, 0, 0, 0, 0]
    assert read(TEXT, np.array(["home", "té"])) == [1, 3]
    # Once more from what is remembered.
    assert read(TEXT, ["search", " home\t", "new", None]) == [2, 1, 0, 0]
    assert read(WHOLE, [7, "3", 3.0, np.int64(-1), 10**30, -(10**30), "x", None, False]) == [3, 2, 2, 1, 0, 0, 0, 0, 0]
    assert read(EventColumn("flag", "categorical", values=[0, 1]), [True, False, None]) == [2, 1, 0]
    assert read(EventColumn("none", "categorical"), ["x", 1]) == [0, 0]


def test_numbers_and_vectors_are_float32_and_missing_ones_are_nan_and_zeros():
    assert read(NUMBER, [1, 2.5, True, np.float64(0.25)]) == [1, 2.5, 1, 0.25]
    assert math.isnan(read(NUMBER, [None])[0])
    assert math.isnan(read(NUMBER, np.array([math.nan]))[0])
    assert read(VECTOR, [[1, 2], None, np.array([0.5, 3])]) == [[1, 2], [0, 0], [0.5, 3]]
    assert read(VECTOR, np.ones((2, 2))) == [[1, 1], [1, 1]]
    assert NUMBER.column(NUMBER.read([1, None, 2], str)).missing == 1


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        (TEXT, 1.5, "1.5, but it is categorical and needs text, a whole number, or None"),
        (TEXT, ["home"], r"\['home'\], but it is categorical"),
        (TEXT, math.inf, "inf, but it is categorical"),
        (TEXT, b"home", "b'home', but it is categorical"),
        (NUMBER, "1", "'1', but it is numeric and needs a finite number that float32 can hold"),
        (NUMBER, math.inf, "inf, but it is numeric"),
        (NUMBER, 1e39, r"1e\+39, but it is numeric"),
        (NUMBER, 10**400, r"10+\.\.\., but it is numeric"),
        (NUMBER, [1.0], r"\[1\.0\], but it is numeric"),
        (VECTOR, [1.0], r"\[1\.0\], but it is vector and needs a list of 2 finite numbers"),
        (VECTOR, [1.0, math.nan], r"\[1\.0, nan\], but it is vector"),
        (VECTOR, [1.0, 1e39], r"\[1\.0, 1e\+39\], but it is vector"),
        (VECTOR, ["1", "2"], r"\['1', '2'\], but it is vector"),
        (VECTOR, [[1], [2, 3]], r"\[\[1\], \[2, 3\]\], but it is vector"),
        (VECTOR, 1.0, "1.0, but it is vector"),
    ],
)
def test_a_value_of_another_type_is_refused_with_column_and_event(column: EventColumn, value: Any, named: str):
    with pytest.raises(BatchEntryError, match=rf"^event 2: the column '{column.name}' has {named}") as error:
        column.read([None, None, value, None], lambda event: f"event {event}")
    assert error.value.index == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "number"}, "must be one of categorical, numeric"),
        ({"kind": "categories"}, "is for items and users"),
        ({"kind": "numeric", "values": [1]}, "'x' is numeric, but values is for one that is categorical"),
        ({"kind": "categorical", "mean": 2}, "mean and std is for one that is numeric"),
        ({"kind": "numeric", "width": 2}, "width is for one that is vector"),
        ({"kind": "numeric", "std": 0}, "both must be finite, and std above 0"),
        ({"kind": "numeric", "mean": math.nan}, "both must be finite"),
        ({"kind": "vector"}, "needs width, at least 1; it has width=0"),
        ({"kind": "categorical", "values": [1, 1]}, "must be distinct"),
        ({"kind": "categorical", "values": ["a", 1]}, "values of several types"),
        ({"kind": "categorical", "values": [True]}, "values of several types"),
        ({"kind": "numeric", "name": "user_id"}, "is kept anyway"),
    ],
)
def test_a_description_that_means_nothing_is_refused(arguments: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        EventColumn(**{"name": "x", **arguments})


@given(
    st.lists(st.sampled_from(["home", "search", "té", None])),
    st.lists(st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2)),
)
def test_what_was_read_is_returned_as_the_logs_values(tabs: list, numbers: list, vectors: list):
    for column, values in ((TEXT, tabs), (NUMBER, numbers), (VECTOR, vectors)):
        assert column.external(column.read(values, str)) == values


def test_a_stores_columns_are_read_as_their_values_are(tmp_path: Path):
    frame = polars.DataFrame(
        {
            "user_id": [1, 1, 1, 2, 2],
            "item_id": [1, 2, 3, 1, 2],
            "timestamp": [1, 2, 3, 4, 5],
            "tab": ["search", None, "elsewhere", "home", "search"],
            "rating": [7, 3, 5, None, 7],
            "watched": [1.0, None, 4.5, 2.0, 3.0],
            "looks": [[1.0, 2.0], None, [0.5, 0.0], [3.0, 1.0], [0.0, 4.0]],
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = Schema(events={column.name: column.kind for column in EVERY})
    store = prepare(Table(str(tmp_path / "log.parquet")), Filters(), tmp_path / "store", schema=schema)
    for column in EVERY:
        stored = store.event_columns[column.name]
        column.check_column(stored, "the store")
        expected = column.read(frame[column.name].to_list(), str)
        np.testing.assert_array_equal(column.of_column(stored), expected)
    scales = training_scales(store.event_columns, store.offsets, lambda: np.array([2, 4]))
    own = EventColumn.of_store("watched", store.event_columns["watched"], scales)
    assert (own.mean, own.std) == (1.5, 0.5)
    tab = EventColumn.of_store("tab", store.event_columns["tab"], scales)
    assert tab.values == ["elsewhere", "home", "search"]
    tab.check_codes(store.event_columns["tab"].vocabulary, "the store")
    with pytest.raises(InputError, match="has other values of the column 'tab'"):
        TEXT.check_codes(store.event_columns["tab"].vocabulary, "the store")
