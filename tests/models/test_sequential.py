from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.tuner import Tuner

from seqrec import encoders
from seqrec.catalogue.recommend import RecommendOptions
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.encoders.layers import LearnedPositions
from seqrec.errors import InputError
from seqrec.models import GRU4Rec, SASRec, SequentialRecommender
from seqrec.training.losses import FullSoftmax
from seqrec.training.optim import Adam, OptimizerFactory
from seqrec.types import SequenceBatch

MakeBatch = Callable[..., SequenceBatch]


def model(**arguments: object) -> SASRec:
    torch.manual_seed(0)
    return SASRec(12, d_model=8, **({"max_length": 6, "dropout": 0.0} | arguments)).eval()


def test_states_are_the_encoders_of_scaled_items_and_positions(make_batch: MakeBatch):
    sasrec, history = model(), make_batch([[1, 2, 3], [4]], [5, 6]).history
    x = sasrec.items.weight[history.item_ids] * 8**0.5 + sasrec.positions(history)
    torch.testing.assert_close(sasrec(history), sasrec.encoder(x, history))


def test_last_states_are_those_of_the_newest_events(make_batch: MakeBatch):
    sasrec, batch = model(), make_batch([[1, 2, 3], [4], [5, 6]], [7, 8, 9])
    states = sasrec(batch.history)
    expected = torch.stack([states[0, 2], states[1, 0], states[2, 1]])
    torch.testing.assert_close(sasrec.last_states(batch), expected)


def test_scores_use_the_table_that_embeds_the_history():
    sasrec = model()
    assert sasrec.scorer().item_vectors is sasrec.items.weight


@pytest.mark.parametrize("positions", [True, False])
def test_a_recommendation_does_not_depend_on_padding(positions: bool, make_batch: MakeBatch):
    sasrec = model(positions=positions)
    alone = sasrec.last_states(make_batch([[4, 2]], [5]))
    beside_a_longer_one = sasrec.last_states(make_batch([[4, 2], [1, 2, 3, 4, 5]], [5, 6]))
    torch.testing.assert_close(beside_a_longer_one[:1], alone)


def test_shared_newest_events_get_the_same_positions(make_batch: MakeBatch):
    positions = LearnedPositions(6, 8)
    vectors = positions(make_batch([[1, 2, 3, 4, 5], [3, 4, 5]], [6, 6]).history)
    assert torch.equal(vectors[0, 2:], vectors[1, :3])
    assert torch.equal(vectors[1, 2], positions.weight[0])


def test_a_history_longer_than_max_length_is_refused(make_batch: MakeBatch):
    batch = make_batch([[1, 2, 3, 4, 5, 6, 7]], [8])
    with pytest.raises(InputError, match=r"a history of 7 events exceeds max_length=6.*cut it to the newest"):
        model()(batch.history)
    assert model(positions=False)(batch.history).shape == (1, 7, 8)


def test_a_user_vector_tells_users_with_one_history_apart(make_batch: MakeBatch):
    sasrec = model(user_embedding=True, num_users=3)
    states = sasrec.last_states(make_batch([[1, 2], [1, 2]], [3, 3], [1, 2]))
    assert not torch.equal(states[0], states[1])
    assert torch.equal(sasrec.users.weight[0], torch.zeros(8))


def test_an_unknown_user_is_a_model_without_user(make_batch: MakeBatch):
    sasrec = model(user_embedding=True, num_users=3)
    batch = make_batch([[1, 2]], [3], [0])
    assert torch.equal(sasrec(batch.history, batch.user_ids), sasrec(batch.history, None))


def test_user_embedding_needs_the_number_of_users():
    with pytest.raises(InputError, match="user_embedding needs num_users"):
        model(user_embedding=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_length": 0}, "max_length=0 must be at least 1"), ({"num_heads": 3}, "num_heads=3 must divide")],
)
def test_values_out_of_range_are_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        model(**arguments)


def test_a_catalogue_without_items_is_refused():
    with pytest.raises(InputError, match="num_items=0 must be at least 1"):
        SASRec(0)


def test_an_encoder_may_be_given_as_a_spec():
    spec = {"class_path": "seqrec.encoders.GRU4Rec", "init_args": {"d_model": 4}}
    assert isinstance(SequentialRecommender(5, encoder=spec).encoder, encoders.GRU4Rec)


def test_training_learns_a_tiny_log_by_heart(batches: Sequence[SequenceBatch], make_trainer: Callable):
    pl.seed_everything(0, verbose=False)
    sasrec = model(optimizer=Adam(0.02), num_layers=1).train()

    def loss() -> float:
        with torch.no_grad():
            return sum(float(sasrec.loss(sasrec(b.history), b, sasrec.scorer())) for b in batches)

    before = loss()
    trainer = make_trainer(max_epochs=40)
    trainer.fit(sasrec, batches, batches)
    assert loss() < before / 2
    assert trainer.callback_metrics["val_HR@5"] == 1


def test_padding_vector_stays_zero_in_training(batches: Sequence[SequenceBatch], make_trainer: Callable):
    sasrec = model(optimizer=Adam(0.1)).train()
    make_trainer(max_steps=2).fit(sasrec, batches, batches)
    assert torch.equal(sasrec.items.weight[0], torch.zeros(8))


def test_predictions_leave_out_seen_items_unless_told(make_batch: MakeBatch):
    sasrec, batch = model(), make_batch([[1, 2, 3], [4]], [5, 6])
    sasrec.options = RecommendOptions(12)
    best = sasrec.predict_step(batch, 0)
    assert sorted(best.item_ids[0].tolist()) == [0, 0, 0, *range(4, 13)]
    assert best.user_ids.tolist() == [1, 2]
    sasrec.options = RecommendOptions(12, filter_seen=False)
    assert sorted(sasrec.predict_step(batch, 0).item_ids[0].tolist()) == list(range(1, 13))


def test_gradients_count_by_the_batchs_weight_and_the_loss_does_not(make_batch: MakeBatch):
    recommender = model().train()
    batch = make_batch([[1, 2, 3], [4]], [4, 5])
    losses, gradients = [], []
    for weight in (1.0, 0.5):
        torch.manual_seed(0)  # the same negatives
        loss = recommender.training_step(dataclasses.replace(batch, weight=torch.tensor(weight)), 0)
        recommender.zero_grad()
        recommender.backward(loss)
        losses.append(loss.item())
        gradients.append(recommender.items.table.weight.grad.clone())
    assert losses[0] == losses[1] > 0
    torch.testing.assert_close(gradients[1], gradients[0] / 2)


@pytest.mark.parametrize(
    "cut", [{"limit_train_batches": 1}, {"max_steps": 2}, {"fast_dev_run": 2}, {"limit_train_batches": 0.5}, {}]
)
def test_the_epochs_loss_is_a_mean_of_losses_however_it_is_cut(cut: dict[str, object], tmp_path: Path):
    """The learning rate is 0, so the loss of each batch can be computed again."""
    source = Synthetic(num_users=30, num_items=20, mean_events=12, seed=2)
    data = SequenceDataModule(source, store=str(tmp_path / "store"), max_length=20, max_tokens=60)
    recommender = GRU4Rec(data.num_items, d_model=8, max_length=20, dropout=0.0, loss=FullSoftmax())
    recommender.optimizer = SGDOfNoStep()
    seen: list[tuple[float, float]] = []
    recommender.loss.register_forward_hook(lambda _, given, loss: seen.append((loss.item(), given[1].weight.item())))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **(quiet | cut))
    trainer.fit(recommender, data)
    losses, weights = map(np.array, zip(*seen, strict=True))
    assert trainer.callback_metrics["train_loss_epoch"].item() == pytest.approx(
        (losses * weights).sum() / weights.sum()
    )
    assert weights.min() < 0.95 or len(weights) < 3


class SGDOfNoStep(OptimizerFactory):
    """An optimizer that changes nothing."""

    schedule = None

    def build(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=0.0)


def test_lightnings_own_search_of_a_step_size_sees_the_loss(tmp_path: Path):
    source = Synthetic(num_users=60, num_items=20, mean_events=12, seed=2)
    data = SequenceDataModule(source, store=str(tmp_path / "store"), max_length=20, batch_size=4)
    recommender = GRU4Rec(data.num_items, d_model=8, max_length=20)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        max_epochs=20,
    )
    found = Tuner(trainer).lr_find(recommender, data, num_training=40)
    assert found is not None
    assert len(found.results["loss"]) > 30
    assert found.suggestion() is not None
