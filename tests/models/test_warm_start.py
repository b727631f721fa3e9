"""Training that starts from a checkpoint: rows by the log's ids, optimizer state, new items, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from forked_commands import run_ranks

from seqrec import (
    Adam,
    ColumnHead,
    EventStore,
    Filters,
    GRU4Rec,
    InputError,
    ItemTable,
    RandomCrop,
    SASRec,
    Schema,
    SequenceDataModule,
    StridedWindows,
    Table,
)
from seqrec.data.new_events import NewEvents
from seqrec.data.prepare import append, compact
from seqrec.errors import StoreError
from seqrec.models import WarmStart
from seqrec.models.carry_over import RowSources
from seqrec.models.warm_start import rows_of_first_vectors
from seqrec.runs.checkpoints import read_checkpoint
from seqrec.training.losses import BCE, SampledSoftmax
from seqrec.training.optim import AdamW, RowwiseAdagrad, Schedule, WarmupCosine

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
SCHEMA = Schema(events={"kind": "categorical", "score": "numeric"})
SPARSE: dict[str, Any] = {"item_table": ItemTable(sparse=True), "loss": BCE()}
TABLES: dict[str, dict[str, Any]] = {
    "dense": {},
    "sparse": SPARSE,
    "bfloat16": {"item_table": ItemTable(sparse=True, dtype="bfloat16"), "loss": BCE()},
    "sharded": {"item_table": ItemTable(sharded=True), "loss": BCE()},
    "sharded_bfloat16": {"item_table": ItemTable(sharded=True, dtype="bfloat16"), "loss": BCE()},
    "decay": {"optimizer": AdamW(0.01)},
}


class Never(Schedule):
    """A schedule without any update."""

    def ratio(self, total_steps: float) -> Any:
        return lambda update: 0.0


def write(file: Path, seed: int, *, users: int, items: range, times: range, kinds: str = "ab") -> str:
    rng = np.random.default_rng(seed)
    count = 8 * users
    columns = {
        "user_id": np.sort(rng.integers(1, users + 1, count)),
        "item_id": rng.choice(items, count),
        "timestamp": np.sort(rng.choice(times, count)),
        "kind": rng.choice(list(kinds), count),
        "score": rng.normal(5, 2, count),
    }
    polars.DataFrame(columns).write_parquet(file)
    return str(file)


def data_of(folder: Path, file: str = "old.parquet", **settings: Any) -> SequenceDataModule:
    return SequenceDataModule(
        Table(str(folder.parent / file)),
        store=str(folder),
        **{"max_length": 8, "batch_size": 8, "train_windows": StridedWindows(), "schema": SCHEMA, **settings},
    )


def model_of(data: SequenceDataModule, cls: type[SASRec] | type[GRU4Rec] = SASRec, **settings: Any) -> Any:
    torch.manual_seed(1)
    return cls(data.num_items, **{"d_model": 8, "max_length": 8, "dropout": 0.0, "optimizer": Adam(0.01), **settings})


def fit(data: SequenceDataModule, model: Any, steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    trainer = pl.Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET)
    trainer.fit(model, data)
    return trainer


def checkpoint(folder: Path, data: SequenceDataModule, model: Any) -> str:
    """The file of a model after three steps."""
    fit(data, model, 3).save_checkpoint(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store `old`, one that has grown from it, `grown`, and the checkpoint of a model of the old one, `old.ckpt`."""
    folder = tmp_path_factory.mktemp("logs")
    write(folder / "old.parquet", 0, users=20, items=range(10, 30), times=range(1000, 2000))
    write(folder / "new.parquet", 1, users=25, items=range(5, 35), times=range(2000, 3000), kinds="bcd")
    data = data_of(folder / "old")
    data.prepare_data()
    shutil.copytree(folder / "old", folder / "grown")
    append(data.source, Filters(), folder / "grown", str(folder / "new.parquet"), schema=SCHEMA)
    checkpoint(folder / "old.ckpt", data, model_of(data))
    return folder


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> dict[str, str]:
    """For each kind of table, the file of a model of the old store."""
    data = data_of(folder / "old")
    return {kind: checkpoint(folder / f"{kind}.ckpt", data, model_of(data, **TABLES[kind])) for kind in TABLES}


def saved_state(file: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    saved = read_checkpoint(Path(file))
    return saved["state_dict"], saved["optimizer_states"][0]["state"]


def rows_of(data: SequenceDataModule, old: SequenceDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the old items here, and there."""
    there = np.arange(1, old.num_items + 1)
    here = data.store.item_vocabulary.lookup(old.store.item_vocabulary.external_ids(there))
    return torch.from_numpy(here), torch.from_numpy(there)


def check_same(file: Path | str, other: Path | str) -> None:
    """Compare weights and optimizer state of two checkpoints bit for bit."""
    (weights, state), (again, same) = saved_state(file), saved_state(other)
    assert weights.keys() == again.keys()
    assert state.keys() == same.keys()
    assert any(each for each in state.values())
    for name, weight in weights.items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=0)
    for number, entries in state.items():
        assert entries.keys() == same[number].keys()
        for key, value in entries.items():
            torch.testing.assert_close(torch.as_tensor(same[number][key]), torch.as_tensor(value), rtol=0, atol=0)


@pytest.mark.parametrize("kind", TABLES)
def test_without_new_data_weights_and_optimizer_state_continue_to_the_bit(
    folder: Path, tmp_path: Path, checkpoints: dict[str, str], kind: str
):
    data = data_of(folder / "old")
    trainer = fit(data, model_of(data, **TABLES[kind]), 0, WarmStart(checkpoints[kind]))
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    check_same(checkpoints[kind], tmp_path / "b.ckpt")


def test_training_is_not_disturbed_when_its_store_grows_and_is_compacted(folder: Path, tmp_path: Path):
    class Grows(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                append(data.source, Filters(), tmp_path / "old", str(folder / "new.parquet"), schema=SCHEMA)
            if trainer.global_step == 4:
                compact(tmp_path / "old")

    shutil.copytree(folder / "old", tmp_path / "old")
    weights = []
    for callbacks in ([], [Grows()]):
        # Three epochs, each with a new loader process.
        data = data_of(tmp_path / "old", str(folder / "old.parquet"), num_workers=1)
        model = model_of(data)
        trainer = fit(data, model, 9, *callbacks)
        weights.append(model.state_dict())
        data.store.finish_check()
    assert (trainer.current_epoch, trainer.global_step) == (3, 9)
    assert EventStore.open(tmp_path / "old").num_events > data.store.num_events
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


@pytest.mark.parametrize("kind", TABLES)
def test_training_without_step_size_changes_nothing(folder: Path, checkpoints: dict[str, str], kind: str):
    data, weights = data_of(folder / "old"), saved_state(checkpoints[kind])[0]
    optimizer = type(TABLES[kind].get("optimizer", Adam()))(0.01, schedule=Never())
    model = model_of(data, **{**TABLES[kind], "optimizer": optimizer})
    trainer = fit(data, model, 3, WarmStart(checkpoints[kind]))
    assert trainer.global_step == 3
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("is_compact", [False, True])
@pytest.mark.parametrize("settings", [{}, SPARSE, {"item_table": ItemTable(sparse=True, dtype="bfloat16")}])
def test_rows_of_known_items_are_carried_over_to_a_grown_store(
    folder: Path, tmp_path: Path, settings: Any, is_compact: bool
):
    old, place = data_of(folder / "old"), tmp_path / "store"
    file = checkpoint(tmp_path / "a.ckpt", old, model_of(old, **settings))
    shutil.copytree(folder / "grown", place)
    shutil.copy(folder / "old.parquet", tmp_path)
    if is_compact:
        compact(place)
    data = data_of(place, str(folder / "old.parquet"))
    model = model_of(data, **settings)
    trainer = fit(data, model, 0, WarmStart(file, new_items="mean"))
    weights, state = saved_state(file)
    known, table = old.num_items + 1, weights["items.table.weight"]
    assert data.num_items > old.num_items
    assert torch.equal(model.items.weight[:known], table)
    fresh = model.items.weight[known:].float()
    assert torch.allclose(fresh, table[1:].float().mean(0).expand_as(fresh), atol=1e-2 if "bf" in str(settings) else 0)
    moments = trainer.optimizers[0].state[model.items.weight]["exp_avg"]
    (there,) = [each["exp_avg"] for each in state.values() if len(each["exp_avg"]) == known]
    assert torch.equal(moments[:known], there)
    assert not moments[known:].any()


def test_rows_are_carried_over_to_another_catalogue_by_external_id(folder: Path, tmp_path: Path):
    write(tmp_path / "other.parquet", 5, users=20, items=range(15, 40), times=range(2000, 3000))
    data, old = data_of(tmp_path / "other", "other.parquet"), data_of(folder / "old")
    model = model_of(data)
    trainer = fit(data, model, 0, WarmStart(str(folder / "old.ckpt")))
    weights, state = saved_state(folder / "old.ckpt")
    here, there = rows_of(data, old)
    here, there = here[here > 0], there[here > 0]
    assert 5 < len(here) < data.num_items
    assert torch.equal(model.items.weight[here], weights["items.table.weight"][there])
    moments = trainer.optimizers[0].state[model.items.weight]["exp_avg"]
    (carried,) = [each["exp_avg"] for each in state.values() if len(each["exp_avg"]) == old.num_items + 1]
    assert torch.equal(moments[here], carried[there])


def test_new_items_start_from_the_items_that_entered_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("seqrec.models.warm_start.NEWEST_ITEMS", 3)
    data, table = data_of(folder / "grown"), saved_state(folder / "old.ckpt")[0]["items.table.weight"]
    model, fresh = model_of(data), model_of(data)
    fit(data, model, 0, WarmStart(str(folder / "old.ckpt")))
    newest = np.argsort(data.first_event_times[1 : len(table)], kind="stable")[-3:] + 1
    expected = table[torch.from_numpy(newest)].mean(0)
    assert torch.allclose(model.items.weight[len(table) :], expected.expand(data.num_items + 1 - len(table), -1))
    saved = read_checkpoint(folder / "old.ckpt")
    sources = RowSources(folder, saved, saved["seqrec"], data.store, None, model)
    until = int(np.median(data.first_event_times[1 : len(table)]))
    rows = rows_of_first_vectors("newest", sources, {"newest": until})
    assert data.first_event_times[rows].tolist() == sorted(t for t in data.first_event_times[1:] if t <= until)[-3:]
    monkeypatch.setattr(data.store, "timestamps", None)
    with caplog.at_level("INFO"):
        rows = rows_of_first_vectors("newest", sources, {})
    assert rows.tolist() == list(range(1, len(table)))
    assert "the log has no timestamps" in caplog.text
    monkeypatch.undo()
    model = model_of(data)
    fit(data, model, 0, WarmStart(str(folder / "old.ckpt"), new_items="random"))
    assert torch.equal(model.items.weight[len(table) :], fresh.items.weight[len(table) :])


def test_values_of_columns_keep_their_vectors_and_numbers_their_scale(folder: Path, tmp_path: Path):
    old, data = data_of(folder / "old"), data_of(folder / "grown")
    heads = [ColumnHead("kind"), ColumnHead("score")]
    read: dict[str, Any] = {"event_columns": ["kind", "score"], "user_embedding": True, "heads": heads}

    def with_columns(data: SequenceDataModule) -> Any:
        return model_of(data, **read, log_columns=data.event_columns, num_users=data.num_users)

    file = checkpoint(tmp_path / "a.ckpt", old, with_columns(old))
    model = with_columns(data)
    fit(data, model, 0, WarmStart(file))
    weights = saved_state(file)[0]
    kinds, was = (
        model.column_embedding.layers["column_kind"].weight,
        weights["column_embedding.layers.column_kind.weight"],
    )
    assert model.event_columns[0].values == ["a", "b", "c", "d"]
    assert torch.equal(kinds[:3], was)
    assert torch.equal(kinds[3:], was[:1].expand(2, -1))
    assert torch.equal(model.heads.layers["column_kind"].weight[:2], weights["heads.layers.column_kind.weight"])
    assert data.event_scales["score"] == old.event_scales["score"]
    assert torch.equal(model.users.weight[: old.num_users + 1], weights["users.table.weight"])
    assert SASRec.from_hyperparameters(dict(model.hparams)).event_columns == model.event_columns


def test_items_with_content_start_with_it_alone(tmp_path: Path):
    genres = polars.DataFrame(
        {"id": range(40), "year": np.arange(40) + 1900.0, "genre": [f"g{8 - each // 5}" for each in range(40)]}
    )
    genres[:30].write_csv(tmp_path / "items.csv")
    genres.write_csv(tmp_path / "more.csv")
    for name, items, times in (("old", range(10, 30), range(1000, 2000)), ("new", range(5, 35), range(2000, 3000))):
        write(tmp_path / f"{name}.parquet", 3, users=20, items=items, times=times)
    schema = Schema(items={"year": "numeric", "genre": "categorical"})
    log = Table(str(tmp_path / "old.parquet"), items={"path": str(tmp_path / "items.csv"), "key": "id"})
    settings = {"schema": schema, "train_windows": StridedWindows(), "max_length": 8}
    table = ItemTable(content=("year", "genre"), id_dropout=0.0, bias=True)

    def content_model(data: SequenceDataModule) -> Any:
        return model_of(data, item_table=table, item_columns=data.item_columns)

    old = SequenceDataModule(log, store=str(tmp_path / "store"), **settings)
    before = content_model(old)
    file = checkpoint(tmp_path / "a.ckpt", old, before)
    rows_before = before.eval().items.whole()
    append(
        log,
        Filters(),
        tmp_path / "store",
        str(tmp_path / "new.parquet"),
        schema=schema,
        items=str(tmp_path / "more.csv"),
    )
    data = SequenceDataModule(log, store=str(tmp_path / "store"), **settings)
    model = content_model(data)
    fit(data, model, 0, WarmStart(file))
    model.eval()
    known = len(rows_before)
    assert data.num_items > known
    assert torch.allclose(model.items.whole()[:known], rows_before, atol=1e-6)
    assert not model.items.weight[known:, :8].any()
    content = model.items.content(torch.arange(known, data.num_items + 1))
    assert torch.allclose(model.items.whole()[known:, :8], content)
    assert content.abs().sum() > 0
    # Values of a category that training did not know add nothing.
    assert not model.items.content.columns[1].weight[data.store.item_columns["genre"].vocabulary.lookup(["g1"])].any()
    fit(data, content_model(data), 2, WarmStart(file))


def test_a_table_that_became_sparse_keeps_its_state(folder: Path):
    data, state = data_of(folder / "grown"), saved_state(folder / "old.ckpt")[1]
    model = model_of(data, **SPARSE)
    trainer = fit(data, model, 0, WarmStart(str(folder / "old.ckpt")))
    found = trainer.optimizers[0].state[model.items.weight]
    (was,) = [each for each in state.values() if len(each["exp_avg"]) == data_of(folder / "old").num_items + 1]
    assert (found["step"], type(found["step"])) == (3, int)
    assert torch.equal(found["exp_avg_sq"][: len(was["exp_avg_sq"])], was["exp_avg_sq"])
    fit(data, model_of(data, **SPARSE), 2, WarmStart(str(folder / "old.ckpt")))


def test_new_rows_start_with_the_optimizers_own_state_and_another_table_optimizer_is_refused(
    folder: Path, tmp_path: Path
):
    old, data = data_of(folder / "old"), data_of(folder / "grown")
    settings: dict[str, Any] = {**SPARSE, "optimizer": Adam(0.01, table=RowwiseAdagrad(initial_accumulator=0.5))}
    file = checkpoint(tmp_path / "a.ckpt", old, model_of(old, **settings))
    model = model_of(data, **settings)
    sums = fit(data, model, 0, WarmStart(file)).optimizers[0].state[model.items.weight]["sum"]
    assert len(sums) == data.num_items + 1
    assert (sums[old.num_items + 1 :] == 0.5).all()
    assert sums[1 : old.num_items + 1].max() > 0.5
    with pytest.raises(InputError, match=r"keeps step, sum of items.table.weight.*model.optimizer.table"):
        fit(data, model_of(data, loss=BCE()), 1, WarmStart(file))
    saved = torch.load(file, weights_only=True)
    for state in saved["optimizer_states"][0]["state"].values():
        state |= {"sum": state["sum"][:5]} if "sum" in state else {}
    torch.save(saved, file)
    with pytest.raises(InputError, match=r"has sum of items.table.weight in another shape"):
        fit(data, model_of(data, **settings), 1, WarmStart(file))


@pytest.mark.parametrize(("replay", "windows"), [(0.0, 0), (0.4, 1)])
def test_replay_trains_on_new_events_and_a_share_of_older_windows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, replay: float, windows: int
):
    data, verified = data_of(folder / "grown", batch_size=100, max_length=4), []
    monkeypatch.setattr("seqrec.runs.checkpoints._verify", verified.append)
    trainer = fit(data, model_of(data), 1, WarmStart(str(folder / "old.ckpt"), replay=replay))
    assert verified == [folder / "old.ckpt"]
    batch = next(iter(trainer.train_dataloader))
    times = batch.request_times
    is_new = (times > data_of(folder / "old").newest_trained) & batch.is_target
    trained = batch.is_target.any(1)
    new_rows = is_new.any(1)
    assert trained.all()
    # New windows have new targets alone, and replayed ones only older targets.
    assert (is_new == batch.is_target)[new_rows].all()
    replayed = int((~new_rows).sum())
    assert replayed == round(replay / (1 - replay) * int(new_rows.sum()))
    assert (replayed > 0) == bool(windows)


def test_replay_holds_with_a_schedule_over_epochs_and_ends_with_its_fit(folder: Path):
    data, file = data_of(folder / "grown"), str(folder / "old.ckpt")
    schedule = {"optimizer": Adam(schedule=WarmupCosine(0))}
    targets = []
    for start in (WarmStart(file, replay=0), WarmStart(file)):
        trainer = pl.Trainer(max_epochs=1, limit_train_batches=1, callbacks=[start], **QUIET)
        trainer.fit(model_of(data, **schedule), data)
        targets.append([batch.request_times[batch.is_target].min() for batch in trainer.train_dataloader])
    assert min(targets[0]) > data_of(folder / "old").newest_trained >= min(targets[1])


@pytest.mark.parametrize("windows", [RandomCrop(), StridedWindows(stride=2)])
def test_a_share_of_windows_that_overlap_or_are_random_is_refused(folder: Path, windows: Any):
    data = data_of(folder / "grown", max_length=4, train_windows=windows)
    data.new_events = NewEvents(data_of(folder / "old").newest_trained or 0, 0.4)
    with pytest.raises(InputError, match=r"warm_start.replay=0.4 is a share of windows"):
        data.train_dataloader()
    data.new_events = NewEvents(data.new_events.after)
    assert len(data.train_dataloader()) > 0


@pytest.mark.parametrize(
    ("settings", "start", "message"),
    [
        ({"d_model": 16}, {}, r"d_model=8 \(here 16\)"),
        ({"cls": GRU4Rec}, {}, r"encoder=SASRec \(here GRU4Rec\)"),
        ({"loss": SampledSoftmax()}, {}, r"loss=BCE \(here SampledSoftmax\)"),
        ({"item_table": ItemTable(temperature=0.1)}, {}, r"item_table.temperature=None \(here 0.1\)"),
        ({"positions": False}, {}, r"positions=True \(here False\)"),
        ({"optimizer": AdamW(0.01)}, {}, r"has the state of Adam, but model.optimizer is AdamW"),
        (
            {**SPARSE, "optimizer": Adam(table=RowwiseAdagrad())},
            {},
            "keeps exp_avg, exp_avg_sq, step of items.table.weight",
        ),
        ({}, {"store": "nothing"}, "no store with its items is at nothing"),
        ({}, {"ckpt": "nothing.ckpt"}, "warm_start.ckpt=nothing.ckpt: there is no such checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(folder: Path, settings: Any, start: Any, message: str):
    data = data_of(folder / "grown")
    with pytest.raises((InputError, StoreError), match=message):
        fit(data, model_of(data, **settings), 0, WarmStart(**{"ckpt": str(folder / "old.ckpt"), **start}))


def test_ids_of_another_catalogue_and_missing_new_events_are_refused(folder: Path, tmp_path: Path):
    write(tmp_path / "far.parquet", 5, users=20, items=range(900, 920), times=range(2000, 3000))
    far, old = data_of(tmp_path / "far", "far.parquet"), data_of(folder / "old")
    start = WarmStart(str(folder / "old.ckpt"), replay=0.2)
    with pytest.raises(InputError, match="knows none of the 20 items"):
        fit(far, model_of(far), 0, start)
    with pytest.raises(InputError, match="no training event is newer than"):
        fit(old, model_of(old), 1, start)
    # No place that is not one, nor the store's own place twice.
    for store in (None, far.store.directory.absolute()):
        record = {"store": store and str(store), "items": "of others"}
        with pytest.raises(StoreError, match=f"is at {far.store.directory}; give"):
            RowSources(Path("a.ckpt"), {"hyper_parameters": {"num_items": 20}}, record, far.store, None, model_of(far))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"new_items": "old"}, "warm_start.new_items='old' must be one of newest, mean, random"),
        ({"replay": 1.0}, "warm_start.replay=1.0 must be below 1"),
        ({"replay": -0.1}, "warm_start.replay=-0.1 must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        WarmStart("a.ckpt", **arguments)


RANKS = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from seqrec.catalogue.distributed import leave_job
from seqrec.models import WarmStart
from test_warm_start import QUIET, TABLES, data_of, model_of

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
data = data_of(folder / "grown")
for kind in TABLES:
    strategy = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"
    settings = {"devices": ranks, "strategy": strategy, "use_distributed_sampler": False, **QUIET}
    trainer = pl.Trainer(max_steps=0, callbacks=[WarmStart(str(folder / f"{kind}.ckpt"))], **settings)
    trainer.fit(model_of(data, **TABLES[kind]), data)
    trainer.save_checkpoint(f"{kind}_{ranks}.ckpt")
leave_job()
"""


@pytest.mark.process
@pytest.mark.usefixtures("checkpoints")
def test_two_ranks_start_as_one_does(folder: Path, tmp_path: Path):
    for ranks in (1, 2):
        run_ranks(tmp_path, ranks, RANKS, str(ranks), str(folder), str(Path(__file__).parent))
    for kind in TABLES:
        check_same(tmp_path / f"{kind}_1.ckpt", tmp_path / f"{kind}_2.ckpt")


def test_a_model_that_is_fitted_again_and_a_resumed_run_do_not_start_again(folder: Path, tmp_path: Path):
    data, start = data_of(folder / "grown"), WarmStart(str(shutil.copy(folder / "old.ckpt", tmp_path)))
    model = model_of(data)
    fit(data, model, 2, start).save_checkpoint(tmp_path / "half.ckpt")
    (tmp_path / "old.ckpt").unlink()
    trained = model.items.weight.clone()
    fit(data, model, 0, start)
    assert torch.equal(model.items.weight, trained)
    resumed = model_of(data)
    trainer = pl.Trainer(max_steps=2, callbacks=[start], **QUIET)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(resumed.items.weight, model.items.weight)
