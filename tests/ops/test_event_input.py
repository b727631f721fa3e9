"""The input of events: every variant against the reference, codes of times against the calendar, bad input."""

from datetime import datetime, timedelta, timezone

import pytest
import torch

from seqrec.encoders.layers.gaps import GapBuckets
from seqrec.errors import InputError
from seqrec.ops import EventTimes, TableRows, event_input
from seqrec.types import NO_TIME

GAPS = GapBuckets(ticks=1000)


def parts(shape, width, *, second=1000, offset=0):
    """Rows of each kind: scaled, strided, and of times from 1969 on, some of them without an event before."""
    times = torch.randint(-(10**10), 2 * 10**12, shape)
    before = torch.where(torch.rand(shape) < 0.2, NO_TIME, times - torch.randint(-5, 40_000_000, shape))
    given = EventTimes(times, before, GAPS.boundaries, second, offset)
    items = torch.randn(50, width + 1)[:, :width]
    return [
        TableRows(items, torch.randint(1, 50, shape), scale=3.0, least=1),
        TableRows(torch.randn(9, width), torch.randint(0, 9, shape)),
        TableRows(torch.randn(len(GAPS), width), given, "gap"),
        TableRows(torch.randn(24, width), given, "hour"),
        TableRows(torch.randn(7, width), given, "weekday"),
    ]


@pytest.mark.parametrize("shape", [(1,), (16,), (3, 40), (0,), (700,)])
@pytest.mark.parametrize("width", [1, 8, 33, 64])
def test_every_variant_equals_the_reference(variant, shape, width):
    given = parts(shape, width, offset=-5_400_000)
    out, expected = (event_input(given, backend=backend) for backend in ("cpp", "reference"))
    assert out.shape == (*shape, width)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("hours", [0, -7.5, 5.75])
def test_hours_and_weekdays_are_those_of_the_calendar(cpp, backend, hours):
    moments = [datetime(year, 3, 1, 23, 59, 59, tzinfo=timezone.utc) for year in (1931, 1969, 1970, 2024)]
    moments += [moment + timedelta(seconds=1) for moment in moments]
    times = torch.tensor([round(moment.timestamp()) * 1000 for moment in moments])
    given = EventTimes(times, times, GAPS.boundaries, 1000, round(hours * 3_600_000))
    local = [moment + timedelta(hours=hours) for moment in moments]
    for code, expected in (("hour", [x.hour for x in local]), ("weekday", [x.weekday() for x in local])):
        found = event_input([TableRows(torch.arange(24.0).unsqueeze(1), given, code)], backend=backend)
        assert found.flatten().tolist() == expected


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gaps_count_the_boundaries_that_they_reach(cpp, backend):
    boundaries = torch.tensor([1, 10, 60])
    times, before = torch.tensor([7, 7, 8, 17, 67, 6]), torch.tensor([NO_TIME, 7, 7, 7, 7, 7])
    given = EventTimes(times, before, boundaries)
    found = event_input([TableRows(torch.arange(5.0).unsqueeze(1), given, "gap")], backend=backend)
    assert found.flatten().tolist() == [0, 1, 2, 3, 4, 1]


def test_gradients_are_those_of_lookups():
    table = torch.randn(4, 3, requires_grad=True)
    codes = torch.tensor([[1, 1], [3, 0]])
    event_input([TableRows(table, codes, scale=2.0), TableRows(table, codes)]).sum().backward()
    assert table.grad[:, 0].tolist() == [3.0, 6.0, 0.0, 3.0]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(("code", "least"), [(4, 0), (-1, 0), (0, 1)])
def test_a_code_that_is_no_row_is_refused(cpp, backend, code, least):
    first = TableRows(torch.randn(9, 2), torch.tensor([0, 8]))
    with pytest.raises(IndexError):
        event_input([first, TableRows(torch.randn(4, 2), torch.tensor([1, code]), least=least)], backend=backend)


def test_shapes_that_differ_are_refused(cpp):
    table = torch.randn(9, 2)
    with pytest.raises(InputError, match="must have one shape"):
        event_input(
            [TableRows(table, torch.zeros(2, 3, dtype=torch.int64)), TableRows(table, torch.tensor([1]))], backend="cpp"
        )
    with pytest.raises(InputError, match="parts is empty"):
        event_input([])
