"""What a run leaves in its folder: metrics, a summary, and what it was made with."""

from seqrec.runs.folder import RunFolder
from seqrec.runs.summary import Summary, read_summary

__all__ = ["RunFolder", "Summary", "read_summary"]
