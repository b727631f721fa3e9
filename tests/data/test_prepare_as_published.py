"""The flaws of the study that seqrec replaces, which filters bring back on request."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_preparation import (
    WEIGHT,
    Event,
    Frame,
    contents,
    frame_of,
    histories,
    slow_histories,
    small,
    stored_histories,
)

from seqrec.data.inspect import describe, report_text
from seqrec.data.prepare import Filters, ensure_store, fingerprint, prepare
from seqrec.data.store import EventStore
from seqrec.errors import InputError, StoreError

# Items 3, 7 and 8; without users of one event, 3 and 8.
LOG = Frame(user_id=[1, 1, 2, 1, 2, 3], item_id=[8, 3, 3, 8, 8, 7], timestamp=[1, 2, 3, 4, 5, 6])
NUMBERS = st.integers(1, 3)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    events=st.lists(st.tuples(NUMBERS, st.integers(1, 9), NUMBERS), min_size=1, max_size=30),
    thresholds=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    duplicates=st.sampled_from(["keep", "drop"]),
    oldest=st.sampled_from([None, 1, 2, 5]),
    raw_ids=st.booleans(),
)
def test_stores_are_those_of_the_slow_way(tmp_path_factory, events, thresholds, duplicates, oldest, raw_ids):
    log = [Event(*event, weight=float(place)) for place, event in enumerate(events)]
    users, items, history = thresholds
    filters = Filters(users, items, None, history, (), duplicates, oldest, raw_ids)
    expected = slow_histories(log, filters)
    folder = tmp_path_factory.mktemp("property")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("reading.CHUNK_EVENTS", "partitions.PARTITION_EVENTS", "numbering._BLOCK"):
            patch.setattr(f"seqrec.data.prepare.{name}", 4)
        if not expected:
            with pytest.raises(InputError, match=r"no event of \d+ is left after the filters min_user"):
                prepare(frame_of(log), filters, folder / "tiny", schema=WEIGHT)
            return
        store = prepare(frame_of(log), filters, folder / "tiny", schema=WEIGHT)
    assert stored_histories(store) == expected
    used = sorted({event.item for history in expected.values() for event in history})
    catalogue = list(range(1, max(event.item for event in log) + 1)) if raw_ids else used
    assert store.item_vocabulary.external_ids(range(1, store.num_items + 1)).tolist() == catalogue
    assert store.manifest["counts"].get("items_that_occur") == (len(used) if raw_ids else None)
    prepare(frame_of(log), filters, folder / "whole", schema=WEIGHT).verify()
    assert contents(folder / "tiny") == contents(folder / "whole")


class TestRawIds:
    @pytest.fixture
    def store(self, tmp_path: Path) -> EventStore:
        return prepare(LOG, Filters(min_user_events=2, as_published_raw_ids=True), tmp_path / "store")

    def test_make_a_catalogue_of_every_integer_up_to_the_largest_id_of_the_log(self, store: EventStore):
        assert (store.num_items, store.num_users) == (8, 2)
        assert store.item_ids.tolist() == [8, 3, 8, 3, 8]
        assert store.item_vocabulary.external_ids([1, 7, 8]).tolist() == [1, 7, 8]
        assert store.item_vocabulary.lookup([3, 9]).tolist() == [3, 0]

    def test_of_which_most_never_occur_are_told(self, store: EventStore):
        assert "\nas published: 6 of 8 items (75%) never occur\n" in store.summary()
        report = report_text(describe(store))
        assert re.search(r"items that occur +2\n", report)
        assert "as_published_raw_ids: true" in report
        compact = prepare(LOG, Filters(), store.directory.with_name("compact"))
        assert "as published" not in compact.summary() + report_text(describe(compact))

    def test_are_not_those_of_items_that_the_event_filter_leaves_out(self, tmp_path: Path):
        filters = Filters(event_filter="item_id < 8", as_published_raw_ids=True)
        assert prepare(LOG, filters, tmp_path / "store").num_items == 7

    @pytest.mark.parametrize(
        ("item_ids", "found"), [(["a", "b"], "text"), ([0, 5], "integers from 0 on"), ([-3, 5], "from -3 on")]
    )
    def test_must_be_integers_from_1_on(self, item_ids: list, found: str, tmp_path: Path):
        source = Frame(user_id=[1, 1], item_id=item_ids)
        message = f"as_published_raw_ids=True needs item ids that are integers from 1 on, .* {found}; leave it out"
        with pytest.raises(InputError, match=message):
            prepare(source, Filters(as_published_raw_ids=True), tmp_path / "store")

    def test_must_fit_the_memory(self, tmp_path: Path):
        source = Frame(user_id=[1, 1], item_id=[5, 10**12])
        message = r"too little: the items 1\.\.1,000,000,000,000 of filters\.as_published_raw_ids take 11175\.9 GiB"
        with pytest.raises(InputError, match=message):
            prepare(source, Filters(as_published_raw_ids=True), tmp_path / "store", memory_limit="4GiB")


class TestOldestEvents:
    def test_are_kept_by_time_and_newer_ones_dropped_before_the_core(self, tmp_path: Path):
        lines: list[str] = []
        filters = Filters(min_item_events=2, as_published_oldest_events=2)
        store = prepare(LOG, filters, tmp_path / "store", progress=lines.append)
        assert histories(store) == {1: [8, 3], 2: [3, 8]}
        assert np.asarray(store.timestamps).tolist() == [1, 2, 3, 5]
        assert store.num_items == 2
        assert "as published: 1 events newer than a user's oldest 2 dropped" in lines

    def test_are_counted_after_duplicates(self, tmp_path: Path):
        lines: list[str] = []
        source = Frame(user_id=[1] * 4, item_id=[7, 7, 5, 6], timestamp=[1, 1, 2, 3])
        filters = Filters(duplicates="drop", as_published_oldest_events=2)
        assert histories(prepare(source, filters, tmp_path / "store", progress=lines.append)) == {1: [7, 5]}
        assert "as published: 1 events newer than a user's oldest 2 dropped" in lines

    def test_must_be_one_at_least(self):
        message = r"filters\.as_published_oldest_events=0 must be at least 1; leave it out \(null\)"
        with pytest.raises(InputError, match=message):
            Filters(as_published_oldest_events=0)


class TestStoresFromBefore:
    def test_open_without_complaint_since_their_manifest_is_that_of_now(self, tmp_path: Path):
        store = prepare(small(), Filters(), tmp_path / "store")
        before = [
            "min_user_events",
            "min_item_events",
            "event_filter",
            "min_history",
            "event_features",
            "duplicates",
        ]
        assert list(store.manifest["filters"]) == before
        assert ensure_store(small(), Filters(), tmp_path / "store").num_events == 5

    @pytest.mark.parametrize(
        ("filters", "message"),
        [
            (Filters(as_published_raw_ids=True), r"as_published_raw_ids=False, now it is True"),
            (Filters(as_published_oldest_events=3), r"as_published_oldest_events=None, now it is 3"),
        ],
    )
    def test_are_not_taken_for_those_of_flaws_nor_the_other_way_round(
        self, filters: Filters, message: str, tmp_path: Path
    ):
        prepare(LOG, Filters(), tmp_path / "store")
        with pytest.raises(StoreError, match=rf"was prepared with filters\.{message}; choose another"):
            ensure_store(LOG, filters, tmp_path / "store")
        prepare(LOG, filters, tmp_path / "flaw")
        ensure_store(LOG, filters, tmp_path / "flaw")
        with pytest.raises(StoreError, match=r"was prepared with filters\.as_published_"):
            ensure_store(LOG, Filters(), tmp_path / "flaw")
        assert fingerprint(LOG, filters) != fingerprint(LOG, Filters())
