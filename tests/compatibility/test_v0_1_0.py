"""What version 0.1.0 wrote still loads: checkpoints, a run folder's config and results, a file of sessions, imports."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import seqrec
from seqrec import (
    EventStore,
    Filters,
    History,
    SequentialRecommender,
    SQLiteStore,
    Synthetic,
    prepare,
    read_results,
)
from seqrec.inference.sessions import SessionRecommender
from seqrec.registry import class_named, public_path

# Lightning and jsonargparse warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

OLD = Path(__file__).parent / "v0_1_0"
SCORES = json.loads((OLD / "scores.json").read_text())
CLASS_PATHS = json.loads((OLD / "class_paths.json").read_text())
NAMES = json.loads((OLD / "names.json").read_text())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EventStore]:
    """The log that both models were trained on, which is generated."""
    source = Synthetic(num_users=60, num_items=40, mean_events=30, seed=3)
    folder = tmp_path_factory.mktemp("stores") / "synthetic"
    store = prepare(source, Filters(), folder)
    return {"mambarec": store, "sasrec": store}


@pytest.mark.parametrize("module", sorted(NAMES))
def test_every_public_name_of_then_can_be_imported(module: str):
    found = importlib.import_module(module)
    for name in NAMES[module]:
        assert getattr(found, name) is not None


@pytest.mark.process
def test_a_name_imported_from_its_old_place_is_the_same_object():
    code = (
        "from seqrec.losses import FullSoftmax\nimport seqrec.optim as optim\nfrom seqrec.data.sources import Table\n"
        "import seqrec\nprint(FullSoftmax is seqrec.FullSoftmax, optim.Adam is seqrec.Adam, Table is seqrec.Table)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["True", "True", "True"]


@pytest.mark.parametrize("path", CLASS_PATHS)
def test_every_class_that_files_of_then_name_is_found(path: str):
    """Every loss, source, split, optimizer .. by the path that a checkpoint or config of 0.1.0 may contain."""
    cls = class_named(path)
    new = {"CheckpointFiles": "UseAtomicCheckpoints", "Execution": "EncoderCompile", "MemoryStore": "InMemoryStore"}
    new["EarlyStopping"] = "ResumableEarlyStopping"
    name = path.rpartition(".")[2]
    assert cls.__name__ == new.get(name, name)
    if cls.__name__ != "UseAtomicCheckpoints":  # the only one that no file names
        room = importlib.import_module(public_path(cls).rpartition(".")[0])
        assert hasattr(room, "__path__"), f"{public_path(cls)} names the file; export {name} from its room"


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="lossses"):
        importlib.import_module("seqrec.lossses")


@pytest.mark.parametrize("name", ["mambarec", "sasrec"])
def test_a_checkpoint_loads_and_scores_as_it_did(name: str, stores: dict[str, EventStore]):
    model = seqrec.load(OLD / name / "checkpoints/best.ckpt", store=stores[name].directory)
    history = History(
        item_ids=torch.tensor([[3, 7, 9, 1, 4, 22, 31], [5, 5, 6, 0, 0, 0, 0]]), lengths=torch.tensor([7, 3])
    )
    found = model.recommend(history, top_k=5, filter_seen=False)
    assert found.item_ids.tolist() == SCORES[name]["item_ids"]
    torch.testing.assert_close(found.scores, torch.tensor(SCORES[name]["scores"]), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_loads_by_lightnings_own_way():
    model = SequentialRecommender.load_from_checkpoint(OLD / "mambarec/checkpoints/best.ckpt", weights_only=True)
    assert seqrec.registry.public_path(type(model.loss)) == "seqrec.SampledSoftmax"


def test_sessions_continue(tmp_path: Path, stores: dict[str, EventStore]):
    shutil.copy(OLD / "mambarec/sessions.sqlite", tmp_path / "sessions.sqlite")
    model = seqrec.load(OLD / "mambarec/checkpoints/best.ckpt", store=stores["mambarec"].directory)
    sessions = SessionRecommender(model, SQLiteStore(tmp_path / "sessions.sqlite"))
    found = sessions.recommend("new", 5)
    assert [each.item for each in found] == [item for item, _ in SCORES["session"]]
    assert [each.score for each in found] == pytest.approx([score for _, score in SCORES["session"]], rel=1e-5)


@pytest.mark.parametrize("name", ["mambarec", "sasrec"])
def test_results_of_users_are_read(name: str):
    results = read_results(OLD / name)
    assert results.num_users == 60


@pytest.mark.process
@pytest.mark.parametrize("name", ["mambarec", "sasrec"])
def test_a_run_is_resumed_from_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from seqrec.cli import main

    shutil.copytree(OLD / name, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"])
    shown = json.loads((OLD / name / "test_metrics.json").read_text())["models"]
    assert f"{next(iter(shown.values()))['NDCG@10']:.4f}" in capsys.readouterr().out
    main(["fit", "--ckpt_path", "run/checkpoints/best.ckpt", "--trainer.max_epochs", "3"])
    assert "test of 60 users" in capsys.readouterr().out
