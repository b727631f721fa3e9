from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from seqrec.serving.batcher import Batcher, Outcomes


class Recorded:
    """Work that keeps its batches, and waits until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.resume = threading.Event()
        self.resume.set()

    def __call__(self, works: Sequence[Any]) -> Iterator[Outcomes]:
        assert self.resume.wait(10)
        self.batches.append(list(works))
        assert threading.current_thread() is not threading.main_thread()
        for place, work in enumerate(works):
            if work == "bug":
                raise ZeroDivisionError
            yield [(place, ValueError("bad") if work == "bad" else work)]


async def outcomes(batcher: Batcher, works: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*(batcher.submit(work) for work in works), return_exceptions=True)


def run(work: Recorded, scenario, **settings: Any) -> Any:
    async def main() -> Any:
        batcher = Batcher(work, **{"max_batch": 4, "wait_seconds": 0.05} | settings)
        batcher.start()
        try:
            return await asyncio.wait_for(scenario(batcher), 20)
        finally:
            await asyncio.wait_for(batcher.close(), 20)

    return asyncio.run(main())


def test_concurrent_work_goes_together_in_order_of_arrival():
    work = Recorded()
    assert run(work, lambda batcher: outcomes(batcher, range(10))) == list(range(10))
    assert work.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_small_work_goes_before_large_work_and_the_oldest_is_in_each_batch():
    work = Recorded()

    async def scenario(batcher: Batcher) -> None:
        work.resume.clear()
        tasks = [asyncio.create_task(batcher.submit(0))]
        await asyncio.sleep(0.05)
        # One client's long lists, then short requests of others.
        tasks += [asyncio.create_task(batcher.submit(each)) for each in (60, 70, 80, 1, 2, 50, 3)]
        await asyncio.sleep(0.05)
        work.resume.set()
        await asyncio.gather(*tasks)

    run(work, scenario, max_batch=8, size_of=lambda size: size, max_size=100)
    assert work.batches == [[0], [60, 1, 2, 3], [70], [80], [50]]


def test_work_larger_than_a_batch_is_done_alone():
    work = Recorded()
    assert run(work, lambda batcher: outcomes(batcher, [500, 1]), size_of=lambda size: size, max_size=100) == [500, 1]
    assert work.batches == [[500], [1]]


def test_what_comes_while_a_batch_is_done_is_the_next_batch():
    work = Recorded()

    async def scenario(batcher: Batcher) -> None:
        work.resume.clear()
        first = asyncio.create_task(batcher.submit("first"))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher.submit(each)) for each in "abc"]
        await asyncio.sleep(0.05)
        assert not first.done()
        work.resume.set()
        await asyncio.gather(first, *others)

    run(work, scenario)
    assert work.batches == [["first"], ["a", "b", "c"]]


def test_bad_work_fails_alone_and_a_bug_fails_what_is_not_answered_yet():
    work = Recorded()
    found = run(work, lambda batcher: outcomes(batcher, ["a", "bad", "bug", "b"]))
    assert found[0] == "a"
    assert [type(each) for each in found[1:]] == [ValueError, ZeroDivisionError, ZeroDivisionError]


def test_it_goes_on_after_a_bug():
    async def scenario(batcher: Batcher) -> Any:
        with pytest.raises(ZeroDivisionError):
            await batcher.submit("bug")
        return await batcher.submit("fine")

    assert run(Recorded(), scenario) == "fine"


def test_closing_waits_for_what_was_submitted():
    work = Recorded()

    async def scenario(batcher: Batcher) -> list[Any]:
        work.resume.clear()
        tasks = [asyncio.create_task(batcher.submit(each)) for each in range(6)]
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        work.resume.set()
        await closing
        return [task.result() for task in tasks]

    assert run(work, scenario) == list(range(6))


def test_work_whose_client_went_away_does_not_disturb_the_others():
    work = Recorded()

    async def scenario(batcher: Batcher) -> Any:
        work.resume.clear()
        gone = asyncio.create_task(batcher.submit("gone"))
        stays = asyncio.create_task(batcher.submit("stays"))
        await asyncio.sleep(0.05)
        gone.cancel()
        work.resume.set()
        return await stays

    assert run(work, scenario) == "stays"


def test_the_event_loop_runs_while_a_batch_is_done():
    work = Recorded()

    async def scenario(batcher: Batcher) -> int:
        work.resume.clear()
        task = asyncio.create_task(batcher.submit("long"))
        turns = 0
        for _ in range(20):
            await asyncio.sleep(0.001)
            turns += 1
        assert not task.done()
        work.resume.set()
        await task
        return turns

    assert run(work, scenario) == 20
