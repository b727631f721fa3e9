"""Models built by hand and saved by a trainer load again with `load_from_checkpoint`'s defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import seqrec.models
from seqrec import encoders
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError
from seqrec.models import MambaRec, Popularity, Recommender, SequentialRecommender
from seqrec.specs import to_spec
from seqrec.training.losses import BCE
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import AdamW
from seqrec.types import SequenceBatch

Save = Callable[[Recommender, Sequence[SequenceBatch]], Path]
NUM_ITEMS, NUM_USERS = 12, 6
every_preset = pytest.mark.parametrize("name", list(ENCODERS))


@torch.no_grad()
def scores(model: Recommender, batches: Sequence[SequenceBatch]) -> torch.Tensor:
    model.eval()
    return torch.cat([model.last_states(batch) @ model.scorer().item_vectors.T for batch in batches])


def preset(name: str, **arguments: object) -> SequentialRecommender:
    torch.manual_seed(0)
    return getattr(seqrec.models, name)(NUM_ITEMS, d_model=8, max_length=7, **arguments)


@every_preset
def test_a_preset_loads_with_equal_scores(name: str, batches: Sequence[SequenceBatch], saved: Save):
    model = preset(name, num_layers=1, dropout=0.3, layer_norm=False)
    path = saved(model, batches)
    loaded = type(model).load_from_checkpoint(path)
    assert type(loaded) is type(model)
    assert torch.equal(scores(loaded, batches), scores(model, batches))
    assert to_spec(loaded.encoder) == to_spec(model.encoder)
    assert dict(loaded.hparams) == dict(model.hparams)
    general = SequentialRecommender.load_from_checkpoint(path)
    assert type(general) is SequentialRecommender
    assert torch.equal(scores(general, batches), scores(model, batches))


def test_a_mixture_as_published_stays_one(batches: Sequence[SequenceBatch], saved: Save):
    model = preset("MoEMaTrRec", causal=False)
    path = saved(model, batches)
    for loaded in (type(model).load_from_checkpoint(path), SequentialRecommender.load_from_checkpoint(path)):
        assert loaded.encoder.causal is False
        assert torch.equal(scores(loaded, batches), scores(model, batches))


def test_a_model_around_an_encoder_object_loads(batches: Sequence[SequenceBatch], saved: Save):
    encoder = encoders.MoEMaTrRec(8, num_heads=2, d_state=3, d_feedforward=5, dropout=0.1)
    model = SequentialRecommender(NUM_ITEMS, encoder=encoder, max_length=9)
    loaded = SequentialRecommender.load_from_checkpoint(saved(model, batches))
    assert torch.equal(scores(loaded, batches), scores(model, batches))
    assert to_spec(loaded.encoder) == to_spec(encoder)


def test_a_preset_loads_what_was_built_around_its_encoder(batches: Sequence[SequenceBatch], saved: Save):
    model = SequentialRecommender(NUM_ITEMS, encoder=encoders.SASRec(8, num_heads=4), max_length=9)
    loaded = seqrec.models.SASRec.load_from_checkpoint(saved(model, batches))
    assert torch.equal(scores(loaded, batches), scores(model, batches))
    assert loaded.hparams.num_heads == 4


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("user_embedding", [True, False])
def test_positions_and_users_survive(
    positions: bool, user_embedding: bool, batches: Sequence[SequenceBatch], saved: Save
):
    model = preset("GRU4Rec", positions=positions, user_embedding=user_embedding, num_users=NUM_USERS)
    path = saved(model, batches)
    for loaded in (type(model).load_from_checkpoint(path), SequentialRecommender.load_from_checkpoint(path)):
        assert (loaded.positions is not None) == positions
        assert (loaded.users is not None) == user_embedding
        assert torch.equal(scores(loaded, batches), scores(model, batches))


def test_loss_and_optimizer_objects_survive(batches: Sequence[SequenceBatch], saved: Save):
    loss = BCE(UniformNegatives(3, exclude_seen=False))
    optimizer = AdamW(0.007, betas=(0.8, 0.95), weight_decay=0.3)
    path = saved(preset("SASRec", loss=loss, optimizer=optimizer), batches)
    for kind in (seqrec.models.SASRec, SequentialRecommender):
        loaded = kind.load_from_checkpoint(path)
        assert isinstance(loaded.loss, BCE)
        assert to_spec(loaded.loss) == to_spec(loss)
        assert isinstance(loaded.optimizer, AdamW)
        assert to_spec(loaded.optimizer) == to_spec(optimizer)
        built = loaded.configure_optimizers()
        assert isinstance(built, torch.optim.AdamW)
        assert {group["lr"] for group in built.param_groups} == {0.007}


def test_an_argument_given_at_loading_replaces_the_saved_one(batches: Sequence[SequenceBatch], saved: Save):
    path = saved(preset("SASRec"), batches)
    loaded = seqrec.models.SASRec.load_from_checkpoint(path, optimizer=AdamW(0.5))
    assert loaded.optimizer.lr == 0.5


@every_preset
def test_a_checkpoint_holds_only_plain_values_and_tensors(name: str, batches: Sequence[SequenceBatch], saved: Save):
    path = saved(preset(name, loss=BCE(), optimizer=AdamW()), batches)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["num_items"] == NUM_ITEMS
    assert checkpoint["hyper_parameters"]["encoder"]["class_path"].endswith(f".{name}")


def test_popularity_loads_with_its_counts(batches: Sequence[SequenceBatch], make_trainer: Callable, tmp_path: Path):
    model = Popularity.from_counts(np.array([0, 5, 2, 2**40 + 1]))
    trainer = make_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"] == {"num_items": 3}
    loaded = Popularity.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.item_counts.tolist() == [0, 5, 2, 2**40 + 1]


@pytest.mark.parametrize("change", ["renamed", "lacking", "longer"])
def test_weights_of_another_version_name_the_first_that_differs(change: str):
    model = MambaRec(20, d_model=8, num_layers=1, max_length=5)
    weights = dict(model.state_dict())
    name = next(name for name in weights if "conv_bias" in name)
    value = weights.pop(name)
    if change != "lacking":
        weights[name if change == "longer" else f"{name}_renamed"] = torch.cat([value, value])
    state = "has another" if change == "longer" else "has no"
    with pytest.raises(
        InputError, match=f"weights of another model: it {state} {name}, so it may be of another version"
    ):
        model._check_weights({"state_dict": weights, "hyper_parameters": dict(model.hparams)})
