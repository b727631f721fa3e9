from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trained_models import one_step

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.errors import CheckpointError, InputError, MissingInputError, StoreError
from seqrec.inference import load
from seqrec.models import MambaRec, Popularity, Recommender
from seqrec.models.trained_on import CHECKPOINT_KEY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def trained(
    build: Callable[[int], Recommender], folder: Path, num_items: int = 30
) -> tuple[Recommender, SequenceDataModule, Path]:
    """A model after one step, its data, and its checkpoint."""
    source = Synthetic(num_users=20, num_items=num_items, mean_events=10)
    model, data, trainer = one_step(lambda data: build(data.num_items), source, folder)
    trainer.save_checkpoint(folder / "model.ckpt")
    return model, data, folder / "model.ckpt"


def mambarec(num_items: int) -> MambaRec:
    return MambaRec(num_items, d_model=8, d_state=4, max_length=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trained(mambarec, folder)
    return folder


def with_record(folder: Path, path: Path, **changes: object) -> Path:
    """The checkpoint, saying something else of itself; None takes an entry away."""
    checkpoint = torch.load(folder / "model.ckpt", weights_only=True)
    record = checkpoint[CHECKPOINT_KEY] | changes
    checkpoint[CHECKPOINT_KEY] = {key: value for key, value in record.items() if value is not None}
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("build", [mambarec, Popularity])
def test_a_checkpoint_loads_as_the_class_that_was_trained_with_the_logs_ids(
    build: Callable[[int], Recommender], tmp_path: Path
):
    model, data, path = trained(build, tmp_path)
    loaded = load(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in loaded.state_dict().items())
    everything = torch.arange(1, data.num_items + 1).numpy()
    for vocabulary, own in (
        (loaded.item_vocabulary, data.store.item_vocabulary),
        (model.item_vocabulary, data.store.item_vocabulary),
    ):
        assert vocabulary is not None
        assert list(vocabulary.external_ids(everything)) == list(own.external_ids(everything))
    assert loaded.user_vocabulary is not None
    assert len(loaded.user_vocabulary) == data.num_users


def test_a_store_that_was_moved_is_named(folder: Path, tmp_path: Path):
    path = with_record(folder, tmp_path / "moved.ckpt", store="gone/away")
    with pytest.raises(MissingInputError, match=r"no event store at gone/away, .* give its present folder: store="):
        load(path)
    assert load(path, store=folder / "store").item_vocabulary is not None


def test_a_store_with_other_items_is_refused(folder: Path, tmp_path: Path):
    trained(mambarec, tmp_path, num_items=40)
    with pytest.raises(StoreError, match="has other items than"):
        load(folder / "model.ckpt", store=tmp_path / "store")


def test_a_checkpoint_without_a_store_asks_for_one(folder: Path, tmp_path: Path):
    path = with_record(folder, tmp_path / "bare.ckpt", store=None, items=None)
    with pytest.raises(InputError, match="was trained without an event store"):
        load(path)


def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path):
    checkpoint = torch.load(folder / "model.ckpt", weights_only=True)
    checkpoint["state_dict"]["items.table.weight"][3, 1] = torch.nan
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match="contains weights that are not finite"):
        load(tmp_path / "nan.ckpt")


def test_what_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"ckpt=.*nowhere\.ckpt: there is no such checkpoint"):
        load(tmp_path / "nowhere.ckpt")
    whole = (folder / "model.ckpt").read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        (tmp_path / "bad.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.ckpt is damaged or no checkpoint"):
            load(tmp_path / "bad.ckpt")
    torch.save({"weights": "none"}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="lacks state_dict"):
        load(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="does not name its recommender"):
        load(tmp_path / "other.ckpt")
    for class_path, message in (
        ("nowhere.Model", "nowhere.Model is not a class of seqrec"),
        ("seqrec.models.Missing", "there is no seqrec.models.Missing"),
        ("pathlib.Path", r"pathlib\.Path is no Recommender"),
    ):
        with pytest.raises(InputError, match=message):
            load(with_record(folder, tmp_path / "class.ckpt", class_path=class_path))
