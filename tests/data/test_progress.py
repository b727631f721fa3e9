from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from captured import captured

from seqrec.cli import main
from seqrec.data.prepare import Filters, prepare
from seqrec.data.progress import Progress, Status
from seqrec.data.sources import Synthetic


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("seqrec.data.progress.time", clock)
    return clock


def test_a_stage_tells_rows_rate_and_time_left(clock: Clock):
    lines: list[str] = []
    for _ in Progress(lines.append, interval=5).track("reading", 4 * [range(30)], total=1000):
        clock.now += 3
    assert lines == [
        "reading ...",
        "reading: 60 rows, 10 rows/s, 6%, about 2 min left",
        "reading: 120 rows, 10 rows/s, 12%, about 88 s left",
        "reading: 120 rows, 12.0 s, 10 rows/s",
    ]


def test_no_time_left_is_promised_without_a_total_or_beyond_it(clock: Clock):
    for total in (None, 5):
        lines: list[str] = []
        for _ in Progress(lines.append, interval=1).track("reading", [range(10)], total=total):
            clock.now += 2
        assert lines[1] == "reading: 10 rows, 5 rows/s"


def test_a_stage_that_fails_is_not_summed_up():
    lines: list[str] = []
    with pytest.raises(ZeroDivisionError):
        [1 // len(part) for part in Progress(lines.append).track("reading", [range(10), []])]
    assert lines == ["reading ..."]


def test_silence_by_default(capsys: pytest.CaptureFixture[str]):
    progress = Progress()
    assert list(progress.track("reading", ["abc"])) == ["abc"]
    progress.note("three rows left out")
    assert capsys.readouterr().out == ""


def on_terminal(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What work writes to standard error if that is a terminal of 40 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    return captured(work, terminal=True)[1]


def read_parts(clock: Clock, seconds: int) -> None:
    """Read ten parts, which take some seconds each."""
    for _ in Progress(Status()).track("reading", 10 * [range(300)], total=3000):
        clock.now += seconds


def test_on_a_terminal_a_line_replaces_the_one_before(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CI", raising=False)
    shown = on_terminal(lambda: read_parts(clock, 3), monkeypatch)
    first, *replaced, last, end = shown.removeprefix("\r").split("\r")
    assert first == "reading ...\x1b[K"
    assert len(replaced) == 10
    assert replaced[0] == "reading: 300 rows, 100 rows/s, 10%, abo\x1b[K"
    assert (last, end) == ("\x1b[Kreading: 3,000 rows, 30.0 s, 100 rows/s", "\n")


def test_elsewhere_a_stage_shows_a_line_a_minute_and_its_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    read_parts(clock, 20)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "reading: 900 rows, 15 rows/s, 30%, about 2 min left",
        "reading: 1,800 rows, 15 rows/s, 60%, about 80 s left",
        "reading: 2,700 rows, 15 rows/s, 90%, about 20 s left",
        "reading: 3,000 rows, 200.0 s, 15 rows/s",
    ]


def test_a_terminal_is_quiet_in_ci(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI", "1")
    assert on_terminal(lambda: read_parts(clock, 20), monkeypatch).count("\r\n") == 4


def test_a_command_shows_progress_next_to_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("CI", raising=False)
    prepare(Synthetic(num_users=9, num_items=9, mean_events=6), Filters(), tmp_path / "store")
    end = r"checking: [\d,]+ bytes, \d+\.\d s, [\d,]+ bytes/s\r?\n"
    on_terminal, shown = captured(lambda: main(["inspect", str(tmp_path / "store")]), terminal=True)
    assert re.fullmatch(rf"\rchecking \.\.\.\x1b\[K\r(.*\r)*\x1b\[K{end}", shown)
    result = on_terminal.replace("\r\n", "\n")
    main(["inspect", str(tmp_path / "store")])
    elsewhere = capsys.readouterr()
    assert re.fullmatch(end, elsewhere.err)
    assert elsewhere.out == result
    assert result.startswith(str(tmp_path))


def test_slow_work_has_seconds_for_each(clock: Clock):
    lines: list[str] = []
    stage = Progress(lines.append, interval=1).stage("grid", 10, done=4, unit="cells")
    clock.now += 100
    stage.refresh("one is running")
    stage.advance_to(6)
    for seconds in (20, 30):
        clock.now += seconds
        stage.refresh()
    assert lines == [
        "grid ...",
        "grid: 4 cells, 40%, one is running",
        # The seventh has run for 20 seconds, then for as long as those before.
        "grid: 6 cells, 50 s each, 60%, about 3 min left",
        "grid: 6 cells, 50 s each, 60%, about 2 min left",
    ]


def test_lines_about_units_that_took_long_stay_on_a_terminal_and_are_rare_elsewhere(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def measure() -> None:
        stage = Progress(Status()).stage("grid", 3, unit="cells")
        for cell in "abc":
            clock.now += 40
            stage.complete(1, cell)

    measure()
    assert capsys.readouterr().err.splitlines() == ["grid: 2 cells, 40 s each, 67%, about 40 s left, b"]
    monkeypatch.delenv("CI", raising=False)
    shown = on_terminal(measure, monkeypatch).split("\x1b[K")
    assert [line for line in shown[-1].split("\r\n") if line] == [
        "grid: 1 cells, 40 s each, 33%, about 80 s left, a",
        "grid: 2 cells, 40 s each, 67%, about 40 s left, b",
        "grid: 3 cells, 40 s each, c",
    ]


def test_some_lines_of_many_are_left_out_off_the_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]):
    progress = Progress(Status())
    for second in range(130):
        clock.now += 1
        progress.update(f"after {second} s")
    assert capsys.readouterr().err.split("\n") == ["after 59 s", "after 119 s", ""]
