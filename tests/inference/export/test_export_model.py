"""The folder that an export leaves, and what is refused."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from exported_models import (
    COLUMNS,
    MAX_LENGTH,
    NUM_ITEMS,
    Served,
    SumEncoder,
    build,
    last_states,
    random_history,
    read_manifest,
    small,
)

from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.inference.export import ExportError, checks, export, formats
from seqrec.inference.export import model as export_model
from seqrec.models import GRU4Rec, Popularity
from seqrec.types import History

QUIET = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_learned_positions_leave_out_the_step_and_the_manifest_says_why(tmp_path: Path):
    said = export(small(positions=True), tmp_path / "out", format="torch")
    assert said == read_manifest(tmp_path / "out")
    assert list(said["programs"]["step"]) == ["omitted"]
    assert "learned positions count back" in said["programs"]["step"]["omitted"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"full.pt2", "items.npy", "manifest.json"}
    assert said["programs"]["full"]["longest_history"] == MAX_LENGTH


@pytest.mark.parametrize("name", ["BERT4Rec", pytest.param("SSD4Rec", marks=pytest.mark.slow)])
def test_a_bidirectional_model_leaves_out_the_step_and_puts_a_mask_after_the_history(name: str, tmp_path: Path):
    model = build(name, positions=True)
    said = export(model, tmp_path / "out", format="torch")
    assert f"{name} sees newer events and cannot be streamed" in said["programs"]["step"]["omitted"]
    history = random_history(3, MAX_LENGTH)
    found = Served(tmp_path / "out").run("full", item_ids=history.item_ids.numpy(), lengths=history.lengths.numpy())
    np.testing.assert_allclose(found["states"], last_states(model, history, [0] * 3), rtol=0, atol=1e-5)


@pytest.mark.slow  # pytest -m slow tests/inference/export/test_export_model.py: traces attention and Mamba
def test_a_mixture_as_published_leaves_out_the_step(tmp_path: Path):
    said = export(build("MoEMaTrRec", causal=False), tmp_path / "out", format="torch")
    assert list(said["programs"]["step"]) == ["omitted"]
    assert "causal=False sees newer events" in said["programs"]["step"]["omitted"]


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_the_manifests_example_ranks_items(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "out"
    export(small(positions=True), folder, format=form, separate_table=form == "torch")
    names: dict = {}
    monkeypatch.chdir(folder)
    exec("\n".join(read_manifest(folder)["example"]), names)
    (best,) = names["best"].tolist()
    assert len(set(best)) == 10
    assert set(best) <= set(range(1, NUM_ITEMS + 1))


def test_the_manifest_tells_how_columns_of_events_become_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = export(small(event_columns=COLUMNS), tmp_path / "out", format="torch")
    assert [each["init_args"]["name"] for each in said["event_columns"]] == ["tab", "watched", "looks"]
    assert said["event_columns"][0]["init_args"]["values"] == ["home", "search", "share"]
    assert said["event_columns"][1]["init_args"]["mean"] == 20.0
    shapes = {x["name"]: (x["dtype"], x["shape"]) for x in said["programs"]["full"]["inputs"]}
    assert shapes["column.tab"] == ("int64", ["batch", "length"])
    assert shapes["column.looks"] == ("float32", ["batch", "length", 3])
    of_step = {x["name"]: x for x in said["programs"]["step"]["inputs"]}
    assert of_step["column.watched"]["shape"] == ["batch"]
    assert "(number - mean) / std" in of_step["column.watched"]["meaning"]
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    exec("\n".join(said["example"]), names)
    assert names["best"].shape == (1, 10)
    assert "event_columns" not in export(small(), tmp_path / "plain", format="torch")


@pytest.mark.parametrize("names", [np.arange(NUM_ITEMS) * 7, [f"song-{i:02}" for i in range(NUM_ITEMS)]])
def test_the_item_vocabulary_stands_beside_the_programs(names: object, tmp_path: Path):
    model = small(positions=True)
    model.item_vocabulary = Vocabulary(names)
    said = export(model, tmp_path / "out", format="torch")
    opened = Vocabulary.open(tmp_path / "out", "item_vocabulary")
    assert list(opened.external_ids([1, NUM_ITEMS])) == [names[0], names[-1]]
    assert all((tmp_path / "out" / file).exists() for file in said["vocabulary"])


def test_a_table_is_separate_from_a_size_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export_model, "SEPARATE_BYTES", 4 * (NUM_ITEMS + 1) * 8 - 1)
    said = export(small(positions=True), tmp_path / "out", format="torch")
    assert said["programs"]["full"]["inputs"][0]["name"] == "items"
    monkeypatch.setattr(export_model, "SEPARATE_BYTES", 4 * (NUM_ITEMS + 1) * 8)
    said = export(small(positions=True), tmp_path / "inside", format="torch")
    assert said["programs"]["full"]["inputs"][0]["name"] == "item_ids"


@pytest.mark.parametrize("wrong", ["states", "next_state.sum"])
def test_a_program_that_differs_leaves_no_file(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load = formats.load

    def load_wrong(*arguments: object) -> Callable:
        run = load(*arguments)
        return lambda given: {name: x + 0.01 if name == wrong else x for name, x in run(given).items()}

    monkeypatch.setattr(formats, "load", load_wrong)
    with pytest.raises(ExportError, match=rf"^{wrong} of .* differs from the model's by 0.0\d+ of its size"):
        export(small(), tmp_path / "out", format="torch")
    assert list(tmp_path.iterdir()) == []


class LoopEncoder(SumEncoder):
    def forward(self, x: torch.Tensor, history: History) -> torch.Tensor:
        return torch.stack([x[:, : t + 1].sum(1) for t in range(x.shape[1])], 1) * self.weight


def test_a_full_disk_names_the_output_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export_model, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        export(GRU4Rec(NUM_ITEMS, d_model=8), tmp_path / "model", format="torch")
    assert caught.value.filename == str(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_loops_over_events_cannot_be_traced(tmp_path: Path):
    with pytest.raises(ExportError, match="the full program cannot be traced for any number of users and events"):
        export(small(encoder=LoopEncoder()), tmp_path / "out", format="torch")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_program_that_gives_no_numbers_is_an_error():
    model = small()
    run = lambda given: {"states": torch.full((len(given["item_ids"]), 8), torch.nan)}  # noqa: E731
    with pytest.raises(ExportError, match="differs from the model's by nan"):
        checks.check_full_pass(model, run, None)


def test_the_models_mode_comes_back(tmp_path: Path):
    model = build("GRU4Rec", positions=True).train()
    export(model, tmp_path / "out", format="torch")
    assert model.training
    assert isinstance(model.encoder.layers[0], torch.nn.GRU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format='tflite' must be one of onnx, torch"),
        ({"top_k": -1}, "top_k=-1 must be between 0 and num_items=30"),
        ({"top_k": 31}, "top_k=31 must be between 0 and num_items=30"),
        ({"top_k": 3, "separate_table": True}, r"top_k=3 needs the item table inside .* leave top_k out"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        export(small(), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already; give a folder that does not exist, or an empty one"):
        export(small(), tmp_path, format="torch")


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "out").mkdir()
    export(small(positions=True), tmp_path / "out", format="torch")
    assert (tmp_path / "out" / "full.pt2").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_fix(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'{package}.*pip install "seqrec\[onnx\]"'):
        export(small(), tmp_path / "out")


def test_models_that_cannot_be_exported_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="Popularity has no encoder to export"):
        export(Popularity.from_counts(np.array([0, 1, 2])), tmp_path / "out")
    with pytest.raises(InputError, match=r"is torch.float64 on cpu, .* call model.float\(\).cpu\(\)"):
        export(small().double(), tmp_path / "out")
    monkeypatch.setattr(export_model, "MOST_INSIDE_BYTES", 100)
    with pytest.raises(InputError, match=r"separate_table=False would put .* is limited to 2 GiB; leave it out"):
        export(small(), tmp_path / "out", separate_table=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command_exports_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = SequenceDataModule(
        Synthetic(num_users=20, num_items=NUM_ITEMS, mean_events=10),
        store=str(tmp_path / "store"),
        max_length=8,
    )
    model = GRU4Rec(data.num_items, d_model=8, max_length=8)
    trainer = pl.Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", logger=False, **QUIET)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    out = str(tmp_path / "out")
    main(("export", "--ckpt", str(tmp_path / "best.ckpt"), "--output", out, "--format", "torch"))
    said = capsys.readouterr().out
    assert f"{out}/full.pt2: differs from the model by" in said
    assert "no step: positions=True cannot be streamed" in said
    assert len(Vocabulary.open(tmp_path / "out", "item_vocabulary")) == data.num_items
    history = random_history(2, 8)
    given = {
        "item_ids": history.item_ids.clamp(max=data.num_items).numpy(),
        "lengths": history.lengths.numpy(),
    }
    states = Served(tmp_path / "out").run("full", **given)["states"]
    history = History(torch.from_numpy(given["item_ids"]), history.lengths)
    np.testing.assert_allclose(states, last_states(model.eval(), history, [0, 0]), rtol=0, atol=1e-5)


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(("export", "--ckpt", "nowhere.ckpt", "--output", "out"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --ckpt nowhere.ckpt: there is no such checkpoint")
