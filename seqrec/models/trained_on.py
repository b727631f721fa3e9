"""The log that a model was trained on, as its checkpoint records it, compared with the log that it meets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqrec.aliases import __version__
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.store import EventStore
from seqrec.errors import StoreError
from seqrec.registry import public_path

# Key of our record in a checkpoint, next to Lightning's own.
CHECKPOINT_KEY = "seqrec"


def record_of(cls: type, data: SequenceDataModule | None) -> dict[str, Any]:
    """Return the record of a checkpoint: version, the model's class, and the store with digests of its ids.

    `newest` is the time of the newest event of the training part, if the log has times.
    """
    record: dict[str, Any] = {"version": __version__, "class_path": public_path(cls)}
    if data is not None:
        folder = str(data.store.directory.absolute())
        record |= {"store": folder, "items": data.store.items_digest, "users": data.store.users_digest}
        record |= {} if data.newest_trained is None else {"newest": data.newest_trained}
    return record


def record_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's record of its log; empty if it has none."""
    record = checkpoint.get(CHECKPOINT_KEY)
    return record if isinstance(record, dict) else {}


def check_same_log(record: Mapping[str, Any], store: EventStore, *, user_vectors: int) -> None:
    """Refuse a store whose internal ids mean other items, or other users if the model has vectors of users.

    The model has `user_vectors` of these. Records of checkpoints of seqrec 0.1 have no digest of the users.

    Raises:
        StoreError: if the model would read its vectors of other items or users.
    """
    folder = str(store.directory.absolute())
    trained_on = record.get("store", "the log that the model was trained on")
    than = "when the checkpoint was written" if trained_on == folder else f"{trained_on}, which the checkpoint is from"
    remedy = "give the store that it was trained on, or train a model on this one"
    if record.get("items", store.items_digest) != store.items_digest:
        raise StoreError(f"{store.directory} has other items than {than}; {remedy}")
    others = user_vectors != store.num_users or record.get("users", store.users_digest) != store.users_digest
    if user_vectors and others:
        raise StoreError(
            f"{store.directory} has other users than {than}, and the model has a vector of each user "
            f"(user_embedding: true) or reads their columns (user_columns); {remedy}"
        )
