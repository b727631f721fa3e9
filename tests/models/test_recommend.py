from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars
import pytest
import torch

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.models import Popularity, SASRec
from seqrec.types import History, SequenceBatch

NAMES = [f"song-{letter}" for letter in "abcdefghijkl"]
HISTORIES = [list("abc"), list("ghijkl"), list("d"), list("fedcb"), list("ab")]
HISTORIES = [[f"song-{letter}" for letter in history] for history in HISTORIES]


@pytest.fixture
def model() -> SASRec:
    return build()


def build(**settings: Any) -> SASRec:
    torch.manual_seed(0)
    model = SASRec(len(NAMES), d_model=8, max_length=4, **settings)
    torch.nn.init.normal_(model.items.weight[1:].detach())
    model.item_vocabulary = Vocabulary(NAMES)
    return model


@torch.no_grad()
def naive(model: SASRec, history: list[str], top_k: int, *, filter_seen: bool) -> list[str]:
    """One user at a time, without padding: score every item and sort."""
    newest = [NAMES.index(name) + 1 for name in history][-4:]
    model.eval()
    state = model(History(torch.tensor([newest]), torch.tensor([len(newest)])))[0, -1]
    model.train()
    scores = {name: float(model.items.weight[row + 1] @ state) for row, name in enumerate(NAMES)}
    allowed = [name for name in NAMES if not (filter_seen and name in history)]
    return sorted(allowed, key=scores.__getitem__, reverse=True)[:top_k]


@pytest.mark.parametrize("batch_size", [1, 2, 128])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_recommendations_equal_a_naive_computation_in_the_order_given(
    model: SASRec, batch_size: int, filter_seen: bool
):
    best = model.recommend(HISTORIES, top_k=5, filter_seen=filter_seen, batch_size=batch_size)
    assert best == [naive(model, history, 5, filter_seen=filter_seen) for history in HISTORIES]


def test_seen_items_are_left_out_even_where_the_model_no_longer_sees_them(model: SASRec):
    (best,) = model.recommend([NAMES[:9]], top_k=12)
    assert sorted(best) == NAMES[9:]
    (all_items,) = model.recommend([NAMES[:9]], top_k=12, filter_seen=False)
    assert sorted(all_items) == NAMES


def test_max_length_cuts_to_the_newest_events(model: SASRec):
    long, short = [["song-a", "song-b", "song-c", "song-d"]], [["song-c", "song-d"]]
    cut = model.recommend(long, max_length=2, filter_seen=False)
    assert cut == model.recommend(short, filter_seen=False)


def test_unknown_items_are_dropped_with_a_count(model: SASRec):
    histories = [["song-a", "noise", "song-b"], ["hum", "song-c", "hiss"]]
    with pytest.warns(UserWarning, match="dropped 3 of 6 events with items that the model does not know"):
        best = model.recommend(histories)
    assert best == model.recommend([["song-a", "song-b"], ["song-c"]])


def test_the_warning_points_at_the_caller(model: SASRec):
    with pytest.warns(UserWarning, match="dropped 1 of 2") as caught:
        model.recommend([["song-a", "noise"]])
    assert caught[0].filename == __file__


def test_known_items_alone_give_no_warning(model: SASRec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.recommend(HISTORIES)


@pytest.mark.parametrize(("history", "unknown"), [([], 0), (["noise", "hum"], 2)])
def test_a_history_without_known_items_is_refused(model: SASRec, history: list[str], unknown: int):
    with pytest.raises(InputError, match=rf"history 1 has no item that the model knows \({unknown} unknown"):
        model.recommend([["song-a"], history])


@pytest.mark.parametrize("top_k", [0, -1, 13])
def test_top_k_out_of_range_is_refused(model: SASRec, top_k: int):
    with pytest.raises(InputError, match=rf"top_k={top_k} must be between 1 and num_items=12"):
        model.recommend(HISTORIES, top_k=top_k)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"max_length": -1}, "max_length=-1 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": -3}, "batch_size=-3 must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(model: SASRec, arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        model.recommend(HISTORIES, **arguments)


def test_more_events_than_the_model_has_positions_for_are_refused(model: SASRec):
    with pytest.raises(InputError, match="a history of 6 events exceeds max_length=4"):
        model.recommend(HISTORIES, max_length=10)


def test_a_vocabulary_of_another_catalogue_is_refused(model: SASRec):
    model.item_vocabulary = Vocabulary(["song-a", "song-b"])
    with pytest.raises(InputError, match=r"item_vocabulary has 2 items, but the model was trained on 12"):
        model.recommend(HISTORIES)


def test_a_model_without_the_logs_ids_says_where_to_get_them(model: SASRec):
    model.item_vocabulary = None
    with pytest.raises(InputError, match=r"load it with seqrec\.inference\.load"):
        model.recommend(HISTORIES)


def test_no_histories_give_no_recommendations(model: SASRec):
    assert model.recommend([]) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_comes_back(model: SASRec, training: bool):
    model.train(training).recommend(HISTORIES)
    assert model.training is training
    with pytest.raises(InputError, match="top_k=99"):
        model.recommend(HISTORIES, top_k=99)
    assert model.training is training


def test_popularity_recommends_the_most_frequent_unseen_items():
    popularity = Popularity.from_counts(np.array([0, 1, 9, 5, 7]))
    popularity.item_vocabulary = Vocabulary(np.array([10, 20, 30, 40]))
    assert popularity.recommend([[20], [10, 30]], top_k=2) == [[40, 30], [20, 40]]


def test_nobody_gets_a_blocked_item(model: SASRec):
    block = ["song-b", "song-k"]
    best = model.recommend(HISTORIES, 12, filter_seen=False, block=block)
    everything = model.recommend(HISTORIES, 12, filter_seen=False)
    assert best == [[name for name in names if name not in block] for names in everything]


def test_blocked_items_that_are_not_there_are_counted(model: SASRec):
    with pytest.warns(UserWarning, match="1 of 2 items of the block list are not in the cat") as caught:
        best = model.recommend(HISTORIES, block=["song-b", "noise"])
    assert caught[0].filename == __file__
    assert best == model.recommend(HISTORIES, block=["song-b"])


@pytest.mark.parametrize(
    ("block", "message"),
    [("song-a", "block='song-a' must be a collection"), ([1.5], "block: external id 1.5")],
)
def test_a_block_list_of_another_kind_is_refused(model: SASRec, block: Any, message: str):
    with pytest.raises(InputError, match=message):
        model.recommend(HISTORIES, block=block)


@pytest.mark.parametrize(
    ("histories", "message"),
    [(["song-a"], "history 0 is 'song-a'; give a list"), ([[None]], "history 0: external id None must be")],
)
def test_histories_of_another_kind_are_refused(model: SASRec, histories: Any, message: str):
    with pytest.raises(InputError, match=message):
        model.recommend(histories)


def frame_of(histories: list[list[str]], users: list[Any]) -> polars.DataFrame:
    """The events of all users in turn, so that each one's are spread over the frame."""
    rows = [(turn, users[row], name) for row, names in enumerate(histories) for turn, name in enumerate(names)]
    rows.sort(key=lambda row: row[0])
    return polars.DataFrame(
        {"user_id": [user for _, user, _ in rows], "item_id": [name for *_, name in rows]},
    ).with_columns(timestamp=polars.Series([turn for turn, *_ in rows]))


@pytest.mark.parametrize("users", [[5, 3, 9, 1, 7], ["eve", "bob", "ann", "dan", "cat"]])
def test_a_frame_gives_a_frame_with_the_lists_items(model: SASRec, users: list[Any]):
    expected = model.recommend(HISTORIES, 5)
    found = model.recommend(frame_of(HISTORIES, users).drop("timestamp"), 5)
    assert found.columns == ["user_id", "item_id", "rank", "score"]
    assert found["user_id"].unique(maintain_order=True).to_list() == users
    by_user = found.group_by("user_id", maintain_order=True)
    assert [rows["item_id"].to_list() for _, rows in by_user] == expected
    for _, rows in by_user:
        assert rows["rank"].to_list() == list(range(1, len(rows) + 1))
        assert rows["score"].is_sorted(descending=True)


@pytest.mark.parametrize("kind", [polars.Int64, polars.Datetime("ms"), polars.Date])
def test_a_frames_events_are_ordered_by_time_and_ties_by_row(model: SASRec, kind: Any):
    frame = frame_of(HISTORIES, [5, 3, 9, 1, 7]).with_columns(polars.col("timestamp").cast(kind))
    shuffled = frame.sort("timestamp", descending=True, maintain_order=True)
    for found in (model.recommend(shuffled, 5), model.recommend(shuffled.with_columns(timestamp=0), 5)):
        assert len(found) == 25
    assert (
        model.recommend(shuffled, 5)
        .sort("user_id", "rank")
        .equals(model.recommend(frame.drop("timestamp"), 5).sort("user_id", "rank"))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.lazy(), "histories is a LazyFrame; collect"),
        (lambda f: f["item_id"], "histories is a polars Series; give a DataFrame"),
        (lambda f: f.rename({"item_id": "song"}), "no column 'item_id'; it has user_id, song"),
        (
            lambda f: f.with_columns(item_id=polars.lit(None, polars.String)),
            "'item_id' of histories has 17 null",
        ),
        (
            lambda f: f.with_columns(user_id=0.5),
            "'user_id' of histories is Float64; it must be integers or str",
        ),
        (
            lambda f: f.with_columns(timestamp=polars.lit("now")),
            "'timestamp' .* it must be integers or times",
        ),
        (lambda f: f.with_columns(item_id=polars.lit("noise")), r"user_id=5 has no item .* \(3 unknown\)"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(model: SASRec, change: Any, message: str):
    with pytest.raises(InputError, match=message):
        model.recommend(change(frame_of(HISTORIES, [5, 3, 9, 1, 7])))


def test_users_that_training_knew_get_their_vector():
    model = build(user_embedding=True, num_users=2)
    model.user_vocabulary = Vocabulary(np.array([30, 50]))
    torch.nn.init.normal_(model.users.weight[1:].detach(), std=3)
    frame = frame_of([["song-a", "song-b"]] * 3, [50, 99, 30])
    scores = model.recommend(frame, 12)["score"].to_numpy().reshape(3, -1)
    unknown = model.recommend(History(torch.tensor([[1, 2]]), torch.tensor([2])), 12).scores[0, :10]
    np.testing.assert_allclose(scores[1], unknown, rtol=1e-5)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    assert np.abs(scores[2] - scores[1]).max() > 1e-3


def test_a_history_of_internal_ids_gives_internal_ids(model: SASRec):
    rows = [[NAMES.index(name) + 1 for name in names] for names in HISTORIES]
    lengths = torch.tensor([len(row) for row in rows])
    item_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    model.item_vocabulary = None
    found = model.recommend(History(item_ids, lengths), 12)
    assert found.user_ids.tolist() == [0] * len(rows)
    names = [[NAMES[item - 1] for item in row if item] for row in found.item_ids.tolist()]
    assert names == build().recommend(HISTORIES, 12)
    assert found.scores.isneginf().equal(found.item_ids == 0)


@pytest.mark.parametrize(
    ("item_ids", "length", "message"),
    [
        ([[1, 2]], 0, "history row 0 has no event"),
        ([[1, 13]], 2, r"items 1\.\.13, but the catalogue has 1\.\.12"),
    ],
)
def test_a_history_that_does_not_fit_is_refused(model: SASRec, item_ids: list[list[int]], length: int, message: str):
    with pytest.raises(InputError, match=message):
        model.recommend(History(torch.tensor(item_ids), torch.tensor([length])))


@pytest.mark.parametrize("written", ["20.0", " 20", "20"])
def test_ids_as_text_in_a_frame_are_read_by_the_rule_of_logs(written: str):
    popularity = Popularity.from_counts(np.array([0, 1, 9, 5, 7]))
    popularity.item_vocabulary = Vocabulary(np.array([10, 20, 30, 40]))
    best = popularity.recommend(polars.DataFrame({"user_id": [1], "item_id": [written]}), top_k=3)
    assert best["item_id"].to_list() == [40, 30, 10]


def test_text_in_a_frame_has_no_blanks_and_one_form_of_accents():
    popularity = Popularity.from_counts(np.array([0, 1, 9]))
    popularity.item_vocabulary = Vocabulary(["tea", "\u00e9t\u00e9"])
    for written in ("e\u0301te\u0301", " \u00e9t\u00e9 "):
        best = popularity.recommend(polars.DataFrame({"user_id": [1], "item_id": [written]}), top_k=1)
        assert best["item_id"].to_list() == ["tea"]


def test_a_block_list_of_other_ids_is_refused_and_one_of_unknown_items_named():
    popularity = Popularity.from_counts(np.array([0, 1, 9, 5, 7]))
    popularity.item_vocabulary = Vocabulary(np.array([10, 20, 30, 40]))
    with pytest.raises(InputError, match="block has no item id such as 10, but such as 'song-b'"):
        popularity.recommend([[20]], 2, block=["song-b", "song-c"])
    with pytest.warns(UserWarning, match="1 of 1 items .* such as '99'; no item is blocked"):
        popularity.recommend([[20]], 2, block=["99"])


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_threads_change_no_bit(model: SASRec, batch_size: int):
    frames, before = [], torch.get_num_threads()
    events = polars.DataFrame({"user_id": np.arange(60) % 20, "item_id": NAMES * 5})
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            frames.append(model.recommend(events, 5, batch_size=batch_size))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert frames[1].equals(frames[0])
    assert frames[2].equals(frames[0])


def test_an_error_in_one_thread_ends_all(model: SASRec, monkeypatch: pytest.MonkeyPatch):
    calls, before = [], torch.get_num_threads()

    def fails(batch: SequenceBatch) -> torch.Tensor:
        calls.append(torch.get_num_threads())
        raise InputError("no states")

    monkeypatch.setattr(model, "last_states", fails)
    torch.set_num_threads(2)
    try:
        with pytest.raises(InputError, match="no states"):
            model.recommend(HISTORIES, top_k=5, batch_size=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    # One of torch's threads in each, and none takes another batch.
    assert calls in ([1], [1, 1])
    assert model.training
