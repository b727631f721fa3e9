from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from seqrec.errors import InputError
from seqrec.specs import from_spec, to_spec
from seqrec.training.optim import (
    Adam,
    InverseSquareRoot,
    LazyAdam,
    LinearWarmup,
    RowwiseAdagrad,
    Schedule,
    WarmupCosine,
)

SCHEDULES = [LinearWarmup(3), WarmupCosine(2, min_ratio=0.1), InverseSquareRoot(4)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


def ratios(schedule: Schedule, total_steps: float, updates: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule.build(optimizer, total_steps)
    taken = []
    for _ in range(updates):
        taken.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return taken


def test_linear_warmup_rises_and_stays():
    assert ratios(LinearWarmup(4), math.inf, 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_warmup_cosine_rises_and_falls_to_what_is_left():
    found = ratios(WarmupCosine(2, min_ratio=0.2), 6, 8)
    fall = [0.2 + 0.8 * (1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    assert found == pytest.approx([0.5, 1, *fall, 0.2, 0.2])
    assert found[2] == pytest.approx(1)


def test_warmup_cosine_without_warmup_starts_at_the_top():
    assert ratios(WarmupCosine(0), 4, 5) == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0])


def test_inverse_square_root_is_the_papers_up_to_its_peak():
    w = 3
    papers = [min((n + 1) ** -0.5, (n + 1) * w**-1.5) / w**-0.5 for n in range(12)]
    assert ratios(InverseSquareRoot(w), math.inf, 12) == pytest.approx(papers)
    assert max(papers) == papers[w - 1] == 1


@every_schedule
@pytest.mark.parametrize("table", [None, LazyAdam(0.3), RowwiseAdagrad(0.7)])
def test_all_parts_follow(schedule: Schedule, table: object, make_mixed: Callable, item_batches: Callable):
    model = make_mixed()
    optimizer = Adam(0.1, table=table, schedule=schedule).build(model)
    starts = [group["lr"] for group in optimizer.param_groups]
    assert starts == [0.1, 0.1 if table is None else table.lr]
    scheduler, ratio = schedule.build(optimizer, 9), schedule.ratio(9)
    for update, batch in enumerate(item_batches(5)):
        for part, start in zip(optimizer.parts, starts, strict=True):
            assert part.param_groups[0]["lr"] == pytest.approx(start * ratio(update))
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
        scheduler.step()


@every_schedule
def test_step_sizes_go_on_where_they_were(schedule: Schedule, make_mixed: Callable):
    def make() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = Adam(0.1, table=RowwiseAdagrad(0.7)).build(make_mixed())
        return optimizer, schedule.build(optimizer, 9)

    def resume(optimizer, scheduler, updates):
        taken = []
        for _ in range(updates):
            optimizer.step()
            scheduler.step()
            taken.append([group["lr"] for group in optimizer.param_groups])
        return taken

    first, second = make(), make()
    resume(*first, 4)
    for loaded, saved in zip(second, first, strict=True):
        loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert [group["lr"] for group in second[0].param_groups] == [g["lr"] for g in first[0].param_groups]
    assert resume(*second, 5) == resume(*first, 5)


@every_schedule
def test_schedules_survive_as_a_spec(schedule: Schedule):
    rebuilt = from_spec(to_spec(Adam(schedule=schedule))).schedule
    assert to_spec(rebuilt) == to_spec(schedule)
    assert [rebuilt.ratio(9)(n) for n in range(9)] == [schedule.ratio(9)(n) for n in range(9)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearWarmup(0), "warmup_steps=0 must be at least 1"),
        (lambda: InverseSquareRoot(0), "warmup_steps=0 must be at least 1"),
        (lambda: WarmupCosine(-1), "warmup_steps=-1 must be at least 0"),
        (lambda: WarmupCosine(1, min_ratio=1.5), "min_ratio=1.5 must be between 0 and 1"),
        (lambda: WarmupCosine(1).ratio(math.inf), "needs the run's end: set trainer.max_epochs"),
        (lambda: WarmupCosine(5).ratio(5), "warmup_steps=5 must be below the 5 steps of the run"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        make()
