"""Tables spread over ranks train, are judged, saved and resumed as whole tables are; `sharded_runs` has the jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from forked_commands import free_port
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from sharded_runs import OPTIONS, Shares, make
from torch import Tensor
from torch.utils.data import DataLoader

from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.sharding import RowShards, ShardedEmbedding, keep_own_state
from seqrec.catalogue.table import ItemEmbedding, ItemTable
from seqrec.errors import InputError
from seqrec.models import SASRec
from seqrec.runs.trainer_checks import check_sharding
from seqrec.training.losses import FullSoftmax
from seqrec.types import History

pytestmark = pytest.mark.process

TABLES = ("items.table.weight", "output_items.table.weight", "users.table.weight")
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what each rank of each job returned, and checkpoints."""
    folder = tmp_path_factory.mktemp("sharded")
    port = free_port()
    # Imported, so that checkpoints name its classes as this process does.
    program = "import sys; from sharded_runs import main; main(sys.argv[1], int(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(folder), str(port)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def returned(folder: Path, job: str, ranks: int) -> list[dict[Any, Any]]:
    return [torch.load(folder / f"{job}-{rank}.pt", weights_only=False) for rank in range(ranks)]


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["adagrad", "adam", "content"])
def test_two_ranks_train_as_one_does_with_whole_tables(runs: Path, name: str):
    (alone,) = returned(runs, "alone", 1)
    first, second = returned(runs, "spread", 2)
    assert_same_weights(first[name]["weights"], alone[name]["weights"])
    dense = {key: weight for key, weight in first[name]["weights"].items() if key not in TABLES}
    assert_same_weights({key: second[name]["weights"][key] for key in dense}, dense)


def test_a_rank_holds_half_of_tables_and_of_their_optimiser_state(runs: Path):
    first, second = returned(runs, "spread", 2)
    # 101 rows of 8 float64, and one number of Adagrad's each; 91 rows of 8 and of 9, 7 of 8, and two moments.
    assert [first["adagrad"]["held"], second["adagrad"]["held"]] == [
        {"weights": 51 * 8 * 8, "state": 51 * 8},
        {"weights": 50 * 8 * 8, "state": 50 * 8},
    ]
    numbers = [46 * (8 + 9) + 4 * 8, 45 * (8 + 9) + 3 * 8]
    assert [rank["adam"]["held"] for rank in (first, second)] == [
        {"weights": 8 * number, "state": 2 * 8 * number} for number in numbers
    ]


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_resumed_run_ends_as_one_that_was_not_stopped(runs: Path, name: str):
    first = returned(runs, "spread", 2)[0][name]
    assert_same_weights(first["resumed"], first["weights"])


def test_runs_go_on_on_another_number_of_ranks(runs: Path):
    (alone,) = returned(runs, "alone", 1)
    assert_same_weights(alone["resumed from two"], alone["adam"]["weights"])
    assert_same_weights(alone["resumed unsharded"], alone["adam"]["weights"])
    resumed = returned(runs, "resumed_from_one", 2)[0]
    for name in ("adagrad", "adam"):
        assert_same_weights(resumed[name], alone[name]["weights"])


def test_tests_and_predictions_are_those_of_one_process(runs: Path):
    (alone,) = returned(runs, "alone", 1)
    first, second = returned(runs, "spread", 2)
    for name in ("adagrad", "adam", "content"):
        assert first[name]["metrics"] == second[name]["metrics"] == pytest.approx(alone[name]["metrics"])
        assert alone[name]["metrics"]["test_NDCG@20"] > 0
        both = zip(first[name]["predicted"], second[name]["predicted"], strict=True)
        for parts, expected in zip(both, alone[name]["predicted"], strict=True):
            assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_a_checkpoint_of_two_ranks_loads_whole(runs: Path, name: str):
    path = runs / f"{name}-2.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    settings = ItemTable(sparse=True, **OPTIONS[name]["table"])
    whole = SASRec.load_from_checkpoint(path, item_table=settings)
    sharded = SASRec.load_from_checkpoint(path)
    assert sharded.item_table.sharded
    states = torch.randn(3, whole.scorer().vectors(torch.tensor([1])).shape[1])
    every_item = torch.arange(1, OPTIONS[name]["num_items"] + 1).expand(3, -1)
    expected = Scorer(
        saved["items.table.weight" if name == "adagrad" else "output_items.table.weight"].float(),
        unit_columns=8 if name == "adam" else None,
    ).score(states, every_item)
    for model in (whole, sharded):
        torch.testing.assert_close(model.scorer().score(states, every_item), expected)


def test_a_whole_checkpoint_loads_as_a_sharded_table(runs: Path):
    path = runs / "adagrad-alone.ckpt"
    loaded = SASRec.load_from_checkpoint(path, item_table=ItemTable(sharded=True))
    assert isinstance(loaded.items.table, ShardedEmbedding)
    expected = torch.load(path, weights_only=True)["state_dict"]["items.table.weight"]
    torch.testing.assert_close(loaded.items.weight.detach(), expected.float())


def test_rows_lie_where_dtensor_has_them_and_start_alike_on_any_number_of_ranks(runs: Path):
    found = returned(runs, "tables_alone", 3)
    for num_rows in (2, 4, 7, 70_001):
        torch.manual_seed(0)
        whole = ShardedEmbedding(num_rows, 3, std=0.5, zeros_from=2)
        whole.make_rows()
        assert torch.equal(found[0][num_rows]["state"]["weight"], whole.weight), num_rows
        assert all(rank[num_rows]["layout"] for rank in found), num_rows
        assert all(rank[num_rows]["state"]["weight"].is_meta for rank in found[1:])
        assert not whole.weight[0].any()
        assert not whole.weight[:, 2].any()
    assert whole.weight[1:, :2].std().item() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("num_rows", [2, 4, 7])
def test_gradients_reach_the_owners_as_means_over_ranks(runs: Path, num_rows: int):
    found = [rank[num_rows] for rank in returned(runs, "tables_alone", 3)]
    expected = torch.zeros(num_rows, 3)
    expected[1] += 3 / 3  # each of three ranks once
    expected[-1] += 2 * (0 + 1 + 2) / 3  # rank r reads it r times, counted twice
    torch.testing.assert_close(torch.cat([rank["gradient"] for rank in found]), expected)
    assert [rank["first"] for rank in found] == RowShards(num_rows, 3).bounds[:3]


def test_bytes_sent_are_those_of_touched_rows_whatever_the_catalogue(runs: Path):
    found = returned(runs, "tables_alone", 3)
    # Two exchanges of three counts; two ids and rows of three float32 as gradients, two ids that are asked for; and
    # from rank 0, which has both items, the rows that three ranks ask of it.
    asking = 2 * 3 * 8 + 2 * (8 + 3 * 4) + 2 * 8
    for num_rows in (7, 70_001):
        assert [rank[num_rows]["sent"] for rank in found] == [asking + 3 * 2 * 3 * 4, asking, asking]


@pytest.mark.parametrize("num_rows", [2, 4, 7])
def test_the_hosts_copy_scores_as_a_whole_table(runs: Path, num_rows: int):
    for rank in returned(runs, "tables_alone", 3):
        spread, whole = rank[num_rows]["scores"]
        torch.testing.assert_close(spread, whole)


def test_the_hosts_copy_leaves_no_file_even_while_it_is_read(runs: Path):
    found = returned(runs, "tables_alone", 3)
    assert all(rank[num_rows]["open files"] == [] for rank in found for num_rows in (2, 4, 7))
    assert all(rank["files"] == [] for rank in found)


def test_all_ranks_are_told_where_a_copy_cannot_be_made(runs: Path):
    for rank in returned(runs, "tables_alone", 3):
        assert "on the host of rank 0 has too little room" in rank["full"]
        assert "rank 2 does not see" in rank["elsewhere"]
        assert "TMPDIR" in rank["full"]
        assert "TMPDIR" in rank["elsewhere"]


def test_an_error_closes_the_hosts_copy(runs: Path):
    for rank in returned(runs, "spread", 2):
        assert rank["after an error"] == {"message": "the disk is gone", "closed": True}


def test_reading_other_ranks_rows_without_a_copy_is_refused(runs: Path):
    for rank in returned(runs, "tables_alone", 3):
        assert "within trainer.validate, test and predict" in rank["message"]


def test_a_table_without_rows_says_how_to_make_them():
    model = SASRec(9, d_model=4, max_length=3, item_table=ItemTable(sharded=True)).to("cpu")
    history = History(torch.tensor([[1, 2]]), torch.tensor([2]))
    for use in (lambda: model(history), model.scorer, model.state_dict):
        with pytest.raises(InputError, match=r"call model\.configure_model\(\)"):
            use()
    model.configure_model()
    weight = model.items.weight
    model.configure_model()
    assert model.items.weight is weight
    assert weight.shape == (10, 4)
    assert model(history).isfinite().all()
    model(history).sum().backward()
    assert weight.grad.is_sparse


def test_one_process_trains_a_sharded_table_as_a_whole_one():
    history = History(torch.tensor([[1, 2, 0]]), torch.tensor([2]))
    sharded = make(OPTIONS["adam"], sharded=True)
    sharded.configure_model()
    whole = make(OPTIONS["adam"], sharded=False)
    whole.load_state_dict(sharded.state_dict())
    for model in (sharded, whole):
        model(history).sum().backward()
    assert torch.equal(sharded.items.weight.grad.to_dense(), whole.items.weight.grad.to_dense())


def test_a_whole_table_is_cut_and_a_spread_one_is_not_spread_otherwise():
    table = ShardedEmbedding(5, 2, std=1.0)
    table.make_rows()
    whole = table.weight.detach().clone()
    table.make_rows(2, 1)
    assert torch.equal(table.weight, whole[3:])
    with pytest.raises(InputError, match=r"sharded over 2 processes and cannot be used with 1: .*checkpoint"):
        table.make_rows()


def test_weights_of_another_catalogue_or_rank_are_refused():
    table = ShardedEmbedding(5, 2, std=1.0)
    table.make_rows()
    table.make_rows(2, 0)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(3, 2\) in the checkpoint, \(5, 2\)"):
        table.load_state_dict({"weight": torch.zeros(3, 2)})
    with pytest.raises(RuntimeError, match="only rank 0 has that of a sharded table"):
        table.load_state_dict({"weight": torch.zeros(5, 2, device="meta")})
    table.load_state_dict({"weight": torch.arange(10.0).view(5, 2)})
    assert table.weight.tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InputError, match="without row-sparse tables"):
        keep_own_state({"optimizer_states": [{"state": {}}]}, {"items": table})


def test_sharded_tables_refuse_dense_gradients():
    with pytest.raises(InputError, match=r"item_table\.sharded=True needs row-sparse .* leave sparse out"):
        ItemTable(sparse=False, sharded=True)
    with pytest.raises(InputError, match="sharded=True needs sparse=True"):
        ItemEmbedding(3, 2, sharded=True)
    with pytest.raises(InputError, match=r"sharded=True, but this objective scores the whole .* sharded: false"):
        SASRec(9, d_model=4, max_length=3, item_table=ItemTable(sharded=True), loss=FullSoftmax())
    spread = ShardedEmbedding(5, 2, std=1.0)
    with pytest.raises(InputError, match=r"read those it needs with Scorer\.vectors"):
        Scorer(spread, sparse=True).item_vectors  # noqa: B018


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_move_parameters_are_refused(strategy: type):
    trainer = SimpleNamespace(strategy=object.__new__(strategy), world_size=2, precision="32-true")
    with pytest.raises(InputError, match=f"strategy ddp or a single device, not with {strategy.__name__}"):
        check_sharding(trainer)


def test_float16_with_a_scaler_is_refused_on_several_ranks():
    trainer = SimpleNamespace(strategy=DDPStrategy(), world_size=2, precision="16-mixed")
    with pytest.raises(InputError, match="Use bf16-mixed or 32-true"):
        check_sharding(trainer)
    check_sharding(SimpleNamespace(strategy=SingleDeviceStrategy("cpu"), world_size=1, precision="16-mixed"))


def test_a_refusal_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = SASRec(9, d_model=4, max_length=3, item_table=ItemTable(sharded=True))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    monkeypatch.setattr("seqrec.runs.trainer_checks.SingleDeviceStrategy", DDPStrategy)
    # The check of all models would refuse the strategy first.
    monkeypatch.setattr("seqrec.models.recommender.check_trainer", lambda _: None)
    with pytest.raises(InputError, match="not with SingleDeviceStrategy"):
        trainer.validate(model, DataLoader(Shares(9, 1), batch_size=None))
