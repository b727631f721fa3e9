"""What is peculiar to one encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import seqrec
from seqrec.encoders import ENCODERS, HRNN, HSTU, GRU4Rec, MambaRec, MoEMaTrRec, RecMamba, Samba, SASRec
from seqrec.encoders.layers import MIXERS, CausalSelfAttention, FeedForward, MambaMixer
from seqrec.errors import InputError
from seqrec.specs import from_spec, to_spec
from seqrec.types import History

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
HISTORY = History(torch.ones(2, 6, dtype=torch.int64), torch.tensor([6, 6]))


def count(encoder: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in encoder.modules())


@pytest.mark.parametrize(
    ("encoder", "attentions", "mambas", "feed_forwards"),
    [
        (SASRec, 3, 0, 3),
        (RecMamba, 0, 3, 3),
        (MambaRec, 0, 3, 0),
        (MoEMaTrRec, 3, 3, 3),
        (Samba, 1, 2, 3),
        (HSTU, 0, 0, 0),
        (GRU4Rec, 0, 0, 0),
        (HRNN, 0, 6, 0),
    ],
)
def test_blocks_are_made_of_the_papers_parts(encoder: type, attentions: int, mambas: int, feed_forwards: int):
    model = encoder(8, num_layers=3)
    assert count(model, CausalSelfAttention) == attentions
    assert count(model, MambaMixer) == mambas
    assert count(model, FeedForward) == feed_forwards


@pytest.mark.parametrize("encoder", [RecMamba, MambaRec, MoEMaTrRec])
@pytest.mark.parametrize("mixer", list(MIXERS))
def test_the_chosen_mixer_stands_in_every_block(encoder: type, mixer: str):
    model = encoder(8, num_layers=3, mixer=mixer, d_state=5, d_conv=2, expand=3)
    assert {name: count(model, MIXERS[name]) for name in MIXERS} == dict.fromkeys(MIXERS, 0) | {mixer: 3}


@pytest.mark.parametrize("name", list(ENCODERS))
def test_layer_norm_can_be_left_out(name: str):
    assert count(ENCODERS[name](8), nn.LayerNorm) > 0
    assert count(ENCODERS[name](8, layer_norm=False), nn.LayerNorm) == 0


@pytest.mark.parametrize("encoder", [SASRec, RecMamba, MoEMaTrRec])
def test_width_of_the_feed_forward_layer_is_d_model_unless_given(encoder: type):
    def widths(model: nn.Module) -> set[int]:
        return {m.layers[0].out_features for m in model.modules() if isinstance(m, FeedForward)}

    assert widths(encoder(8)) == {8}
    assert widths(encoder(8, d_feedforward=20)) == {20}


@pytest.mark.parametrize("encoder", [SASRec, MoEMaTrRec, HSTU])
def test_heads_must_divide_the_width(encoder: type):
    with pytest.raises(InputError, match=r"num_heads=3 must divide d_model=8; try one of \[1, 2, 4, 8\]"):
        encoder(8, num_heads=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "before"}, "norm='before' is unknown; known: pre, post, queries"),
        ({"feed_forward": "tanh"}, "feed_forward='tanh' is unknown; known: relu, gelu, swiglu"),
    ],
)
def test_unknown_blocks_of_sasrec_are_refused(arguments: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        SASRec(8, **arguments)


def test_a_spec_of_sasrec_from_before_there_were_choices_is_that_of_then():
    encoder = SASRec(8, num_layers=1).eval()
    spec = to_spec(encoder)
    for argument, value in {"norm": "pre", "feed_forward": "relu", "gated": False}.items():
        assert spec["init_args"].pop(argument) == value
    rebuilt = from_spec(spec).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(X, HISTORY), encoder(X, HISTORY))
    branches = ("norm.weight", "norm.bias", "layer.in_projection.weight", "layer.in_projection.bias")
    assert {f"stack.blocks.0.0.{name}" for name in branches} <= set(encoder.state_dict())
    assert len(encoder.state_dict()) == 14


def test_post_norm_has_no_norm_after_the_last_block():
    assert count(SASRec(8, num_layers=3), nn.LayerNorm) == 7
    assert count(SASRec(8, num_layers=3, norm="queries"), nn.LayerNorm) == 7
    assert count(SASRec(8, num_layers=3, norm="post"), nn.LayerNorm) == 6


def test_gru4rec_equals_torchs_stacked_gru():
    encoder = GRU4Rec(8, num_layers=2, layer_norm=False).eval()
    stacked = nn.GRU(8, 8, num_layers=2, batch_first=True)
    for number, layer in enumerate(encoder.layers):
        for name, weight in layer.state_dict().items():
            stacked.state_dict()[name.replace("l0", f"l{number}")].copy_(weight)
    torch.testing.assert_close(encoder(X, HISTORY), stacked(X)[0])


def test_moematrrec_with_a_closed_gate_is_one_of_its_experts():
    for open_expert, part in ((0, "attention"), (1, "mamba")):
        mixture = next(iter(MoEMaTrRec(8, num_layers=1).stack.blocks[0])).layer
        with torch.no_grad():
            mixture.gate.projection.weight.zero_()
            mixture.gate.projection.bias.fill_(-100.0)[open_expert] = 100.0
        torch.testing.assert_close(mixture.eval()(X), getattr(mixture, part)(X))


def test_moematrrec_gate_weighs_each_event_by_itself():
    mixture = next(iter(MoEMaTrRec(8, num_layers=1).stack.blocks[0])).layer
    weights = mixture.gate(X)
    torch.testing.assert_close(mixture.gate(X[:, 2:3]), weights[:, 2:3])
    assert weights.shape == (2, 6, 2)


@pytest.mark.parametrize("encoder", [RecMamba, MambaRec, MoEMaTrRec])
def test_a_spec_from_before_there_were_mixers_is_that_of_mamba(encoder: type):
    spec = to_spec(encoder(8, num_layers=1))
    assert spec["init_args"].pop("mixer") == "mamba"
    rebuilt = from_spec(spec)
    assert count(rebuilt, MambaMixer) == 1
    assert rebuilt.mixer == "mamba"


def test_samba_sees_windows_through_attention_and_all_events_through_mamba():
    encoder = Samba(8, num_layers=2, window=2, d_conv=1).eval()
    with torch.no_grad():
        encoder.stack.blocks[0][0].layer.out_projection.weight.zero_()
    other = X.clone()
    other[:, 1] += 1
    moved = (encoder(other, HISTORY) - encoder(X, HISTORY)).abs().amax((0, 2))
    assert (moved > 0).tolist() == [False, True, True, False, False, False]
    assert Samba(8).stack.blocks[1][0].layer.window == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"window": 51}, "window=51 is longer than the histories, max_length=50"),
        ({"num_heads": 8}, "rotary=True needs heads of even width"),
    ],
)
def test_samba_refuses_what_cannot_be(arguments: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        seqrec.Samba(10, d_model=8, max_length=50, **arguments)
