from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def importable_functions(monkeypatch: pytest.MonkeyPatch):
    """Processes that are measured find `measured_functions`, which lies here."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", here, prepend=":")
    monkeypatch.setattr(sys, "path", [here, *sys.path])
