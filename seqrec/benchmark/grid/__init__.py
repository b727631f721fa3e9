"""Grids of runs: every cell a `seqrec fit` of its own, whose results are gathered as Parquet."""

from seqrec.benchmark.grid.budget import Budget
from seqrec.benchmark.grid.cells import Cell, Settings
from seqrec.benchmark.grid.runner import run_grid

__all__ = ["Budget", "Cell", "Settings", "run_grid"]
