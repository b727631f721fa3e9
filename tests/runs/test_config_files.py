"""Configs are found by name in any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqrec.errors import MissingInputError
from seqrec.runs.config_files import config_names, config_summaries, find_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quickstart", "quickstart.yaml"),
        ("quickstart.yaml", "quickstart.yaml"),
        ("configs/quickstart.yaml", "quickstart.yaml"),
        ("trainer/ddp", "trainer/ddp.yaml"),
        ("fragments/ablation/dropout_.2", "fragments/ablation/dropout_.2.yaml"),
    ],
)
def test_a_config_of_the_package_is_found_by_name(name: str, file: str):
    assert find_config(name).samefile(CONFIGS / file)


def test_a_file_takes_precedence_over_a_config_of_the_package(capsys: pytest.CaptureFixture[str]):
    Path("quickstart").touch()
    Path("mine.yaml").touch()
    assert find_config("quickstart") == Path("quickstart")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("config quickstart: the file /")
    assert line.endswith("/quickstart is used, not the package's config")
    assert find_config("mine.yaml") == Path("mine.yaml")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("quikstart", "quickstart"),
        ("fragments/model/SASRek", "fragments/model/SASRec"),
        ("sasrec", "fragments/model/SASRec"),
        ("configs/model/SASRec.yaml", "fragments/model/SASRec"),
    ],
)
def test_a_misspelt_config_names_the_nearest(name: str, nearest: str):
    with pytest.raises(MissingInputError, match=rf"config '{name}' is neither .*did you mean {nearest}\?"):
        find_config(name)


def test_an_unknown_config_says_how_to_list_them():
    with pytest.raises(MissingInputError, match="`seqrec configs` lists these"):
        find_config("/no/such/thing.yaml")


def test_every_config_has_a_name_and_a_line():
    assert len(config_names()) == len(list(CONFIGS.rglob("*.yaml")))
    for name, line in config_summaries():
        assert line.startswith(("model: ", "data: ", "trainer: ")) or line.endswith("."), name
