"""`seqrec recommend` with a model that reads columns of events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from bulk_jobs import read
from polars.testing import assert_frame_equal
from trained_models import one_step

from seqrec.data.prepare import Filters, prepare
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.errors import InputError
from seqrec.inference.bulk.command import recommend
from seqrec.inference.loading import load
from seqrec.models import MambaRec

SCHEMA = Schema(events={"tab": "categorical", "watched": "numeric", "looks": "vector"})


def random_log(tabs: list[str], seed: int) -> polars.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (user, int(rng.integers(30)), step, tabs[rng.integers(len(tabs))], float(rng.normal(20, 8)), rng.normal(size=2))
        for user in range(25)
        for step in range(int(rng.integers(4, 12)))
    ]
    columns = [(u, i, t, tab, None if i % 7 == 0 else watched, looks.tolist()) for u, i, t, tab, watched, looks in rows]
    names = ["user_id", "item_id", "timestamp", "tab", "watched", "looks"]
    return polars.DataFrame(columns, schema=names, orient="row")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    random_log(["home", "search", "share"], 0).write_parquet(folder / "log.parquet")

    def build(data: Any) -> MambaRec:
        columns = {"event_columns": ["tab", "looks", "watched"], "log_columns": data.event_columns}
        return MambaRec(data.num_items, d_model=8, max_length=8, positions=False, **columns)

    model, _, trainer = one_step(build, Table(str(folder / "log.parquet")), folder, schema=SCHEMA)
    for table in (model.items, model.column_embedding):
        for weight in table.parameters():
            torch.nn.init.normal_(weight.detach())
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_users_of_the_log_of_a_table_and_of_another_store_get_what_the_model_recommends(ckpt: Path):
    recommend(ckpt=str(ckpt), output="own", top_k=5)
    assert_frame_equal(read("own"), load(ckpt).recommend(random_log(["home", "search", "share"], 0), 5))
    # Other values, whose codes are others there, and one that the model does not know.
    new = random_log(["apart", "search", "home"], 1)
    new.write_parquet("new.parquet")
    recommend(ckpt=str(ckpt), output="of_table", input="new.parquet", top_k=5, part_users=7)
    expected = load(ckpt).recommend(new, 5)
    assert_frame_equal(read("of_table"), expected)
    prepare(Table("new.parquet"), Filters(), "store", schema=SCHEMA)
    recommend(ckpt=str(ckpt), output="of_store", input="store", top_k=5)
    assert_frame_equal(read("of_store"), expected)
    assert not expected.equals(load(ckpt).recommend(new.with_columns(tab=polars.lit("home")), 5))


def test_an_input_without_a_column_is_refused_by_its_name(ckpt: Path):
    bare = random_log(["home"], 1).drop("tab")
    bare.write_parquet("bare.parquet")
    with pytest.raises(InputError, match="tab"):
        recommend(ckpt=str(ckpt), output="of_table", input="bare.parquet")
    prepare(Table("bare.parquet"), Filters(), "store", schema=Schema(events={"watched": "numeric", "looks": "vector"}))
    with pytest.raises(InputError, match="store has no column 'tab', which the model reads"):
        recommend(ckpt=str(ckpt), output="of_store", input="store")
