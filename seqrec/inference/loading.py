"""A trained model from its checkpoint, ready to recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seqrec.data.store import EventStore, MissingStoreError
from seqrec.errors import InputError, StoreError
from seqrec.models import Recommender
from seqrec.models.base import CHECKPOINT_KEY
from seqrec.registry import class_named
from seqrec.runs.checkpoints import all_finite, read_checkpoint


def load(
    ckpt: str | Path, *, store: str | Path | None = None, device: torch.device | str = "cpu"
) -> Recommender:
    """The model of a checkpoint in evaluation mode, which knows the log's item and user ids.

    Args:
        ckpt: A checkpoint that `seqrec fit`, or a trainer with a `SequenceDataModule`, wrote.
        store: Folder of the event store that the model was trained on; None is where it was then.
        device: Where the model goes.

    Returns:
        A model of the class that was trained, with `item_vocabulary` and `user_vocabulary`.

    Raises:
        MissingInputError: there is no such file, or no store where it was.
        CheckpointError: the file is damaged, or no checkpoint.
        InputError: no checkpoint of a recommender, weights that are not finite, or a store with other items.
    """
    return load_with_store(ckpt, store=store, device=device)[0]


def load_with_store(
    ckpt: str | Path, *, store: str | Path | None = None, device: torch.device | str = "cpu"
) -> tuple[Recommender, EventStore]:
    """The model of a checkpoint as `load` gives it, and the event store that it was trained on.

    Args:
        ckpt: As of `load`.
        store: As of `load`.
        device: Where the model goes.

    Raises:
        MissingInputError: there is no such file, or no store where it was.
        CheckpointError: the file is damaged, or no checkpoint.
        InputError: no checkpoint of a recommender, weights that are not finite, or a store with other items.
    """
    path = Path(ckpt)
    record = _record(path)
    cls = _class_of(record, path)
    model = cls.load_from_checkpoint(path, map_location=device, weights_only=True).eval()
    if not all_finite(model):
        raise InputError(f"{path} holds weights that are not finite; take a checkpoint from before")
    trained_on = _store(record, path, store)
    model.item_vocabulary, model.user_vocabulary = trained_on.item_vocabulary, trained_on.user_vocabulary
    return model, trained_on


def _record(path: Path) -> dict[str, Any]:
    """What the checkpoint says it is."""
    # Mapped, so that a table of gigabytes is not held twice when the model is loaded.
    record = read_checkpoint(path, needed=("state_dict",), mapped=True).get(CHECKPOINT_KEY)
    if not isinstance(record, dict) or "class_path" not in record:
        raise InputError(
            f"ckpt={path} does not say which recommender it is of; give a checkpoint that seqrec fit wrote"
        )
    return record


def _class_of(record: dict[str, Any], path: Path) -> type[Recommender]:
    try:
        cls = class_named(str(record["class_path"]))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"ckpt={path} is of {record['class_path']}, which cannot be imported here: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Recommender)):
        raise InputError(f"ckpt={path} is of {record['class_path']}, which is no recommender")
    return cls


def _store(record: dict[str, Any], path: Path, store: str | Path | None) -> EventStore:
    """The store whose ids the model's item numbers mean."""
    folder = store if store is not None else record.get("store")
    if folder is None:
        raise InputError(
            f"ckpt={path} was trained without an event store, so that its items have no names; say which store "
            "they are from: store=FOLDER"
        )
    try:
        found = EventStore.open(folder)
    except MissingStoreError as error:
        raise MissingStoreError(
            f"no event store at {folder}, where that of ckpt={path} should be; say where it is now: store=FOLDER"
        ) from error
    if record.get("items", found.items_digest) != found.items_digest:
        raise StoreError(
            f"{folder} has other items than the log that ckpt={path} was trained on; give its own store"
        )
    return found
