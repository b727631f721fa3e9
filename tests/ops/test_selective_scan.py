"""Every backend against `reference` in float64, and what each promises beside that."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.errors import InputError
from seqrec.ops import selective_scan
from seqrec.ops.selective_scan import BACKEND_VARIABLE, BACKENDS, choose_backend, compiled

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
LARGER = {"B": 2, "L": 45, "D": 19, "N": 5}


def require(backend):
    reason = compiled.load_error() if backend == "cpp" else None
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"CI builds the compiled scan, but: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=sorted(BACKENDS))
def backend(request):
    require(request.param)
    return request.param


@pytest.fixture
def cpp():
    require("cpp")


def make_inputs(B=2, L=7, D=3, N=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "u": normal(B, L, D),
        "delta": normal(B, L, D) - 1,
        "A": -torch.exp(normal(D, N)),
        "B": normal(B, L, N),
        "C": normal(B, L, N),
        "D": normal(D),
        "z": normal(B, L, D),
        "delta_bias": normal(D),
        "initial_state": normal(B, D, N),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def run(inputs, backend, dtype=torch.float32, delta_softplus=True):
    """Outputs and, by fixed weights on both of them, the gradients of all inputs."""
    inputs = {name: value.detach().to(dtype).requires_grad_() for name, value in inputs.items()}
    y, last = selective_scan(**inputs, delta_softplus=delta_softplus, return_last_state=True, backend=backend)
    weights = [
        torch.linspace(-1, 2, x.numel(), dtype=torch.float64).cos().view(x.shape).to(dtype) for x in (y, last)
    ]
    # The last state of no events is constant where there is no initial state.
    reached = [(x, weight) for x, weight in zip((y, last), weights, strict=True) if x.requires_grad]
    if reached:
        torch.autograd.backward(*zip(*reached, strict=True))
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in inputs.items()}
    return {"y": y.detach(), "last": last.detach(), **gradients}


def assert_close(actual, expected, tolerance=1e-5):
    """Largest error of each tensor at most `tolerance` of its largest value."""
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            scale = value.abs().max().clamp_min(1e-6)
            assert (actual[name].double() - value).abs().max() <= tolerance * scale, name


@given(
    sizes=st.fixed_dictionaries(
        {"B": st.integers(0, 5), "L": st.integers(0, 70), "D": st.integers(1, 37), "N": st.integers(1, 20)}
    ),
    given_names=st.sets(st.sampled_from(OPTIONAL)),
    delta_softplus=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_values_and_gradients_equal_the_float64_reference(name, sizes, given_names, delta_softplus, seed):
    require(name)
    inputs = make_inputs(**sizes, seed=seed)
    inputs = {key: value for key, value in inputs.items() if key not in OPTIONAL or key in given_names}
    if not delta_softplus:
        # Step sizes that let the state grow would compare how errors grow, not the backends.
        inputs["delta"] = inputs["delta"].detach().abs()
        inputs.pop("delta_bias", None)
    expected = run(inputs, "reference", torch.float64, delta_softplus)
    assert_close(run(inputs, name, delta_softplus=delta_softplus), expected)


def test_many_events_states_and_channels_equal_the_float64_reference(backend):
    inputs = make_inputs(B=1, L=300, D=130, N=70)
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_gradients_do_not_depend_on_how_channels_are_split_between_threads(cpp, monkeypatch, threads):
    inputs = make_inputs(B=1, L=90, D=100, N=40)
    expected = run(inputs, "reference", torch.float64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    first, second = run(inputs, "cpp"), run(inputs, "cpp")
    assert_close(first, expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_gradcheck_in_float64(name):
    inputs = make_inputs(B=2, L=35, D=2, N=2, dtype=torch.float64)

    def outputs(*values):
        given = dict(zip(inputs, values, strict=True))
        return selective_scan(**given, delta_softplus=True, return_last_state=True, backend=name)

    assert torch.autograd.gradcheck(outputs, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("split", [0, 1, 31, 32, 44, 45])
def test_splitting_anywhere_and_carrying_the_state_equals_the_whole(backend, split):
    inputs = {name: value.detach() for name, value in make_inputs(**LARGER).items()}
    state, parts = inputs.pop("initial_state"), []
    given = {"delta_softplus": True, "return_last_state": True, "backend": backend}
    whole, last = selective_scan(**inputs, initial_state=state, **given)
    for part in (slice(0, split), slice(split, None)):
        events = {name: inputs[name][:, part] for name in ("u", "delta", "B", "C", "z")}
        y, state = selective_scan(**{**inputs, **events}, initial_state=state, **given)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


def test_outputs_ignore_future_events(backend):
    inputs = {name: value.detach() for name, value in make_inputs(**LARGER).items()}
    before = selective_scan(**inputs, delta_softplus=True, backend=backend)
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name][:, 20:] += 1
    after = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert torch.equal(before[:, :20], after[:, :20])


def test_step_size_zero_leaves_the_state_as_it_is(backend):
    inputs = make_inputs(**LARGER)
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    del inputs["delta_bias"]
    _, last = selective_scan(**inputs, return_last_state=True, backend=backend)
    assert torch.equal(last, inputs["initial_state"])


@pytest.mark.parametrize("sizes", [{"L": 0}, {"B": 0}, {"L": 1}, {"D": 1, "N": 1}, {"N": 0}])
def test_empty_and_smallest_sizes(backend, sizes):
    inputs = make_inputs(**{"B": 2, "L": 3, "D": 5, "N": 2, **sizes})
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


def test_inputs_need_not_be_contiguous(backend):
    inputs = make_inputs(**LARGER)
    strided = {
        name: value.detach().t() if value.dim() == 2 else value.detach() for name, value in inputs.items()
    }
    strided = {name: value.transpose(1, 2) if value.dim() == 3 else value for name, value in strided.items()}
    strided = {name: value.clone(memory_format=torch.contiguous_format) for name, value in strided.items()}
    views = {name: value.transpose(-1, -2) if value.dim() > 1 else value for name, value in strided.items()}
    views["D"] = torch.stack([inputs["D"].detach()] * 2, 1)[:, 0]
    assert not any(views[name].is_contiguous() for name in ("u", "A", "B", "D", "z", "initial_state"))
    expected = selective_scan(**inputs, delta_softplus=True, backend=backend)
    torch.testing.assert_close(selective_scan(**views, delta_softplus=True, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_float32(backend, dtype):
    inputs = make_inputs(**LARGER, dtype=dtype)
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    y.sum().backward()
    assert y.dtype == inputs["u"].grad.dtype == dtype
    assert last.dtype == torch.float32
    wide = {name: value.detach().float() for name, value in inputs.items()}
    expected = selective_scan(**wide, delta_softplus=True, backend=backend).to(dtype)
    torch.testing.assert_close(y, expected)


def test_autocast_does_not_lower_the_recurrence(backend):
    inputs = make_inputs(**LARGER)
    expected = selective_scan(**inputs, delta_softplus=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(**inputs, delta_softplus=True, backend=backend), expected)


def test_a_nan_stays_in_its_row(backend):
    inputs = make_inputs(**{**LARGER, "B": 3})
    clean = run(inputs, backend)
    for name in ("u", "delta", "B", "C", "z"):
        dirty = {key: value.detach().clone() for key, value in inputs.items()}
        dirty[name][1, 10] = float("nan")
        result = run(dirty, backend)
        assert result["y"][1, 10].isnan().all(), name
        for key in ("y", "last", "u", "delta", "B", "C", "z", "initial_state"):
            assert torch.equal(result[key][[0, 2]], clean[key][[0, 2]]), (name, key)


@pytest.mark.parametrize("size", [-1e30, -1e4, -100.0, -80.0, -20.0, 20.0, 89.0, 1e4, 1e20])
def test_extreme_step_sizes_give_what_the_reference_gives(backend, size):
    inputs = make_inputs(**LARGER)
    delta = inputs["delta"].detach().clone()
    delta[0, ::3] = size
    inputs |= {"delta": delta, "z": inputs["z"].detach() * 200}
    expected = run(inputs, "reference", torch.float64)
    assert all(value.isfinite().all() for value in expected.values())
    assert_close(run(inputs, backend), expected, tolerance=1e-4)


def test_growing_states_overflow_where_the_reference_does(backend):
    inputs = make_inputs(B=1, L=3, D=2, N=1)
    inputs["A"] = torch.tensor([[1e3], [1.0]])
    y = selective_scan(**inputs, delta_softplus=True, backend=backend)
    expected = selective_scan(**inputs, delta_softplus=True, backend="reference")
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y[..., 0].isfinite().any()


def test_only_the_last_state_may_be_used(backend):
    inputs = make_inputs(**LARGER)
    _, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    last.sum().backward()
    expected = make_inputs(**LARGER)
    _, last = selective_scan(**expected, delta_softplus=True, return_last_state=True, backend="reference")
    last.sum().backward()
    torch.testing.assert_close(inputs["u"].grad, expected["u"].grad, rtol=1e-4, atol=1e-5)


def test_inputs_without_gradient(backend):
    inputs = {name: value.detach() for name, value in make_inputs().items()}
    assert not selective_scan(**inputs, backend=backend).requires_grad
    A = inputs.pop("A").requires_grad_()
    selective_scan(A=A, **inputs, backend=backend).sum().backward()
    assert A.grad.abs().sum() > 0


def test_second_derivative_of_the_compiled_scan_is_refused(cpp):
    inputs = make_inputs()
    y = selective_scan(**inputs, backend="cpp")
    (du,) = torch.autograd.grad(y.square().sum(), inputs["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative; use backend='reference'"):
        du.sum().backward()


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_a_wrong_shape_names_the_argument(backend, name):
    inputs = make_inputs()
    inputs[name] = torch.zeros(*inputs[name].shape[:-1], inputs[name].shape[-1] + 1)
    if name == "A":
        inputs[name] = torch.zeros(4, 4)
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        selective_scan(**inputs, backend=backend)


def test_wrong_dimensions_of_u_and_kinds_of_number():
    inputs = make_inputs()
    with pytest.raises(InputError, match=r"u must be \(B, L, D\)"):
        selective_scan(**{**inputs, "u": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"C must be real numbers on cpu as u, got torch\.int64"):
        selective_scan(**{**inputs, "C": torch.zeros(2, 7, 4, dtype=torch.int64)})


def test_unknown_backend_lists_the_known_ones(monkeypatch):
    with pytest.raises(InputError, match=r"backend='fast' is unknown; known: auto, chunked, cpp, reference"):
        selective_scan(**make_inputs(), backend="fast")
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    with pytest.raises(InputError, match=r"SEQREC_SCAN_BACKEND='fast' is unknown; known: auto"):
        selective_scan(**make_inputs())


def test_auto_is_compiled_where_it_can_be(cpp, monkeypatch):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    assert choose_backend("auto", "cpu", torch.float32) == "cpp"
    assert choose_backend("auto", "cpu", torch.float64) == "chunked"
    assert choose_backend("auto", "cuda", torch.float32) == "chunked"


def test_the_environment_decides_auto_and_nothing_else(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "reference")
    assert choose_backend("auto", "cpu", torch.float32) == "reference"
    assert choose_backend("chunked", "cpu", torch.float32) == "chunked"


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.float64)])
def test_compiled_refuses_other_devices_and_dtypes(device, dtype):
    with pytest.raises(InputError, match=f"backend='cpp' runs float32 on cpu, got {dtype} on {device}"):
        choose_backend("cpp", device, dtype)


def test_absent_library_is_said_when_asked_for_and_replaced_with_a_notice_when_not(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    compiled.load.cache_clear()
    try:
        for _ in range(2):
            assert choose_backend("auto", "cpu", torch.float32) == "chunked"
        assert [record.message for record in caplog.records] == [
            f"The compiled selective scan is unavailable, the slower 'chunked' serves: {compiled.load_error()}"
        ]
        assert compiled.variant() is None
        with pytest.raises(
            InputError, match=r"unavailable: no compiled library in .* install a C\+\+17 compiler"
        ):
            selective_scan(**make_inputs(), backend="cpp")
        broken = tmp_path / f"_scan_baseline{compiled.importlib.machinery.EXTENSION_SUFFIXES[0]}"
        broken.write_bytes(b"not a library")
        compiled.load.cache_clear()
        assert broken.name in compiled.load_error()
    finally:
        compiled.load.cache_clear()


@pytest.mark.parametrize("name", [name for name, _, _ in compiled.VARIANTS])
def test_every_variant_that_runs_here_agrees(cpp, monkeypatch, name):
    chosen = [variant for variant in compiled.VARIANTS if variant[0] == name]
    monkeypatch.setattr(compiled, "VARIANTS", chosen)
    compiled.load.cache_clear()
    try:
        if compiled.variant() is None:
            pytest.skip("this CPU lacks its instructions")
        inputs = make_inputs(**LARGER)
        assert_close(run(inputs, "cpp"), run(inputs, "reference", torch.float64))
    finally:
        compiled.load.cache_clear()


def test_registration_passes_opcheck(cpp):
    inputs = list(make_inputs().values())
    u, delta, A, B, C, D, z, delta_bias, initial_state = inputs
    arguments = (u, delta, A, B, C, D, z, delta_bias, True, initial_state, True)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_fwd, arguments)
    bare = (u, delta, A, B, C, None, None, None, False, None, True)
    torch.library.opcheck(
        torch.ops.seqrec.selective_scan_fwd, bare, test_utils=("test_schema", "test_faketensor")
    )
    values = [x.detach() for x in inputs]
    y, last, kept = torch.ops.seqrec.selective_scan_fwd(*values[:8], True, values[8], True)
    torch.library.opcheck(torch.ops.seqrec.selective_scan_bwd, (y, last, *values[:8], True, kept))


def test_torch_compile_traces_through_the_compiled_scan(cpp):
    def loss(**inputs):
        return selective_scan(**inputs, delta_softplus=True).square().sum()

    compiled_inputs, inputs = make_inputs(), make_inputs()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(**compiled_inputs).backward()
    loss(**inputs).backward()
    for name in inputs:
        torch.testing.assert_close(compiled_inputs[name].grad, inputs[name].grad)
