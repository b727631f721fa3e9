"""The examples in docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import seqrec

PACKAGE = Path(seqrec.__file__).parent
# These names are plain data or an error: their use shows in the examples of others.
WITHOUT = {"InputError"}


def with_examples() -> list[str]:
    """Dotted names of the modules that contain examples."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in file.read_text(encoding="utf-8"):
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", with_examples())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0, "the report above shows which example failed"


@pytest.mark.parametrize("name", sorted(set(seqrec.__all__) - WITHOUT))
def test_a_public_name_has_an_example(name: str):
    value = getattr(seqrec, name)
    docstring = vars(value).get("__doc__") if isinstance(value, type) else inspect.getdoc(value)
    assert ">>> " in (docstring or ""), f"add a short example to the docstring of {name}"
