"""MoEMaTrRec with `causal=False`, which sees newer events on purpose; and that it does without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conformance import B, D, L, events
from torch import Tensor

from seqrec.encoders import MoEMaTrRec
from seqrec.encoders.contract import changed_in_turn, check_encoder, check_padding, check_rows
from seqrec.encoders.layers import CausalSelfAttention
from seqrec.encoders.moematrrec import AttentionMambaMixture
from seqrec.errors import InputError

both = pytest.mark.parametrize("causal", [True, False], ids=["causal", "as-published"])
mixers_and_rotary = pytest.mark.parametrize(
    "arguments", [{}, {"mixer": "mamba2"}, {"rotary": True, "num_heads": 2}], ids=str
)


def build(causal: bool = False, **arguments: object) -> MoEMaTrRec:
    torch.manual_seed(0)
    chosen = {"num_layers": 2, "num_heads": 2, "dropout": 0.0} | arguments
    return MoEMaTrRec(D, causal=causal, **chosen)


def first_mixture(encoder: MoEMaTrRec) -> AttentionMambaMixture:
    return next(iter(encoder.stack.blocks[0])).layer


@mixers_and_rotary
@torch.no_grad()
def test_an_event_moves_the_states_of_older_ones_as_published_alone(arguments: dict):
    x, history = events([L])
    for causal in (False, True):
        encoder = build(causal, **arguments).eval()
        # Row t: what changing event t does to each state.
        moved = (encoder(*changed_in_turn(x, history)) - encoder(x, history)).abs().amax(-1)
        older = torch.ones(L, L).tril(-1) > 0
        assert (moved[older] <= 1e-6 if causal else moved[older] > 1e-6).all()
        assert (moved[~older] > 0).all()


def test_the_contract_of_encoders_finds_the_leak():
    check_encoder(build(causal=True))
    with pytest.raises(AssertionError, match="the state of event 0 sees the future event 1"):
        check_encoder(build())


@mixers_and_rotary
@both
def test_padding_and_other_rows_do_not_matter(causal: bool, arguments: dict):
    check_padding(build(causal, **arguments))
    check_rows(build(causal, **arguments))


def by_hand(mixture: AttentionMambaMixture, x: Tensor) -> Tensor:
    """The mixture of one row (1, L, D) without padding: torch's own attention, and weights from the row's mean."""
    attention, width = mixture.attention, x.shape[2]
    attended, _ = F.multi_head_attention_forward(
        *3 * (x.transpose(0, 1),),
        *(width, attention.num_heads, attention.in_projection.weight, attention.in_projection.bias),
        *(None, None, False, 0.0, attention.out_projection.weight, attention.out_projection.bias),
    )
    weights = (mixture.gate.projection.weight @ x[0].mean(0) + mixture.gate.projection.bias).softmax(0)
    return weights[0] * attended.transpose(0, 1) + weights[1] * mixture.mamba(x)


@torch.no_grad()
def test_the_mixture_of_each_row_is_that_of_torchs_attention_over_its_events_alone():
    mixture = first_mixture(build())
    # Weights that differ much between rows, so that pooling over the wrong events shows.
    mixture.gate.projection.weight.mul_(10)
    x, history = events([L, 1, 4])
    x[~history.valid] = 100
    found = mixture(x, history.valid)
    for row, length in enumerate(history.lengths.tolist()):
        torch.testing.assert_close(found[row, :length], by_hand(mixture, x[row : row + 1, :length])[0])


def test_dropout_falls_on_attention_weights_in_training_alone():
    layer = CausalSelfAttention(D, num_heads=2, dropout=0.5)
    x, history = events([L] * B)
    assert not torch.equal(layer(x, history.valid), layer(x, history.valid))
    layer.eval()
    assert torch.equal(layer(x, history.valid), layer(x, history.valid))


def test_every_parameter_gets_a_finite_gradient_and_recomputed_blocks_the_same():
    encoder = build(dropout=0.3).train()
    x, history = events([L, 2, 5])

    def gradients(recompute: bool) -> list[Tensor]:
        encoder.stack.recompute = recompute
        torch.manual_seed(1)
        out = (encoder(x, history) * history.valid.unsqueeze(-1)).sin().sum()
        return list(torch.autograd.grad(out, list(encoder.parameters())))

    plain = gradients(False)
    assert all(gradient.isfinite().all() and gradient.count_nonzero() for gradient in plain)
    assert all(map(torch.equal, plain, gradients(True)))


@torch.no_grad()
def test_both_have_the_same_weights_and_agree_where_there_is_one_event():
    published, causal = build().eval(), build(causal=True).eval()
    assert published.state_dict().keys() == causal.state_dict().keys()
    published.load_state_dict(causal.state_dict())
    x, history = events([1, 1])
    torch.testing.assert_close(published(x, history), causal(x, history))
    x, history = events([L, 3])
    assert not torch.allclose(published(x, history), causal(x, history), atol=1e-3)
    newest = published(x, history)[torch.arange(2), history.lengths - 1]
    torch.testing.assert_close(published.newest(x, history), newest)


def test_it_cannot_be_streamed_and_says_why():
    encoder, message = (
        build().eval(),
        "causal=False sees newer events and cannot be streamed: .* causal: true",
    )
    with pytest.raises(InputError, match=message):
        encoder.init_state(1, max_length=5)
    tensors = build(causal=True).zero_state(1, 5, torch.zeros(0))
    with pytest.raises(InputError, match=message):
        encoder.advance(torch.zeros(1, 1, D), None, tensors)
