from __future__ import annotations

from pathlib import Path

import measured_functions
import pytest

from seqrec.benchmark import measured_child
from seqrec.benchmark.measured_child import MemoryLimitError, anonymous_bytes, machine_bytes, run_measured
from seqrec.errors import InputError

if not Path("/proc/self/status").exists():
    pytest.skip("memory is read from /proc", allow_module_level=True)

MIB = 1 << 20


def test_memory_that_was_given_back_is_in_the_peaks():
    measured = run_measured(measured_functions.hold, {"size": 300 * MIB})
    assert measured.value == 300 * MIB
    assert 300 * MIB < measured.peak_anonymous < 400 * MIB
    assert measured.peak_resident > 300 * MIB
    assert measured.anonymous_before < 100 * MIB
    assert measured.seconds > 0


@pytest.mark.parametrize("function", [measured_functions.hold, measured_functions.hold_with_polars])
def test_a_process_that_asks_for_more_than_its_limit_is_ended(function):
    measured = run_measured(function, {"size": 100 * MIB}, memory_limit=500 * MIB)
    assert measured.peak_anonymous < 500 * MIB
    with pytest.raises(
        MemoryLimitError, match=r"not enough memory under memory_limit=500 MiB \(.*llocat.* give"
    ):
        run_measured(function, {"size": 600 * MIB}, memory_limit=500 * MIB)


def test_memory_that_polars_gave_back_does_not_count_against_the_limit():
    arguments = {"size": 50 * MIB, "times": 30}
    run_measured(measured_functions.hold_with_polars_again_and_again, arguments, memory_limit=500 * MIB)


def test_memory_that_runs_out_behind_one_of_our_errors_is_still_told_as_such():
    arguments = {"size": 600 * MIB}
    with pytest.raises(MemoryLimitError, match="not enough memory under memory_limit=500 MiB"):
        run_measured(measured_functions.hold_and_refuse, arguments, memory_limit=500 * MIB)


def test_the_limit_is_set_from_outside():
    assert run_measured(measured_functions.limit, {}, memory_limit=400 * MIB).value == 400 * MIB


def test_a_process_that_the_system_kills_is_told_as_such():
    with pytest.raises(
        MemoryLimitError, match=r"not enough memory without a limit \(killed, as too little .*\)"
    ):
        run_measured(measured_functions.be_killed, {})


def test_what_shall_not_be_timed_is_imported_before():
    arguments = {"module": "polars"}
    assert not run_measured(measured_functions.has_imported, arguments).value
    assert run_measured(measured_functions.has_imported, arguments, imports=["polars"]).value


def test_lines_are_shown_as_they_are_printed():
    shown: list[str] = []
    run_measured(measured_functions.say, {"lines": ["one", "two"]}, show=shown.append)
    assert shown == ["one", "two"]


def test_a_refusal_comes_back_as_one():
    with pytest.raises(InputError, match=r"^events=3 is too small$"):
        run_measured(measured_functions.refuse, {"reason": "events=3 is too small"})


def test_a_failure_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*in fail.*KeyError: 'nothing there'"):
        run_measured(measured_functions.fail, {}, memory_limit=500 * MIB)


def test_a_process_that_is_gone_holds_nothing():
    assert anonymous_bytes() > 0
    assert anonymous_bytes(2**30) == 0


def test_without_a_limit_memory_is_left_to_others(monkeypatch):
    assert 0 < machine_bytes("MemAvailable") < machine_bytes("MemTotal")
    monkeypatch.setattr(measured_child, "machine_bytes", {"MemTotal": 1000, "MemAvailable": 49}.get)
    with pytest.raises(
        MemoryLimitError, match=r"without a limit \(killed, as too little was left of the machine's"
    ):
        run_measured(measured_functions.hold, {"size": MIB})
    # A process with a limit takes no more than that, whatever others do.
    run_measured(measured_functions.hold, {"size": MIB}, memory_limit=500 * MIB)


def test_a_system_that_does_not_tell_memory_is_refused(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(measured_child, "_PROC", tmp_path)
    with pytest.raises(InputError, match="which only Linux has"):
        run_measured(measured_functions.limit, {})
