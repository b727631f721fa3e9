"""The manifest of an export, for serving it without seqrec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seqrec.aliases import __version__
from seqrec.data.integrity import sealed, sha256, unsealed
from seqrec.data.schema import CATEGORICAL, NUMERIC, VECTOR
from seqrec.errors import MissingInputError
from seqrec.files import write_text
from seqrec.inference.export.programs import COLUMN, NEXT_STATE, STATE, Program
from seqrec.inference.export.tables import ExportedTable
from seqrec.models import SequentialRecommender
from seqrec.models.streaming import NEWEST_TIME
from seqrec.specs import to_spec
from seqrec.types import NO_TIME

FILE_NAME = "manifest.json"
# Entries with the digests of the other files, and of the manifest itself.
DIGESTS, OWN_DIGEST = "digests", "manifest_sha256"
# Of inputs that are columns of events, by kind.
COLUMN_MEANINGS = {
    CATEGORICAL: "code 1, 2, .. of each event's value in `values`; 0 is missing or unknown, and after a history's end",
    NUMERIC: "(number - mean) / std of each event, of float32; 0 is missing, and after a history's end",
    VECTOR: "the vector of each event; zeros are missing, and after a history's end",
}
MEANINGS = {
    "item_ids": "full: the history, oldest first, 0 after its end; step: the new event; items are 1..num_items",
    "lengths": "events of each history, 1 or more",
    "user_ids": "1..num_users; 0 is an unknown user",
    "timestamps": "times of the events in the log's unit, 0 after the end of a history; never before the event before",
    "request_times": "when a recommendation is asked for, in the log's unit; not before the newest event",
    "event_states": "the encoder's output for the newest event; `ask` reads it at any later time",
    "newest_times": "time of the newest event",
    "states": "vectors; their products with the vectors of items are scores",
    "best_items": "the items with the highest scores, best first; items of the history are among them",
    "best_scores": "their scores",
}


def manifest(
    model: SequentialRecommender,
    form: str,
    programs: Mapping[str, tuple[Program, str, float]],
    omitted: Mapping[str, str],
    tables: Mapping[str, ExportedTable],
    *,
    files: Sequence[str],
    top_k: int,
) -> dict[str, Any]:
    """Return all that a consumer must know, as plain values.

    Args:
        model: The exported model.
        form: "onnx" or "torch".
        programs: Name -> program, its file, and its largest difference from the model.
        omitted: Name -> reason why the program is missing.
        tables: The model's tables.
        files: Names of the tables' and the vocabulary's files.
        top_k: Items that the programs rank themselves; 0 leaves that to the consumer.
    """
    scored_by, full = tables.get("candidates", tables["items"]), programs["full"][0]
    return {
        "seqrec": __version__,
        "torch": torch.__version__,
        "format": form,
        "model": model.title,
        "encoder": to_spec(model.encoder),
        "num_items": model.items.num_items,
        "max_length": int(model.hparams["max_length"]),
        "padding_id": 0,
        **({"event_columns": to_spec(model.event_columns)} if model.event_columns else {}),
        "programs": {
            **{name: _program(model, tables, *entry, top_k) for name, entry in programs.items()},
            **{name: {"omitted": reason} for name, reason in omitted.items()},
        },
        "tables": {
            table.name: {
                "file": table.file if table.file in files else None,
                "shape": [table.num_rows, table.width],
                "dtype": "float32",
            }
            for table in tables.values()
        },
        "vocabulary": [name for name in files if name.startswith("item_vocabulary")],
        "scores": "best_scores" if top_k else f"states @ {scored_by.name}[1:].T; column k is item k + 1",
        "example": None if top_k else _example(form, scored_by, full, [name for name in full.inputs if name in tables]),
    }


def _program(
    model: SequentialRecommender,
    tables: Mapping[str, ExportedTable],
    program: Program,
    file: str,
    difference: float,
    top_k: int,
) -> dict[str, Any]:
    inputs, columns = [], {column.name: column for column in model.event_columns}
    for name, x in program.inputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": program.shape(name),
        }
        if name in tables:
            if file.endswith(".onnx"):
                continue  # ONNX refers to the table's file itself
            entry |= {"file": tables[name].file, "shape": [tables[name].num_rows, tables[name].width]}
        if name.startswith(COLUMN):
            entry["meaning"] = COLUMN_MEANINGS[columns[name.removeprefix(COLUMN)].kind]
        elif name in MEANINGS:
            entry["meaning"] = MEANINGS[name]
        elif name.startswith(STATE):
            entry["initial"] = NO_TIME if name == STATE + NEWEST_TIME else 0
            entry["meaning"] = f"`initial` before the first event, then {NEXT_STATE + name.removeprefix(STATE)}"
        inputs.append(entry)
    has_window = any("window" in program.shape(name) for name in program.inputs)
    return {
        "file": file,
        "inputs": inputs,
        "outputs": _outputs(program, tables, top_k, model.encoder.d_model),
        "longest_history": program.longest,
        **({"window": int(model.hparams["max_length"])} if has_window else {}),
        "largest_difference": difference,
    }


def _outputs(program: Program, tables: Mapping[str, ExportedTable], top_k: int, d_model: int) -> list[dict[str, Any]]:
    width = tables.get("candidates", tables["items"]).width
    known: dict[str, tuple[str, list[int | str]]] = {
        "states": ("float32", ["batch", width]),
        "best_items": ("int64", ["batch", top_k]),
        "best_scores": ("float32", ["batch", top_k]),
        "event_states": ("float32", ["batch", d_model]),
    }
    for name, x in program.inputs.items():
        if name.startswith(STATE):
            dtype = str(x.dtype).removeprefix("torch.")
            known[NEXT_STATE + name.removeprefix(STATE)] = (dtype, program.shape(name))
    entries = []
    for name in program.outputs:
        dtype, shape = known[name]
        meaning = {"meaning": MEANINGS[name]} if name in MEANINGS else {}
        entries.append({"name": name, "dtype": dtype, "shape": shape, **meaning})
    return entries


def _example(form: str, scored_by: ExportedTable, full: Program, outer: list[str]) -> list[str]:
    """Return lines of Python that rank items."""
    users = ", 'user_ids': numpy.array([0])" if "user_ids" in full.inputs else ""
    times = ", 'timestamps': numpy.array([[0]])" if "timestamps" in full.inputs else ""
    times += ", 'request_times': numpy.array([60])" if "request_times" in full.inputs else ""
    columns = "".join(
        f", '{name}': numpy.zeros({[1, 1, *x.shape[2:]]}, '{str(x.dtype).removeprefix('torch.')}')"
        for name, x in full.inputs.items()
        if name.startswith(COLUMN)
    )
    lines = [
        "import numpy",
        f"vectors = numpy.load('{scored_by.file}', mmap_mode='r')",
        f"inputs = {{'item_ids': numpy.array([[1]]), 'lengths': numpy.array([1]){columns}{users}{times}}}",
    ]
    if form == "onnx":
        lines += [
            "import onnxruntime",
            "(states,) = onnxruntime.InferenceSession('full.onnx').run(['states'], inputs)",
        ]
    else:
        lines += [
            "import torch",
            "program = torch.export.load('full.pt2')",
            *(f"inputs['{name}'] = numpy.load('{name}.npy', mmap_mode='c')" for name in outer),
            f"given = (torch.from_numpy(inputs[name]) for name in {list(full.inputs)})",
            "states = program.module()(*given)[0].detach().numpy()",
        ]
    return [*lines, "best = 1 + (states @ vectors[1:].T).argsort(axis=1)[:, ::-1][:, :10]"]


def write_manifest(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a folder, with size and SHA-256 of each other file, and return what it contains."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != FILE_NAME)
    digests = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files
    }
    text = sealed({**content, DIGESTS: digests}, OWN_DIGEST)
    write_text(folder / FILE_NAME, text)
    written: dict[str, Any] = json.loads(text)
    return written


def verify_export(directory: str | Path) -> list[str]:
    """Compare the files of an export with what was written, and return a line for each that differs or was added.

    Args:
        directory: A folder that `export` wrote.

    Raises:
        MissingInputError: if the folder has no manifest.

    Example:
        >>> import tempfile
        >>> from seqrec import GRU4Rec, export
        >>> from seqrec.inference.export import verify_export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export(GRU4Rec(num_items=20, d_model=8), f"{folder}/model", format="torch")
        ...     verify_export(f"{folder}/model")
        []
    """
    folder = Path(directory)
    file = folder / FILE_NAME
    if not file.is_file():
        raise MissingInputError(
            f"{folder} is no export: it has no {FILE_NAME}; give the folder that seqrec export wrote"
        )
    try:
        content, whole = unsealed(file.read_bytes().decode(), OWN_DIGEST)
        digests = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in content[DIGESTS].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{file} is damaged, or of an export of seqrec 0.1, which has no digests: export again"]
    damage = [] if whole and OWN_DIGEST.encode() in file.read_bytes() else [f"{file} is damaged: its SHA-256 differs"]
    for name, (size, digest) in digests.items():
        place = folder / name
        if not place.resolve().is_relative_to(folder.resolve()):
            damage.append(f"{file} is damaged: it names a file of another folder")
        elif not place.is_file():
            damage.append(f"{place} is missing")
        elif place.stat().st_size != size:
            damage.append(f"{place} has {place.stat().st_size} bytes, expected {size}")
        elif sha256(place) != digest:
            damage.append(f"{place} is damaged: its SHA-256 differs")
    known = {file, *(folder / name for name in digests)}
    others = [each for each in sorted(folder.rglob("*")) if each not in known and not each.is_dir()]
    return damage + [f"{each} is not of this export: remove it" for each in others]
