"""Grids of runs: each cell is a `seqrec fit` of its own, and its result a small JSON file."""

from seqrec.experiments.grid.cells import Budget, Cell, Settings
from seqrec.experiments.grid.run import run_grid

__all__ = ["Budget", "Cell", "Settings", "run_grid"]
