"""`seqrec report`: tables and figures of a grid, as Markdown, LaTeX, PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.experiments.grid.run import read_grid
from seqrec.experiments.report import figures
from seqrec.experiments.report.rows import Log, read_logs
from seqrec.experiments.report.tables import ablation_table, cost_table, quality_table

if TYPE_CHECKING:
    import polars
    from matplotlib.figure import Figure

__all__ = ["report"]

REPORT_FILE = "report.md"


def report(folder: str, *, output: str | None = None) -> None:
    """Make tables and figures of a grid: Markdown, LaTeX, PNG and SVG.

    Tables contain quality by history length with intervals and a paired test of the best row, costs, and ablations.
    Figures show the same and learning curves. The same results give the same files.

    Args:
        folder: A folder of `seqrec benchmark paper`.
        output: Folder for the files; None is `report` in that folder.

    Raises:
        InputError: if the folder contains no results, or results that do not belong in one table, or matplotlib is
            not installed.
    """
    results, curves = read_grid(Path(folder))
    target = Path(output or Path(folder) / "report")
    target.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    for log in read_logs(Path(folder), results):
        parts.append(f"## {log.data}\n")
        for table in (quality_table(log), cost_table(log), ablation_table(log)):
            if table is not None:
                (target / f"{table.name}.tex").write_text(table.as_latex(), encoding="utf-8")
                parts.append(table.as_markdown())
        with figures.look():
            for name, figure in _figures(log, curves):
                figures.save(figure, target, name)
                parts.append(f"![{name}]({name}.png)\n")
    (target / REPORT_FILE).write_text("\n".join(parts), encoding="utf-8")
    print(f"{target / REPORT_FILE}, with tables as .tex and figures as .png and .svg next to it")


def _figures(log: Log, curves: polars.DataFrame) -> Iterator[tuple[str, Figure]]:
    if log.unchanged:
        yield f"quality_{log.data}", figures.quality_figure(log)
    if any(row.is_trained for row in log.unchanged):
        yield f"costs_{log.data}", figures.cost_figure(log)
        yield f"curves_{log.data}", figures.curve_figure(log, curves)
    for length in log.ablated_lengths:
        yield f"ablations_{log.data}_{length}", figures.ablation_figure(log, length)
