"""The tables of reports as Markdown, LaTeX and HTML, and those of a grid: quality, costs and ablations."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from math import isnan

from tabulate import tabulate

from seqrec.experiments.grid.result import METRICS
from seqrec.experiments.report.rows import CONFIDENCE, RESAMPLES, Log, Quality, Row, judge

SIGNIFICANT = 0.05
MIB = 1 << 20
INTERVAL = f"{CONFIDENCE:.0%} interval"
TESTED = "The epoch with the best validation is tested"
PEAK_MEMORY = (
    "`peak MiB` is the memory of tensors on a GPU. On a CPU it is the memory of the process, libraries included"
)
RISING = (
    "`best after` is the number of updates of the best validation. `rising` is yes if training ended by its budget and "
    "the last validation was the best: a larger budget may be better"
)
QUALITY_NOTES = (
    f"Metrics are means over seeds and users. Intervals come from {RESAMPLES:,} bootstrap resamples of the users",
    "± is the standard deviation between seeds. Neither the intervals nor the test include it",
    "Bold marks the best model of a length",
    f"† marks a best model that beats the second in a paired sign-flip test, p < {SIGNIFICANT:g}. The p-values are not "
    "adjusted for the number of comparisons",
    TESTED,
    RISING,
)
COST_NOTES = (
    "Values are means over seeds",
    "`table`, `encoder` and `other` are numbers of parameters: of the item table, of the encoder, and of the rest, "
    "such as positions",
    PEAK_MEMORY,
    "Seconds are measured with the device synchronised",
    "`train s` includes reading. It excludes validation and checkpoints",
    "`s/epoch` counts complete epochs",
    "`val. s` is the time of all validations, `test s` that of the test",
    "`events/s` is the number of events trained on, divided by `train s`",
    TESTED,
)
TRAINING = ("seeds", "epochs", "steps", "best after", "rising")
CHANGES = "Changes are relative to the same model unchanged, user by user, with a sign-flip test"
_LATEX = {sign: rf"\{sign}" for sign in "{}$%&_#"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "'": r"\textquotesingle{}",
    "~": r"\textasciitilde{}",
    "†": r"$^\dagger$",
    "±": r"$\pm$",
}
_LATEX_TABLE = r"""\begin{table}
\centering
\caption[%s]{%s}
\label{tab:%s}
\begin{tabular}{%s}
\toprule
%s \\
\midrule
%s
\bottomrule
\end{tabular}
\end{table}
"""


@dataclass(frozen=True)
class Entry:
    """One cell of a table: its text, and whether it is bold."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class ReportTable:
    """A table with its notes, which hold for all rows or explain signs.

    `name` is that of its file, and its label in LaTeX. The first `words` columns contain words, the others figures.

    Example:
        >>> rows = ((Entry("SASRec"), Entry("0.14", bold=True)),)
        >>> table = ReportTable("quality", "Quality", ("model", "NDCG"), 1, rows, ("One seed",))
        >>> print(table.as_markdown().splitlines()[2])
        | model   |     NDCG |
    """

    name: str
    title: str
    columns: tuple[str, ...]
    words: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]

    def as_markdown(self) -> str:
        """Return Markdown, with the notes as a list below."""
        alignment = ["left"] * self.words + ["right"] * (len(self.columns) - self.words)
        texts = [[(markdown_text(entry.text), entry.bold) for entry in row] for row in self.rows]
        rows = [[f"**{text}**" if bold else text for text, bold in row] for row in texts]
        table = tabulate(rows, self.columns, tablefmt="pipe", disable_numparse=True, colalign=alignment)
        return "\n".join([f"### {self.title}", "", table, "", *(f"- {note}" for note in self.notes), ""])

    def as_html(self) -> str:
        """Return a `table` with its title as the caption, in an element that scrolls, and the notes as a list below."""
        heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        lines = []
        for row in self.rows:
            texts = [f"<b>{html.escape(e.text)}</b>" if e.bold else html.escape(e.text) for e in row]
            words = [f'<th scope="row">{texts[0]}</th>', *(f'<td class="word">{text}</td>' for text in texts[1:])]
            cells = [*words[: self.words], *(f"<td>{text}</td>" for text in texts[self.words :])]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        title, body = html.escape(self.title), "\n".join(lines)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        # With the keyboard, too, a wide table is scrolled on a narrow screen.
        return (
            f'<div class="wide" role="region" tabindex="0" aria-label="{title}">\n<table><caption>{title}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
            + (f"<ul>{notes}</ul>\n" if notes else "")
        )

    def as_latex(self) -> str:
        """Return a `table` of the package `booktabs`, with the notes in its caption; LaTeX of 2020 or newer."""
        form = "l" * self.words + "r" * (len(self.columns) - self.words)
        lines = []
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if before is not None and before[0].text != row[0].text:
                lines.append(r"\midrule")
            cells = (rf"\textbf{{{_escaped(e.text)}}}" if e.bold else _escaped(e.text) for e in row)
            lines.append(" & ".join(cells) + r" \\")
        caption = " ".join(f"{_escaped(part)}." for part in (self.title, *self.notes))
        heads = " & ".join(map(_escaped, self.columns))
        return _LATEX_TABLE % (_escaped(self.title), caption, self.name, form, heads, "\n".join(lines))


def markdown_text(text: str) -> str:
    r"""Return text that Markdown shows as it is, in one line.

    Example:
        >>> print(markdown_text("a|b <i>"))
        a\|b &lt;i&gt;
    """
    return re.sub(r"[\\`*\[\]|]", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def quality_table(log: Log) -> ReportTable | None:
    """Return the metrics of all lengths and models of a log; None if only ablations have results."""
    if not log.unchanged:
        return None
    rows: list[tuple[Entry, ...]] = []
    tested: list[str] = []
    for length in log.lengths:
        quality = judge(log.at(length))
        marks = [""] * len(METRICS)
        for metric, name in enumerate(METRICS):
            if len(quality.rows) > 1:
                first, second = quality.places(metric)[:2]
                p_value = quality.p_value(first, second, metric)
                marks[metric] = "†" if p_value < SIGNIFICANT else ""
                pair = f"{quality.rows[first].name} over {quality.rows[second].name}"
                tested.append(f"{name} at {length:,}: {pair}, p = {p_value:.4f}")
        for number, row in enumerate(quality.rows):
            cells = _name(row)
            for metric, mark in enumerate(marks):
                is_best = number == quality.places(metric)[0]
                deviation = quality.deviations[number, metric]
                cells.append(Entry(f"{quality.means[number, metric]:.4f}{mark if is_best else ''}", is_best))
                cells.append(_interval(quality, number, metric))
                cells.append(Entry("" if isnan(deviation) else f"{deviation:.4f}"))
            rows.append((*cells, *_training(row)))
    heads = [head for metric in METRICS for head in (metric, INTERVAL, "± seeds")]
    compared = [f"Best compared with second: {'; '.join(tested)}"] if tested else []
    columns = ("length", "model", *heads, *TRAINING)
    notes = (*QUALITY_NOTES, *compared, *log.missing(), *log.terms(log.unchanged))
    title = f"{log.data}: quality by history length"
    return ReportTable(f"quality_{log.data}", title, columns, 2, tuple(rows), notes)


def ablation_table(log: Log) -> ReportTable | None:
    """Return changed models next to the unchanged ones; None if a log has no ablations."""
    rows: list[tuple[Entry, ...]] = []
    shown: list[Row] = []
    metric = METRICS.index("NDCG@10")
    for length in log.ablated_lengths:
        changed = log.at(length, ablated=True)
        shown += changed
        quality = judge(changed)
        names = {(row.model, row.ablation): number for number, row in enumerate(changed)}
        for number, row in enumerate(changed):
            unchanged = names.get((row.model, ""))
            change = [Entry(""), Entry("")]
            if unchanged not in (None, number):
                assert unchanged is not None
                difference = quality.means[number, metric] - quality.means[unchanged, metric]
                p_value = quality.p_value(number, unchanged, metric)
                change = [Entry(f"{difference:+.4f}"), Entry(f"{p_value:.4f}")]
            mean = Entry(f"{quality.means[number, metric]:.4f}")
            rows.append((*_name(row), mean, _interval(quality, number, metric), *change, *_training(row)))
    if not rows:
        return None
    columns = ("length", "model", "NDCG@10", INTERVAL, "change", "p", *TRAINING)
    notes = (CHANGES, TESTED, *log.terms(shown))
    return ReportTable(f"ablations_{log.data}", f"{log.data}: ablations", columns, 2, tuple(rows), notes)


def cost_table(log: Log) -> ReportTable | None:
    """Return memory, time and parameters of all trained models of a log; None if none is trained."""
    shown = [row for row in log.unchanged if row.is_trained]
    if not shown:
        return None
    parts = ("table", "encoder", "other")
    times = ("train s", "s/epoch", "val. s", "test s", "events/s")
    rows = []
    for row in shown:
        texts = [f"{row.runs[0][f'{part}_parameters']:,}" for part in parts]
        texts += [f"{row.mean('peak_memory') / MIB:,.0f}", f"{row.mean('train_seconds'):,.1f}"]
        texts += ["" if isnan(row.epoch_seconds) else f"{row.epoch_seconds:,.1f}"]
        texts += [f"{row.mean('validation_seconds'):,.1f}", f"{row.mean('test_seconds'):,.2f}"]
        texts += [f"{row.mean('events_per_second'):,.0f}", row.span("epochs"), row.span("steps")]
        rows.append((*_name(row), *map(Entry, texts)))
    columns = ("length", "model", *parts, "peak MiB", *times, "epochs", "steps")
    title, notes = f"{log.data}: costs by history length", (*COST_NOTES, *log.terms(shown))
    return ReportTable(f"costs_{log.data}", title, columns, 2, tuple(rows), notes)


def _name(row: Row) -> list[Entry]:
    return [Entry(f"{row.length:,}"), Entry(row.name)]


def _interval(quality: Quality, number: int, metric: int) -> Entry:
    low, high = quality.intervals[number, metric]
    return Entry(f"{low:.4f} to {high:.4f}")


def _training(row: Row) -> list[Entry]:
    counts = (row.span(name) if row.is_trained else "" for name in ("epochs", "steps"))
    return [Entry(text) for text in (f"{len(row.runs)}", *counts, row.best_after, row.rising)]


def _escaped(text: str) -> str:
    plain = text.replace("`", "")
    escaped = re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], plain)
    # Two hyphens would become a dash.
    return re.sub("-(?=-)", "-{}", escaped)
