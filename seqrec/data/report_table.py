"""Tables of results as plain text, Markdown, HTML, LaTeX and pictures."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Size of the letters of a picture in points, their width as a share of it, the height of a line, dots per inch.
_POINTS, _WIDTH, _HEIGHT, _DPI = 9.0, 0.6021, 1.4, 200
# Characters of a line of text in a picture, if its tables are narrower.
_LINE = 100
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
    Without a title none is shown.

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

    def __str__(self) -> str:
        """Return plain text: the title, the table and the notes, a line each."""
        lines = self._tabulated([[entry.text for entry in row] for row in self.rows], "plain").splitlines()
        return "\n".join([*filter(None, [self.title]), *(line.rstrip() for line in lines), *self.notes])

    def _tabulated(self, rows: list[list[str]], form: str) -> str:
        from tabulate import tabulate  # commands without a table do not wait for it

        alignment = ["left"] * self.words + ["right"] * (len(self.columns) - self.words)
        options: Any = {"tablefmt": form, "disable_numparse": True, "colalign": alignment if rows else None}
        return tabulate(rows, self.columns, **options)

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain values, for JSON."""
        return {**asdict(self), "rows": [[entry.text for entry in row] for row in self.rows]}

    def as_markdown(self) -> str:
        """Return Markdown, with the notes as a list below."""
        texts = [[(markdown_text(entry.text), entry.bold) for entry in row] for row in self.rows]
        rows = [[f"**{text}**" if bold else text for text, bold in row] for row in texts]
        table = self._tabulated(rows, "pipe")
        title = [f"### {self.title}", ""] if self.title else []
        return "\n".join([*title, table, "", *(f"- {note}" for note in self.notes), ""])

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


def report_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    name: str = "table",
    words: int = 1,
    title: str = "",
    notes: Sequence[str] = (),
) -> ReportTable:
    """Return a table of texts; a short row is filled with empty cells.

    Example:
        >>> print(report_table(["model", "HR@10"], [["SASRec", "0.25"], ["Pop", "0.1"]]))
        model      HR@10
        SASRec      0.25
        Pop          0.1
    """
    filled = ([*row, *[""] * (len(columns) - len(row))] for row in rows)
    return ReportTable(name, title, tuple(columns), words, tuple(tuple(map(Entry, row)) for row in filled), (*notes,))


Part = str | ReportTable


def markdown(parts: Sequence[Part]) -> str:
    """Return text and tables as Markdown; text of several lines becomes a block of code."""
    blocks = []
    for part in parts:
        if isinstance(part, ReportTable):
            blocks.append(part.as_markdown().rstrip())
        elif text := part.strip("\n"):
            blocks.append(f"```text\n{text}\n```" if "\n" in text else markdown_text(text))
    return "\n\n".join(blocks) + "\n"


def picture(parts: Sequence[Part]) -> bytes:
    """Return text and tables as a PNG, black on white, with letters of one width."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    lines = [line for part in parts for line in (_lines(part) if isinstance(part, str) else _table_lines(part))]
    columns = max(place + (0 if is_right else len(text)) for spans, _ in lines for place, text, is_right, _ in spans)
    width, height = (columns + 2) * _POINTS * _WIDTH, (len(lines) + 1) * _POINTS * _HEIGHT
    figure = Figure(figsize=(width / 72, height / 72))
    for number, (spans, ruled) in enumerate(lines, start=1):
        y = 1 - number * _POINTS * _HEIGHT / height
        for place, text, is_right, is_bold in spans:
            options: Any = {"ha": "right" if is_right else "left", "weight": "bold" if is_bold else "normal"}
            options |= {"family": "DejaVu Sans Mono", "size": _POINTS, "parse_math": False}
            figure.text((place + 1) * _POINTS * _WIDTH / width, y, text, **options)
        if ruled:
            ends = [(place + 1) * _POINTS * _WIDTH / width for place in (0, ruled)]
            rule = [y - 0.3 * _POINTS / height] * 2
            figure.add_artist(Line2D(ends, rule, color="black", linewidth=0.6))
    file = io.BytesIO()
    # The library draws no larger ones.
    dpi = min(_DPI, 65_000 / max(figure.get_size_inches()))
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


# Place of a text in characters, the text, whether it ends there, whether it is bold; characters of a rule below all.
_Line = tuple[list[tuple[int, str, bool, bool]], int]


def _lines(text: str, *, bold: bool = False, width: int = _LINE) -> list[_Line]:
    wrapped = (textwrap.wrap(line, width) or [""] for line in text.split("\n"))
    return [([(0, line, False, bold)], 0) for lines in wrapped for line in lines]


def _table_lines(table: ReportTable) -> list[_Line]:
    rows = [[Entry(name, bold=True) for name in table.columns], *table.rows]
    widths = [max(len(row[number].text) for row in rows) for number in range(len(table.columns))]
    starts = [sum(widths[:number]) + 2 * number for number in range(len(widths))]
    end, found = starts[-1] + widths[-1], list[_Line]()
    for row in rows:
        spans = [
            (start if number < table.words else start + width, entry.text, number >= table.words, entry.bold)
            for number, (start, width, entry) in enumerate(zip(starts, widths, row, strict=True))
        ]
        found.append((spans, end if row is rows[0] else 0))
    width = max(_LINE, end)
    title = _lines(table.title, bold=True, width=width) if table.title else []
    return [*title, *found, *(line for note in table.notes for line in _lines(note, width=width))]


def markdown_text(text: str) -> str:
    r"""Return text that Markdown shows as it is, in one line.

    Example:
        >>> print(markdown_text("a|b <i>"))
        a\|b &lt;i&gt;
    """
    return re.sub(r"[\\`*\[\]|]", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def _escaped(text: str) -> str:
    plain = text.replace("`", "")
    escaped = re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], plain)
    # Two hyphens would become a dash.
    return re.sub("-(?=-)", "-{}", escaped)
