"""The model card and the page of a run, from a tiny run and from the JSON files of older and damaged ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml

from seqrec.cli import main
from seqrec.data.sources import Synthetic
from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.results import compare, read_results
from seqrec.experiments.report import page, report
from seqrec.experiments.report.card import MARK, card_of, leave_card, write_card
from seqrec.experiments.report.charts import MAX_POINTS, read_curves
from seqrec.experiments.report.page import RunPage
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
        patch.setattr("sys.argv", ["/opt/python/seqrec/__main__.py"])
        main(["fit", "--config", "trainer/cpu", "--config", "small.yaml", "--trainer.logger.tensorboard", "false"])
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
    assert "```bash\nseqrec fit --config trainer/cpu --config small.yaml --trainer.logger" in card
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
    change(run / "summary.json", lambda content: content.update(validation=None, best=None, checkpoint=None))
    text = card_of(read_run(run))
    assert "This folder contains no checkpoint, so there is no model to load." in text
    assert "###" not in text


def test_a_card_without_baselines_has_the_models_own_interval(run: Path):
    change(
        run / "test_metrics.json",
        lambda content: content.update(baselines=None, models={"GRU4Rec": content["models"]["GRU4Rec"]}),
    )
    (estimate,) = compare([read_results(run)], metrics=["NDCG@10"]).estimates
    low, high = estimate.interval
    assert f"{low:.4f} to {high:.4f} |" in card_of(read_run(run))
    change(run / "test_metrics.json", lambda content: content.update(protocol="other"))
    assert "- Without interval: the ranks user by user are of protocol full-seenout-" in card_of(read_run(run))
    (run / "test_results.parquet").write_bytes(b"PAR1")
    assert re.search(r"- Without interval: .*test\_results\.parquet is not a Parquet file", card_of(read_run(run)))


def test_metrics_of_lists_are_on_the_card_and_the_page(run: Path):
    lists = {"metrics": {"Gini@10": 0.5}, "intervals": {}, "diversity_column": "genres", "calibration_column": None}
    change(run / "test_metrics.json", lambda content: content.update(lists=lists))
    assert "### Recommended lists" in card_of(read_run(run))
    # A run of a version that did not judge the lists of baselines has only those of the model.
    assert "| Gini@10 | 0.5000 |" in re.sub(" +", " ", card_of(read_run(run)))
    lists["baselines"] = {"Popularity": {"Gini@10": 0.98}}
    change(run / "test_metrics.json", lambda content: content.update(lists=lists))
    seen = Seen(RunPage(read_run(run), examples=0).html())
    assert "Popularity Gini@10 0.5000 0.9800 diversity column genres" in seen.text


def test_text_of_others_stays_text_in_a_card(run: Path):
    alter = {"model": HOSTILE, "error": f"ValueError: {HOSTILE}\n# heading", "status": "failed", "command": "a ``` b"}
    change(run / "summary.json", lambda content: content.update(alter))
    change(run / "summary.json", lambda content: content["data"].update(licence=HOSTILE, store="stores/log"))
    change(run / "test_metrics.json", lambda content: content.update(models={HOSTILE: {"NDCG@10": 0.5, "HR@10": None}}))
    text = card_of(read_run(run))
    assert "<img" not in text.partition("\n---\n")[2]
    assert "\n# heading" not in text
    assert "- licence: &lt;/script&gt;&lt;img" in text
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


class Seen(HTMLParser):
    """What a browser reads of a page: tags that are open at its end, all attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_of_a_run_is_whole_and_needs_nothing_else(fitted: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    main(["report", "runs/version_0", "--examples", "3", "--output", "page"])
    assert capsys.readouterr().out == "page/report.html\n"
    text = (fitted / "page" / "report.html").read_text()
    seen = Seen(text)
    assert not seen.open
    assert not {"script", "img", "link", "iframe"} & set(seen.tags)
    assert all((value or "").startswith("#") for name, value in seen.attributes if name in ("src", "href"))
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    anchors = {value for name, value in seen.attributes if name == "href"}
    assert anchors == {f"#{value}" for name, value in seen.attributes if name == "id"}
    assert len(text) < 200_000
    tested = json.loads(Path("runs/version_0/test_metrics.json").read_text())
    for values in tested["models"].values():
        assert f"{values['NDCG@10']:.4f}" in seen.text
    for each in compare([read_results("runs/version_0")], metrics=["NDCG@10"], slices=True).estimates:
        assert f"{each.slice} {each.users:,}" in seen.text
        assert " to ".join(f"{end:.4f}" for end in each.interval) in seen.text


def test_examples_are_those_of_the_model_with_titles_as_text(fitted: Path):
    found = RunPage(read_run("runs/version_0"), examples=4)
    seen = Seen(found.html())
    assert found.missing == []
    # Titles are shown letter by letter, and the log's ids after them.
    assert f"{HOSTILE} 7 (7)" in seen.text or f"{HOSTILE} 9 (9)" in seen.text
    log = polars.read_csv("log.csv").sort("user_id", "timestamp", maintain_order=True)
    users = re.findall(r"User (\d+) Held out: .*? (\d+) \(\2\), rank ([\d,]+)", seen.text)
    assert len(users) == 4
    ranks = read_results("runs/version_0").frame
    for user, target, rank in users:
        assert log.filter(user_id=int(user))["item_id"][-1] == int(target)
        (row,) = ranks.filter(user_id=int(user)).to_dicts()
        assert (row["item_id"], row["better"] + 1) == (int(target), int(rank))
        # An item is held out among ten recommendations if its rank is, as no two scores are equal here.
        part = seen.text.partition(f"User {user} Held out")[2].partition(" User ")[0]
        assert ("held out" in part) == (int(rank) <= 10)
    assert seen.text.count("History (") == 4
    assert "the score falls by that if the event is left out" in seen.text


def test_a_run_that_failed_has_a_card_and_one_that_tests_loads_its_model(fitted: Path):
    words = ["--trainer.logger.tensorboard", "false", "--baselines.enabled", "false"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "small.yaml", *words, "--model.optimizer", "Adam", "--model.optimizer.lr", "1e30"])
    failed = Path("runs/version_1/README.md").read_text()
    assert "The run failed" in failed
    assert "DivergenceError: " in failed
    assert "This run has no test. Make one:" in failed
    main(["test", "--ckpt", "runs/version_0", *words])
    assert "seqrec.load('runs/version_0/checkpoints/best.ckpt')" in Path("runs/version_2/README.md").read_text()
    found = RunPage(read_run("runs/version_2"), examples=1)
    seen = Seen(found.html()).text
    assert found.missing == []
    assert "The command trained on nothing" in seen
    assert seen.count("Held out: ") == 1


def test_what_a_run_lacks_is_said_with_the_command(run: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("test_metrics.json", "test_results.parquet", "metrics.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    change(run / "summary.json", lambda content: content.update(test=None, best=None, checkpoint=None))
    report(str(run))
    seen, said = Seen((run / "report.html").read_text()), capsys.readouterr().out.splitlines()
    parts = ["Metrics", "Learning curves", "Metrics by slice", "Examples"]
    assert [line.partition(" without ")[2].partition(":")[0] for line in said[1:]] == parts
    assert f"The run has no test. Make one: seqrec test --ckpt {run}" in seen.text
    assert f"seqrec test --ckpt {run} --results.write true" in seen.text
    assert "The run has no checkpoint, so no model can be loaded. Train it again: " in seen.text
    assert "has no metrics.csv" in seen.text


@pytest.mark.parametrize("name", ["metrics.csv", "test_results.parquet", "checkpoints/best.ckpt"])
def test_a_damaged_part_is_named_on_the_page(run: Path, name: str):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(b"step,val_NDCG@10\nx,0.5\n" if name == "metrics.csv" else whole[: len(whole) // 2])
    found = RunPage(read_run(run), examples=1)
    seen = Seen(found.html())
    assert len(found.missing) == 1
    assert Path(name).name in found.missing[0]
    assert Path(name).name in seen.text


def test_the_page_of_an_older_run_shows_what_it_has(tmp_path: Path):
    old = Path(shutil.copytree(OLD, tmp_path / "old"))
    found = RunPage(read_run(old), examples=1)
    seen = Seen(found.html())
    assert "not recorded by the version of seqrec that wrote this run" in seen.text
    assert [line.partition(":")[0] for line in found.missing] == ["Learning curves", "Examples"]
    assert "give its present folder: store=FOLDER" in seen.text
    assert "Popularity 0.3333 0.3667" in seen.text


def test_items_without_titles_have_their_ids_and_the_page_says_how_to_get_titles(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("seqrec.catalogue.item_columns.TITLES", ())
    seen = Seen(RunPage(read_run("runs/version_0"), examples=1).html())
    assert "items have no titles: prepare the log with a table of items and --data.schema.items" in seen.text
    assert "onerror" not in seen.text


def test_many_users_are_sampled_and_it_is_said(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page, "SAMPLED_USERS", 20)
    text = Seen(RunPage(read_run(run), examples=0).html()).text
    assert "20 of 30 users, drawn with seed 0" in text
    assert "all 20 " in text
    assert "Held out" not in text


def test_long_curves_are_thinned_to_their_ends(tmp_path: Path):
    lines = [f"{step},{1 / (step + 1)},{'nan' if step % 2 else 0.5}" for step in range(5000)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train_loss_step,val_HR@10", *lines]))
    (loss,), (hits,) = read_curves(tmp_path)
    assert len(loss.points) == MAX_POINTS
    assert (loss.points[0], loss.points[-1]) == ((1, 1.0), (5000, 1 / 5000))
    assert {value for _, value in hits.points} == {0.5}


def test_a_folder_that_is_neither_run_nor_grid_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match="give a folder of seqrec benchmark paper, or of a run"):
        report(str(tmp_path))
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(MissingInputError, match=r"has no summary\.json"):
        report(str(tmp_path))
    with pytest.raises(InputError, match="examples=-1 must be at least 0"):
        report(str(tmp_path), examples=-1)
