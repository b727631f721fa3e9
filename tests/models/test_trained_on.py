from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch as pl
import polars
import pytest
from trained_models import one_step

from seqrec import Table, load, prepare
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prepare import Filters
from seqrec.errors import StoreError
from seqrec.models import GRU4Rec, MambaRec, Popularity, Recommender

pytestmark = pytest.mark.filterwarnings("ignore")


def log(path: Path, *, items: int = 100, users: int = 1, more: int = 0) -> Table:
    """Ten users with six events each on twenty items, with ids from `items` and `users` on, and `more` items."""
    rows = [(users + user, items + (user + 3 * event) % 20, event) for user in range(10) for event in range(6)]
    rows += [(users, items + 20 + new, 10 + new) for new in range(more)]
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_csv(path)
    return Table(str(path))


def data_of(source: Table, folder: Path) -> SequenceDataModule:
    return SequenceDataModule(source, store=str(folder), max_length=8)


def trainer(**options: object) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder with a store, and the checkpoints of a model without and of one with vectors of users."""
    folder = tmp_path_factory.mktemp("trained_on")
    source = log(folder / "log.csv")
    for name, users in (("plain", False), ("users", True)):

        def build(data: SequenceDataModule, users: bool = users) -> Recommender:
            sizes = {"user_embedding": True, "num_users": data.num_users} if users else {}
            return MambaRec(data.num_items, d_model=8, d_state=4, max_length=8, **sizes)

        _, _, trained_by = one_step(build, source, folder)
        trained_by.save_checkpoint(folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_a_checkpoint_is_not_used_on_another_catalogue(trained: Path, tmp_path: Path, command: str, more: int):
    data = data_of(log(tmp_path / "other.csv", items=500, more=more), tmp_path / "store")
    model = MambaRec(data.num_items, d_model=8, d_state=4, max_length=8)
    runner = trainer(max_steps=2)
    message = rf"{re.escape(str(tmp_path / 'store'))} has other items than {re.escape(str(trained / 'store'))}"
    with pytest.raises(StoreError, match=message):
        getattr(runner, command)(model, datamodule=data, ckpt_path=trained / "plain.ckpt", weights_only=True)


def test_a_loaded_model_is_not_judged_on_another_catalogue(trained: Path, tmp_path: Path):
    data = data_of(log(tmp_path / "other.csv", items=500), tmp_path / "store")
    model = load(trained / "plain.ckpt")
    with pytest.raises(StoreError, match="has other items than"):
        trainer().test(model, data, verbose=False)


def test_a_fitted_model_is_not_judged_on_another_catalogue(trained: Path, tmp_path: Path):
    data, other = data_of(log(tmp_path / "log.csv"), tmp_path / "a"), log(tmp_path / "other.csv", items=500)
    model = GRU4Rec(data.num_items, d_model=8, max_length=8)
    trainer(max_steps=1, limit_val_batches=0).fit(model, data)
    trainer().test(model, data, verbose=False)
    with pytest.raises(StoreError, match="has other items than"):
        trainer().test(model, data_of(other, tmp_path / "b"), verbose=False)


def test_a_model_without_vectors_of_users_fits_other_users(trained: Path, tmp_path: Path):
    data = data_of(log(tmp_path / "other.csv", users=50), tmp_path / "store")
    model = load(trained / "plain.ckpt", store=data.store.directory)
    trainer().test(model, data, verbose=False)


@pytest.mark.parametrize("users", [2, 50])
def test_a_model_with_vectors_of_users_fits_no_other_users(trained: Path, tmp_path: Path, users: int):
    store = prepare(log(tmp_path / "other.csv", users=users), Filters(), tmp_path / "store")
    with pytest.raises(StoreError, match=r"has other users than .* a vector of each user \(user_embedding: true\)"):
        load(trained / "users.ckpt", store=store.directory)
    model = load(trained / "users.ckpt")
    with pytest.raises(StoreError, match="has other users than"):
        trainer().test(model, data_of(log(tmp_path / "other.csv", users=users), tmp_path / "store"), verbose=False)


def test_the_share_of_targets_that_were_seen_before_is_counted(tmp_path: Path):
    rows = [(user, event % items, event) for user, items in ((1, 9), (2, 9), (3, 2), (4, 9)) for event in range(6)]
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_csv(tmp_path / "log.csv")
    data = data_of(Table(str(tmp_path / "log.csv")), tmp_path / "store")
    model = Popularity(data.num_items)
    runner = trainer(max_steps=1)
    runner.fit(model, data)
    runner.test(model, data, verbose=False)
    assert model.repeated_targets["test"] == 0.25
