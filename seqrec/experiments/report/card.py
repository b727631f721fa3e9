"""The model card of a run: `README.md` in its folder, with a header that Hugging Face reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from seqrec.data.progress import print_line
from seqrec.data.report_table import markdown_text
from seqrec.errors import InputError
from seqrec.experiments.report.record import Facts, RunRecord, read_run
from seqrec.files import write_text
from seqrec.runs.summary import FILE_NAME as SUMMARY_FILE

FILE_NAME = "README.md"
# A file without this line is someone's own.
MARK = "<!-- Written by seqrec, which replaces this file while this line is in it. -->"


def write_card(folder: Path | str, record: RunRecord | None = None) -> Path:
    """Write the model card of a run into its folder, from the JSON files in it; see `card_of`.

    A `README.md` that was not written by this function stays as it is, with a note.

    Args:
        folder: The run's folder.
        record: What `read_run` has read of it; None reads it.

    Returns:
        The file.

    Raises:
        MissingInputError: if the folder has no `summary.json`.
        InputError: if a file is damaged or of another version.
    """
    file, text = Path(folder) / FILE_NAME, card_of(record or read_run(folder))
    if file.is_file() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
        print_line(f"note: {file} is not a model card of seqrec, and stays as it is")
    else:
        write_text(file, text)
    return file


def leave_card(folder: Path | str | None, record: RunRecord | None = None) -> None:
    """Write the model card of a run that has ended in any way; print a note if it cannot be written.

    Nothing is written without a folder, or without a summary in it: the run was refused. `record` is as for
    `write_card`.
    """
    if folder is not None and Path(folder, SUMMARY_FILE).is_file():
        try:
            write_card(folder, record)
        # It must not hide why the run ended, such as a full disk.
        except (OSError, InputError) as error:
            print_line(f"note: {folder} has no model card: {error}")


def card_of(record: RunRecord) -> str:
    """Return the model card: data, metrics next to baselines, costs, use, versions and the command, as Markdown."""
    header = yaml.safe_dump(_header(record), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{header}---\n\n{MARK}", f"# {markdown_text(record.title)}", markdown_text(record.status)]
    if record.summary.status != "finished" and record.summary.resume:
        parts.append(f"Resume it:\n\n{_fenced(record.summary.resume, 'bash')}")
    parts += ["## Data", _list(record.data), "## Metrics", *_metrics(record)]
    parts += ["## Costs", _list(record.costs), "## Use", *_use(record), "## Origin", _list(record.origin)]
    parts.append(_fenced(record.summary.command, "bash"))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _header(record: RunRecord) -> dict[str, Any]:
    model = record.summary.model
    header: dict[str, Any] = {"library_name": "seqrec", "tags": ["sequential-recommendation", model]}
    values = {name: round(value, 6) for name, value in record.values.items() if value is not None}
    if record.is_tested and values:
        source = (record.summary.data or {}).get("source", "unknown")
        result = {
            "task": {"type": "sequential-recommendation", "name": "next item"},
            "dataset": {"type": source, "name": source, "args": record.summary.protocol},
            "metrics": [{"type": name, "value": value} for name, value in values.items()],
        }
        header["model-index"] = [{"name": model, "results": [result]}]
    return header


def _metrics(record: RunRecord) -> Iterator[str]:
    if record.metrics is not None:
        yield record.metrics.as_markdown()
    if record.lists is not None:
        yield record.lists.as_markdown()
    if not record.is_tested:
        yield f"This run has no test. Make one:\n\n{_fenced(record.command('test'), 'bash')}"


def _use(record: RunRecord) -> Iterator[str]:
    if record.checkpoint is None:
        yield "This folder contains no checkpoint, so there is no model to load."
        return
    yield _fenced(
        f"import seqrec\n\nmodel = seqrec.load({record.checkpoint!r})\n"
        "model.recommend(histories, top_k=10)  # lists of the log's item ids, oldest first, or a frame",
        "python",
    )
    yield _fenced(f"{record.command('recommend')} --output recs.parquet\n{record.command('serve')}", "bash")


def _list(facts: Facts) -> str:
    return "\n".join(f"- {name}: {markdown_text(text)}" for name, text in facts)


def _fenced(text: str, language: str) -> str:
    """Return a block of code, in more backticks than the text has in a row."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
