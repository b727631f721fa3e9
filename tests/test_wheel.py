"""The wheel is whole: installed outside of the clone, its commands run from any folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]

REPOSITORY = Path(__file__).parents[1]
SMALL = ("--data.source.num_users", "60", "--data.source.mean_events", "20", "--trainer.max_epochs", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment with the wheel, and with the packages of this one."""
    made = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "__pycache__", "tests", "notebooks")
    shutil.copytree(REPOSITORY, made / "source", symlinks=True, ignore=left_out)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(made)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=made / "source", capture_output=True, check=True)
    (wheel,) = made.glob("seqrec-*.whl")
    shutil.rmtree(made / "source")
    venv.create(made / "env", symlinks=True)
    python = made / "env" / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(pip, capture_output=True, check=True)
    # The folder that this file names is searched, but .pth files in it, as of an editable install, are not read.
    (site,) = made.glob("env/lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return made / "env" / "bin"


def run(installed: Path, folder: Path, *words: str) -> str:
    """What a command prints; it must succeed."""
    command = [str(installed / "seqrec"), *words]
    process = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def test_the_package_is_that_of_the_wheel_and_contains_all_configs(installed: Path, folder: Path):
    code = "import seqrec, seqrec.runs.config_files as c; print(seqrec.__file__, *c.config_names(), sep='\\n')"
    command = [str(installed / "python"), "-c", code]
    output = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    path, *names = output.stdout.splitlines()
    assert Path(path).is_relative_to(installed.parent)
    files = [file.relative_to(REPOSITORY / "configs") for file in (REPOSITORY / "configs").rglob("*.yaml")]
    assert sorted(names) == sorted(file.with_suffix("").as_posix() for file in files)
    assert run(installed, folder, "configs", "own_log") == (REPOSITORY / "configs/own_log.yaml").read_text()


def test_a_grid_runs(installed: Path, folder: Path):
    words = ("--data", "synthetic", "--lengths", "20", "--encoders", "GRU4Rec", "--baselines", "--seeds", "1")
    small = ("data.source.num_users=40", "data.source.mean_events=12", "model.d_model=8")
    shared = ("--budget", "epochs=1", "--device", "cpu", "--set", *small)
    assert "NDCG@10" in run(installed, folder, "benchmark", "paper", *words, *shared)
    assert list((folder / "paper" / "results").rglob("seed_0.json"))


def test_a_model_is_trained_recommends_and_is_served(installed: Path, folder: Path):
    output = run(installed, folder, "fit", "--config", "quickstart", *SMALL)
    assert "run folder: runs/quickstart/version_0" in output
    ckpt = ("--ckpt", "runs/quickstart/version_0")
    output = run(installed, folder, "recommend", *ckpt, "--output", "recs.parquet", "--top-k", "3")
    assert "180 recommendations to 60 users" in output
    pytest.importorskip("fastapi")
    server = subprocess.Popen(
        [str(installed / "seqrec"), "serve", *ckpt, "--port", "0"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = re.search(r" at (http://\S+)", server.stdout.readline())[1]
        with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
            assert json.loads(answer.read())
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
    assert server.returncode in (0, 143)
