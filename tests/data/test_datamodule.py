from __future__ import annotations

import gzip
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from forked_commands import forkserver
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from written_stores import write_store

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.item_counts import first_event_times
from seqrec.data.schema import Schema
from seqrec.data.sources import Sequences, Source, Synthetic
from seqrec.data.splits import GlobalTime, LastN
from seqrec.data.store import EventStore
from seqrec.data.windows import NewestWindow, StridedWindows
from seqrec.errors import InputError, StoreError
from seqrec.types import SequenceBatch

HISTORIES = [[1, 2, 3, 4, 5, 6], [2, 2, 1], [6, 5, 4, 2, 1], [3, 3, 3, 3]]


class Histories(Source):
    """A log held in memory; each reading of it adds a line to `diary`, where one is given."""

    def __init__(self, histories: list[list[int]] = HISTORIES, diary: str | None = None) -> None:
        self.histories = histories
        self.diary = diary

    def files(self) -> list[Path]:
        return []

    def scan(self, progress: object = None) -> polars.LazyFrame:
        if self.diary is not None:
            with Path(self.diary).open("a") as stream:
                stream.write("read\n")
        events = [(user, item) for user, history in enumerate(self.histories) for item in history]
        return polars.LazyFrame(events, schema=["user_id", "item_id"], orient="row")


def module(directory: Path, source: Source | None = None, **settings: Any) -> SequenceDataModule:
    return SequenceDataModule(source or Histories(), store=str(directory / "store"), **settings)


def naive_train_counts(data: SequenceDataModule) -> list[int]:
    counts: Counter[int] = Counter()
    for first, end in zip(data.store.offsets[:-1], data.store.offsets[1:], strict=True):
        counts.update(data.store.item_ids[first : end - 2].tolist())
    return [counts[item] for item in range(data.num_items + 1)]


def test_train_item_counts_leave_the_held_out_events_out(tmp_path: Path):
    # In training: 1 2 3 4, 2, 6 5 4 and 3 3.
    assert module(tmp_path).train_item_counts().tolist() == [0, 1, 2, 3, 2, 1, 1]


@pytest.mark.parametrize("events_at_a_time", [7, 10**6])
def test_train_item_counts_equal_a_loop_over_users(tmp_path: Path, monkeypatch, events_at_a_time: int):
    monkeypatch.setattr("seqrec.data.pieces.PIECE_EVENTS", events_at_a_time)
    data = module(tmp_path, Synthetic(num_users=20, num_items=300, mean_events=12))
    assert data.train_item_counts().tolist() == naive_train_counts(data)


@pytest.mark.parametrize("events_at_a_time", [7, 10**6])
def test_first_event_times_equal_a_loop_over_events(tmp_path: Path, monkeypatch, events_at_a_time: int):
    monkeypatch.setattr("seqrec.data.pieces.PIECE_EVENTS", events_at_a_time)
    rng, num_items = np.random.default_rng(0), 30
    item_ids, times = rng.integers(1, num_items, 40), rng.integers(-50, 50, 40)
    write_store(tmp_path, item_ids, np.array([0, 25, 40]), times, ["a", "b"], np.arange(num_items), {})
    # Item 0 is padding, and the last one has no event.
    never = np.iinfo(np.int64).max
    expected = [min(times[item_ids == item], default=never) for item in range(num_items + 1)]
    assert expected[num_items] == expected[0] == never
    assert first_event_times(EventStore.open(tmp_path)).tolist() == expected


def test_asking_for_the_catalogue_prepares_the_store_once(tmp_path: Path, capsys):
    source = Histories(diary=str(tmp_path / "diary"))
    data = module(tmp_path, source)
    assert not data.store_directory.exists()
    assert (data.num_items, data.num_users) == (6, 4)
    data.prepare_data()
    assert module(tmp_path, source).num_items == 6
    assert (tmp_path / "diary").read_text() == "read\n"
    assert "reading" in capsys.readouterr().err


def test_overwriting_reads_the_log_again(tmp_path: Path):
    source = Histories(diary=str(tmp_path / "diary"))
    module(tmp_path, source).prepare_data()
    module(tmp_path, source).prepare_again()
    assert (tmp_path / "diary").read_text() == "read\nread\n"


def test_the_default_store_is_named_after_source_and_settings():
    synthetic = Synthetic()
    name = SequenceDataModule(synthetic).store_directory
    assert name.parent == Path("stores")
    assert name.name.startswith("synthetic-")
    assert SequenceDataModule(Synthetic(seed=1)).store_directory != name
    assert SequenceDataModule(Synthetic()).store_directory == name


def ask_in_a_process(directory: Path, start: Any, queue: Any) -> None:
    data = module(directory, Histories(diary=str(directory / "diary")))
    start.wait(timeout=90)
    queue.put(data.num_items)


@pytest.mark.process
def test_of_two_processes_that_start_at_once_one_prepares(tmp_path: Path):
    context = forkserver()
    start, queue = context.Barrier(2), context.Queue()
    other = context.Process(target=ask_in_a_process, args=(tmp_path, start, queue), daemon=True)
    other.start()
    ask_in_a_process(tmp_path, start, queue)
    assert [queue.get(timeout=90) for _ in range(2)] == [6, 6]
    other.join(timeout=60)
    assert (tmp_path / "diary").read_text() == "read\n"


def test_a_store_made_with_other_settings_is_refused(tmp_path: Path):
    module(tmp_path, Synthetic(num_users=20, mean_events=8)).prepare_data()
    other = module(tmp_path, Synthetic(num_users=20, mean_events=8, seed=5))
    with pytest.raises(StoreError, match=r"store was prepared with source\.seed=0, now it is 5"):
        _ = other.num_items


@pytest.mark.parametrize("name", ["max_length", "max_tokens", "batch_size", "eval_batch_size", "val_users"])
def test_a_size_below_one_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=f"{name}=0 must be at least 1"):
        module(tmp_path, **{name: 0})


def test_a_token_budget_takes_the_place_of_the_batch_size(tmp_path: Path):
    data = module(tmp_path, batch_size=1, max_tokens=8)
    lengths = [batch.history.lengths.tolist() for batch in data.train_dataloader()]
    # Of 3, 2 and 1 events: two rows as long as the longest fit, and the rest of the cut goes alone.
    assert sorted(map(sorted, lengths)) == [[1], [2, 3]]
    with pytest.raises(InputError, match="max_tokens=2 cannot hold the longest window"):
        module(tmp_path, max_tokens=2).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 16, "max_length": 200}, [128, 2]),
        ({"batch_size": 16, "max_length": 1000}, [25, 25, 25, 25, 25, 5]),
        ({"batch_size": 40, "max_length": 1000}, [40, 40, 40, 10]),
        ({"max_tokens": 50_000, "max_length": 1000}, [50, 50, 30]),
        ({"batch_size": 1, "max_length": 30_000}, [29, 29, 29, 29, 14]),
        ({"batch_size": 16, "max_length": 1000, "eval_batch_size": 100}, [100, 30]),
    ],
    ids=str,
)
def test_evaluation_takes_as_many_events_at_a_time_as_training(
    tmp_path: Path, settings: dict[str, Any], expected: list[int]
):
    length = min(settings["max_length"], 1024)
    data = module(tmp_path, Histories([[1, 2] * 512 + [3, 1]] * 130), **settings)
    most = max(25_600, settings.get("max_tokens", 0), settings.get("batch_size", 0) * settings["max_length"])
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert [len(batch) for batch in batches] == expected
        shapes = [batch.history.item_ids.shape for batch in batches]
        assert all(columns >= length for _, columns in shapes)
        if "eval_batch_size" not in settings:
            assert max(rows * columns for rows, columns in shapes) <= most


def test_a_policy_that_checkpoints_cannot_describe_is_refused_at_once(tmp_path: Path):
    class Secretive(NewestWindow):
        def __init__(self, share: float) -> None:
            self._share = share

    with pytest.raises(TypeError, match="Secretive must keep its constructor argument 'share' as an attribute"):
        module(tmp_path, train_windows=Secretive(0.5))


def test_a_log_without_anything_to_learn_is_refused(tmp_path: Path):
    data = module(tmp_path, Histories([[1, 2, 3], [3, 2, 1]]))
    with pytest.raises(InputError, match="no user has two training events, there is nothing to learn"):
        data.train_dataloader()
    assert len(data.val_dataloader()) == 1


def test_a_user_with_two_events_is_refused_at_the_loader(tmp_path: Path):
    data = module(tmp_path, Histories([[1, 2, 3], [3, 2]]))
    with pytest.raises(InputError, match="the first is user 1 with 2; leave-one-out needs"):
        data.train_dataloader()


def users_and_targets(loader: Any) -> dict[int, int]:
    return {
        user: target
        for batch in loader
        for user, target in zip(batch.user_ids.tolist(), batch.last_targets.tolist(), strict=True)
    }


def test_loaders_serve_each_user_with_the_stages_target(tmp_path: Path):
    data = module(tmp_path, max_length=2, eval_batch_size=3)
    assert users_and_targets(data.val_dataloader()) == {1: 5, 2: 2, 3: 2, 4: 3}
    assert users_and_targets(data.test_dataloader()) == {1: 6, 2: 1, 3: 1, 4: 3}
    predicted = list(data.predict_dataloader())
    assert sorted(user for batch in predicted for user in batch.user_ids.tolist()) == [1, 2, 3, 4]
    assert all(batch.targets is None for batch in predicted)
    # User 2 has a single training event, so nothing to learn from.
    assert sorted(users_and_targets(data.train_dataloader())) == [1, 3, 4]


def held_out(loader: Any) -> dict[int, list[int]]:
    found = {}
    for batch in loader:
        bounds = batch.held_out.offsets.tolist()
        for row, user in enumerate(batch.user_ids.tolist()):
            found[user] = batch.held_out.item_ids[bounds[row] : bounds[row + 1]].tolist()
    return found


def test_a_user_is_judged_by_all_that_the_split_holds_out(tmp_path: Path):
    data = module(tmp_path, Histories([[1, 2, 3, 4, 5, 6], [6, 5, 4, 2, 2]]), split=LastN(2), max_length=3)
    assert held_out(data.val_dataloader()) == {1: [3, 4], 2: [5, 4]}
    assert held_out(data.test_dataloader()) == {1: [5, 6], 2: [2]}
    assert data.train_item_counts().tolist() == [0, 1, 1, 0, 0, 0, 1]


class Timed(Histories):
    """Each history's n-th event has time n."""

    def scan(self, progress: object = None) -> polars.LazyFrame:
        events = [
            (user, item, time) for user, history in enumerate(self.histories) for time, item in enumerate(history)
        ]
        return polars.LazyFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")


def test_global_time_trains_on_nothing_from_the_validation_point_on(tmp_path: Path):
    histories = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3], [1, 2], [3]]
    data = module(tmp_path, Timed(histories), split=GlobalTime(4, 2), max_length=5)
    assert held_out(data.val_dataloader()) == {1: [3, 4], 2: [4, 3]}
    assert held_out(data.test_dataloader()) == {1: [5, 6]}
    assert data.train_item_counts().tolist() == [0, 2, 2, 1, 0, 1, 1]
    targets = [batch.targets[batch.history.valid].tolist() for batch in data.train_dataloader()]
    assert sorted(item for items in targets for item in items) == [2, 2, 5]


def test_a_split_that_leaves_nobody_to_judge_is_refused(tmp_path: Path):
    data = module(tmp_path, Timed([[1, 2, 3], [3, 2, 1]]), split=GlobalTime(2, 1, warm_up=9))
    with pytest.raises(InputError, match=r"leaves no user to test: .*fewer than 9 event\(s\) before': 2"):
        data.test_dataloader()


def test_validation_judges_a_fixed_sample_of_users_while_fitting_and_all_otherwise(tmp_path: Path):
    def users(stage: TrainerFn | None, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> list[int]:
        data = module(tmp_path, Synthetic(num_users=50, mean_events=8), val_users=12, eval_batch_size=5, seed=seed)
        if stage is not None:
            data.trainer = SimpleNamespace(
                state=SimpleNamespace(fn=stage),
                global_rank=rank,
                world_size=world_size,
                strategy=SimpleNamespace(root_device=torch.device("cpu")),
            )
        return sorted(user for batch in data.val_dataloader() for user in batch.user_ids.tolist())

    sample = users(TrainerFn.FITTING)
    assert len(sample) == 12
    assert users(TrainerFn.FITTING) == sample
    shared = [users(TrainerFn.FITTING, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(user for part in shared for user in part) == sample
    assert users(TrainerFn.FITTING, seed=1) != sample
    for stage in (TrainerFn.VALIDATING, None):
        assert users(stage) == list(range(1, 51))


class Rated(Histories):
    """The log with a rating of each event, 1, 2, .. in log order."""

    def scan(self, progress: object = None) -> polars.LazyFrame:
        return super().scan(progress).with_row_index("rating", offset=1)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.process)])
def test_batches_of_every_stage_have_features_standardised_by_the_training_part(tmp_path: Path, num_workers: int):
    schema = Schema(events={"rating": "numeric"})
    data = module(tmp_path, Rated(), schema=schema, split=LastN(1), batch_size=9, num_workers=num_workers)
    training = np.array([1, 2, 3, 4, 7, 10, 11, 12, 15, 16])
    mean, std = data.event_scales["rating"]
    assert (mean, std) == (pytest.approx(training.mean()), pytest.approx(training.std()))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        for batch in loader:
            for user, length, found in zip(
                batch.user_ids, batch.history.lengths, batch.history.features["rating"], strict=True
            ):
                first = 1 + int(data.store.offsets[user - 1])
                expected = torch.arange(first, first + length)
                torch.testing.assert_close(found[:length], ((expected - mean) / std).float())
                assert not found[length:].any()


def test_a_store_without_the_columns_of_the_schema_is_refused(tmp_path: Path):
    assert module(tmp_path, Rated()).store.event_columns == {}
    data = module(tmp_path, Rated(), schema=Schema(events={"rating": "numeric"}))
    with pytest.raises(StoreError, match=r"with schema\.events=\{\}, now it is \{'rating': 'numeric'\}"):
        data.store  # noqa: B018
    data.prepare_again()
    assert data.store.event_columns["rating"].values.tolist() == list(range(1, 19))


def test_train_windows_policy_is_used(tmp_path: Path):
    data = module(tmp_path, max_length=2, train_windows=StridedWindows())
    users = Counter(user for batch in data.train_dataloader() for user in batch.user_ids.tolist())
    assert users == {1: 2, 3: 1, 4: 1}


def test_moving_a_batch_keeps_its_type_and_what_it_lacks(tmp_path: Path):
    data = module(tmp_path)
    batch = next(iter(data.val_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert type(moved) is SequenceBatch
    tensors = (moved.history.item_ids, moved.history.lengths, moved.targets, moved.user_ids)
    assert {x.device.type for x in (*tensors, moved.seen_events.item_ids, moved.weight)} == {"meta"}
    assert moved.history.timestamps is None


def test_pinning_a_batch_keeps_its_type_and_pins_every_tensor(tmp_path: Path, monkeypatch):
    batch = next(iter(module(tmp_path).val_dataloader()))
    pinned: list[int] = []

    # Without a GPU there is no page-locked memory, so the call itself is recorded.
    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(id(tensor))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    assert type(batch.pin_memory()) is SequenceBatch
    tensors = (batch.history.item_ids, batch.history.lengths, batch.targets, batch.user_ids)
    tensors += (batch.seen_events.item_ids, batch.seen_events.offsets, batch.weight)
    tensors += (batch.held_out.item_ids, batch.held_out.offsets)
    assert sorted(pinned) == sorted(map(id, tensors))


class Recorder(pl.LightningModule):
    """Notes the users of each batch of each epoch, and trains on nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: list[list[list[int]]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        self.epochs[-1].append(batch.user_ids.tolist())
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
# Lightning 2.6's own use of torch, which newer torch deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_trainer_gets_a_new_order_of_the_same_windows_each_epoch(tmp_path: Path):
    data = module(tmp_path, Synthetic(num_users=40, mean_events=10), batch_size=4)
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data.trainer = trainer
    trainer.fit(model, data.train_dataloader())
    assert len(model.epochs) == 3
    for epoch in model.epochs:
        assert sorted(user for batch in epoch for user in batch) == list(range(1, 41))
    assert model.epochs[0] != model.epochs[1] != model.epochs[2]


def test_first_users_last_two_items_of_a_real_log_are_held_out(real_data: Callable[[str], Path], tmp_path: Path):
    path = real_data("ml-1m/ml-1m.sasrec.txt.gz")
    with gzip.open(path, "rt") as stream:
        pairs = [line.split() for line in stream]
    user = pairs[0][0]
    items = [item for owner, item in pairs if owner == user]
    data = module(tmp_path, Sequences(str(path)))
    (user_id,) = data.store.user_vocabulary.lookup([user]).tolist()
    (validated, tested) = data.store.item_vocabulary.lookup(items[-2:]).tolist()
    assert (data.num_users, data.num_items) == (len({p[0] for p in pairs}), len({p[1] for p in pairs}))
    assert users_and_targets(data.val_dataloader())[user_id] == validated
    assert users_and_targets(data.test_dataloader())[user_id] == tested
    assert np.asarray(data.train_item_counts()).sum() == len(pairs) - 2 * data.num_users


@pytest.mark.process
def test_training_on_an_existing_store_needs_no_polars(tmp_path: Path):
    module(tmp_path, Synthetic(num_users=5, num_items=9, mean_events=6)).prepare_data()
    code = (
        "import sys\n"
        "sys.modules['polars'] = None\n"
        "from seqrec import SequenceDataModule, Synthetic\n"
        "source = Synthetic(num_users=5, num_items=9, mean_events=6)\n"
        "data = SequenceDataModule(source, store=sys.argv[1])\n"
        "print(next(iter(data.train_dataloader())).user_ids.numel())\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"
