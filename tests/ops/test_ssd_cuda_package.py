"""The adapter to mamba-ssm's Triton kernels, on CPU with a package that keeps to their documented limits."""

import sys
import types

import pytest
import torch
from problems import SSD, without

from seqrec.errors import InputError
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.ssd import SSD_BACKENDS, cuda_package, ssd_scan
from seqrec.ops.ssd.reference import SsdProblem, ssd_reference

make_inputs, assert_close = SSD.make, SSD.assert_close
MODULE = "mamba_ssm.ops.triton.ssd_combined"


def combined(*, x, dt, A, B, C, chunk_size, initial_states, return_final_states):
    """`mamba_chunk_scan_combined` as its kernels are: no growth, nothing empty, last axes contiguous."""
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    assert heads % groups == 0
    assert dt.shape == (batch, length, heads)
    assert A.shape == (heads,)
    assert B.shape == C.shape == (batch, length, groups, states)
    assert initial_states.shape == (batch, heads, width, states)
    given = (x, dt, A, B, C, initial_states)
    assert all(value.numel() and value.dtype == torch.float32 and value.is_contiguous() for value in given)
    assert chunk_size & (chunk_size - 1) == 0
    assert return_final_states
    return ssd_reference(x, dt.clamp_min(0), A.clamp_max(0), B, C, initial_states, None)


@pytest.fixture(autouse=True)
def fresh():
    def forget():
        cuda_package._load.cache_clear()
        cuda_package._check.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def package(monkeypatch):
    """A package that imports; its module, whose function tests may replace."""
    module = types.ModuleType(MODULE)
    module.mamba_chunk_scan_combined = combined
    parents = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")
    for name in parents:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


@pytest.fixture
def device(monkeypatch):
    """A machine that says it has a CUDA device and whose tensors stay on CPU; TF32 is allowed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(cuda_package, "moved", lambda problem, device: problem)


def outcome(recurrence, inputs):
    real = {k: v.detach().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    y, last = with_gate_and_padding(recurrence)(SsdProblem(**real, delta_softplus=True))
    (y.square().sum() + last.square().sum()).backward()
    gradients = {k: v.grad for k, v in real.items() if v.requires_grad and v.grad is not None}
    return {"y": y.detach(), "last": last.detach(), **gradients}


@pytest.mark.parametrize("optional", [("D", "z", "delta_bias", "initial_state", "valid"), ("valid",), ()])
def test_values_and_gradients_equal_the_reference(package, optional):
    inputs = make_inputs(B=2, L=70, H=4, P=3, G=2, N=5, flags=True)
    inputs = without(inputs, "start", *{"D", "z", "delta_bias", "initial_state", "valid"} - {*optional})
    # Strided, which the adapter must mend.
    inputs = {name: value.mT.contiguous().mT if value.dim() > 2 else value for name, value in inputs.items()}
    assert_close(outcome(cuda_package.ssd_mamba_ssm, inputs), outcome(ssd_reference, inputs))


@pytest.mark.parametrize("sizes", [{"L": 0}, {"B": 0}, {"N": 0}, {"P": 0}])
def test_kernels_are_not_launched_for_nothing(package, sizes):
    inputs = make_inputs(**sizes)
    assert_close(outcome(cuda_package.ssd_mamba_ssm, inputs), outcome(ssd_reference, inputs))


def test_what_the_kernels_cannot_honour_is_refused(package, device):
    backend = SSD_BACKENDS["mamba_ssm"]
    assert backend.why_unusable("cuda", torch.float32, ("valid", "initial_state")) is None
    assert backend.why_unusable("cuda", torch.float32, ("start",)) == "has no start"
    assert backend.why_unusable("cuda", torch.float64) == "runs float32 on cuda, got torch.float64 on cuda"
    with pytest.raises(InputError, match=r"backend='mamba_ssm' runs float32 on cuda, got torch.float32 on cpu"):
        ssd_scan(**make_inputs(), delta_softplus=True, backend="mamba_ssm")


def test_negative_steps_are_not_given_to_kernels_that_would_drop_them(package, device, monkeypatch):
    asked = []
    choose = SSD_BACKENDS.choose
    monkeypatch.setattr(SSD_BACKENDS, "choose", lambda *a: asked.append(a[3]) or choose(*a))
    for softplus in (True, False):
        ssd_scan(**make_inputs(), delta_softplus=softplus)
    assert [SSD_BACKENDS["mamba_ssm"].why_unusable("cuda", torch.float32, given) for given in asked] == [
        None,
        "has no step sizes without softplus",
    ]


def test_auto_takes_the_kernels_where_they_serve_and_is_silent_where_not(package, device, monkeypatch, caplog):
    monkeypatch.delenv(SSD_BACKENDS.variable, raising=False)
    assert SSD_BACKENDS.choose("auto", "cuda", torch.float32).name == "mamba_ssm"
    assert SSD_BACKENDS.choose("auto", "cuda", torch.float32, ("start",)).name == "chunked"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert SSD_BACKENDS.choose("auto", "cuda", torch.float32).name == "chunked"
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'mamba_ssm'", name="mamba_ssm"), "mamba-ssm is not installed"),
        (
            ModuleNotFoundError("No module named 'einops'", name="einops"),
            "mamba-ssm cannot be imported: No module named 'einops'",
        ),
        (RuntimeError("undefined symbol"), "mamba-ssm cannot be imported: undefined symbol"),
    ],
)
def test_the_reason_why_the_package_cannot_be_imported_is_reported(monkeypatch, error, reason):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "mamba_ssm":
                raise error

    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert cuda_package.missing().startswith(reason)


def test_a_machine_without_a_device_is_reported(package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_package.missing() == "its kernels need a CUDA device, and torch finds none"


def test_less_exact_products_need_torchs_permission(package, device, monkeypatch):
    assert cuda_package.missing() is None
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert "set_float32_matmul_precision('high')" in cuda_package.missing()
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    assert cuda_package.missing() is None


def test_kernels_are_not_deterministic(package, device, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "use_deterministic_algorithms" in cuda_package.missing()


def test_kernels_that_fail_or_err_on_the_device_are_not_used(package, device):
    def fails(**_):
        raise RuntimeError("no kernel image")

    package.mamba_chunk_scan_combined = fails
    assert cuda_package.missing() == "its kernels do not run on this device: no kernel image"
    cuda_package._load.cache_clear()
    cuda_package._check.cache_clear()

    def errs(**arguments):
        y, last = combined(**arguments)
        return y * 1.1, last

    package.mamba_chunk_scan_combined = errs
    assert "something else than the reference" in cuda_package.missing()
