"""Who waits for tasks to claim is wakened: in this process, and by others over each of the ways between them."""

import asyncio
import time

import pytest

from storage import Create, Options, Release, open_storage
from storage.queues import Queues
from tests.storage.helpers import spied, submit
from tests.storage.linked import never_resync, processes, until

WAIT_S = 10


def create(task_id: str, queue: str = "q") -> Create:
    return Create(task_id=task_id, options=Options(queue=queue))


async def test_a_task_that_becomes_ready_wakes_those_who_wait_for_its_queue(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with storage.queues.listen("q") as ear, storage.queues.listen("q") as also, storage.queues.listen("r") as other:
            await submit(storage, create("T"), Create(task_id="plain"))
            assert await ear.wait(WAIT_S)
            assert await also.wait(WAIT_S)
            assert not await other.wait(0)
            # Once for each time.
            assert not await ear.wait(0)
            (claim,) = await storage.claimer.claim("q", "w")
            assert not await ear.wait(0)
            await storage.writer.submit(Release(task_id="T", token=claim.token))
            assert await ear.wait(WAIT_S)


async def test_what_wakes_before_one_waits_is_not_lost(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with storage.queues.listen("q") as ear:
            await submit(storage, create("T"))
            assert await ear.wait(0)


async def test_other_processes_are_wakened_too(database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    never_resync(monkeypatch)
    async with processes(database, feed_url) as (one, two):
        with two.queues.listen("q") as ear, two.queues.listen("é \\") as odd, one.queues.listen("q") as own:
            # NATS subscribes when it has time.
            async with asyncio.timeout(WAIT_S):
                for number in range(1_000):
                    await submit(one, create(f"T{number}"), create(f"U{number}", "é \\"))
                    if await ear.wait(0.05) and await odd.wait(0.05):
                        break
            assert await own.wait(WAIT_S)
            # What is watched beside tasks is not looked for among them.
            two.follower.resync()
            resyncs = two.follower.resyncs
            await until(lambda: two.follower.resyncs > resyncs)


async def test_a_waiting_worker_in_another_process_has_the_task_at_once(database: str) -> None:
    async with processes(database, database) as (one, two):
        with two.queues.listen("q") as ear:
            latencies = []
            for number in range(20):
                begun = time.perf_counter()
                await submit(one, create(f"T{number}"))
                assert await ear.wait(WAIT_S)
                (claim,) = await two.claimer.claim("q", "w")
                latencies.append(time.perf_counter() - begun)
                assert claim.task.task_id == f"T{number}"
            # An order of magnitude above what it takes.
            assert sorted(latencies)[10] < 0.5


def test_a_queue_that_nobody_waits_for_is_forgotten() -> None:
    queues = Queues()
    with queues.listen("q"):
        pass
    assert queues._ears == {}
    queues.wake(["q"])
    assert not queues.hear("T")
    assert queues.hear("\0q")


async def test_what_many_ask_of_one_queue_is_counted_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, create("A"), create("B", "r"), create("C", "r"))
        with spied(storage) as spy:
            counts = await asyncio.gather(*(storage.reader.ready(queue) for queue in ("q", "r", "none") * 100))
        assert counts == [1, 2, 0] * 100
        assert len(spy.statements) == 3
