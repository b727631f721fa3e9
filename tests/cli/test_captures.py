"""Every command on a pseudo-terminal, in CI and into pipes: progress, quiet logs, and results in every form."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from captured import captured
from small_runs import SMALL, write_config

from seqrec.benchmark.measurement import Measurement
from seqrec.cli import main
from seqrec.cli.commands import COMMANDS, command_named
from seqrec.data.output import KINDS
from seqrec.data.progress import ELSEWHERE, Show

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore")]

GUIDE = Path(__file__).parents[2] / "notebooks" / "guide" / "commands.md"
CONFIGS = Path(__file__).parents[2] / "configs" / "fragments"
MODES = ("terminal", "ci", "pipe")
TRAINER = {**SMALL["trainer"], "max_epochs": 1, "enable_progress_bar": True}
# The one line of preparation about work that cannot be counted.
LAST = "making the store last on disk ..."
# Commands that take seconds at most, or show no progress for another reason.
SHORT = {
    "serve": "answers until it is stopped",
    "configs": "reads the names of files",
    "doctor": "looks at this machine",
}


@dataclass(frozen=True)
class Long:
    """A long command on a tiny input.

    Attributes:
        words: The command and its arguments; `{n}` is a number of its own for each run.
        units: What its progress counts, by the guide.
        stage: Start of a line with rate, share and time left; None if Lightning's bars have them.
        is_costly: Whether it takes seconds.
        parts: Whether the tiny input has several parts, so that there is a time left before the last.
    """

    words: str
    units: str
    stage: str | None
    is_costly: bool = False
    parts: bool = True


TINY = "--d_model 8"
GRID = f"--configs {CONFIGS} --device cpu --set data.source.num_users=30 data.source.mean_events=12 model.d_model=8"
LONG = {
    "prepare": Long("prepare --config small.yaml --data.store new-{n}", "rows", "reading log.csv"),
    "append": Long("append --config small.yaml --data.store grown --input {n}.csv", "rows", "reading {n}.csv"),
    "compact": Long("compact --config small.yaml --data.store grown-{n}", "rows", "writing item_ids"),
    "fit": Long("fit --config small.yaml", "steps, batches", None),
    "validate": Long("validate --ckpt run", "batches", None, is_costly=True),
    "test": Long("test --ckpt run", "batches", None),
    "tune lr": Long("tune lr --config small.yaml --steps 60", "steps", "searching", is_costly=True),
    "tune batch_size": Long("tune batch_size --config small.yaml --max_batch_size 8", "windows", "searching"),
    "recommend": Long("recommend --ckpt run --output recs-{n} --part_users 10", "users", "recommending"),
    "predict": Long(
        "predict --ckpt run --recommendations.directory lists-{n} --trainer.accelerator cpu",
        "batches",
        None,
        is_costly=True,
    ),
    "export": Long("export --ckpt run --output exported-{n}", "programs", "exporting", is_costly=True),
    "sweep": Long("sweep --config sweep.yaml --folder sweep-{n}", "trials", "sweep", is_costly=True),
    "backtest": Long(
        "backtest small.yaml --slices 3 --retrain false --updates 3 --folder backtest-{n} --device cpu",
        "slices",
        "backtest",
        True,
    ),
    "compare": Long("compare run --slices true --resamples 50", "slices", "comparing"),
    "inspect": Long("inspect store", "bytes", "checking"),
    "report RUN": Long("report run --output page-{n}", "sections, users", "page"),
    "report GRID": Long("report grid-made/results --output tables-{n}", "logs", "reporting", True, parts=False),
    "benchmark paper": Long(
        "benchmark paper --data synthetic --lengths 20 --seeds 1 --encoders GRU4Rec --budget epochs=1 "
        f"--folder grid-{{n}} {GRID}",
        "cells",
        "grid",
        is_costly=True,
    ),
    "benchmark ladder": Long(
        f"benchmark ladder steps.yaml --folder ladder-{{n}} {GRID}", "cells", "grid", is_costly=True
    ),
    "benchmark data": Long(
        "benchmark data --events 1000 --memory_limit 2GiB", "cells, rows", "measuring", is_costly=True
    ),
    "benchmark catalogue": Long(
        f"benchmark catalogue --items 50 90 --objectives BCE --optimizers dense_adam --encoder GRU4Rec {TINY} "
        "--batch_size 2 --length 9 --steps 1",
        "cells",
        "measuring",
    ),
    "benchmark scan": Long(
        f"benchmark scan --lengths 40 --states 4 --channels 8 --batch_size 2 --block_lengths 30 {TINY} --d_state 4 "
        "--seconds 0.01 --device cpu",
        "cells",
        "measuring",
        is_costly=True,
    ),
    "benchmark training": Long(
        f"benchmark training --lengths 9 --encoders GRU4Rec --variants fp32 --batch_size 2 {TINY} --num_layers 1 "
        "--num_items 50 --steps 1",
        "cells",
        "measuring",
        is_costly=True,
    ),
    "benchmark columns": Long(
        f"benchmark columns --encoders GRU4Rec SASRec --length 20 --batch_size 3 --num_items 50 {TINY} --num_layers 1 "
        "--rounds 1",
        "cells, rounds",
        "measuring",
    ),
    "benchmark inference": Long(
        f"benchmark inference --encoders GRU4Rec --lengths 4 --batch_sizes 2 --session_encoder GRU4Rec {TINY} "
        "--num_items 50 --rounds 1",
        "cells, rounds",
        "measuring",
    ),
    "benchmark bulk": Long(
        f"benchmark bulk --items 50 90 --encoders GRU4Rec --users 3 --length 4 --top_k 5 {TINY} --rounds 1",
        "cells",
        "measuring",
    ),
    "benchmark serve": Long(
        f"benchmark serve --clients 2 --requests 40 --items 50 {TINY} --num_layers 1",
        "cells, requests",
        "serve",
        is_costly=True,
    ),
    "benchmark recall": Long(
        f"benchmark recall --lags 3 --encoders GRU4Rec --abilities delay --steps 2 --lrs 0.003 0.001 {TINY} "
        "--num_layers 1 --batch_events 64",
        "cells, steps",
        "measuring",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, its store, one that has grown, a run, and the configs of the commands."""
    folder = tmp_path_factory.mktemp("commands")
    # A third of the items have most of the events.
    rows = [f"{u},{(7 * u + 5 * t) % 23 * ((3 * u + t) % 23) // 23},{t}" for u in range(30) for t in range(7 + u % 9)]
    for name, some in {"log": rows, **dict.fromkeys(("more", *MODES), rows[:200])}.items():
        (folder / f"{name}.csv").write_text("\n".join(["user_id,item_id,timestamp", *some]))
    source = {"class_path": "Table", "init_args": {"path": "log.csv"}}
    data = {**SMALL["data"], "source": source, "store": "store", "eval_batch_size": 8}
    write_config(folder, data=data, trainer=TRAINER)
    steps = [
        {"name": "all", "part": "protocol"},
        {"name": "seen", "part": "protocol", "set": {"protocol.filter_seen": False}},
    ]
    ladder = {"data": "synthetic", "length": 20, "model": "GRU4Rec", "budget": "epochs=1", "steps": steps}
    (folder / "steps.yaml").write_text(yaml.safe_dump(ladder))
    parameters = {"model.d_model": {"type": "categorical", "choices": [4, 8]}}
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"configs": ["small.yaml"], "parameters": parameters, "trials": 2})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "small.yaml"])
        Path("runs/version_0").rename("run")
        shutil.copytree("store", "grown")
        main(["append", "--config", "small.yaml", "--data.store", "grown", "--input", "more.csv"])
        for mode in MODES:
            shutil.copytree("grown", f"grown-{mode}")
    return folder


def in_this_process(
    function: Callable[..., Any], arguments: dict[str, Any], *, show: Show, **options: object
) -> Measurement:
    """`run_measured` without a process."""
    with redirect_stdout(io.StringIO()) as said:
        value = function(**arguments)
    show((said.getvalue().splitlines() or [""])[-1])
    return Measurement(1.0, 1 << 20, 1 << 20, 0, json.loads(json.dumps(value)))


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Run a long command in one of `MODES`, and return what it writes to standard output and to standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    # Lines for every part, and several parts.
    monkeypatch.setattr("seqrec.data.progress.ON_TERMINAL", 0.0)
    monkeypatch.setattr("seqrec.data.prepare.reading.CHUNK_EVENTS", 64)
    monkeypatch.setattr("seqrec.data.prepare.growing.COPIED_EVENTS", 64)

    def run(name: str, mode: str, *further: str) -> tuple[str, str]:
        if "grid-made" in LONG[name].words and not Path("grid-made").exists():
            run("benchmark paper", "made")
        words = LONG[name].words.format(n=mode).split()
        if name.startswith("benchmark") and not LONG[name].is_costly:
            monkeypatch.setattr(f"seqrec.benchmark.{words[1]}.run_measured", in_this_process)
        monkeypatch.setenv("CI", str(int(mode == "ci")))
        return captured(lambda: main([*words, *further]), terminal=mode != "pipe")

    return run


def runs(*modes: str) -> list[Any]:
    """Every command in each of the modes. CI is like pipes to all but `fit` with its bars, which always tries both."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, mode, marks=[slow] * (long.is_costly or (mode == "ci" and name != "fit")))
        for name, long in LONG.items()
        for mode in modes
    ]


@pytest.mark.parametrize(("name", "mode"), runs("terminal"))
def test_a_terminal_shows_rate_and_time_left(name: str, mode: str, run: Callable[..., tuple[str, str]]):
    out, errors = run(name, mode)
    stage = LONG[name].stage
    if stage is None:
        assert re.search(r"\d+/\d+ .*\d+:\d\d.*\d+\.\d+it/s", re.sub(r"\x1b\[[\d;]*m", "", out))
        return
    stage = re.escape(stage.format(n=mode))
    left = rf"{stage}: [\d,]+ \w+, [^\r]+(/s|s each), \d+%, about [\d.]+ \w+ left"
    assert bool(re.search(left, errors)) == LONG[name].parts
    assert "\r" in errors
    # A table may have a note on what was left out.
    assert " left" not in out.replace(" left out", "")
    # Its end, which stays.
    assert re.search(rf"{stage}: [\d,]+ \w+, [\d.]+ s, .+(/s|s each)\r\n", errors)


@pytest.mark.parametrize(("name", "mode"), runs("ci", "pipe"))
def test_logs_are_quiet_and_results_are_there_in_every_form(name: str, mode: str, run: Callable[..., tuple[str, str]]):
    files = [Path(f"{name}-{mode}{kind}".replace(" ", "-")) for kind in KINDS]
    began = time.monotonic()
    out, errors = run(name, mode, "--json", *(word for file in files for word in ("--table", str(file))))
    document = json.loads(out)
    command = command_named(LONG[name].words.split()).replace("predict", "recommend")
    assert document["schema"] == f"seqrec-{command.replace(' ', '-')}-1"
    assert len(document) > 1
    assert json.loads(files[0].read_text()) == document
    assert files[1].read_text().strip()
    assert files[2].read_bytes().startswith(b"\x89PNG")
    lines = errors.replace("\r\n", "\n")
    assert not set("\r\x1b") & set(lines)
    # A stage shows its end, and before it a line a minute.
    others = (LAST, *(line for line in lines.splitlines() if re.match(r"\d+\.\d% of the targets were in", line)))
    shown = [line for line in lines.splitlines() if line not in others and re.search(r"\.\.\.|\d+%", line)]
    assert len(shown) <= (time.monotonic() - began) // ELSEWHERE, shown


def test_every_command_is_long_or_short():
    assert {command_named(long.words.split()) for long in LONG.values()} | set(SHORT) == set(COMMANDS)
    assert not set(LONG) & set(SHORT)


def test_the_guide_has_what_each_command_counts():
    section = GUIDE.read_text(encoding="utf-8").partition("\n## Progress\n")[2]
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in re.findall(r"^\| `.+", section, re.MULTILINE)]
    units = {name.strip("`"): counted for names, counted in rows for name in names.split(", ")}
    assert units == {name: long.units for name, long in LONG.items()} | dict.fromkeys(SHORT, "nothing")
