from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import yaml
from featured_logs import SCHEMA, featured_log
from small_runs import SMALL, metrics, refusal

import seqrec
from seqrec.cli import main
from seqrec.cli.commands import COMMANDS, GROUPS, compare_runs
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Synthetic
from seqrec.evaluation.results.comparison import METRICS
from seqrec.inference.loading import load

BENCHMARKS = [name for name in COMMANDS if name.startswith("benchmark ")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    prepare(Synthetic(num_users=20, num_items=30, mean_events=10), Filters(), tmp_path / "store")
    return tmp_path / "store"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints before it exits with status 0."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_inspect_shows_a_store_and_says_that_it_is_intact(store: Path, capsys: pytest.CaptureFixture[str]):
    main(("inspect", str(store)))
    output = capsys.readouterr().out
    assert "users" in output
    assert "intact" in output
    main(("inspect", "--json", "true", str(store), "--verify", "false"))
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "seqrec-inspect-1"
    assert report["counts"]["users"] == 20
    assert not report["verified"]


def test_inspect_fails_on_a_damaged_store(store: Path, capsys: pytest.CaptureFixture[str]):
    with (store / "item_ids.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(SystemExit) as stop:
        main(("inspect", str(store)))
    assert stop.value.code == 1
    assert "item_ids.npy is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "nowhere"), "error: no event store at nowhere"),
        (("inspect", "a", "--verfy", "true"), "error: unknown argument 'verfy'; did you mean verify?"),
        (("inspect", "a", "b"), "error: 'b' belongs to no option, since each takes one value"),
        (("inspect",), "error: the argument 'store' is required: give --store, here"),
        (("fitt",), "error: unknown command 'fitt'; known: prepare, append, compact, fit, "),
        (
            ("benchmark", "dat"),
            f"error: unknown command 'benchmark dat'; known: {', '.join(BENCHMARKS)}; did you mean benchmark data?",
        ),
        (("benchmark",), "error: unknown command 'benchmark'; known: benchmark paper, "),
        (("benchmark", "data", "--events", "many"), "error: events='many'"),
        (
            ("configs", "quikstart"),
            "error: config 'quikstart' is neither a file nor a config of the package; did you",
        ),
        (("sweep", "--config", "sweep/quikstart"), "error: config 'sweep/quikstart' is neither a file"),
        (("compare", "nowhere"), "error: no results at nowhere"),
    ],
    ids=str,
)
def test_what_is_refused_is_said_in_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_help_lists_all_commands_and_each_has_a_help(capsys: pytest.CaptureFixture[str]):
    overview = shown(capsys, "--help")
    benchmarks = [line for line in shown(capsys, "benchmark", "--help").splitlines() if line.startswith("  ")]
    assert [line.split()[1] for line in benchmarks] == [name.split()[1] for name in BENCHMARKS]
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview
        assert command.summary in overview
    assert {"benchmark"} == GROUPS


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.function is not None])
def test_a_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]):
    output = shown(capsys, *name.split(), "--help")
    assert output.startswith(f"usage: seqrec {name} ")
    assert [option in output for option in ("--json", "--table")] == 2 * [COMMANDS[name].shows]
    assert "--config" in output
    assert ("see --trainer.help" in output) == (name in ("recommend", "predict"))


# Files that print: lines of results and notes; help and version; an address; tables for callers of a trainer in Python.
PRINTING = {
    *("data/progress.py", "data/output.py", "cli/commands.py", "cli/run_parser.py"),
    *("serving/served.py", "benchmark/serve_child.py"),
    *("evaluation/exposures.py", "evaluation/list_report.py", "models/baselines/comparison.py"),
}


def test_every_result_of_a_command_can_be_had_as_json():
    package = Path(seqrec.__file__).parent
    trees = {file.relative_to(package).as_posix(): ast.parse(file.read_text()) for file in package.rglob("*.py")}
    calls = ((file, node.func) for file, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert {file for file, call in calls if isinstance(call, ast.Name) and call.id == "print"} == PRINTING
    assert [name for name, command in COMMANDS.items() if not command.shows] == ["serve"]
    for name, command in COMMANDS.items():
        module = (command.function or "seqrec.cli.lightning_cli").partition(":")[0]
        names = [f"{module.removeprefix('seqrec.').replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
        source = next(package / each for each in names if (package / each).is_file()).read_text()
        # A benchmark shows its result when it finishes, a sweep when it has run.
        assert bool(re.search(r"\b(show|benchmark\.finish|run_sweep)\(", source)) == command.shows, name


def test_json_and_files_are_refused_where_there_is_no_result(capsys: pytest.CaptureFixture[str]):
    assert "seqrec serve has no result: leave --json and --table out" in refusal(capsys, "serve", "--json")
    assert "--json=1 must be true or false" in refusal(capsys, "doctor", "--json=1")
    assert "--table a.csv must end in .json, .md or .png" in refusal(capsys, "configs", "--table", "a.csv")


def test_no_command_shows_the_overview_and_fails(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().out.startswith("usage: seqrec COMMAND [options]")


def test_compare_has_the_metrics_of_the_function():
    assert inspect.signature(compare_runs).parameters["metrics"].default == ",".join(METRICS)


def test_configs_lists_all_and_prints_one(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    main(["configs"])
    output = capsys.readouterr().out
    assert "\nquickstart " in output
    assert "\nfragments/model/SASRec " in output
    main(["configs", "--json", "--table", "configs.md"])
    rows = json.loads(capsys.readouterr().out)["configs"]
    assert {"quickstart", "fragments/model/SASRec"} < {row["name"] for row in rows}
    assert Path("configs.md").read_text().startswith("| config ")
    main(["configs", "quickstart"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 10


def test_lists_stand_without_brackets(capsys: pytest.CaptureFixture[str]):
    output = shown(
        *(capsys, "benchmark", "paper", "--data", "ml_1m", "synthetic", "--lengths", "50", "100"),
        *("--encoders=[GRU4Rec]", "--print_config"),
    )
    config = yaml.safe_load(output)
    assert (config["data"], config["lengths"], config["encoders"]) == (
        ["ml_1m", "synthetic"],
        [50, 100],
        ["GRU4Rec"],
    )


HEAVY = ("torch", "lightning", "numpy", "polars", "matplotlib")


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("--help",),
        ("inspect", "--help"),
        ("doctor", "--help"),
        ("compare", "--help"),
        ("export", "--help"),
        ("configs", "quickstart"),
        ("inspect", "x", "--verfy", "true"),
        ("fitt",),
    ],
    ids=" ".join,
)
def test_what_needs_no_model_imports_no_torch(words: tuple[str, ...]):
    code = (
        "import sys\nfrom seqrec.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "loaded: []"


@pytest.fixture
def columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A command that prepares a log with columns."""
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text("user_id,item_id,timestamp,rating\n1,7,1,5\n1,8,2,\n2,7,3,4\n")
    Path("items.csv").write_text("id,genres\n7,a|b\n8,\n")
    table = {"path": "log.csv", "items": {"path": "items.csv", "key": "id"}}
    schema = {"events": {"rating": "numeric"}, "items": {"genres": "categories"}}
    data = {"source": {"class_path": "Table", "init_args": table}, "schema": schema, "store": "here"}
    Path("data.yaml").write_text(yaml.safe_dump({"data": data}))
    return "prepare", "--config", "data.yaml"


@pytest.mark.filterwarnings("ignore")
def test_a_schema_is_stated_in_a_config(columns: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    main(columns)
    assert "events.rating: numeric, float32, 1 missing\nitems.genres: categories, 2 values, 1 missing" in (
        capsys.readouterr().out
    )
    main(("inspect", "here"))
    assert re.search(r"events\.rating +numeric, float32, 1 missing", report := capsys.readouterr().out)
    assert '  schema:\n    events: {"rating": "numeric"}' in report
    main((*columns, "--data.schema.events", "{rating: categorical}", "--data.store", "there"))
    assert "events.rating: categorical, 2 values, 1 missing" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data.schema.events", "{rating: number}"), "schema.events.rating='number' must be one of categorical, "),
        (
            ("--data.schema.itms", "{a: numeric}"),
            "unknown argument 'data.schema.itms'; did you mean data.schema.items?",
        ),
        (("--data.filters.event_features", "[rating]"), "write schema: {events: {rating: numeric}}"),
        (("--data.source.items.key", "item"), "items.csv has no column 'item'; it has id, genres"),
        (("--data.source.items", "{path: items.csv}"), "must have a path and a key, as in {path: items.csv, key: id}"),
    ],
)
def test_a_bad_schema_is_refused_in_one_line(columns, words, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main((*columns, *words))
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not Path("here").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_linked_to_the_columns_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    table = featured_log(tmp_path / "log.parquet", num_users=30, num_items=20, mean_events=12)
    source = {"class_path": "Table", "init_args": {"path": table.path}}
    data = {"source": source, "schema": {"events": SCHEMA.events}, "store": "here", "max_length": 10}
    model = {"class_path": "GRU4Rec", "init_args": {"d_model": 8, "event_columns": ["watched", "tab"]}}
    Path("run.yaml").write_text(yaml.safe_dump(SMALL | {"data": data, "model": model}))
    main(("fit", "--config", "run.yaml"))
    trained = load("runs/version_0")
    assert [column.name for column in trained.event_columns] == ["watched", "tab"]
    assert trained.event_columns[1].values == ["home", "search", "share"]
    fitted = metrics("runs/version_0")
    main(("test", "--ckpt_path", "runs/version_0"))
    assert metrics("runs/version_1") == fitted
    main(("recommend", "--ckpt", "runs/version_0", "--output", "own", "--top_k", "5"))
    main(("recommend", "--ckpt", "runs/version_0", "--output", "same", "--top_k", "5", "--input", "log.parquet"))
    own, same = (polars.scan_parquet(name).collect() for name in ("own", "same"))
    assert own.equals(same)
    assert own.equals(trained.recommend(polars.read_parquet("log.parquet"), 5))
    # A baseline has nothing to link.
    Path("other.yaml").write_text(yaml.safe_dump(SMALL | {"data": data, "model": {"class_path": "Popularity"}}))
    main(("fit", "--config", "other.yaml"))
    said = refusal(capsys, "fit", "--config", "run.yaml", "--model.event_columns", "[tabs]")
    assert "event_columns: the log has no column 'tabs'; it has looks, tab, watched; did you mean tab?" in said
