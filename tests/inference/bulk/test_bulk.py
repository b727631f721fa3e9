"""`seqrec recommend`, run in this process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from bulk_jobs import COLUMNS, log_of, read, summary_of
from polars.testing import assert_frame_equal

import seqrec.inference.bulk.users as users_module
from seqrec.catalogue.search import FaissSearch
from seqrec.cli import main
from seqrec.data.store import EventStore
from seqrec.errors import InputError, MissingInputError
from seqrec.inference import load
from seqrec.inference.bulk import BulkUsers
from seqrec.inference.bulk.command import recommend
from seqrec.runs import checkpoints


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_all_users_of_the_log_get_what_the_model_recommends(ckpt: Path):
    recommend(ckpt=str(ckpt), output="recs.parquet", top_k=5, part_users=16, max_tokens=64)
    found = read("recs.parquet")
    assert found.columns == COLUMNS
    assert_frame_equal(found, load(ckpt).recommend(log_of(ckpt), 5))
    assert sorted(path.name for path in Path("recs.parquet").iterdir()) == [
        f"part-{part:06d}.parquet" for part in range(4)
    ]
    said = summary_of("recs")
    counted = {name: said[name] for name in ("users", "rows", "events", "parts", "users_left_out")}
    events = len(log_of(ckpt))
    assert counted == {"users": 60, "rows": 300, "events": events, "parts": 4, "users_left_out": 0}
    assert not Path("recs.parquet.work").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_other_users_is_read_with_what_the_model_knows_of_it(
    ckpt: Path, suffix: str, capsys: pytest.CaptureFixture[str]
):
    log = log_of(ckpt)
    new = log.filter(polars.col("user_id") % 3 > 0).with_columns(
        # Some users are known to the model, others are not, and one in four items is cold.
        user_id=polars.col("user_id") + polars.when(polars.col("user_id") % 2 == 0).then(1000).otherwise(0),
        item_id=polars.col("item_id") + polars.when(polars.col("item_id") % 4 == 0).then(9000).otherwise(0),
    )
    strangers = polars.DataFrame({"user_id": [7001, 7001, 7000], "item_id": [9000, 9004, 9008], "timestamp": [1] * 3})
    table = polars.concat([new, strangers]).rename({"user_id": "u", "item_id": "song", "timestamp": "at"})
    table = table.sample(fraction=1, shuffle=True, seed=0)
    getattr(table, f"write_{suffix}")(f"new.{suffix}")
    columns = {"user": "u", "item": "song", "timestamp": "at"}
    recommend(ckpt=str(ckpt), output="recs.parquet", input=f"new.{suffix}", top_k=5, part_users=16, **columns)
    with pytest.warns(UserWarning, match="dropped"):
        expected = load(ckpt).recommend(new.sort("user_id", maintain_order=True), 5)
    assert_frame_equal(read("recs.parquet"), expected)
    assert polars.read_parquet("recs_left_out.parquet")["user_id"].to_list() == [7000, 7001]
    said, cold = summary_of("recs"), int((table["song"] >= 9000).sum())
    assert (said["users_left_out"], said["unknown_events"]) == (2, cold)
    assert said["unknown_items"] == table.filter(polars.col("song") >= 9000)["song"].n_unique()
    output = capsys.readouterr().out
    assert f"dropped {cold} of {len(table)} events, of {said['unknown_items']} items" in output
    assert "2 users have no item that the model knows: recs_left_out.parquet" in output


def test_a_prepared_store_may_be_the_input(ckpt: Path):
    recommend(ckpt=str(ckpt), output="own", top_k=5)
    recommend(ckpt=str(ckpt), output="same", input=str(ckpt.parent / "store"), top_k=5)
    assert_frame_equal(read("own"), read("same"))


@pytest.mark.parametrize("own", [True, False])
def test_checksums_of_the_checkpoint_are_checked_once(ckpt: Path, own: bool, monkeypatch: pytest.MonkeyPatch):
    checked, check = [], checkpoints._verify
    monkeypatch.setattr(checkpoints, "_verify", lambda path: (checked.append(str(path)), check(path))[1])
    recommend(ckpt=str(ckpt), output="recs", input=None if own else str(ckpt.parent / "store"), top_k=5)
    assert checked == [str(ckpt)]


def test_users_are_known_where_the_model_looks_at_them(ckpt: Path):
    model, store = load(ckpt), EventStore.open(ckpt.parent / "store")
    other = BulkUsers(store, model, own=False, part_users=100)
    assert other.block(other.rows(0))[0].user_ids.tolist() == list(range(1, 61))
    model.user_vocabulary = None
    unknown = BulkUsers(store, model, own=False, part_users=100)
    assert unknown.block(unknown.rows(0))[0].user_ids.tolist() == [0] * 60


def test_parts_hold_so_many_users_and_events(ckpt: Path, monkeypatch: pytest.MonkeyPatch):
    model, store = load(ckpt), EventStore.open(ckpt.parent / "store")
    monkeypatch.setattr(users_module, "PART_EVENTS", 40)
    bounds = BulkUsers(store, model, own=True, part_users=7).bounds
    assert bounds[0] == 0
    assert bounds[-1] == 60
    for first, stop in itertools.pairwise(bounds):
        assert 1 <= stop - first <= 7
        assert stop - first == 1 or store.offsets[stop] - store.offsets[first] <= 40


def test_seen_and_blocked_items_are_left_out_as_told(ckpt: Path):
    Path("block.txt").write_text("3\n11\n")
    recommend(ckpt=str(ckpt), output="all", top_k=40, filter_seen=False, block="block.txt")
    expected = load(ckpt).recommend(log_of(ckpt), 40, filter_seen=False, block=[3, 11])
    assert_frame_equal(read("all"), expected)
    assert not {3, 11} & set(expected["item_id"])


def test_shares_make_one_whole(ckpt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    arguments = {"ckpt": str(ckpt), "top_k": 5, "part_users": 7}
    recommend(output="whole", **arguments)
    recommend(output="shared", shard="2/3", **arguments)
    assert "share 2/3 is done; shared still lacks parts of other shares" in capsys.readouterr().out
    assert not Path("shared_summary.json").exists()
    recommend(output="shared", shard="0/3", **arguments)
    # What torchrun tells its processes.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    recommend(output="shared", **arguments)
    assert_frame_equal(read("shared"), read("whole"))
    assert summary_of("shared") == summary_of("whole")


def test_the_summary_says_the_recall_whichever_share_is_last(ckpt: Path):
    for shard in ("0/2", "1/2"):
        search = FaissSearch("hnsw")
        recommend(ckpt=str(ckpt), output="recs", top_k=5, part_users=7, shard=shard, search=search)
    assert summary_of("recs")["recall"] > 0.9


def test_a_whole_job_is_left_alone(ckpt: Path, capsys: pytest.CaptureFixture[str]):
    log_of(ckpt).write_parquet("new.parquet")
    arguments = {"ckpt": str(ckpt), "output": "recs", "input": "new.parquet", "top_k": 5}
    recommend(**arguments)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    recommend(**arguments)
    assert capsys.readouterr().out.startswith("recs was already complete\nrecs: 300 recommendations to 60 users")
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 6}, "with top_k=5, now it is 6; give the earlier arguments to resume"),
        ({"filter_seen": False}, "with filter_seen=True, now it is False"),
        ({"max_length": 4}, "with max_length=None, now it is 4"),
        ({"part_users": 8}, "with part_users=7, now it is 8"),
        ({"block": "block.txt"}, "with block=None, now it is '"),
        ({"input": "new.parquet"}, "with other users than now"),
    ],
)
def test_a_job_goes_on_with_its_own_arguments_alone(ckpt: Path, done: bool, changes: dict[str, Any], message: str):
    Path("block.txt").write_text("3\n")
    log_of(ckpt).write_parquet("new.parquet")
    arguments: dict[str, Any] = {"ckpt": str(ckpt), "output": "recs", "top_k": 5, "part_users": 7}
    recommend(**arguments, shard=None if done else "0/2")
    with pytest.raises(InputError, match=message):
        recommend(**arguments | changes)


def test_a_job_whose_input_is_refused_leaves_its_output_free(ckpt: Path):
    log_of(ckpt).write_parquet("new.parquet")
    Path("bad.csv").write_text("user_id,item_id,timestamp\n1,,3\n")
    with pytest.raises(InputError, match="expected an id"):
        recommend(ckpt=str(ckpt), output="recs", input="bad.csv", top_k=5)
    assert not Path("recs").exists()
    recommend(ckpt=str(ckpt), output="recs", input="new.parquet", top_k=5)
    assert len(read("recs")) == 300


def test_an_input_of_which_nothing_is_known_and_a_block_list_of_everything_are_refused(ckpt: Path):
    log = log_of(ckpt)
    log.select(polars.col("user_id") + 10**6, polars.col("item_id") + 10**6, "timestamp").write_parquet("new.parquet")
    with pytest.raises(InputError, match=r"the model knows none of the .* items of the input, such as 1000"):
        recommend(ckpt=str(ckpt), output="recs", input="new.parquet", top_k=5)
    assert not Path("recs").exists()
    Path("block.txt").write_text("\n".join(map(str, log["item_id"].unique())))
    with pytest.raises(InputError, match=r"block has all .* items of the catalogue"):
        recommend(ckpt=str(ckpt), output="recs", block="block.txt", top_k=5)


def test_a_job_does_not_go_on_with_other_weights(ckpt: Path):
    recommend(ckpt=str(ckpt), output="recs", part_users=7, shard="0/2")
    checkpoint = torch.load(ckpt, weights_only=True)
    checkpoint["state_dict"]["items.table.weight"][3, 1] += 1
    torch.save(checkpoint, "other.ckpt")
    with pytest.raises(InputError, match=r"with weights='.*', now it is"):
        recommend(ckpt="other.ckpt", output="recs", part_users=7, shard="1/2")


def test_a_folder_of_something_else_is_not_touched(ckpt: Path):
    Path("mine").mkdir()
    Path("mine/photo.jpg").write_text("x")
    Path("file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match=f"output='{name}' exists and is no output of seqrec recommend"):
            recommend(ckpt=str(ckpt), output=name)
    assert [path.name for path in Path("mine").iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 51}, "top_k=51 must be between 1 and num_items="),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"part_users": 0}, "part_users=0 must be at least 1"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"max_length": 9}, "a history of 9 events exceeds max_length=8"),
        ({"shard": "2/2"}, r"shard='2/2' must be a share such as 0/4"),
        ({"shard": "one"}, r"shard='one' must be a share such as 0/4"),
        ({"device": "tpu"}, "device='tpu' must be auto, cpu or cuda"),
        ({"input": "t.csv"}, r"t\.csv has no column 'timestamp' \(timestamp='timestamp'\); it has"),
        ({"input": "t.csv", "timestamp": None, "user": "who"}, r"t\.csv has no column 'who' \(user='who'\)"),
    ],
)
def test_values_out_of_range_are_refused(ckpt: Path, arguments: dict[str, Any], message: str):
    Path("t.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(InputError, match=message):
        recommend(ckpt=str(ckpt), output="recs", **arguments)


def test_files_that_are_not_there_are_named(ckpt: Path):
    for argument in ("input", "block"):
        with pytest.raises(MissingInputError, match=r"gone\.parquet"):
            recommend(ckpt=str(ckpt), output="recs", **{argument: "gone.parquet"})
    with pytest.raises(MissingInputError, match=r"ckpt=.*gone\.ckpt: there is no such checkpoint"):
        recommend(ckpt="gone.ckpt", output="recs")


def test_the_command_line_takes_dashes_and_a_search(ckpt: Path, capsys: pytest.CaptureFixture[str]):
    words = ("recommend", "--ckpt", str(ckpt), "--output", "recs", "--top-k", "5", "--part-users=20")
    main((*words, "--search", "FaissSearch", "--search.kind", "hnsw"))
    found = read("recs")
    assert found.group_by("user_id").len()["len"].to_list() == [5] * 60
    said = summary_of("recs")
    assert said["recall"] > 0.9
    assert said["exact_rows"] == 0
    assert f"FaissSearch: recall@5 against exact {said['recall']:.4f} (60 users)" in capsys.readouterr().err


def test_the_command_line_refuses_in_one_line(ckpt: Path, capsys: pytest.CaptureFixture[str]):
    for words, message in (
        (("--output", "recs"), "error: the argument 'ckpt' is required: give --ckpt, here or in"),
        (("--ckpt", "x", "--output", "y", "--tpo-k", "5"), "unknown argument 'tpo_k'; did you mean top_k?"),
        (("--ckpt", "x", "--output", "y", "--search", "Faiss"), "known: ExactSearch, FaissSearch"),
        (("--ckpt", "x", "--output", "y"), "error: --ckpt x: there is no such checkpoint"),
        (("--ckpt_path", "x", "--output", "y"), "error: --ckpt_path x: there is no such checkpoint"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(("recommend", *words))
        assert message in capsys.readouterr().err
