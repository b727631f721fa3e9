"""Commands that need no model: `seqrec inspect`, `seqrec doctor` and `seqrec benchmark`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse

from seqrec import __version__
from seqrec.benchmark.catalogue import benchmark_catalogue
from seqrec.benchmark.data import benchmark_data
from seqrec.benchmark.scan import benchmark_scan
from seqrec.cli_errors import explain
from seqrec.data.inspect import describe
from seqrec.data.inspect_text import report_text
from seqrec.data.store import EventStore
from seqrec.doctor import examine


class ArgumentParser(jsonargparse.ArgumentParser):
    """Parser that refuses in one line, with what is allowed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason and exit with status 2."""
        sys.stderr.write(f"error: {explain(message, self, ex)}\n")
        raise SystemExit(2)


def inspect(store: str, *, verify: bool = True, json: bool = False) -> None:
    """Show what an event store holds, and check that it is intact.

    Args:
        store: Folder of the store.
        verify: Whether every file is hashed, which takes as long as reading them.
        json: Whether to print JSON for programs.

    Raises:
        StoreError: there is no store in the folder.
    """
    report = describe(EventStore.open(store), verify=verify)
    print(report.as_json() if json else report_text(report))
    if report.damage is not None:
        raise SystemExit(1)


def doctor(*, json: bool = False) -> None:
    """Show which backends of the fast paths this machine has, which are used, and why not the others.

    Args:
        json: Whether to print JSON for programs.
    """
    report = examine()
    print(report.as_json() if json else report.as_text())
    if not report.healthy:
        raise SystemExit(1)


COMMANDS: dict[str, Any] = {
    "inspect": inspect,
    "doctor": doctor,
    "benchmark": {"data": benchmark_data, "scan": benchmark_scan, "catalogue": benchmark_catalogue},
}


def run_command(words: Sequence[str]) -> None:
    """Run one of `COMMANDS`.

    Args:
        words: The command and its arguments.
    """
    command, *arguments = words
    jsonargparse.auto_cli(
        COMMANDS[command],
        args=arguments,
        prog=f"seqrec {command}",
        parser_class=ArgumentParser,
        version=__version__,
        allow_abbrev=False,
    )
