"""What every registered encoder must do. A new encoder is tested here without a line being added."""

from __future__ import annotations

import inspect
import json
import re
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conformance import ARCHITECTURES, CASES, B, Case, D, L, events
from torch import Tensor

import seqrec.encoders
import seqrec.models
from seqrec.encoders import ENCODERS
from seqrec.encoders.contract import check_causality, check_padding, cut
from seqrec.encoders.layers import MIXERS
from seqrec.encoders.layers.attention import CausalSelfAttention
from seqrec.encoders.layers.positionwise import FeedForward, TokenGate
from seqrec.errors import InputError
from seqrec.models import MaskedItems, SequentialRecommender
from seqrec.models.masked_items import masked_batch
from seqrec.specs import from_spec, to_spec
from seqrec.types import History, RaggedItems, SequenceBatch

REPOSITORY = Path(__file__).parents[2]
BIDIRECTIONAL = [name for name in ENCODERS if ENCODERS[name].bidirectional]

every_encoder = pytest.mark.parametrize("name", list(ENCODERS))
# Whether gaps are read is no argument of an encoder.
every_architecture = pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if not each.gaps], ids=str)
# Each of both choices with one of the other; the other two are slow only because they are many.
with_and_without_norm_and_training = pytest.mark.parametrize(
    ("layer_norm", "training"),
    [
        pytest.param(True, False, id="eval-norm"),
        pytest.param(False, True, id="train-no-norm"),
        pytest.param(True, True, id="train-norm", marks=pytest.mark.slow),
        pytest.param(False, False, id="eval-no-norm", marks=pytest.mark.slow),
    ],
)
with_and_without_norm = pytest.mark.parametrize("layer_norm", [True, False], ids=["norm", "no-norm"])


def sizes(cls: type) -> list[str]:
    """The arguments of a class that are integers."""
    hints = typing.get_type_hints(cls.__init__)
    return [name for name, hint in hints.items() if hint is int or int in typing.get_args(hint)]


# Layers whose sizes an encoder may set, with what else they need.
LAYERS = {FeedForward: {"d_model": 8}, TokenGate: {"d_model": 8, "num_experts": 2}}
LAYERS |= {CausalSelfAttention: {"d_model": 8, "num_heads": 2}, **{mixer: {"d_model": 8} for mixer in MIXERS.values()}}
SIZES = [(cls, {}, size) for cls in (ENCODERS[name] for name in ENCODERS) for size in sizes(cls)]
SIZES += [(cls, others, size) for cls, others in LAYERS.items() for size in sizes(cls)]


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(("cls", "others", "size"), SIZES)
def test_a_size_that_is_not_positive_is_refused_by_name(cls: type, others: dict[str, int], size: str, value: int):
    with pytest.raises(InputError, match=rf"\b{size}={value}\b"):
        cls(**{**others, size: value})


def test_the_sizes_are_found():
    found = {(cls.__name__, size) for cls, _, size in SIZES}
    assert {("SASRec", "num_heads"), ("SASRec", "d_feedforward"), ("TokenGate", "num_experts")} <= found
    assert {("MambaRec", "d_state"), ("GRU4Rec", "num_layers")} <= found


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """Interpreted kernels take long; tests of ops have them at smaller sizes."""
    return [pytest.mark.kernels, pytest.mark.slow] if case.scan == "triton" else []


@pytest.fixture(
    params=[pytest.param(case, marks=marks(case)) for case in CASES],
    ids=[str(case) for case in CASES],
)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Each encoder in each of its ways of computing that this machine has."""
    case: Case = request.param
    if case.scan is not None:
        assert case.backends is not None
        if reason := case.backends[case.scan].why_unusable("cpu", torch.float32):
            pytest.skip(f"{case.scan} {reason}")
        monkeypatch.setenv(case.backends.variable, case.scan)
        if case.scan == "triton":
            request.getfixturevalue("interpreter_patches_its_language_once")
    return case


@with_and_without_norm
def test_states_have_the_shape_and_type_of_the_events(case: Case, layer_norm: bool):
    x, history = events([L] * B)
    states = case.build(layer_norm=layer_norm)(x, history)
    assert states.shape == x.shape
    assert states.dtype == x.dtype
    assert states.device == x.device


@with_and_without_norm
def test_the_newest_events_have_the_states_of_the_whole_pass(case: Case, layer_norm: bool):
    encoder = case.build(layer_norm=layer_norm).eval()
    lengths = [L, 1, L // 2, L - 1]
    x, history = events(lengths)
    whole = encoder(x, history)[torch.arange(len(lengths)), torch.tensor(lengths) - 1]
    torch.testing.assert_close(encoder.newest(x, history), whole, rtol=1e-5, atol=1e-5)


@with_and_without_norm_and_training
def test_states_ignore_future_events_unless_they_are_bidirectional(case: Case, layer_norm: bool, training: bool):
    check_causality(case.build(layer_norm=layer_norm).train(training))


@with_and_without_norm_and_training
def test_padding_does_not_change_states_of_events(case: Case, layer_norm: bool, training: bool):
    check_padding(case.build(layer_norm=layer_norm).train(training))


def test_future_inputs_get_no_gradient(case: Case):
    x, history = events([L] * B)
    x.requires_grad_()
    case.build()(x, history)[:, 3].square().sum().backward()
    seen = L if case.bidirectional else 4
    assert x.grad[:, seen:].count_nonzero() == 0
    assert (x.grad[:, :seen].abs().amax(-1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_no_masked_item_is_visible(name: str):
    torch.manual_seed(0)
    model = SequentialRecommender(30, encoder=ENCODERS[name](D), max_length=L).eval()
    history, targets = events([L, 4])[1], torch.randint(1, 31, (2, L))
    targets[1, 4:] = 0
    history = History(torch.cat([torch.ones(2, 1, dtype=torch.int64), targets[:, :-1]], 1), history.lengths)
    batch = SequenceBatch(history, targets, torch.tensor([1, 2]), RaggedItems.from_rows([targets[0], targets[1, :4]]))
    hidden = MaskedItems(share=0.4).draw(batch)
    before, masked = masked_batch(batch, hidden)
    assert torch.equal(masked.is_target, hidden)
    for place in map(tuple, hidden.nonzero().tolist()):
        other = targets.clone()
        other[place] = other[place] % 30 + 1
        items = torch.cat([history.item_ids[:, :1], other[:, :-1]], 1) * history.valid
        after, _ = masked_batch(replace(batch, targets=other, history=replace(history, item_ids=items)), hidden)
        assert torch.equal(model(after), model(before))


@torch.no_grad()
def test_rows_do_not_see_each_other(case: Case):
    encoder = case.build().eval()
    x, history = events([L] * B)
    before = encoder(x, history)
    x[0] += 1
    after = encoder(x, history)
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0], before[0])
    order = torch.tensor([2, 0, 1])
    shuffled = History(history.item_ids[order], history.lengths[order], history.timestamps[order])
    torch.testing.assert_close(encoder(x[order], shuffled), after[order])


@with_and_without_norm
def test_every_parameter_gets_a_finite_gradient_other_than_zero(case: Case, layer_norm: bool):
    encoder = case.build(layer_norm=layer_norm, dropout=0.1).train()
    x, history = events([L] * B)
    (encoder(x, history) * torch.randn(B, L, D)).sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.count_nonzero() > 0, parameter_name


def test_states_repeat_in_evaluation_but_not_with_dropout(case: Case):
    encoder = case.build(dropout=0.5)
    x, history = events([L] * B)
    assert torch.equal(encoder.eval()(x, history), encoder(x, history))
    assert not torch.equal(encoder.train()(x, history), encoder(x, history))


@torch.no_grad()
def test_odd_and_long_histories_agree_with_their_beginnings(case: Case):
    encoder = case.build().eval()
    x, history = events([1000])
    whole = encoder(x, history)
    assert whole.isfinite().all()
    for length in (1, 63, 257):
        part = encoder(*cut(x, history, slice(None), length))
        if case.bidirectional:
            whole = encoder(x, replace(history, lengths=torch.tensor([length])))
        torch.testing.assert_close(part, whole[:, :length], rtol=1e-4, atol=1e-5)


def test_fast_scans_equal_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch):
    encoder = case.build()
    x, history = events([70, 3])

    def outcome() -> list[Tensor]:
        states = encoder(x, history)
        return [states, *torch.autograd.grad(states[:, ::7].square().sum(), list(encoder.parameters()))]

    found = outcome()
    if case.backends is not None:
        monkeypatch.setenv(case.backends.variable, "reference")
    for value, expected in zip(found, outcome(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_state_dict_carries_every_weight(case: Case):
    encoder, other = case.build().eval(), case.build().eval()
    for parameter in encoder.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    x, history = events([L] * B)
    assert not torch.equal(other(x, history), encoder(x, history))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(x, history), encoder(x, history))


@with_and_without_norm
def test_bfloat16_autocast_stays_near_float32(case: Case, layer_norm: bool):
    encoder = case.build(layer_norm=layer_norm)
    x, history = events([L] * B)
    expected = encoder(x, history)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = encoder(x, history)
        states.float().square().mean().backward()
    # bfloat16 keeps 8 bits: 0.4 % a rounding, and a few dozen of them in two blocks.
    error = (states.float() - expected).norm() / expected.norm()
    assert error < 0.03
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def other_arguments(name: str) -> dict[str, object]:
    """All arguments of an encoder, with plain values that differ from the defaults and are as valid."""
    kinds = typing.get_type_hints(ENCODERS[name].__init__)
    others: dict[str, object] = {}
    for argument, parameter in inspect.signature(ENCODERS[name]).parameters.items():
        value = parameter.default
        if typing.get_origin(kinds[argument]) is typing.Literal:
            others[argument] = next(kind for kind in typing.get_args(kinds[argument]) if kind != value)
        elif isinstance(value, bool):
            others[argument] = not value
        elif isinstance(value, int):
            others[argument] = value + 1  # 1 head becomes 2
        else:
            others[argument] = value / 2 if isinstance(value, float) else value
    return others | {"d_model": D}


@every_architecture
@torch.no_grad()
def test_spec_rebuilds_the_same_architecture(architecture: Case):
    name = architecture.name
    arguments = other_arguments(name) | architecture.choices
    encoder = ENCODERS[name](**arguments).eval()
    spec = json.loads(json.dumps(to_spec(encoder)))
    assert spec["init_args"] == arguments
    rebuilt = from_spec(spec).eval()
    assert type(rebuilt) is ENCODERS[name]
    assert str(rebuilt) == str(encoder)
    rebuilt.load_state_dict(encoder.state_dict())
    x, history = events([L] * B)
    assert torch.equal(rebuilt(x, history), encoder(x, history))


@every_encoder
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, "d_model=0 must be at least 1"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must be at least 0 and below 1"),
    ],
    ids=["d_model", "num_layers", "dropout-1", "dropout-negative"],
)
def test_values_out_of_range_are_refused(name: str, arguments: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        ENCODERS[name](**({"d_model": D} | arguments))


@every_encoder
def test_misspelt_arguments_are_refused(name: str):
    with pytest.raises(TypeError, match="num_layer"):
        ENCODERS[name](D, num_layer=2)


@every_encoder
def test_class_registry_and_preset_share_one_name(name: str):
    assert ENCODERS[name].__name__ == name
    assert getattr(seqrec.encoders, name) is ENCODERS[name]
    preset = getattr(seqrec.models, name)
    assert issubclass(preset, seqrec.models.SequentialRecommender)


@every_encoder
def test_a_config_names_the_preset(name: str):
    config = REPOSITORY / "configs" / "fragments" / "model" / f"{name}.yaml"
    assert config.is_file(), f"add configs/fragments/model/{name}.yaml with `model: {{class_path: {name}}}`"
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    class_path = content.get("model", content)["class_path"]
    assert class_path in (name, f"seqrec.models.{name}", f"seqrec.models.presets.{name}")


@every_encoder
def test_a_preset_takes_its_encoders_arguments_with_the_same_defaults(name: str):
    preset = inspect.signature(getattr(seqrec.models, name)).parameters
    for argument, parameter in inspect.signature(ENCODERS[name]).parameters.items():
        assert argument in preset, f"seqrec.models.{name} does not take {argument}"
        assert preset[argument].default == parameter.default, argument
    model = getattr(seqrec.models, name)(5)
    assert to_spec(model.encoder) == to_spec(ENCODERS[name]())


@every_encoder
def test_a_preset_passes_every_argument_on(name: str):
    arguments = other_arguments(name)
    model = getattr(seqrec.models, name)(5, **arguments)
    assert to_spec(model.encoder)["init_args"] == arguments


@every_encoder
def test_the_choice_between_mixers_is_between_those_that_there_are(name: str):
    if (kind := typing.get_type_hints(ENCODERS[name].__init__).get("mixer")) is not None:
        assert typing.get_args(kind) == tuple(MIXERS)
        with pytest.raises(InputError, match=f"unknown mixer 'foo'; known: {', '.join(MIXERS)}"):
            ENCODERS[name](D, mixer="foo")
