"""Models that read columns of events, over all encoders."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from event_inputs import ALL_TIMES, COLUMNS, ENCODERS, ITEMS, TAB, build, part_of, random_history

import seqrec.models
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.event_columns import EventColumn
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.splits import LastN, Split
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders.column_embedding import ColumnEmbedding
from seqrec.errors import InputError, StoreError
from seqrec.inference.loading import load
from seqrec.models import MambaRec, SequentialRecommender
from seqrec.training.losses import FullSoftmax
from seqrec.types import History

LENGTH = 9
every_encoder = pytest.mark.parametrize("name", ENCODERS)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SCHEMA = Schema(events={"tab": "categorical", "watched": "numeric", "looks": "vector"})


@every_encoder
@pytest.mark.parametrize("column", ["tab", "watched", "looks"])
@torch.no_grad()
def test_a_column_of_an_event_changes_its_state_and_newer_ones_only(name: str, column: str):
    model, history = build(name, columns=COLUMNS), random_history([LENGTH])
    assert history.features is not None
    before = model(history)
    for changed in range(LENGTH):
        values = history.features[column].clone()
        values[0, changed] = (values[0, changed] + 1) % TAB.num_codes
        moved = (model(replace(history, features={**history.features, column: values})) - before).abs().amax(-1)[0]
        assert (moved[:changed] <= 1e-6).all(), f"an older event sees the column of event {changed}"
        assert moved[changed] > 0, f"event {changed} does not depend on its own column"


@every_encoder
@torch.no_grad()
def test_padding_changes_no_state_whatever_its_columns_contain(name: str):
    model, lengths = build(name, ALL_TIMES, COLUMNS), [LENGTH, 1, 4]
    history = random_history(lengths)
    assert history.features is not None
    padding = ~history.valid
    filled = {
        "tab": history.features["tab"] + 2 * padding,
        "watched": history.features["watched"] + 100 * padding,
        "looks": history.features["looks"] - 100 * padding.unsqueeze(-1),
    }
    batch, other = model(history), model(replace(history, features=filled))
    for row, length in enumerate(lengths):
        alone = model(part_of(history, 0, length, slice(row, row + 1)))[0]
        for states in (batch, other):
            torch.testing.assert_close(states[row, :length], alone, atol=1e-5, rtol=0)


@every_encoder
@torch.no_grad()
def test_step_chunk_and_full_pass_agree_with_columns_and_times(name: str):
    model, history = build(name, ALL_TIMES, COLUMNS), random_history([31, 1, 20])
    assert history.features is not None
    assert history.timestamps is not None
    whole = model(history)
    for cut in (1, 7, 30):
        _, state = model.extend(part_of(history, 0, cut), model.init_state(3))
        states, state = model.extend(part_of(history, cut, 31), state)
        later = history.lengths > cut
        torch.testing.assert_close(states[later, 0], whole[later, cut], atol=1e-5, rtol=0)
    state = model.init_state(1)
    for event in range(31):
        features = {column: values[:1, event] for column, values in history.features.items()}
        items, times = history.item_ids[:1, event], history.timestamps[:1, event]
        states, state = model.step(items, state, timestamps=times, features=features)
        torch.testing.assert_close(states, whole[:1, event], atol=1e-5, rtol=0)


@every_encoder
def test_every_weight_learns(name: str):
    model, history = build(name, columns=COLUMNS), random_history([LENGTH, 4])
    (model.train()(history) * torch.randn(2, LENGTH, 8)).square().sum().backward()
    assert model.column_embedding is not None
    for weight_name, weight in model.column_embedding.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.isfinite().all(), weight_name
        assert weight.grad.count_nonzero() > 0, weight_name


def test_the_columns_are_added_up_and_missing_ones_of_an_untrained_model_add_little():
    layer = ColumnEmbedding(COLUMNS, 8)
    features = random_history([5, 2]).features
    assert features is not None
    parts = [ColumnEmbedding([column], 8) for column in COLUMNS]
    for part, column in zip(parts, COLUMNS, strict=True):
        part.layers[f"column_{column.name}"] = layer.layers[f"column_{column.name}"]
    torch.testing.assert_close(layer(features, (2, 5)), sum(part(features, (2, 5)) for part in parts))
    missing = layer.missing(1, 1)
    for part, column in zip(parts, COLUMNS, strict=True):
        if column.kind != "numeric":
            assert part(missing, (1, 1)).count_nonzero() == 0
    # A number that is missing is the mean, and so is a NaN.
    unknown = {"watched": torch.full((1, 1), math.nan)}
    assert torch.equal(parts[1](unknown, (1, 1)), parts[1](missing, (1, 1)))
    # A column may have the name of any attribute of a module.
    assert ColumnEmbedding([EventColumn("type", "numeric"), EventColumn("items", "numeric")], 8)


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ({"tab": torch.ones(1, 2, dtype=torch.int64)}, r"features\['tab'\] is \(1, 2\), but must be \(1, 3\)"),
        ({"tab": torch.ones(1, 3)}, r"features\['tab'\] is torch.float32, but categorical needs codes, int64"),
        ({"tab": torch.tensor([[0, 1, 4]])}, r"features\['tab'\] has the codes 0\.\.4, but the column has 0\.\.3"),
        ({"tab": torch.tensor([[0, 1, -1]])}, r"the codes -1\.\.1"),
        ({"watched": torch.ones(1, 3, dtype=torch.int64)}, "numeric needs numbers"),
        ({"watched": torch.tensor([[0.0, math.inf, 1.0]])}, r"features\['watched'\] has a number that is not finite"),
        ({"looks": torch.zeros(1, 3, 4)}, r"features\['looks'\] is \(1, 3, 4\), but must be \(1, 3, 3\)"),
        ({"looks": torch.full((1, 3, 3), math.nan)}, r"features\['looks'\] has a number that is not finite"),
    ],
)
def test_features_that_do_not_suit_their_columns_are_refused_by_name(features: dict[str, torch.Tensor], named: str):
    model = build(columns=COLUMNS)
    assert model.column_embedding is not None
    features = model.column_embedding.missing(1, 3) | features
    refused(model, History(torch.tensor([[1, 2, 3]]), torch.tensor([3]), features=features), named)


def test_a_history_without_a_column_is_refused_by_its_name():
    model, history = build(columns=COLUMNS), History(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    refused(model, history, "reads the column 'tab' of events, but the history has no columns")
    tabs = {"tab": torch.ones(1, 3, dtype=torch.int64)}
    refused(model, replace(history, features=tabs), "reads the column 'watched' .* has only tab")
    with pytest.raises(InputError, match="reads the column 'tab'"):
        model.step(torch.tensor([1]), model.init_state(1))


def refused(model: SequentialRecommender, history: History, named: str) -> None:
    with pytest.raises(InputError, match=named):
        model.recommend(history, 5)
    with pytest.raises(InputError, match=named):
        model.extend(history, model.init_state(1))


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ("tab", r"event_columns='tab' must be a list of names, as in \[tab\]"),
        (["tab"], "'tab' is the name of a column; give log_columns=data.event_columns"),
        ([TAB, TAB], "event_columns has 'tab' twice"),
    ],
)
def test_columns_that_a_model_cannot_know_are_refused(columns: Any, named: str):
    with pytest.raises(InputError, match=named):
        MambaRec(ITEMS, event_columns=columns)


def test_a_name_that_the_log_does_not_have_is_refused_with_those_it_has():
    assert MambaRec(ITEMS, event_columns=["tab"], log_columns=COLUMNS).event_columns == (TAB,)
    with pytest.raises(InputError, match=r"no column 'tabs'; it has tab, watched, looks; did you mean tab\?"):
        MambaRec(ITEMS, event_columns=["tabs"], log_columns=COLUMNS)
    with pytest.raises(InputError, match=r"it has no columns of events; name it in data\.schema\.events"):
        MambaRec(ITEMS, event_columns=["tab"], log_columns=[])


def songs(model: SequentialRecommender) -> SequentialRecommender:
    model.item_vocabulary = Vocabulary([f"song-{number:02}" for number in range(ITEMS)])
    return model


FRAME = polars.DataFrame(
    {
        "user_id": ["ann", "ann", "bob", "ann"],
        "item_id": ["song-03", "song-04", "song-04", "song-09"],
        "timestamp": [900, 100, 500, 200],
        "tab": ["home", "search", "unheard of", None],
        "watched": [12.0, None, 36.0, math.nan],
        "looks": [[1.0, 2.0, 3.0], None, [0.5, 0.0, 0.0], [0.0, 0.0, 1.0]],
        "another": [1, 2, 3, 4],
    }
)
AS_HISTORY = History(
    torch.tensor([[5, 10, 4], [5, 0, 0]]),
    torch.tensor([3, 1]),
    timestamps=torch.tensor([[100, 200, 900], [500, 0, 0]]),
    features={
        "tab": torch.tensor([[2, 0, 1], [0, 0, 0]]),
        "watched": torch.tensor([[0.0, 0.0, -1.0], [2.0, 0.0, 0.0]]),
        "looks": torch.tensor(
            [[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 2.0, 3.0]], [[0.5, 0.0, 0.0], [0.0] * 3, [0.0] * 3]]
        ),
    },
)


@pytest.mark.parametrize("positions", [False, True])
def test_a_frame_with_the_logs_values_is_the_history_with_their_codes(positions: bool):
    model = songs(build(columns=COLUMNS, positions=positions))
    found, expected = model.recommend(FRAME, 4), model.recommend(AS_HISTORY, 4)
    torch.testing.assert_close(torch.tensor(found["score"].to_list()), expected.scores.flatten(), atol=1e-6, rtol=0)
    # Columns matter, those of the others too.
    other = model.recommend(FRAME.with_columns(tab=polars.lit("share")), 4)
    assert found["score"].to_list() != other["score"].to_list()
    # Only the known events are kept, with their columns.
    strange = polars.concat([FRAME, FRAME.with_columns(item_id=polars.lit("noise"))])
    with pytest.warns(UserWarning, match="dropped 4 of 8 events"):
        assert model.recommend(strange, 4).equals(found)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (FRAME.drop("tab"), "histories has no column 'tab', which the model reads; it has user_id, item_id"),
        (FRAME.with_columns(watched=polars.lit("long")), "row 0: the column 'watched' has 'long', but it is numeric"),
        (FRAME.with_columns(watched=polars.Series([1.0, 2.0, math.inf, 3.0])), "row 2: the column 'watched' has inf"),
        (
            FRAME.with_columns(tab=polars.Series([1.0, 2.0, 2.5, 3.0])),
            "row 2: the column 'tab' has 2.5, but it is categ",
        ),
        (
            FRAME.with_columns(looks=polars.Series([[1.0] * 3, [1.0] * 2] * 2)),
            r"row 1: the column 'looks' has \[1\.0, 1",
        ),
        (
            FRAME.with_columns(looks=polars.Series([[1.0] * 3, [math.nan] * 3] * 2)),
            r"row 1: the column 'looks' has \[nan, nan, nan\], but it is vector and needs a list of 3",
        ),
    ],
)
def test_a_frame_that_lacks_a_column_or_has_another_type_is_refused_by_column_and_row(
    change: polars.DataFrame, named: str
):
    with pytest.raises(InputError, match=named):
        songs(build(columns=COLUMNS)).recommend(change, 4)


def test_lists_of_items_have_no_columns():
    model = songs(build(columns=COLUMNS))
    with pytest.raises(InputError, match="the model reads columns of events: tab, watched, looks; give a frame"):
        model.recommend([["song-01"]], 4)
    with pytest.raises(InputError, match="the model reads columns of events"):
        model.explain(["song-01"], "song-02")


def test_a_model_without_columns_takes_frames_and_histories_that_have_some():
    plain = songs(build())
    assert plain.recommend(FRAME, 4).equals(plain.recommend(FRAME.drop("tab", "watched", "looks", "another"), 4))
    bare = replace(AS_HISTORY, features=None)
    assert torch.equal(plain.recommend(AS_HISTORY, 4).scores, plain.recommend(bare, 4).scores)


@pytest.mark.parametrize("stream", [False, True])
def test_an_explanation_leaves_events_out_with_their_columns(stream: bool):
    model = songs(build(columns=COLUMNS))
    ann = FRAME.filter(polars.col("user_id") == "ann")
    explained = model.explain(ann, "song-20", stream=stream)
    assert explained.item_ids == ["song-04", "song-09", "song-03"]

    def score(frame: polars.DataFrame) -> float:
        return model.recommend(frame, ITEMS, filter_seen=False).filter(polars.col("item_id") == "song-20")["score"][0]

    assert explained.score == pytest.approx(score(ann), abs=1e-5)
    for item, contribution in zip(explained.item_ids, explained.contributions.tolist(), strict=True):
        without = ann.filter(polars.col("item_id") != item)
        assert contribution == pytest.approx(explained.score - score(without), abs=1e-5)


def random_log(folder: Path, *, users: int, events: int, seed: int = 3) -> Path:
    """A log in which the group of an event, 0 to 3, tells which ten of 40 items the next one is of."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        groups, last = rng.integers(4, size=events), 0
        for step, group in enumerate(groups.tolist()):
            looks = np.eye(3)[min(group, 2)] * (group < 3)
            tab, watched = ["home", "live", "search", "share"][group], 100.0 * group + rng.normal()
            rows.append((user, 10 * last + int(rng.integers(10)), 1000 * user + step, tab, watched, looks.tolist()))
            last = group
    columns = ["user_id", "item_id", "timestamp", "tab", "watched", "looks"]
    polars.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def data_of(log: Path, store: Path, *, split: Split | None = None, **settings: Any) -> SequenceDataModule:
    source = Table(str(log), "user_id", "item_id", "timestamp")
    return SequenceDataModule(source, schema=SCHEMA, store=str(store), split=split, **{"max_length": 20} | settings)


@pytest.fixture(scope="module")
def known_effect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("effect")
    return random_log(folder, users=100, events=21)


@pytest.mark.parametrize("column", [None, "tab", "watched"])
def test_a_column_that_decides_the_next_item_is_found(column: str | None, known_effect: Path):
    """Ten of 40 items are possible next, and which ten only the columns tell: HR@10 is 1 with one of them, else .25."""
    data = data_of(known_effect, known_effect.with_name("store"), batch_size=8)
    columns = None if column is None else [column]
    torch.manual_seed(0)
    model = MambaRec(
        data.num_items,
        d_model=16,
        num_layers=1,
        positions=False,
        dropout=0.0,
        event_columns=columns,
        log_columns=data.event_columns,
        loss=FullSoftmax(),
    )
    model.lr = 0.01
    model.protocol = seqrec.FullRanking(filter_seen=False)
    trainer = pl.Trainer(max_epochs=12, enable_checkpointing=False, **QUIET)
    trainer.fit(model, data)
    (result,) = trainer.test(model, data, verbose=False)
    if column is None:
        assert result["test_HR@10"] < 0.5
    else:
        assert result["test_HR@10"] > 0.9


def test_a_checkpoint_alone_reads_the_logs_values(known_effect: Path, tmp_path: Path):
    data = data_of(known_effect, tmp_path / "store")
    columns = {"event_columns": ["watched", "tab"], "log_columns": data.event_columns}
    model = MambaRec(data.num_items, d_model=8, max_length=20, positions=False, **columns)
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt")
    assert loaded.event_columns == model.event_columns
    assert [column.name for column in loaded.event_columns] == ["watched", "tab"]
    tab = loaded.event_columns[1]
    assert tab.values == ["home", "live", "search", "share"]
    # The mean of the training part, which leaves out the two newest events of each user.
    log = polars.read_parquet(known_effect)
    training = log.group_by("user_id").agg(polars.col("watched").head(19)).explode("watched")
    assert loaded.event_columns[0].mean == pytest.approx(training["watched"].mean(), rel=1e-5)
    frame = log.filter(polars.col("user_id") < 3)
    assert model.recommend(frame, 5).equals(loaded.recommend(frame, 5))
    # What a trainer recommends from the store.
    (first, *_) = trainer.predict(model, data)
    scores = loaded.recommend(frame, 10)["score"].to_list()
    assert scores == pytest.approx(first.scores[:3].flatten().tolist(), abs=1e-5)


def test_a_trained_model_keeps_its_scales_on_another_split(known_effect: Path, tmp_path: Path):
    data = data_of(known_effect, tmp_path / "store")
    model = MambaRec(data.num_items, d_model=8, event_columns=["watched"], log_columns=data.event_columns)
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")

    def other() -> SequenceDataModule:
        return data_of(known_effect, tmp_path / "store", split=LastN(8))

    assert other().event_columns != data.event_columns
    scales = {"watched": (model.event_columns[0].mean, model.event_columns[0].std)}
    # A model that is loaded, and one that was made from the other split's scales and gets a checkpoint.
    split = other()
    trainer.test(load(tmp_path / "model.ckpt"), split, verbose=False)
    assert split.event_scales["watched"] == scales["watched"]
    split = other()
    made = MambaRec(data.num_items, d_model=8, event_columns=["watched"], log_columns=split.event_columns)
    assert made.event_columns != model.event_columns
    trainer.test(made, split, ckpt_path=tmp_path / "model.ckpt", verbose=False, weights_only=False)
    assert split.event_scales["watched"] == scales["watched"]
    assert made.event_columns == model.event_columns


def test_a_log_without_the_column_or_with_other_values_is_refused(known_effect: Path, tmp_path: Path):
    data = data_of(known_effect, tmp_path / "store")
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)

    def fit(*columns: EventColumn) -> None:
        trainer.fit(MambaRec(data.num_items, d_model=8, event_columns=columns), data)

    with pytest.raises(InputError, match="has no column 'device', which the model reads"):
        fit(EventColumn("device", "categorical", values=["phone"]))
    with pytest.raises(InputError, match=r"the column 'watched' is numeric, float32.* but the model reads it as"):
        fit(EventColumn("watched", "categorical", values=[1]))
    with pytest.raises(InputError, match="the column 'looks' is vector, 3 numbers"):
        fit(EventColumn("looks", "vector", width=2))
    with pytest.raises(StoreError, match="has other values of the column 'tab'"):
        fit(EventColumn("tab", "categorical", values=["home", "search"]))
