"""The adapter to mamba-ssm, on CPU: a stand-in for the package refuses what its kernel refuses."""

import dataclasses
import sys
import types

import pytest
import torch
from problems import SCAN, without

from seqrec.errors import InputError
from seqrec.ops import selective_scan
from seqrec.ops.selective_scan import SCAN_BACKENDS, cuda_package

CALLS = []
make_inputs = SCAN.make


class LastStateWithoutGradient(torch.autograd.Function):
    """What the package does with the gradient of the last state."""

    @staticmethod
    def forward(ctx, last):
        return last.clone()

    @staticmethod
    def backward(ctx, dlast):
        return torch.zeros_like(dlast)


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """mamba_ssm.ops.selective_scan_interface.selective_scan_fn of version 2.3, its checks and its results."""
    batch, channels, length = u.shape
    states = A.shape[1]
    for x, shape in (
        (u, u.shape),
        (delta, u.shape),
        (B, (batch, states, length)),
        (C, (batch, states, length)),
    ):
        assert x.shape == shape
        assert x.stride(-1) == 1
    assert z is None or (z.shape == u.shape and z.stride(-1) == 1)
    assert states <= 256
    assert min(batch, channels, length, states) > 0
    assert all(x is None or (x.dtype == torch.float32 and x.is_contiguous()) for x in (A, D, delta_bias))
    CALLS.append(length)
    events_first = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    events_first = {name: None if x is None else x.transpose(1, 2) for name, x in events_first.items()}
    y, last = selective_scan(
        A=A,
        D=D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        return_last_state=True,
        backend="reference",
        **events_first,
    )
    y = y.transpose(1, 2)
    return (y, LastStateWithoutGradient.apply(last)) if return_last_state else y


@pytest.fixture
def package(monkeypatch):
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    load = cuda_package._load
    load.cache_clear()
    CALLS.clear()
    yield
    load.cache_clear()


@pytest.fixture
def on_cpu(package, monkeypatch):
    """The backend as on a GPU, but on the stand-in."""
    backend = dataclasses.replace(
        SCAN_BACKENDS["mamba_ssm"],
        supports=lambda device, dtype: dtype == torch.float32,
        missing=lambda: None,
    )
    monkeypatch.setitem(SCAN_BACKENDS._backends, "mamba_ssm", backend)


@pytest.mark.parametrize(
    "absent",
    [
        (),
        ("initial_state",),
        ("valid",),
        ("initial_state", "valid"),
        ("D", "z", "delta_bias"),
        ("z", "valid"),
    ],
    ids=lambda names: "-".join(names) or "all",
)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_values_and_gradients_equal_the_float64_reference(on_cpu, absent, delta_softplus):
    inputs = without(make_inputs(**SCAN.larger, flags=True), "start", *absent)
    if not delta_softplus:
        inputs = without(inputs, "delta_bias") | {"delta": inputs["delta"].detach().abs()}
    SCAN.assert_reference(inputs, "mamba_ssm", activate=delta_softplus)


@pytest.mark.parametrize("sizes", [{"L": 0}, {"B": 0}, {"L": 1}, {"D": 1, "N": 1}, {"N": 0}])
def test_empty_and_smallest_sizes(on_cpu, sizes):
    inputs = make_inputs(**{"B": 2, "L": 3, "D": 5, "N": 2, **sizes})
    SCAN.assert_reference(inputs, "mamba_ssm")


def test_the_initial_state_is_taken_exactly(on_cpu):
    inputs = make_inputs(**SCAN.larger)
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    del inputs["delta_bias"]
    _, last = selective_scan(**inputs, return_last_state=True, backend="mamba_ssm")
    assert torch.equal(last, inputs["initial_state"])


def test_further_events_are_only_there_for_what_needs_them(on_cpu):
    inputs = without(make_inputs(**SCAN.larger), "initial_state")
    length, states = SCAN.larger["L"], SCAN.larger["N"]
    selective_scan(**inputs, backend="mamba_ssm")
    with torch.no_grad():
        selective_scan(**inputs, return_last_state=True, backend="mamba_ssm")
    selective_scan(**inputs, return_last_state=True, backend="mamba_ssm")
    assert [length, length, length + 2 * states] == CALLS


def test_starts_and_many_states_are_refused(on_cpu):
    inputs = make_inputs()
    start = torch.zeros(2, 7, dtype=torch.bool)
    with pytest.raises(InputError, match="backend='mamba_ssm' has no start; or use"):
        selective_scan(**inputs, start=start, backend="mamba_ssm")
    with pytest.raises(InputError, match="backend='mamba_ssm' has no more than 256 states a channel"):
        selective_scan(**make_inputs(N=257), backend="mamba_ssm")


def test_without_the_package_the_reason_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    cuda_package._load.cache_clear()
    try:
        assert cuda_package.missing().startswith("mamba-ssm cannot be imported: ")
    finally:
        cuda_package._load.cache_clear()


def test_a_package_that_breaks_at_import_is_reported_with_its_reason(monkeypatch, tmp_path):
    broken = tmp_path / "mamba_ssm"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    cuda_package._load.cache_clear()
    try:
        assert "undefined symbol: _ZN3c10; see the README" in cuda_package.missing()
    finally:
        cuda_package._load.cache_clear()


def test_without_a_device_or_under_determinism_it_is_missing(package, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_package.missing() == "its kernels need a CUDA device, and torch finds none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "its backward is not deterministic" in cuda_package.missing()


@pytest.mark.parametrize("fault", ["no kernel image is available", None])
def test_kernels_that_do_not_run_or_compute_something_else_are_found(package, monkeypatch, fault):
    def broken(**arguments):
        if fault:
            raise RuntimeError(fault)
        y, last = selective_scan_fn(**arguments)
        return 1.01 * y, last

    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    assert cuda_package._check.__wrapped__(0) is None
    monkeypatch.setattr(cuda_package, "_load", lambda: (broken, ""))
    expected = f"do not run on this device: {fault}" if fault else "something else than the reference"
    assert expected in cuda_package._check.__wrapped__(0)
