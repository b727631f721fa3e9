from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from seqrec import GRU4Rec, export
from seqrec.cli import main
from seqrec.data.integrity import sealed, sha256, unsealed
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import MissingInputError
from seqrec.inference.export import verify_export

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    model = GRU4Rec(num_items=20, d_model=8, max_length=10)
    model.item_vocabulary = Vocabulary(np.arange(20))
    export(model, folder, format="torch")
    return folder


@pytest.mark.parametrize("flips", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_any_file_is_found(exported: Path, tmp_path: Path, flips: int):
    assert verify_export(exported) == []
    rng = random.Random(0)
    for file in sorted(exported.iterdir()):
        whole = file.read_bytes()
        try:
            for place in rng.sample(range(len(whole)), flips):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << rng.randrange(8)
                file.write_bytes(damaged)
                (line, *_) = verify_export(exported)
                assert file.name in line
        finally:
            file.write_bytes(whole)


def test_missing_and_cut_files_are_named(exported: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "items.npy").unlink()
    (copy / "full.pt2").write_bytes(b"")
    (copy / "more").mkdir()
    (copy / "more" / ".hidden").write_bytes(b"")
    lines = verify_export(copy)
    assert any(line.endswith("more/.hidden is not of this export: remove it") for line in lines)
    assert any(line.endswith("items.npy is missing") for line in lines)
    assert any("full.pt2 has 0 bytes, expected" in line for line in lines)
    with pytest.raises(MissingInputError, match="is no export"):
        verify_export(tmp_path)


def test_a_manifest_names_only_files_of_its_folder(exported: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (tmp_path / "secret").write_bytes(b"x")
    content, _ = unsealed((copy / "manifest.json").read_text(), "manifest_sha256")
    entry = {"bytes": 1, "sha256": sha256(tmp_path / "secret")}
    for name in ("../secret", str(tmp_path / "secret"), "x/../../secret"):
        changed = {**content, "digests": {**content["digests"], name: entry}}
        (copy / "manifest.json").write_text(sealed(changed, "manifest_sha256"))
        (line,) = verify_export(copy)
        assert "names a file of another folder" in line


def test_the_command_line_verifies(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    with pytest.raises(SystemExit) as stop:
        main(["export", "--verify", str(copy)])
    assert stop.value.code == 0
    (copy / "items.npy").write_bytes(b"x")
    with pytest.raises(SystemExit) as stop:
        main(["export", "--verify", str(copy)])
    assert stop.value.code == 1
    assert "items.npy has 1 bytes" in capsys.readouterr().out
