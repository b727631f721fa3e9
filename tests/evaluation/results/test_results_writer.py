"""The file that a test writes, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from forked_commands import ForkedCommand

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.data.splits import LastN
from seqrec.errors import InputError
from seqrec.evaluation.results import ResultsWriter, read_results, writer
from seqrec.evaluation.results.file import popularity_bounds
from seqrec.models import MambaRec, Popularity

SOURCE = {"num_users": 37, "num_items": 50, "mean_events": 12}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data() -> SequenceDataModule:
    return SequenceDataModule(Synthetic(**SOURCE), store="store", max_length=10, eval_batch_size=5)


@pytest.fixture
def model(data: SequenceDataModule) -> MambaRec:
    torch.manual_seed(0)
    return MambaRec(data.num_items, d_model=8, num_layers=1, d_state=4, max_length=10)


def trainer(*callbacks: pl.Callback, **options: object) -> pl.Trainer:
    plain = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **plain | options)


def files() -> list[str]:
    """What is there beside the store."""
    return sorted(path.name for path in Path().iterdir() if not path.name.startswith("store"))


def test_the_file_has_a_row_a_user_with_the_logs_own_ids_and_what_is_known_of_the_target(
    data: SequenceDataModule, model: MambaRec
):
    trainer(ResultsWriter("results.parquet")).test(model, data, verbose=False)
    results, store, counts = read_results("results.parquet"), data.store, data.train_item_counts()
    stops = data.split.history_stops(store, "test")
    starts, targets = store.offsets[:-1], store.item_ids[stops]
    frame = results.frame
    assert frame["user_id"].to_list() == list(store.user_vocabulary.external_ids(np.arange(1, 38)))
    assert frame["item_id"].to_list() == list(store.item_vocabulary.external_ids(targets))
    assert frame["history_length"].to_list() == (stops - starts).tolist()
    assert frame["item_train_events"].to_list() == counts[targets].tolist()
    assert frame["timestamp"].to_list() == store.timestamps[stops].tolist()
    seen = [targets[u] in store.item_ids[starts[u] : stops[u]] for u in range(37)]
    assert frame["repeated"].to_list() == seen
    header = results.header
    assert (header.model, header.protocol) == ("MambaRec (fresh weights)", model.protocol.id)
    assert header.settings == json.loads(json.dumps(model.protocol.describe()))
    assert header.num_items == data.num_items
    assert (header.head_from, header.torso_from) == popularity_bounds(counts)
    assert files() == ["results.parquet"]


def test_metrics_of_the_file_are_those_of_the_test(data: SequenceDataModule, model: MambaRec):
    (said,) = trainer(ResultsWriter("results.parquet")).test(model, data, verbose=False)
    names = ["HR@5", "HR@10", "NDCG@20"]
    found = read_results("results.parquet").metrics(names).mean(0)
    assert found == pytest.approx([said[f"test_{name}"] for name in names], abs=1e-6)


def test_several_targets_of_a_user_have_a_row_each(data: SequenceDataModule, model: MambaRec):
    data.split = LastN(2)
    (said,) = trainer(ResultsWriter("results.parquet")).test(model, data, verbose=False)
    results, store = read_results("results.parquet"), data.store
    found = set(zip(results.frame["user_id"], results.frame["item_id"], strict=True))
    users, items = store.user_vocabulary, store.item_vocabulary
    stops = store.offsets[1:].tolist()
    assert found == {
        (user, item)
        for user, stop in zip(users.external_ids(np.arange(1, 38)), stops, strict=True)
        for item in items.external_ids(store.item_ids[stop - 2 : stop])
    }
    assert results.num_users == 37
    names = ["HR@10", "NDCG@20", "Recall@5"]
    expected = [said[f"test_{name}"] for name in names]
    assert results.metrics(names).mean(0) == pytest.approx(expected, abs=1e-6)


def test_few_targets_are_held_at_a_time(data: SequenceDataModule, model: MambaRec, monkeypatch: pytest.MonkeyPatch):
    trainer(ResultsWriter("whole.parquet")).test(model, data, verbose=False)
    monkeypatch.setattr(writer, "HELD_TARGETS", 12)
    parts: list[int] = []
    write_part = ResultsWriter._write_part

    def count(callback: ResultsWriter, of: pl.Trainer) -> None:
        parts.append(sum(len(judged.rows) for judged in callback._waiting))
        write_part(callback, of)

    monkeypatch.setattr(ResultsWriter, "_write_part", count)
    trainer(ResultsWriter("parts.parquet")).test(model, data, verbose=False)
    # Batches of 5, and of 12 or more a part.
    assert parts == [15, 15, 7]
    assert read_results("parts.parquet").frame.equals(read_results("whole.parquet").frame)


def test_a_log_of_strings_keeps_its_ids(model: MambaRec):
    Path("log.csv").write_text("user,item\n" + "".join(f"u{u},i{(u + n) % 50}\n" for u in range(9) for n in range(5)))
    from seqrec.data.sources import Table

    data = SequenceDataModule(Table("log.csv", user="user", item="item", timestamp=None), store="named", max_length=10)
    popularity = Popularity.from_counts(data.train_item_counts())
    trainer(ResultsWriter("results.parquet")).test(popularity, data, verbose=False)
    frame = read_results("results.parquet").frame
    assert frame["user_id"].to_list() == [f"u{u}" for u in range(9)]
    assert frame["item_id"].to_list() == [f"i{u + 4}" for u in range(9)]
    assert frame["timestamp"].null_count() == 9
    assert frame.schema["timestamp"] == polars.Int64


def test_the_runs_folder_is_the_default_and_a_fast_dev_run_which_has_none_writes_nothing(
    data: SequenceDataModule, model: MambaRec
):
    logger = pl.loggers.CSVLogger("runs", name="")
    trainer(ResultsWriter(), logger=logger).test(model, data, verbose=False)
    assert read_results("runs/version_0").num_users == 37
    trainer(ResultsWriter(), logger=logger, fast_dev_run=True).test(model, data, verbose=False)
    trainer(ResultsWriter("none.parquet", write=False)).test(model, data, verbose=False)
    assert files() == ["runs"]


def test_a_test_that_fails_leaves_neither_parts_nor_a_file_but_keeps_the_old_one(
    data: SequenceDataModule, model: MambaRec, monkeypatch: pytest.MonkeyPatch
):
    trainer(ResultsWriter("results.parquet")).test(model, data, verbose=False)
    before = Path("results.parquet").read_bytes()
    monkeypatch.setattr(writer, "HELD_TARGETS", 1)
    monkeypatch.setattr(data.store.item_vocabulary, "external_ids", lambda ids: 1 / (len(ids) - 2))
    with pytest.raises(ZeroDivisionError):
        trainer(ResultsWriter("results.parquet")).test(model, data, verbose=False)
    assert Path("results.parquet").read_bytes() == before
    assert files() == ["results.parquet"]


def test_without_a_data_module_the_writer_says_what_it_needs(data: SequenceDataModule, model: MambaRec):
    with pytest.raises(InputError, match="ResultsWriter needs a SequenceDataModule"):
        trainer(ResultsWriter("results.parquet")).test(model, data.test_dataloader(), verbose=False)


def test_a_model_whose_test_step_returns_something_else_is_refused(data: SequenceDataModule, model: MambaRec):
    model.test_step = lambda batch, batch_idx: None
    with pytest.raises(TypeError, match=r"MambaRec\.test_step returned NoneType, expected JudgedTargets"):
        trainer(ResultsWriter("results.parquet")).test(model, data, verbose=False)


RUN = """
import lightning.pytorch as pl
import torch
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.evaluation.metrics import list_metrics, ranking_metrics
from seqrec.models import MambaRec
from seqrec.evaluation.exposures import ExposureReport
from seqrec.evaluation.list_report import ListReport
from seqrec.evaluation.results import ResultsWriter


class Sums(pl.Callback):
    def on_test_start(self, trainer, model):
        self.metrics = ranking_metrics("cutoff", several_targets=True)
        self.lists = list_metrics(torch.from_numpy(trainer.datamodule.train_item_counts()))

    def on_test_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.metrics.update(outputs)
        self.lists.update(model.predict_step(batch, batch_idx))

    def on_test_end(self, trainer, model):
        values = {**self.metrics.compute(), **self.lists.compute()}
        values |= {name: torch.tensor(value) for name, value in reports[0].values.items()}
        values |= {f"exposed {name}": torch.tensor(value) for name, value in reports[1].models["MambaRec"].items()}
        values["exposed users"] = torch.tensor(float(reports[1].users))
        values |= {f"{name} from": torch.tensor(pair[0]) for name, pair in reports[0].intervals.items()}
        if trainer.is_global_zero:
            with open(f"{trainer.world_size}.txt", "w") as file:
                file.writelines(f"{name} {value.item().hex()}\\n" for name, value in values.items())


# Two ranks first: they are forked, which Polars' threads in this process would not survive.
for ranks, strategy in ((2, "ddp_fork"), (1, "auto")):
    data = SequenceDataModule(
        Synthetic(num_users=37, num_items=50, mean_events=12), store="store", max_length=10, eval_batch_size=2 + ranks
    )
    reports = [
        ListReport(["Gini", "Novelty", "Repeats", "Diversity"], cutoffs=[5]),
        ExposureReport("shown.csv", "clicked = 0", item="item_id", timestamp="timestamp"),
    ]
    pl.seed_everything(0, verbose=False)
    model = MambaRec(data.num_items, d_model=8, num_layers=1, d_state=4, max_length=10)
    pl.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, logger=False, enable_progress_bar=False,
        callbacks=[*reports, Sums(), ResultsWriter(f"{ranks}.parquet")], enable_model_summary=False,
    ).test(model, data, verbose=False)
"""


@pytest.mark.process
def test_two_ranks_give_the_sums_of_one_to_the_last_digit_and_the_same_file(data: SequenceDataModule):
    assert data.store.num_users == 37
    log = data.source.scan().collect()
    later = log["timestamp"] + log["timestamp"].max() + 1
    log.with_columns(timestamp=later, clicked=log["item_id"] % 3).write_csv("shown.csv")
    done = ForkedCommand(Path.cwd(), "-c", RUN, log=Path("log.txt"))
    assert done.wait(300) == 0, Path("log.txt").read_text()
    said = Path("1.txt").read_text()
    assert len(said.splitlines()) == 15 + 4 + 6 + 3
    assert said == Path("2.txt").read_text()
    one, two = read_results("1.parquet"), read_results("2.parquet")
    assert two.frame.equals(one.frame)
    assert two.header == one.header
    assert files() == ["1.parquet", "1.txt", "2.parquet", "2.txt", "log.txt", "shown.csv"]
