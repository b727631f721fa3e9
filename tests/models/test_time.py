"""Models that read the time of events and of requests, over all encoders."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import event_inputs
import lightning.pytorch as pl
import polars
import pytest
import torch
from event_inputs import ALL_TIMES, ENCODERS, ITEMS, part_of, random_history
from torch import Tensor

import seqrec.models
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic, Table
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders.event_time import EventTime
from seqrec.errors import InputError
from seqrec.inference.loading import load
from seqrec.models import MambaRec, Popularity, SequentialRecommender
from seqrec.training.losses import FullSoftmax
from seqrec.types import History

LENGTH = 9
TIMES = {
    "buckets": EventTime(request=True),
    "continuous": EventTime(gap="continuous", request=True),
    "calendar": EventTime(gap=None, hour=True, weekday=True, request=True),
    "all": ALL_TIMES,
    "in mixers": EventTime(request=True, in_mixers=True),
}
MIXED = ["SASRec", "MoEMaTrRec"]
CASES = [(name, "all") for name in ENCODERS] + [("MambaRec", time) for time in ("buckets", "continuous", "calendar")]
CASES += [(name, "in mixers") for name in MIXED]


def build(name: str = "MambaRec", time: EventTime | None = TIMES["all"], **settings: Any) -> SequentialRecommender:
    return event_inputs.build(name, time, **settings)


@pytest.mark.parametrize(("name", "time"), CASES)
@torch.no_grad()
def test_the_time_of_an_event_changes_its_state_and_newer_ones_only(name: str, time: str):
    model, history = build(name, TIMES[time]), random_history([LENGTH])
    assert history.timestamps is not None
    before = model(history)
    for changed in range(LENGTH):
        times = history.timestamps.clone()
        # A week and some hours for this event and all after it would keep their gaps.
        times[0, changed] += 8 * 24 * 3600 + 5 * 3600
        moved = (model(replace(history, timestamps=times)) - before).abs().amax(-1)[0]
        assert (moved[:changed] <= 1e-6).all(), f"an older event sees the time of event {changed}"
        # The first event has no gap, so only its hour and weekday count.
        if changed or TIMES[time].hour:
            assert moved[changed] > 0, f"event {changed} does not depend on its own time"


@pytest.mark.parametrize(("name", "time"), CASES)
@torch.no_grad()
def test_padding_changes_no_state(name: str, time: str):
    model, lengths = build(name, TIMES[time]), [LENGTH, 1, 4]
    history = random_history(lengths)
    assert history.timestamps is not None
    batch = model(history)
    for row, length in enumerate(lengths):
        alone = part_of(history, 0, length, slice(row, row + 1))
        torch.testing.assert_close(batch[row, :length], model(alone)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "time"), CASES)
@torch.no_grad()
def test_step_chunk_and_full_pass_agree_at_any_time_of_a_request(name: str, time: str):
    model, lengths = build(name, TIMES[time]), [31, 1, 20]
    history = random_history(lengths)
    assert history.timestamps is not None
    whole = model(history)
    for cut in (1, 7, 30):
        _, state = model.extend(part_of(history, 0, cut), model.init_state(3))
        states, state = model.extend(part_of(history, cut, 31), state)
        later = history.lengths > cut
        torch.testing.assert_close(states[later, 0], whole[later, cut], atol=1e-5, rtol=0)
        assert state.tensors["newest_time"].tolist() == history.timestamps.amax(1).tolist()
    state = model.init_state(1)
    for event in range(31):
        states, state = model.step(history.item_ids[:1, event], state, timestamps=history.timestamps[:1, event])
        torch.testing.assert_close(states, whole[:1, event], atol=1e-5, rtol=0)
    # A stored state is asked later, without the events.
    for wait in (0, 60, 10**7):
        at = state.tensors["newest_time"] + wait
        asked = model.to_scoring_space(model.at_request(states, state.tensors["newest_time"], at))
        best = model.recommend(part_of(history, 0, 31), 5, at=int(at) + 10**9)
        assert best.item_ids.shape == (3, 5)
        (scores,) = model.recommend(
            History(history.item_ids[:1], history.lengths[:1], history.timestamps[:1]),
            5,
            filter_seen=False,
            at=int(at),
        ).scores
        torch.testing.assert_close(model.scorer().score_chunk(asked, 1, ITEMS).topk(5).values[0], scores)


@pytest.mark.parametrize("name", MIXED)
@torch.no_grad()
def test_gaps_in_mixers_change_nothing_before_training(name: str):
    preset, own = ENCODERS[name]
    history, states = random_history([LENGTH, 4]), []
    for in_mixers in (False, True):
        torch.manual_seed(0)
        arguments = {"d_model": 8, "positions": False, "time": EventTime(in_mixers=in_mixers)} | own
        model = getattr(seqrec.models, preset)(ITEMS, **arguments).eval()
        states.append(model(history).where(history.valid.unsqueeze(-1), 0))
    torch.testing.assert_close(*states)


def test_encoders_without_mixers_that_read_gaps_are_refused_by_name():
    for name in ("GRU4Rec", "MambaRec", "RecMamba"):
        with pytest.raises(InputError, match=f"needs attention, but {name} has none"):
            build(name, TIMES["in mixers"])
    with pytest.raises(InputError, match="causal=False is the published mixture, which reads no gaps"):
        build("MoEMaTrRec", TIMES["in mixers"], causal=False)


def test_the_states_of_the_encoder_do_not_depend_on_the_request_but_the_ranks_do():
    model, history = build(), random_history([LENGTH, 4])
    assert history.timestamps is not None
    newest = int(history.timestamps.max())
    one, other = (model.recommend(history, 5, at=newest + wait).scores for wait in (1, 10**6))
    assert not torch.equal(one, other)
    # One time for each user is the same as asking for each alone.
    both = model.recommend(history, 5, at=[newest + 1, newest + 10**6]).scores
    assert torch.equal(both[0], one[0])
    torch.testing.assert_close(both[1], other[1])
    moment = datetime.fromtimestamp(newest + 1, timezone.utc)
    assert torch.equal(model.recommend(history, 5, at=moment).scores, one)


@pytest.mark.parametrize(
    ("at", "named"),
    [
        (None, "must know when it is asked"),
        (5, "is before the newest event"),
        ([1_700_000_000], "1 times for 2 users"),
        ([], "must know when"),
        ([1_700_000_000, 5], "is before the newest event"),
        (datetime(2030, 1, 1), "no time zone"),
        (1e9 + 0.5, "must be a timestamp"),
    ],
)
def test_a_request_without_a_time_or_before_the_newest_event_is_refused(at: Any, named: str):
    with pytest.raises(InputError, match=named):
        build().recommend(random_history([LENGTH, 4]), 5, at=at)


def test_a_time_that_no_model_reads_is_refused():
    for model in (build(time=None), build(time=EventTime())):
        with pytest.raises(InputError, match="at=5 would have no effect"):
            model.recommend(random_history([4]), 5, at=5)
    popular = Popularity.from_counts(torch.arange(ITEMS + 1).numpy())
    with pytest.raises(InputError, match="would have no effect"):
        popular.recommend(random_history([4]), 5, at=5)


def test_events_without_times_and_times_that_go_back_are_refused():
    model, history = build(), random_history([4, 2])
    with pytest.raises(InputError, match="no timestamps"):
        model.recommend(replace(history, timestamps=None), 5, at=10**10)
    with pytest.raises(InputError, match="no timestamps"):
        model.step(torch.tensor([1]), model.init_state(1))
    model.item_vocabulary = Vocabulary([f"song-{number:02}" for number in range(ITEMS)])
    with pytest.raises(InputError, match="no timestamps"):
        model.recommend([["song-01", "song-02"]], 5, at=10**10)
    _, state = model.step(torch.tensor([1, 2]), model.init_state(2), timestamps=torch.tensor([50, 60]))
    with pytest.raises(InputError, match="row 1 go back: 59 after 60"):
        model.step(torch.tensor([1, 2]), state, timestamps=torch.tensor([50, 59]))
    plain = build(time=None).init_state(1)
    with pytest.raises(InputError, match="of another model"):
        model.step(torch.tensor([1]), plain, timestamps=torch.tensor([50]))


def test_a_frame_with_times_is_asked_for_and_explained():
    model = build()
    model.item_vocabulary = Vocabulary([f"song-{number:02}" for number in range(ITEMS)])
    frame = polars.DataFrame(
        {
            "user_id": ["ann"] * 3,
            "item_id": ["song-03", "song-04", "song-09"],
            "timestamp": [1_600_000_900, 1_600_000_000, 1_600_000_100],
        }
    )
    best = model.recommend(frame, 3, at=1_600_100_000)
    assert best["rank"].to_list() == [1, 2, 3]
    explained = model.explain(frame, best["item_id"][0], at=1_600_100_000)
    assert explained.item_ids == ["song-04", "song-09", "song-03"]
    assert explained.score == pytest.approx(best["score"][0], abs=1e-5)
    streamed = model.explain(frame, best["item_id"][0], at=1_600_100_000, stream=True)
    torch.testing.assert_close(streamed.contributions, explained.contributions, atol=1e-5, rtol=0)


def test_hours_decide_what_is_asked_for_in_a_log_where_they_do(tmp_path: Path):
    """Each user takes item 1 to 5 in the morning and 6 to 10 in the evening; only the time of the request tells."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for user in range(60):
        for day in torch.randperm(200, generator=generator)[:24].sort().values.tolist():
            evening = int(torch.randint(2, (1,), generator=generator))
            item = 1 + 5 * evening + int(torch.randint(5, (1,), generator=generator))
            rows.append((user, item, 1_600_041_600 + day * 86_400 + evening * 10 * 3600))
    log = tmp_path / "log.csv"
    polars.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(log)
    half = {}
    for told in (True, False):
        data = SequenceDataModule(
            Table(str(log), "user_id", "item_id", "timestamp"), store=str(tmp_path / "store"), max_length=20
        )
        time = EventTime(gap=None, hour=True, request=told)
        torch.manual_seed(0)
        model = MambaRec(10, d_model=16, num_layers=1, positions=False, dropout=0.0, time=time, loss=FullSoftmax())
        model.lr = 0.02
        trainer = pl.Trainer(
            max_epochs=25,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model.protocol = seqrec.FullRanking(filter_seen=False)
        trainer.fit(model, data)
        (result,) = trainer.test(model, data, verbose=False)
        half[told] = result["test_HR@5"]
        assert ("requesttime" in model.protocol.id) == told
    # Five of ten items fit the hour, and which of them is chance.
    assert half[True] > 0.95
    assert half[False] < 0.8


def test_a_fit_is_loaded_as_it_was_and_knows_what_it_reads(tmp_path: Path):
    data = SequenceDataModule(Synthetic(num_users=30, num_items=20, mean_events=12), store=str(tmp_path / "store"))
    model = MambaRec(data.num_items, d_model=8, max_length=20, positions=False, time=TIMES["all"])
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt")
    assert isinstance(loaded, SequentialRecommender)
    assert loaded.time == TIMES["all"]
    histories = random_history([5, 3])
    histories = replace(histories, item_ids=histories.item_ids.clamp_max(data.num_items))
    asked: list[Tensor] = [each.recommend(histories, 5, at=10**10).scores for each in (model, loaded)]
    assert torch.equal(*asked)


def test_a_log_without_times_or_of_another_unit_is_refused_before_training(tmp_path: Path):
    log = tmp_path / "log.csv"
    frame = polars.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [1, 2, 3, 1] * 2})
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    frame.write_csv(log)
    data = SequenceDataModule(Table(str(log), "user_id", "item_id", None), store=str(tmp_path / "plain"))
    with pytest.raises(InputError, match=r"model\.time is set, but .* has no timestamps"):
        trainer.fit(MambaRec(data.num_items, d_model=8, positions=False, time=EventTime()), data)
    frame.with_columns(timestamp=polars.Series([1_600_000_000_000 + step for step in range(8)])).write_csv(log)
    data = SequenceDataModule(Table(str(log), "user_id", "item_id", "timestamp"), store=str(tmp_path / "timed"))
    with pytest.raises(InputError, match=r"set time\.unit: ms"):
        trainer.fit(MambaRec(data.num_items, d_model=8, positions=False, time=EventTime(hour=True)), data)
