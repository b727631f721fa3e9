from __future__ import annotations

import pytest

from seqrec.data.progress import Progress


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
