from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The scripts of `tests/gpu` import each other as they do when they run from the root of a checkout.
sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def importable_functions(monkeypatch: pytest.MonkeyPatch):
    """Processes that are measured find `measured_functions`, which lies here."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", here, prepend=":")
    monkeypatch.setattr(sys, "path", [here, *sys.path])
