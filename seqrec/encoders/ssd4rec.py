"""SSD4Rec."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from seqrec.encoders.layers import FeedForward, ResidualStack, make_mixer
from seqrec.encoders.stacked_encoder import BidirectionalEncoder
from seqrec.errors import InputError


class BidirectionalMixer(nn.Module):
    """A mixer over the events from the oldest to the newest, plus `beta` times one from the newest to the oldest.

    Args:
        forwards: Causal mixer, which maps (B, L, D) to (B, L, D).
        backwards: The mixer of the reversed events; it may be the same one.
        beta: Weight of the reversed direction.
    """

    def __init__(self, forwards: nn.Module, backwards: nn.Module, beta: float) -> None:
        super().__init__()
        self.forwards = forwards
        self.backwards = backwards
        self.beta = beta

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D), given which places are events, `valid` (B, L) bool, padded on the right."""
        reversed_back = reverse_events(self.backwards(reverse_events(x, valid)), valid)
        out: Tensor = self.forwards(x) + self.beta * reversed_back
        return out


def reverse_events(x: Tensor, valid: Tensor) -> Tensor:
    """Return x (B, L, D) with each row's events, `valid` (B, L) bool, in reverse order; padding stays where it is.

    Example:
        >>> import torch
        >>> x, lengths = torch.tensor([[[1], [2], [3], [9]]]), torch.tensor([[3]])
        >>> reverse_events(x, torch.arange(4) < lengths).flatten().tolist()
        [3, 2, 1, 9]
    """
    steps = torch.arange(x.shape[1], device=x.device)
    places = torch.where(valid, valid.sum(1, keepdim=True) - 1 - steps, steps)
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


class SSD4Rec(BidirectionalEncoder):
    """Mamba-2 in both directions and feed-forward layers (SSD4Rec: A Structured State Space Duality Model for Efficient
    Sequential Recommendation, Qu et al. 2024).

    Time and memory grow with L. It is trained on masked items and cannot be streamed; see `seqrec.models.MaskedItems`.

    As in the paper's code, one mixer with the same weights runs over the events and over the reversed events, and the
    second counts `beta`. Differs from that code: outputs of the reversed direction are put back into the order of
    events, norms are before each branch and not after it, and feed-forward layers have ReLU, not GELU. Training
    predicts the masked items, whereas there masks only disturb the inputs of the next item's prediction.

    Args:
        d_model: Width D.
        num_layers: Blocks.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        beta: Weight of the reversed direction, above 0.
        share_weights: Whether both directions have the same weights.
        d_state: States per inner channel.
        d_conv: Events that the convolution sees.
        expand: Inner width divided by D.
        d_feedforward: Hidden width of the feed-forward layer; None is 4 D, as in the paper's code.
        dropout: Share of inputs, hidden units and feed-forward outputs set to 0 in training.
        layer_norm: False omits every norm.

    Raises:
        InputError: if `beta` is not above 0, or `SequenceEncoder` refuses.

    Example:
        >>> from seqrec.encoders import SSD4Rec
        >>> one, two = (SSD4Rec(d_model=8, num_layers=1, share_weights=shared) for shared in (True, False))
        >>> sum(x.numel() for x in one.parameters()) < sum(x.numel() for x in two.parameters())
        True
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba2",
        beta: float = 0.1,
        share_weights: bool = True,
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        d_feedforward: int | None = None,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        if not beta > 0:
            raise InputError(f"beta={beta} must be above 0; for one direction take RecMamba")
        self.mixer = mixer
        self.beta = beta
        self.share_weights = share_weights
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_feedforward = d_feedforward
        width = 4 * d_model if d_feedforward is None else d_feedforward

        def both_directions() -> BidirectionalMixer:
            sizes = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
            forwards = make_mixer(mixer, d_model, **sizes)
            backwards = forwards if share_weights else make_mixer(mixer, d_model, **sizes)
            return BidirectionalMixer(forwards, backwards, beta)

        blocks = [
            [both_directions(), FeedForward(d_model, d_feedforward=width, dropout=dropout)] for _ in range(num_layers)
        ]
        self.stack = ResidualStack(blocks, d_model, dropout=dropout, layer_norm=layer_norm)
