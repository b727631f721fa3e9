from __future__ import annotations

import sys
from types import SimpleNamespace

import measured_functions
import psutil
import pytest

from seqrec.benchmark.measurement import MemoryLimitError, anonymous_bytes, run_measured
from seqrec.errors import InputError

pytestmark = pytest.mark.process

if sys.platform != "linux":
    pytest.skip("memory limits need Linux", allow_module_level=True)

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
    with pytest.raises(MemoryLimitError, match=r"not enough memory under memory_limit=500 MiB \(.*llocat.* give"):
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
    with pytest.raises(MemoryLimitError, match=r"not enough memory without a limit \(killed, as too little .*\)"):
        run_measured(measured_functions.be_killed, {})


def test_the_last_line_is_shown_again_and_again():
    shown: list[str] = []
    run_measured(measured_functions.say, {"lines": ["one", "two"]}, show=shown.append)
    assert shown[0] == ""
    assert set(shown) <= {"", "one", "two"}
    assert shown[-1] == "two"


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
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=49))
    with pytest.raises(MemoryLimitError, match=r"without a limit \(killed, as too little was left of the machine's"):
        run_measured(measured_functions.hold, {"size": MIB})
    # A process with a limit takes no more than that, whatever others do.
    run_measured(measured_functions.hold, {"size": MIB}, memory_limit=500 * MIB)


def test_a_limit_is_refused_on_a_system_that_has_none(monkeypatch):
    monkeypatch.delattr(psutil, "RLIMIT_DATA")
    with pytest.raises(InputError, match="memory_limit needs RLIMIT_DATA, which only Linux has"):
        run_measured(measured_functions.limit, {}, memory_limit=500 * MIB)
    assert run_measured(measured_functions.hold, {"size": MIB}).value == MIB
