"""The adapter to causal-conv1d, on CPU: a stand-in for the package refuses what its kernel refuses."""

import dataclasses
import importlib.util
import sys
import types

import pytest
import torch
from problems import CONVOLUTION, without

from seqrec.errors import InputError
from seqrec.ops import causal_conv1d
from seqrec.ops.causal_conv1d import CONV_BACKENDS, cuda_package

CALLS = []
make_inputs = CONVOLUTION.make


class StrictGradient(torch.autograd.Function):
    """Refuses the gradients that the kernel's backward refuses."""

    @staticmethod
    def forward(ctx, out):
        return out.clone()

    @staticmethod
    def backward(ctx, dout):
        if dout.stride(2) != 1 and dout.stride(1) != 1:
            dout = dout.contiguous()
        if dout.stride(1) != 1:
            dout = dout.transpose(-1, -2).contiguous().transpose(-1, -2)
        assert dout.stride(2) % 8 == 0
        assert dout.stride(0) % 8 == 0
        return dout


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    """causal_conv1d.causal_conv1d_fn of version 1.5, its checks and its results."""
    batch, channels, length = x.shape
    assert min(batch, channels, length) > 0
    assert all(t is None or t.dtype == torch.float32 for t in (x, weight, bias))
    assert activation in (None, "silu", "swish")
    assert weight.shape[0] == channels
    assert weight.shape[1] in (2, 3, 4)
    assert x.stride(1) == 1, "only this layout takes seq_idx"
    assert x.stride(2) > 1
    assert channels % 8 == 0
    assert x.stride(2) % 8 == 0
    assert x.stride(0) % 8 == 0
    assert x.data_ptr() % 16 == 0
    assert bias is None or bias.stride(-1) == 1
    assert initial_states is None
    assert not return_final_states
    start = None
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        assert seq_idx.is_contiguous()
        assert seq_idx.shape == (batch, length)
        # A chunk of events past the end is read too.
        assert seq_idx.untyped_storage().nbytes() >= 4 * (seq_idx.numel() + 128)
        start = changes(seq_idx)
    CALLS.append(length)
    out = causal_conv1d(x.transpose(1, 2), weight, bias, silu=activation is not None, start=start, backend="reference")
    return StrictGradient.apply(out.transpose(1, 2))


def changes(numbers):
    return torch.diff(numbers, dim=1, prepend=numbers[:, :1]) != 0


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("causal_conv1d")
    module.causal_conv1d_fn = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "causal_conv1d", module)
    load = cuda_package._load
    load.cache_clear()
    CALLS.clear()
    yield module
    load.cache_clear()


@pytest.fixture
def on_cpu(package, monkeypatch):
    """The backend as on a GPU, but on the stand-in."""
    backend = dataclasses.replace(
        CONV_BACKENDS["causal_conv1d"], supports=lambda device, dtype: True, missing=lambda: None
    )
    monkeypatch.setitem(CONV_BACKENDS._backends, "causal_conv1d", backend)


@pytest.mark.parametrize(
    "absent",
    [
        (),
        *((name,) for name in CONVOLUTION.optional),
        ("valid", "start"),
        ("initial_state", "valid", "start"),
        CONVOLUTION.optional,
    ],
    ids=lambda names: "-".join(names) or "none",
)
@pytest.mark.parametrize(("taps", "channels", "silu"), [(4, 19, True), (2, 16, False), (3, 1, True)])
def test_values_and_gradients_equal_the_float64_reference(on_cpu, absent, taps, channels, silu):
    inputs = without(make_inputs(L=45, D=channels, W=taps, flags=True), *absent)
    CONVOLUTION.assert_reference(inputs, "causal_conv1d", activate=silu)
    assert [45 + (0 if "initial_state" in absent else taps - 1)] == CALLS


@pytest.mark.parametrize("sizes", [{"L": 0}, {"B": 0}, {"D": 0}, {"L": 1}, {"L": 1, "B": 1, "D": 8}])
@pytest.mark.parametrize("absent", [(), CONVOLUTION.optional])
def test_empty_and_smallest_sizes(on_cpu, sizes, absent):
    inputs = without(make_inputs(**{"L": 3, **sizes}, flags=True), *absent)
    CONVOLUTION.assert_reference(inputs, "causal_conv1d")


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_inputs_and_gradients_may_be_parts_of_wider_tensors(on_cpu, offset):
    inputs = without(make_inputs(D=16), "initial_state")
    gradients = []
    for backend in ("causal_conv1d", "reference"):
        wide = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
        part = wide[..., offset : offset + 16]
        out = causal_conv1d(**inputs | {"x": part}, silu=True, backend=backend)
        torch.cat([part[..., :5], out], -1).square().sum().backward()
        gradients.append(wide.grad)
    torch.testing.assert_close(*gradients)


def test_a_part_that_the_kernel_can_read_is_not_copied():
    wide = torch.zeros(2, 9, 48)
    assert cuda_package._channels_first(wide[..., 8:32]).data_ptr() == wide.data_ptr() + 4 * 8
    assert cuda_package._channels_first(wide[..., 3:27]).data_ptr() != wide.data_ptr() + 4 * 3


@pytest.mark.parametrize("taps", [1, 5])
def test_other_taps_are_refused(on_cpu, taps):
    message = r"backend='causal_conv1d' has no weight of other than 2 to 4 taps; or use 'auto' or 'shifted'"
    with pytest.raises(InputError, match=message):
        causal_conv1d(**make_inputs(W=taps), backend="causal_conv1d")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "causal-conv1d is not installed; see the README"),
        (
            "import causal_conv1d_cuda",
            "cannot be imported: No module named 'causal_conv1d_cuda'; see the README",
        ),
        ("raise OSError('undefined symbol: _ZN3c10')", "cannot be imported: undefined symbol: _ZN3c10; see"),
        ("causal_conv1d_fn = None", "was built without its kernels; see the README"),
    ],
    ids=["absent", "halved", "of_another_torch", "without_kernels"],
)
def test_the_reason_why_a_package_cannot_be_used_is_reported(monkeypatch, tmp_path, body, message):
    if body is not None:
        (tmp_path / "causal_conv1d.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path)
    elif importlib.util.find_spec("causal_conv1d"):
        pytest.skip("causal-conv1d is installed")
    monkeypatch.delitem(sys.modules, "causal_conv1d", raising=False)
    cuda_package._load.cache_clear()
    try:
        assert message in cuda_package.missing()
        with pytest.raises(InputError, match="backend='causal_conv1d' runs float32 on cuda, got"):
            causal_conv1d(**make_inputs(), backend="causal_conv1d")
    finally:
        cuda_package._load.cache_clear()
        sys.modules.pop("causal_conv1d", None)


def test_without_a_device_and_under_determinism_it_is_missing(package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds none" in cuda_package.missing()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "not deterministic" in cuda_package.missing()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (None, None),
        (lambda **given: causal_conv1d_fn(**given) * 1.01, "compute something else than the reference"),
        (lambda **given: causal_conv1d_fn(**given | {"seq_idx": None}), "compute something else"),
        (lambda **given: 1 / 0, "do not run on this device: division by zero"),
    ],
    ids=["sound", "wrong", "no_starts", "raising"],
)
def test_the_kernels_are_tried_on_the_device(package, fault, message):
    if fault is not None:
        package.causal_conv1d_fn = fault
    reason = cuda_package._check.__wrapped__(torch.device("cpu"))
    assert reason is None if message is None else message in reason


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_trial_has_gradients_in_any_mode_and_saves_nothing_of_the_callers(package, mode):
    saved = []
    with mode(), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        assert cuda_package._check.__wrapped__(torch.device("cpu")) is None
    assert not saved
