"""The command line."""

from seqrec.cli.lightning_cli import main

__all__ = ["main"]
