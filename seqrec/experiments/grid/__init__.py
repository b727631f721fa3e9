"""Grids of runs: every cell a `seqrec fit` of its own, whose results are gathered as Parquet."""

from seqrec.experiments.grid.budget import Budget
from seqrec.experiments.grid.cells import Cell, Settings
from seqrec.experiments.grid.runner import run_grid

__all__ = ["Budget", "Cell", "Settings", "run_grid"]
