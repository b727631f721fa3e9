from __future__ import annotations

import pytest
import torch

from seqrec import models
from seqrec.benchmark.catalogue import full_batch
from seqrec.benchmark.reference_models import REFERENCES, ReferenceModel

SHAPE = {"d_model": 8, "num_layers": 2, "dropout": 0.0, "max_length": 12}


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
@pytest.mark.parametrize("encoder", REFERENCES)
def test_states_ignore_future_events(encoder: str, mixer: str):
    torch.manual_seed(0)
    model = ReferenceModel(encoder, 50, mixer=mixer, **SHAPE).eval()
    item_ids = torch.randint(1, 51, (2, 12))
    changed = item_ids.clone()
    changed[:, 7] = changed[:, 7] % 50 + 1
    with torch.no_grad():
        first, second = model(item_ids), model(changed)
    torch.testing.assert_close(first[:, :7], second[:, :7])
    assert (first[:, 7:] - second[:, 7:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("encoder", REFERENCES)
def test_the_encoder_has_as_many_weights_as_ours(encoder: str):
    theirs = ReferenceModel(encoder, 50, **SHAPE)
    ours = getattr(models, encoder)(50, d_model=8, num_layers=2, max_length=12)
    counts = [sum(weight.numel() for weight in model.encoder.parameters()) for model in (theirs, ours)]
    norm = sum(weight.numel() for weight in theirs.norm.parameters())
    assert counts[0] + norm == counts[1]


@pytest.mark.parametrize("encoder", REFERENCES)
def test_every_weight_gets_a_finite_gradient_of_the_loss(encoder: str):
    torch.manual_seed(0)
    model = ReferenceModel(encoder, 50, **SHAPE)
    loss = model.loss(full_batch(50, 3, 12))
    assert loss.item() == pytest.approx(2 * torch.tensor(2.0).log().item(), abs=0.2)
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
