"""What is measured of queues, batches and time; see ``rows`` for what a row is.

Where the obvious way is known, it is the floor, and the aim is a multiple of its rate.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

from websockets.asyncio.client import ClientConnection

from bench.calls import Client, body_of, calling
from bench.database import (
    REPORTED_WITHIN_S,
    TASK_IDS,
    checkpoint,
    fill_due,
    fill_queue,
    session,
    sum_of_seq,
)
from bench.drain import PROGRESS, QUEUE, WORKERS, Drain, drain, quantile
from bench.processes import START_TIMEOUT_S, Cost, Failed, Load, Server
from bench.rows import (
    STEADY_PER_S,
    TOPICS,
    WARM_UP_S,
    Figures,
    Floor,
    Row,
    Stage,
    asking,
    cpu_of,
    measured_by,
    next_of,
    subscribed,
)

ITEMS: Final = 1_000
# How long a loop of single transactions is watched, in multiples of other measures: it begins on a queue that is full.
LOOP_TIMES: Final = 2
DUE_TIMEOUT_S: Final = 300.0
LOOK_S: Final = 0.05
WAKES_PER_S: Final = 10
WAKE_QUEUE: Final = "idle"

CLAIM: Final = (
    "mutation ($worker: String!, $queue: String!) { claim(worker: $worker, queue: $queue) "
    "{ token task { taskId status } } }"
)
UPDATE: Final = (
    "mutation ($taskId: ID!, $token: String!, $progress: Int!) "
    "{ updateProgress(taskId: $taskId, token: $token, progress: $progress) { seq status } }"
)
COMPLETE: Final = "mutation ($taskId: ID!, $token: String!) { complete(taskId: $taskId, token: $token) { seq status } }"
REPORT: Final = (
    "mutation ($reports: [TaskReport!]!) { report(reports: $reports) "
    "{ taskId error { code } task { taskId status progress seq } } }"
)
CREATE: Final = (
    "mutation ($taskId: ID!, $queue: String!) { create(taskId: $taskId, options: { queue: $queue }) { taskId } }"
)
READY: Final = "subscription ($queue: String!) { queueReady(queue: $queue) { ready } }"


# ---------------------------------------------------------------- claims


async def _drained_by_storage(stage: Stage) -> Figures:
    databases = stage.plan.databases
    async with databases.clone("bench_drain") as url:
        await fill_queue(url, QUEUE, stage.plan.queued)
        await checkpoint(url)
        figures = await measured_by("bench.drain", "storage", url, databases.postmaster)
        await _check_drained(url, stage.plan.queued)
    return figures


async def _drained_by_loop(stage: Stage) -> Figures:
    databases = stage.plan.databases
    async with databases.clone("bench_drain_loop") as url:
        await fill_queue(url, QUEUE, stage.plan.queued)
        await checkpoint(url)
        seconds = LOOP_TIMES * stage.plan.seconds
        return await measured_by("bench.drain", "loop", url, databases.postmaster, seconds)


async def _drained_over_http(stage: Stage) -> Figures:
    plan = stage.plan
    async with plan.databases.clone("bench_drain_http") as url, plan.service(url) as server:
        await fill_queue(url, QUEUE, plan.queued)
        await checkpoint(url)
        async with AsyncExitStack() as stack:
            # To claim is more than to report, and always needs a key.
            clients = [await stack.enter_async_context(calling(server, plan.databases.key)) for _ in range(WORKERS)]
            with Cost(server, plan.databases.postmaster) as cost:
                drained = await drain([_over_http(client) for client in clients])
        await _check_drained(url, plan.queued)
        return drained.figures(cost, cost.server_s)


def _over_http(client: Client) -> Drain:
    async def way(worker: str) -> bool:
        for claim in (await client.ask(body_of(CLAIM, worker=worker, queue=QUEUE)))["claim"]:
            task = {"taskId": claim["task"]["taskId"], "token": claim["token"]}
            await client.ask(body_of(UPDATE, **task, progress=PROGRESS))
            await client.ask(body_of(COMPLETE, **task))
            return True
        return False

    return way


async def _check_drained(url: str, tasks: int) -> None:
    """See that each task was done, and once: it was created, claimed, reported on and completed."""
    async with session(url) as connection:
        done, events = await connection.fetchrow(
            "SELECT count(*) FILTER (WHERE status = 'SUCCESS' AND attempt = 1 AND seq = 4),"
            " (SELECT count(*) FROM task_events JOIN tasks USING (task_id) WHERE queue = $1)"
            " FROM tasks WHERE queue = $1",
            QUEUE,
        )
    if (done, events) != (tasks, 4 * tasks):
        raise Failed(f"Of {tasks:,} tasks {done:,} were done once, and there are {events:,} events of them.")


# ---------------------------------------------------------------- batches


async def _report(stage: Stage) -> Figures:
    """Batches of reports, one after the other."""
    choice = random.Random(1)
    shuffled = choice.sample(TASK_IDS, len(TASK_IDS))
    bodies = [
        body_of(
            REPORT,
            reports=[
                {"taskId": task_id, "progress": choice.randrange(101)} for task_id in shuffled[first : first + ITEMS]
            ],
        )
        for first in range(0, len(shuffled), ITEMS)
    ]
    server, took_s = stage.service, list[float]()
    async with calling(server, stage.plan.key) as client:
        for body in bodies:
            results = (await client.ask(body))["report"]
            if len(results) != ITEMS or (errors := [result for result in results if result["error"]]):
                raise Failed(f"Of {ITEMS:,} reports some were not taken: {str(errors)[:500]}")
        await server.settle()
        await checkpoint(stage.url)
        before = await sum_of_seq(stage.url)
        with Cost(server, stage.plan.databases.postmaster) as cost:
            until = time.perf_counter() + stage.plan.seconds
            while (began := time.perf_counter()) < until:
                await client.send(bodies[len(took_s) % len(bodies)])
                took_s.append(time.perf_counter() - began)
    items = ITEMS * len(took_s)
    if (events := await sum_of_seq(stage.url) - before) != items:
        raise Failed(f"{items:,} reports were answered, and {events:,} are in the database.")
    return {
        "per_s": items / sum(took_s),
        "p50_ms": 1e3 * quantile(took_s, 0.5),
        "p99_ms": 1e3 * quantile(took_s, 0.99),
        **cpu_of(cost, items),
    }


# ---------------------------------------------------------------- time


async def _due(stage: Stage) -> Figures:
    """Tasks that fall due all at the same moment, while others are reported on."""
    plan = stage.plan
    async with plan.databases.clone("bench_due") as url, plan.service(url) as server, plan.generating(server) as load:
        await load.connect(TOPICS, 0, TOPICS, own=True)
        await load.command(f"steady {STEADY_PER_S} {WARM_UP_S}")
        quiet = await load.command(f"steady {STEADY_PER_S} {plan.seconds}")
        async with session(url) as connection, connection.transaction():
            await fill_due(connection, "due", plan.queued)
            await checkpoint(url)
            scans = await _scans(url)
        # Due since the transaction began, and seen since it ended.
        due_at = time.perf_counter()
        with Cost(server, plan.databases.postmaster) as cost:
            meanwhile, done_at = await asyncio.gather(_steady(load, plan.seconds), _none_due(url))
        await load.command("close")
        # Sessions that lie idle say within this what they have done.
        await asyncio.sleep(REPORTED_WITHIN_S)
        scans = await _scans(url) - scans
        async with session(url) as connection:
            ready = await connection.fetchval("SELECT count(*) FROM tasks WHERE queue = 'due' AND ready")
    if ready != plan.queued:
        raise Failed(f"Of {plan.queued:,} tasks that fell due {ready:,} are ready.")
    return {
        "due_s": done_at - due_at,
        "due_us": cost.server_s / plan.queued * 1e6,
        "p99_ms": meanwhile["p99_ms"],
        "quiet_p99_ms": quiet["p99_ms"],
        "scans": scans,
    }


async def _steady(load: Load, seconds: int) -> dict[str, float]:
    return await load.command(f"steady {STEADY_PER_S} {seconds}")


async def _none_due(url: str) -> float:
    """Wait until nothing is due any more; return when that was seen."""
    async with session(url) as connection, asyncio.timeout(DUE_TIMEOUT_S):
        # Looking is not to be one of the scans that are counted.
        await connection.execute("SET enable_seqscan = off")
        while await connection.fetchval(  # noqa: ASYNC110 - nobody tells
            "SELECT EXISTS (SELECT FROM tasks WHERE due_at <= now())"
        ):
            await asyncio.sleep(LOOK_S)
        return time.perf_counter()


async def _scans(url: str) -> int:
    """How often a table was read from its beginning."""
    async with session(url) as connection:
        return int(
            await connection.fetchval(
                "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('tasks', 'task_events')"
            )
        )


# ---------------------------------------------------------------- waking


async def _wake(stage: Stage) -> Figures:
    return await _wakened(stage, stage.service)


async def _wake_across(stage: Stage) -> Figures:
    async with stage.new_service() as other:
        return await _wakened(stage, other)


async def _wakened(stage: Stage, server: Server) -> Figures:
    """A worker that waits at a server, and one task after the other that is created at the service."""
    key = stage.plan.databases.key
    took_s: list[float] = []
    async with (
        asyncio.timeout(START_TIMEOUT_S + stage.plan.seconds * WAKES_PER_S),
        calling(stage.service, key) as creating,
        calling(server, key) as claiming,
        subscribed(server, body_of(READY, queue=WAKE_QUEUE).decode(), key) as socket,
        aclosing(_ready(socket)) as ready,
    ):
        await anext(ready)
        for number in range(WAKES_PER_S * stage.plan.seconds):
            body = body_of(CREATE, taskId=f"wake {server.port} {number}", queue=WAKE_QUEUE)
            began = time.perf_counter()
            created = asyncio.create_task(creating.ask(body))
            claims: list[Any] = []
            while not claims:
                await anext(ready)
                claims = (await claiming.ask(body_of(CLAIM, worker="waiting", queue=WAKE_QUEUE)))["claim"]
            took_s.append(time.perf_counter() - began)
            await created
            # An idle queue.
            await asyncio.sleep(1 / WAKES_PER_S)
    return {"p50_ms": 1e3 * quantile(took_s, 0.5), "p99_ms": 1e3 * quantile(took_s, 0.99)}


async def _ready(socket: ClientConnection) -> AsyncGenerator[int, None]:
    while True:
        yield json.loads(await next_of(socket, "next"))["payload"]["data"]["queueReady"]["ready"]


# ---------------------------------------------------------------- all of them

RATES: Final = (
    Row(
        "claims",
        f"claim, progress, complete: {WORKERS} workers, by the storage alone",
        _drained_by_storage,
        (Floor("asyncpg: a transaction for each step", _drained_by_loop, rate_aim=3.0),),
    ),
    Row("claims-http", "the same over HTTP", _drained_over_http),
    Row(
        "report",
        f"`report` of {ITEMS:,} items, one after the other",
        _report,
        (Floor("`updateProgress` for each item, 32 connections", asking("update", writes=True), rate_aim=5.0),),
    ),
)
OTHERS: Final = (
    Row("due", "tasks that fall due at once", _due, sockets=TOPICS),
    Row("wake", "from `create` to the claim of a worker that waits", _wake),
    Row("wake-across", "the same, with the worker on another process", _wake_across),
)
