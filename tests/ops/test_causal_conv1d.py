"""Tests peculiar to the causal convolution; `test_every_backend` has those of all ops."""

import pytest
import torch
import torch.nn.functional as F
from problems import CONVOLUTION, cases, without

from seqrec.ops import causal_conv1d
from seqrec.ops.causal_conv1d import compiled

NAN = float("nan")
make_inputs, run = CONVOLUTION.make, CONVOLUTION.run


@pytest.fixture(params=cases([CONVOLUTION]))
def backend(request):
    CONVOLUTION.require(request.param[1])
    return request.param[1]


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_reference_equals_torch(length, taps):
    inputs = make_inputs(L=length, W=taps, dtype=torch.float64)
    out, last = causal_conv1d(**inputs, silu=True, return_last_state=True, backend="reference")
    rows = torch.cat([inputs["initial_state"], inputs["x"]], 1).transpose(1, 2)
    expected = F.silu(F.conv1d(rows, inputs["weight"].unsqueeze(1), inputs["bias"], groups=5))
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert torch.equal(last, rows.transpose(1, 2)[:, length:])


def test_a_hand_worked_example_with_padding_and_starts():
    x = torch.tensor([1.0, 2.0, NAN, 4.0, 5.0, NAN, 7.0, 8.0, NAN]).view(1, 9, 1)
    valid = ~x[..., 0].isnan()
    start = torch.zeros(1, 9, dtype=torch.bool)
    start[0, [4, 5]] = True
    weight = torch.tensor([[100.0, 10.0, 1.0]])
    state = torch.tensor([[[8.0], [9.0]]])
    out, last = causal_conv1d(
        x,
        weight,
        initial_state=state,
        return_last_state=True,
        valid=valid,
        start=start,
        backend="reference",
    )
    assert out.flatten().tolist() == [891, 912, 0, 124, 5, 0, 7, 78, 0]
    assert last.flatten().tolist() == [7, 8]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 6])
def test_gradients_meet_where_pieces_of_a_row_do(cpp, monkeypatch, taps, seed):
    # Short pieces, so that windows reach over several and padding fills some.
    monkeypatch.setattr(compiled, "PIECE", 3)
    inputs = make_inputs(B=3, L=40, D=18, W=taps, seed=seed, flags=True)
    inputs["valid"][:, 10:24] = False
    inputs["valid"][0, :8] = False
    inputs["start"] &= torch.rand(3, 40, generator=torch.Generator().manual_seed(seed)) < 0.4
    for names in ((), ("start",), ("valid",), ("valid", "start")):
        given = without(inputs, *names)
        CONVOLUTION.assert_reference(given, "cpp")


@pytest.mark.parametrize("threads", [2, 5])
def test_sums_do_not_depend_on_the_number_of_threads(cpp, monkeypatch, threads):
    inputs = make_inputs(B=2, L=1500, D=100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = run(inputs, "cpp")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    together = run(inputs, "cpp")
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_output_sees_as_many_events_as_taps(backend):
    inputs = make_inputs(W=3)
    out = causal_conv1d(**inputs, backend=backend)
    (dx,) = torch.autograd.grad(out[0, 6].sum(), inputs["x"])
    assert dx[0].abs().sum(1).nonzero().flatten().tolist() == [4, 5, 6]
    assert not dx[1].any()


def test_a_nan_stays_in_its_packed_history_and_row(backend):
    inputs = make_inputs(**CONVOLUTION.larger)
    start = torch.zeros(2, CONVOLUTION.larger["L"], dtype=torch.bool)
    start[:, [10, 17, 43]] = True
    clean = run(inputs | {"start": start}, backend)
    dirty = inputs["x"].detach().clone()
    dirty[0, 16] = dirty[0, 42] = NAN
    result = run(inputs | {"start": start, "x": dirty}, backend)
    assert result["y"][0, [16, 42]].isnan().all()
    for key in ("y", "x"):
        for part in (slice(0, 10), slice(17, 39), slice(43, None)):
            assert torch.equal(result[key][0, part], clean[key][0, part]), key
        assert torch.equal(result[key][1], clean[key][1])
    assert torch.equal(result["last"], clean["last"])
    assert torch.equal(result["initial_state"], clean["initial_state"])


def test_a_nan_in_a_state_that_no_event_sees_reaches_nothing(backend):
    inputs = make_inputs()
    start = torch.zeros(2, 9, dtype=torch.bool)
    start[:, 0] = True
    clean = run(inputs | {"start": start}, backend)
    state = torch.full_like(inputs["initial_state"], NAN)
    result = run(inputs | {"start": start, "initial_state": state}, backend)
    assert all(torch.equal(result[name], clean[name]) for name in clean)


def test_inputs_may_be_parts_of_wider_tensors_of_any_layout(backend):
    inputs = make_inputs(**CONVOLUTION.larger, flags=True)
    expected = run(inputs, backend)
    wide = torch.randn(2, CONVOLUTION.larger["L"], 3 * CONVOLUTION.larger["D"])
    part = wide[..., CONVOLUTION.larger["D"] : 2 * CONVOLUTION.larger["D"]]
    part.copy_(inputs["x"].detach())
    views = {
        "x": part,
        "weight": inputs["weight"].detach().t().contiguous().t(),
        "bias": torch.stack([inputs["bias"].detach()] * 2, 1)[:, 0],
        "initial_state": inputs["initial_state"].detach().transpose(1, 2).contiguous().transpose(1, 2),
        "valid": inputs["valid"].t().contiguous().t(),
        "start": torch.stack([inputs["start"]] * 2, 2)[..., 1],
    }
    assert not any(view.is_contiguous() for view in views.values())
    given = {"silu": True, "return_last_state": True, "backend": backend}
    for x in (part, part.transpose(1, 2).contiguous().transpose(1, 2)):
        leaf = x.requires_grad_()
        out, last = causal_conv1d(**views | {"x": leaf}, **given)
        assert torch.equal(out, expected["y"])
        assert torch.equal(last, expected["last"])
        # The gradient of a sum is not contiguous either.
        (dx,) = torch.autograd.grad(out.sum(), leaf)
        again = inputs["x"].detach().requires_grad_()
        out, _ = causal_conv1d(**inputs | {"x": again}, **given)
        torch.testing.assert_close(dx, torch.autograd.grad(out, again, torch.ones_like(out))[0])


def test_extreme_values_through_silu(backend):
    inputs = make_inputs(**CONVOLUTION.larger)
    inputs["x"] = inputs["x"].detach() * torch.logspace(-20, 20, CONVOLUTION.larger["L"]).view(1, -1, 1)
    # The error of each output is small compared with the largest term of its sum.
    expected = run(inputs, "reference", torch.float64)
    result = run(inputs, backend)
    assert all(value.isfinite().all() for value in result.values())
    CONVOLUTION.assert_close(result, expected)


@pytest.mark.parametrize("flags", [True, False])
def test_registration_passes_opcheck(cpp, flags):
    inputs = make_inputs(flags=flags)
    x, weight, bias, state = (inputs[name] for name in ("x", "weight", "bias", "initial_state"))
    valid, start = inputs.get("valid"), inputs.get("start")
    torch.library.opcheck(torch.ops.seqrec.causal_conv1d_fwd, (x, weight, bias, True, state, valid, start))
    torch.library.opcheck(torch.ops.seqrec.causal_conv1d_fwd, (x, weight, None, False, None, None, None))
    values = [value.detach() for value in (x, weight, bias)]
    given = (*values, True, state.detach(), valid, start)
    out, last = torch.ops.seqrec.causal_conv1d_fwd(*given)
    torch.library.opcheck(torch.ops.seqrec.causal_conv1d_bwd, (out, last, *given))
