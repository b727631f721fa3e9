"""Nothing runs from a checkpoint, nor from the config that comes with one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from trained_models import one_step

from seqrec import load
from seqrec.cli import main
from seqrec.data.sources import Synthetic
from seqrec.encoders import SequenceEncoder
from seqrec.errors import InputError
from seqrec.models import MambaRec, SequentialRecommender
from seqrec.specs import argument_kinds, from_spec
from seqrec.training.losses import SampledSoftmax
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import Adam, LinearWarmup

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = """
from pathlib import Path
from torch import nn
from seqrec.encoders import SequenceEncoder
Path({marker!r}).touch()

def touch(*args, **kwargs):
    Path({marker!r}).touch()

class Mean(SequenceEncoder):
    def __init__(self, d_model: int = 8):
        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)

    def forward(self, x, history):
        return x.cumsum(1)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every part that holds a class, beside the config of its run."""
    folder = tmp_path_factory.mktemp("trained")
    source = Synthetic(num_users=20, num_items=30, mean_events=10)

    def build(data: Any) -> MambaRec:
        loss = SampledSoftmax(UniformNegatives(4))
        schedule = Adam(schedule=LinearWarmup(10))
        return MambaRec(data.num_items, d_model=8, d_state=4, max_length=8, loss=loss, optimizer=schedule)

    _, data, trainer = one_step(build, source, folder)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    trainer.save_checkpoint(folder / "run" / "checkpoints" / "best.ckpt")
    config = {
        "data": {
            "source": {
                "class_path": "seqrec.Synthetic",
                "init_args": {"num_users": 20, "num_items": 30, "mean_events": 10},
            },
            "store": str(data.store_directory),
            "max_length": 8,
        },
        "model": {
            "class_path": "seqrec.MambaRec",
            "init_args": {"d_model": 8, "d_state": 4},
        },
        "trainer": {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears if the module `stranger`, which can be imported, runs, or a command that makes it."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "marker"
    (tmp_path / "stranger.py").write_text(MODULE.format(marker=str(file)))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("stranger", None)


def hostile(marker: Path) -> dict[str, dict[str, Any]]:
    """Specs that run something if they are built, or if what they name is imported."""
    touch = ["touch", str(marker)]
    return {
        "popen": {"class_path": "subprocess.Popen", "init_args": {"args": touch}},
        "check_output": {"class_path": "subprocess.check_output", "init_args": {"args": touch}},
        "system": {"class_path": "os.system", "init_args": {"command": " ".join(touch)}},
        "function": {"class_path": "stranger.touch", "init_args": {}},
        "module": {"class_path": "stranger.Mean", "init_args": {}},
        "submodule": {"class_path": "stranger.deeper.Mean", "init_args": {}},
        "through_ours": {"class_path": "seqrec.experiments.runner.subprocess.Popen", "init_args": {"args": touch}},
        "ours_of_another_kind": {"class_path": "seqrec.SQLiteStore", "init_args": {"path": str(marker)}},
        "no_path": {"class_path": "__import__('os').system", "init_args": {}},
        "no_text": {"class_path": ["os", "system"], "init_args": {}},
    }


NAMES = list(hostile(Path()))


def put(checkpoint: dict[str, Any], place: str, spec: dict[str, Any]) -> None:
    hparams = checkpoint["hyper_parameters"]
    if place == "record":
        checkpoint["seqrec"]["class_path"] = spec["class_path"]
    elif place == "loss.negatives":
        hparams["loss"]["init_args"]["negatives"] = spec
    elif place == "optimizer.schedule":
        hparams["optimizer"]["init_args"]["schedule"] = spec
    elif place == "optimizer.lr":
        hparams["optimizer"]["init_args"]["lr"] = spec
    elif place == "loss.list":
        hparams["loss"] = [spec]
    elif place == "loss.dict":
        hparams["loss"] = {"a": spec}
    else:
        hparams[place] = spec
    if place == "encoder":
        checkpoint["seqrec"]["class_path"] = "seqrec.SequentialRecommender"


PLACES = [
    "record",
    "loss",
    "loss.list",
    "loss.dict",
    "loss.negatives",
    "optimizer",
    "optimizer.schedule",
    "optimizer.lr",
    "item_table",
    "encoder",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_a_checkpoint_builds_nothing_else(trained: Path, marker: Path, place: str, name: str):
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    put(checkpoint, place, hostile(marker)[name])
    torch.save(checkpoint, "hostile.ckpt")
    with pytest.raises(InputError) as caught:
        load("hostile.ckpt")
    assert "\n" not in str(caught.value)
    assert "hostile.ckpt" in str(caught.value)
    for cls in (MambaRec, SequentialRecommender):
        if place not in ("record", "encoder"):
            with pytest.raises(InputError):
                cls.load_from_checkpoint("hostile.ckpt", weights_only=True)
    assert not marker.exists()
    assert "stranger" not in sys.modules


@pytest.mark.parametrize("command", ["recommend", "export", "serve", "test", "validate", "predict", "fit"])
@pytest.mark.parametrize("name", ["popen", "module", "check_output"])
def test_no_command_runs_what_a_checkpoint_names(
    trained: Path, marker: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
):
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    for place in ("loss", "optimizer"):
        put(checkpoint, place, hostile(marker)[name])
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(checkpoint, "run/checkpoints/best.ckpt")
    Path("run/config.yaml").write_text((trained / "run" / "config.yaml").read_text())
    more = {
        "recommend": ["--output", "r"],
        "export": ["--output", "e"],
        "serve": ["--port", "0"],
        "fit": ["--trainer.max_steps", "1"],
    }.get(command, [])
    # These build the model from the config, and take only weights from the checkpoint; fit compares the optimizers.
    ends_well = command in ("test", "validate")
    with nullcontext() if ends_well else pytest.raises(SystemExit):
        main([command, "--ckpt", "run/checkpoints/best.ckpt", *more])
    assert not marker.exists()
    assert "Traceback" not in capsys.readouterr().err


def in_config(place: str, spec: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        at = config
        *parents, last = place.split("/")
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = spec

    return change


CONFIG_PLACES = [
    "model",
    "model/init_args/loss",
    "model/init_args/optimizer",
    "data/source",
    "data/split",
    "data/train_windows",
    "protocol",
    "trainer/callbacks",
    "trainer/logger",
    "trainer/plugins",
    "trainer/profiler",
    "trainer/strategy",
]


@pytest.mark.parametrize("name", ["popen", "system", "function", "module", "through_ours"])
@pytest.mark.parametrize("place", CONFIG_PLACES)
def test_the_config_beside_a_checkpoint_builds_nothing_else(
    trained: Path, marker: Path, capsys: pytest.CaptureFixture[str], place: str, name: str
):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    spec = hostile(marker)[name]
    in_config(place, [spec] if place == "trainer/callbacks" else spec)(config)
    with pytest.raises(SystemExit) as end:
        run_test(trained, config)
    assert end.value.code == 2
    assert not marker.exists()
    assert "stranger" not in sys.modules
    error = capsys.readouterr().err
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "callback",
    [
        {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "stranger.touch"}},
        {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.system"}},
        {
            "class_path": "lightning.pytorch.callbacks.LambdaCallback",
            "init_args": {"setup": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "marker"]}}},
        },
    ],
)
def test_functions_in_the_config_beside_a_checkpoint_are_not_called(trained: Path, marker: Path, callback: Any):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    config["trainer"]["callbacks"] = [callback]
    with pytest.raises(SystemExit) as end:
        run_test(trained, config)
    assert end.value.code == 2
    assert not marker.exists()


@pytest.mark.parametrize("key", ["data", "trainer", "model"])
def test_a_file_that_the_config_beside_a_checkpoint_names_is_under_the_same_rule(trained: Path, marker: Path, key: str):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    inner = copy.deepcopy(config[key])
    if key == "trainer":
        inner["callbacks"] = [hostile(marker)["module"]]
    else:
        inner |= {"source": hostile(marker)["module"]} if key == "data" else hostile(marker)["module"]
    Path("inner.yaml").write_text(yaml.safe_dump(inner))
    config[key] = str(Path("inner.yaml").absolute())
    with pytest.raises(SystemExit) as end:
        run_test(trained, config)
    assert end.value.code == 2
    assert not marker.exists()


def run_test(trained: Path, config: dict[str, Any]) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    whole = (trained / "run" / "checkpoints" / "best.ckpt").read_bytes()
    Path("run/checkpoints/best.ckpt").write_bytes(whole)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"])


def test_a_trusted_package_is_imported(trained: Path, marker: Path, capsys: pytest.CaptureFixture[str]):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    encoder = {"class_path": "stranger.Mean", "init_args": {"d_model": 8}}
    config["model"] = {"class_path": "SequentialRecommender", "init_args": {"encoder": encoder}}
    config["trainer"] |= {"max_steps": 1, "logger": {"class_path": "RunFolder", "init_args": {"save_dir": "runs"}}}
    Path("own.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "own.yaml"])
    sys.modules.pop("stranger")
    marker.unlink()
    capsys.readouterr()

    with pytest.raises(SystemExit):
        main(["test", "--ckpt", "runs/version_0"])
    message = "error: stranger.Mean is not a class of seqrec, and the config of a checkpoint's run names it."
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recommend", "--ckpt", "runs/version_0", "--output", "r"])
    assert "add --trust stranger" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"last\.ckpt: stranger\.Mean is not a class of seqrec.*trust=\['stranger'\]"):
        load("runs/version_0/checkpoints/last.ckpt")
    assert not marker.exists()

    main(["test", "--ckpt", "runs/version_0", "--trust", "stranger"])
    main(["recommend", "--ckpt", "runs/version_0", "--output", "r", "--trust=stranger,other"])
    assert marker.exists()
    sys.modules.pop("stranger")
    assert isinstance(load("runs/version_0/checkpoints/last.ckpt", trust=["stranger"]).encoder, SequenceEncoder)


def test_a_class_that_is_imported_already_needs_no_trust(marker: Path):
    import stranger  # noqa: F401  # type: ignore[import-not-found]

    built = from_spec({"class_path": "stranger.Mean", "init_args": {"d_model": 4}}, SequenceEncoder)
    assert built.d_model == 4


@pytest.mark.parametrize("packages", [["my.package"], ["--x"], [""]])
def test_a_trusted_package_is_named_by_its_first_part(trained: Path, packages: list[str]):
    with pytest.raises(InputError, match="is no name of a package; give its first part alone"):
        load(trained / "run" / "checkpoints" / "best.ckpt", trust=packages)


def test_the_kinds_of_arguments_are_those_of_their_annotations():
    assert argument_kinds(SequentialRecommender)["encoder"] == (SequenceEncoder,)
    assert argument_kinds(MambaRec)["encoder"] == (SequenceEncoder,)
    assert argument_kinds(Adam)["lr"] == ()
