"""Models that predict columns of the next event besides the item."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from event_inputs import ALL_TIMES, COLUMNS, ITEMS, LOOKS, TAB, WATCHED, build, random_history
from featured_logs import SCHEMA, featured_log

from seqrec import ColumnHead, EventColumn, Schema, Table, load
from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError
from seqrec.models import GRU4Rec, SequentialRecommender
from seqrec.training.losses import FullSoftmax
from seqrec.types import History, RaggedItems, SequenceBatch

HEADS = [ColumnHead(TAB, weight=0.5), ColumnHead(WATCHED, weight=0.1)]


def featured_data(folder: Path, **settings: Any) -> SequenceDataModule:
    log = featured_log(folder / "log.parquet", num_users=30, num_items=40, mean_events=12, seed=2)
    return SequenceDataModule(log, store=str(folder / "store"), schema=SCHEMA, **{"batch_size": 8, **settings})


@pytest.mark.parametrize("condition", [None, "watched > 50"])
@pytest.mark.parametrize("max_length", [5, 300])
def test_batches_have_the_columns_of_the_next_event(tmp_path: Path, condition: str | None, max_length: int):
    data = featured_data(tmp_path, targets=condition, max_length=max_length)
    data.target_columns = ("tab", "watched")
    store, (mean, std) = data.store, data.event_scales["watched"]
    missing = 0
    for batch in data.train_dataloader():
        assert batch.target_features is not None
        assert batch.target_features.keys() == {"tab", "watched"}
        for row, user in enumerate(batch.user_ids.tolist()):
            items = batch.history.item_ids[row][batch.history.valid[row]]
            begin, end = store.offsets[user - 1 : user + 1].tolist()
            times = np.asarray(store.timestamps[begin:end]).tolist()
            first = begin + times.index(int(batch.history.timestamps[row, 0]))
            assert store.item_ids[first : first + len(items)].tolist() == items.tolist()
            for place in batch.is_target[row].nonzero().squeeze(1).tolist():
                event = first + place + 1
                assert int(batch.target_features["tab"][row, place]) == store.event_columns["tab"].values[event]
                number = store.event_columns["watched"].values[event]
                found = float(batch.target_features["watched"][row, place])
                missing += math.isnan(number)
                assert found == pytest.approx((number - mean) / std, abs=1e-5, nan_ok=True)
    assert (missing > 0) == (condition is None)
    data.target_columns = ()
    assert next(iter(data.train_dataloader())).target_features is None


def head_batch(lengths: list[int]) -> SequenceBatch:
    """Random targets, some of them missing, with columns of which some are missing."""
    history, generator = random_history(lengths), torch.Generator().manual_seed(4)
    shape, valid = history.item_ids.shape, history.valid
    targets = torch.randint(0, ITEMS + 1, shape, generator=generator) * valid
    watched = torch.randn(shape, generator=generator)
    watched[torch.rand(shape, generator=generator) < 0.3] = math.nan
    tabs = torch.randint(0, TAB.num_codes, shape, generator=generator)
    rows = RaggedItems.from_rows([items[:length] for items, length in zip(history.item_ids, lengths, strict=True)])
    return SequenceBatch(
        history,
        targets,
        torch.zeros(len(lengths), dtype=torch.int64),
        rows,
        request_times=history.timestamps + 60,
        target_features={"tab": tabs, "watched": watched},
    )


def test_losses_are_means_over_targets_whose_value_is_known():
    model, batch = build(heads=HEADS), head_batch([9, 1, 4])
    assert model.heads is not None
    states = model(batch.history)
    of_tabs, of_numbers = [], []
    for row, place in batch.is_target.nonzero().tolist():
        outputs = model.heads(states[row, place])
        tab, number = (batch.target_features[name][row, place] for name in ("tab", "watched"))
        if tab > 0:
            of_tabs.append(-torch.log_softmax(outputs["tab"], 0)[tab - 1])
        if not number.isnan():
            of_numbers.append((outputs["watched"] - number) ** 2)
    assert 0 < len(of_tabs) < int(batch.is_target.sum())
    assert 0 < len(of_numbers) < int(batch.is_target.sum())
    losses = model.heads.losses(states, batch)
    torch.testing.assert_close(losses["tab"], torch.stack(of_tabs).mean())
    torch.testing.assert_close(losses["watched"], torch.stack(of_numbers).mean())


def test_padding_changes_no_loss_and_no_gradient():
    model, batch = build(heads=HEADS), head_batch([9, 1, 4])
    assert model.heads is not None
    states = model(batch.history).detach()
    plain = model.heads.losses(states, batch)
    states[~batch.history.valid] = math.nan
    spoiled = states.requires_grad_()
    losses = model.heads.losses(spoiled, batch)
    assert losses.keys() == plain.keys()
    for name, loss in losses.items():
        assert torch.equal(loss, plain[name])
    sum(losses.values()).backward()
    assert spoiled.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in model.heads.parameters())


def test_without_a_known_value_the_loss_is_zero_and_every_weight_has_a_gradient():
    model, batch = build(heads=HEADS), head_batch([5, 3])
    assert model.heads is not None
    unknown = {"tab": torch.zeros_like(batch.targets), "watched": torch.full(batch.targets.shape, math.nan)}
    losses = model.heads.losses(model(batch.history), replace(batch, target_features=unknown))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    # As in DDP, all processes must have a gradient of all weights.
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.heads.parameters())


def test_a_batch_without_the_column_is_refused():
    model, batch = build(heads=HEADS), replace(head_batch([5]), target_features=None)
    with pytest.raises(InputError, match=r"predicts the column 'tab' .* has no target_features\['tab'\]"):
        model.training_step(batch, 0)


@pytest.mark.parametrize("read", [[], ["tab"]])
def test_the_loss_is_the_weighted_sum_and_each_part_is_logged(
    read: list[str], tmp_path: Path, make_trainer: Callable[..., Any]
):
    data = featured_data(tmp_path)
    heads = [ColumnHead("tab", weight=0.5), ColumnHead("watched", weight=0.25)]
    model = GRU4Rec(
        data.num_items, d_model=8, heads=heads, event_columns=read, log_columns=data.event_columns, loss=FullSoftmax()
    )
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(model, data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    parts = [found[name] for name in ("train_item_loss", "train_column_loss_tab", "train_column_loss_watched")]
    assert all(part > 0 for part in parts)
    assert found["train_loss_epoch"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.25 * parts[2], rel=1e-5)
    # They begin near the entropy of three tabs, and the variance of standardised numbers.
    assert parts[1] == pytest.approx(math.log(3), rel=0.5)
    assert parts[2] == pytest.approx(1, rel=1)


@pytest.fixture
def known_effect(tmp_path: Path) -> Table:
    """The next event is liked if this event's item is even; its seconds are 100 and ten times this event's item."""
    rng, rows = np.random.default_rng(0), []
    for user in range(150):
        items = rng.integers(1, 11, 12).tolist()
        for time, (before, item) in enumerate(zip([1, *items], items, strict=False)):
            unknown = rng.random() < 0.2
            rows.append((user, item, time, None if unknown else 1 - before % 2, 100.0 + 10 * before))
    schema = ["user_id", "item_id", "timestamp", "is_like", "seconds"]
    polars.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / "log.parquet")
    return Table(str(tmp_path / "log.parquet"))


def test_a_known_effect_is_learned_and_predicted_in_the_logs_values(
    known_effect: Table, tmp_path: Path, make_trainer: Callable[..., Any]
):
    schema = Schema(events={"is_like": "categorical", "seconds": "numeric"})
    data = SequenceDataModule(known_effect, store=str(tmp_path / "store"), schema=schema, batch_size=16, max_length=12)
    torch.manual_seed(0)
    model = GRU4Rec(
        data.num_items,
        d_model=16,
        dropout=0.0,
        max_length=12,
        heads=[ColumnHead("is_like", weight=1.0), ColumnHead("seconds", weight=1.0)],
        log_columns=data.event_columns,
        loss=FullSoftmax(),
    )
    model.lr = 1e-2
    trainer = make_trainer(max_epochs=15, limit_val_batches=0)
    trainer.fit(model, data)
    histories = [[3, 4], [4, 7], [1, 2, 10], [9]]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt", store=data.store_directory)
    for predicting in (model, loaded):
        found = predicting.predict_columns(histories)
        assert found.keys() == {"is_like", "seconds"}
        assert list(found["is_like"]) == [0, 1]
        torch.testing.assert_close(found["is_like"][0] + found["is_like"][1], torch.ones(4))
        assert (found["is_like"][1] > 0.5).tolist() == [True, False, True, False]
        torch.testing.assert_close(found["seconds"], torch.tensor([140.0, 170.0, 200.0, 190.0]), atol=6, rtol=0)
    users = [user for user, items in enumerate(histories) for _ in items]
    frame = polars.DataFrame({"user_id": users, "item_id": [item for items in histories for item in items]})
    torch.testing.assert_close(loaded.predict_columns(frame)["seconds"], found["seconds"])
    # The head does not change what is recommended.
    assert loaded.recommend(histories, 3) == model.recommend(histories, 3)


def test_predictions_are_those_of_each_row_alone_as_asked_at_its_time():
    model = build(time=ALL_TIMES, columns=COLUMNS, heads=HEADS)
    history = random_history([9, 1, 4])
    asked = [int(times.max()) + 3600 for times in history.timestamps]
    found = model.predict_columns(history, at=asked, batch_size=2)
    for row, length in enumerate(history.lengths.tolist()):
        features = {name: values[row : row + 1, :length] for name, values in history.features.items()}
        alone = History(
            history.item_ids[row : row + 1, :length],
            history.lengths[row : row + 1],
            history.timestamps[row : row + 1, :length],
            features=features,
        )
        expected = model.predict_columns(alone, at=asked[row])
        torch.testing.assert_close(found["watched"][row], expected["watched"][0])
        torch.testing.assert_close(found["tab"]["share"][row], expected["tab"]["share"][0])
    later = model.predict_columns(history, at=[time + 10**7 for time in asked])
    assert not torch.allclose(later["watched"], found["watched"])
    with pytest.raises(InputError, match="must know when it is asked"):
        model.predict_columns(history)
    with pytest.raises(InputError, match="is before the newest event"):
        model.predict_columns(history, at=1)


def test_what_cannot_be_a_head_is_refused():
    for weight in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=rf"weight={weight} of 'tab' must be a finite number above 0"):
            ColumnHead("tab", weight=weight)
    with pytest.raises(InputError, match="the column 'looks' is a vector; heads are categorical or numeric"):
        build(heads=[ColumnHead(LOOKS)])
    with pytest.raises(InputError, match="the column 'empty' has no values to predict"):
        build(heads=[ColumnHead(EventColumn("empty", "categorical"))])
    with pytest.raises(InputError, match="heads has 'tab' twice"):
        build(heads=[ColumnHead(TAB), ColumnHead(TAB)])
    with pytest.raises(InputError, match=r"heads: the log has no column 'tabs'; .* did you mean tab\?"):
        build(heads=[ColumnHead("tabs")], log_columns=COLUMNS)
    with pytest.raises(InputError, match=r"trained without model\.heads"):
        build().predict_columns(random_history([3]))


def without_heads(model: SequentialRecommender) -> dict[str, Any]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("heads.")}


def test_a_model_without_heads_has_the_weights_and_settings_of_before():
    plain, other = build(), build(heads=HEADS)
    assert "heads" not in plain.hparams
    assert without_heads(plain).keys() == plain.state_dict().keys() == without_heads(other).keys()


def test_a_resumed_run_continues_with_the_scales_and_is_the_unbroken_one(
    tmp_path: Path, make_trainer: Callable[..., Any]
):
    def run(epochs: int, checkpoint: Path | None = None, weight: float = 0.5) -> tuple[Any, Any]:
        data = featured_data(tmp_path)
        torch.manual_seed(0)
        heads = [ColumnHead("tab", weight=0.5), ColumnHead("watched", weight=weight)]
        model = GRU4Rec(data.num_items, d_model=8, heads=heads, log_columns=data.event_columns)
        trainer = make_trainer(max_epochs=epochs, limit_val_batches=0)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=checkpoint is not None)
        return model, trainer

    whole, _ = run(2)
    _, trainer = run(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(2, tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # Weights of losses may change, the rest stays.
    other, _ = run(2, tmp_path / "half.ckpt", weight=3.0)
    assert [head["init_args"]["weight"] for head in other.hparams["heads"]] == [0.5, 3.0]
    assert other.heads.columns == whole.heads.columns
    plain = GRU4Rec(whole.hparams["num_items"], d_model=8)
    with pytest.raises(InputError, match="the checkpoint has weights of another model"):
        make_trainer(max_epochs=2).fit(plain, featured_data(tmp_path), ckpt_path=tmp_path / "half.ckpt")


def test_a_config_names_heads_by_column_and_weight(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    featured_log(tmp_path / "log.parquet", num_users=30, num_items=40, mean_events=12, seed=2)
    schema = ["--data.schema.events", "{tab: categorical, watched: numeric}"]
    words = ["--config", "own_log", "--data.source.path", "log.parquet", *schema, "--trainer.max_epochs", "1"]
    small = ["--model", "GRU4Rec", "--model.d_model", "8", "--data.filters.min_user_events", "3"]
    main(["fit", *words, *small, "--model.heads", "[{column: tab, weight: 0.2}, {column: watched}]"])
    capsys.readouterr()
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    model = load(checkpoint)
    assert [(head.column.name, head.weight) for head in model.heads.described] == [("tab", 0.2), ("watched", 0.1)]
    assert model.heads.columns[0].values == ["home", "search", "share"]
    # The folder's own config repeats the run.
    main(["test", "--ckpt", str(checkpoint)])
    assert "GRU4Rec" in capsys.readouterr().out
