from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from seqrec.data.output import command_output, show
from seqrec.data.report_table import markdown, picture, report_table
from seqrec.errors import InputError

TABLE = report_table(["model", "HR@10"], [["SASRec|a", "0.25"], ["Pop"]], title="a test", notes=["one seed"])


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_a_table_is_text_with_its_title_and_notes():
    lines = ["a test", "model       HR@10", "SASRec|a     0.25", "Pop", "one seed"]
    assert str(TABLE).splitlines() == lines
    assert TABLE.as_dict()["rows"] == [["SASRec|a", "0.25"], ["Pop", ""]]
    assert str(report_table(["a", "b"], [])).split() == ["a", "b"]


def test_text_and_tables_become_markdown():
    assert markdown(["", "a_b *c*", TABLE, "two\nlines"]).split("\n\n") == [
        r"a_b \*c\*",
        "### a test",
        "| model     |   HR@10 |\n|:----------|--------:|\n| SASRec\\|a |    0.25 |\n| Pop       |         |",
        "- one seed",
        "```text\ntwo\nlines\n```\n",
    ]


def test_a_picture_has_room_for_every_line_and_column():
    pytest.importorskip("matplotlib")
    small = size(picture([report_table(["a", "b"], [["x", "1"]])]))
    longer = size(picture([report_table(["a", "b"], [["x", "1"]] * 11), "50% of $5"]))
    wider = size(picture([report_table(["a", "b" * 40], [["x", "1"]])]))
    assert longer[0] > small[0]
    assert longer[1] / small[1] == pytest.approx((13 + 1) / (2 + 1), rel=0.02)
    assert wider[0] / small[0] == pytest.approx((1 + 2 + 40 + 2) / (1 + 2 + 1 + 2), rel=0.02)


def test_standard_output_is_one_document(capfd: pytest.CaptureFixture[str]):
    with command_output("benchmark data", as_json=True):
        print("a stray line")
        os.system("echo of another process")
        show("for people", TABLE, cells=[1], rate=float("nan"))
        show(cells=[2], folder=Path("runs"))
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {
        "schema": "seqrec-benchmark-data-1",
        "cells": [1, 2],
        "rate": None,
        "folder": "runs",
    }
    assert captured.err.split("\n") == ["a stray line", "of another process", ""]


def test_people_read_lines_and_tables(capsys: pytest.CaptureFixture[str]):
    with command_output("compare"):
        show("for people", TABLE, runs=2)
    show("without a command")
    assert capsys.readouterr().out == f"for people\n{TABLE}\nwithout a command\n"


def test_files_get_what_is_shown(tmp_path: Path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("a.json", "a.md", "a.png")]
    with command_output("compare", files=list(map(str, files))):
        show(TABLE, runs=2)
    assert json.loads(files[0].read_text()) == {"schema": "seqrec-compare-1", "runs": 2}
    assert files[1].read_text() == markdown([TABLE])
    assert files[2].read_bytes() == picture([TABLE])


def test_a_command_inside_another_has_its_own_result(capsys: pytest.CaptureFixture[str]):
    with command_output("sweep", as_json=True):
        with command_output("fit"):
            show("a trial", users=9)
        show(trials=1)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema": "seqrec-sweep-1", "trials": 1}
    assert captured.err == "a trial\n"


@pytest.mark.parametrize("end", [InputError("refused"), SystemExit(2), KeyboardInterrupt()], ids=repr)
def test_what_fails_leaves_nothing(end: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        with command_output("fit", as_json=True, files=[str(tmp_path / "a.md")]):
            if not isinstance(end, SystemExit):
                show("chosen", recipe=1)
            raise end

    with pytest.raises(type(end)):
        fail()
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_result_with_a_status_is_printed(capsys: pytest.CaptureFixture[str]):
    def find_damage() -> None:
        with command_output("inspect", as_json=True):
            show("damaged", damage="it is")
            raise SystemExit(1)

    with pytest.raises(SystemExit) as stop:
        find_damage()
    assert stop.value.code == 1
    assert json.loads(capsys.readouterr().out)["damage"] == "it is"


@pytest.mark.parametrize(
    ("variable", "value"), [("RANK", "1"), ("SLURM_PROCID", "1"), ("NODE_RANK", "1"), ("WORLD_SIZE", "2")]
)
def test_of_several_processes_only_one_with_a_result_prints_and_writes(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(variable, value)
    with command_output("fit", as_json=True, files=[str(tmp_path / "a.md")]):
        print("at work")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "a.md").exists()
    with command_output("recommend", as_json=True):
        show("a table", users=9)
    assert json.loads(capsys.readouterr().out)["users"] == 9


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("a.csv", r"--table a\.csv must end in \.json, \.md or \.png"),
        ("nowhere/a.md", r"--table nowhere/a\.md is in a folder that does not exist"),
    ],
)
def test_files_are_refused_before_the_command_begins(file: str, said: str):
    with pytest.raises(InputError, match=said), command_output("fit", files=[file]):
        raise AssertionError("the command began")


def test_a_table_that_is_not_there_is_not_written_and_the_document_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with command_output("fit", as_json=True, files=[str(tmp_path / "a.md")]):
        pass
    said = capsys.readouterr()
    assert json.loads(said.out) == {"schema": "seqrec-fit-1"}
    assert "a.md is not written: the command has shown no table" in said.err


def test_a_table_without_rows_is_markdown_and_text():
    empty = report_table(["option", "value"], [], words=2)
    assert "option" in empty.as_markdown()
    assert "option" in str(empty)
