from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.vocabulary import Vocabulary

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


def integers(*values: int) -> Vocabulary:
    return Vocabulary(np.array(values, np.int64))


@given(ids=st.sets(INT64, min_size=1), others=st.lists(INT64))
def test_integer_ids_round_trip_and_others_are_unknown(ids, others):
    external = sorted(ids)
    vocabulary = integers(*external)
    internal = np.arange(1, len(external) + 1)
    assert vocabulary.external_ids(internal).tolist() == external
    assert vocabulary.lookup(external).tolist() == internal.tolist()
    expected = [external.index(other) + 1 if other in ids else 0 for other in others]
    assert vocabulary.lookup(np.array(others, np.int64)).tolist() == expected


@given(ids=st.sets(TEXT, min_size=1), others=st.lists(TEXT))
def test_text_ids_round_trip_and_others_are_unknown(ids, others):
    external = sorted(ids)
    vocabulary = Vocabulary(external)
    internal = np.arange(1, len(external) + 1)
    assert vocabulary.external_ids(internal) == external
    assert vocabulary.lookup(external).tolist() == internal.tolist()
    expected = [external.index(other) + 1 if other in ids else 0 for other in others]
    assert vocabulary.lookup(others).tolist() == expected


@pytest.mark.parametrize("ids", [np.array([-4, 0, 9]), ["B00", "a", "é", "日本"]])
def test_saved_vocabulary_opens_equal(tmp_path: Path, ids):
    vocabulary = Vocabulary(ids)
    for name, array in vocabulary.arrays("items").items():
        np.save(tmp_path / f"{name}.npy", array)
    opened = Vocabulary.open(tmp_path, "items")
    assert (len(opened), opened.is_integer) == (len(vocabulary), vocabulary.is_integer)
    assert list(opened.external_ids([3, 1])) == [ids[2], ids[0]]
    assert opened.lookup([*ids, "none"]).tolist() == [*range(1, len(ids) + 1), 0]


def test_an_integer_and_its_decimal_text_are_one_id():
    assert integers(7, 12).lookup(["12", "007", "7", "x", str(2**70)]).tolist() == [2, 0, 1, 0, 0]
    assert integers(7, 12).lookup(np.array([12, 2**64 - 1], np.uint64)).tolist() == [2, 0]
    assert Vocabulary(["12", "x"]).lookup([12, 13]).tolist() == [1, 0]


def test_padding_and_ids_beyond_the_last_stand_for_nothing():
    with pytest.raises(ValueError, match=r"internal id 0 must lie in 1\.\.2 \(0 is padding\)"):
        integers(5, 6).external_ids([1, 0])
    with pytest.raises(ValueError, match=r"internal id 3 must lie in 1\.\.2"):
        integers(5, 6).external_ids([3])


@pytest.mark.parametrize("bad", [1.0, None, True])
def test_lookup_refuses_what_is_neither_integer_nor_text(bad):
    with pytest.raises(TypeError, match="must be an integer or a string"):
        integers(1, 2).lookup([1, bad])


@pytest.mark.parametrize("ids", [np.array([2, 1]), np.array([1, 1]), ["b", "a"], ["a", "a"]])
def test_ids_must_ascend(ids):
    with pytest.raises(ValueError, match="distinct and in ascending order"):
        Vocabulary(ids)


STRINGS = ["", "10", "7", "a", "ab", "b", "\u00e9", "\U0001f600"]


@settings(deadline=None)
@given(
    st.sets(st.sampled_from(STRINGS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), min_size=1),
    st.sets(st.sampled_from(STRINGS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), min_size=1),
)
def test_a_translation_is_a_lookup_of_every_id_of_the_other(mine: set[str], others: set[str]):
    mine_sorted, others_sorted = (sorted(ids, key=str.encode) for ids in (mine, others))
    expected = [0] + [mine_sorted.index(text) + 1 if text in mine else 0 for text in others_sorted]
    found = Vocabulary(mine_sorted).translation(Vocabulary(others_sorted))
    assert found.tolist() == expected
    unordered = others_sorted[::-1] + others_sorted
    assert Vocabulary(mine_sorted).lookup(unordered).tolist() == expected[:0:-1] + expected[1:]


def test_integers_and_their_decimals_are_translated():
    numbers, texts = Vocabulary(np.array([7, 10, 20])), Vocabulary(["007", "10", "7", "x"])
    assert numbers.translation(texts).tolist() == [0, 0, 2, 1, 0]
    assert texts.translation(numbers).tolist() == [0, 3, 2, 0]


def test_ids_come_back_as_a_column():
    ids = np.array([3, 1, 1, 2])
    numbers, texts = Vocabulary(np.array([7, 10, 20])), Vocabulary(["a", "b", "c"])
    assert numbers.external_series(ids).to_list() == [20, 7, 7, 10]
    assert texts.external_series(ids).to_list() == ["c", "a", "a", "b"]
    empty = np.zeros(0, np.int64)
    assert (numbers.external_series(empty).dtype, texts.external_series(empty).dtype) == (pl.Int64, pl.String)
