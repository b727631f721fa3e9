"""`seqrec recommend` among candidates."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import polars
import pytest
import torch
from bulk_jobs import log_of, read, summary_of
from polars.testing import assert_frame_equal
from trained_models import one_step

from seqrec.catalogue.candidates import Candidates
from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.errors import InputError, MissingInputError
from seqrec.inference import load
from seqrec.inference.bulk.command import recommend
from seqrec.inference.writer import RecommendationWriter
from seqrec.models import SASRec


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def items_of(ckpt: Path) -> polars.DataFrame:
    vocabulary = load(ckpt).item_vocabulary
    assert vocabulary is not None
    ids = vocabulary.external_ids(range(1, len(vocabulary) + 1))
    return polars.DataFrame({"song": ids, "year": [1980 + 2 * place for place in range(len(ids))]})


def test_a_condition_and_a_list_choose_the_items_of_all_users(ckpt: Path):
    table = items_of(ckpt)
    table.write_csv("songs.csv")
    listed = table["song"].to_list()[10:40]
    Path("list.txt").write_text("\n".join(map(str, listed)))
    options = {"ckpt": str(ckpt), "top_k": 5, "part_users": 16}
    recommend(output="where", where="year > 2030", items="songs.csv", items_key="song", **options)
    recommend(output="listed", candidates="list.txt", **options)
    recommend(output="both", where="year > 2030", items="songs.csv", items_key="song", candidates="list.txt", **options)
    model, log = load(ckpt), log_of(ckpt)
    late = Candidates.where("year > 2030", "songs.csv", model.item_vocabulary, key="song")
    assert_frame_equal(read("where"), model.recommend(log, 5, candidates=late))
    assert_frame_equal(read("listed"), model.recommend(log, 5, candidates=listed))
    in_list = Candidates.of_items(listed, model.item_vocabulary)
    assert_frame_equal(read("both"), model.recommend(log, 5, candidates=late & in_list))
    assert set(read("both")["item_id"]) <= set(listed)


def test_a_job_with_other_candidates_is_another_job(ckpt: Path):
    items_of(ckpt).rename({"song": "item_id"}).write_parquet("items.parquet")
    options = {"ckpt": str(ckpt), "output": "recs", "top_k": 5, "items": "items.parquet"}
    recommend(where="year > 2030", **options)
    recommend(where="year > 2030", **options)
    assert summary_of("recs")["users"] == 60
    with pytest.raises(InputError, match="candidates"):
        recommend(where="year > 2032", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "year > 2030"}, "has no columns of items, which conditions read: name them in data.schema.items"),
        ({"where": "year > 9999", "items": "items.csv"}, r"where='year > 9999' leaves none of the \d+ items"),
        ({"where": "yeer > 1", "items": "items.csv"}, "where='yeer > 1': it has the column 'yeer'.*did you mean year"),
        ({"candidates": "list.txt"}, r"candidates='list.txt' has 99999, which is not in the catalogue of \d+ items"),
    ],
)
def test_what_leaves_nothing_or_is_unknown_is_refused(ckpt: Path, options: dict[str, str], message: str):
    items_of(ckpt).rename({"song": "item_id"}).write_csv("items.csv")
    Path("list.txt").write_text("99999\n")
    with pytest.raises(InputError, match=message):
        recommend(ckpt=str(ckpt), output="recs", top_k=5, **options)
    assert not Path("recs").exists()


def test_missing_files_are_named(ckpt: Path):
    for name, options in {"candidates": {}, "items": {"where": "a = 1"}}.items():
        with pytest.raises(MissingInputError, match=f"{name}='gone' does not exist"):
            recommend(ckpt=str(ckpt), output="recs", **{**options, name: "gone"})


def test_the_columns_of_the_store_are_read_without_a_table(tmp_path: Path):
    events = polars.DataFrame(
        {"user_id": [1, 2, 3] * 5, "item_id": [1 + place % 6 for place in range(15)], "timestamp": range(15)}
    )
    events.write_csv("events.csv")
    polars.DataFrame({"id": range(1, 7), "genres": ["jazz|pop", "jazz", "pop", "folk", "folk|jazz", None]}).write_csv(
        "i.csv"
    )
    log = Table("events.csv", items={"path": "i.csv", "key": "id"})

    def build(data: SequenceDataModule) -> SASRec:
        torch.manual_seed(0)
        return SASRec(data.num_items, d_model=8, max_length=8)

    model, data, trainer = one_step(build, log, tmp_path / "run", Schema(items={"genres": "categories"}))
    trainer.save_checkpoint("model.ckpt")
    words = ["--ckpt", "model.ckpt", "--top-k", "6", "--filter-seen", "false"]
    main(["recommend", *words, "--output", "recs", "--where", "genres has 'jazz'"])
    assert set(read("recs")["item_id"]) == {1, 2, 5}
    # A trainer's prediction too.
    writer = RecommendationWriter("lists", top_k=6, filter_seen=False, where="genres has 'jazz'")
    predicting = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[writer])
    predicting.predict(model, data)
    assert set(read("lists")["item_id"]) == {1, 2, 5}
