from __future__ import annotations

import itertools
import json
import random
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from lightning_utilities.core.imports import RequirementCache

from seqrec.cli import main
from seqrec.data.event_columns import EventColumn
from seqrec.encoders import ENCODERS
from seqrec.evaluation.protocols import PRESETS, Protocol
from seqrec.specs import from_spec

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

CONFIGS = Path(__file__).parents[1] / "configs"
FRAGMENTS = CONFIGS / "fragments"
NAMES = {"kuairand_5k": "log_standard_1.csv", "lfm1b_1k": "LFM-1b_LEs.txt", "own_log": "log.csv"}
# Two steps are less than the config's warm-up.
FURTHER = {"ml_1m_time": ("--model.optimizer.schedule.warmup_steps", "1", "--data.batch_size", "16")}
TWO_STEPS = (
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
)


def write_raw_log(source: str, folder: Path) -> Path | None:
    """A log of 40 users and 60 items in the format that a config's source reads; None where it reads no file."""
    rng = random.Random(0)
    events = [(user, rng.randint(1, 60), 1_000_000 + t) for user in range(1, 41) for t in range(20)]
    if source == "quickstart":
        return None
    if source in ("ml_1m", "ml_1m_time"):
        path = folder / "ml-1m.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ml-1m/ratings.dat", "".join(f"{u}::{i}::4::{t}\n" for u, i, t in events))
        return path
    path = folder / NAMES.get(source, "log.txt")
    lines = {
        "ml_1m_original": [f"{u} {i}" for u, i, _ in events],
        "kuairand_5k": ["user_id,video_id,time_ms,is_click", *(f"{u},{i},{t},1" for u, i, t in events)],
        "lfm1b_1k": [f"{u}\t1\t2\t{i}\t{t}" for u, i, t in events],
        "own_log": ["user_id,item_id,timestamp", *(f"u{u},i{i},{t}" for u, i, t in events)],
    }[source]
    path.write_text("\n".join(lines) + "\n")
    return path


# Real logs of configs and of fragments on data, which are added to the quick start.
REAL_LOGS = {
    "ml_1m": "ml-1m/ml-1m.zip",
    "ml_1m_time": "ml-1m/ml-1m.zip",
    "ml_1m_original": "ml-1m/ml-1m.sasrec.txt.gz",
    "kuairand_5k": "kuairand-excerpt/log_like_hate_kcore15.tsv.gz",
    "own_log": "kuairand-excerpt/log_like_hate_kcore15.tsv.gz",
    "data/assist2017": "assist2017/assist2017_user_item.txt.gz",
    "data/lfm1b_500u": "lfm1b-500u/lfm1b_500u_user_item.txt.gz",
}
FURTHER_OF_REAL_LOGS = {
    "ml_1m_time": FURTHER["ml_1m_time"],
    "own_log": ("--recipe", "false", "--data.source.item", "video_id", "--data.source.timestamp", "time_ms"),
    "data/assist2017": ("--data.filters.min_user_events", "3"),
}


def check_card(run: Path) -> None:
    """A run's model card has what someone who inherits the folder asks for."""
    card, summary = (run / "README.md").read_text(), json.loads((run / "summary.json").read_text())
    tested = json.loads((run / "test_metrics.json").read_text())
    header, text = yaml.safe_load(card.split("---\n")[1]), card.split("---\n")[2]
    parts = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert list(parts) == ["Data", "Metrics", "Costs", "Use", "Origin"]
    counts, protocol = summary["data"]["counts"], tested["protocol"]
    size = f"- size: {counts['events']:,} events of {counts['users']:,} users on {counts['items']:,} items\n"
    assert size in parts["Data"]
    licence = summary["data"]["licence"] or "not known to seqrec; ask the publisher of the log"
    assert f"- licence: {licence}\n" in parts["Data"]
    assert f"- Protocol {protocol}" in parts["Metrics"]
    assert header["model-index"][0]["results"][0]["dataset"]["args"] == protocol
    names = list(tested["models"])
    assert names[0] == summary["model"]
    assert {"Popularity", "Markov", "ItemKNN"} <= set(names)
    rows = re.findall(r"^\| (\w+) .* ([0-9.]+) to ([0-9.]+) \|$", parts["Metrics"], re.MULTILINE)
    assert [name for name, *_ in rows] == names
    assert all(0 <= float(low) <= float(high) <= 1 for _, low, high in rows)
    assert all(f"\n- {cost}: " in parts["Costs"] for cost in ("training", "speed", "peak memory", "parameters"))
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    assert f"- versions: {versions}\n" in parts["Origin"]
    assert {"seqrec", "python", "torch", "lightning"} <= summary["versions"].keys()
    assert parts["Origin"].rstrip().endswith(f"```bash\n{summary['command']}\n```")
    assert summary["command"].startswith("seqrec fit --config ")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seqrec"])


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_runs_two_steps(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = write_raw_log(config.stem, tmp_path)
    path = ["--data.source.path", str(log)] if log else []
    main(["fit", "--config", str(config), *path, *FURTHER.get(config.stem, ()), *TWO_STEPS])
    assert "run folder: runs/" in capsys.readouterr().out
    (run,) = Path("runs").glob("*/version_0")
    check_card(run)


@pytest.mark.slow
@pytest.mark.parametrize("config", list(REAL_LOGS))
def test_config_leaves_a_card_of_its_real_log(config: str, real_data: Callable[[str], Path]):
    folder, _, name = config.rpartition("/")
    configs = [CONFIGS / "quickstart.yaml", FRAGMENTS / folder / name] if folder else [CONFIGS / name]
    words = [word for path in configs for word in ("--config", str(path.with_suffix(".yaml")))]
    log = ("--data.source.path", str(real_data(REAL_LOGS[config])))
    main(["fit", *words, *FURTHER_OF_REAL_LOGS.get(config, ()), *log, *TWO_STEPS])
    (run,) = Path("runs").glob("*/version_0")
    check_card(run)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_encoder_config_swaps_the_model_of_another_config(name: str, capsys: pytest.CaptureFixture[str]):
    words = [
        "--config",
        str(CONFIGS / "quickstart.yaml"),
        "--config",
        str(FRAGMENTS / "model" / f"{name}.yaml"),
    ]
    main(["fit", *words, "--data.source.num_users", "40", "--data.source.mean_events", "20", *TWO_STEPS])
    assert f"\n{name} " in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((FRAGMENTS / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_optimizer_config_adds_to_another_config(path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(path)]
    main(["fit", *words, "--data.source.num_users", "40", "--data.source.mean_events", "20", *TWO_STEPS])
    assert "run folder: runs/" in capsys.readouterr().out


def test_trainer_config_adds_to_another_config(capsys: pytest.CaptureFixture[str]):
    words = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / "trainer/gpu.yaml")]
    main(["fit", *words, "--data.source.num_users", "40", "--data.source.mean_events", "20", *TWO_STEPS])
    assert "run folder: runs/" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((CONFIGS / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_trainer_config_keeps_what_else_was_chosen(path: Path, capsys: pytest.CaptureFixture[str]):
    # What ranks then do is in test_cluster.py.
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIGS / "ml_1m.yaml"), "--config", str(path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    wanted = yaml.safe_load(path.read_text())
    assert list(wanted) == ["trainer"]
    chosen = yaml.safe_load((CONFIGS / "ml_1m.yaml").read_text())["trainer"]
    for name, value in {**chosen, **wanted["trainer"]}.items():
        if name not in ("logger", "plugins"):
            assert printed["trainer"][name] == value
    assert printed["model"]["class_path"].endswith("MambaRec")


def test_slurm_config_without_srun_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--config",
                str(CONFIGS / "quickstart.yaml"),
                "--config",
                str(CONFIGS / "trainer/slurm.yaml"),
            ]
        )
    assert "start the command with srun in an sbatch script" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "files"), [("csv", {"metrics.csv"}), ("tensorboard", {"events.out.tfevents"})], ids=str
)
def test_logger_config_keeps_the_run_in_its_folder(name: str, files: set[str]):
    words = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / f"logger/{name}.yaml")]
    small = ("--data.source.num_users", "40", "--data.source.mean_events", "20")
    main(["fit", *words, *small, *TWO_STEPS, "--trainer.logger.version", "0"])
    folder = Path("runs/quickstart/version_0")
    found = {re.sub(r"\.\d+\..*", "", path.name) for path in folder.iterdir()}
    assert found & {"metrics.csv", "events.out.tfevents"} == files
    assert found >= {"config.yaml", "checkpoints", "summary.json", "test_metrics.json"}


@pytest.mark.parametrize(
    ("name", "logger", "package"), [("wandb", "WandbLogger", "wandb"), ("mlflow", "MLFlowLogger", "mlflow")]
)
def test_services_stand_beside_the_runs_folder_and_say_what_to_install(
    name: str,
    logger: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    absent = RequirementCache("a-package-that-nobody-has")
    absent.requirement, absent.available, absent.message = (
        package,
        False,
        f"Requirement '{package}>=1' not met.",
    )
    monkeypatch.setattr(f"lightning.pytorch.loggers.{name}._{name.upper()}_AVAILABLE", absent)
    words = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / f"logger/{name}.yaml")]
    with pytest.raises(SystemExit):
        main(["fit", *words, "--print_config"])
    loggers = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]
    assert [each["class_path"].split(".")[-1] for each in loggers] == ["RunFolder", logger]
    assert loggers[0]["init_args"]["name"] == "quickstart"
    with pytest.raises(SystemExit):
        main(["fit", *words, "--data.source.num_users", "40", *TWO_STEPS])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"error: {logger} needs a package that is not installed: pip install {package}"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_protocol_of_others_has_its_config(name: str):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Protocol, "protocol")
    config = parser.parse_path(str(FRAGMENTS / "protocol" / f"{name}.yaml"))
    assert parser.instantiate(config).protocol == Protocol.preset(name)
    assert {path.stem for path in (FRAGMENTS / "protocol").iterdir()} == set(PRESETS)


def test_no_config_says_a_thing_that_the_defaults_say():
    # The fragments of `model/` swap the class and keep what else was chosen.
    for path in (FRAGMENTS / "model").glob("*.yaml"):
        assert yaml.safe_load(path.read_text()) == {"model": {"class_path": path.stem}}


# Fragments that say what they change of a log, or of what is kept of it.
ON_TOP_OF = {
    **dict.fromkeys(("lfm1b_album", "lfm1b_artist"), "lfm1b_track"),
    **dict.fromkeys(("as_published_raw_ids", "as_published_oldest_250"), "kuairand"),
    "core_5": "lfm1b_500u",
}
# What only one model has.
MODELS = {"as_published_mixture": "MoEMaTrRec"}


def fragments(kind: str) -> list[str]:
    return sorted(path.stem for path in (FRAGMENTS / kind).glob("*.yaml"))


def whole_configs() -> Iterator[list[str]]:
    """Fragments that make whole configs, each of a study's at least once."""
    studies, lengths = itertools.cycle(fragments("study")), itertools.cycle(fragments("length"))
    logs, ablations = fragments("data"), fragments("ablation")
    for log, ablation in itertools.zip_longest(logs, ablations, fillvalue="ml_1m"):
        base = [f"data/{ON_TOP_OF[log]}"] if log in ON_TOP_OF else []
        model = MODELS.get(ablation, "MambaRec")
        further = [f"study/{next(studies)}", f"model/{model}", f"length/{next(lengths)}"]
        yield [*base, f"data/{log}", *further, f"ablation/{ablation}"]


def holds(whole: Any, part: Any) -> bool:
    """Whether a parsed config has all that a fragment says; classes go by their last name."""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], value) for name, value in part.items())
    return whole == part or str(whole).endswith(f".{part}")


@pytest.mark.parametrize("names", list(whole_configs()), ids="+".join)
def test_fragments_of_a_study_compose(names: list[str], capsys: pytest.CaptureFixture[str]):
    files = [FRAGMENTS / f"{name}.yaml" for name in names]
    with pytest.raises(SystemExit):
        main(["fit", *(word for file in files for word in ("--config", str(file))), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    # What a later fragment changes is no longer what an earlier one says.
    for file in files[1:] if names[1] in ("data/lfm1b_album", "data/lfm1b_artist") else files:
        fragment = yaml.safe_load(file.read_text())
        if file.parent.name == "study":
            del fragment["model"]["class_path"], fragment["model"]["init_args"]["dropout"]
        assert holds(config, fragment), file
    columns = [EventColumn(*column) for column in config["data"]["schema"]["events"].items()]
    linked = {"num_items": 20, "log_columns": columns}
    model = from_spec({**config["model"], "init_args": {**config["model"]["init_args"], **linked}})
    assert f"model/{model.title}" in names


def test_no_fragment_of_a_study_repeats_another():
    kinds = ("data", "length", "ablation", "study")
    said = [yaml.safe_load(path.read_text()) for kind in kinds for path in (FRAGMENTS / kind).glob("*.yaml")]
    assert all(one != other for one, other in itertools.combinations(said, 2))


@pytest.mark.parametrize(
    ("recipe", "log"), [("kuairand_5k", "kuairand"), ("lfm1b_1k", "lfm1b_track"), ("ml_1m", "ml_1m")]
)
def test_a_recipe_and_a_study_say_the_same_of_a_log(recipe: str, log: str):
    # A recipe stands alone, and YAML files cannot include each other.
    whole = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    fragment = yaml.safe_load((FRAGMENTS / "data" / f"{log}.yaml").read_text())
    assert holds(whole, fragment)
    assert {name: whole["data"][name] for name in ("source", "filters")} == fragment["data"]
