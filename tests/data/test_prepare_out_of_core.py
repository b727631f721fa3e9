"""Every branch that large logs take, on small ones cut into tiny pieces, against the slow way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_preparation import (
    WEIGHT,
    Event,
    Frame,
    contents,
    frame_of,
    slow_duplicates,
    slow_histories,
    stored_histories,
)

from seqrec.data.prepare import prepare
from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.memory import MemoryLimit
from seqrec.data.prepare.numbering import IntegerTable, SortedIntegers, SortedTexts, number_ids
from seqrec.data.prepare.partitions import Partitions
from seqrec.data.prepare.spool import IntegerColumn, TextColumn
from seqrec.errors import InputError

TINY = {
    "reading.CHUNK_EVENTS": 3,
    "partitions.PARTITION_EVENTS": 4,
    "partitions.PARTITION_USERS": 2,
    "numbering._PENDING": 1,
    "numbering._BLOCK": 2,
}
LOWEST, HIGHEST = -(2**63), 2**63 - 1
# Ids that a table holds, ids whose range is wide, and text whose order by length, letters and bytes differs.
IDS = {
    "small": st.integers(-3, 3),
    "wide": st.sampled_from([LOWEST, -(10**12), -1, 0, 10**9, HIGHEST]),
    "text": st.sampled_from(["b", "a", "ab", "ü", "日本", "Z" * 20, "10", "9"]),
}
TIMES = {
    "none": st.none(),
    "tied": st.integers(0, 2),
    "extreme": st.sampled_from([LOWEST, -1, 0, HIGHEST]),
}


# Mostly low, or next to nothing would be left of a small log.
THRESHOLDS = st.sampled_from([1, 1, 1, 2, 2, 3, 4])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)


def make_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TINY.items():
        monkeypatch.setattr(f"seqrec.data.prepare.{name}", value)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    users, items = (IDS[draw(st.sampled_from(sorted(IDS)))] for _ in range(2))
    times = TIMES[draw(st.sampled_from(sorted(TIMES)))]
    events = draw(st.lists(st.tuples(users, items, times), min_size=1, max_size=40))
    return [Event(*event, weight=float(place)) for place, event in enumerate(events)]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    events=logs(),
    thresholds=st.tuples(THRESHOLDS, THRESHOLDS, THRESHOLDS),
    duplicates=st.sampled_from(["keep", "drop"]),
)
def test_stores_are_those_of_the_slow_way_in_pieces_and_at_once(tmp_path_factory, events, thresholds, duplicates):
    if events[0].time is None:
        duplicates = "keep"
    users, items, history = thresholds
    filters = Filters(users, items, None, history, (), duplicates)
    folder = tmp_path_factory.mktemp("property")
    expected = slow_histories(events, filters)
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_tiny(monkeypatch)
        if not expected:
            with pytest.raises(InputError, match=r"no event of \d+ is left after the filters min_user"):
                prepare(frame_of(events), filters, folder / "tiny", schema=WEIGHT)
            assert not (folder / "tiny").exists()
            return
        store = prepare(frame_of(events), filters, folder / "tiny", schema=WEIGHT)
    assert stored_histories(store) == expected
    used = {event.item for history in expected.values() for event in history}
    assert list(store.item_vocabulary.external_ids(range(1, store.num_items + 1))) == sorted(used)
    assert store.manifest["counts"] == {
        "users": len(expected),
        "items": len(used),
        "events": sum(map(len, expected.values())),
        "rows_read": len(events),
        "events_after_filter": len(events),
        "duplicates": None if events[0].time is None else slow_duplicates(events),
    }
    prepare(frame_of(events), filters, folder / "whole", schema=WEIGHT).verify()
    assert contents(folder / "tiny") == contents(folder / "whole")


@pytest.mark.usefixtures("tiny")
def test_a_small_log_takes_many_chunks_and_partitions(tmp_path: Path, monkeypatch):
    # What the property above rests on.
    seen = []

    class Watched(Partitions):
        def fill(self, spool, *rest):
            users = [self.users(place) for place in range(len(self))]
            seen.append((spool.lengths, users, np.diff(self._events).tolist()))
            super().fill(spool, *rest)

    monkeypatch.setattr("seqrec.data.prepare.partitions.Partitions", Watched)
    users = [0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 6]
    prepare(Frame(user_id=users, item_id=users), Filters(), tmp_path / "store")
    # At most 3 events a chunk, 4 events and 2 users a partition; user 3, with 6 events, is larger than that.
    assert seen == [([3, 3, 3, 3, 2], [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)], [4, 1, 6, 2, 1])]


@pytest.mark.usefixtures("tiny")
def test_the_core_of_a_log_that_shrinks_much_is_that_of_the_slow_way(tmp_path: Path):
    # A chain falls apart link by link, pass after pass, and leaves a square behind.
    chain = [Event(k, k + d, None, 0.0) for k in range(30) for d in (0, 1)]
    square = [Event(100 + a, 100 + b, None, 0.0) for a in range(2) for b in range(2)]
    lines: list[str] = []
    filters = Filters(2, 2)
    store = prepare(frame_of(chain + square), filters, tmp_path / "store", schema=WEIGHT, progress=lines.append)
    assert stored_histories(store) == slow_histories(chain + square, filters)
    passes = [line for line in lines if line.startswith("k-core, pass") and not line.endswith("...")]
    rows = [int(line.split(": ")[1].split()[0]) for line in passes]
    # Copies are made when half is gone, so that late passes read little.
    assert len(rows) > 10
    assert rows[0] == 64
    assert rows[-1] < 16


NUMBERINGS = {
    SortedTexts: (TextColumn, [["b", "a"], ["b", "c", "a"], ["d"]]),
    IntegerTable: (IntegerColumn, [[5, -4], [5, 9, -4], [7]]),
    SortedIntegers: (IntegerColumn, [[5, LOWEST], [5, HIGHEST, LOWEST], [7]]),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", NUMBERINGS)
def test_ids_are_numbered_in_ascending_order(tmp_path: Path, kind):
    column_type, chunks = NUMBERINGS[kind]
    column = column_type(tmp_path / "column")
    for chunk in chunks:
        column.append(pl.Series(chunk) if column_type is TextColumn else np.array(chunk, np.int64))
    numbering = number_ids([column], map(column.values, range(3)), 6, MemoryLimit("4GiB"), "users")
    assert type(numbering) is kind
    ascending = sorted({external for chunk in chunks for external in chunk})
    for place, chunk in enumerate(chunks):
        assert numbering.ids(column, place).tolist() == [ascending.index(external) + 1 for external in chunk]
    assert [numbering.external_id(k + 1) for k in range(numbering.size)] == ascending
    kept = np.array([True, False, True, True])
    flat = (
        [external for block in numbering.blocks(kept) for external in block.to_list()]
        if (kind is SortedTexts)
        else [external for block in numbering.blocks(kept) for external in block.tolist()]
    )
    assert flat == [ascending[0], *ascending[2:]]


def test_integers_are_spooled_in_few_bytes_and_come_back(tmp_path: Path):
    column = IntegerColumn(tmp_path / "column")
    chunks = [[10**12, 10**12 + 255], [-5, 60_000], [LOWEST, HIGHEST, 0], [3, 3]]
    for chunk in chunks:
        column.append(np.array(chunk, np.int64))
    assert [column.read(place).tolist() for place in range(4)] == chunks
    assert (column.low, column.high) == (LOWEST, HIGHEST)
    assert column.file.stat().st_size == 2 * 1 + 2 * 2 + 3 * 8 + 2 * 1


def test_ids_that_do_not_fit_the_memory_limit_are_refused(tmp_path: Path, monkeypatch):
    held = 1 << 30

    def resident() -> int:
        return held

    monkeypatch.setattr("seqrec.data.prepare.memory.resident_bytes", resident)
    limit = MemoryLimit("1GiB")
    integers, texts = IntegerColumn(tmp_path / "integers"), TextColumn(tmp_path / "texts")
    integers.append(np.array([0, HIGHEST]))
    texts.append(pl.Series(["a", "b"]))
    for column in (integers, texts):
        with pytest.raises(InputError, match=r"too little: the distinct ids of items take \d+ bytes beside"):
            number_ids([column], [column.values(0)], 2, limit, "items")
