"""Items that nobody had met when a user was asked are no competitors of its targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import FullRanking, Popularity, Table
from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.splits import GlobalTime, LastN, LeaveOneOut, Split
from seqrec.errors import InputError
from seqrec.evaluation.results import ResultsWriter, compare, read_results
from seqrec.models import evaluate

NUM_ITEMS = 30


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Item i is first met at time 10 i; users begin at any time and like the newest items."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        for time in np.sort(rng.choice(np.arange(20, 10 * NUM_ITEMS), 8, replace=False)).tolist():
            item = max(1, time // 10 - int(rng.geometric(0.3)) + 1)
            rows.append((user, item, time))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_csv(tmp_path / "log.csv")
    return tmp_path / "log.csv"


def naive_ranks(data: SequenceDataModule, counts: np.ndarray) -> dict[tuple[int, int, int], int]:
    """Items above each target by (user, item, time), of those that occur in the log by the time of its list."""
    store, found = data.store, {}
    items, times = store.item_ids.astype(int).tolist(), np.asarray(store.timestamps).tolist()
    for batch in data.test_dataloader():
        held_out, offsets = batch.held_out, batch.held_out.offsets.tolist()
        for row, user in enumerate(batch.user_ids.tolist()):
            targets = held_out.item_ids[offsets[row] : offsets[row + 1]].tolist()
            begin, end = store.offsets[user - 1 : user + 1].tolist()
            lists = [(targets, held_out.timestamps[offsets[row]])]
            if data.split.prequential:
                lists = [([t], at) for t, at in zip(targets, held_out.timestamps[offsets[row] :], strict=False)]
            for listed, at in lists:
                known = {item for item, time in zip(items, times, strict=True) if time <= at}
                seen = {items[place] for place in range(begin, end) if times[place] < at}
                for target in listed:
                    others = (known - seen | set(listed)) - {target}
                    found[user, target, int(at)] = sum(counts[other] > counts[target] for other in others)
    return found


@pytest.mark.parametrize(
    "split", [LeaveOneOut(), LastN(2), GlobalTime(), GlobalTime(prequential=True)], ids=lambda split: split.id
)
def test_ranks_are_among_the_items_that_the_log_had_by_then(
    split: Split, log: Path, tmp_path: Path, make_trainer: Callable[..., Any]
):
    data = SequenceDataModule(Table(str(log)), store=str(tmp_path / "store"), split=split)
    # The later an item is first met, the higher its score.
    counts = data.first_event_times.argsort().argsort()
    files, means = {}, {}
    for protocol in (FullRanking(), FullRanking(alive_only=True)):
        model = Popularity.from_counts(counts)
        model.protocol = protocol
        files[protocol.alive_only] = tmp_path / f"{protocol.alive_only}.parquet"
        writer = ResultsWriter(str(files[protocol.alive_only]))
        (values,) = make_trainer(callbacks=[writer]).test(model, data, verbose=False)
        means[protocol.alive_only] = values["test_NDCG@10"]
        assert model.protocol.id.startswith("full-alive-seenout-" if protocol.alive_only else "full-seenout-")
    shape = {"several_targets": split.several_targets, "separate_lists": split.prequential}
    alone = evaluate(model, data.test_dataloader(), first_times=data.first_event_times, **shape)
    assert alone["NDCG@10"] == pytest.approx(means[True], abs=1e-6)
    assert means[True] > means[False]
    frame = read_results(files[True]).frame
    expected = sorted(naive_ranks(data, counts).values())
    assert sorted(frame["better"].to_list()) == expected
    assert sorted(read_results(files[False]).frame["better"].to_list()) != expected
    with pytest.raises(InputError, match=r"judged by different protocols, full-seenout-.* and full-alive-seenout-"):
        compare([read_results(file) for file in files.values()])


def test_a_log_without_times_is_refused(tmp_path: Path, make_trainer: Callable[..., Any]):
    rows = [(user, (user + step) % 9) for user in range(6) for step in range(5)]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_csv(tmp_path / "log.csv")
    source = Table(str(tmp_path / "log.csv"), timestamp=None)
    data = SequenceDataModule(source, store=str(tmp_path / "store"))
    model = Popularity.from_counts(data.train_item_counts())
    model.protocol = FullRanking(alive_only=True)
    with pytest.raises(InputError, match=r"the log has no timestamps, so it is unknown which items .*alive_only"):
        make_trainer().test(model, data, verbose=False)


def test_the_command_tests_a_model_and_its_baseline(log: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--config", "own_log", "--data.source.path", str(log), "--model", "GRU4Rec", "--model.d_model", "8"]
    small = ["--trainer.max_epochs", "1", "--data.filters.min_user_events", "3"]
    main(["fit", *words, *small, "--protocol", "FullRanking", "--protocol.alive_only", "true"])
    out = capsys.readouterr().out
    assert "protocol full-alive-seenout-tiemean-loo" in out
    assert "Popularity" in out
