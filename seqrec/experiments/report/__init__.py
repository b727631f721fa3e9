"""Tables and figures of a grid: Markdown, LaTeX, PNG and SVG."""

from seqrec.experiments.report.write import report

__all__ = ["report"]
