"""The public API: what `import seqrec` offers, and what it costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import seqrec
from seqrec.registry import public_path


def test_the_front_door_offers_every_public_name():
    assert 40 <= len(seqrec.__all__) <= 99
    assert len(set(seqrec.__all__)) == len(seqrec.__all__)
    for name in seqrec.__all__:
        assert getattr(seqrec, name).__name__ == name
    assert set(seqrec.__all__) <= set(dir(seqrec))


def test_public_classes_are_called_by_the_front_door():
    for name in seqrec.__all__:
        value = getattr(seqrec, name)
        if isinstance(value, type):
            assert public_path(value) == f"seqrec.{name}"


def test_editors_are_told_the_same_names():
    tree = ast.parse(Path(seqrec.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == seqrec._PLACES
    assert sorted(told) == sorted(seqrec.__all__)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(AttributeError, match=re.escape("no attribute 'MambaRek'; did you mean MambaRec?")):
        seqrec.MambaRek  # noqa: B018
    with pytest.raises(AttributeError, match="lists the public names"):
        seqrec.xyz  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'MambaRek'"):
        from seqrec import MambaRek  # noqa: F401


@pytest.mark.process
def test_listing_the_names_loads_nothing():
    code = "import seqrec, sys; dir(seqrec); print('torch' in sys.modules, 'numpy' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "False"]
