"""Load a trained model from its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch

from seqrec.data.manifest import MissingStoreError
from seqrec.data.store import EventStore
from seqrec.errors import CheckpointError, InputError
from seqrec.inference.new_items import with_items_of
from seqrec.models import Recommender, SequentialRecommender
from seqrec.models.trained_on import check_same_log, record_in
from seqrec.registry import class_from_file, trusting
from seqrec.runs.checkpoints import all_finite, read_checkpoint
from seqrec.runs.finding import find_checkpoint


def load(
    ckpt: str | Path,
    *,
    store: str | Path | None = None,
    device: torch.device | str = "cpu",
    trust: Iterable[str] = (),
) -> Recommender:
    """Load a checkpoint as a model in evaluation mode that knows the log's item and user ids.

    Loading runs no code of the file, and none that the file chooses: a checkpoint names classes, and only those of
    seqrec, those that you have imported, and those of packages that you trust are used.

    Args:
        ckpt: A checkpoint written by `seqrec fit`, or by a trainer with a `SequenceDataModule`; a run's folder, a
            folder of runs, or `last`, for the best checkpoint of the run that started last; `best` or `hpc`.
        store: Folder of the event store that the model was trained on; None is the folder that it had then. If the
            model has `ItemTable.content`, a store with all of its items and others is allowed too: the others are
            recommended by their content. Then the store that it was trained on must be where it was.
        device: Device of the model.
        trust: Packages whose classes the checkpoint may name, such as ["mypackage"]; their modules are imported.

    Returns:
        A model of the class that was trained, with `item_vocabulary` and `user_vocabulary`.

    Raises:
        MissingInputError: if the file or the store does not exist.
        CheckpointError: if the file is damaged, or no checkpoint.
        InputError: if the checkpoint is not one of a recommender, weights are not finite, or the store has other
            items, or a class is not trusted.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lightning.pytorch import Trainer
        >>> from seqrec import Filters, Popularity, Synthetic, load, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Synthetic(num_users=20, num_items=30, mean_events=10, seed=1)
        ...     store = prepare(log, Filters(), Path(folder) / "store")
        ...     trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        ...     trainer.strategy.connect(Popularity(num_items=30))
        ...     trainer.save_checkpoint(f"{folder}/model.ckpt")
        ...     model = load(f"{folder}/model.ckpt", store=store.directory)
        >>> model.title, len(model.item_vocabulary)
        ('Popularity', 30)
    """
    return load_with_store(ckpt, store=store, device=device, trust=trust)[0]


def load_with_store(
    ckpt: str | Path,
    *,
    store: str | Path | None = None,
    device: torch.device | str = "cpu",
    trust: Iterable[str] = (),
) -> tuple[Recommender, EventStore]:
    """Return the model that `load` returns, and the event store that it was trained on."""
    path = Path(find_checkpoint(str(ckpt)))
    record = _record(path)
    try:
        # Open, because Lightning takes some names for URLs or for other files, such as those with http or ~.
        with trusting(trust), path.open("rb") as file:
            cls = class_from_file(record["class_path"], (Recommender,))
            model = cls.load_from_checkpoint(file, map_location=device, weights_only=True).eval()
    except InputError as error:
        raise InputError(f"ckpt={path}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # hyperparameters of others can be anything
        raise CheckpointError(f"{path} has settings or weights that make no {cls.__name__}: {error}") from error
    if not all_finite(model):
        raise InputError(f"{path} contains weights that are not finite; use an earlier checkpoint")
    trained_on = _store(record, path, store)
    reads_content = isinstance(model, SequentialRecommender) and bool(model.item_table.content)
    if reads_content and store is not None and record.get("items") != trained_on.items_digest:
        # An item table with further items, which the model recommends by their content.
        model = with_items_of(cast("SequentialRecommender", model), _store(record, path, None), trained_on)
        record = {**record, "items": trained_on.items_digest}
    check_same_log(record, trained_on, user_vectors=model.num_user_vectors)
    model.use_store(trained_on)
    return model, trained_on


def _record(path: Path) -> dict[str, Any]:
    # Mapped, so a table of gigabytes is not in memory twice while the model is loaded.
    record = record_in(read_checkpoint(path, needed=("state_dict",), mapped=True))
    if "class_path" not in record:
        raise InputError(f"ckpt={path} does not name its recommender; give a checkpoint that seqrec fit wrote")
    return record


def _store(record: dict[str, Any], path: Path, store: str | Path | None) -> EventStore:
    folder = store if store is not None else record.get("store")
    if not isinstance(folder, (str, Path)):
        raise InputError(
            f"ckpt={path} was trained without an event store, so its items have no names; give the store of its items: "
            "store=FOLDER"
        )
    try:
        return EventStore.open(folder)
    except MissingStoreError as error:
        raise MissingStoreError(
            f"no event store at {folder}, where that of ckpt={path} should be; give its present folder: store=FOLDER"
        ) from error


def torch_device(device: str) -> str:
    """Return the torch device of an option: cpu, cuda, or auto, which is cuda if there is a GPU.

    Each process of torchrun gets a GPU of its own.

    Raises:
        InputError: if it is another one, or there is no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device!r} must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda', but torch finds no GPU; use cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
