"""What `--ckpt` may name besides a file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from seqrec.cli.arguments import expand
from seqrec.errors import MissingInputError
from seqrec.runs.checkpoints import write_checkpoint
from seqrec.runs.finding import find_checkpoint, record_start


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, the second of which is newer, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for number, name in enumerate(["a/version_0", "b/version_1"]):
        folder = Path("runs") / name / "checkpoints"
        folder.mkdir(parents=True)
        for file in ("last.ckpt", "last-1.ckpt", "best.ckpt"):
            (folder / file).touch()
            os.utime(folder / file, (number, number))


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("last", "runs/b/version_1"),
        ("runs", "runs/b/version_1"),
        ("runs/a", "runs/a/version_0"),
        ("runs/a/version_0", "runs/a/version_0"),
        ("runs/a/version_0/checkpoints", "runs/a/version_0"),
    ],
)
def test_a_folder_gives_the_resume_point_to_fit_and_the_best_checkpoint_to_others(name: str, run: str):
    assert find_checkpoint(name, to_resume=True) == f"{run}/checkpoints/last.ckpt"
    assert find_checkpoint(name, to_resume=False) == f"{run}/checkpoints/best.ckpt"


def test_a_run_with_one_kind_of_checkpoint_gives_that():
    Path("runs/a/version_0/checkpoints/best.ckpt").unlink()
    assert find_checkpoint("runs/a", to_resume=False) == "runs/a/version_0/checkpoints/last.ckpt"
    for file in Path("runs/b/version_1/checkpoints").glob("last*.ckpt"):
        file.unlink()
    assert find_checkpoint("runs/b", to_resume=True) == "runs/b/version_1/checkpoints/best.ckpt"


@pytest.mark.parametrize(
    "words", [("--ckpt", "last"), ("--ckpt=last",), ("--ckpt_path", "last"), ("--ckpt_path=last",)]
)
def test_ckpt_and_ckpt_path_are_one_option(words: tuple[str, ...]):
    best = "runs/b/version_1/checkpoints/best.ckpt"
    assert expand("test", words, checkpoint="--ckpt_path") == ["--ckpt_path", best]
    assert expand("export", words, checkpoint="--ckpt") == ["--ckpt", best]
    # A server finds the newest run again at each reload.
    assert expand("serve", words, checkpoint="--ckpt") == ["--ckpt", "last"]


@pytest.mark.parametrize("name", ["s3://bucket/x.ckpt", "null", ""])
def test_what_is_no_folder_stays(name: str):
    assert expand("test", ["--ckpt", name], checkpoint="--ckpt_path") == ["--ckpt_path", name]


def test_a_name_without_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match=r"--ckpt_path empty: empty contains neither last\.ckpt nor best\.ckpt"):
        find_checkpoint("empty", to_resume=True, argument="--ckpt_path ")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(MissingInputError, match=r"ckpt=last: there is no folder runs here, .*default_root_dir"):
        find_checkpoint("last", to_resume=True)


@pytest.mark.parametrize("option", ["--ckpt", "--ckpt_path"])
def test_a_message_has_the_option_that_was_typed(option: str):
    with pytest.raises(MissingInputError, match=rf"^{option} a/b\.ckpt: there is no such .*a run's folder.* or last "):
        expand("test", [option, "a/b.ckpt"], checkpoint="--ckpt_path")


def test_the_newest_run_is_that_which_started_last_whatever_the_clock_says():
    runs = Path("runs")
    record_start(runs / "a/version_0", runs)
    started = int((runs / "a/version_0/.started").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda: started - 10**15)
        record_start(runs / "b/version_1", runs)
    # Written later, by a run that started earlier.
    os.utime("runs/a/version_0/checkpoints/best.ckpt", (10**10, 10**10))
    assert find_checkpoint("last") == "runs/b/version_1/checkpoints/best.ckpt"
    record_start(runs / "a/version_0", runs)
    assert find_checkpoint("last") == "runs/a/version_0/checkpoints/best.ckpt"


def test_last_goes_by_step_and_a_damaged_file_is_not_passed_over():
    folder = Path("runs/b/version_1/checkpoints")
    for name, steps in (("last", 3), ("last-1", 2), ("last-v1", 7)):
        write_checkpoint({"global_step": steps, "state_dict": {}}, folder / f"{name}.ckpt")
    assert find_checkpoint("last", to_resume=True) == str(folder / "last-v1.ckpt")
    (folder / "last.ckpt").write_text("damaged")
    assert find_checkpoint("last", to_resume=True) == str(folder / "last.ckpt")


def test_the_words_best_and_hpc():
    Path("runs/b/version_1/checkpoints/best.ckpt").unlink()
    assert find_checkpoint("best", to_resume=True) == "runs/a/version_0/checkpoints/best.ckpt"
    with pytest.raises(MissingInputError, match=r"ckpt=hpc: .* has no hpc_ckpt_<n>\.ckpt"):
        find_checkpoint("hpc")
    for number in (2, 10):
        Path(f"hpc_ckpt_{number}.ckpt").touch()
    assert find_checkpoint("hpc") == "hpc_ckpt_10.ckpt"


def test_words_look_in_the_root_folder_of_the_trainer():
    Path("elsewhere").mkdir()
    shutil.move("runs", "elsewhere/runs")
    best = "elsewhere/runs/b/version_1/checkpoints/best.ckpt"
    root = ["--trainer.default_root_dir", "elsewhere"]
    for words in (["--ckpt", "last", *root], [*root, "--ckpt=best"]):
        assert best in expand("test", words, checkpoint="--ckpt_path")
    Path("c.yaml").write_text("trainer: {default_root_dir: elsewhere}\n")
    assert best in expand("test", ["--ckpt", "last", "--config", "c.yaml"], checkpoint="--ckpt_path")
    chosen = ["--trainer.logger.save_dir", "elsewhere/runs/a", "--ckpt", "last"]
    assert "elsewhere/runs/a/version_0/checkpoints/best.ckpt" in expand("test", chosen, checkpoint="--ckpt_path")


def test_the_config_of_a_run_belongs_to_its_checkpoint():
    config = Path("runs/b/version_1/config.yaml")
    config.touch()
    best = "runs/b/version_1/checkpoints/best.ckpt"
    assert expand("test", ["--ckpt", "last"], checkpoint="--ckpt_path") == [
        *("--config", str(config)),
        *("--ckpt_path", best),
    ]
    Path("c.yaml").touch()
    words = ["--ckpt", "last", "-c", "c.yaml"]
    assert expand("test", words, checkpoint="--ckpt_path") == ["--ckpt_path", best, "--config", "c.yaml"]


def test_a_job_that_slurm_restarts_resumes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def expanded(*words: str, command: str = "fit") -> list[str]:
        return expand(command, words, checkpoint="--ckpt_path")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert expanded("--x") == ["--x"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert expanded("--x") == ["--x"]
    assert "restarted job 7, which left no resume point below runs" in capsys.readouterr().err
    folder = Path("runs/a/version_0/checkpoints")
    (folder / ".job.json").write_text(json.dumps({"slurm_job": "7"}))
    assert expanded("--x") == ["--x", "--ckpt_path", str(folder / "last.ckpt")]
    assert f"it resumes from {folder / 'last.ckpt'}" in capsys.readouterr().err
    assert expanded("--ckpt", "runs/b")[-1] == "runs/b/version_1/checkpoints/last.ckpt"
    assert expanded("--x", command="test") == ["--x"]


def test_a_run_that_resumed_another_has_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They stay in the folder of the resumed run; the new run's summary names them."""
    monkeypatch.chdir(tmp_path)
    kept = Path("runs/name/version_0/checkpoints")
    kept.mkdir(parents=True)
    (kept / "best.ckpt").touch()
    (kept / "last.ckpt").touch()
    resumed = Path("runs/name/version_1")
    resumed.mkdir()
    (resumed / "summary.json").write_text(json.dumps({"best": {"checkpoint": str(kept / "best.ckpt")}}))
    assert find_checkpoint(str(resumed), to_resume=False) == str(kept / "best.ckpt")
    assert find_checkpoint(str(resumed), to_resume=True) == str(kept / "last.ckpt")
    monkeypatch.chdir(tmp_path / "runs")
    assert find_checkpoint("name/version_1", to_resume=False) == "name/version_0/checkpoints/best.ckpt"


@pytest.mark.parametrize("filters", [True, False])
def test_recommend_notes_that_the_run_was_evaluated_with_seen_items(
    filters: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    protocol = {"class_path": "seqrec.FullRanking", "init_args": {"filter_seen": filters}}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(json.dumps({"protocol": protocol}))
    (tmp_path / "checkpoints/best.ckpt").touch()
    ckpt = str(tmp_path / "checkpoints/best.ckpt")
    expand("recommend", ["--ckpt", ckpt], checkpoint="--ckpt")
    assert ("--filter-seen false recommends them too" in capsys.readouterr().err) is not filters
    expand("recommend", ["--ckpt", ckpt, "--filter_seen", "true"], checkpoint="--ckpt")
    assert capsys.readouterr().err == ""


def test_a_protocol_by_name_has_its_defaults_whatever_the_run_had():
    (_, spec) = expand("test", ["--protocol", "FullRanking"], checkpoint="--ckpt_path")
    assert json.loads(spec)["init_args"]["filter_seen"] is True
