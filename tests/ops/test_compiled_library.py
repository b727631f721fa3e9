"""Tests peculiar to the compiled scan, and to the library that it shares with the compiled convolution."""

import pytest
import torch
from problems import CONVOLUTION, SCAN

from seqrec.errors import InputError
from seqrec.ops import ALL_BACKENDS, compiled_library, residual_norm
from seqrec.ops.backends import MIXED_DTYPES

make_inputs, run, assert_close = SCAN.make, SCAN.run, SCAN.assert_close


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_gradients_do_not_depend_on_how_channels_are_split_between_threads(cpp, monkeypatch, threads):
    inputs = make_inputs(B=1, L=90, D=100, N=40, flags=True)
    expected = run(inputs, "reference", torch.float64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    first, second = run(inputs, "cpp"), run(inputs, "cpp")
    assert_close(first, expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_padding_and_starts_where_kept_states_meet_equal_the_float64_reference(cpp):
    # States are kept every 32 events: padding and starts lie on both sides, and one stretch has nothing but padding.
    inputs = make_inputs(B=2, L=200, D=20, N=6)
    valid = torch.ones(2, 200, dtype=torch.bool)
    start = torch.zeros(2, 200, dtype=torch.bool)
    valid[0, [0, 31, 32, 64, 199]] = valid[0, 90:140] = valid[1, :70] = False
    start[0, [0, 32, 63, 100, 160, 199]] = start[1, [5, 69, 96]] = True
    inputs |= {"valid": valid, "start": start}
    SCAN.assert_reference(inputs, "cpp")


def test_no_padding_and_no_starts_change_nothing(cpp):
    inputs = make_inputs(**SCAN.larger)
    all_valid = torch.ones(2, SCAN.larger["L"], dtype=torch.bool)
    plain, flagged = run(inputs, "cpp"), run(inputs | {"valid": all_valid, "start": ~all_valid}, "cpp")
    assert_close(flagged, plain, tolerance=1e-6)


@pytest.mark.parametrize("flags", [True, False])
def test_registration_passes_opcheck(cpp, flags):
    inputs = make_inputs(flags=flags)
    u, delta, A, B, C, D, z, delta_bias, initial_state = list(inputs.values())[:9]
    given = (inputs.get("valid"), inputs.get("start"))
    arguments = (u, delta, A, B, C, D, z, delta_bias, True, initial_state, *given, True)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_fwd, arguments)
    bare = (u, delta, A, B, C, None, None, None, False, None, *given, True)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_fwd, bare, test_utils=("test_schema", "test_faketensor"))
    values = [x.detach() for x in (u, delta, A, B, C, D, z, delta_bias)]
    outputs = torch.ops.seqrec.selective_scan_fwd(*values, True, initial_state.detach(), *given, True)
    y, last, kept = outputs
    torch.library.opcheck(torch.ops.seqrec.selective_scan_bwd, (y, last, *values, True, *given, kept))


@pytest.mark.parametrize("op", [SCAN, CONVOLUTION], ids=lambda op: op.name)
def test_an_absent_library_is_an_error_if_asked_for_and_a_warning_if_not(loading, monkeypatch, tmp_path, caplog, op):
    backends = op.backends
    monkeypatch.delenv(backends.variable, raising=False)
    monkeypatch.setattr(compiled_library, "FOLDER", tmp_path)
    for _ in range(2):
        assert backends.choose("auto", "cpu", torch.float32).name == op.plain
    assert [record.message for record in caplog.records] == [
        f"{backends.op}: backend 'cpp' is missing, the slower '{op.plain}' is used: " + compiled_library.load_error()
    ]
    assert compiled_library.variant() is None
    message = r"backend='cpp' is unavailable: no compiled library in .* Install a C\+\+17 compiler .* or use"
    with pytest.raises(InputError, match=message):
        op(op.make(), "cpp")


def test_a_library_that_cannot_be_loaded_is_named(loading, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled_library, "FOLDER", tmp_path)
    broken = tmp_path / f"_kernels_baseline{compiled_library.importlib.machinery.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"not a library")
    assert broken.name in compiled_library.load_error()


def test_a_library_of_another_version_is_refused(cpp, loading, monkeypatch):
    lanes = {name: lanes for name, lanes, _ in compiled_library.VARIANTS}[compiled_library.variant()]
    monkeypatch.setattr(compiled_library, "VARIANTS", [(compiled_library.variant(), lanes + 1, None)])
    loading.cache_clear()
    assert "was built from another version of its source" in compiled_library.load_error()


def test_every_variant_that_runs_here_agrees(variant):
    inputs = make_inputs(**SCAN.larger, flags=True)
    SCAN.assert_reference(inputs, "cpp")
    CONVOLUTION.assert_reference(CONVOLUTION.make(L=300, D=37, flags=True), "cpp")


@pytest.mark.parametrize("backends", [each for each in ALL_BACKENDS if "cpp" in each.names], ids=lambda each: each.op)
def test_a_compiled_op_takes_no_tensors_of_other_dtypes(backends):
    reason = backends["cpp"].why_unusable("cpu", torch.float32, [MIXED_DTYPES])
    assert reason == f"has no {MIXED_DTYPES}", reason


def test_tensors_of_other_dtypes_are_seen(cpp):
    weight = torch.ones(64, dtype=torch.float64)
    with pytest.raises(InputError, match=f"'cpp' has no {MIXED_DTYPES}"):
        residual_norm(torch.zeros(2, 3, 64), None, weight, weight, backend="cpp")
