"""Tests peculiar to the state-space-dual scan; `test_every_backend` has those of all ops."""

import pytest
import torch
import torch.nn.functional as F
from problems import SSD, cases, without
from torch._dynamo.testing import CompileCounterWithBackend

from seqrec.ops import chunks, selective_scan
from seqrec.ops.ssd import chunked, ssd_scan

ALWAYS = {"delta_softplus": True, "return_last_state": True}
make_inputs, run = SSD.make, SSD.run


@pytest.fixture(params=cases([SSD]))
def backend(request):
    SSD.require(request.param[1], ("valid", "start"))
    return request.param[1]


def test_slow_and_fast_heads_over_many_events_equal_the_float64_reference(backend):
    inputs = make_inputs(B=1, L=2000, H=4, P=3, N=2)
    inputs |= {"A": torch.tensor([-1e-4, -0.1, -16.0, -200.0]), "delta": inputs["delta"].detach() - 2}
    SSD.assert_reference(inputs, backend)


@pytest.mark.parametrize("numbers", [1, 2**14, 2**30])
def test_chunks_may_be_computed_a_few_at_a_time_or_all_at_once(monkeypatch, numbers):
    inputs = make_inputs(B=2, L=4 * chunked.CHUNK_EVENTS + 1, flags=True)
    expected = run(inputs, "reference", torch.float64)
    monkeypatch.setattr(chunks, "CPU_NUMBERS", numbers)
    SSD.assert_close(run(inputs, "chunked"), expected)


def test_the_scan_is_a_selective_scan_whose_channels_share_their_decay(backend):
    inputs = make_inputs(B=2, L=100, H=2, P=3, N=4, flags=True)
    wide = {name: inputs[name].flatten(2) for name in ("x", "z")}
    wide |= {name: inputs[name].squeeze(2) for name in ("B", "C")}
    wide |= {name: inputs[name].repeat_interleave(3, -1) for name in ("delta", "D", "delta_bias")}
    wide |= {"A": inputs["A"].repeat_interleave(3).unsqueeze(1).expand(6, 4), "u": wide.pop("x")}
    wide |= {"initial_state": inputs["initial_state"].flatten(1, 2)}
    wide |= {name: inputs[name] for name in ("valid", "start")}
    expected, expected_last = selective_scan(**wide, **ALWAYS, backend="reference")
    y, last = ssd_scan(**inputs, **ALWAYS, backend=backend)
    torch.testing.assert_close(y.flatten(2), expected)
    torch.testing.assert_close(last.flatten(1, 2), expected_last)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "delta", "B", "C", "z", "initial_state"])
def test_what_is_not_finite_stays_in_its_packed_history(backend, name, value):
    inputs = make_inputs(**SSD.larger)
    start = SSD.starts(10, 20, 70)
    clean = run(inputs | {"start": start}, backend)
    dirty = inputs[name].detach().clone()
    dirty[(0, 15) if name != "initial_state" else (0,)] = value
    result = run(inputs | {"start": start, name: dirty}, backend)
    begin, at, end = (10, 15, 20) if name != "initial_state" else (0, 0, 10)
    assert not result["y"][0, at].isfinite().any()
    assert torch.equal(result["y"][:, begin:at], clean["y"][:, begin:at])
    for key in ("y", "x", "delta", "B", "C", "z"):
        for part in (slice(0, begin), slice(end, None)):
            assert torch.equal(result[key][:, part], clean[key][:, part]), key
    assert torch.equal(result["last"], clean["last"])
    assert torch.equal(result["initial_state"][1], clean["initial_state"][1])


def test_start_at_the_first_event_drops_the_initial_state(backend):
    inputs = make_inputs(**SSD.larger)
    start = SSD.starts(0)
    for value in (1.0, float("nan")):
        state = inputs["initial_state"].detach() * value
        result = run(inputs | {"start": start, "initial_state": state}, backend)
        SSD.assert_close(result, run(without(inputs, "initial_state"), "reference", torch.float64))
        assert not result["initial_state"].any()


def test_a_nan_of_one_head_stays_in_it_and_is_not_hidden(backend):
    inputs = make_inputs(**SSD.larger)
    clean = run(inputs, backend)
    dirty = {key: value.detach().clone() for key, value in inputs.items()}
    dirty["delta"][0, 100, 1] = float("nan")
    result = run(dirty, backend)
    others = [0, 2, 3]
    for key in ("y", "x", "delta", "z"):
        assert torch.equal(result[key][:, :, others], clean[key][:, :, others]), key
    assert torch.equal(result["y"][0, :100], clean["y"][0, :100])
    assert result["y"][0, 100:, 1].isnan().all()
    assert result["last"][0, 1].isnan().all()
    assert result["delta"][0, :101, 1].isnan().any()
    assert result["B"][0, :101, 0].isnan().any()
    assert result["A"][1].isnan()
    assert result["A"][others].isfinite().all()


@pytest.mark.parametrize("name", ["B", "C"])
def test_a_nan_of_one_group_stays_in_its_heads(backend, name):
    inputs = make_inputs(**SSD.larger)
    clean = run(inputs, backend)
    dirty = inputs[name].detach().clone()
    dirty[0, 100, 1] = float("nan")
    result = run(inputs | {name: dirty}, backend)
    for key in ("y", "x", "delta", "z"):
        assert torch.equal(result[key][:, :, :2], clean[key][:, :, :2]), key
    for key in ("B", "C"):
        assert torch.equal(result[key][:, :, 0], clean[key][:, :, 0]), key
    assert result["y"][0, 100, 2:].isnan().all()


@pytest.mark.parametrize("at", [15, None])
def test_a_gradient_that_is_not_a_number_reaches_its_history_and_no_other(backend, at):
    inputs, clean = make_inputs(**SSD.larger), make_inputs(**SSD.larger)
    start = SSD.starts(10, 20, 70)
    for values, factor in ((clean, 1.0), (inputs, float("nan"))):
        y, last = ssd_scan(**values, start=start, **ALWAYS, backend=backend)
        dy, dlast = torch.ones_like(y), torch.ones_like(last)
        if at is None:
            dlast[0] *= factor
        else:
            dy[0, at] *= factor
        torch.autograd.backward((y, last), (dy, dlast))
    begin, end, newest = (10, 20, 15) if at is not None else (70, SSD.larger["L"], SSD.larger["L"] - 1)
    for name in ("x", "delta", "B"):
        result, expected = inputs[name].grad, clean[name].grad
        assert result[0, begin : newest + 1].isnan().all(), name
        assert torch.equal(result[1], expected[1]), name
        for part in (slice(0, begin), slice(end, None)):
            assert torch.equal(result[0, part], expected[0, part]), name
    assert inputs["A"].grad.isnan().all()
    assert torch.equal(inputs["initial_state"].grad, clean["initial_state"].grad)


def test_what_begins_with_the_first_event_sends_nothing_to_the_initial_state(backend):
    inputs = SSD.detached(**SSD.larger)
    start = SSD.starts(0)
    inputs["x"][0, 5] = float("nan")
    result = run(inputs | {"start": start}, backend)
    assert result["y"][0, 5:].isnan().all()
    assert torch.equal(result["initial_state"], torch.zeros_like(result["initial_state"]))


def test_events_after_a_huge_step_keep_their_digits(backend):
    # Decays computed as differences of cumulative sums would lose their digits.
    inputs = SSD.detached(**SSD.larger)
    inputs["delta"][:, 5] = 1e6
    inputs["x"][:, 5] = 1e-6
    expected = run(inputs, "reference", torch.float64)
    result = run(inputs, backend)
    SSD.assert_close({"y": result["y"][:, 6:]}, {"y": expected["y"][:, 6:]})
    SSD.assert_close({"x": result["x"][:, 6:]}, {"x": expected["x"][:, 6:]})


def test_torch_compile_traces_through_the_chunked_scan_once_for_all_lengths():
    def loss(**inputs):
        return ssd_scan(**inputs, delta_softplus=True, backend="chunked").square().sum()

    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=graphs, fullgraph=True, dynamic=True)
    for length in (70, 200, 130):
        compiled_inputs, inputs = make_inputs(L=length), make_inputs(L=length)
        compiled(**compiled_inputs).backward()
        loss(**inputs).backward()
        for name in inputs:
            torch.testing.assert_close(compiled_inputs[name].grad, inputs[name].grad)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("flags", [False, True])
def test_registration_of_the_chunked_scan_passes_opcheck(flags):
    inputs = make_inputs(L=70)
    start = torch.arange(70) % 30 == 4
    inputs["delta"] = F.softplus(inputs["delta"]).detach().requires_grad_()
    real = [inputs[name] for name in ("x", "delta", "A", "B", "C", "initial_state")]
    given = (*real, start.expand(len(inputs["x"]), -1) if flags else None)
    torch.library.opcheck(torch.ops.seqrec.ssd_chunked_fwd, given)
    y, last, spoilt, states = torch.ops.seqrec.ssd_chunked_fwd(*(None if v is None else v.detach() for v in given))
    detached_real = [value.detach() for value in real[:5]]
    torch.library.opcheck(torch.ops.seqrec.ssd_chunked_bwd, (y, last, *detached_real, given[-1], spoilt, states))
