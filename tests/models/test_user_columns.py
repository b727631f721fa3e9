"""Models that read columns of users: training, evaluation, recommending, sessions, bulk and export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from seqrec import Event, Schema, SessionRecommender, Table, export, load
from seqrec.catalogue import content as content_module
from seqrec.cli import main
from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import InputError, StoreError
from seqrec.models import GRU4Rec, SASRec, SequentialRecommender, evaluate
from seqrec.training.losses import FullSoftmax
from seqrec.types import History

NUM_USERS, NUM_ITEMS = 60, 12
SCHEMA = Schema(users={"group": "categorical", "age": "numeric", "tastes": "categories"})
COLUMNS = ["group", "age", "tastes"]


def write_log(folder: Path, num_users: int = NUM_USERS) -> Table:
    """After an item of all, users of group a take an even item, those of group b an odd one; some have no values."""
    rng = np.random.default_rng(0)
    rows = [
        (f"user {user:02}", int(2 * rng.integers(NUM_ITEMS // 2) + user % 2) if time % 2 else 100, time)
        for user in range(num_users)
        for time in range(8)
    ]
    schema = ["user_id", "item_id", "timestamp"]
    polars.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "log.parquet")
    users = polars.DataFrame(
        {
            "who": [f"user {user:02}" for user in range(num_users) if user % 10],
            "group": ["ab"[user % 2] for user in range(num_users) if user % 10],
            "age": [None if user % 3 else 20.0 + user for user in range(num_users) if user % 10],
            "tastes": [["x", "y"][: user % 3] for user in range(num_users) if user % 10],
        }
    )
    users.write_parquet(folder / "users.parquet")
    return Table(str(folder / "log.parquet"), users={"path": str(folder / "users.parquet"), "key": "who"})


@pytest.fixture
def data(tmp_path: Path) -> SequenceDataModule:
    return SequenceDataModule(
        write_log(tmp_path), store=str(tmp_path / "store"), schema=SCHEMA, max_length=8, batch_size=16
    )


def build(
    data: SequenceDataModule,
    kind: type[SequentialRecommender] = GRU4Rec,
    columns: list[str] = COLUMNS,
    **settings: Any,
) -> SequentialRecommender:
    torch.manual_seed(0)
    defaults = {"d_model": 16, "dropout": 0.0, "max_length": 8, "positions": False, "loss": FullSoftmax()}
    return kind(
        data.num_items,
        num_users=data.num_users,
        user_columns=columns,
        log_user_columns=data.user_columns,
        **{**defaults, **settings},
    )


def enlarged(model: SequentialRecommender, data: SequenceDataModule) -> SequentialRecommender:
    """The model with the store's columns and with vectors of users that matter."""
    model.use_store(data.store)
    with torch.no_grad():
        for weight in model.users.parameters():
            weight.normal_(std=0.5)
        model.users.table.weight[0] = 0
        for column in model.users.content.columns:
            if column.sizes["kind"] != "numeric":
                column.weight[0] = 0
    return model.eval()


def user_vectors(model: SequentialRecommender, data: SequenceDataModule) -> torch.Tensor:
    """Vectors (U + 1, D) of users, value by value."""
    group, age, tastes = model.users.content.columns
    store, found = data.store, []
    for user in range(data.num_users + 1):
        vector = torch.zeros(16)
        if user and model.users.table.weight.shape[1]:
            vector = vector + model.users.table.weight[user]
        if code := int(store.user_columns["group"].values[user]):
            vector = vector + group.weight[code]
        column = store.user_columns["age"]
        if not np.isnan(number := column.values[user]):
            vector = vector + (float(number) - column.mean) / column.std * age.weight[0]
        column = store.user_columns["tastes"]
        if codes := column.values[column.offsets[user] : column.offsets[user + 1]].tolist():
            vector = vector + tastes.weight[codes].mean(0)
        found.append(vector)
    return torch.stack(found)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("held", [0, 1 << 20])
def test_users_add_what_their_columns_say_to_each_event(
    own: bool, held: int, data: SequenceDataModule, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(content_module, "HELD_BYTES", held)
    model = enlarged(build(data, user_embedding=own), data)
    expected = user_vectors(model, data)
    assert not expected[0].any()
    missing = [user for user in range(1, data.num_users + 1) if not data.store.user_columns["group"].values[user]]
    assert len(missing) == NUM_USERS // 10
    assert expected[missing].any() == own
    users = torch.arange(data.num_users + 1)
    history = History(torch.ones(len(users), 3, dtype=torch.int64), torch.full((len(users),), 3))
    x = torch.zeros(len(users), 3, 16)
    for training in (False, True):
        found = model.train(training).encoder_input(x, history, users)
        torch.testing.assert_close(found, expected.unsqueeze(1).expand_as(found), atol=1e-6, rtol=1e-5)
    assert not model.encoder_input(x, history, None).any()


@pytest.mark.parametrize(
    ("kind", "settings"), [(GRU4Rec, {}), (SASRec, {"rotary": True}), (GRU4Rec, {"user_embedding": True})]
)
def test_streams_sessions_and_lists_are_those_of_the_full_pass(
    kind: type[SequentialRecommender], settings: dict[str, Any], data: SequenceDataModule, tmp_path: Path
):
    model = enlarged(build(data, kind, **settings), data)
    names = ["user 01", "user 02", "user 10", "stranger"]
    ids = torch.from_numpy(data.store.user_vocabulary.lookup(names))
    items = torch.tensor([[1, 2, 3, 4]]).expand(4, -1)
    whole = model(History(items, torch.full((4,), 4)), ids)
    state = model.init_state(4)
    for event in range(4):
        states, state = model.step(items[:, event], state, ids)
        torch.testing.assert_close(states, whole[:, event], atol=1e-5, rtol=0)
    external = data.store.item_vocabulary.external_ids(items[0].numpy()).tolist()
    frame = polars.DataFrame({"user_id": np.repeat(names, 4), "item_id": external * 4, "timestamp": list(range(4)) * 4})
    best = model.recommend(frame, 5)
    sessions = SessionRecommender(model)
    sessions.observe_many([Event(name, item) for name in names for item in external])
    lists = {}
    for name in names:
        lists[name] = [item for item, _ in sessions.recommend(name, 5)]
        assert best.filter(polars.col("user_id") == name)["item_id"].to_list() == lists[name]
    assert lists["user 01"] != lists["user 02"]
    # A user without columns is like a stranger, unless it has a vector of its own.
    assert (lists["user 10"] == lists["stranger"]) != bool(settings.get("user_embedding"))
    assert lists["stranger"] == model.recommend([external], 5)[0]


def test_a_known_effect_is_learned_and_kept_by_checkpoints_and_exports(
    data: SequenceDataModule, tmp_path: Path, make_trainer: Callable[..., Any]
):
    values = {}
    for columns in ([], ["group"]):
        model = build(data, columns=columns)
        model.lr = 1e-2
        trainer = make_trainer(max_epochs=12, limit_val_batches=0)
        trainer.fit(model, data)
        model.protocol = model.protocol.on(data.split, data.event_order)
        values[bool(columns)] = evaluate(model, data.test_dataloader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt", store=data.store_directory)
    assert evaluate(loaded, data.test_dataloader()) == values[True]
    # Nothing but the column shows the group of a user who has only the item of all.
    frame = polars.DataFrame({"user_id": ["user 01", "user 02"], "item_id": [100, 100]})
    lists = loaded.recommend(frame, 5).partition_by("user_id", maintain_order=True)
    parities = [[item % 2 for item in each["item_id"].to_list()] for each in lists]
    assert parities == [[1] * 5, [0] * 5]
    export(loaded, tmp_path / "exported", format="torch")
    assert (tmp_path / "exported").is_dir()


def test_large_columns_stay_in_the_store(
    data: SequenceDataModule, tmp_path: Path, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(content_module, "HELD_BYTES", 0)
    model = build(data)
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert not any("values" in name for name in model.state_dict())
    loaded = load(tmp_path / "model.ckpt", store=data.store_directory)
    assert evaluate(loaded, data.test_dataloader()) == evaluate(model, data.test_dataloader())
    bare = GRU4Rec.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    with pytest.raises(InputError, match=r"the model reads users\.group, but has not got that column yet"):
        bare.recommend(History(torch.tensor([[1]]), torch.tensor([1])), 3)


def test_a_model_of_a_config_writes_the_same_lists_in_bulk(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path)
    table = ["--data.source.path", "log.parquet", "--data.source.users", "{path: users.parquet, key: who}"]
    schema = ["--data.schema.users", "{group: categorical, age: numeric}"]
    small = ["--model", "GRU4Rec", "--model.d_model", "8", "--model.positions", "false", "--trainer.max_epochs", "1"]
    main(["fit", "--config", "own_log", *table, *schema, *small, "--model.user_columns", "[group, age]"])
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    main(["recommend", "--ckpt", str(checkpoint), "--output", "lists.parquet", "--top_k", "3"])
    model = load(checkpoint)
    assert model.hparams["user_columns"] == ["group", "age"]
    expected = model.recommend(polars.read_parquet("log.parquet"), 3)
    found = polars.read_parquet("lists.parquet").join(expected, on=["user_id", "item_id", "rank"])
    assert len(found) == len(expected)


def test_what_cannot_be_read_is_refused(data: SequenceDataModule, tmp_path: Path):
    with pytest.raises(
        InputError, match=r"user_columns: no column 'ages' of users; known: group, age, tastes; did you mean age"
    ):
        build(data, columns=["ages"])
    with pytest.raises(InputError, match=r"known: none\. Add it to data\.schema\.users; .* log_user_columns=store\."):
        GRU4Rec(9, num_users=3, user_columns=["age"])
    with pytest.raises(InputError, match=r"user_columns='age' must be a list of names, as in \[age\]"):
        build(data, columns="age")
    with pytest.raises(InputError, match="user_columns needs num_users"):
        GRU4Rec(9, user_columns=["age"], log_user_columns=data.user_columns)


def test_a_log_with_other_users_is_refused(data: SequenceDataModule, tmp_path: Path, make_trainer: Callable[..., Any]):
    model = build(data)
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(model, data)
    (tmp_path / "other").mkdir()
    other = SequenceDataModule(
        write_log(tmp_path / "other", NUM_USERS + 5), store=str(tmp_path / "other" / "store"), schema=SCHEMA
    )
    with pytest.raises(StoreError, match=r"has other users than .* or reads their columns \(user_columns\)"):
        make_trainer().test(model, other)
