from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrec.data.splits import STAGES, LeaveOneOut
from seqrec.data.store import EventStore, write_store
from seqrec.errors import InputError


def store_of(directory: Path, counts: list[int], external_ids: list[str]) -> EventStore:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    item_ids = np.ones(offsets[-1], dtype=np.int64)
    write_store(directory, item_ids, offsets, None, external_ids, np.arange(1), {})
    return EventStore.open(directory)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("train", [1, 4, 13]), ("validate", [1, 4, 13]), ("test", [2, 5, 14]), ("predict", [3, 6, 15])],
)
def test_leave_one_out_ends_each_stages_history_before_its_target(
    tmp_path: Path, stage: str, expected: list[int]
):
    stops = LeaveOneOut().history_stops(store_of(tmp_path, [3, 3, 9], ["a", "b", "c"]), stage)
    assert stops.tolist() == expected
    assert stops.dtype == np.int64


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_user_with_too_few_events_is_named_with_store_and_remedy(tmp_path: Path, stage: str, count: int):
    store = store_of(tmp_path, [3, 4, count, 1], ["ann", "bob", "cleo", "dan"])
    with pytest.raises(
        InputError,
        match=rf"{tmp_path}: 2 user\(s\) have fewer than 3 events, the first is user 'cleo' with {count}; "
        r".* set --data\.filters\.min_user_events 3",
    ):
        LeaveOneOut().history_stops(store, stage)
