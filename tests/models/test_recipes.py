from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqrec import (
    BCE,
    Adam,
    FullSoftmax,
    GRU4Rec,
    ItemTable,
    SASRec,
    SequenceDataModule,
    Sequences,
    SequentialRecommender,
    Synthetic,
    recipe,
)
from seqrec.encoders import MambaRec as Encoder
from seqrec.errors import InputError
from seqrec.models.recipes import LogShape, choose, choose_to_continue
from seqrec.runs.callbacks import ResumableEarlyStopping, ValidationSteps

# About Beauty, ML-1M, an excerpt of LFM-1b, and a log of a large shop.
SPARSE = LogShape(users=22_363, events=153_776, items=12_101)
DENSE = LogShape(users=6_040, events=987_000, items=3_416)
LONG = LogShape(users=500, events=325_000, items=132_873)
LARGE = LogShape(users=5_000_000, events=200_000_000, items=2_000_000)
SMALL = LogShape(users=40, events=400, items=60)


def chosen(shape: LogShape, given: dict[str, Any] | None = None, model: str = "SASRec") -> dict[str, Any]:
    return {option: value for choice in choose(shape, model, given or {}) for option, value in choice.values.items()}


@pytest.mark.parametrize(
    ("shape", "length", "tokens", "dropout", "steps"),
    [
        (SPARSE, 50, 1000, 0.5, 6000),
        (DENSE, 200, 8000, 0.2, 3700),
        (LONG, 1000, 2500, 0.5, 3900),
        (LARGE, 50, 8000, 0.2, 25_000),
        (SMALL, 50, 1000, 0.5, 6000),
    ],
)
def test_length_batch_dropout_and_budget_follow_the_log(
    shape: LogShape, length: int, tokens: int, dropout: float, steps: int
):
    found = chosen(shape)
    assert found["data.max_length"] == length
    assert found["data.max_tokens"] == tokens
    assert found["model.dropout"] == dropout
    assert found["trainer.max_steps"] == steps
    # A window fits into a batch, a warm-up into the budget, and a validation into the patience.
    assert found["data.max_tokens"] >= length
    assert found["model.optimizer"]["init_args"]["schedule"]["init_args"]["warmup_steps"] < steps
    assert found["validation.every_n_steps"] <= found["early_stopping.patience_steps"] < steps


def test_continued_training_has_the_model_of_the_checkpoint_and_a_quarter_of_the_budget():
    table = ItemTable(dtype="bfloat16", temperature=0.1)
    model = SASRec(50, d_model=8, num_layers=1, max_length=30, item_table=table, optimizer=Adam(0.02), dropout=0.3)
    choices = choose_to_continue(LARGE, SASRec, model.hparams)
    found = {option: value for choice in choices for option, value in choice.values.items()}
    assert found["data.max_length"] == 30
    assert (found["model.d_model"], found["model.num_layers"], found["model.dropout"]) == (8, 1, 0.3)
    assert found["model.loss"]["class_path"] == "seqrec.BCE"  # though a fresh run would sample a softmax
    assert (found["model.item_table.dtype"], found["model.item_table.temperature"]) == ("bfloat16", 0.1)
    optimizer = found["model.optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["schedule"]["class_path"]) == (0.02, "seqrec.WarmupCosine")
    assert found["trainer.max_steps"] == chosen(LARGE, {"data.max_length": 30})["trainer.max_steps"] // 4 // 100 * 100
    given = {"trainer.max_steps": 40}
    (steps,) = (
        each.values["trainer.max_steps"]
        for each in choose_to_continue(LARGE, SASRec, model.hparams, given)
        if "trainer.max_steps" in each.values
    )
    assert steps == 40


@pytest.mark.parametrize(("items", "loss"), [(20_000, "FullSoftmax"), (20_001, "SampledSoftmax")])
def test_large_catalogues_are_sampled(items: int, loss: str):
    found = chosen(LogShape(users=100, events=10_000, items=items))
    assert found["model.loss"]["class_path"] == f"seqrec.{loss}"


def test_few_users_have_a_longer_patience_and_many_are_sampled():
    few, many = chosen(LONG), chosen(SPARSE)
    assert few["early_stopping.patience_steps"] / few["validation.every_n_steps"] == 15
    assert many["early_stopping.patience_steps"] / many["validation.every_n_steps"] == 8
    assert "data.val_users" not in few
    assert many["data.val_users"] == 10_000


@pytest.mark.parametrize(
    ("model", "positions"), [("SASRec", True), ("MambaRec", False), ("SequentialRecommender", None)]
)
def test_attention_gets_positions(model: str, positions: bool | None):
    assert chosen(DENSE, model=model).get("model.positions") is positions


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"data.max_length": 3000}, {"data.max_tokens": 3000}),
        ({"data.max_tokens": 4000}, {"trainer.max_steps": 1500}),
        ({"trainer.max_steps": 90}, {"validation.every_n_steps": 3}),
        ({"trainer.max_epochs": 2, "trainer.limit_train_batches": 2}, {"validation.every_n_steps": 1}),
        ({"validation.every_n_steps": 50}, {"early_stopping.patience_steps": 400}),
        ({"data.batch_size": 64, "trainer.accumulate_grad_batches": 2, "trainer.max_epochs": 30}, {}),
    ],
)
def test_choices_fit_to_what_is_given(given: dict[str, Any], expected: dict[str, Any]):
    found = chosen(SPARSE, given)
    assert {option: found[option] for option in expected} == expected


def test_accumulated_batches_make_fewer_updates():
    once, twice = (
        chosen(DENSE, {"trainer.max_epochs": 30, "trainer.accumulate_grad_batches": count}) for count in (1, 2)
    )
    assert once["trainer.max_steps"] == pytest.approx(2 * twice["trainer.max_steps"], abs=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SequenceDataModule:
    source = Synthetic(num_users=40, num_items=60, mean_events=12)
    return SequenceDataModule(source, store=str(tmp_path_factory.mktemp("log") / "store"))


def test_recipe_makes_data_model_and_trainer(data: SequenceDataModule, tmp_path: Path):
    found = recipe(data, "SASRec")
    found.configure(data)
    assert (data.max_length, data.max_tokens) == (50, 1000)
    model = found.model(data, dropout=0.3)
    assert isinstance(model, SASRec)
    assert isinstance(model.loss, FullSoftmax)
    assert model.item_table.temperature == 0.05
    assert model.hparams["dropout"] == 0.3
    assert isinstance(found.model(data, loss=BCE()).loss, BCE)
    trainer = found.trainer(max_steps=7, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    assert trainer.max_steps == 7
    kinds = {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    assert {ValidationSteps, ResumableEarlyStopping} <= kinds
    assert all(option in str(found) for option in found.values)


def test_recipe_of_a_class_has_the_arguments_that_it_takes(data: SequenceDataModule):
    found = recipe(data, SequentialRecommender)
    assert "model.loss" in found.values
    assert "model.dropout" not in found.values
    assert found.model(data, encoder=Encoder(d_model=8)).title == "MambaRec"
    assert recipe(data, GRU4Rec).values["model.positions"] is False


def test_unknown_models_and_logs_without_targets_are_refused(data: SequenceDataModule, tmp_path: Path):
    with pytest.raises(InputError, match="model='SASrec' must be one of BERT4Rec, GRU4Rec, HRNN, HSTU, MambaRec"):
        recipe(data, "SASrec")
    log = tmp_path / "log.txt"
    log.write_text("1 1\n1 2\n1 3\n2 1\n2 2\n2 3\n")
    short = SequenceDataModule(Sequences(str(log)), store=str(tmp_path / "store"))
    with pytest.raises(InputError, match="no user has two training events, there is nothing to learn"):
        recipe(short, "SASRec")
