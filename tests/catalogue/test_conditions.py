"""Conditions on item columns: their meaning next to SQL's, and what is refused."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.catalogue.conditions import MAX_COMPARISONS, MAX_DEPTH, MAX_LENGTH, columns_of, parse
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.data.columns import Column
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, MissingInputError

GENRES = ["folk", "jazz", "pop", "r&b, it's"]
ITEMS = polars.DataFrame(
    {
        "item_id": [10, 20, 30, 40, 50, 60],
        "year": [1959, 1990, 1991, None, 2001, 1990],
        "price": [9.99, 0.1, None, 5.0, -2.5, 1e9],
        "artist": ["Ella", "Björk", None, "ABBA", "Ella", "'quoted'"],
        "genres": [["jazz"], ["jazz", "pop"], [], ["r&b, it's"], None, ["folk", "pop"]],
        "sold": [True, False, True, None, True, False],
        "my column": [1, 2, 3, 4, 5, 6],
    }
)
VOCABULARY = Vocabulary(ITEMS["item_id"].to_numpy())


@pytest.fixture(scope="module")
def columns() -> ItemColumns:
    return ItemColumns.read(ITEMS, VOCABULARY)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("year > 1990", [3, 5]),
        ("year >= 1990 and price < 1", [2, 5]),
        ("not year > 1990", [1, 2, 6]),  # neither holds of a missing year
        ("year != 1990", [1, 3, 5]),
        ("year <> 1990", [1, 3, 5]),
        ("year is null or year < 1960", [1, 4]),
        ("year is not null and not artist is null", [1, 2, 5, 6]),
        ("price = 9.99", [1]),
        ("price in (9.99, 0.1, 7)", [1, 2]),
        ("price <= -2.5", [5]),
        ("price = 1e9", [6]),
        ("artist = 'Björk'", [2]),
        ("artist = 'Bjo\u0308rk'", [2]),  # the same letters, written as two
        ("artist = '''quoted'''", [6]),
        ("artist in ('Ella', 'ABBA')", [1, 4, 5]),
        ("artist not in ('Ella', 'ABBA')", [2, 6]),
        ("artist >= 'B' and artist < 'E'", [2]),
        ("artist > 'Ella'", []),
        ("genres has 'jazz'", [1, 2]),
        ("genres = 'pop'", [2, 6]),
        ("genres != 'pop'", [1, 4]),  # items without genres are missing
        ("genres in ('folk', 'r&b, it''s')", [4, 6]),
        ("genres >= 'pop'", [2, 4, 6]),
        ("genres is null", [3, 5]),
        ("sold = true", [1, 3, 5]),
        ("sold = FALSE OR year IS NULL", [2, 4, 6]),
        ('"my column" > 4', [5, 6]),
        ("year > 1990 or year < 1960 and artist = 'ABBA'", [3, 5]),  # and before or
        ("(year > 1990 or year < 1960) and artist = 'Ella'", [1, 5]),
        ("not (year > 1990 or artist = 'Ella')", [2, 6]),
        ("not not year=1990", [2, 6]),
    ],
)
def test_a_condition_finds_items(columns: ItemColumns, condition: str, expected: list[int]):
    if not expected:
        with pytest.raises(InputError, match="leaves none of the 6 items"):
            columns.items_where(condition)
    else:
        assert columns.items_where(condition).tolist() == expected


def random_condition(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if depth < 4 and kind < 0.45:
        word = rng.choice(["and", "or"])
        return f"({random_condition(rng, depth + 1)}) {word} ({random_condition(rng, depth + 1)})"
    if depth < 4 and kind < 0.6:
        return f"not ({random_condition(rng, depth + 1)})"
    name, values = rng.choice([("a", ["-1", "0", "1.5", "2"]), ("b", ["'x'", "'y'", "'yy'", "'z'"])])
    form = rng.random()
    if form < 0.2:
        return f"{name} is {rng.choice(['', 'not '])}null"
    if form < 0.4:
        return f"{name} {rng.choice(['', 'not '])}in ({', '.join(rng.sample(values, 2))})"
    return f"{name} {rng.choice(['=', '!=', '<>', '<', '<=', '>', '>='])} {rng.choice(values)}"


@settings(deadline=None, max_examples=150, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_condition_means_what_it_means_in_sql(seed: int):
    rng = random.Random(seed)
    rows = rng.randint(1, 30)
    frame = polars.DataFrame(
        {
            "item_id": range(1, rows + 1),
            "a": [rng.choice([None, -1.0, 0.0, 1.5, 2.0]) for _ in range(rows)],
            "b": [rng.choice([None, "x", "y", "yy", "z"]) for _ in range(rows)],
        },
        schema={"item_id": polars.Int64, "a": polars.Float64, "b": polars.String},
    )
    condition = random_condition(rng)
    expected = frame.filter(polars.sql_expr(condition))["item_id"].to_list()
    columns = ItemColumns.read(frame, Vocabulary(frame["item_id"].to_numpy()))
    if expected:
        assert columns.items_where(condition).tolist() == expected
    else:
        with pytest.raises(InputError, match="leaves none"):
            columns.items_where(condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "at character 1 it ends, where it needs a column"),
        ("   ", "it ends, where it needs a column"),
        ("year", "at character 5 it ends, where it needs a comparison: =, !="),
        ("year >", "at character 7 it ends, where it needs a value"),
        ("year > 1990 and", "at character 16 it ends, where it needs a column"),
        ("year > 1990)", r"at character 12 it has \), where it needs 'and', 'or' or the end"),
        ("(year > 1990", r"at character 13 it ends, where it needs '\)'"),
        ("year == 1990", "at character 7 it has =, where it needs a value"),
        ("year > ninety", "where it needs a value, such as 'ninety' in quotes"),
        ('artist = "Ella"', "where it needs a value, such as 'Ella' in quotes"),
        ("artist = 'Ella", 'at character 10 it has "\'Ella", which no condition has'),
        ("year in ()", r"it has \), where it needs a value"),
        ("year not 5", "it has 5, where it needs 'in'"),
        ("year is 5", "it has 5, where it needs 'null'"),
        ("year > 1990; drop table items", "at character 12 it has '; drop table items', which no condition has"),
        ("__import__('os').system('ls')", r"at character 11 it has \(, where it needs a comparison"),
        ("year > 1990 --", "it has '--', which no condition has"),
        ("year > (select 1)", r"it has \(, where it needs a value"),
        ("year > 1990 union", "it has union, where it needs 'and', 'or' or the end"),
        ("year = 1e999", "the number 1e999 is too large"),
        ("year = ١٩٩٠", "it has '١٩٩٠', which no condition has"),
        ("year = 1990x", "it has '1990x', which no condition has"),
        ("artist = '\ud800'", "a surrogate"),
        ("yeer > 1990", r"it has the column 'yeer', which items do not have; columns: year, .*did you mean year\?"),
        ("artist > 5", "column 'artist' has text: write 5 in quotes"),
        ("genres has 5", "column 'genres' has text: write 5 in quotes"),
        ("year > '1990'", "column 'year' has numbers: write '1990' as a number, without quotes"),
        ("artist has 'Ella'", "column 'artist' has one value a row: write artist = .."),
        ("artist = 'Elle'", r"leaves none of the 6 items; artist is never 'Elle'; did you mean Ella\?"),
        ("genres has 'jaz'", r"leaves none of the 6 items; genres is never 'jaz'; did you mean jazz\?"),
        ("year > 5000", "leaves none of the 6 items$"),
        ("(" * 500 + "year > 1" + ")" * 500, f"more than {MAX_DEPTH} levels deep, at character {MAX_DEPTH + 2}"),
        ("not " * 400 + "year > 1", f"more than {MAX_DEPTH} levels deep"),
        ("year > 1 or " * 100 + "year > 1", f"more than {MAX_COMPARISONS} comparisons"),
        ("year > 1" + " " * MAX_LENGTH, "it has 2,008 characters, and at most 2,000 are allowed"),
        ("'" * MAX_LENGTH, "where it needs a column"),
        ("\x00", "which no condition has"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(columns: ItemColumns, condition: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        columns.items_where(condition, "where")
    assert str(caught.value).startswith("where=")
    assert "\n" not in str(caught.value)


PIECES = [*"ya'\"()=<>!,. 1e-\n", "year", " and ", " not ", " in ", "é", "\ud800", " has ", "'jazz'", "genres"]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_text_is_a_condition_or_refused(columns: ItemColumns, pieces: list[str]):
    with contextlib.suppress(InputError):
        assert len(columns.items_where("".join(pieces))) > 0


def test_the_columns_of_a_condition_are_known():
    assert columns_of(parse("b = 1 and (a < 2 or not b in (3))")) == ["b", "a"]


def store_like() -> dict[str, Column]:
    """Columns in the types of a store: float32, small codes, offsets, a vector; row 0 is no item."""
    return {
        "rating": Column("numeric", np.array([np.nan, 3.3, 4.5, np.nan], np.float32)),
        "brand": Column("categorical", np.array([0, 2, 1, 0], np.uint8), vocabulary=Vocabulary(np.array([7, 30]))),
        "tags": Column(
            "categories",
            np.array([1, 2, 2], np.uint8),
            vocabulary=Vocabulary(["new", "old"]),
            offsets=np.array([0, 0, 2, 3, 3]),
        ),
        "text": Column("vector", np.zeros((4, 2), np.float16)),
    }


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("rating = 3.3", [1]),  # as the store's float32 has it
        ("rating > 3.3", [2]),
        ("brand = 7", [2]),
        ("brand = 7.0", [2]),
        ("brand in (7, 30, 31, 1e30)", [1, 2]),
        ("brand < 30", [2]),
        ("brand > 7.5", [1]),
        ("brand != 7.5", [1, 2]),
        ("not brand = 7", [1]),
        ("tags has 'old'", [1, 2]),
        ("tags has 'new' and tags has 'old'", [1]),
        ("tags is null and rating is null", [3]),
    ],
)
def test_columns_of_a_store_are_read_as_they_are(condition: str, expected: list[int]):
    columns = ItemColumns(store_like(), Vocabulary(["a", "b", "c"]))
    assert columns.items_where(condition).tolist() == expected


def test_vectors_and_text_for_whole_numbers_are_refused():
    columns = ItemColumns(store_like(), Vocabulary(["a", "b", "c"]))
    with pytest.raises(InputError, match="column 'text' has vectors, which cannot be compared"):
        columns.items_where("text = 1")
    with pytest.raises(InputError, match="column 'brand' has whole numbers: write '7' without quotes"):
        columns.items_where("brand = '7'")


def test_a_table_may_lack_items_and_have_others():
    table = polars.DataFrame({"id": ["30", "99", "10.0"], "genres": ["jazz|pop", "rock", "pop"], "n": [1, 2, 3]})
    columns = ItemColumns.read(table, VOCABULARY, key="id")
    assert list(columns) == ["genres", "n"]
    assert columns.items_where("genres has 'pop'").tolist() == [1, 3]
    assert columns.items_where("n >= 1").tolist() == [1, 3]
    assert columns.items_where("n is null").tolist() == [2, 4, 5, 6]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": [10]}, r"items has no column 'item_id'; it has id: give key=\.\."),
        ({"item_id": [10, None]}, "items has 1 rows without item_id"),
        ({"item_id": [10, 20, 10]}, "items has two rows with item_id=10; leave one"),
        ({"item_id": ["x", "y"]}, "items has none of the 6 items of the catalogue in its item_id"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        ItemColumns.read(polars.DataFrame(table), VOCABULARY)


def test_a_column_of_another_type_is_refused_when_it_is_read():
    table = polars.DataFrame({"item_id": [10], "n": [1], "day": ["2020-01-31"]}).with_columns(
        polars.col("day").str.to_date()
    )
    columns = ItemColumns.read(table, VOCABULARY)
    assert columns.items_where("n = 1").tolist() == [1]
    with pytest.raises(InputError, match=r"column 'day' of items is Date, which cannot be compared; cast it to text"):
        columns.items_where("day = '2020-01-31'")


def test_a_table_may_be_a_file(tmp_path: Any):
    ITEMS.select("item_id", "year").write_parquet(tmp_path / "items.parquet")
    ITEMS.select("item_id", "year").write_csv(tmp_path / "items.csv")
    for name in ("items.parquet", "items.csv"):
        assert ItemColumns.read(tmp_path / name, VOCABULARY).items_where("year > 1990").tolist() == [3, 5]
    with pytest.raises(MissingInputError, match=r"items='nowhere.csv' does not exist"):
        ItemColumns.read("nowhere.csv", VOCABULARY)
    with pytest.raises(InputError, match="vocabulary is needed for a table of items"):
        ItemColumns.read(tmp_path / "items.csv")
