"""What is measured, and beside which floor.

A row measures the service as it runs for users, over real sockets, on a clone of the seeded database. A floor measures
the same work without the service, right after it, so that a machine which is busy or slow is so for both.
"""

import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.database import ALL_IDS, HOT_ID, LONG_IDS, TASK_IDS, Databases, checkpoint, sum_of_seq, transactions_of
from bench.floors import SEQ
from bench.processes import (
    CONNECTIONS,
    START_TIMEOUT_S,
    Cost,
    Failed,
    Load,
    Server,
    free_port,
    generating,
    serving,
    wrk,
)
from storage import open_storage

Figures: TypeAlias = dict[str, float]
"""What one round measured, by name; the unit is the end of the name."""

WARM_UP_S: Final = 1
TOPICS: Final = 1_000
STEADY_PER_S: Final = 200
IDLE_SOCKETS: Final = 10_000
IDLE_S: Final = 60.0
RESYNCS: Final = 5
# Where the hot task stands in the load generator's list, behind the tasks.
HOT: Final = len(TASK_IDS)
# Operations of the floor: all of its sockets get the same bytes.
SAME_ID: Final = "0" * 32

DOCUMENTS: Final[Mapping[str, str]] = {
    "task": "query ($taskId: ID!) { task(taskId: $taskId) { taskId status progress seq createdAt updatedAt } }",
    "history": "query ($taskId: ID!) { task(taskId: $taskId) { taskId "
    "history(last: 50) { seq eventType message progress timestamp } } }",
    "page": "{ tasks(first: 50) { nodes { taskId status progress updatedAt } } }",
    "mutation": "mutation ($taskId: ID!, $progress: Int!) { updateProgress(taskId: $taskId, progress: $progress) "
    "{ taskId status progress seq } }",
    "subscription": "subscription ($taskId: ID!) { taskUpdates(taskId: $taskId) { type "
    "task { taskId status progress seq updatedAt } events { seq eventType message progress timestamp } } }",
    "list": "subscription { tasksUpdated { type "
    "task { taskId status progress seq updatedAt } events { seq eventType message progress timestamp } } }",
    "resumption": "subscription ($taskId: ID!) { taskUpdates(taskId: $taskId, afterSeq: 1) { type "
    "task { taskId status progress seq updatedAt } events { seq eventType message progress timestamp } } }",
}


@dataclass(frozen=True, slots=True)
class Samples:
    """What the service says, so that the floors say as much."""

    answer: str
    # A frame to all subscribers, with a mark where the event's number belongs.
    frame: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays the same in all rounds."""

    databases: Databases
    folder: Path
    seconds: int
    idle_s: float
    # Sent by all, or None when only what needs a key is sent with one.
    key: str | None

    def bodies(self, name: str) -> Path:
        """The file with the bodies of requests of that name."""
        return self.folder / f"{name}.bodies"

    @property
    def tasks(self) -> Path:
        """The file with the IDs that the load generator knows."""
        return self.folder / "tasks"

    def write(self) -> None:
        """Write what the load generators send."""
        for name, bodies in _bodies().items():
            self.bodies(name).write_text("".join(f"{body}\n" for body in bodies))
        self.tasks.write_text("".join(f"{task_id}\n" for task_id in ALL_IDS))

    def generating(
        self, server: Server, publish_to: Server | None = None, document: str = "subscription"
    ) -> AbstractAsyncContextManager[Load]:
        """A load generator for subscriptions to a server."""
        return generating(server, self.tasks, DOCUMENTS[document], DOCUMENTS["mutation"], self.key, publish_to)

    @asynccontextmanager
    async def service(self, url: str) -> AsyncIterator[Server]:
        """The service on that database, just started."""
        port = free_port()
        settings = {"SPECTRAL_PORT": str(port), "SPECTRAL_DATABASE_URL": url}
        if self.key:
            # So that it would be seen if one did not send it.
            settings["SPECTRAL_ACCESS"] = "closed"
        async with serving(
            "spectral-notify",
            ["-m", "graphql_api", "serve"],
            port,
            _body("task", taskId=HOT_ID),
            self.key,
            **settings,
        ) as server:
            yield server

    @asynccontextmanager
    async def floor(self, kind: str, sample: str) -> AsyncIterator[Server]:
        """A bare server, just started."""
        port = free_port()
        arguments = ["-m", "bench.floors", kind, str(port), sample]
        async with serving(kind, arguments, port, "{}", None) as server:
            yield server


@dataclass(frozen=True, slots=True)
class Stage:
    """What one round has at hand: servers that have been used, and ways to start others."""

    plan: Plan
    samples: Samples
    # The clone that the service has, and the one that the floor of the driver has.
    url: str
    floor_url: str
    service: Server
    echo: Server
    broadcast: Server

    def new_service(self) -> AbstractAsyncContextManager[Server]:
        """The service as a process that has done nothing yet."""
        return self.plan.service(self.url)

    def new_broadcast(self) -> AbstractAsyncContextManager[Server]:
        """The broadcast as a process that has done nothing yet."""
        return self.plan.floor("broadcast", self.samples.frame)


Measure: TypeAlias = Callable[[Stage], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Floor:
    """What a row is compared with."""

    title: str
    measure: Measure
    # How many times the floor's CPU the row is meant to take at most; None when they do different things.
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that the service does."""

    name: str
    title: str
    measure: Measure
    floors: tuple[Floor, ...] = ()
    # Sockets that are open at once.
    sockets: int = 0


@asynccontextmanager
async def staged(plan: Plan, samples: Samples, number: int) -> AsyncIterator[Stage]:
    """The stage of a round: fresh databases, fresh processes."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(plan.databases.clone(f"bench_{number}"))
        floor_url = await stack.enter_async_context(plan.databases.clone(f"bench_floor_{number}"))
        service = await stack.enter_async_context(plan.service(url))
        echo = await stack.enter_async_context(plan.floor("echo", samples.answer))
        broadcast = await stack.enter_async_context(plan.floor("broadcast", samples.frame))
        yield Stage(plan, samples, url, floor_url, service, echo, broadcast)


# ---------------------------------------------------------------- requests


def _body(document: str, **variables: object) -> str:
    return json.dumps({"query": DOCUMENTS[document], "variables": variables}, separators=(",", ":"))


def _bodies() -> dict[str, Iterator[str]]:
    # The same in all rounds, and in no order that the tables have.
    choice = random.Random(1)
    shuffled = choice.sample(TASK_IDS, len(TASK_IDS))
    return {
        "update": (_body("mutation", taskId=task_id, progress=choice.randrange(101)) for task_id in shuffled),
        "update-hot": (_body("mutation", taskId=HOT_ID, progress=progress) for progress in range(101)),
        "task": (_body("task", taskId=task_id) for task_id in shuffled),
        "history": (_body("history", taskId=task_id) for task_id in choice.sample(LONG_IDS, len(LONG_IDS))),
        "page": iter([_body("page")]),
    }


def _http(name: str, *, writes: bool = False, needs_key: bool = False) -> Measure:
    async def measure(stage: Stage) -> Figures:
        key = stage.plan.databases.key if needs_key else stage.plan.key
        return await _ask(stage, stage.service, name, key, stage.url if writes else None)

    return measure


async def _echo(stage: Stage) -> Figures:
    return _without_postgres(await _ask(stage, stage.echo, "task", stage.plan.key, None))


async def _ask(stage: Stage, server: Server, name: str, key: str | None, written: str | None) -> Figures:
    """Send the bodies of that name; `written` is the database that holds one more event for each answer."""
    bodies = stage.plan.bodies(name)
    await wrk(server, bodies, WARM_UP_S, look=True, key=key)
    await server.settle()
    before = 0
    if written:
        await checkpoint(written)
        before = await sum_of_seq(written)
    with Cost(server, stage.plan.databases.postmaster) as cost:
        measured = await wrk(server, bodies, stage.plan.seconds, look=False, key=key)
    answers = int(measured["answers"])
    if written:
        await server.settle()
        events = await sum_of_seq(written) - before
        # What was under way when the load ended was written, and its answer was heard by nobody.
        if not answers <= events <= answers + CONNECTIONS:
            raise Failed(f"{answers:,} changes were answered, and {events:,} are in the database.")
    return {
        "per_s": answers / measured["seconds"],
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        **_cpu(cost, answers),
    }


def _cpu(cost: Cost, operations: float) -> Figures:
    return {"cpu_us": cost.server_s / operations * 1e6, "postgres_us": cost.postgres_s / operations * 1e6}


def _without_postgres(figures: Figures) -> Figures:
    return {name: figure for name, figure in figures.items() if name != "postgres_us"}


# ---------------------------------------------------------------- subscriptions


def _fan_out(subscribers: int) -> tuple[Measure, Measure]:
    """Of the service, and of the floor."""

    async def service(stage: Stage) -> Figures:
        return await _deliver(stage, stage.service, subscribers, own=True)

    async def broadcast(stage: Stage) -> Figures:
        return _without_postgres(await _deliver(stage, stage.broadcast, subscribers, own=False))

    return service, broadcast


async def _deliver(stage: Stage, server: Server, subscribers: int, *, own: bool) -> Figures:
    plan = stage.plan
    async with plan.generating(server) as load:
        await load.connect(subscribers, HOT, 1, own=own)
        await load.command(f"fanout {WARM_UP_S}")
        await server.settle()
        await checkpoint(stage.url)
        with Cost(server, plan.databases.postmaster) as cost:
            measured = await load.command(f"fanout {plan.seconds}")
        await load.command("close")
    await server.settle()
    return {
        "per_s": measured["deliveries"] / measured["seconds"],
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        **_cpu(cost, measured["deliveries"]),
    }


async def _steady(stage: Stage) -> Figures:
    return await _deliver_steadily(stage, stage.service)


async def _steady_across(stage: Stage) -> Figures:
    async with stage.new_service() as other:
        return await _deliver_steadily(stage, other)


async def _update_across(stage: Stage) -> Figures:
    # Somebody else is there to be told.
    async with stage.new_service():
        return await _ask(stage, stage.service, "update", stage.plan.key, stage.url)


def _update_watched(lists: int) -> Measure:
    """Updates, while so many watch the list of all tasks."""

    async def measure(stage: Stage) -> Figures:
        async with AsyncExitStack() as stack:
            takers = [await stack.enter_async_context(_watching_list(stage)) for _ in range(lists)]
            figures = await _ask(stage, stage.service, "update", stage.plan.key, stage.url)
            if any(taker.ended for taker in takers):
                raise Failed("A list has ended: more tasks had changed than could wait.")
        return figures

    return measure


class _Taker(asyncio.Protocol):
    """Takes what a socket brings, and looks only whether its list has ended."""

    ended = False

    def data_received(self, data: bytes) -> None:
        self.ended = self.ended or b"LIST_OUTDATED" in data


@asynccontextmanager
async def _watching_list(stage: Stage) -> AsyncIterator[_Taker]:
    url = f"ws://127.0.0.1:{stage.service.port}/graphql"
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect(url, subprotocols=protocols, compression=None, proxy=None) as socket:
        credential = {"Authorization": f"Bearer {stage.plan.databases.key}"}
        await socket.send(json.dumps({"type": "connection_init", "payload": credential}))
        await _next(socket, "connection_ack")
        await socket.send(json.dumps({"id": SAME_ID, "type": "subscribe", "payload": json.loads(_body("list"))}))
        # Its answer says that the list is watched.
        await socket.send(json.dumps({"id": "0", "type": "subscribe", "payload": {"query": "{ viewer { name } }"}}))
        await _next(socket, "next")
        await _next(socket, "complete")
        taker = _Taker()
        socket.transport.set_protocol(taker)
        try:
            yield taker
        finally:
            socket.transport.set_protocol(socket)
            socket.transport.abort()


async def _deliver_steadily(stage: Stage, server: Server) -> Figures:
    """To the sockets of a server; the cost is that of the service, which makes the changes."""
    plan = stage.plan
    async with plan.generating(server, stage.service) as load:
        await load.connect(TOPICS, 0, TOPICS, own=True)
        await load.command(f"steady {STEADY_PER_S} {WARM_UP_S}")
        await stage.service.settle()
        await checkpoint(stage.url)
        with Cost(stage.service, plan.databases.postmaster) as cost:
            measured = await load.command(f"steady {STEADY_PER_S} {plan.seconds}")
        await load.command("close")
    await stage.service.settle()
    return {
        "per_s": measured["updates"] / measured["seconds"],
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        **_cpu(cost, measured["updates"]),
    }


async def _resume(stage: Stage) -> Figures:
    plan = stage.plan
    # A clone of its own: nobody has missed anything.
    async with plan.databases.clone("bench_resume") as url, plan.service(url) as server:
        before = await transactions_of(plan.databases, url)
        async with plan.generating(server, document="resumption") as load:
            with Cost(server, plan.databases.postmaster) as cost:
                counted = await load.connect(IDLE_SOCKETS, 0, IDLE_SOCKETS, own=True)
            after = await transactions_of(plan.databases, url)
            await load.command("close")
    return {
        "resume_s": counted["seconds"],
        "resume_queries": after - before,
        "resume_us": cost.server_s / IDLE_SOCKETS * 1e6,
    }


async def _resync(stage: Stage) -> Figures:
    """By the storage alone, because a server tells nobody when it begins to compare."""
    async with (
        open_storage(stage.url, upgrade=False, feed_url=stage.url) as storage,
        AsyncExitStack() as stack,
    ):
        for task_id in TASK_IDS:
            watch = await stack.enter_async_context(aclosing(storage.watch(task_id)))
            await anext(watch)
        follower = storage.follower
        took_ms: list[float] = []
        stalls_ms: list[float] = []
        while len(took_ms) < RESYNCS:
            seen, stalled_s = follower.resyncs, 0.0
            follower.resync()
            while follower.resyncs == seen:
                turn = time.perf_counter()
                await asyncio.sleep(0)
                stalled_s = max(stalled_s, time.perf_counter() - turn)
            took_ms.append(1e3 * follower.resync_s)
            stalls_ms.append(1e3 * stalled_s)
        if follower.repairs:
            raise Failed(f"Nothing had changed, and {follower.repairs} tasks were mended.")
    return {"resync_ms": statistics.median(took_ms), "stall_ms": statistics.median(stalls_ms)}


async def _idle_service(stage: Stage) -> Figures:
    async with stage.new_service() as server:
        return await _idle(stage, server, own=True)


async def _idle_broadcast(stage: Stage) -> Figures:
    async with stage.new_broadcast() as server:
        return await _idle(stage, server, own=False)


async def _idle(stage: Stage, server: Server, *, own: bool) -> Figures:
    plan = stage.plan
    async with plan.generating(server) as load:
        # What is made once, for the first of all.
        await load.connect(CONNECTIONS, 0, CONNECTIONS, own=own)
        await load.command("close")
        await server.settle()
        rss = server.rss_bytes()
        with Cost(server, plan.databases.postmaster) as connecting:
            await load.connect(IDLE_SOCKETS, 0, IDLE_SOCKETS, own=own)
            await load.command("idle 1")
        rss = server.rss_bytes() - rss
        with Cost(server, plan.databases.postmaster) as idle:
            await load.command(f"idle {plan.idle_s}")
        await load.command("close")
    return {
        "rss_kb": rss / IDLE_SOCKETS / 1e3,
        "connect_us": connecting.server_s / IDLE_SOCKETS * 1e6,
        "idle_percent": 100 * idle.server_s / idle.seconds,
    }


async def _start(stage: Stage) -> Figures:
    async with stage.new_service() as server:
        return {"start_ms": 1e3 * server.started_in_s, "start_cpu_ms": 1e3 * server.cpu_s()}


# ---------------------------------------------------------------- the driver


def _driver(kind: str) -> Measure:
    async def measure(stage: Stage) -> Figures:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.floors", kind, stage.floor_url, str(stage.plan.seconds)),
            str(stage.plan.databases.postmaster),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise Failed(f"The floor {kind!r} ended with status {process.returncode}.")
        figures: Figures = json.loads(said)
        return figures

    return measure


# ---------------------------------------------------------------- samples


async def take_samples(plan: Plan) -> Samples:
    """Ask the service once, and listen to one change."""
    async with (
        plan.databases.clone("bench_samples") as url,
        plan.service(url) as server,
        asyncio.timeout(START_TIMEOUT_S),
        connect(
            f"ws://127.0.0.1:{server.port}/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            compression=None,
            proxy=None,
        ) as socket,
    ):
        answer = {"data": await server.ask(_body("task", taskId=HOT_ID), plan.key)}
        credential = {"Authorization": f"Bearer {plan.key}"} if plan.key else {}
        await socket.send(json.dumps({"type": "connection_init", "payload": credential}))
        await _next(socket, "connection_ack")
        payload = json.loads(_body("subscription", taskId=HOT_ID))
        await socket.send(json.dumps({"id": SAME_ID, "type": "subscribe", "payload": payload}))
        await _next(socket, "next")
        await server.ask(_body("mutation", taskId=HOT_ID, progress=50), plan.key)
        frame = await _next(socket, "next")
    marked, count = re.subn(r'("events":\[\{"seq":)\d+', rf"\g<1>{SEQ}", frame)
    if count != 1:
        raise Failed(f"A frame without an event: {frame}")
    return Samples(json.dumps(answer, separators=(",", ":")), marked)


async def _next(socket: ClientConnection, kind: str) -> str:
    message = await socket.recv(decode=True)
    if json.loads(message)["type"] != kind:
        raise Failed(f"Instead of {kind} came {message}")
    return message


# ---------------------------------------------------------------- all of them


def _fan_out_row(subscribers: int) -> Row:
    service, broadcast = _fan_out(subscribers)
    several = f"{subscribers:,} subscriber{'s' if subscribers > 1 else ''}"
    return Row(
        f"fan-out-{subscribers}",
        f"delivery to {several} of one task",
        service,
        # Delivered to one alone, the mutation is what costs.
        (Floor(f"broadcast to {subscribers:,}", broadcast, 1.5 if subscribers > 1 else None),),
        sockets=subscribers,
    )


LOADS: Final = (
    Row(
        "update",
        "`updateProgress`, different tasks",
        _http("update", writes=True),
        (Floor(f"asyncpg: the update in groups of {CONNECTIONS}", _driver("group")),),
    ),
    Row("update-across", "the same, while another process listens", _update_across),
    Row("update-list", "the same, while one watches the list of all tasks", _update_watched(1)),
    Row("update-lists", "the same, while ten watch it", _update_watched(10)),
    Row("update-hot", "`updateProgress`, one task", _http("update-hot", writes=True)),
    Row(
        "task",
        "`task`, six fields",
        _http("task"),
        (Floor("JSON echo", _echo, 2.0), Floor("asyncpg: one row", _driver("lookup"))),
    ),
    Row("history", "`task`, `history(last: 50)`", _http("history")),
    Row("page", "`tasks(first: 50)`, with a key", _http("page", needs_key=True)),
    _fan_out_row(1),
    _fan_out_row(1_000),
    _fan_out_row(10_000),
    Row("steady", f"update at {STEADY_PER_S}/s, {TOPICS:,} subscribers of {TOPICS:,} tasks", _steady, sockets=TOPICS),
    Row("steady-across", "the same, with the subscribers on another process", _steady_across, sockets=TOPICS),
)
OTHERS: Final = (
    Row(
        "idle",
        f"{IDLE_SOCKETS:,} sockets with a subscription each",
        _idle_service,
        (Floor("broadcast", _idle_broadcast),),
        sockets=IDLE_SOCKETS,
    ),
    Row("resume", f"{IDLE_SOCKETS:,} sockets that come back at once", _resume, sockets=IDLE_SOCKETS),
    Row("resync", f"comparing {len(TASK_IDS):,} watched tasks with the database", _resync),
    Row("start", "start", _start),
)
ROWS: Final = (*LOADS, *OTHERS)
