"""Claims as blocks, against a server that is a process of its own."""

import asyncio
import json
import math
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.proxy import Proxy
from tests.graphql_api.clients import until
from tests.graphql_api.test_server import program
from tests.worker.world import CREATE, WAIT_S, World, free_port, world
from worker import Claim, ClaimedTask, LeaseLost, NoRetry, Outcome, Refused, Unwanted, Worker, documents

# Long enough for whoever must be quicker, and never waited for.
FAR_S = 600.0


async def test_a_block_that_ends_completes_its_task(database: str) -> None:
    async with world(database) as here, here.worker() as worker:
        await here.create("film", metadata={"frames": 3})
        async for claim in worker.claims():
            async with claim as task:
                assert (task.task_id, task.metadata, task.job.attempt) == ("film", {"frames": 3}, 1)
                held = await here.look("film")
                assert (held["status"], held["worker"]) == ("IN_PROGRESS", "host-1")
                seen = [frame async for frame in task.track(range(3))]
                await task.event("uploaded", metadata={"bytes": 12})
                task.result = {"url": "/films/1"}
            break
        film = await here.look("film")
    assert seen == [0, 1, 2]
    assert claim.outcome is Outcome.COMPLETED
    assert (film["status"], film["progress"], film["lastEvent"]["metadata"]) == ("SUCCESS", 100, {"url": "/films/1"})
    messages = [event["message"] for event in film["history"]]
    assert messages[1] == 'Claimed by "host-1", attempt 1 of 1'
    # The event comes after the progress that was set before it.
    assert messages[-3:] == ["Progress updated to 100%", "uploaded", "Task completed successfully"]


async def test_an_exception_fails_the_attempt_and_the_next_one_may_succeed(database: str) -> None:
    outcomes = []
    async with world(database) as here, here.worker() as worker:
        await here.create("film", attempts=2)
        async for claim in worker.claims():
            async with claim as task:
                if task.job.attempt == 1:
                    raise ValueError(f"no page 14 for {here.key} in postgresql://ada:hunter2@db/films")
            outcomes.append(claim.outcome)
            if len(outcomes) == 2:
                break
        film = await here.look("film")
    assert outcomes == [Outcome.FAILED, Outcome.COMPLETED]
    assert (film["status"], film["attempt"]) == ("SUCCESS", 2)
    (error,) = [event["message"] for event in film["history"] if event["eventType"] == "ERROR"]
    assert error == "ValueError: no page 14 for [hidden] in postgresql://[hidden]@db/films"


async def test_what_cannot_succeed_is_not_tried_again(database: str) -> None:
    async with world(database) as here, here.worker() as worker:
        await here.create("film", attempts=9)
        async for claim in worker.claims():
            async with claim:
                raise NoRetry("this is no film")
            break
        film = await here.look("film")
    assert (film["status"], film["attempt"], film["history"][-1]["message"]) == (
        "FAILED",
        1,
        "NoRetry: this is no film",
    )


async def test_heartbeats_keep_a_task_for_longer_than_its_lease(database: str) -> None:
    async with world(database) as here, here.worker(lease_s=1) as worker:
        await here.create("film", attempts=2)
        async for claim in worker.claims():
            async with claim:
                await asyncio.sleep(2.5)
            break
        film = await here.look("film")
    assert (film["status"], film["attempt"]) == ("SUCCESS", 1)


async def test_a_task_that_somebody_cancels_ends_the_block(database: str) -> None:
    async with world(database) as here, here.worker(lease_s=1) as worker:
        await here.create("film")
        async for claim in worker.claims():
            async with claim as task:
                await here.cancel("film")
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.sleep(WAIT_S)
                raise asyncio.CancelledError
            break
        film = await here.look("film")
    assert task.task_id == "film"
    assert claim.outcome is Outcome.LOST
    assert film["status"] == "CANCELED"


async def test_a_report_on_a_task_that_was_canceled_raises_in_the_block(database: str) -> None:
    async with world(database) as here, here.worker() as worker:
        await here.create("film")
        async for claim in worker.claims():
            async with claim as task:
                await here.cancel("film")
                await task.event("in vain")
            break
        film = await here.look("film")
    assert claim.outcome is Outcome.LOST
    assert film["lastEvent"]["message"] == "Task canceled"


async def test_a_server_that_does_not_answer_ends_the_block_when_the_lease_does(database: str) -> None:
    async with world(database) as here, here.worker(lease_s=1, grace_s=0) as worker:
        await here.create("film", attempts=2)
        async for claim in worker.claims():
            async with claim:
                here.server.process.send_signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(WAIT_S)
                finally:
                    here.server.process.send_signal(signal.SIGCONT)
            break
    assert claim.outcome is Outcome.LOST


async def test_a_claim_that_was_lost_cannot_be_entered(database: str) -> None:
    async with world(database) as here, here.worker(lease_s=1) as worker:
        await here.create("film")
        claim = await anext(claims := worker.claims())
        await here.cancel("film")
        await until(lambda: claim.lost)
        with pytest.raises(Unwanted):
            await claim.__aenter__()
        await claims.aclose()


async def test_reports_outlive_a_restart_of_the_server_and_are_written_once(database: str) -> None:
    port = free_port()
    async with world(database, SPECTRAL_PORT=port) as here, here.worker() as worker:
        await here.create("film")
        async for claim in worker.claims():
            async with claim as task:
                await task.event("before")
                here.server.terminate()
                assert await here.server.ended() == 0
                late = asyncio.create_task(task.event("after"))
                async with program("serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_PORT=port) as second:
                    await second.url()
                    await late
                    film = await here.look("film")
                    here.server = second
                    await here.cancel("film")
                    with pytest.raises(Refused):
                        await task.event("too late")
            break
    assert [event["message"] for event in film["history"]][2:] == ["before", "after"]


async def test_a_report_whose_answer_is_lost_is_written_once(database: str) -> None:
    async with world(database) as here, Proxy(httpx.URL(here.url).port or 0) as proxy:
        await here.create("film")
        by_proxy = f"http://127.0.0.1:{proxy.port}/graphql"
        async with Worker(by_proxy, here.key, queue="video") as worker:
            async for claim in worker.claims():
                async with claim as task:
                    with proxy.delayed(1):
                        telling = asyncio.create_task(task.event("once"))
                        async with asyncio.timeout(WAIT_S):
                            while (await here.look("film"))["lastEvent"]["message"] != "once":
                                pass
                        await proxy.cut()
                    await telling
                break
        film = await here.look("film")
    assert [event["message"] for event in film["history"]].count("once") == 1


@pytest.mark.parametrize("wrong", [{1, 2}, {"size": math.nan}, {"size": 2**70}, "x" * 300_000])
async def test_a_result_that_cannot_be_told_fails_the_task(database: str, wrong: Any) -> None:
    async with world(database) as here, here.worker() as worker:
        await here.create("film")
        async for claim in worker.claims():
            async with claim as task:
                task.result = wrong
            break
        film = await here.look("film")
    assert claim.outcome is Outcome.FAILED
    assert film["status"] == "FAILED"


async def test_a_worker_that_waits_hears_of_a_new_task_at_once(database: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "spectral.worker")
    async with world(database) as here, here.worker(poll_s=FAR_S) as worker:
        claims = worker.claims()
        waiting = asyncio.ensure_future(anext(claims))
        await until(lambda: "Listening for tasks of queue video" in caplog.text)
        clock = asyncio.get_running_loop().time
        await here.create("film")
        created_at = clock()
        claim = await waiting
        assert clock() - created_at < 1
        async with claim:
            pass
        await claims.aclose()
        assert (await here.look("film"))["status"] == "SUCCESS"


async def test_where_nothing_can_be_heard_it_asks_every_few_seconds(database: str, tmp_path: Path) -> None:
    # All operations are allowed, save the one that listens; so this is also the list to give such a server.
    allowed = [getattr(documents, name) for name in vars(documents) if name.isupper() and name != "QUEUE_READY"]
    file = tmp_path / "operations.json"
    file.write_text(json.dumps([*allowed, CREATE]))
    async with world(database, SPECTRAL_OPERATIONS=file) as here, here.worker(poll_s=0.1) as worker:
        claims = worker.claims()
        waiting = asyncio.ensure_future(anext(claims))
        await here.create("film")
        async with await waiting:
            pass
        await claims.aclose()


async def test_many_tasks_are_handled_at_once_and_each_by_one(database: str) -> None:
    handled: list[str] = []
    most = now = 0

    async with world(database) as here, here.worker() as first, here.worker(name="host-2") as second:

        async def handle(task: ClaimedTask) -> dict[str, str]:
            nonlocal most, now
            now += 1
            most = max(most, now)
            await task.event("at work")
            handled.append(task.task_id)
            now -= 1
            if len(handled) == 20:
                first.stop()
                second.stop()
            return {"done": task.task_id}

        for number in range(20):
            await here.create(f"film-{number}")
        await asyncio.gather(first.run(handle, concurrency=4), second.run(handle, concurrency=4))
        assert sorted(handled) == sorted(f"film-{number}" for number in range(20))
        assert 2 <= most <= 8
        for number in range(20):
            film = await here.look(f"film-{number}")
            assert (film["status"], film["lastEvent"]["metadata"]) == ("SUCCESS", {"done": f"film-{number}"})


async def test_sigterm_lets_blocks_finish_and_gives_back_what_was_not_begun(database: str) -> None:
    async with world(database) as here, here.worker() as worker:
        for task_id in ("first", "second"):
            await here.create(task_id, attempts=2)
        seen = 0
        async for claim in worker.claims(limit=2):
            seen += 1
            async with claim:
                os.kill(os.getpid(), signal.SIGTERM)
                await claim_given_back(here, "second")
        assert seen == 1
        first, second = await here.look("first"), await here.look("second")
    assert first["status"] == "SUCCESS"
    assert (second["status"], second["attempt"]) == ("PENDING", 0)


async def claim_given_back(here: World, task_id: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await here.look(task_id))["status"] != "PENDING":
            pass


async def test_a_block_that_does_not_finish_in_time_is_ended_and_its_task_given_back(database: str) -> None:
    async with world(database) as here, here.worker(grace_s=0.1) as worker:
        await here.create("film", attempts=2)
        async for claim in worker.claims():
            async with claim:
                worker.stop()
                await asyncio.sleep(WAIT_S)
        film = await here.look("film")
    assert claim.outcome is Outcome.RELEASED
    assert (film["status"], film["attempt"]) == ("PENDING", 0)


async def test_who_is_canceled_gives_the_task_back(database: str) -> None:
    began = asyncio.Event()

    async def handle(task: ClaimedTask) -> None:
        began.set()
        await asyncio.sleep(WAIT_S)

    async with world(database) as here:

        async def work() -> None:
            async with here.worker() as worker:
                await worker.run(handle)

        await here.create("film", attempts=2)
        working = asyncio.create_task(work())
        await began.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        film = await here.look("film")
    assert (film["status"], film["attempt"]) == ("PENDING", 0)


async def test_what_was_canceled_inside_the_block_fails_it(database: str) -> None:
    async with world(database) as here, here.worker() as worker:
        await here.create("film")
        async for claim in worker.claims():
            async with claim:
                inner = asyncio.create_task(asyncio.sleep(WAIT_S))
                inner.cancel()
                await inner
            break
        assert (await here.look("film"))["status"] == "FAILED"


async def test_claims_that_are_not_entered_are_given_back_at_the_end(database: str) -> None:
    async with world(database) as here:
        for task_id in ("first", "second"):
            await here.create(task_id, attempts=2)
        async with here.worker() as worker:
            async for _ in worker.claims(limit=2):
                break
        for task_id in ("first", "second"):
            assert (await here.look(task_id))["status"] == "PENDING"


async def test_claims_that_a_loop_does_not_come_to_are_given_back_when_it_is_left(database: str) -> None:
    async with world(database) as here, here.worker() as worker:
        for task_id in ("first", "second"):
            await here.create(task_id, attempts=2)
        async for claim in worker.claims(limit=2):
            async with claim:
                pass
            break
        # The worker goes on, and has room for others.
        await claim_given_back(here, "second")
        assert (await here.look("second"))["attempt"] == 0


async def test_tasks_of_a_claim_that_was_canceled_meanwhile_are_given_back(database: str) -> None:
    async with (
        world(database) as here,
        Proxy(httpx.URL(here.url).port or 0) as proxy,
        Worker(f"http://127.0.0.1:{proxy.port}/graphql", here.key, queue="video", poll_s=FAR_S) as worker,
    ):
        await here.create("film", attempts=2)
        with proxy.delayed(1):
            running = asyncio.create_task(worker.run(lambda _: asyncio.sleep(WAIT_S)))
            async with asyncio.timeout(WAIT_S):
                while (await here.look("film"))["status"] != "IN_PROGRESS":
                    pass
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await claim_given_back(here, "film")


async def test_what_was_done_is_told_although_who_tells_it_is_canceled(database: str) -> None:
    async with world(database) as here, Proxy(httpx.URL(here.url).port or 0) as proxy:
        await here.create("film")
        ended: list[Claim] = []
        async with Worker(f"http://127.0.0.1:{proxy.port}/graphql", here.key, queue="video") as worker:

            async def work() -> None:
                async for claim in worker.claims():
                    ended.append(claim)
                    async with claim:
                        stalled.enter_context(proxy.stalled())

            with ExitStack() as stalled:
                working = asyncio.create_task(work())
                await until(lambda: bool(ended and ended[0].lost))
                working.cancel()
                await asyncio.sleep(0)
                # What was on its way never arrives.
                await proxy.cut()
            with pytest.raises(asyncio.CancelledError):
                await working
        film = await here.look("film")
    assert ended[0].outcome is Outcome.COMPLETED
    assert film["status"] == "SUCCESS"


async def test_a_wrong_key_is_raised(database: str) -> None:
    async with world(database) as here:
        here.key = "spn_0000000000000000_wrong"
        async with here.worker() as worker:
            with pytest.raises(Refused) as refused:
                await worker.run(lambda _: asyncio.sleep(0))
    assert refused.value.code == "UNAUTHENTICATED"
    assert not isinstance(refused.value, LeaseLost)
