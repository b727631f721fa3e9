"""What is peculiar to the compiled scan, and to the library that it shares with the compiled convolution."""

import pytest
import torch
from conv_problems import make_inputs as make_conv_inputs
from conv_problems import run as run_conv
from scan_problems import LARGER, assert_close, make_inputs, require, run

from seqrec.errors import InputError
from seqrec.ops import causal_conv1d, compiled_library, selective_scan
from seqrec.ops.causal_conv1d import CONV_BACKENDS
from seqrec.ops.selective_scan import SCAN_BACKENDS


@pytest.fixture
def cpp():
    require("cpp")


@pytest.fixture
def loading():
    """For a test that changes which library is found."""
    compiled_library.load.cache_clear()
    yield compiled_library.load
    compiled_library.load.cache_clear()


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
    assert_close(run(inputs, "cpp"), run(inputs, "reference", torch.float64))


def test_no_padding_and_no_starts_change_nothing(cpp):
    inputs = make_inputs(**LARGER)
    all_valid = torch.ones(2, LARGER["L"], dtype=torch.bool)
    plain, flagged = run(inputs, "cpp"), run(inputs | {"valid": all_valid, "start": ~all_valid}, "cpp")
    assert_close(flagged, plain, tolerance=1e-6)


def test_second_derivative_of_the_compiled_scan_is_refused(cpp):
    inputs = make_inputs()
    y = selective_scan(**inputs, backend="cpp")
    (du,) = torch.autograd.grad(y.square().sum(), inputs["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative; use backend='reference'"):
        du.sum().backward()


@pytest.mark.parametrize("flags", [True, False])
def test_registration_passes_opcheck(cpp, flags):
    inputs = make_inputs(flags=flags)
    u, delta, A, B, C, D, z, delta_bias, initial_state = list(inputs.values())[:9]
    given = (inputs.get("valid"), inputs.get("start"))
    arguments = (u, delta, A, B, C, D, z, delta_bias, True, initial_state, *given, True)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_fwd, arguments)
    bare = (u, delta, A, B, C, None, None, None, False, None, *given, True)
    torch.library.opcheck(
        torch.ops.seqrec.selective_scan_fwd, bare, test_utils=("test_schema", "test_faketensor")
    )
    values = [x.detach() for x in (u, delta, A, B, C, D, z, delta_bias)]
    outputs = torch.ops.seqrec.selective_scan_fwd(*values, True, initial_state.detach(), *given, True)
    y, last, kept = outputs
    torch.library.opcheck(torch.ops.seqrec.selective_scan_bwd, (y, last, *values, True, *given, kept))


@pytest.mark.parametrize("flags", [True, False])
def test_torch_compile_traces_through_the_compiled_scan(cpp, flags):
    def loss(**inputs):
        return selective_scan(**inputs, delta_softplus=True).square().sum()

    traced, inputs = make_inputs(flags=flags), make_inputs(flags=flags)
    torch.compile(loss, backend="aot_eager", fullgraph=True)(**traced).backward()
    loss(**inputs).backward()
    for name, x in inputs.items():
        if x.requires_grad:
            torch.testing.assert_close(traced[name].grad, x.grad)


@pytest.mark.parametrize(
    ("backends", "op", "make", "slower"),
    [
        (SCAN_BACKENDS, selective_scan, make_inputs, "chunked"),
        (CONV_BACKENDS, causal_conv1d, make_conv_inputs, "shifted"),
    ],
    ids=["scan", "convolution"],
)
def test_absent_library_is_said_when_asked_for_and_replaced_with_a_notice_when_not(
    loading, monkeypatch, tmp_path, caplog, backends, op, make, slower
):
    monkeypatch.delenv(backends.variable, raising=False)
    monkeypatch.setattr(compiled_library, "FOLDER", tmp_path)
    for _ in range(2):
        assert backends.choose("auto", "cpu", torch.float32).name == slower
    assert [record.message for record in caplog.records] == [
        f"{backends.op}: backend 'cpp' is missing, the slower '{slower}' is used: "
        + compiled_library.load_error()
    ]
    assert compiled_library.variant() is None
    message = r"backend='cpp' is unavailable: no compiled library in .* Install a C\+\+17 compiler .* or use"
    with pytest.raises(InputError, match=message):
        op(**make(), backend="cpp")


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


@pytest.mark.parametrize("name", [name for name, _, _ in compiled_library.VARIANTS])
def test_every_variant_that_runs_here_agrees(cpp, loading, monkeypatch, name):
    chosen = [variant for variant in compiled_library.VARIANTS if variant[0] == name]
    monkeypatch.setattr(compiled_library, "VARIANTS", chosen)
    loading.cache_clear()
    if compiled_library.variant() is None:
        pytest.skip("this CPU lacks its instructions")
    inputs = make_inputs(**LARGER, flags=True)
    assert_close(run(inputs, "cpp"), run(inputs, "reference", torch.float64))
    inputs = make_conv_inputs(L=300, D=37, flags=True)
    assert_close(run_conv(inputs, "cpp"), run_conv(inputs, "reference", torch.float64))
