"""A new encoder needs one export line; a forgotten one is named."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import seqrec.encoders
from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.registry import concrete_subclasses

PACKAGE = Path(seqrec.encoders.__file__).parent


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.stem)
def test_every_encoder_file_is_exported(file: Path):
    module = importlib.import_module(f"seqrec.encoders.{file.stem}")
    defined = [cls for cls in concrete_subclasses(SequenceEncoder) if cls.__module__ == module.__name__]
    for cls in defined:
        line = f"add `from {module.__name__} import {cls.__name__}` to seqrec/encoders/__init__.py, and to __all__"
        assert getattr(seqrec.encoders, cls.__name__, None) is cls, line
        assert cls.__name__ in seqrec.encoders.__all__, line


def test_importing_the_package_registers_every_encoder():
    assert set(ENCODERS) == {name for name in seqrec.encoders.__all__ if name in ENCODERS}
    assert len(ENCODERS) >= 5
