"""What a model reads of time: gaps, hours, weekdays, and the time of a request."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec.encoders.event_time import DOUBLINGS, UNITS, EventTime, RequestReadOut, TimeEmbedding, needed_times
from seqrec.errors import InputError
from seqrec.types import NO_TIME, History

NOON = int(datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc).timestamp())


def embedding(**settings: object) -> TimeEmbedding:
    torch.manual_seed(0)
    return TimeEmbedding(EventTime(**settings), 4)  # type: ignore[arg-type]


def gap_vector(layer: TimeEmbedding, gap: int) -> list[float]:
    return layer(torch.tensor([NOON + gap]), torch.tensor([NOON]))[0].tolist()


@pytest.mark.parametrize("unit", UNITS)
def test_a_bucket_is_half_a_doubling_of_the_gap(unit: str):
    layer = embedding(unit=unit)
    second = UNITS[unit]
    for half in range(4, 2 * DOUBLINGS - 1):
        first = math.ceil(second * 2 ** (half / 2))
        inside = gap_vector(layer, first)
        assert gap_vector(layer, first + (math.ceil(second * 2 ** ((half + 1) / 2)) - first) // 2) == inside
        assert gap_vector(layer, first - 1) != inside


def test_no_event_before_no_gap_and_a_gap_are_three_things():
    layer = embedding()
    first = layer(torch.tensor([NOON]), torch.tensor([NO_TIME]))[0].tolist()
    assert len({tuple(vector) for vector in (first, gap_vector(layer, 0), gap_vector(layer, 1))}) == 3
    # Beyond the last boundary, and for times that go back, the nearest bucket holds.
    assert gap_vector(layer, 1 << 40) == gap_vector(layer, 1 << 31)
    assert gap_vector(layer, -5) == gap_vector(layer, 0)


@given(st.integers(0, 1 << 31), st.integers(0, 1 << 31))
def test_the_continuous_form_tells_gaps_apart_and_stays_finite(one: int, other: int):
    layer = embedding(gap="continuous")
    a, b = torch.tensor(gap_vector(layer, one)), torch.tensor(gap_vector(layer, other))
    assert a.isfinite().all()
    assert b.isfinite().all()
    if max(one, other) > 2 * min(one, other) + 2:
        assert (a - b).abs().max() > 0


@given(st.datetimes(datetime(1991, 1, 1), datetime(2090, 1, 1)), st.sampled_from(list(UNITS)), st.integers(-12, 14))
def test_hours_and_weekdays_are_those_of_the_calendar(local: datetime, unit: str, offset: int):
    moment = local.replace(microsecond=0, tzinfo=timezone(timedelta(hours=offset)))
    layer = embedding(gap=None, hour=True, weekday=True, unit=unit, utc_offset=offset)
    assert layer.hours is not None
    assert layer.weekdays is not None
    times = torch.tensor([int(moment.timestamp()) * UNITS[unit]])
    expected = layer.hours.weight[moment.hour] + layer.weekdays.weight[moment.weekday()]
    assert torch.equal(layer(times, torch.tensor([NO_TIME]))[0], expected)


def test_the_parts_are_added_up():
    torch.manual_seed(0)
    whole = embedding(hour=True, weekday=True)
    times, before = torch.tensor([[NOON, NOON + 90_000]]), torch.tensor([[NO_TIME, NOON]])
    parts = []
    for settings in ({}, {"gap": None, "hour": True}, {"gap": None, "weekday": True}):
        alone = embedding(**settings)
        alone.load_state_dict(
            {name: weight for name, weight in whole.state_dict().items() if name in alone.state_dict()}
        )
        parts.append(alone(times, before))
    torch.testing.assert_close(whole(times, before), sum(parts))


def test_an_untrained_read_out_changes_nothing_and_then_every_weight_learns():
    read_out = RequestReadOut(EventTime(hour=True, weekday=True, request=True), 8)
    states, newest = torch.randn(3, 5, 8), torch.full((3, 5), NOON)
    asked = newest + torch.arange(15).view(3, 5) * 7919
    assert torch.equal(read_out(states, newest, asked), states)
    torch.nn.init.normal_(read_out.out.weight)
    read_out(states, newest, asked).square().sum().backward()
    for name, weight in read_out.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.count_nonzero() > 0, name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"gap": "linear"}, "time.gap"),
        ({"unit": "minutes"}, "time.unit"),
        ({"utc_offset": 25}, "time.utc_offset"),
        ({"utc_offset": math.nan}, "time.utc_offset"),
        ({"gap": None}, "time reads nothing"),
        ({"gap": None, "request": True}, "time reads nothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(settings: dict[str, object], named: str):
    with pytest.raises(InputError, match=named):
        EventTime(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"hour": True}])
def test_a_log_in_another_unit_is_refused_and_the_right_unit_is_named(settings: dict[str, bool]):
    milliseconds = NOON * 1000
    with pytest.raises(InputError, match=r"set time\.unit: ms"):
        EventTime(**settings).check_log(milliseconds, milliseconds + 5)


def test_times_that_are_no_dates_in_any_unit_are_refused_where_hours_are_read():
    milliseconds = NOON * 1000
    EventTime(hour=True, unit="ms").check_log(milliseconds, milliseconds + 5)
    with pytest.raises(InputError, match=r"leave time\.hour and time\.weekday out"):
        EventTime(weekday=True).check_log(0, 500)
    EventTime().check_log(0, 500)


def test_a_moment_becomes_a_timestamp_of_the_log():
    moment = datetime.fromtimestamp(NOON, timezone.utc)
    assert EventTime(unit="ms").timestamp(moment) == NOON * 1000
    assert EventTime().timestamp(moment.astimezone(timezone(timedelta(hours=9)))) == NOON
    assert EventTime().timestamp(NOON) == NOON
    with pytest.raises(InputError, match="has no time zone"):
        EventTime().timestamp(datetime(2024, 1, 1))  # that is the mistake
    for wrong in (1.5, True, "now", math.nan, None):
        with pytest.raises(InputError, match="at="):
            EventTime().timestamp(wrong)  # type: ignore[arg-type]


def test_a_history_without_times_is_refused():
    with pytest.raises(InputError, match="no timestamps"):
        needed_times(History(torch.tensor([[1]]), torch.tensor([1])))


def test_the_event_before_the_first_of_a_stream_counts():
    history = History(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1]), torch.tensor([[5, 9], [7, 0]]))
    assert history.times_before[:, 0].tolist() == [NO_TIME, NO_TIME]
    assert history.times_before[0, 1] == 5
    later = History(history.item_ids, history.lengths, history.timestamps, torch.tensor([4, NO_TIME]))
    assert later.times_before[:, 0].tolist() == [4, NO_TIME]
