"""The output of commands: tables and text for people, or one JSON document, and both as files.

Each command calls `show`, once or a few times. The options `--json` and `--table` of every command decide what becomes
of it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrec.data.progress import STATUS, print_line
from seqrec.data.report_table import Part, markdown, picture
from seqrec.errors import InputError, MissingInputError
from seqrec.files import write_bytes, write_text

# Kinds of files with tables, by the ends of their names.
KINDS = (".json", ".md", ".png")


def show(*parts: Part, **content: Any) -> None:
    """Print a part of a command's result, and keep it for `--json` and `--table`.

    Args:
        *parts: Lines of text and tables, as people read them; with `--json` they are not printed.
        **content: The same as plain values, for the JSON document. A list is added to one of the same name.

    Example:
        >>> with command_output("compare", as_json=True):
        ...     show("nobody reads this", runs=["a"])
        ...     show(runs=["b"], users=float("nan"))
        {
          "schema": "seqrec-compare-1",
          "runs": [
            "a",
            "b"
          ],
          "users": null
        }
    """
    command = _running[-1] if _running else None
    if command is not None:
        command.keep(parts, content)
    if parts and not (command is not None and command.as_json):
        print_line("\n".join(map(str, parts)))


@contextmanager
def command_output(name: str, *, as_json: bool = False, files: Sequence[str] = ()) -> Iterator[None]:
    """Collect what a command shows, and at its end write it to files, and print it as one JSON document if asked.

    With `as_json` nothing else goes to standard output: what the command prints otherwise goes to standard error, also
    from the processes that it starts. Of a job of several processes only those that show something write and print. A
    command that
    fails leaves neither a document nor files, except one that has shown a result and exits with a status of its own.

    Args:
        name: Name of the command; the document's `schema` is made of it.
        as_json: Whether the document is printed.
        files: Files for the result, of the kinds `KINDS`.

    Raises:
        InputError: if a file is of another kind or in a folder that does not exist, or the command shows nothing.
        MissingInputError: if a picture is asked for, and matplotlib is not installed.
    """
    places = [_checked(file) for file in files]
    command = _Command(f"seqrec-{name.replace(' ', '-')}-1", as_json)
    stop: SystemExit | None = None
    _running.append(command)
    try:
        with _without_stdout() if as_json else nullcontext():
            try:
                yield
            except SystemExit as end:
                # Of a command that was refused, or stopped by a signal, this is no result.
                if type(end) is not SystemExit or end.__context__ is not None or not command.content:
                    raise
                stop = end
    finally:
        _running.remove(command)
        STATUS.clear()
    if command.content or command.parts or not _is_one_of_several():
        for place in places:
            command.write(place)
        if as_json:
            print(command.document())
    if stop is not None:
        raise stop


@dataclass(eq=False)
class _Command:
    """The output of a command so far."""

    schema: str
    as_json: bool
    parts: list[Part] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)

    def keep(self, parts: Sequence[Part], content: Mapping[str, Any]) -> None:
        self.parts += parts
        for key, value in content.items():
            known = self.content.get(key)
            self.content[key] = [*known, *value] if isinstance(known, list) else value

    def document(self) -> str:
        content = _plain({"schema": self.schema, **self.content})
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def write(self, place: Path) -> None:
        if place.suffix == ".json":
            write_text(place, self.document() + "\n")
            return
        if not self.parts:
            sys.stderr.write(f"note: {place} is not written: the command has shown no table\n")
        elif place.suffix == ".md":
            write_text(place, markdown(self.parts))
        else:
            write_bytes(place, picture(self.parts))


# The commands that are running, one inside the other: a sweep calls `fit` for each trial.
_running: list[_Command] = []


def _checked(file: str) -> Path:
    place = Path(file)
    if place.suffix not in KINDS:
        raise InputError(f"--table {file} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not place.absolute().parent.is_dir():
        raise InputError(f"--table {file} is in a folder that does not exist; make it first")
    if place.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise MissingInputError(f'--table {file} needs matplotlib; install it: pip install "seqrec[report]"')
    return place


@contextmanager
def _without_stdout() -> Iterator[None]:
    """Send to standard error what this process and those that it starts print."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        # Of a logger that kept the file object, for one.
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _is_one_of_several() -> bool:
    """Return whether a launcher has started more processes than this one for the same job."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    sizes = ("WORLD_SIZE", "SLURM_NTASKS")
    return any(os.environ.get(name, "0") != "0" for name in ranks) or any(
        os.environ.get(name, "1") not in ("0", "1") for name in sizes
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: a number that is not finite becomes None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):  # a number of numpy, which is not imported for this
        return _plain(value.item())
    return str(value) if isinstance(value, Path) else value
