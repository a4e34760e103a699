"""Reports of programs that claim nothing, with and without an event loop."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from tests.worker.world import World, free_port, world
from worker import Unreachable, Unwanted, report_progress, report_progress_async, reporting, reporting_async

T = TypeVar("T")


class Bar:
    """As tqdm's: it iterates, and knows how many items there are only if it was told."""

    def __init__(self, items: Iterator[Any], total: int) -> None:
        self._items = items
        self._total = total

    def __iter__(self) -> Iterator[Any]:
        yield from self._items

    def __len__(self) -> int:
        return self._total


async def elsewhere(function: Callable[[], T]) -> T:
    """Run code that has no event loop."""
    return await asyncio.to_thread(function)


async def told(here: World, task_id: str) -> list[int]:
    history = (await here.look(task_id))["history"]
    return [event["progress"] for event in history if event["eventType"] == "PROGRESS"]


async def test_a_block_reports_and_completes(database: str) -> None:
    async with world(database) as here:
        await here.create("film")
        async with reporting_async(here.url, "film") as task:
            task.progress(40)
            await task.event("half of it", progress=50)
            task.result = {"url": "/films/1"}
        film = await here.look("film")
    assert (film["status"], film["lastEvent"]["metadata"]) == ("SUCCESS", {"url": "/films/1"})
    assert [event["progress"] for event in film["history"]] == [None, 40, 50, 100]


async def test_an_exception_fails_the_task_and_goes_on(database: str) -> None:
    def work() -> None:
        with reporting(here.url, "film") as task:
            task.progress(40)
            raise ValueError("no page 14")

    async with world(database) as here:
        await here.create("film")
        with pytest.raises(ValueError, match="no page 14"):
            await elsewhere(work)
        film = await here.look("film")
    assert (film["status"], film["progress"]) == ("FAILED", 40)
    assert film["lastEvent"]["message"] == "ValueError: no page 14"


async def test_a_program_without_an_event_loop_reports_and_completes(database: str) -> None:
    def work() -> list[int]:
        with reporting(here.url, "film") as task:
            done = list(task.track([1, 2, 3]))
            task.event("uploaded", metadata={"bytes": 12})
            task.result = {"url": "/films/1"}
            assert (task.task_id, task.result) == ("film", {"url": "/films/1"})
        return done

    async with world(database) as here:
        await here.create("film")
        assert await elsewhere(work) == [1, 2, 3]
        film = await here.look("film")
    assert (film["status"], film["lastEvent"]["metadata"]) == ("SUCCESS", {"url": "/films/1"})


async def test_a_loop_tells_its_progress_now_and_then_and_the_last_of_it_always(database: str) -> None:
    def work() -> int:
        return sum(1 for _ in report_progress(Bar(iter(range(100_000)), 100_000), here.url, "film"))

    async with world(database) as here:
        await here.create("film")
        began = time.monotonic()
        assert await elsewhere(work) == 100_000
        took_s = time.monotonic() - began
        numbers = await told(here, "film")
        film = await here.look("film")
    assert film["status"] == "IN_PROGRESS"
    assert numbers[-1] == 100
    assert numbers == sorted(numbers)
    assert len(numbers) <= 2 + took_s / 0.5


async def test_a_loop_that_is_left_tells_how_far_it_came(database: str) -> None:
    def work() -> None:
        for number in report_progress(range(10), here.url, "film"):
            if number == 4:
                break

    async with world(database) as here:
        await here.create("film")
        await elsewhere(work)
        assert (await told(here, "film"))[-1] == 40


async def test_the_same_with_an_event_loop(database: str) -> None:
    async with world(database) as here:
        await here.create("film")
        assert [number async for number in report_progress_async(range(7), here.url, "film")] == list(range(7))
        assert (await told(here, "film"))[-1] == 100


async def test_a_task_that_nobody_wants_any_more_ends_the_loop(database: str) -> None:
    def work() -> None:
        for _ in report_progress(range(10_000), here.url, "film"):
            time.sleep(0.002)

    async with world(database) as here:
        await here.create("film")
        await here.cancel("film")
        with pytest.raises(Unwanted) as unwanted:
            await elsewhere(work)
    assert unwanted.value.extensions["status"] == "CANCELED"


async def test_a_server_that_is_away_does_not_end_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.reports.PATIENCE_S", 0.1)
    url = f"http://127.0.0.1:{free_port()}/graphql"
    assert await elsewhere(lambda: list(report_progress("abc", url, "film"))) == ["a", "b", "c"]
    with pytest.raises(Unreachable):
        async with reporting_async(url, "film"):
            pass


@pytest.mark.parametrize("report", [report_progress, report_progress_async])
def test_how_many_items_there_are_must_be_known(report: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="total"):
        report((letter for letter in "abc"), "http://127.0.0.1/graphql", "film")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        list(report_progress("abc", "ws://127.0.0.1/graphql", "film"))
