"""The items of a source's table are in the catalogue even if no event of theirs is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import EventStore, Filters, InputError, Schema, Table, prepare

EVENTS, LISTED = [5, 3, 9, 3, 5, 7], [1, 3, 4, 5, 7, 9, 12]


def prepared(folder: Path, name: Any, keys: list[Any], **filters: Any) -> EventStore:
    users, times = [1, 1, 1, 2, 2, 2], list(range(6))
    events = pl.DataFrame({"user_id": users, "item_id": [name(item) for item in EVENTS], "timestamp": times})
    events.write_parquet(folder / "log.parquet")
    pl.DataFrame({"item_id": keys, "year": list(range(len(keys)))}).write_parquet(folder / "items.parquet")
    source = Table(str(folder / "log.parquet"), items={"path": str(folder / "items.parquet"), "key": "item_id"})
    chosen = Filters(items_without_events=True, **filters)
    return prepare(source, chosen, folder / "store", schema=Schema(items={"year": "numeric"}))


@pytest.mark.parametrize("name", [int, "item {:02d}".format], ids=["integers", "text"])
@pytest.mark.parametrize("least", [1, 2])
def test_they_are_numbered_with_the_others(name: Any, least: int, tmp_path: Path):
    store = prepared(tmp_path, name, [name(item) for item in reversed(LISTED)], min_item_events=least)
    names = [name(item) for item in LISTED]
    assert list(store.item_vocabulary.external_ids(np.arange(1, store.num_items + 1))) == names
    kept = [item for item in EVENTS if EVENTS.count(item) >= least]
    assert list(store.item_vocabulary.external_ids(store.item_ids)) == [name(item) for item in kept]
    assert store.item_columns["year"].values[1:].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert store.manifest["counts"]["items_that_occur"] == len(set(kept))
    absent = len(LISTED) - len(set(kept))
    assert f"\n{absent} of 7 items ({absent / 7:.0%}) never occur\n" in store.summary()
    store.verify()


def test_items_that_are_not_listed_stay_if_they_occur(tmp_path: Path):
    store = prepared(tmp_path, int, [1, 9])
    assert store.item_vocabulary.external_ids(np.arange(1, 6)).tolist() == [1, 3, 5, 7, 9]


def test_a_table_whose_ids_cannot_be_those_of_the_log_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"item_id is not always a whole number as the log's item ids are"):
        prepared(tmp_path, int, ["1", "three"])


def test_a_table_is_needed_and_no_other_choice_of_the_catalogue(tmp_path: Path):
    pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}).write_parquet(tmp_path / "log.parquet")
    source = Table(str(tmp_path / "log.parquet"))
    with pytest.raises(InputError, match=r"items_without_events needs the source's table of items: name columns in"):
        prepare(source, Filters(items_without_events=True), tmp_path / "store")
    with pytest.raises(InputError, match=r"items_without_events and as_published_raw_ids both choose the catalogue"):
        Filters(items_without_events=True, as_published_raw_ids=True)
