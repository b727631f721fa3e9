"""Event stores from arrays in memory, which need no log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.data.array_files import ArrayFile
from seqrec.data.manifest import write_manifest
from seqrec.data.vocabulary import Vocabulary


def write_store(
    directory: Path,
    item_ids: np.ndarray,
    offsets: np.ndarray,
    timestamps: np.ndarray | None,
    user_ids_external: np.ndarray | Sequence[str],
    item_ids_external: np.ndarray | Sequence[str],
    manifest_extra: Mapping[str, Any],
) -> None:
    """Write a store into an existing folder: events user after user, internal id i is the i-th external id."""
    users, items = Vocabulary(user_ids_external), Vocabulary(item_ids_external)
    assert (len(users), len(item_ids)) == (len(offsets) - 1, offsets[-1])
    assert 1 <= item_ids.min() <= item_ids.max() <= len(items)
    arrays = {"item_ids": item_ids.astype(np.min_scalar_type(len(items))), "offsets": offsets}
    if timestamps is not None:
        arrays["timestamps"] = timestamps
    arrays |= users.arrays("user_vocabulary") | items.arrays("item_vocabulary")
    files = [ArrayFile(directory, name, array.dtype, len(array)) for name, array in arrays.items()]
    for file, array in zip(files, arrays.values(), strict=True):
        file.append(array)
    counts = {"users": len(users), "items": len(items), "events": len(item_ids)}
    write_manifest(directory, {file.path.name: file.finish() for file in files}, counts, manifest_extra)
