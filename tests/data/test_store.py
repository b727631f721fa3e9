from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from written_stores import write_store

from seqrec.data.manifest import DIGEST
from seqrec.data.store import EventStore
from seqrec.errors import MissingInputError, StoreError

ITEM_IDS = np.array([1, 3, 2, 2, 1])
OFFSETS = np.array([0, 3, 5])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_store(tmp_path, ITEM_IDS, OFFSETS, np.arange(5), np.array([10, 20]), ["a", "b", "c"], {})
    return tmp_path


def edit_manifest(directory: Path, **changes: object) -> None:
    """Write the manifest again, as a version would that writes other things or nothing (None) into it."""
    content = json.loads((directory / "manifest.json").read_text()) | changes | {DIGEST: None}
    kept = {name: value for name, value in content.items() if value is not None}
    (directory / "manifest.json").write_text(json.dumps(kept))


def test_store_opens_as_it_was_written(directory: Path):
    store = EventStore.open(str(directory))
    assert (store.num_users, store.num_items, store.num_events) == (2, 3, 5)
    assert store.item_ids.tolist() == ITEM_IDS.tolist()
    assert store.item_ids.dtype == np.uint8
    assert store.offsets.tolist() == OFFSETS.tolist()
    assert store.timestamps is not None
    assert store.timestamps.tolist() == list(range(5))
    assert store.item_vocabulary.external_ids(store.item_ids[:3]) == ["a", "c", "b"]
    assert store.user_vocabulary.lookup([20, 10]).tolist() == [2, 1]
    store.verify()


def test_arrays_are_mapped_and_cannot_be_written(directory: Path):
    store = EventStore.open(directory)
    assert isinstance(store.item_ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.item_ids[0] = 2


def test_a_file_that_is_cut_while_it_is_in_use_is_named(directory: Path):
    store = EventStore.open(directory)
    file = directory / "item_ids.npy"
    whole = file.read_bytes()
    with file.open("r+b") as stream:
        stream.truncate(3)
    with pytest.raises(StoreError, match=rf"{file} was cut to 3 of {len(whole)} bytes .* prepare it again"):
        store.check_in_use()


def test_a_file_that_is_replaced_or_deleted_while_it_is_in_use_is_still_there(directory: Path):
    store = EventStore.open(directory)
    (directory / "new").write_bytes(b"")
    (directory / "new").replace(directory / "item_ids.npy")
    (directory / "offsets.npy").unlink()
    store.check_in_use()
    assert store.item_ids.tolist() == ITEM_IDS.tolist()
    assert store.offsets.tolist() == OFFSETS.tolist()


def test_a_log_without_times_has_none(tmp_path: Path):
    write_store(tmp_path, ITEM_IDS, OFFSETS, None, np.array([10, 20]), np.arange(3), {})
    assert EventStore.open(tmp_path).timestamps is None


def test_item_ids_take_the_smallest_type_that_holds_the_catalogue(tmp_path: Path):
    for num_items, dtype in ((255, np.uint8), (256, np.uint16), (65_536, np.uint32)):
        folder = tmp_path / str(num_items)
        folder.mkdir()
        item_ids = np.array([1, num_items])
        write_store(folder, item_ids, np.array([0, 2]), None, np.array([1]), np.arange(num_items), {})
        opened = EventStore.open(folder)
        assert opened.item_ids.dtype == dtype
        assert opened.item_ids.tolist() == [1, num_items]


def test_pickling_keeps_only_the_place(directory: Path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(directory.parent)
    pickled = pickle.dumps(EventStore.open(directory.name))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert len(pickled) < 500
    assert pickle.loads(pickled).item_ids.tolist() == ITEM_IDS.tolist()


def test_opening_needs_no_polars(directory: Path):
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "from seqrec.data.store import EventStore\n"
        f"print(EventStore.open({str(directory)!r}).num_events)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


def test_summary_says_counts_and_place(directory: Path):
    summary = EventStore.open(directory).summary()
    assert "5 events of 2 users on 3 items" in summary
    assert "mean 2, median 2, p95 3, max 3" in summary
    assert str(directory) in summary


@pytest.mark.parametrize("kind", [StoreError, MissingInputError, FileNotFoundError])
def test_a_folder_without_a_store_is_refused(tmp_path: Path, kind):
    with pytest.raises(kind, match=r"no event store at .*nowhere .*run seqrec prepare"):
        EventStore.open(tmp_path / "nowhere")


def test_another_version_is_refused(directory: Path):
    edit_manifest(directory, version=99)
    with pytest.raises(StoreError, match=r"version 99, expected 3; prepare it again"):
        EventStore.open(directory)


def test_another_format_is_refused(directory: Path):
    edit_manifest(directory, format="parquet")
    with pytest.raises(StoreError, match="format is 'parquet', expected 'seqrec-event-store'"):
        EventStore.open(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_manifest_is_refused(directory: Path, text: str):
    (directory / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json is not the manifest of an event store"):
        EventStore.open(directory)


def test_a_manifest_without_counts_is_refused(directory: Path):
    edit_manifest(directory, counts=None)
    with pytest.raises(StoreError, match="lacks counts"):
        EventStore.open(directory)


def test_a_truncated_file_is_named_with_its_sizes(directory: Path):
    path = directory / "item_ids.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(StoreError, match=r"item_ids\.npy has 131 bytes, expected 133; prepare it again"):
        EventStore.open(directory)


def test_a_missing_file_is_named(directory: Path):
    (directory / "offsets.npy").unlink()
    with pytest.raises(StoreError, match=r"offsets\.npy is missing from the event store"):
        EventStore.open(directory)


def test_a_file_with_a_broken_header_is_refused(directory: Path):
    path = directory / "offsets.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match=r"offsets\.npy is damaged.* prepare it again"):
        EventStore.open(directory)


def flip(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def content_of(store: EventStore) -> list[object]:
    """All that a reader of a store can see."""
    arrays = (store.item_ids, store.offsets, store.timestamps)
    ids = (store.item_vocabulary.external_ids([1, 2, 3]), store.user_vocabulary.external_ids([1, 2]).tolist())
    named = {name: store.manifest[name] for name in ("counts", "files")}
    return [*(None if array is None else (array.dtype.str, array.tolist()) for array in arrays), *ids, named]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("count", [40, pytest.param(250, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_found_or_harmless(directory: Path, monkeypatch, large: bool, count: int):
    if large:
        monkeypatch.setattr("seqrec.data.store.SMALL_STORE_BYTES", 0)
    before = content_of(EventStore.open(directory))
    rng = random.Random(0)
    found = 0
    for file in sorted(directory.iterdir()):
        whole = file.read_bytes()
        for place in rng.choices(range(len(whole)), k=count):
            flip(file, place, rng.randrange(8))
            try:
                store = EventStore.open(directory)
                store.finish_check()
            except StoreError:
                found += 1
            else:
                assert content_of(store) == before, (file.name, place)
            file.write_bytes(whole)
    assert found > 0.9 * count * len(list(directory.iterdir()))


def test_a_damaged_event_of_a_large_store_is_raised_while_it_is_used(directory: Path, monkeypatch):
    monkeypatch.setattr("seqrec.data.store.SMALL_STORE_BYTES", 0)
    flip(directory / "item_ids.npy", -1)
    store = EventStore.open(directory)
    message = r"item_ids\.npy is damaged: its SHA-256 differs; prepare it again"
    with pytest.raises(StoreError, match=message):
        store.finish_check()
    with pytest.raises(StoreError, match=message):
        store.check_in_use()


def test_ids_of_a_large_store_are_checked_before_they_are_used(directory: Path, monkeypatch):
    monkeypatch.setattr("seqrec.data.store.SMALL_STORE_BYTES", 0)
    for name in ("item_vocabulary", "user_vocabulary", "offsets"):
        file = next(directory.glob(f"{name}*"))
        whole = file.read_bytes()
        flip(file, -1)
        with pytest.raises(StoreError, match=rf"{name}.* is damaged"):
            EventStore.open(directory)
        file.write_bytes(whole)


def test_the_processes_of_a_loader_do_not_hash_the_store_again(directory: Path, monkeypatch):
    pickled = pickle.dumps(EventStore.open(directory))
    monkeypatch.setattr("seqrec.data.store.changed", lambda digests: pytest.fail("hashed"))
    assert pickle.loads(pickled).num_events == 5


def test_a_store_of_an_earlier_version_has_a_manifest_without_digest(directory: Path):
    edit_manifest(directory)
    assert DIGEST not in (directory / "manifest.json").read_text()
    assert EventStore.open(directory).num_events == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": {"users": "2", "items": 3, "events": 5}},
        {"counts": [1]},
        {"files": {}},
        {"files": {"item_ids.npy": {}, "offsets.npy": {}}},
        {"columns": {"events": {"price": {"kind": "numeric"}}}},
        {"columns": {"events": {"price": {"kind": "text"}}}},
        {"columns": {"shops": {}}},
        {"columns": 3},
        {"segments": 3},
    ],
)
def test_a_manifest_of_another_shape_is_refused(directory: Path, changes: dict[str, object]):
    edit_manifest(directory, **changes)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged: it does not describe the files"):
        EventStore.open(directory)


def test_a_store_that_may_not_be_read_is_not_called_damaged(directory: Path, monkeypatch):
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read: Permission denied$"):
        EventStore.open(directory)


def test_verify_names_a_file_with_other_bytes(directory: Path):
    store = EventStore.open(directory)
    flip(directory / "item_ids.npy", -1)
    with pytest.raises(StoreError, match=r"item_ids\.npy is damaged: its SHA-256 differs"):
        store.verify()
