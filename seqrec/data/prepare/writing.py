"""The last stage: blocks of ordered events, and the ids that stay, to the store's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.prepare.k_core import Core
from seqrec.data.prepare.numbering import Numbering, SortedTexts
from seqrec.data.prepare.ordering import Block
from seqrec.data.store import ArrayFile


def write_columns(
    directory: Path, blocks: Iterator[Block], core: Core, types: dict[str, np.dtype[Any]]
) -> list[ArrayFile]:
    """Write events and offsets of a store, and return their files.

    Args:
        directory: The store's folder.
        blocks: All events that stay.
        core: Which these are.
        types: Of `column_types`; that of item ids is chosen anew, by the catalogue.
    """
    types = {**types, "item_ids": np.min_scalar_type(np.count_nonzero(core.catalogue))}
    columns = {name: ArrayFile(directory, name, dtype, core.num_events) for name, dtype in types.items()}
    num_users = int(np.count_nonzero(core.users))
    offsets = ArrayFile(directory, "offsets", np.int64, num_users + 1)
    offsets.append(np.zeros(1, np.int64))
    users = written = 0
    for block in blocks:
        assert block.first == users
        users += len(block.lengths)
        for name, values in block.events.columns().items():
            columns[name].append(values)
        ends = written + np.cumsum(block.lengths)
        offsets.append(ends)
        written = int(ends[-1]) if len(ends) else written
    return [*columns.values(), offsets]


def write_vocabulary(
    directory: Path, stem: str, numbering: Numbering, kept: NDArray[np.bool_]
) -> list[ArrayFile]:
    """Write the external ids that stay as `Vocabulary.open` reads them, and return the files.

    Args:
        directory: The store's folder.
        stem: Start of the files' names.
        numbering: The ids.
        kept: (N,) which of them stay.
    """
    size = int(np.count_nonzero(kept))
    if not isinstance(numbering, SortedTexts):
        file = ArrayFile(directory, stem, np.int64, size)
        for integers in numbering.blocks(kept):
            file.append(np.asarray(integers))
        return [file]
    offsets = ArrayFile(directory, f"{stem}.offsets", np.int64, size + 1)
    offsets.append(np.zeros(1, np.int64))
    total = 0
    for texts in numbering.blocks(kept):
        ends = total + np.cumsum(texts.str.len_bytes().to_numpy(), dtype=np.int64)
        offsets.append(ends)
        total = int(ends[-1]) if len(ends) else total
    text_bytes = ArrayFile(directory, f"{stem}.bytes", np.uint8, total)
    for texts in numbering.blocks(kept):
        text_bytes.append(np.frombuffer(texts.str.join("").item().encode(), np.uint8))
    return [text_bytes, offsets]
