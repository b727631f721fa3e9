from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest

from seqrec.cli import main
from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.results import read_results
from seqrec.experiments import runner
from seqrec.experiments.grid import Budget, Cell, Settings
from seqrec.experiments.grid.cells import plan
from seqrec.experiments.grid.result import METRICS, UserMetrics, read_grid
from seqrec.experiments.paper import benchmark_paper
from seqrec.experiments.report import figures, report
from seqrec.experiments.runner import make_slots

pytestmark = pytest.mark.process

CONFIGS = Path(__file__).parents[2] / "configs" / "fragments"
TIMEOUT = 300
GRID = (
    *("--data", "synthetic", "--lengths", "20", "--seeds", "1", "--budget", "epochs=2", "--folder", "grid"),
    *("--encoders", "GRU4Rec", "MambaRec", "--configs", str(CONFIGS), "--device", "cpu", "--set"),
    *("data.source.num_users=30", "data.source.mean_events=20", "data.source.num_items=30"),
    *("model.d_model=8", "data.max_tokens=100", "trainer.limit_train_batches=2", "--baselines"),
)


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "seqrec", "benchmark", "paper", *words]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def wait_for(file: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not file.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is a folder; on Linux alone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # Processes may end, or be somebody else's.
        with suppress(OSError):
            if (process / "cwd").readlink() == folder.resolve():
                found.append(int(process.name))
    return found


def kill_while_a_cell_runs(grid: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill a grid, whose cell must end with it: this one is held, so that it does not end by itself."""
    cells = [pid for pid in processes_in(folder) if pid != grid.pid]
    assert cells or sys.platform != "linux"
    try:
        for pid in cells:
            os.kill(pid, signal.SIGSTOP)
        grid.kill()
        grid.wait()
        deadline = time.monotonic() + 30
        while left := processes_in(folder):
            assert time.monotonic() < deadline, f"{left} outlived their grid"
            time.sleep(0.01)
    finally:
        for pid in cells:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def here() -> Callable[[Path], str]:
    """Runs the grid below a folder, its cells too, in this process, which need not start anew; returns what it said."""

    def run(words: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("w") as output, redirect_stdout(output), redirect_stderr(output):
            main(list(words[1:]))
        return subprocess.Popen(["true"])

    def run_grid(folder: Path) -> str:
        said = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
            redirect_stdout(said),
            redirect_stderr(said),
        ):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["seqrec"])
            patch.setattr(runner, "start", run)
            warnings.simplefilter("ignore")
            main(["benchmark", "paper", *GRID])
        return said.getvalue()

    return run_grid


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, here: Callable[[Path], str]) -> Path:
    """A grid that was killed while its last cell ran, and started again; with the log of both."""
    folder = tmp_path_factory.mktemp("killed")
    first = start(folder, *GRID)
    cells = folder / "grid" / "cells" / "synthetic" / "20"
    last = cells / "MambaRec" / "seed_0"
    wait_for(last / "run" / "config.yaml", first, folder / "log.txt")
    kill_while_a_cell_runs(first, folder)
    kept = folder / "grid" / "results" / "synthetic" / "20"
    assert not (kept / "MambaRec").exists()
    finished = {path: path.stat() for root in (cells, kept) for path in (root / "GRU4Rec").rglob("*")}
    assert {path.name for path in finished} >= {"seed_0.json", "test_results.parquet", "log.txt"}
    said = here(folder)
    (folder / "log.txt").write_text((folder / "log.txt").read_text() + said)
    for path, before in finished.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), path
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, here: Callable[[Path], str]) -> Path:
    """The same grid, left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert "2 cells, 0 of them finished before" in here(folder)
    return folder


# With real processes (pytest -m slow tests/experiments/test_paper.py); test_grid.py has the same without.
@pytest.mark.slow
def test_a_grid_that_is_killed_goes_on_without_running_finished_cells_again(killed: Path):
    log = (killed / "log.txt").read_text()
    assert "2 cells, 0 of them finished before" in log
    assert "2 cells, 1 of them finished before" in log
    assert "grid: 1 cells, " in log
    results = {run["model"]: run for run in read_grid(killed / "grid")}
    assert set(results) == {"GRU4Rec", "MambaRec"}
    curve = results["MambaRec"]["curve"]
    assert (curve["epoch"], curve["step"]) == ([1, 2], [2, 4])


@pytest.mark.slow
def test_a_grid_that_was_killed_ends_with_the_report_of_one_that_was_not(
    killed: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
):
    # They show the numbers of the tables, and take seconds to draw.
    monkeypatch.setattr(figures, "save", lambda *_: None)
    resumed, whole = killed / "grid", uninterrupted / "grid"
    for folder in (resumed, whole):
        report(str(folder))
    assert files_of(resumed) == files_of(whole)
    latex = "report/quality_synthetic.tex"
    assert (resumed / latex).read_bytes() == (whole / latex).read_bytes()
    # Measured times and memory alone may differ, which stand in the table of costs.
    seconds = ("train_seconds", "validation_seconds", "test_seconds", "epoch_seconds")
    for runs in zip(*map(read_grid, (resumed, whole)), strict=True):
        first, second = ({**run, **dict.fromkeys((*seconds, "events_per_second", "peak_memory"))} for run in runs)
        assert first == second
    costs = "### synthetic: costs by history length"
    texts = [(folder / "report" / "report.md").read_text().split(costs) for folder in (resumed, whole)]
    assert len(texts[0]) == 2
    assert texts[0][0] == texts[1][0]


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_results_say_what_training_took_and_equal_the_ranks_of_the_run(uninterrupted: Path):
    for row in read_grid(uninterrupted / "grid"):
        assert (row["epochs"], row["steps"], row["users"], row["budget"]) == (2, 4, 30, "epochs=2")
        assert row["train_seconds"] > 0
        assert row["events_per_second"] == pytest.approx(row["events"] / row["train_seconds"], rel=1e-3)
        assert row["protocol"] == "full-seenin-tiemean-loo"
        assert row["table_parameters"] == 31 * 8
        assert row["other_parameters"] == 20 * 8
        assert row["peak_memory"] > 1e8
        assert "torch" in row["versions"]
        assert row["made_by"].startswith(
            "seqrec benchmark paper --data synthetic --lengths 20 --encoders GRU4Rec MambaRec --baselines --seeds 1 "
            "--budget epochs=2 --study small --set data.source.num_users=30"
        )
        ranks = read_results(uninterrupted / "grid" / "cells" / "synthetic" / "20" / row["model"] / "seed_0" / "run")
        assert row["metrics"]["NDCG@10"] == pytest.approx(ranks.metrics(["NDCG@10"]).mean(), abs=1e-6)
        assert np.array_equal(UserMetrics.from_plain(row["user_metrics"]).values, ranks.metrics(METRICS))
    assert not list((uninterrupted / "grid").rglob("*.ckpt"))


def settings(**changed: object) -> Settings:
    return Settings(**{"configs": CONFIGS, "study": "small", "budget": Budget("epochs", 1)} | changed)  # type: ignore[arg-type]


CELL = Cell("ml_1m", 50, "SASRec", "", 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"study": "published"},
        {"budget": Budget("epochs", 2)},
        {"budget": Budget("seconds", 1)},
        {"path": "elsewhere/log.zip"},
        {"overrides": ("model.d_model=8",)},
    ],
    ids=str,
)
def test_a_cell_of_other_settings_is_another(changed: dict[str, object]):
    assert settings(**changed).record(CELL) != settings().record(CELL)


def test_a_cell_stays_the_same_where_its_log_lies_elsewhere():
    assert settings(path="a/log.zip").record(CELL) == settings(path="/b/log.zip").record(CELL)


def test_a_baseline_among_the_encoders_runs_once():
    lists = {"lengths": [50], "encoders": ["Popularity"], "baselines": ["Popularity"], "ablations": []}
    assert [cell.row for cell in plan(settings(), data=["ml_1m"], seeds=1, **lists)] == ["Popularity"]  # type: ignore[arg-type]


def test_ablations_of_what_an_encoder_does_not_have_are_left_out():
    cells = plan(
        settings(),
        data=["ml_1m"],
        lengths=[50],
        encoders=["GRU4Rec", "MambaRec", "MoEMaTrRec"],
        baselines=["Popularity"],
        ablations=["d_state_8", "no_positions", "as_published_mixture"],
        seeds=2,
    )
    rows = ["GRU4Rec", "GRU4Rec no_positions", "MambaRec", "MambaRec d_state_8", "MambaRec no_positions"]
    rows += [f"MoEMaTrRec{name}" for name in ("", " d_state_8", " no_positions", " as_published_mixture")]
    assert [cell.row for cell in cells] == ["Popularity", *2 * rows]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"data": ["nothing"]},
            r"data='nothing': there is no .*nothing.yaml; known: as_published_oldest_250, as_published_raw_ids, "
            "assist2017",
        ),
        ({"encoders": ["SASrec"]}, r"model='SASrec': there is no .*; known: BERT4Rec, GRU4Rec"),
        (
            {"ablations": ["no_hope"]},
            r"ablation='no_hope': there is no .*; known: as_published_mixture, blocks_1",
        ),
        ({"study": "large"}, r"study='large': there is no .*; known: published, small"),
        ({"configs": "nowhere"}, r"data='ml_1m': there is no .*\(no fragments in nowhere/data\)"),
        ({"lengths": [1]}, r"lengths=\[1\]: 1 must be at least 2"),
        ({"lengths": []}, "lengths is empty; give at least one"),
        ({"lengths": [5, 5]}, r"lengths=\[5, 5\] names one twice"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"jobs": 0}, "jobs=0 must be at least 1"),
        ({"device": "tpu"}, "device='tpu' must be auto, cpu or cuda"),
        ({"budget": "epochs"}, "budget='epochs' must be one of epochs=N, steps=N, seconds=N, convergence=N"),
        ({"budget": "years=3"}, "budget='years=3' must be one of"),
        ({"budget": "epochs=0"}, "budget='epochs=0' must be one of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    changed: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    arguments = {"data": ["ml_1m"], "lengths": [50], "configs": str(CONFIGS)} | changed
    with pytest.raises(InputError, match=message):
        benchmark_paper(**arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_grid_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no results of cells in .*; give a folder of seqrec benchmark paper"):
        read_grid(tmp_path)


@pytest.mark.slow  # pytest -m slow tests/experiments/test_paper.py: four processes
def test_a_grid_whose_cells_fail_says_so_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = [*GRID, "Popularity", "--set", "model.num_heads=3", *GRID[GRID.index("--set") + 1 : -1]]
    words[words.index("GRU4Rec")] = "SASRec"
    words.remove("MambaRec")
    with pytest.raises(SystemExit):
        main(["benchmark", "paper", *words])
    said = capsys.readouterr()
    assert "FAILED, error: num_heads=3 must divide d_model=8" in said.err
    assert "1 of 2 cells failed, see synthetic 20 SASRec seed 0: grid/cells" in said.err
    assert "the same command tries them again" in said.err
    assert [run["model"] for run in read_grid(tmp_path / "grid")] == ["Popularity"]


def test_each_visible_gpu_is_a_slot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    slots = make_slots(1, "auto")
    assert [slot.environment for slot in slots] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert {slot.accelerator for slot in slots} == {"gpu"}
    assert [slot.accelerator for slot in make_slots(2, "cpu")] == ["cpu", "cpu"]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match="device='cuda', but no GPU is visible here; use cpu"):
        make_slots(1, "cuda")
