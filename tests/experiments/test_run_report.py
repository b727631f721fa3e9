"""The model card and the page of a run, from a tiny run and from the JSON files of older and damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml

from seqrec.cli import main
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError, MissingInputError
from seqrec.experiments.report.card import MARK, card_of, leave_card, write_card
from seqrec.experiments.report.record import read_run

OLD = Path(__file__).parents[1] / "compatibility" / "v0_1_0" / "mambarec"
HOSTILE = '</script><img src=x onerror=alert(1)> | `tea` & "co"'
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of a tiny `seqrec fit`, whose items have hostile titles; the run is `runs/version_0`."""
    folder = tmp_path_factory.mktemp("fitted")
    Synthetic(num_users=30, num_items=40, mean_events=12).scan().collect().write_csv(folder / "log.csv")
    titles = {"item_id": range(1, 41), "title": [f"{HOSTILE} {item}" for item in range(1, 41)]}
    polars.DataFrame(titles).write_csv(folder / "items.csv")
    config = {
        "recipe": False,
        "data": {
            "source": {
                "class_path": "Table",
                "init_args": {"path": "log.csv", "items": {"path": "items.csv", "key": "item_id"}},
            },
            "schema": {"items": {"title": "categorical"}},
            "max_length": 10,
        },
        "model": {"class_path": "GRU4Rec", "init_args": {"d_model": 4}},
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["seqrec"])
        main(["fit", "--config", "small.yaml", "--trainer.logger.tensorboard", "false"])
        yield folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be changed."""
    return Path(shutil.copytree(fitted / "runs" / "version_0", tmp_path / "run"))


def change(file: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    alter(content)
    file.write_text(json.dumps(content))


def test_fit_leaves_a_card_with_what_the_json_files_record(fitted: Path):
    folder = fitted / "runs" / "version_0"
    card, summary = (folder / "README.md").read_text(), json.loads((folder / "summary.json").read_text())
    tested = json.loads((folder / "test_metrics.json").read_text())
    header = yaml.safe_load(card.split("---\n")[1])
    (result,) = header["model-index"][0]["results"]
    values = {each["type"]: each["value"] for each in result["metrics"]}
    assert values == {name: pytest.approx(value, abs=1e-6) for name, value in summary["test"].items()}
    assert "# GRU4Rec on table" in card
    counts = summary["data"]["counts"]
    assert f"{counts['events']:,} events of 30 users on {counts['items']} items" in card
    assert "Protocol full-seenout-tiemean-loo" in card
    estimates = tested["baselines"]["comparison"]["estimates"]
    for each in (each for each in estimates if each["metric"] == "NDCG@10"):
        low, high = each["interval"]
        assert f"{each['mean']:.4f}" in card
        assert f"{low:.4f} to {high:.4f}" in card
    assert f"torch {summary['versions']['torch']}" in card
    assert f"{summary['events_per_second']:,.0f} events/s" in card
    assert f"parameters: {summary['parameters']['total']:,}" in card
    assert "licence: not known to seqrec" in card
    assert "seqrec serve --ckpt runs/version_0" in card
    assert "seqrec.load('runs/version_0')" in card
    # A run in another folder, or of another version, gets the same card from its files.
    write_card("runs/version_0")
    assert (folder / "README.md").read_text() == card


def test_a_readme_of_someone_else_stays(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "README.md").write_text("my notes")
    write_card(run)
    assert (run / "README.md").read_text() == "my notes"
    assert "is not a model card of seqrec, and stays as it is" in capsys.readouterr().out


def test_a_run_of_an_older_version_has_a_card(tmp_path: Path):
    shutil.copytree(OLD, tmp_path / "old")
    text = write_card(tmp_path / "old").read_text()
    assert "log: not recorded by the version of seqrec that wrote this run" in text
    assert "| MambaRec   |     0.3167 | **0.3833** |" in text
    assert MARK in text


def test_a_run_without_a_test_names_the_command(run: Path):
    for name in ("test_metrics.json", "test_results.parquet"):
        (run / name).unlink()
    change(run / "summary.json", lambda content: content.update(test=None, status="interrupted", resume="seqrec fit x"))
    text = card_of(read_run(run))
    assert "This run has no test. Make one:" in text
    assert f"seqrec test --ckpt {run}" in text
    assert "### Validation" in text
    assert "model-index" not in text
    assert "The run was interrupted" in text
    assert "seqrec fit x" in text
    shutil.rmtree(run / "checkpoints")
    change(run / "summary.json", lambda content: content.update(validation=None, best=None))
    text = card_of(read_run(run))
    assert "This folder contains no checkpoint, so there is no model to load." in text
    assert "###" not in text


def test_text_of_others_stays_text_in_a_card(run: Path):
    alter = {"model": HOSTILE, "error": f"ValueError: {HOSTILE}\n# heading", "status": "failed", "command": "a ``` b"}
    change(run / "summary.json", lambda content: content.update(alter))
    change(run / "test_metrics.json", lambda content: content.update(models={HOSTILE: {"NDCG@10": 0.5, "HR@10": None}}))
    text = card_of(read_run(run))
    assert "<img" not in text.partition("\n---\n")[2]
    assert "\n# heading" not in text
    assert "````bash\na ``` b\n````" in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"][1] == HOSTILE


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", r"summary\.json is damaged or of another version"),
        ("test_metrics.json", "[]", r"test_metrics\.json is damaged or of another version: .*; delete it, or write"),
        ("test_metrics.json", '{"models": {"GRU4Rec": 1}}', r"test_metrics\.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]):
    (run / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(run)
    # The end of a run is not hidden by it.
    leave_card(run)
    assert f"note: {run} has no model card" in capsys.readouterr().out


def test_a_summary_with_other_types_is_damaged(run: Path):
    change(run / "summary.json", lambda content: content.update(seconds=["x"]))
    with pytest.raises(InputError, match=r"summary\.json is damaged or of another version"):
        read_run(run)


def test_a_folder_without_a_summary_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"has no summary\.json"):
        write_card(tmp_path)
    leave_card(tmp_path)
    assert not list(tmp_path.iterdir())
