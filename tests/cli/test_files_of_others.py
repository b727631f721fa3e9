"""Files that others wrote run nothing, and name no file that is read, written or deleted for them."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from strangers import Touch
from torch.utils.data import DataLoader

import seqrec
from seqrec import EventStore, load
from seqrec.errors import CheckpointError, InputError, StoreError
from seqrec.models import MambaRec, Popularity
from seqrec.runs.callbacks import BestCheckpoint, UseAtomicCheckpoints
from seqrec.runs.checkpoints import AtomicCheckpointIO, write_checkpoint
from seqrec.training.losses import Loss

pytestmark = pytest.mark.filterwarnings("ignore")


def content_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "run" / "checkpoints" / "best.ckpt", weights_only=True)


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


HARMLESS = ("pytorch-lightning_version", "hparams_name")
ODD: list[Any] = [None, 0, "text", [], [1], {}, {"encoder": 1}, {"encoder": {"init_args": 1}}, {1: 2}, deep(450)]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize(
    "key", ["hyper_parameters", "seqrec", "state_dict", "pytorch-lightning_version", "hparams_name"]
)
def test_odd_content_is_refused_in_one_error(trained: Path, tmp_path: Path, key: str, value: Any):
    write_checkpoint(content_of(trained) | {key: value}, tmp_path / "odd.ckpt")
    try:
        assert isinstance(load(tmp_path / "odd.ckpt"), MambaRec)
    except InputError as error:
        assert "odd.ckpt" in str(error)  # noqa: PT017
    else:
        # Without it, or with another one, the model is the same.
        assert key in HARMLESS


@pytest.mark.parametrize("store", [0, ["a"], {"a": 1}, torch.zeros(1), "absent", "stranger.py", "/dev/zero"], ids=str)
def test_the_store_that_a_checkpoint_names_is_a_store_or_refused(trained: Path, tmp_path: Path, store: Any):
    content = content_of(trained)
    write_checkpoint(content | {"seqrec": content["seqrec"] | {"store": store}}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"odd\.ckpt"):
        load(tmp_path / "odd.ckpt")


BUILT_BY_LIGHTNING = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


class Imported(Popularity):
    """A recommender of the user's, which takes an object."""

    def __init__(self, num_items: int, *, loss: Loss | None = None, anything: Any = None) -> None:
        super().__init__(num_items)
        self.chosen = loss
        self.save_hyperparameters({"num_items": num_items})


@pytest.mark.parametrize("argument", ["loss", "anything"])
@pytest.mark.parametrize(
    "builder", [{}, {"_instantiator": "lightning.pytorch.cli.instantiate_module"}], ids=["", "cli"]
)
@pytest.mark.parametrize("path", ["stranger.Mean", "subprocess.Popen", "seqrec.load", "seqrec.SQLiteStore"])
def test_classes_of_the_user_take_nothing_else_either(
    trained: Path,
    marker: Path,
    argument: str,
    builder: dict[str, str],
    path: str,
):
    spec = {"class_path": path, "init_args": {"args": ["touch", str(marker)]} if path == "subprocess.Popen" else {}}
    content = {"state_dict": {}, "hyper_parameters": {"num_items": 3, argument: spec, **builder}}
    content["pytorch-lightning_version"] = "2.6.0"
    torch.save(content, "own.ckpt")
    with pytest.raises(InputError):
        Imported.load_from_checkpoint("own.ckpt")
    assert not marker.exists()
    assert "stranger" not in sys.modules


def test_a_class_of_the_user_gets_the_object_that_it_declares(trained: Path, tmp_path: Path):
    model = Imported(3)
    spec = {"class_path": "seqrec.FullSoftmax", "init_args": {}}
    hparams = {"num_items": 3, "loss": spec, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    torch.save(
        {"state_dict": model.state_dict(), "hyper_parameters": hparams, "pytorch-lightning_version": "2.6.0"},
        tmp_path / "own.ckpt",
    )
    assert type(Imported.load_from_checkpoint(tmp_path / "own.ckpt").chosen).__name__ == "FullSoftmax"


def test_pickles_are_refused_whatever_holds_them(marker: Path):
    class Scripted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(Scripted()), "script.ckpt")
    torch.save({"state_dict": Touch(marker)}, "old.ckpt", _use_new_zipfile_serialization=False)
    np.save("array.ckpt.npy", np.array([Touch(marker)], dtype=object), allow_pickle=True)
    for file in ("pickled.ckpt", "script.ckpt", "old.ckpt", "array.ckpt.npy"):
        for read in (load, Popularity.load_from_checkpoint, AtomicCheckpointIO(lambda: True).load_checkpoint):
            with pytest.raises(Exception):  # noqa: B017, PT011  # any will do
                read(file)
        with pytest.raises(CheckpointError):
            load(file)
    assert not marker.exists()


def test_arrays_of_objects_in_a_store_are_refused(trained: Path, marker: Path):
    shutil.copytree(trained / "store", "store")
    for file in Path("store").glob("*.npy"):
        np.save(file, np.array([Touch(marker)], dtype=object), allow_pickle=True)
    checkpoint = trained / "run" / "checkpoints" / "best.ckpt"
    for read in (EventStore.open, EventStore.open_unchecked, lambda folder: load(checkpoint, store=folder)):
        with pytest.raises(StoreError):
            read("store")
    assert not marker.exists()


UNSAFE = ("eval", "exec", "yaml.load", "pickle.load", "pickle.loads", "joblib.load", "marshal.loads")


def test_nothing_in_the_package_unpickles_or_evaluates():
    found = []
    package = Path(seqrec.__file__).parent
    # The workers of a preparation read what this process, or another worker, has written into the work folder.
    for file in {*package.rglob("*.py")} - {package / "data/tasks.py"}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                name = ast.unparse(node.func)
                unsafe = name in (
                    "eval",
                    "exec",
                    "yaml.load",
                    "pickle.load",
                    "pickle.loads",
                    "joblib.load",
                    "marshal.loads",
                )
                if unsafe or "allow_pickle=True" in call or (name == "torch.load" and "weights_only=True" not in call):
                    found.append(f"{file}:{node.lineno} {call}")
    assert not found


OTHERS: list[Callable[[Path, Path], str]] = [
    lambda folder, victim: str(victim),
    lambda folder, victim: f"local://{victim}",
    lambda folder, victim: f"file://{victim}",
    lambda folder, victim: str(folder / os.path.relpath(victim, folder)),
    lambda folder, victim: os.path.relpath(victim, folder),
    lambda folder, victim: str(folder / ".."),
    lambda folder, victim: "..",
    lambda folder, victim: f"local://{victim.parent}",
    lambda folder, victim: str(folder / "notes.txt"),
    lambda folder, victim: f"memory://{victim}",
]


def files_below(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
@pytest.mark.parametrize("callback", [BestCheckpoint, ModelCheckpoint])
@pytest.mark.parametrize("best", ["best.ckpt", None])
def test_the_state_of_a_callback_deletes_nothing_of_others(
    tmp_path: Path, other: Callable[[Path, Path], str], callback: Any, best: str | None
):
    folder, victim = tmp_path / "run" / "checkpoints", tmp_path / "home" / "victim.ckpt"
    for file in (victim, folder / "best.ckpt", folder / "notes.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    write_checkpoint({"state_dict": {}}, victim)
    path = other(folder, victim)
    here = callback(dirpath=folder, filename="{step}", monitor="metric", mode="max")
    first = str(folder / best) if best else path
    here.load_state_dict(
        {
            "monitor": "metric",
            "dirpath": here.dirpath,
            "best_model_score": torch.tensor(0.0),
            "best_model_path": first,
            "kth_best_model_path": path,
            "kth_value": torch.tensor(0.0),
            "last_model_path": path,
            "best_k_models": {path: torch.tensor(0.0)},
        }
    )
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[here, UseAtomicCheckpoints()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with suppress(KeyError, CheckpointError):
        trainer.fit(Measured())
    left = files_below(tmp_path)
    assert {"home/victim.ckpt", "run/checkpoints/notes.txt"} <= set(left)


class Measured(pl.LightningModule):
    """Logs a metric that gets better."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(2), batch_size=1)  # type: ignore[arg-type]

    def training_step(self, batch: torch.Tensor, *_: Any) -> torch.Tensor:
        return (self.weight - batch).square().sum()

    def on_train_epoch_end(self) -> None:
        self.log("metric", float(self.current_epoch + 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)
