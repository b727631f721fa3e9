"""Nothing runs from a checkpoint, nor from the config that comes with one."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seqrec import load
from seqrec.cli import main
from seqrec.encoders import SequenceEncoder
from seqrec.errors import InputError
from seqrec.experiments.runner import start
from seqrec.models import MambaRec, SequentialRecommender
from seqrec.runs.finding import find_checkpoint
from seqrec.specs import argument_kinds, from_spec
from seqrec.training.optim import Adam

pytestmark = pytest.mark.filterwarnings("ignore")


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
        "ours_as_a_function": {"class_path": "seqrec.load", "init_args": {"ckpt": "x.ckpt", "trust": ["stranger"]}},
        "ours_as_a_method": {
            "class_path": "seqrec.MambaRec.load_from_checkpoint",
            "init_args": {"checkpoint_path": "pickled.ckpt", "weights_only": False},
        },
        "ours_with_code_of_others": {
            "class_path": "seqrec.specs.from_spec",
            "init_args": {"value": {"class_path": "stranger.Mean", "init_args": {}}},
        },
        "torch_function": {"class_path": "torch.load", "init_args": {"f": "pickled.ckpt", "weights_only": False}},
        "torch_hub": {
            "class_path": "torch.hub.load",
            "init_args": {"repo_or_dir": ".", "model": "x", "source": "local"},
        },
        "no_path": {"class_path": "__import__('os').system", "init_args": {}},
        "no_text": {"class_path": ["os", "system"], "init_args": {}},
    }


NAMES = list(hostile(Path()))


def pairs(places: Sequence[str], names: Sequence[str]) -> list[Any]:
    """Each place with each name; a plain run of the tests takes every eighth."""
    found = [(place, name) for place in places for name in names]
    return [pytest.param(*each, marks=[pytest.mark.slow] if k % 8 else []) for k, each in enumerate(found)]


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


@pytest.mark.parametrize(("place", "name"), pairs(PLACES, NAMES))
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
    "model/init_args/loss/init_args/negatives",
    "model/init_args/optimizer",
    "model/init_args/optimizer/init_args/schedule",
    "data/source",
    "data/split",
    "data/train_windows",
    "protocol",
    "protocol/init_args/split",
    "checkpoint/dirpath",
    "trainer/callbacks",
    "trainer/logger",
    "trainer/plugins",
    "trainer/profiler",
    "trainer/strategy",
]


@pytest.mark.parametrize(("place", "name"), pairs(CONFIG_PLACES, NAMES))
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


def of_lightning(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.{path}", "init_args": arguments}


STORE = {"class_path": "seqrec.SQLiteStore", "init_args": {"path": "marker"}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "marker"]}}
STRANGER = {"class_path": "stranger.Mean", "init_args": {}}
# Arguments that take functions, or that declare no class.
OPEN_ARGUMENTS: list[tuple[str, Any]] = [
    *(
        ("callbacks", [of_lightning("callbacks.LambdaCallback", **{hook: it})])
        for hook in ("setup", "on_test_start", "on_exception")
        for it in ("stranger.touch", "os.system", "seqrec.load", "seqrec.cli.main", POPEN, STORE, STRANGER)
    ),
    *(
        ("strategy", of_lightning("strategies.DDPStrategy", **{name: it}))
        for name in ("ddp_comm_state", "ddp_comm_hook", "ddp_comm_wrapper", "cluster_environment", "checkpoint_io")
        for it in ("stranger.touch", "seqrec.load", STORE, STRANGER, [STRANGER], {"a": [STORE]})
        # Text is text for an argument that takes anything.
        if not (name == "ddp_comm_state" and isinstance(it, str))
    ),
    ("callbacks", [of_lightning("callbacks.WeightAveraging", avg_fn="stranger.touch")]),
    ("callbacks", [of_lightning("callbacks.ModelCheckpoint", dirpath=STORE)]),
    ("profiler", of_lightning("profilers.PyTorchProfiler", on_trace_ready="stranger.touch")),
    ("plugins", [{"class_path": "lightning.fabric.plugins.TorchCheckpointIO", "init_args": {"x": STORE}}]),
]


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(*each, marks=[pytest.mark.slow] if k % 5 else []) for k, each in enumerate(OPEN_ARGUMENTS)],
    ids=str,
)
def test_arguments_for_anything_get_no_object_from_the_config_beside_a_checkpoint(
    trained: Path, marker: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    config["trainer"][key] = value
    with pytest.raises(SystemExit) as end:
        run_test(trained, config)
    assert end.value.code == 2
    assert not marker.exists()
    assert "stranger" not in sys.modules
    assert "Traceback" not in capsys.readouterr().err


def test_the_config_beside_a_checkpoint_cannot_trust(trained: Path, marker: Path):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    run_test(trained, config | {"trust": "stranger", "ckpt_path": "pickled.ckpt"})
    config["model"] = {"class_path": "SequentialRecommender", "init_args": {"encoder": STRANGER}}
    with pytest.raises(SystemExit):
        run_test(trained, config | {"trust": "stranger"})
    assert not marker.exists()
    assert "stranger" not in sys.modules


FOLDERS = [
    *("stranger.Mean", "stranger", "--trust=stranger", "--trust", "--config=named.yaml", "--config", "-c"),
    *("--model.encoder=stranger.Mean", "-x", "~", "#h", "x #y", "x=stranger.Mean", "./null", "a: b"),
    *("{model: stranger.Mean}", "[stranger.Mean]", "http:x", "local:x", "x::y", "$(touch marker)", "!!python/name:os"),
]


@pytest.mark.parametrize("name", [*FOLDERS[:3], *(pytest.param(each, marks=pytest.mark.slow) for each in FOLDERS[3:])])
def test_the_name_of_a_folder_is_no_option(trained: Path, marker: Path, name: str):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    own = {"class_path": "SequentialRecommender", "init_args": {"encoder": STRANGER}}
    Path("named.yaml").write_text(yaml.safe_dump(config | {"model": own}))
    shutil.copytree(trained / "run", name)
    # Only this way is such a word the name.
    words = [[f"--ckpt={name}"], *([] if name.startswith("--trust") else [["--ckpt", name]])]
    for number, word in enumerate(words):
        main(["test", *word])
        main(["recommend", *word, "--output", f"r{number}"])
    (Path(name) / "config.yaml").write_text(yaml.safe_dump(config | {"model": own}))
    for command in ("test", "fit"):
        with pytest.raises(SystemExit):
            main([command, "--ckpt", name])
    assert not marker.exists()
    assert "stranger" not in sys.modules


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


@pytest.mark.parametrize("name", ["popen", "module", "torch_function"])
@pytest.mark.parametrize("words", [["--ckpt", "run"], ["--ckpt", "run", "--config", "run/config.yaml"]], ids=len)
def test_the_config_inside_a_checkpoint_builds_nothing_else(
    trained: Path, marker: Path, capsys: pytest.CaptureFixture[str], words: list[str], name: str
):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    Path("run/checkpoints").mkdir(parents=True)

    def end(command: str) -> int:
        checkpoint["seqrec_run"] = {"config": yaml.safe_dump(config), "folder": str(trained)}
        torch.save(checkpoint, "run/checkpoints/best.ckpt")
        try:
            main([command, *words])
        except SystemExit as status:
            return int(status.code or 0)
        return 0

    assert end("test") == 0, "it is used if it is harmless"
    config["trainer"]["callbacks"] = [hostile(marker)[name]]
    for command in ("test", "validate", "fit"):
        assert end(command) == 2
    assert not marker.exists()
    assert "stranger" not in sys.modules
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["popen", "check_output", "system", "through_ours"])
@pytest.mark.parametrize("place", ["model/init_args/loss", "trainer/callbacks"])
def test_commands_of_python_are_refused_in_any_config(
    trained: Path, marker: Path, capsys: pytest.CaptureFixture[str], place: str, name: str
):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    in_config(place, [hostile(marker)[name]] if place == "trainer/callbacks" else hostile(marker)[name])(config)
    Path("named.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "named.yaml"])
    assert end.value.code == 2
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch marker']", "!!python/name:os.system", "!!python/module:stranger"]
)
def test_the_text_of_a_config_makes_no_objects(trained: Path, marker: Path, text: str):
    shutil.copytree(trained / "run", "run")
    whole = Path("run/config.yaml").read_text()
    for content in (f"seed_everything: {text}\n{whole}", f"{whole}\nresults: {{path: {text}}}\n", text):
        Path("run/config.yaml").write_text(content)
        Path("named.yaml").write_text(content)
        for words in (["--ckpt", "run"], ["--ckpt", "run", "--config", "named.yaml"]):
            with pytest.raises(SystemExit) as end:
                main(["test", *words])
            assert end.value.code == 2
    assert not marker.exists()
    assert "stranger" not in sys.modules


def run_test(trained: Path, config: dict[str, Any]) -> None:
    Path("run/checkpoints").mkdir(parents=True, exist_ok=True)
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


def seqrec(*words: str, status: int = 0, first: str = "") -> str:
    """What the command prints, started by a script, which does not make the working folder importable.

    Other commands may run before it in the same process.
    """
    Path("bin").mkdir(exist_ok=True)
    Path("bin/seqrec").write_text(
        f"import sys\nfrom seqrec.cli import main\nwords = sys.argv[1:]\n{first}\nmain(words)\n"
    )
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "bin/seqrec", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_trust_reaches_all_processes_and_the_command_that_resumes(trained: Path, marker: Path):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    config["model"] = {"class_path": "SequentialRecommender", "init_args": {"encoder": STRANGER}}
    ranks = {"devices": 2, "strategy": "ddp", "max_epochs": 1, "logger": {"class_path": "RunFolder"}}
    Path("own.yaml").write_text(yaml.safe_dump(config | {"trainer": config["trainer"] | ranks}))
    seqrec("fit", "--config", "own.yaml")
    marker.unlink()
    assert "add --trust stranger" in seqrec("test", "--ckpt", "runs/version_0", status=2)
    assert not marker.exists()

    seqrec("test", "--ckpt", "runs/version_0", "--trust", "stranger")
    assert marker.exists()
    seqrec("fit", "--ckpt", "runs/version_0", "--trust", "stranger", "--trainer.max_epochs", "2")
    (resumed,) = (file for file in Path("runs").glob("*/summary.json") if json.loads(file.read_text())["resumed_from"])
    command = shlex.split(json.loads(resumed.read_text())["resume"])
    seqrec(*command[1:], "--trainer.max_epochs", "3")

    sweep = {"folder": "sweep", "configs": ["own.yaml"], "trials": 1}
    sweep["parameters"] = {"data.batch_size": {"type": "int", "low": 8, "high": 9}}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    seqrec("sweep", "--config", "sweep.yaml", "--trust", "stranger")


@pytest.mark.slow
@pytest.mark.process
def test_the_other_processes_of_a_job_run_nothing_either(trained: Path, marker: Path):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "dict_kwargs": {"unknown": STRANGER}}
    config["trainer"] |= {"devices": 2, "strategy": strategy}
    shutil.copytree(trained / "run", "run")
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    seqrec("test", "--ckpt", "run")
    assert not marker.exists()


@pytest.mark.process
def test_files_of_the_working_folder_stand_in_for_no_package(trained: Path, marker: Path):
    shutil.copytree(trained / "run", "run")
    for name in (
        "torch",
        "yaml",
        "lightning",
        "wandb",
        "mlflow",
        "comet_ml",
        "deepspeed",
        "litmodels",
        "faiss",
        "sitecustomize",
    ):
        shutil.copy("stranger.py", f"{name}.py")
    shutil.copytree("run", "logged")
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    config["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {}}
    Path("logged/config.yaml").write_text(yaml.safe_dump(config))
    first = "main(['test', '--ckpt', 'run']); main(['recommend', '--ckpt', 'run', '--output', 'r']); print('both ran')"
    assert "both ran" in seqrec("test", "--ckpt", "logged", status=2, first=first)
    assert not marker.exists()


PLACES_OF_OUTPUT = [
    "trainer/default_root_dir",
    "trainer/logger/init_args/save_dir",
    "results/path",
    "recommendations/directory",
    "checkpoint/dirpath",
    "checkpoint/filename",
    "resume_points/dirpath",
]


ELSEWHERE = ["{home}/x", "~/x", "../home/x", "run/../../home/x", "s3://bucket/x", "file://{home}/x", "link/x"]


@pytest.mark.parametrize(("place", "where"), pairs(PLACES_OF_OUTPUT, ELSEWHERE))
def test_the_config_beside_a_checkpoint_writes_nothing_elsewhere(
    trained: Path,
    marker: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    where: str,
):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    Path("link").symlink_to(home)
    Path("work").mkdir()
    shutil.copytree(trained / "run", "work/run")
    monkeypatch.chdir("work")
    Path("link").symlink_to(home)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["trainer"]["logger"] = {"class_path": "seqrec.RunFolder", "init_args": {"save_dir": "runs"}}
    in_config(place, where.format(home=home))(config)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    for command in ("test", "fit", "predict"):
        with pytest.raises(SystemExit) as end:
            main(
                [command, "--ckpt", "run", *(["--trainer.limit_predict_batches", "1"] if command == "predict" else [])]
            )
        assert end.value.code == 2
        assert "give the config yourself if results may be written there" in capsys.readouterr().err
    assert list(home.rglob("*")) == []
    assert sorted(os.listdir()) == ["link", "run"]


def test_a_run_without_logger_replaces_no_config_of_the_user(
    trained: Path, marker: Path, capsys: pytest.CaptureFixture[str]
):
    Path("config.yaml").write_text("mine: 1\n")
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        run_test(trained, config)
    assert "config.yaml is not a config that seqrec saved" in capsys.readouterr().err
    assert Path("config.yaml").read_text() == "mine: 1\n"
    Path("config.yaml").unlink()
    for _ in range(2):
        run_test(trained, config)


def test_results_replace_only_results(trained: Path, marker: Path, capsys: pytest.CaptureFixture[str]):
    Path("notes.txt").write_text("mine")
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        run_test(trained, config | {"results": {"path": "notes.txt"}})
    assert "results.path='notes.txt' exists and is no results file" in capsys.readouterr().err
    assert Path("notes.txt").read_text() == "mine"
    for _ in range(2):
        run_test(trained, config | {"results": {"path": "new.parquet"}})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always searches the working folder first")
def test_jobs_of_a_grid_take_no_package_from_the_working_folder(marker: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("yaml", "jsonargparse", "lightning"):
        shutil.copy("stranger.py", f"{name}.py")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert start(["seqrec", "configs"], Path("log"), {}).wait(timeout=100) == 0, Path("log").read_text()
    assert not marker.exists()


def test_training_resumes_in_no_folder_that_only_the_summary_of_a_run_names(
    trained: Path, marker: Path, tmp_path_factory: pytest.TempPathFactory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(trained / "run", elsewhere / "run")
    for best in (elsewhere / "run/checkpoints/best.ckpt", Path("near/checkpoints/best.ckpt")):
        Path("run").mkdir(exist_ok=True)
        Path("run/summary.json").write_text(json.dumps({"best": {"checkpoint": str(best)}}))
        if not best.is_absolute():
            shutil.copytree(trained / "run", "near")
        assert find_checkpoint("run", to_resume=False) == str(best)
        if best.is_absolute():
            with pytest.raises(InputError, match="run contains neither"):
                find_checkpoint("run", to_resume=True)
        else:
            assert find_checkpoint("run", to_resume=True) == str(best)
