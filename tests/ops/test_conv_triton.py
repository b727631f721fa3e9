"""Tests peculiar to the Triton convolution; `test_every_backend` has those of all backends.

Kernels run in Triton's interpreter; `test_scan_triton` compiles them for a GPU.
"""

import contextlib
import importlib
import itertools

import pytest
import torch
from problems import CONVOLUTION, without

from seqrec.errors import InputError
from seqrec.ops import causal_conv1d
from seqrec.ops.block_sizes import TABLE, BlockRow
from seqrec.ops.causal_conv1d import CONV_BACKENDS

pytestmark = pytest.mark.kernels
make_inputs, run = CONVOLUTION.make, CONVOLUTION.run


@pytest.fixture
def launch():
    CONVOLUTION.require("triton")
    return importlib.import_module("seqrec.ops.causal_conv1d.triton_launch")


@pytest.fixture
def small_blocks(launch, monkeypatch):
    """Programs of few events and channels, so that windows reach over several."""
    row = BlockRow("", 0, {"events": 4, "channels": 4})
    monkeypatch.setitem(TABLE, "causal_conv1d", (*TABLE["causal_conv1d"], row))


@pytest.mark.slow
@pytest.mark.parametrize(
    "absent",
    [names for n in range(5) for names in itertools.combinations(CONVOLUTION.optional, n)],
    ids="-".join,
)
def test_blocks_equal_the_float64_reference_whatever_is_given(small_blocks, absent):
    inputs = without(make_inputs(B=1, L=7, D=5, W=3, flags=True), *absent)
    CONVOLUTION.assert_reference(inputs, "triton")


@pytest.mark.slow
@pytest.mark.parametrize(("taps", "silu"), [(1, True), (2, False), (6, True)])
def test_windows_may_be_wider_than_a_block_and_a_row(small_blocks, taps, silu):
    inputs = make_inputs(B=3, L=5, D=3, W=taps, seed=taps, flags=True)
    inputs["valid"][1] = False
    inputs["valid"][2] = torch.tensor([False, False, True, False, True])
    inputs["start"][1:] = torch.tensor([False, True, False, False, False])
    CONVOLUTION.assert_reference(inputs, "triton", activate=silu)


def test_results_repeat_to_the_bit(small_blocks):
    inputs = make_inputs(B=1, L=7, flags=True)
    first, second = run(inputs, "triton"), run(inputs, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_flags_each_way_is_one_launch(launch, monkeypatch):
    calls = []

    def counted(name):
        kernel = getattr(launch.kernels(), name)

        class Counted:
            def __getitem__(self, grid):
                calls.append(name)
                return kernel[grid]

        monkeypatch.setattr(launch.kernels(), name, Counted())

    counted("conv_outputs")
    counted("conv_gradients")
    wide = torch.randn(2, 9, 12, requires_grad=True)
    x = wide.chunk(2, -1)[1]
    inputs = without(make_inputs(D=6), "x", "initial_state")
    reads = []
    monkeypatch.setattr(launch, "launching_on", lambda x: reads.append(x.data_ptr()) or contextlib.nullcontext())
    causal_conv1d(x, **inputs, silu=True, backend="triton").sum().backward()
    assert calls == ["conv_outputs", "conv_gradients"]
    # A part of a wider tensor is read where it is.
    assert reads == [x.data_ptr()] * 2


def test_auto_takes_it_on_a_gpu_and_never_interprets(launch, monkeypatch):
    monkeypatch.delenv(CONV_BACKENDS.variable, raising=False)
    backend = CONV_BACKENDS["triton"]
    assert CONV_BACKENDS.choose("triton", "cpu", torch.float32) is backend
    assert CONV_BACKENDS.auto("cpu", torch.float32)[0] is not backend
    assert not backend.supports("cuda", torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert CONV_BACKENDS.auto("cuda", torch.float32)[0] is backend
    with pytest.raises(InputError, match=r"^backend='triton' runs float32 on cuda.*TRITON_INTERPRET=1, got .* on cpu"):
        causal_conv1d(**make_inputs(), backend="triton")


def test_registration_passes_opcheck(launch):
    forward, backward = torch.ops.seqrec.causal_conv1d_triton_fwd, torch.ops.seqrec.causal_conv1d_triton_bwd
    x, weight, bias, state, valid, start = make_inputs(B=1, L=2, D=2, W=2, flags=True).values()
    torch.library.opcheck(forward, (x, weight, bias, True, state, valid, start))
    some = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, (x, weight, None, False, None, None, None), test_utils=some)
    real = [value.detach() for value in (x, weight, bias)]
    out, last = forward(*real, True, state.detach(), valid, start)
    torch.library.opcheck(backward, (out, last, *real, True, state.detach(), valid, start))
    torch.library.opcheck(backward, (None, last, *real[:2], None, False, None, None, None), test_utils=some)
