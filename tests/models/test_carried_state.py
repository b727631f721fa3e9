"""Training in which each window continues from the state of its user's window before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars
import pytest
import torch
from forked_commands import run_ranks

from seqrec import RandomCrop, SequenceDataModule, SequentialRecommender, StridedWindows, Synthetic, Table
from seqrec.data.windows import NewestWindow
from seqrec.encoders import (
    HRNN,
    HSTU,
    BERT4Rec,
    GRU4Rec,
    MambaRec,
    MoEMaTrRec,
    RecMamba,
    Samba,
    SASRec,
    SequenceEncoder,
)
from seqrec.encoders.event_time import EventTime
from seqrec.errors import InputError
from seqrec.models.streaming import CARRIED
from seqrec.runs.callbacks import EncoderCompile
from seqrec.training.losses import FullSoftmax
from seqrec.types import History

LENGTH = 8
ENCODERS: list[SequenceEncoder] = [
    MambaRec(16, d_state=4, dropout=0.5),
    MambaRec(16, d_state=4, dropout=0.5, mixer="mamba2", num_layers=1),
    RecMamba(16, d_state=4, dropout=0.5, mixer="gated_deltanet", num_layers=1),
    GRU4Rec(16, num_layers=2, dropout=0.5),
    Samba(16, d_state=4, dropout=0.5, window=3),
    HRNN(16, d_state=4, dropout=0.5, session_events=3),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A prepared log of 30 users, and settings that cut it into about four windows a user."""
    store = str(tmp_path_factory.mktemp("log") / "store")
    settings = {"source": Synthetic(num_users=30, num_items=40, mean_events=30), "store": store}
    SequenceDataModule(**settings).prepare_data()
    return {**settings, "max_length": LENGTH, "batch_size": 4, "train_windows": StridedWindows()}


def model_of(encoder: SequenceEncoder, *, carry_state: bool = True, **settings: Any) -> SequentialRecommender:
    settings = {"max_length": LENGTH, "positions": False, **settings}
    return SequentialRecommender(40, encoder=encoder, carry_state=carry_state, **settings)


def trainer_of(**settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    return pl.Trainer(accelerator="cpu", **{"max_epochs": 1, **quiet, **settings})


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: type(encoder).__name__)
def test_states_of_consecutive_windows_are_those_of_one_pass_over_all_events(
    encoder: SequenceEncoder, log: dict[str, Any]
):
    model = model_of(encoder, time=EventTime(gap="buckets")).eval()
    data = SequenceDataModule(**log)
    data.carry_state = True
    assert model.carried is not None
    # The events, their times and their states, of each window, in lists of windows that continue one another.
    runs: list[list[tuple[torch.Tensor, ...]]] = []
    rows: list[list[tuple[torch.Tensor, ...]]] = []
    with torch.no_grad():
        for batch in data.train_dataloader():
            history = batch.history
            x = model.encoder_input(model.items(history.item_ids) * 4.0, history, batch.user_ids)
            states = model.carried.advance(model.encoder, x, batch)
            assert batch.continues is not None
            assert history.timestamps is not None
            rows = [rows[row] if more else [] for row, more in enumerate(batch.continues.tolist())]
            runs += [run for run in rows if not run]
            for row, length in enumerate(history.lengths.tolist()):
                rows[row].append(tuple(each[row, :length] for each in (history.item_ids, history.timestamps, states)))
        assert max(map(len, runs)) >= 4
        for run in runs:
            item_ids, times, states = (torch.cat(part) for part in zip(*run, strict=True))
            whole = model(History(item_ids[None], torch.tensor([len(item_ids)]), times[None]))
            torch.testing.assert_close(states, whole[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: type(encoder).__name__)
def test_a_training_pass_from_a_state_of_zeros_is_forward(encoder: SequenceEncoder):
    """In values and gradients, also with recomputed blocks; in training mode it has dropout."""
    x = torch.randn(2, 6, 16, requires_grad=True)
    history = History(torch.ones(2, 6, dtype=torch.int64), torch.tensor([6, 6]))
    found = []
    for recompute in (False, True):
        for part in encoder.modules():
            if hasattr(part, "recompute"):
                part.recompute = recompute
        encoder.train()
        zero = encoder.zero_state(2, LENGTH, x)
        assert not torch.equal(encoder.advance(x, None, zero)[0], encoder.advance(x, None, zero)[0])
        encoder.eval()
        for states in (encoder(x, history), encoder.advance(x, None, zero)[0]):
            found.append([states, *torch.autograd.grad(states.square().sum(), [x, *encoder.parameters()])])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4)


def test_gradients_end_at_the_start_of_a_window(log: dict[str, Any]):
    model, data = model_of(GRU4Rec(16)), SequenceDataModule(**log)
    data.carry_state = True
    assert model.carried is not None
    inputs = []
    for batch in list(data.train_dataloader())[:2]:
        x = torch.randn(*batch.history.item_ids.shape, 16, requires_grad=True)
        inputs.append(x)
        states = model.carried.advance(model.encoder, x, batch)
    assert batch.continues is not None
    assert batch.continues.any()
    before, own = torch.autograd.grad(states.sum(), inputs, allow_unused=True)
    assert before is None
    assert own is not None


TWO_RANKS = """
import json, sys
import lightning.pytorch as pl, torch
from seqrec import GRU4Rec, SequenceDataModule, StridedWindows, Synthetic
from seqrec.catalogue.distributed import leave_job

class Save(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:
            trainer.save_checkpoint("four.ckpt")

weights = []
for ckpt in (None, "four.ckpt"):
    pl.seed_everything(0, verbose=False)
    data = SequenceDataModule(
        Synthetic(num_users=30, num_items=40, mean_events=30), store=sys.argv[1], max_length=8, batch_size=3,
        train_windows=StridedWindows(),
    )
    model = GRU4Rec(40, d_model=8, max_length=8, dropout=0.0, positions=False, carry_state=True)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=8, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[Save()],
    )
    trainer.fit(model, data, ckpt_path=ckpt)
    weights.append(torch.cat([each.flatten() for each in model.state_dict().values()]))
if trainer.global_rank == 0:
    rows = [len(part["0.hidden"]) for part in torch.load("four.ckpt")["carried_state"]]
    with open("found.json", "w") as file:
        json.dump({"equal": torch.equal(*weights), "steps": trainer.global_step, "rows": rows}, file)
leave_job()
"""


@pytest.mark.process
def test_ranks_resume_with_the_states_of_their_own_rows(tmp_path: Path, log: dict[str, Any]):
    run_ranks(tmp_path, 2, TWO_RANKS, log["store"])
    assert json.loads((tmp_path / "found.json").read_text()) == {"equal": True, "steps": 8, "rows": [3, 3]}


def test_states_of_another_number_of_ranks_are_left_out(log: dict[str, Any]):
    model = model_of(GRU4Rec(16))
    trainer_of(max_steps=2).fit(model, SequenceDataModule(**log))
    checkpoint: dict[str, Any] = {}
    assert model.carried is not None
    model.carried.save(checkpoint)
    (rows,) = checkpoint[CARRIED]
    assert len(rows["0.hidden"]) == 4
    assert rows["0.hidden"].any()
    model.carried.load(checkpoint, 0, 2)
    model.carried.save(checkpoint)
    assert checkpoint[CARRIED] == [{}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_windows": RandomCrop()}, "train_windows=RandomCrop are shuffled, .*: set data.train_windows=Strided"),
        ({"train_windows": NewestWindow()}, "train_windows=NewestWindow are shuffled"),
        ({"train_windows": StridedWindows(5)}, "stride=5 lets windows of 8 events overlap: leave stride out"),
        ({"targets": "item_id > 3"}, "data.targets leaves out windows without a target: leave data.targets out"),
    ],
)
def test_windows_that_do_not_follow_one_another_are_refused(
    settings: dict[str, Any], message: str, log: dict[str, Any]
):
    with pytest.raises(InputError, match=f"model.carry_state=true starts each window .*{message}"):
        trainer_of().fit(model_of(GRU4Rec(16)), SequenceDataModule(**{**log, **settings}))


def test_a_few_batches_that_repeat_are_refused(log: dict[str, Any]):
    with pytest.raises(InputError, match=r"but trainer\.overfit_batches repeats batches: leave it out"):
        trainer_of(overfit_batches=2).fit(model_of(GRU4Rec(16)), SequenceDataModule(**log))


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_shuffled_batches_of_another_loader_are_refused(log: dict[str, Any]):
    batches = SequenceDataModule(**log).train_dataloader()
    with pytest.raises(InputError, match=r"these are shuffled: train with SequenceDataModule and data\.train_windows="):
        trainer_of().fit(model_of(GRU4Rec(16)), batches)


class Stateless(SequenceEncoder):
    def __init__(self, d_model: int = 8) -> None:
        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)
        self.layer = torch.nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor, history: History) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("encoder", "settings", "message"),
    [
        (
            SASRec(16, rotary=True),
            {},
            "that of SASRec depends on max_length=8, because attention sees so many events or more: train",
        ),
        (MoEMaTrRec(16, rotary=True), {}, "that of MoEMaTrRec depends on max_length=8"),
        (HSTU(16), {}, "that of HSTU depends on max_length=8"),
        (Samba(16, d_state=4), {}, "that of Samba depends on max_length=8, .*; give Samba a window of at most 8"),
        (Stateless(), {}, "needs an encoder with a recurrent state, but Stateless has none: train MambaRec"),
        (BERT4Rec(16), {}, "needs an encoder with a recurrent state, but BERT4Rec has none"),
        (GRU4Rec(16), {"positions": True}, "carry_state=True and positions=True do not go together"),
    ],
)
def test_models_whose_state_cannot_be_carried_are_refused(
    encoder: SequenceEncoder, settings: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        model_of(encoder, **settings)


def test_a_compiled_encoder_is_refused(log: dict[str, Any]):
    trainer = trainer_of(callbacks=[EncoderCompile(compile=True)])
    with pytest.raises(InputError, match=r"execution\.compile=true does not support model\.carry_state=true"):
        trainer.fit(model_of(GRU4Rec(16)), SequenceDataModule(**log))


def test_a_checkpoint_of_a_model_that_carries_loads_as_such(log: dict[str, Any], tmp_path: Path):
    model, trainer = model_of(GRU4Rec(16)), trainer_of(max_steps=1)
    trainer.fit(model, SequenceDataModule(**log))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert SequentialRecommender.load_from_checkpoint(tmp_path / "one.ckpt").carried is not None
    assert model_of(GRU4Rec(16), carry_state=False).carried is None


@pytest.mark.parametrize("carry_state", [False, True])
def test_what_came_before_the_window_is_learned_and_used_at_twice_the_training_length(
    carry_state: bool, tmp_path: Path
):
    """Item 3 begins both windows of each user: item 1 follows in the first one, and item 2 in the second."""
    rows = [(user, item) for user in range(20) for item in (3, 1, 3, 2, 4, 4, 4)]
    log = {"user_id": [user for user, _ in rows], "item_id": [item for _, item in rows], "timestamp": range(len(rows))}
    polars.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    source, store = Table(str(tmp_path / "log.parquet")), str(tmp_path / "store")
    data = SequenceDataModule(source, store=store, max_length=2, batch_size=20, train_windows=StridedWindows())
    data.carry_state = carry_state
    torch.manual_seed(0)
    settings = {"max_length": 2, "positions": False, "carry_state": carry_state, "loss": FullSoftmax()}
    model = SequentialRecommender(data.num_items, encoder=GRU4Rec(16, dropout=0.0), **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(25):
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            model.loss_of_batch(batch).backward()
            optimizer.step()
    items = torch.from_numpy(data.store.item_vocabulary.lookup([3, 1, 3, 2])).unsqueeze(0)
    with torch.no_grad():
        states = model.eval()(History(items, torch.tensor([4])))[0, [0, 2]]
        one, two = model.items(items[0, [1, 3]])
    right = torch.sigmoid(states @ (one - two) * torch.tensor([1, -1]))
    assert bool((right > 0.9).all()) == carry_state, right
