"""The encoders as a user of plain PyTorch writes them, and their training loop: what a training step is compared with.

B histories, L events, D width. Layers are torch's own (`nn.TransformerEncoder`, `nn.GRU`), mamba-ssm's module for
Mamba, or a scan in plain torch if that is not installed or there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.benchmark.step_clock import StepClock
from seqrec.encoders.layers import make_mixer
from seqrec.types import SequenceBatch

# Encoders that have a reference.
REFERENCES = ("GRU4Rec", "SASRec", "RecMamba", "MambaRec")
# Defaults of the presets.
STATES = {"d_state": 32, "d_conv": 4, "expand": 2}


class ReferenceModel(nn.Module):
    """Item vectors with learned positions, an encoder of torch's layers, and binary cross-entropy with one negative.

    The table has dense gradients. Negatives are uniform over the catalogue.

    Args:
        encoder: One of `REFERENCES`.
        num_items: Items of the catalogue.
        d_model: Width.
        num_layers: Blocks.
        dropout: Share that is set to 0.
        max_length: Events.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        device: Device, which decides on the layer for Mamba.

    Attributes:
        layer: What the layers are: "nn.GRU", "nn.TransformerEncoder", "mamba_ssm", or "torch scan".
    """

    def __init__(
        self,
        encoder: str,
        num_items: int,
        *,
        d_model: int,
        num_layers: int,
        dropout: float,
        max_length: int,
        mixer: str = "mamba",
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.num_items = num_items
        self.items = nn.Embedding(num_items + 1, d_model, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        self.positions = nn.Embedding(max_length, d_model)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d_model)
        self.encoder: nn.Module
        if encoder == "GRU4Rec":
            self.layer = "nn.GRU"
            self.encoder = nn.GRU(d_model, d_model, num_layers, batch_first=True)
        elif encoder == "SASRec":
            self.layer = "nn.TransformerEncoder"
            block = nn.TransformerEncoderLayer(d_model, 1, d_model, dropout, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(block, num_layers, enable_nested_tensor=False)
        else:
            self.layer, make = _mamba(mixer, device)
            feed_forward = d_model if encoder == "RecMamba" else None
            blocks = [_MambaBlock(make(d_model), d_model, feed_forward, dropout) for _ in range(num_layers)]
            self.encoder = nn.Sequential(*blocks)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return states (B, L, D) of full histories (B, L)."""
        positions = torch.arange(item_ids.shape[1], device=item_ids.device)
        scale = self.items.embedding_dim**0.5
        x = self.dropout(self.items(item_ids) * scale + self.positions(positions))
        if isinstance(self.encoder, nn.GRU):
            x = self.encoder(x)[0]
        elif isinstance(self.encoder, nn.TransformerEncoder):
            mask = nn.Transformer.generate_square_subsequent_mask(item_ids.shape[1], device=x.device, dtype=x.dtype)
            x = self.encoder(x, mask=mask, is_causal=True)
        else:
            x = self.encoder(x)
        out: Tensor = self.norm(x)
        return out

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Return the mean loss of a batch's targets, one negative each."""
        targets = batch.targets
        assert targets is not None
        states = self(batch.history.item_ids)
        negatives = torch.randint(1, self.num_items + 1, targets.shape, device=targets.device)
        positive = (states * self.items(targets)).sum(-1)
        negative = (states * self.items(negatives)).sum(-1)
        ones, zeros = torch.ones_like(positive), torch.zeros_like(negative)
        return F.binary_cross_entropy_with_logits(positive, ones) + F.binary_cross_entropy_with_logits(negative, zeros)


class _MambaBlock(nn.Module):
    def __init__(self, mixer: nn.Module, d_model: int, d_feedforward: int | None, dropout: float) -> None:
        super().__init__()
        self.mixer, self.norm = mixer, nn.LayerNorm(d_model)
        self.feed_forward: nn.Module | None = None
        if d_feedforward is not None:
            inner = (nn.Linear(d_model, d_feedforward), nn.ReLU(), nn.Dropout(dropout))
            outer = (nn.Linear(d_feedforward, d_model), nn.Dropout(dropout))
            self.feed_forward = nn.Sequential(nn.LayerNorm(d_model), *inner, *outer)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm(x))
        return x if self.feed_forward is None else x + self.feed_forward(x)


def _mamba(mixer: str, device: str) -> tuple[str, Callable[[int], nn.Module]]:
    # Return the name of the layer, and what makes one of a width.
    name = "torch scan"
    if device == "cuda" and mixer in ("mamba", "mamba2"):
        try:
            from mamba_ssm import Mamba, Mamba2
        except Exception as error:  # whatever a package that was built for another torch raises
            name += f", as mamba_ssm cannot be imported: {error}"
        else:
            if mixer == "mamba":
                return "mamba_ssm", lambda width: Mamba(d_model=width, **STATES)
            # Its convolution needs rows of a multiple of 8 numbers, which 8 heads make.
            return "mamba_ssm", lambda width: Mamba2(d_model=width, headdim=STATES["expand"] * width // 8, **STATES)
    return name, lambda width: make_mixer(mixer, width, **STATES)


def train_reference(model: ReferenceModel, batch: SequenceBatch, clock: StepClock, *, steps: int) -> None:
    """Train on one batch for some steps as a loop of plain PyTorch does: Adam, and nothing read from the device."""
    device = model.items.weight.device
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    model.train()
    for _ in range(steps):
        clock.start_step()
        moved = batch.to(device)
        optimizer.zero_grad()
        loss = model.loss(moved)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clock.finish_step(loss)
