"""Training runs: folder, checkpoints, summary and callbacks.

`RunFolder` is loaded when it is first used: finding a config needs no Lightning.
"""

from typing import TYPE_CHECKING, Any

from seqrec.runs.summary import Summary, read_summary

if TYPE_CHECKING:
    from seqrec.runs.folder import RunFolder

__all__ = ["RunFolder", "Summary", "read_summary"]


def __getattr__(name: str) -> Any:
    if name != "RunFolder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from seqrec.runs.folder import RunFolder

    return RunFolder
