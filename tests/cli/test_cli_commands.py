from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqrec.cli import main
from seqrec.cli.commands import COMMANDS
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Synthetic

BENCHMARKS = list(COMMANDS["benchmark"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    prepare(Synthetic(num_users=20, num_items=30, mean_events=10), Filters(), tmp_path / "store")
    return tmp_path / "store"


def test_inspect_shows_a_store_and_says_that_it_is_intact(store: Path, capsys: pytest.CaptureFixture[str]):
    main(("inspect", str(store)))
    output = capsys.readouterr().out
    assert "users" in output
    assert "intact" in output
    main(("inspect", str(store), "--json", "true", "--verify", "false"))
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["users"] == 20
    assert not report["verified"]


def test_inspect_fails_on_a_damaged_store(store: Path, capsys: pytest.CaptureFixture[str]):
    with (store / "item_ids.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(SystemExit) as stop:
        main(("inspect", str(store)))
    assert stop.value.code == 1
    assert "item_ids.npy is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "nowhere"), "error: no event store at nowhere"),
        (("inspect", "a", "--verfy", "true"), "error: unknown argument 'verfy'; did you mean verify?"),
        (
            ("benchmark", "dat"),
            f"error: argument subcommand: invalid choice: 'dat' (choose from {', '.join(map(repr, BENCHMARKS))})",
        ),
        (("benchmark", "data", "--events", "many"), "error: events='many'"),
    ],
    ids=str,
)
def test_what_is_refused_is_said_in_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
