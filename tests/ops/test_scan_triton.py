"""Tests peculiar to the Triton scan; `test_every_backend` has those of all backends.

Kernels run in Triton's interpreter, event by event, so problems are small; the last test compiles them for a GPU.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from problems import SCAN, without

from seqrec.errors import InputError
from seqrec.ops import selective_scan, triton_support
from seqrec.ops.selective_scan import SCAN_BACKENDS

pytestmark = pytest.mark.kernels
make_inputs, run = SCAN.make, SCAN.run


@pytest.fixture
def launch():
    SCAN.require("triton")
    return importlib.import_module("seqrec.ops.selective_scan.triton_launch")


@pytest.fixture
def set_room(launch, monkeypatch):
    def change(tile, programs):
        monkeypatch.setattr(launch, "room", lambda device, states, way: launch.Room(tile, programs, 128))

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "programs", "blocks", "runs"), [(32, 1, 2, 1), (64, 2, 1, 2), (64, 9, 1, 4), (32, 6, 2, 3)]
)
@pytest.mark.parametrize("flags", [False, True])
def test_runs_and_blocks_equal_the_float64_reference(set_room, launch, tile, programs, blocks, runs, flags):
    set_room(tile, programs)
    inputs = make_inputs(B=1, L=99 if runs == 4 else 70, D=6, N=5, flags=flags)
    way = launch.cut(inputs["u"], inputs["A"], launch.room(None, 0, ""))
    assert (way.blocks, way.runs) == (blocks, runs)
    SCAN.assert_reference(inputs, "triton")


def test_rows_runs_and_blocks_do_not_mix(set_room):
    set_room(8, 100)
    inputs = without(make_inputs(B=2, L=33, D=3, N=3, flags=True), "D", "z", "delta_bias", "initial_state")
    SCAN.assert_reference(inputs, "triton")


@pytest.mark.slow
def test_no_nan_passes_a_start_from_run_to_run(set_room):
    set_room(64, 100)
    inputs = make_inputs(B=1, L=100, D=2, N=2)
    start = torch.zeros(1, 100, dtype=torch.bool)
    start[0, [40, 70]] = True
    clean = run(inputs | {"start": start}, "triton")
    dirty = inputs["u"].detach().clone()
    dirty[0, 50] = float("nan")
    result = run(inputs | {"start": start, "u": dirty}, "triton")
    assert result["y"][0, 50:70].isnan().all()
    for name in ("y", *SCAN.events):
        for part in (slice(0, 40), slice(70, None)):
            assert torch.equal(result[name][:, part], clean[name][:, part]), name
    assert torch.equal(result["last"], clean["last"])
    assert torch.equal(result["initial_state"], clean["initial_state"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_any_type_and_parts_of_wider_ones_are_read_where_they_are(launch, monkeypatch, dtype):
    inputs = make_inputs(B=2, L=5, D=4, N=2)
    named = {name: inputs[name].detach() for name in ("u", "delta", "z", "B", "C")}
    wide = torch.cat(list(named.values()), -1).to(dtype).requires_grad_()
    parts = dict(zip(named, wide.split([4, 4, 4, 2, 2], -1), strict=True))
    parts |= {name: parts[name].detach().contiguous().requires_grad_() for name in ("u", "delta")}
    given = []

    def recorded(name):
        kernel = getattr(launch.kernels(), name)

        class Recorded:
            def __getitem__(self, grid):
                def start(*arguments, **constants):
                    given.append([x for x in arguments if isinstance(x, torch.Tensor)])
                    return kernel[grid](*arguments, **constants)

                return start

        monkeypatch.setattr(launch.kernels(), name, Recorded())

    recorded("outputs")
    recorded("gradients")
    y, last = selective_scan(**inputs | parts, return_last_state=True, delta_softplus=True, backend="triton")
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    (y.sum() + last.sum()).backward()
    assert len(given) == 2
    for tensors in given:
        places = {x.data_ptr(): x.dtype for x in tensors}
        assert all(places[part.data_ptr()] == dtype for part in parts.values())
    assert wide.grad.dtype == dtype
    expected = SCAN.run(inputs | parts, "reference", torch.float64)
    y, last = selective_scan(**inputs | parts, return_last_state=True, delta_softplus=True, backend="triton")
    SCAN.assert_close(
        {"y": y, "last": last}, {"y": expected["y"], "last": expected["last"]}, 1e-5 if dtype == torch.float32 else 2e-2
    )


def test_a_state_of_zero_stays_zero_where_a_run_would_overflow(set_room):
    set_room(64, 100)
    inputs = make_inputs(B=1, L=80, D=2, N=2)
    inputs |= {"A": torch.full((2, 2), 4.0), "u": torch.zeros(1, 80, 2)}
    inputs |= {"delta": torch.ones(1, 80, 2), "initial_state": torch.zeros(1, 2, 2)}
    y, last = selective_scan(**inputs, return_last_state=True, backend="triton")
    assert not y.any()
    assert not last.any()


def test_step_sizes_are_exact_where_softplus_is_tiny(launch):
    delta = torch.linspace(-80, 80, 64).view(1, 1, 64)
    ones = torch.ones(1, 1, 1)
    y = selective_scan(
        torch.ones(1, 1, 64), delta, -torch.ones(64, 1), ones, ones, delta_softplus=True, backend="triton"
    )
    torch.testing.assert_close(y.double(), F.softplus(delta.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sizes", [(1, 5000, 128, 32), (16, 5000, 128, 32), (512, 200, 64, 16), (3, 33, 7, 300)])
@pytest.mark.parametrize("programs", [1, 1056, 2112])
def test_a_cut_covers_all_and_runs_at_once(launch, sizes, programs):
    batch, length, channels, states = sizes
    u, A = torch.empty(batch, length, channels, device="meta"), torch.empty(channels, states, device="meta")
    way = launch.cut(u, A, launch.Room(1024, programs, 128))
    assert way.blocks * way.block_d >= channels
    assert way.block_n >= states
    assert way.chunks * launch.CHUNK >= length
    assert (way.runs - 1) * way.run_chunks < way.chunks <= way.runs * way.run_chunks
    assert way.runs == 1 or batch * way.blocks * way.runs <= programs


def test_few_rows_are_cut_into_runs_and_many_are_not(launch):
    A = torch.empty(128, 32, device="meta")
    for batch, runs in ((1, range(79, 158)), (16, range(30, 34)), (600, range(1, 2))):
        u = torch.empty(batch, 5000, 128, device="meta")
        assert launch.cut(u, A, launch.Room(1024, 2112, 128)).runs in runs


def test_auto_takes_it_on_a_gpu_and_never_interprets(launch, monkeypatch):
    monkeypatch.delenv(SCAN_BACKENDS.variable, raising=False)
    backend = SCAN_BACKENDS["triton"]
    assert SCAN_BACKENDS.choose("triton", "cpu", torch.float32) is backend
    assert all(found is not backend for found in (SCAN_BACKENDS.auto("cpu", torch.float32)[0],))
    assert not backend.supports("cuda", torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backend.supports("cuda", torch.float32)
    assert not backend.supports("cuda", torch.float64)
    with pytest.raises(InputError, match=r"^backend='triton' runs float32 on cuda.*TRITON_INTERPRET=1, got .* on cpu"):
        selective_scan(**make_inputs(), backend="triton")


def _without_triton(monkeypatch):
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: None)


def _with_an_old_triton(monkeypatch):
    monkeypatch.setattr(triton_support.importlib, "import_module", lambda name: SimpleNamespace(__version__="3.2.0"))


def _with_a_broken_triton(monkeypatch):
    monkeypatch.setattr(triton_support.importlib, "import_module", _fail)


def _fail(*arguments):
    raise OSError("libcuda")


def _without_compiler(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton_support.shutil, "which", lambda name: None)


def _with_an_old_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        (_without_triton, r"triton is not installed; .* `pip install triton`"),
        (_with_an_old_triton, r"triton 3\.2\.0 is too old; torch 2\.8 or later"),
        (_with_a_broken_triton, r"triton does not load \(OSError: libcuda\); install the one"),
        (_without_compiler, r"triton needs a C compiler .* install gcc or clang, or set CC"),
        (_with_an_old_gpu, r"triton needs a GPU of compute capability 7\.0"),
    ],
)
def test_a_missing_part_is_reported_with_its_fix(launch, monkeypatch, lack, reason):
    lack(monkeypatch)
    triton_support.missing.cache_clear()
    try:
        device = "cpu" if triton_support.interprets() else "cuda"
        with pytest.raises(InputError, match=rf"^backend='triton' is unavailable: {reason}.*; or use 'auto'"):
            SCAN_BACKENDS.choose("triton", device, torch.float32)
    finally:
        triton_support.missing.cache_clear()


def test_kernels_that_do_not_load_are_missing_with_the_fix(launch):
    reason = triton_support.missing(_fail)
    assert reason.startswith("triton does not load (OSError: libcuda); install the one")


def test_registration_passes_opcheck(launch):
    inputs = make_inputs(B=1, L=2, D=2, N=2, flags=True)
    *real, initial_state, valid, start = inputs.values()
    torch.library.opcheck(torch.ops.seqrec.selective_scan_triton_fwd, (*real, True, initial_state, valid, start, True))
    some = ("test_schema", "test_faketensor")
    bare = (*real[:5], None, None, None, False, None, None, None, False)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_triton_fwd, bare, test_utils=some)
    values = [x.detach() for x in real]
    y, last, kept = torch.ops.seqrec.selective_scan_triton_fwd(*values, True, None, valid, start, True)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_triton_bwd, (y, last, *values, True, valid, start, kept))
    torch.library.opcheck(
        torch.ops.seqrec.selective_scan_triton_bwd,
        (y, None, *values[:5], None, None, None, True, None, None, kept),
        test_utils=some,
    )


def test_kernels_compile_for_a_gpu(launch):
    # Another process, since what is interpreted here cannot be compiled here.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    script = Path(__file__).with_name("compile_triton_kernels.py")
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    scan = {"run_ends", "run_begins", "carry", "outputs", "gradients"}
    others = {"conv_outputs", "conv_gradients", "log_sums", "of_candidates", "drop"}
    assert set(result.stdout.splitlines()) == scan | {f"ssd {name}" for name in scan} | others
