"""Training runs: folder, checkpoints, summary and callbacks.

Names are loaded when they are first used: finding a config needs no Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqrec.runs.folder import RunFolder
    from seqrec.runs.summary import Summary, read_summary

__all__ = ["RunFolder", "Summary", "read_summary"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module("seqrec.runs.folder" if name == "RunFolder" else "seqrec.runs.summary")
    return getattr(module, name)
