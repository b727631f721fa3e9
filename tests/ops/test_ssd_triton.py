"""Tests peculiar to the Triton kernels of Mamba-2's scan; `test_every_backend` and `test_ssd` have those of all.

Kernels run in Triton's interpreter; `test_scan_triton` compiles them for a GPU.
"""

import importlib

import pytest
import torch
from problems import SSD, without

from seqrec.errors import InputError
from seqrec.ops.block_sizes import TABLE, BlockRow
from seqrec.ops.ssd import SSD_BACKENDS, ssd_scan

pytestmark, SLOW = pytest.mark.kernels, pytest.mark.slow
make_inputs, run = SSD.make, SSD.run


@pytest.fixture
def launch(monkeypatch):
    """Programs of few events, states and heads' widths, so that chunks, runs and blocks are many."""
    SSD.require("triton")
    module = importlib.import_module("seqrec.ops.ssd.triton_launch")
    monkeypatch.setattr(module, "LEAST", 2)
    monkeypatch.setitem(TABLE, "ssd", (*TABLE["ssd"], BlockRow("", 0, {"chunk": 4, "widest": 2})))
    return module


@pytest.fixture
def set_room(launch, monkeypatch):
    return lambda programs: monkeypatch.setattr(launch, "programs_at_once", lambda device, each: programs)


@pytest.mark.parametrize(
    ("programs", "runs"),
    [(1, 1), pytest.param(12, 2, marks=pytest.mark.slow), pytest.param(99, 4, marks=pytest.mark.slow)],
)
def test_chunks_runs_and_blocks_equal_the_float64_reference(set_room, launch, programs, runs):
    set_room(programs)
    inputs = make_inputs(B=1, L=14, H=2, P=3, G=1, N=3, flags=True)
    problem = launch.SsdProblem(*(inputs[name] for name in ("x", "delta", "A", "B", "C")))
    way = launch.cut(problem, launch.programs_at_once(None, 0))
    assert (way.blocks, way.chunks, way.runs) == (2, 4, runs)
    SSD.assert_reference(inputs, "triton")


def test_rows_heads_groups_and_runs_do_not_mix(set_room):
    set_room(99)
    inputs = without(make_inputs(B=2, L=9, H=4, P=2, G=2, N=2), "D", "z", "delta_bias", "initial_state")
    SSD.assert_reference(inputs, "triton")


def test_no_nan_passes_a_start_from_run_to_run(set_room):
    set_room(99)
    inputs = make_inputs(B=1, L=14, H=1, P=2, N=2)
    start = torch.zeros(1, 14, dtype=torch.bool)
    start[0, [5, 10]] = True
    clean = run(inputs | {"start": start}, "triton")
    dirty = inputs["x"].detach().clone()
    dirty[0, 7] = float("nan")
    result = run(inputs | {"start": start, "x": dirty}, "triton")
    assert result["y"][0, 7:10].isnan().all()
    for name in ("y", *SSD.events):
        for part in (slice(0, 5), slice(10, None)):
            assert torch.equal(result[name][:, part], clean[name][:, part]), name
    assert torch.equal(result["last"], clean["last"])
    assert torch.equal(result["initial_state"], clean["initial_state"])


@pytest.mark.parametrize("sizes", [(1, 5000, 2, 64, 32), (128, 200, 2, 64, 32), (3, 33, 7, 5, 300), (1, 9, 1, 1, 1)])
@pytest.mark.parametrize("programs", [1, 132, 264])
def test_a_cut_covers_all_and_runs_at_once(sizes, programs):
    launch = importlib.import_module("seqrec.ops.ssd.triton_launch")
    batch, length, heads, width, states = sizes
    x, B = torch.empty(batch, length, heads, width, device="meta"), torch.empty(batch, length, 1, states, device="meta")
    way = launch.cut(launch.SsdProblem(x, x, x, B, B), programs)
    assert way.blocks * way.block_p >= width
    assert way.block_n >= states
    assert way.chunks * way.events >= length
    assert min(way.events, way.block_p, way.block_n) >= 16
    assert (way.runs - 1) * way.run_chunks < way.chunks <= way.runs * way.run_chunks
    assert way.runs == 1 or batch * heads * way.blocks * way.runs <= programs


def test_auto_never_interprets_and_leaves_a_gpu_to_torch(launch, monkeypatch):
    monkeypatch.delenv(SSD_BACKENDS.variable, raising=False)
    backend = SSD_BACKENDS["triton"]
    assert SSD_BACKENDS.choose("triton", "cpu", torch.float32) is backend
    assert SSD_BACKENDS.auto("cpu", torch.float32)[0] is not backend
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backend.supports("cuda", torch.float32)
    assert SSD_BACKENDS.auto("cuda", torch.float32, ("start",))[0].name == "chunked"


def test_more_states_than_fit_are_refused(launch):
    wide = make_inputs(B=1, L=1, H=1, P=1, N=513)
    with pytest.raises(InputError, match="backend='triton' has no more than 512 states"):
        ssd_scan(**wide, backend="triton")


def test_registration_passes_opcheck(launch):
    inputs = make_inputs(B=1, L=2, H=2, P=2, N=2, flags=True)
    *real, initial_state, valid, start = inputs.values()
    torch.library.opcheck(torch.ops.seqrec.ssd_triton_fwd, (*real, True, initial_state, valid, start, True))
    values = [x.detach() for x in real]
    y, last, kept = torch.ops.seqrec.ssd_triton_fwd(*values, True, None, valid, start, True)
    torch.library.opcheck(torch.ops.seqrec.ssd_triton_bwd, (y, last, *values, True, valid, start, kept))
    torch.library.opcheck(
        torch.ops.seqrec.ssd_triton_bwd,
        (y, None, *values[:5], None, None, None, True, None, None, kept),
        test_utils=("test_schema", "test_faketensor"),
    )
