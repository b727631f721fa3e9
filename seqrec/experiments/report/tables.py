"""Tables that become Markdown and LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "'": r"\textquotesingle{}",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "#": r"\#",
    "~": r"\textasciitilde{}",
    "†": r"$^\dagger$",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        text: What stands there.
        bold: Whether it stands out.
    """

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table with all that must stand beside it.

    Attributes:
        name: Of its file, and its label in LaTeX.
        title: One line.
        columns: Heads.
        words: How many of the columns, from the left, hold words; the others hold figures.
        rows: As many entries each as there are columns.
        notes: RecommendOptions that hold for all rows, and what signs mean.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    words: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]

    def as_markdown(self) -> str:
        """With the notes as a list behind it."""
        marks = ["---"] * self.words + ["---:"] * (len(self.columns) - self.words)
        lines = [self.columns, marks]
        lines += [[f"**{entry.text}**" if entry.bold else entry.text for entry in row] for row in self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n".join([f"### {self.title}", "", table, "", *(f"- {note}" for note in self.notes), ""])

    def as_latex(self) -> str:
        """A `table` of the package `booktabs`, with the notes in its caption; LaTeX of 2020 or newer."""
        form = "l" * self.words + "r" * (len(self.columns) - self.words)
        heads = " & ".join(map(_escaped, self.columns))
        lines = []
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if before is not None and before[0].text != row[0].text:
                lines.append(r"\midrule")
            cells = (rf"\textbf{{{_escaped(e.text)}}}" if e.bold else _escaped(e.text) for e in row)
            lines.append(" & ".join(cells) + r" \\")
        caption = " ".join(f"{_escaped(part)}." for part in (self.title, *self.notes))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption[{_escaped(self.title)}]{{{caption}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{{form}}}",
                r"\toprule",
                rf"{heads} \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def _escaped(text: str) -> str:
    plain = text.replace("`", "")
    escaped = re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], plain)
    # Two hyphens would become a dash.
    return re.sub("-(?=-)", "-{}", escaped)
