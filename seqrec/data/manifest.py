"""The manifest of an event store: what is in the store, with the digest of each file and one of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec.data.integrity import sealed, unsealed
from seqrec.data.schema import GROUPS, KINDS, file_names
from seqrec.errors import MissingInputError, StoreError
from seqrec.files import write_text

FORMAT = "seqrec-event-store"
VERSION = 3
# Stores of version 2 have no columns besides users, items and times. Those that have grown are of version 4.
GROWN = 4
READABLE_VERSIONS = (2, VERSION, GROWN)
MANIFEST = "manifest.json"
# Copy, in the folder of a segment, of the manifest before that segment.
BEFORE = "before.json"
# The command line adds what names the data.
PREPARE_AGAIN = "seqrec prepare --overwrite true"
REMEDY = f"prepare it again: {PREPARE_AGAIN}"
# Name of the manifest's own digest, its last entry. Stores of seqrec 0.1 have none.
DIGEST = "manifest_sha256"


class MissingStoreError(StoreError, MissingInputError):
    """A folder without an event store."""


def is_store(directory: Path) -> bool:
    """Return whether a folder has a manifest, which is written after all other files."""
    return (directory / MANIFEST).is_file()


def segments_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the segments of a store. Manifests of older versions, which do not list them, have one."""
    segments: list[dict[str, Any]] = manifest.get("segments", [{}])
    return segments


def segment_folder(number: int) -> str:
    """Return the name of the folder of a later segment, from 2."""
    return f"segment_{number:04}"


def segment_folders(segments: Sequence[object]) -> list[str]:
    """Return the folders of the later ones of some segments; the first one has its files in the store's folder."""
    return [segment_folder(number) for number in range(2, len(segments) + 1)]


def write_manifest(
    directory: Path, files: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int | None], extra: Mapping[str, Any]
) -> None:
    """Write the manifest, which makes complete files a store; it has size and SHA-256 of each of the `files`.

    A store has a list of segments, runs of events in files of their own. One that `prepare` made has a single one; see
    `seqrec.data.segments`. `extra` has the list if there are more.
    """
    segments = extra.get("segments", [{name: counts[name] for name in ("users", "events")}])
    has_grown = len(segments) > 1 or any(name.endswith(".order.npy") for name in files)
    version = GROWN if has_grown else VERSION
    content = {"format": FORMAT, "version": version, "counts": dict(counts), "segments": segments, **extra}
    content["files"] = dict(files)
    write_text(directory / MANIFEST, sealed(content, DIGEST))


def read_manifest(directory: Path, name: str = MANIFEST) -> dict[str, Any]:
    """Return the manifest of the store in `directory`, or another of its manifests, without its digest.

    Raises:
        MissingStoreError: if `directory` is not a store.
        StoreError: if the manifest cannot be read, is damaged or has another version.
    """
    path = directory / name
    try:
        manifest, whole = unsealed(path.read_bytes().decode(), DIGEST)
        found, version = manifest["format"], manifest["version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingStoreError(f"no event store at {directory} ({MANIFEST} is missing); run seqrec prepare") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is not the manifest of an event store; {REMEDY}") from error
    if found != FORMAT:
        raise StoreError(f"{path}: format is {found!r}, expected {FORMAT!r}; {REMEDY}")
    if version not in READABLE_VERSIONS:
        raise StoreError(f"{directory} is an event store of version {version}, expected {VERSION}; {REMEDY}")
    if not whole:
        raise StoreError(f"{path} is damaged: its SHA-256 differs; {REMEDY}")
    _check_shape(path, manifest)
    assert isinstance(manifest, dict)
    return manifest


def manifest_of_whole_files(directory: Path, name: str = MANIFEST) -> dict[str, Any]:
    """Return the content of a manifest, with which each of its files is there and has its size.

    Raises:
        MissingStoreError: as `read_manifest` does.
        StoreError: if a file is missing or has another size, or `read_manifest` refuses.
    """
    manifest = read_manifest(directory, name)
    for part, expected in manifest["files"].items():
        file = directory / part
        if not file.is_file():
            raise StoreError(f"{file} is missing from the event store; {REMEDY}")
        found = file.stat().st_size
        if found != expected["bytes"]:
            raise StoreError(f"{file} has {found} bytes, expected {expected['bytes']}; {REMEDY}")
    return manifest


def _check_shape(path: Path, manifest: Mapping[str, Any]) -> None:
    missing = {"counts", "files"} - manifest.keys()
    if missing:
        raise StoreError(f"{path} lacks {', '.join(sorted(missing))}; {REMEDY}")
    counts, files = manifest["counts"], manifest["files"]
    whole = (
        isinstance(counts, dict)
        and all(type(counts.get(name)) is int for name in ("users", "items", "events"))
        and isinstance(files, dict)
        and {"item_ids.npy", "offsets.npy"} <= files.keys()
        and all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values())
        and isinstance(segments := segments_of(manifest), list)
        and all(isinstance(each, dict) for each in segments)
        and all(_is_file_of(name, segments) for name in files)
        and _has_columns(manifest.get("columns", {}), files)
    )
    if not whole:
        raise StoreError(f"{path} is damaged: it does not describe the files of an event store; {REMEDY}")
    if len(segments) > 1 and manifest["version"] < GROWN:
        raise StoreError(f"{path} has {len(segments)} segments, but version {manifest['version']}; {REMEDY}")


def _is_file_of(name: str, segments: list[dict[str, Any]]) -> bool:
    """Return whether a name is of a file in the store's folder, or in that of a later segment."""
    folder, separator, _ = name.rpartition("/")
    return "\\" not in name and (not separator or folder in segment_folders(segments))


def _has_columns(columns: Any, files: Mapping[str, Any]) -> bool:
    """Return whether each column of a manifest has a known kind and its files."""
    if not isinstance(columns, dict) or not all(isinstance(group, dict) for group in columns.values()):
        return False
    described = [(group, name, entry) for group in columns for name, entry in columns[group].items()]
    return columns.keys() <= set(GROUPS) and all(
        isinstance(entry, dict)
        and entry.get("kind") in KINDS
        and all(
            f"{stem}.npy" in files or (attribute == "vocabulary" and f"{stem}.bytes.npy" in files)
            for attribute, stem in file_names(group, name, entry["kind"]).items()
        )
        for group, name, entry in described
    )
