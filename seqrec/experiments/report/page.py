"""The page of a run: one HTML file without scripts or requests, which opens anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

import numpy as np
import polars

from seqrec.data.progress import Progress
from seqrec.data.report_table import report_table
from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.report import interval_text
from seqrec.evaluation.results import Results, compare, read_results
from seqrec.experiments.report.charts import dot_chart, line_chart, read_curves
from seqrec.experiments.report.examples import Event, Example, make_examples
from seqrec.experiments.report.record import Facts, RunRecord
from seqrec.models.baselines.comparison import DECIDING, METRICS
from seqrec.models.explain import Method

FILE_NAME = "report.html"
# Slices are of so many users at most, who are drawn from all.
SAMPLED_USERS = 100_000
_WHY: dict[Method, str] = {
    "leave_one_out": "the bar below an event is how much it raises the score of the first recommendation: the score "
    "falls by that if the event is left out",
    "gradient_x_input": "the bar below an event is the gradient of the first recommendation's score by the event, "
    "times the event",
}
_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #57606a; --rule: #d0d7de; --box: #f6f8fa;
  --c0: #0b62ad; --c1: #b1440e; --less: #b1440e; --good: #0a6b34; }
@media (prefers-color-scheme: dark) { :root { --back: #0f1419; --text: #e6edf3; --soft: #9da7b3; --rule: #3a424c;
  --box: #1a2028; --c0: #6cb6ff; --c1: #ffa657; --less: #ffa657; --good: #56d364; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 0.5rem; }
h2, footer { border-top: 1px solid var(--rule); padding-top: 0.75rem; }
h3 { font-size: 1rem; margin: 0 0 0.5rem; } p, ul, ol { margin: 0.5rem 0; } ul, ol { padding-left: 1.5rem; }
a { color: var(--c0); } nav a { display: inline-block; margin-right: 1rem; }
:focus-visible { outline: 2px solid var(--c0); }
.soft, caption, figcaption, dt, footer, ul { color: var(--soft); } .good { color: var(--good); font-weight: 600; }
.missing { border-left: 4px solid var(--c1); padding: 0.25rem 0.75rem; background: var(--box); }
pre { background: var(--box); padding: 0.75rem; white-space: pre-wrap; margin: 0.5rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.25rem; } th, td { padding: 0.3rem 0.6rem; text-align: right;
  border-bottom: 1px solid var(--rule); white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); } th:first-child, td.word { text-align: left; padding-left: 0; }
th:first-child { position: sticky; left: 0; background: var(--back); }
tbody th { white-space: normal; min-width: 8.5rem; overflow-wrap: normal; }
td b, th b { font-weight: 700; }
.pair { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0.5rem 0; max-width: 34rem; } svg { width: 100%; display: block; }
svg text { font-size: 11px; fill: var(--text); } svg path { fill: none; } .grid { stroke: var(--rule); }
.best { stroke: var(--soft); stroke-dasharray: 2 3; } .line { stroke-width: 2; } .line.c1 { stroke-dasharray: 6 3; }
path.c0 { stroke: var(--c0); } path.c1 { stroke: var(--c1); }
circle.c0 { fill: var(--c0); } circle.c1 { fill: var(--c1); }
.key { margin-left: 0.75rem; } .key::before { content: ""; display: inline-block; width: 1.5rem; margin-right: 0.3rem;
  border-top: 3px solid var(--c0); vertical-align: middle; } .key.c1::before { border-top: 3px dashed var(--c1); }
dl { display: grid; align-content: start;
  grid-template-columns: minmax(6rem, auto) 1fr; gap: 0.25rem 1rem; margin: 0.5rem 0; }
dd { margin: 0; }
article { border: 1px solid var(--rule); padding: 1rem; margin: 1rem 0; }
article ol { color: var(--text); padding-left: 3.5rem; }
.bar { display: block; height: 4px; background: var(--c0); } .bar.less { background: var(--less); }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{status}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{sections}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


@dataclass
class RunPage:
    """The page of a run, section by section. A section without its data states what is missing, and how to make it.

    Args:
        record: What the run's folder records.
        examples: Number of users with recommendations on the page; 0 loads no model.
        store: Folder of the event store that the model was trained on; None is the folder that it had then.
        progress: Shows which sections are made.

    Attributes:
        missing: What is missing, a line each, after `html` was called.
    """

    record: RunRecord
    examples: int = 6
    store: str | None = None
    progress: Progress = field(default_factory=Progress)
    missing: list[str] = field(default_factory=list)

    def html(self) -> str:
        """Return the page."""
        self._results = self._try_results()
        makers: dict[str, Callable[[], str]] = {
            "Metrics": self._metrics,
            "Learning curves": self._curves,
            "Metrics by slice": self._slices,
            "Examples": self._examples,
            "Data and costs": lambda: f'<div class="pair">{_list(self.record.data)}{_list(self.record.costs)}</div>',
            "Origin": lambda: _list(self.record.origin) + _command(self.record.summary.command),
        }
        if not self.examples:
            del makers["Examples"]
        names = {title: title.lower().replace(" ", "-") for title in makers}
        sections = [
            f'<section aria-labelledby="{names[title]}">\n<h2 id="{names[title]}">{title}</h2>\n'
            f"{self._section(title, make)}</section>"
            for title, make in self.progress.each("page", makers.items(), "sections")
        ]
        summary = self.record.summary
        return _PAGE.format(
            title=escape(self.record.title),
            style=_STYLE,
            status=escape(self.record.status),
            links="".join(f'<a href="#{name}">{title}</a> ' for title, name in names.items()),
            sections="\n".join(sections),
            footer=f"{escape(str(self.record.folder))}, written {escape(summary.updated)}",
        )

    def _section(self, title: str, make: Callable[[], str]) -> str:
        try:
            return make()
        except (InputError, OSError, polars.exceptions.PolarsError) as error:
            reason = " ".join(str(error).split())
            self.missing.append(f"{title}: {reason}")
            return f'<p class="missing">{escape(reason)}</p>\n'

    def _try_results(self) -> Results | Exception:
        try:
            return read_results(self.record.folder)
        except MissingInputError:
            return MissingInputError(
                "The run has no ranks user by user. Test it, and report the folder that the test prints: "
                f"{self.record.command('test')} --results.write true"
            )
        except (InputError, OSError, polars.exceptions.PolarsError) as error:
            return error

    def _metrics(self) -> str:
        tables = (self.record.metrics, self.record.lists)
        table = "".join(each.as_html() for each in tables if each is not None)
        if self.record.is_tested:
            return table
        self.missing.append(f"Metrics: the run has no test: {self.record.command('test')}")
        return f'{table}<p class="missing">The run has no test. Make one:</p>\n{_command(self.record.command("test"))}'

    def _curves(self) -> str:
        losses, metrics = read_curves(self.record.folder)
        best = (self.record.summary.best or {}).get("step")
        charts = [line_chart("Training loss", losses, from_zero=False, best=best)] if losses else []
        charts += [line_chart("Validation", metrics, from_zero=True, best=best)] if metrics else []
        if not charts:
            return "<p>The command trained on nothing, or ended before its first update was logged.</p>\n"
        resumed = self.record.summary.resumed_from
        note = f"<p>The curves start where the run was resumed: {escape(resumed)}</p>\n" if resumed else ""
        return f'{note}<div class="pair">{"".join(charts)}</div>\n'

    def _slices(self) -> str:
        results = self._needed_results()
        users = results.num_users
        if users > SAMPLED_USERS:
            kept = np.zeros(users, bool)
            kept[np.random.default_rng(0).choice(users, SAMPLED_USERS, replace=False)] = True
            results = results.only(kept[results.rows])
        estimates = compare([results], metrics=METRICS, slices=True).estimates
        hits, gains = ([each for each in estimates if each.metric == metric] for metric in METRICS)
        rows = [
            (g.slice, f"{g.users:,}", f"{h.mean:.4f}", f"{g.mean:.4f}", interval_text(g.interval))
            for h, g in zip(hits, gains, strict=True)
        ]
        notes = ["A user counts in each slice that contains one of its targets, with these targets only"]
        if users > SAMPLED_USERS:
            notes.append(f"{SAMPLED_USERS:,} of {users:,} users, drawn with seed 0")
        columns = ("slice", "users", *METRICS, f"{DECIDING}, 95% interval")
        table = report_table(columns, rows, name="slices", title="Users and items of the test", notes=notes)
        chart = dot_chart(f"{DECIDING}, with 95% intervals", [(g.slice, g.mean, g.interval) for g in gains])
        return chart + table.as_html()

    def _examples(self) -> str:
        if self.record.checkpoint is None:
            raise MissingInputError(
                "The run has no checkpoint, so no model can be loaded. Train it again: " + self.record.summary.command
            )
        results = self._results if isinstance(self._results, Results) else None
        where = self.record.checkpoint
        found = make_examples(where, results, self.examples, store=self.store, progress=self.progress)
        about = [f"{len(found.users)} users, drawn with seed 0"]
        about += [] if results else ["by their whole histories, as the run has no ranks user by user"]
        about += [_WHY[found.method]] if found.method else ["this model has no explanations"]
        hint = (
            "items have no titles: prepare the log with a table of items and --data.schema.items '{title: categorical}'"
        )
        about += [] if found.titles else [hint]
        return f"<p>{escape('; '.join(about))}.</p>\n{''.join(map(_example, found.users))}"

    def _needed_results(self) -> Results:
        if isinstance(self._results, Results):
            return self._results
        raise self._results


def _example(example: Example) -> str:
    shown = f"the newest {len(example.events)} of {example.length:,}" if example.length > len(example.events) else "all"
    most = max((abs(event.contribution or 0) for event in example.events), default=0) or 1.0
    events = "".join(f"<li>{escape(event.item)}{_bar(event, most)}</li>" for event in example.events)
    mark = ' <span class="good">held out</span>'
    recommended = "".join(
        f'<li>{escape(item)} <span class="soft">{score:.3f}</span>{mark if hit else ""}</li>'
        for item, score, hit in example.recommended
    )
    targets = "; ".join(f"{item}, rank {rank} in the test" for item, rank in example.targets)
    held_out = f"<p>Held out: {escape(targets)}</p>\n" if targets else ""
    start = example.length - len(example.events) + 1
    return (
        f"<article>\n<h3>User {escape(example.user)}</h3>\n{held_out}"
        f'<div class="pair"><div><p class="soft">History ({shown}), oldest first</p>\n'
        f'<ol start="{start}">{events}</ol></div>\n'
        f'<div><p class="soft">Recommended, with scores</p><ol>{recommended}</ol></div></div>\n</article>\n'
    )


def _bar(event: Event, most: float) -> str:
    if event.contribution is None:
        return ""
    share = 100 * abs(event.contribution) / most
    less = " less" if event.contribution < 0 else ""
    bar = f'<span class="bar{less}" style="width: {share:.0f}%"></span>'
    return f' <span class="soft">{event.contribution:+.3f}</span>{bar}'


def _list(facts: Facts) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in facts)}</dl>\n"


def _command(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>\n"
