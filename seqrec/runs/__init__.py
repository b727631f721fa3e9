"""Training runs: folder, checkpoints, summary and callbacks."""

from seqrec.runs.folder import RunFolder
from seqrec.runs.summary import Summary, read_summary

__all__ = ["RunFolder", "Summary", "read_summary"]
