"""Item vectors with content are what a plain composition gives, in training, ranking, recommending and checkpoints."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from loss_gradients import gradients
from torch import Tensor

from seqrec import FaissSearch, InputError, ItemTable, Schema, Table, export, load
from seqrec.catalogue import content as content_module
from seqrec.catalogue.content import ItemContent
from seqrec.data.columns import Column
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prepare import Filters
from seqrec.data.vocabulary import Vocabulary
from seqrec.models import GRU4Rec, SequentialRecommender
from seqrec.training.losses import BCE, GBCE, FullSoftmax, InBatchSoftmax, Loss, SampledSoftmax
from seqrec.training.negatives import UniformNegatives
from seqrec.types import SequenceBatch

MakeBatch = Callable[..., SequenceBatch]
NUM_ITEMS, WIDTH = 40, 8
LOSSES: dict[str, Callable[[], Loss]] = {
    "FullSoftmax": FullSoftmax,
    "BCE": BCE,
    "GBCE": lambda: GBCE(UniformNegatives(7)),
    "SampledSoftmax": lambda: SampledSoftmax(UniformNegatives(9, exclude_seen=False, shared=True)),
    "InBatchSoftmax": InBatchSoftmax,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "dot product": {},
    "cosine": {"temperature": 0.2},
    "bias": {"bias": True, "temperature": 0.2},
    "content alone": {"ids": False},
    "content alone, bias": {"ids": False, "bias": True},
}


def columns() -> dict[str, Column]:
    """One column of each kind; item 1 has no value in any of them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, NUM_ITEMS + 1)
    counts[:2] = 0
    offsets = np.concatenate([[0], np.cumsum(counts)])
    codes, numbers = rng.integers(1, 4, NUM_ITEMS + 1), rng.normal(5, 2, NUM_ITEMS + 1)
    vectors = rng.normal(size=(NUM_ITEMS + 1, 5))
    codes[:2], numbers[:2], vectors[:2] = 0, np.nan, 0
    words = Vocabulary(["a", "b", "c"])
    return {
        "maker": Column("categorical", codes.astype(np.uint16), vocabulary=words),
        "genres": Column("categories", rng.integers(1, 4, offsets[-1]).astype(np.uint8), 0, words, offsets),
        "year": Column("numeric", numbers.astype(np.float32), mean=5.0, std=2.0),
        "text": Column("vector", vectors.astype(np.float16)),
    }


def inputs(given: dict[str, Column]) -> list[Tensor]:
    """The columns as matrices (V, inputs), written out item by item."""
    maker, genres = torch.zeros(NUM_ITEMS + 1, 4), torch.zeros(NUM_ITEMS + 1, 4)
    for item in range(NUM_ITEMS + 1):
        if code := int(given["maker"].values[item]):
            maker[item, code] = 1
        own = given["genres"].values[given["genres"].offsets[item] : given["genres"].offsets[item + 1]]
        for code in own:
            genres[item, int(code)] += 1 / len(own)
    year = torch.from_numpy((given["year"].values - 5) / 2).nan_to_num().unsqueeze(1)
    text = torch.from_numpy(given["text"].values.astype(np.float64))
    text = text / text[text.any(1)].square().sum(1).mean().sqrt()
    return [each.double() for each in (maker, genres, year, text)]


def model(loss: Loss | None = None, *, read: bool = True, **table: Any) -> SequentialRecommender:
    torch.manual_seed(0)
    given = columns()
    settings = ItemTable(content=tuple(given), **{"id_dropout": None if "ids" in table else 0.0, **table})
    sizes = {name: column.sizes for name, column in given.items()}
    made = GRU4Rec(
        NUM_ITEMS, d_model=WIDTH, dropout=0.0, max_length=9, loss=loss, item_table=settings, item_columns=sizes
    ).double()
    if read:
        for each in (made.items, made.output_items):
            if each is not None:
                assert each.content is not None
                each.content.read(given)
    return made


def plain(made: SequentialRecommender, loss: Loss | None, **table: Any) -> SequentialRecommender:
    """The same model with a plain table that holds the composed vectors."""
    torch.manual_seed(0)
    own = {name: value for name, value in table.items() if name not in ("ids", "id_dropout", "sparse")}
    other = GRU4Rec(NUM_ITEMS, d_model=WIDTH, dropout=0.0, max_length=9, loss=loss, item_table=ItemTable(**own))
    other = other.double()
    other.encoder.load_state_dict(made.encoder.state_dict())
    other.positions.load_state_dict(made.positions.state_dict())
    weight = made.items.table.weight.detach() * made.items.trained.unsqueeze(1)
    ids = weight[:, :WIDTH] if made.item_table.ids else 0
    composed = ids + sum(
        x @ column.weight.detach() for x, column in zip(inputs(columns()), made.items.content.columns, strict=True)
    )
    biases = weight[:, WIDTH if made.item_table.ids else 0 :]
    with torch.no_grad():
        other.items.table.weight.copy_(torch.cat([composed, biases], 1))
    return other


@pytest.fixture
def batch(make_batch: MakeBatch) -> SequenceBatch:
    return make_batch([[3, 5, 5, 9], [7], [9, 3]], [11, 3, 40])


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_and_gradients_are_those_of_the_composition(name: str, variant: str, sparse: bool, batch: SequenceBatch):
    if sparse and (name == "FullSoftmax" or not VARIANTS[variant].get("ids", True)):
        pytest.skip("all rows have gradients, or none is learned")
    table = {**VARIANTS[variant], "sparse": sparse}
    made = model(LOSSES[name](), **table)
    other = plain(made, LOSSES[name](), **table)
    loss, found = gradients(made, batch)
    expected_loss, expected = gradients(other, batch)
    torch.testing.assert_close(loss, expected_loss)
    whole = expected["items.table.weight"]
    for place, x in enumerate(inputs(columns())):
        wanted = x.T @ whole[:, :WIDTH]
        if place < 2:
            wanted[0] = 0  # the code of missing values is not trained
        torch.testing.assert_close(found[f"items.content.columns.{place}.weight"], wanted)
    own = whole if made.item_table.ids else whole[:, WIDTH:]
    if own.shape[1]:
        got = found["items.table.weight"]
        assert got.is_sparse == sparse
        torch.testing.assert_close(got.to_dense() if sparse else got, own)
    torch.testing.assert_close(
        {key: value for key, value in found.items() if key.startswith("encoder")},
        {key: value for key, value in expected.items() if key.startswith("encoder")},
    )


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_ranking_recommending_and_search_use_the_composed_vectors(variant: str, batch: SequenceBatch):
    made = model(**VARIANTS[variant])
    made.items.use_trained_items(torch.arange(NUM_ITEMS + 1) % 5 > 0)
    other = plain(made, None, **VARIANTS[variant])
    expected = other.recommend(batch.history, top_k=7)
    found = made.recommend(batch.history, top_k=7)
    assert torch.equal(found.item_ids, expected.item_ids)
    torch.testing.assert_close(found.scores, expected.scores)
    made.eval(), other.eval()
    torch.testing.assert_close(made.last_states(batch), other.last_states(batch))
    torch.testing.assert_close(made.scorer().part(1, NUM_ITEMS), other.scorer().part(1, NUM_ITEMS))
    ranks = [each.protocol.judge(each.last_states(batch), batch, each.scorer()).ranks for each in (made, other)]
    assert torch.equal(ranks[0].better, ranks[1].better)


def test_similar_items_are_those_of_the_composed_vectors():
    made = model(bias=True)
    other = plain(made, None, bias=True)
    items = torch.tensor([3, 20])
    found, expected = made.similar_items(items, 6), other.similar_items(items, 6)
    assert torch.equal(found.item_ids, expected.item_ids)
    torch.testing.assert_close(found.scores, expected.scores)
    training = made.train().scorer().cosines(WIDTH).vectors(items)
    torch.testing.assert_close(training[:, :WIDTH], other.scorer().cosines(WIDTH).vectors(items))


def test_a_faiss_index_has_the_composed_vectors(batch: SequenceBatch):
    pytest.importorskip("faiss")
    made = model(temperature=0.2).float().eval()
    expected = made.recommend(batch.history, top_k=5)
    made.search = FaissSearch("ivf_flat", lists=1)
    made.search.prepare(made.scorer())
    found = made.recommend(batch.history, top_k=5)
    assert torch.equal(found.item_ids, expected.item_ids)
    assert made.search.counts() == {"exact_rows": 0}


def test_the_kept_vectors_follow_the_weights(batch: SequenceBatch):
    made = model(FullSoftmax()).float().eval()
    kept = made.items.whole()
    assert made.items.whole() is kept
    optimizer = made.optimizer.build(made)
    for module in made.modules():  # as a trainer does after validation, without a call of `train`
        module.training = True
    gradients(made, batch)
    optimizer.step()
    after = made.eval().items.whole()
    assert not torch.equal(after, kept)
    torch.testing.assert_close(after, made.items.rows(None).detach())
    with torch.no_grad():  # without a change of mode
        made.items.content.columns[0].weight[1:] += 1
    assert not torch.equal(made.items.whole(), after)


def test_items_without_training_events_have_only_their_content_and_are_no_negatives(batch: SequenceBatch):
    counts = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
    counts[[0, 20, 21]] = 0
    made = model(FullSoftmax(), temperature=0.2)
    made.items.use_trained_items(counts > 0)
    content = made.items.content(torch.tensor([20, 21]))
    torch.testing.assert_close(made.items.rows(torch.tensor([20, 21])), content)
    # The loss without their columns of scores.
    states = made.to_scoring_space(made(batch.history))[batch.history.valid]
    scores = made.scorer().score(states, torch.arange(1, NUM_ITEMS + 1).expand(len(states), -1))
    left = scores.masked_fill(counts[1:] == 0, -torch.inf)
    expected = torch.nn.functional.cross_entropy(left, batch.targets[batch.history.valid] - 1)
    loss, found = gradients(made, batch)
    torch.testing.assert_close(loss, expected.detach())
    assert not found["items.table.weight"][[20, 21]].any()
    sampled = model(SampledSoftmax(UniformNegatives(4000, exclude_seen=False, shared=True)))
    sampled.items.use_trained_items(counts > 0)
    others = model(SampledSoftmax(UniformNegatives(4000, exclude_seen=False, shared=True)))
    assert gradients(sampled, batch)[0] < gradients(others, batch)[0]
    own = gradients(sampled, batch)[1]["items.table.weight"]
    assert own[22].any()
    assert not own[[20, 21]].any()


def test_ids_are_dropped_by_default_if_content_stands_in():
    assert [ItemTable(content=("a",)).dropped_ids, ItemTable().dropped_ids] == [0.1, 0]
    assert ItemTable(content=("a",), ids=False).dropped_ids == 0
    assert ItemTable(content=("a",), id_dropout=0.0).dropped_ids == 0


def test_id_dropout_leaves_the_own_vectors_of_a_share_of_the_items_out():
    made = model(id_dropout=0.25)
    item_ids = torch.arange(1, NUM_ITEMS + 1)
    own = made.items.weight[1:].detach()
    torch.manual_seed(0)
    draws = [made.items.rows(item_ids).detach() - made.items.content(item_ids).detach() for _ in range(100)]
    dropped = torch.stack([(each == 0).all(1) for each in draws])
    assert 0.2 < dropped.double().mean() < 0.3
    for each, gone in zip(draws, dropped, strict=True):
        torch.testing.assert_close(each, own * ~gone.unsqueeze(1))
    made.eval()
    torch.testing.assert_close(made.items.rows(item_ids) - made.items.content(item_ids), made.items.weight[1:])


def test_a_model_without_its_columns_names_the_cure(batch: SequenceBatch):
    with pytest.raises(InputError, match=r"items\.maker, but has not got that column yet: call model\.use_store"):
        model(read=False)(batch.history)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": False}, r"ids=False leaves items without vectors: name columns"),
        ({"id_dropout": 0.5}, r"id_dropout=0\.5 needs item_table\.content"),
        ({"content": ("a",), "id_dropout": 1.0}, r"id_dropout=1\.0 must be at least 0 and below 1"),
        ({"content": ("a",), "ids": False, "id_dropout": 0.1}, r"id_dropout=0\.1 needs"),
        ({"content": ("a",), "ids": False, "sharded": True}, r"ids=False leaves no table whose rows could be spread"),
    ],
)
def test_settings_that_do_not_suit_each_other_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        ItemTable(**arguments)


def test_unknown_columns_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"no column 'yearr' of items; known: year; did you mean year\?"):
        GRU4Rec(3, item_table=ItemTable(content=("yearr",)), item_columns={"year": columns()["year"].sizes})
    content = ItemContent({"year": columns()["year"].sizes}, 4)
    with pytest.raises(InputError, match=r"reads items\.year, which the store has not: add it to data\.schema\.items"):
        content.read({})
    with pytest.raises(InputError, match=r"items\.year of the store is not the column .* mean=5\.0 \(here 7\.0\)"):
        content.read({"year": Column("numeric", columns()["year"].values, mean=7.0, std=2.0)})


@pytest.fixture
def log(tmp_path: Path) -> Table:
    """A log of 30 items of which the last ten occur in no event, with a table of all."""
    rng = np.random.default_rng(0)
    rows = [(user, int(item), time) for user in range(12) for time, item in enumerate(rng.integers(0, 20, 8))]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(tmp_path / "log.parquet")
    vectors = rng.normal(size=(30, 6)).astype(np.float16)
    np.save(tmp_path / "text.npy", vectors)
    genres = [["even" if item % 2 == 0 else "odd", "all"] for item in range(30)]
    items = pl.DataFrame({"item_id": list(range(30)), "genres": genres})
    items.write_parquet(tmp_path / "items.parquet")
    table = {"path": str(tmp_path / "items.parquet"), "key": "item_id", "vectors": {"text": str(tmp_path / "text.npy")}}
    return Table(str(tmp_path / "log.parquet"), items=table)


def data_of(log: Table, folder: Path, **arguments: Any) -> SequenceDataModule:
    return SequenceDataModule(
        log,
        store=str(folder / "store"),
        schema=Schema(items={"genres": "categories", "text": "vector"}),
        filters=Filters(items_without_events=True),
        max_length=8,
        **arguments,
    )


def trained(data: SequenceDataModule, make_trainer: Callable[..., Any], **table: Any) -> tuple[Any, Any]:
    made = GRU4Rec(
        data.num_items,
        d_model=8,
        max_length=8,
        positions=False,
        loss=FullSoftmax(),
        item_table=ItemTable(content=("genres", "text"), temperature=0.1, **table),
        item_columns=data.item_columns,
    )
    trainer = make_trainer(max_epochs=2)
    trainer.fit(made, data)
    return made, trainer


@pytest.mark.parametrize("held", [True, False], ids=["in the checkpoint", "in the store"])
def test_a_checkpoint_has_small_columns_and_names_large_ones(
    held: bool, log: Table, tmp_path: Path, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    if not held:
        monkeypatch.setattr(content_module, "HELD_BYTES", 350)  # the text has more
    data = data_of(log, tmp_path)
    made, trainer = trained(data, make_trainer)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    weights = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert ("items.content.columns.1.values" in weights) == held
    assert "items.content.columns.0.values" in weights
    expected = made.recommend([[3, 4], [7]], top_k=20)
    assert load(tmp_path / "model.ckpt", store=tmp_path / "store").recommend([[3, 4], [7]], top_k=20) == expected
    alone = GRU4Rec.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    if held:
        torch.testing.assert_close(alone.items.whole(), made.eval().items.whole())
    else:
        with pytest.raises(InputError, match=r"items\.text, .*too large for checkpoints.*store=FOLDER"):
            alone.items.whole()
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made.items))):
        items = getattr(copied, "items", copied)
        torch.testing.assert_close(items.eval().whole(), made.eval().items.whole())


def test_another_column_than_the_checkpoint_names_is_refused(
    log: Table, tmp_path: Path, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(content_module, "HELD_BYTES", 350)
    data = data_of(log, tmp_path)
    _, trainer = trained(data, make_trainer)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    np.save(tmp_path / "text.npy", np.ones((30, 6), np.float16))
    (tmp_path / "other").mkdir()
    other = data_of(log, tmp_path / "other")
    assert other.num_items == 30
    with pytest.raises(InputError, match=r"items\.text of the store is not the column .*sha256"):
        load(tmp_path / "model.ckpt", store=tmp_path / "other" / "store")
    fresh = GRU4Rec(
        30,
        d_model=8,
        max_length=8,
        positions=False,
        loss=FullSoftmax(),
        item_table=ItemTable(content=("genres", "text"), temperature=0.1),
        item_columns=other.item_columns,
    )
    with pytest.raises(InputError, match=r"items\.text of the store is not the column that the checkpoint's model"):
        make_trainer().test(fresh, other, ckpt_path=tmp_path / "model.ckpt")


def test_items_without_events_are_recommended_by_their_content(
    log: Table, tmp_path: Path, make_trainer: Callable[..., Any]
):
    made, _ = trained(data_of(log, tmp_path), make_trainer)
    assert made.items.trained.sum() == 20
    best = made.recommend([[3, 4]], top_k=28)[0]
    assert set(best) == set(range(30)) - {3, 4}
    # Those of equal content have equal scores, whatever their own vectors were at first.
    rows = made.eval().items.whole()[21:31]
    torch.testing.assert_close(rows, made.items.content(torch.arange(21, 31)).detach())
    assert made.recommend([[25, 4]], top_k=3)[0]


def test_an_exported_model_has_the_composed_vectors(log: Table, tmp_path: Path, make_trainer: Callable[..., Any]):
    made, _ = trained(data_of(log, tmp_path), make_trainer)
    export(made, tmp_path / "exported", format="torch")
    vectors = torch.from_numpy(np.load(tmp_path / "exported" / "candidates.npy"))
    torch.testing.assert_close(vectors, made.eval().scorer().part(0, 31))


@pytest.mark.parametrize("table", [{}, {"separate_output": True, "bias": True}], ids=["tied", "separate"])
def test_items_of_a_newer_table_are_recommended_without_training(
    table: dict[str, Any], log: Table, tmp_path: Path, make_trainer: Callable[..., Any]
):
    made, trainer = trained(data_of(log, tmp_path), make_trainer, **table)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    # Three more items, one of them before all others, and a genre that changes the codes of the others.
    vectors = np.load(tmp_path / "text.npy")
    np.save(tmp_path / "text.npy", np.concatenate([vectors, vectors[[3, 4, 5]]]))
    items = pl.read_parquet(tmp_path / "items.parquet")
    more = pl.DataFrame({"item_id": [-7, 30, 31], "genres": [["odd", "all"], ["even", "all"], ["odd", "a new one"]]})
    pl.concat([items, more]).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "newer").mkdir()
    newer = data_of(log, tmp_path / "newer")
    assert newer.num_items == 33
    loaded = load(tmp_path / "model.ckpt", store=newer.store_directory)
    assert isinstance(loaded, GRU4Rec)
    names = loaded.item_vocabulary
    of_old = torch.from_numpy(names.lookup(list(range(30))))
    for now, was in ((loaded.items, made.items), (loaded.output_items, made.output_items)):
        if was is not None:
            torch.testing.assert_close(now.whole()[of_old], was.eval().whole()[1:])
    # Items of equal content have equal vectors: here of a cold item and of the content of an old one.
    alike = {-7: 3, 30: 4}
    new, old = (torch.from_numpy(names.lookup(list(ids))) for ids in (alike.keys(), alike.values()))
    torch.testing.assert_close(loaded.items.whole()[new][:, :8], loaded.items.content(old).detach())
    assert not loaded.items.trained[new].any()
    best = loaded.recommend([[3, 4]], top_k=31)[0]
    assert set(best) == {*range(32), -7} - {3, 4}
    ranked = [item for item in best if item < 30 and item >= 0]
    assert ranked == made.recommend([[3, 4]], top_k=28)[0]


def test_a_newer_table_must_have_the_items_of_the_model(log: Table, tmp_path: Path, make_trainer: Callable[..., Any]):
    _, trainer = trained(data_of(log, tmp_path), make_trainer)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    np.save(tmp_path / "text.npy", np.load(tmp_path / "text.npy")[:25])
    pl.read_parquet(tmp_path / "items.parquet")[:25].write_parquet(tmp_path / "items.parquet")
    (tmp_path / "fewer").mkdir()
    fewer = data_of(log, tmp_path / "fewer")
    assert fewer.num_items == 25
    with pytest.raises(InputError, match=r"fewer/store lacks 5 of the 30 items that the model was trained on"):
        load(tmp_path / "model.ckpt", store=fewer.store_directory)
