"""Writing and running of programs: ONNX by onnxruntime, and torch's own format."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from seqrec.encoders.layers import Tensors
from seqrec.errors import InputError
from seqrec.inference.export.programs import Program
from seqrec.inference.export.tables import ExportedTable

Format = Literal["onnx", "torch"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
# All inputs of a program -> all outputs.
Run = Callable[[Tensors], Tensors]


class ExportError(RuntimeError):
    """A model cannot be traced, or a written program returns other values than the model."""


def check_packages(form: str) -> None:
    """Raise an `InputError` if a format is unknown, or its packages are not installed."""
    if form not in SUFFIXES:
        raise InputError(f"format={form!r} must be one of {', '.join(SUFFIXES)}")
    if form == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"format='onnx' needs a package that is not installed ({error}): "
                'pip install "seqrec[onnx]", or use format torch'
            ) from error


def write(program: Program, directory: Path, form: str, tables: Mapping[str, tuple[ExportedTable, int]]) -> Path:
    """Trace a program and write it to a folder, with tables in files of their own and the bytes at which rows start.

    Raises:
        ExportError: if torch's trace only holds for certain numbers of users or events.
    """
    path = directory / (program.name + SUFFIXES[form])
    with _without_exporters_noise(), torch.no_grad():
        try:
            exported = torch.export.export(
                program.module,
                tuple(program.inputs.values()),
                dynamic_shapes={"tensors": _dimensions(program)},
                strict=False,
            )
        except Exception as error:
            raise ExportError(
                f"the {program.name} program cannot be traced for any number of users and events: {error}"
            ) from error
        if form == "onnx":
            _write_onnx(program, exported, path, tables)
        else:
            torch.export.save(exported, path)
    return path


def load(program: Program, path: Path, tables: Mapping[str, ExportedTable]) -> Run:
    """Return a written program as a function. ONNX reads its tables itself; torch gets them as inputs."""
    if path.suffix == SUFFIXES["onnx"]:
        return _onnx_runtime(program, path)
    module = torch.export.load(path).module()
    files = {name: path.with_name(tables[name].file) for name in program.inputs if name in tables}
    # Mapped as a consumer would; with "c" (copy on write) torch does not warn of read-only memory.
    outer = {name: torch.from_numpy(np.load(file, mmap_mode="c")) for name, file in files.items()}

    def run(inputs: Tensors) -> Tensors:
        with torch.no_grad():
            outputs = module(*(({**inputs, **outer})[name] for name in program.inputs))
        return dict(zip(program.outputs, outputs, strict=True))

    return run


def _dimensions(program: Program) -> tuple[dict[int, Any], ...]:
    names = {name for axes in program.axes.values() for name in axes.values()}
    longest = {"length": program.longest}
    free = {name: torch.export.Dim(name, min=1, max=longest.get(name)) for name in names}
    return tuple({axis: free[x] for axis, x in program.axes[name].items()} for name in program.inputs)


def _write_onnx(program: Program, exported: Any, path: Path, tables: Mapping[str, tuple[ExportedTable, int]]) -> None:
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    written = torch.onnx.export(
        exported, input_names=list(program.inputs), output_names=program.outputs, dynamo=True, verbose=False
    )
    assert written is not None
    model = written.model
    for name, (table, offset) in tables.items():
        # As an input the table would be passed at each call; as external data onnxruntime maps the file.
        value = next((x for x in model.graph.inputs if x.name == name), None)
        if value is None:
            continue
        model.graph.inputs.remove(value)
        shape = onnx_ir.Shape((table.num_rows, table.width))
        value.shape = shape
        value.const_value = onnx_ir.ExternalTensor(
            table.file,
            offset,
            table.num_bytes,
            onnx_ir.DataType.FLOAT,
            shape=shape,
            name=name,
            base_dir=path.parent,
        )
        model.graph.register_initializer(value)
    # Remove the source lines that the nodes came from.
    ClearMetadataAndDocStringPass()(model)
    onnx_ir.save(model, path)


def _onnx_runtime(program: Program, path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Tensors) -> Tensors:
        outputs = session.run(program.outputs, {name: inputs[name].numpy() for name in names})
        return {name: torch.from_numpy(x) for name, x in zip(program.outputs, outputs, strict=True)}

    return run


@contextmanager
def _without_exporters_noise() -> Iterator[None]:
    """Hide torch's messages about its own internals during an export."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
