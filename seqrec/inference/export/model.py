"""Export a recommender as files that can be served without seqrec."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec.catalogue.recommend import evaluating
from seqrec.data.progress import Progress
from seqrec.data.user_files import refuse_special
from seqrec.errors import InputError
from seqrec.files import move
from seqrec.inference.export import formats
from seqrec.inference.export.checks import check_ask, check_full_pass, check_one_step
from seqrec.inference.export.formats import Format, check_packages, write
from seqrec.inference.export.manifest import manifest, write_manifest
from seqrec.inference.export.programs import ask, full_pass, one_step
from seqrec.inference.export.tables import ExportedTable, model_tables
from seqrec.models import Recommender, SequentialRecommender

# Larger tables get their own files by default.
SEPARATE_BYTES = 64 << 20
# Most bytes of tables in an ONNX file: a protobuf message's limit, minus space for the rest.
MOST_INSIDE_BYTES = (2 << 30) - (64 << 20)


def export(
    model: Recommender,
    directory: str | Path,
    *,
    format: Format = "onnx",
    separate_table: bool | None = None,
    top_k: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a recommender as programs for onnxruntime or plain torch, each checked against the model.

    Programs for any batch size are written; `manifest.json` lists their inputs, outputs, types and shapes:

    - `full`: from a history of any length to the state after its newest event. Dot products of states with item
      vectors are scores. Mamba's and GRU's recurrences run event by event in it (ONNX's Scan).
    - `step`: from one more event and the recurrent state to the next state, in constant time. It does not depend on
      `max_length`; attention's window is the size of the given state. If a model cannot be streamed, as with learned
      positions, the program is left out, with the reason in the manifest.
    - `ask`, if the model reads the time of a request: from a state of `step` and the time at which it is asked to the
      vectors that score items then.

    The vectors of all items in float32 are written next to them, for numpy to map into memory (row 0 is padding),
    unless the programs rank items themselves. So is the item vocabulary, as in an event store, if the model knows it.

    Args:
        model: A recommender around a sequence encoder, on the CPU, with float32 weights.
        directory: Folder to make. It appears once all its files are checked.
        format: "onnx", or "torch" for `torch.export`'s `.pt2`.
        separate_table: Whether item and user vectors stay outside the programs: ONNX files refer to the `.npy`, which
            onnxruntime maps into memory, and a `.pt2` takes it as an input. None means tables above 64 MiB.
        top_k: Best items that the programs find themselves, as `best_items` and `best_scores`, including items of the
            history; 0 leaves that to the consumer. Needs the tables inside.
        progress: Shows which program is written; None shows nothing.

    Returns:
        The content of the manifest.

    Raises:
        InputError: if the model cannot be exported, a package is missing, or an argument does not fit.
        ExportError: if torch cannot trace the encoder, or a program returns other values than the model; no file is
            left.

    Example:
        >>> import tempfile
        >>> from seqrec import GRU4Rec, export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = export(GRU4Rec(num_items=20, d_model=8), f"{folder}/model", format="torch")
        >>> manifest["programs"]["full"]["file"]
        'full.pt2'
    """
    check_packages(format)
    sequential = _checked(model)
    target = Path(directory)
    refuse_special(target, f"output={str(target)!r}", may_be_folder=True)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"output={str(target)!r} exists already; give a folder that does not exist, or an empty one")
    tables = model_tables(sequential)
    inside = _inside(tables, separate_table, top_k, format)
    if not 0 <= top_k <= sequential.items.num_items:
        raise InputError(f"top_k={top_k} must be between 0 and num_items={sequential.items.num_items}")
    with _folder(target) as folder, evaluating(sequential):
        written = {}
        scored_by = tables.get("candidates", tables["items"])
        for table in tables.values():
            if table.name not in inside or (table is scored_by and not top_k):
                written[table.name] = (table, table.write(folder))
        files = [table.file for table, _ in written.values()] + _write_vocabulary(model, folder)
        arguments = (sequential, tables, {name: tables[name].rows(0, tables[name].num_rows) for name in inside}, top_k)
        programs, omitted = {}, {}
        stage = (progress or Progress()).stage("exporting", 2 + (sequential.read_out is not None), unit="programs")
        full = full_pass(*arguments)
        file = write(full, folder, format, written)
        difference = check_full_pass(sequential, formats.load(full, file, tables), full.longest)
        programs["full"] = (full, file.name, difference)
        stage.advance(1)
        if (reason := _why_not_streamed(sequential)) is None:
            step = one_step(*arguments)
            file = write(step, folder, format, written)
            programs["step"] = (step, file.name, check_one_step(sequential, formats.load(step, file, tables)))
        else:
            omitted["step"] = reason
        stage.advance(1)
        if sequential.read_out is not None:
            asked = ask(*arguments)
            file = write(asked, folder, format, written)
            programs["ask"] = (asked, file.name, check_ask(sequential, formats.load(asked, file, tables)))
            stage.advance(1)
        stage.end()
        content = manifest(sequential, format, programs, omitted, tables, files=files, top_k=top_k)
        return write_manifest(folder, content)


def _checked(model: Recommender) -> SequentialRecommender:
    """Return the model if it can be exported."""
    if not isinstance(model, SequentialRecommender):
        raise InputError(
            f"{model.title} has no encoder to export; give a SequentialRecommender, such as MambaRec or SASRec"
        )
    for name, weight in model.encoder.named_parameters():
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise InputError(
                f"encoder.{name} is {weight.dtype} on {weight.device}, but exports are of float32 on the CPU: call "
                "model.float().cpu() first"
            )
    if any(table is not None and table.spread is not None for table in (model.items, model.output_items)):
        raise InputError("the item table is sharded over processes; load the checkpoint in one process and export that")
    return model


def _inside(tables: Mapping[str, ExportedTable], separate_table: bool | None, top_k: int, form: str) -> list[str]:
    """Return names of the tables inside the programs."""
    needed = [table for table in tables.values() if top_k or table.name != "candidates"]
    separate = {
        table.name
        for table in needed
        if (table.num_bytes > SEPARATE_BYTES if separate_table is None else separate_table)
    }
    sizes = {table.name: f"{table.num_bytes / (1 << 20):,.0f} MiB" for table in needed}
    if top_k and separate - {"users"}:
        raise InputError(
            f"top_k={top_k} needs the item table inside the programs, but it is separate ({sizes['items']}): leave "
            "top_k out and rank by items.npy, or set separate_table to false"
        )
    inside = [table for table in needed if table.name not in separate]
    if form == "onnx" and sum(table.num_bytes for table in inside) > MOST_INSIDE_BYTES:
        raise InputError(
            f"separate_table=False would put {', '.join(f'{size} of {x}' for x, size in sizes.items())} into one ONNX "
            "file, which is limited to 2 GiB; leave it out"
        )
    return [table.name for table in inside]


def _why_not_streamed(model: SequentialRecommender) -> str | None:
    try:
        model.init_state(1)
    except InputError as error:
        return str(error)
    return None


def _write_vocabulary(model: Recommender, folder: Path) -> list[str]:
    if model.item_vocabulary is None:
        return []
    arrays = model.item_vocabulary.arrays("item_vocabulary")
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [f"{name}.npy" for name in arrays]


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """Make a folder that gets the target's name at the end, or is removed after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            target.rmdir()
        move(folder, target)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            # Writers of other packages name no place, or the temporary one.
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
