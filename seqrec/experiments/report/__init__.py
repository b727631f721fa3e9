"""`seqrec report`: the page of a run, or the tables and figures of a grid as Markdown, LaTeX, PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.output import show
from seqrec.data.progress import STATUS, Progress
from seqrec.data.report_table import ReportTable
from seqrec.errors import check_at_least
from seqrec.experiments.grid.result import read_grid
from seqrec.experiments.report import figures
from seqrec.experiments.report.card import leave_card
from seqrec.experiments.report.page import FILE_NAME, RunPage
from seqrec.experiments.report.record import is_run, read_run
from seqrec.experiments.report.rows import Log, read_logs
from seqrec.experiments.report.tables import ablation_table, cost_table, quality_table
from seqrec.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report"]

REPORT_FILE = "report.md"


def report(folder: str, *, output: str | None = None, examples: int = 6, store: str | None = None) -> None:
    """Make the page of a run, or tables and figures of a grid.

    The page of a run, `report.html`, is one file without requests: metrics next to baselines and by slice, learning
    curves, recommendations to a few users with explanations, costs and versions. The run's model card, `README.md`, is
    written again.

    Of a grid: Markdown, LaTeX, PNG and SVG. Tables contain quality by history length with intervals and a paired test
    of the best row, costs, and ablations. Figures show the same and learning curves. The same results give the same
    files.

    Args:
        folder: A run's folder, or the results of `seqrec benchmark paper`, or its folder. The folders of a grid's runs
            are not needed.
        output: Folder for the files; None is the run's folder, or `report` in that of a grid.
        examples: Users of a run to whom its model recommends; 0 loads no model.
        store: Folder of the event store that a run's model was trained on; None is the folder that it had then.

    Raises:
        InputError: if the folder is neither of both, a run's files are damaged, a grid has no results, or results that
            do not belong in one table, or matplotlib, which the figures of a grid need, is not installed.
    """
    check_at_least(0, examples=examples)
    if is_run(folder):
        _report_run(folder, Path(output or folder), RunPage(read_run(folder), examples, store, Progress(STATUS)))
        return
    results = read_grid(Path(folder))
    target = Path(output or Path(folder) / "report")
    target.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    tables: list[ReportTable] = []
    logs = read_logs(results)
    for log in Progress(STATUS).each("reporting", logs, "logs"):
        parts.append(f"## {log.data}\n")
        for table in (quality_table(log), cost_table(log), ablation_table(log)):
            if table is not None:
                (target / f"{table.name}.tex").write_text(table.as_latex(), encoding="utf-8")
                parts.append(table.as_markdown())
                tables.append(table)
        with figures.look():
            for name, figure in _figures(log):
                figures.save(figure, target, name)
                parts.append(f"![{name}]({name}.png)\n")
    (target / REPORT_FILE).write_text("\n".join(parts), encoding="utf-8")
    line = f"{target / REPORT_FILE}, with tables as .tex and figures as .png and .svg next to it"
    show(line, report=str(target / REPORT_FILE), tables=[table.as_dict() for table in tables])


def _report_run(folder: str, target: Path, page: RunPage) -> None:
    text = page.html()
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / FILE_NAME, text)
    leave_card(folder, page.record)
    lines = [str(target / FILE_NAME), *(f"note: without {each}" for each in page.missing)]
    show(*lines, report=lines[0], missing=page.missing)


def _figures(log: Log) -> Iterator[tuple[str, Figure]]:
    if log.unchanged:
        yield f"quality_{log.data}", figures.quality_figure(log)
    if any(row.is_trained for row in log.unchanged):
        yield f"costs_{log.data}", figures.cost_figure(log)
        yield f"curves_{log.data}", figures.curve_figure(log)
    for length in log.ablated_lengths:
        yield f"ablations_{log.data}_{length}", figures.ablation_figure(log, length)
