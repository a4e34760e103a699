"""A run: clients work while faults come one after the other; when all is quiet, everything is checked.

It goes by rounds. A round has tasks of its own, so that what was checked can be forgotten, and ends like this: the last
fault begins, reporters stop while it lasts, it ends, nothing is broken any more; then subscribers must come to see all
that there is without being given a hand. Then planners and workers go on for a while with nothing broken, in which
timers must be on time, until every task has come to its end. When all have gone nothing may be left of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, TypeAlias

from tests.faults.bells import Bell
from tests.faults.caller import Caller
from tests.faults.checker import Log, check, read
from tests.faults.faults import Scene, faults_of
from tests.faults.journal import VIOLATIONS_SHOWN_MAX, Journal
from tests.faults.ledger import Ledger, Trouble, View
from tests.faults.lists import check_lists, differences, read_history, read_states
from tests.faults.planners import Planner
from tests.faults.plans import TAKEOVER_S, check_plans, check_quiet
from tests.faults.reporters import Reporter
from tests.faults.revivers import Reviver
from tests.faults.subscribers import Subscriber
from tests.faults.watchers import Watcher
from tests.faults.workers import Worker
from tests.faults.world import SETTINGS, Feed, World, running_world
from tests.postgres import session

ROUND_S: Final = 60.0
# Between the recovery from one fault and the beginning of the next.
PAUSES_S: Final = (0.3, 1.2)
# How long the last fault lasts, at least, before reporters stop; and at most after they were told to.
LAST_FAULT_S: Final = 1.0
# From the last change until every subscriber has seen it, without a connection having to end for it.
TAIL_S: Final = 15.0
LEAK_TIMEOUT_S: Final = 15.0
# Sockets that a server may have more than at its start, beside its pool and its feed: what its loop and its health
# check may have opened, and an idle connection of the broker's client.
SOCKETS_SLACK: Final = 4
# How long planners and workers go on when nothing is broken, and whoever looks for what is due had time to be replaced:
# what is due then must be done in time. And from then until every task that waits must have come to its end.
CALM_S: Final = 2.0
# Servers that take longer to find nothing in a queue have a machine that is busy with something else.
SLOW_S: Final = 0.5
_NOTHING: Final = 'mutation { claim(worker: "nobody", queue: "nothing") { token } }'
DRAIN_S: Final = 20.0
# From the end of the last fault until servers hear of each other: some tries to connect, each after a longer pause.
HEARD_TIMEOUT_S: Final = 15.0
REVIVERS: Final = 2
_POLL_S: Final = 0.1
# Nothing was written for so long: no request of a client that has gone is on its way any more.
_QUIET_S: Final = 1.0
_QUIET_TIMEOUT_S: Final = 30.0
_WAITING: Final = "SELECT count(*) FROM tasks WHERE task_id = ANY($1) AND status IN ('PENDING', 'IN_PROGRESS')"


Client: TypeAlias = Reporter | Planner | Worker | Reviver
"""Who does things until told to stop."""


@dataclass(frozen=True)
class Options:
    """What a run does."""

    seed: int
    seconds: float
    feed: Feed | None
    servers: int = 2
    # By name; None: all that make sense.
    faults: Sequence[str] | None = None
    planted: str | None = None
    tasks: int = 40
    reporters: int = 12
    subscribers: int = 20
    planners: int = 3
    workers: int = 8
    # Those who watch lists, with somebody whose tasks come and go; and those who wait for a bell before they work.
    watchers: int = 6
    belled: int = 2
    tail_s: float = TAIL_S
    calm_s: float = CALM_S
    drain_s: float = DRAIN_S
    echo: bool = False


async def run(options: Options) -> Journal:
    """Run, and return what was done and found."""
    journal = Journal(options.echo)
    journal.note(f"{options}")
    async with running_world(journal, feed=options.feed, servers=options.servers, planted=options.planted) as world:
        deadline = time.monotonic() + options.seconds
        number = 0
        while number == 0 or (time.monotonic() < deadline and not journal.violations):
            number += 1
            await _round(world, options, number, min(deadline, time.monotonic() + ROUND_S))
        if journal.violations:
            journal.note(world.last_words())
    return journal


def summary(journal: Journal, options: Options) -> str:
    """What came of it."""
    violations = journal.violations[:VIOLATIONS_SHOWN_MAX]
    count = len(journal.violations)
    return "\n".join([*violations, f"{count} violations with {options}", journal.counted()])


def report(journal: Journal, options: Options) -> str:
    """What a person needs who wants to know why a run has failed."""
    return "\n".join([*journal.lines, summary(journal, options)])


async def _round(world: World, options: Options, number: int, ends_at: float) -> None:
    journal = world.journal
    journal.note(f"round {number} begins")
    journal.counts["rounds"] += 1
    ledger, since = Ledger(), datetime.now(UTC)
    ports = [node.port for node in world.nodes]
    caller = Caller(ports, world.admin_key, journal, ledger)
    random = Random(f"{options.seed}/{number}")
    scene = Scene(world, random, ledger, caller, over=asyncio.Event())
    stop = asyncio.Event()
    reporters = [
        Reporter(f"r{number}-{one}", caller, ledger, Random(f"{options.seed}/{number}/r{one}"))
        for one in range(options.reporters)
    ]
    queue = f"queue {number}"
    planners = [
        Planner(f"p{number}-{one}", queue, caller, ledger, Random(f"{options.seed}/{number}/p{one}"))
        for one in range(options.planners)
    ]
    workers = [
        Worker(f"w{number}-{one}", queue, caller, ledger, Random(f"{options.seed}/{number}/w{one}"), journal)
        for one in range(options.workers)
    ]
    subscribers = [
        Subscriber(f"s{number}-{one}", ports, ledger, Random(f"{options.seed}/{number}/s{one}"), journal)
        for one in range(options.subscribers)
    ]
    revivers = [
        Reviver(f"v{number}-{one}", caller, Random(f"{options.seed}/{number}/v{one}"), journal)
        for one in range(REVIVERS if options.watchers else 0)
    ]
    wishes = _wishes(number, queue)
    watchers = [
        Watcher(
            f"l{number}-{one}",
            ports,
            world.admin_key,
            wishes[one % len(wishes)],
            since,
            ledger,
            Random(f"{options.seed}/{number}/l{one}"),
            journal,
        )
        for one in range(options.watchers)
    ]
    belled, bells = f"belled queue {number}", []
    if options.belled:
        ledger.belled.add(belled)
        planners.append(Planner(f"b{number}", belled, caller, ledger, Random(f"{options.seed}/{number}/b")))
    for one in range(options.belled):
        name, chance = f"x{number}-{one}", Random(f"{options.seed}/{number}/x{one}")
        bells.append(Bell(name, belled, ports, world.admin_key, chance, journal))
        workers.append(Worker(name, belled, caller, ledger, chance, journal, bells[-1], hurry=_always()))
    try:
        for one in range(options.tasks):
            await reporters[0].create(f"t{number}-{one}", stop)
        async with _running(
            [*(one.run(stop) for one in subscribers), *(one.run() for one in watchers), *(bell.run() for bell in bells)]
        ) as watching:
            clients: Sequence[Client] = [*reporters, *planners, *workers, *revivers]
            async with _running([one.run(stop) for one in clients]) as reporting:
                await _faults(scene, options, ends_at, stop)
                await asyncio.wait(reporting)
                _finished(reporting)
            await world.recovered()
            await _quiet(world)
            await _all_seen(world, ledger, since, options.tail_s, "when the last fault was over")
            async with _running([_slow(ledger, caller)]):
                if planners:
                    await _calm(world, ledger, [*planners, *revivers], workers, options)
                if not journal.violations:
                    # And once more with nothing broken, so that every way from a server to a subscriber is tried.
                    await asyncio.gather(*(reporters[0].call(task_id, stop) for task_id in ledger.open_tasks))
                    await _all_seen(world, ledger, since, options.tail_s, "with nothing broken")
            _finished([task for task in watching if task.done()])
    finally:
        await caller.close()
    log = await read(world.cluster.url(), [*ledger.task_ids, *ledger.plans])
    ledger.troubles.sort()
    history = await read_history(world.cluster.url(), since)
    for violation in (
        *check(ledger, log),
        *check_plans(ledger, log),
        *check_quiet(ledger, log),
        *check_lists(ledger, history, since),
    ):
        journal.violation(violation)
    await _leaks(world)
    journal.counts["events"] += sum(map(len, log.lines.values()))
    journal.counts["states of tasks"] += sum(map(len, history.changes.values()))
    journal.counts["views of lists"] += len(ledger.lists)
    journal.counts["views of tasks"] += len(ledger.views)
    journal.counts["events seen"] += sum(len(view.events) for view in ledger.views)
    journal.counts["tasks"] += len(log.tasks)
    journal.counts["tasks that were deleted"] += len(log.gone)


def _wishes(number: int, queue: str) -> list[dict[str, Any]]:
    """What those who watch lists ask for, one after the other."""
    return [
        {},
        {"status": ["SUCCESS"]},
        {"status": ["PENDING", "IN_PROGRESS"]},
        {"tags": ["tag 1"]},
        {"queue": queue, "status": ["IN_PROGRESS", "FAILED", "CANCELED"]},
        {"taskIdPrefix": f"v{number}-"},
    ]


def _always() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _calm(
    world: World, ledger: Ledger, planners: Sequence[Planner | Reviver], workers: Sequence[Worker], options: Options
) -> None:
    """Plan and work while nothing is broken, then only work, until every task that waits has come to its end."""
    world.journal.note("planning and working with nothing broken")
    enough, stop = asyncio.Event(), asyncio.Event()
    await _heard(world, ledger)
    async with _running([one.run(stop) for one in workers]) as working:
        async with _running([one.run(enough) for one in planners]) as planning:
            await asyncio.sleep(options.calm_s)
            enough.set()
            await asyncio.wait(planning)
            _finished(planning)
        for worker in workers:
            worker.hurry.set()
        deadline = time.monotonic() + options.drain_s
        async with session(world.cluster.url()) as connection:
            # What has not come to its end then is for the checker to name.
            waiting = True
            while waiting and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
                waiting = await connection.fetchval(_WAITING, list(ledger.plans))
        stop.set()
        await asyncio.wait(working)
        _finished(working)


async def _heard(world: World, ledger: Ledger) -> None:
    """Wait until the last fault is overcome, and servers hear of each other: nobody works, and what is told is late."""
    began_at, deadline = ledger.troubles[-1].ends_at, time.monotonic() + HEARD_TIMEOUT_S
    await asyncio.sleep((began_at - datetime.now(UTC)).total_seconds())
    while any([await node.server.feed() == "degraded" for node in world.nodes]):
        if time.monotonic() > deadline:
            world.journal.violation(f"Servers do not hear of each other {HEARD_TIMEOUT_S:.0f} s after the last fault.")
            break
        await asyncio.sleep(_POLL_S)
    if (heard_at := datetime.now(UTC)) > began_at:
        ledger.troubles.append(Trouble(began_at, heard_at))


async def _slow(ledger: Ledger, caller: Caller) -> None:
    """Write down when the machine is so busy that nothing can be expected to be in time."""
    while True:
        asked_at = datetime.now(UTC)
        await asyncio.gather(*(caller.ask(server, _NOTHING, {}) for server in range(caller.servers)))
        answered_at = datetime.now(UTC)
        if (answered_at - asked_at).total_seconds() > SLOW_S:
            ledger.troubles.append(Trouble(asked_at, answered_at))
        await asyncio.sleep(_POLL_S)


async def _faults(scene: Scene, options: Options, ends_at: float, stop: asyncio.Event) -> None:
    """One fault after the other; the last one is still on when the reporters are told to stop."""
    faults = faults_of(scene.world)
    names = list(options.faults or faults)
    # Each once, in some order, before any comes again.
    waiting: list[str] = []
    last = False
    while not last:
        await asyncio.sleep(scene.random.uniform(*PAUSES_S))
        if not waiting:
            waiting = scene.random.sample(names, len(names))
        name = waiting.pop()
        last = scene.last = time.monotonic() >= ends_at or bool(scene.world.journal.violations)
        scene.world.journal.counts[f"fault: {name}"] += 1
        began_at, trouble_began_at = time.monotonic(), datetime.now(UTC)
        if last:
            fault = asyncio.ensure_future(faults[name](scene))
            await asyncio.wait([fault], timeout=LAST_FAULT_S)
            stop.set()
            await asyncio.wait([fault], timeout=LAST_FAULT_S)
            scene.over.set()
            await fault
        else:
            await faults[name](scene)
        mended_at = time.monotonic()
        await scene.world.recovered()
        scene.ledger.troubles.append(Trouble(trouble_began_at, datetime.now(UTC) + timedelta(seconds=TAKEOVER_S)))
        scene.note(f"{name}: it took {mended_at - began_at:.1f} s, and {time.monotonic() - mended_at:.1f} s to recover")


async def _quiet(world: World) -> None:
    """Wait until nothing is written any more."""
    before, since = -1, time.monotonic()
    deadline = since + _QUIET_TIMEOUT_S
    async with session(world.cluster.url()) as connection:
        while time.monotonic() < deadline:
            now = await connection.fetchval("SELECT coalesce(sum(seq), 0) FROM tasks")
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > _QUIET_S:
                return
            await asyncio.sleep(_POLL_S)
    raise AssertionError("something is still being written although all reporters have stopped")


async def _all_seen(world: World, ledger: Ledger, since: datetime, tail_s: float, when: str) -> None:
    """Wait, within bounds, until every subscriber has seen all that there is."""
    world.journal.note(f"waiting for subscribers to see all that was reported, {when}")
    await asyncio.gather(_views_seen(world, ledger, tail_s, when), _lists_seen(world, ledger, since, tail_s, when))


async def _lists_seen(world: World, ledger: Ledger, since: datetime, tail_s: float, when: str) -> None:
    """Wait, within bounds, until every list shows what is in the table."""
    deadline = time.monotonic() + tail_s
    while wrong := await _wrong(world, ledger, since):
        if time.monotonic() > deadline:
            for sentence in wrong:
                world.journal.violation(f"{sentence.removesuffix('.')}, {tail_s:.0f} s after the last report, {when}.")
            return
        await asyncio.sleep(_POLL_S)


async def _wrong(world: World, ledger: Ledger, since: datetime) -> list[str]:
    views = [view for view in ledger.lists if view.ended_at is None]
    there = await read_states(world.cluster.url(), since) if views else {}
    return [sentence for view in views for sentence in differences(view, there, since)]


async def _views_seen(world: World, ledger: Ledger, tail_s: float, when: str) -> None:
    """Wait, within bounds, until every subscriber has seen the end of its task's log."""
    log = await read(world.cluster.url(), [*ledger.task_ids, *ledger.plans])
    deadline = time.monotonic() + tail_s
    while behind := [view for view in ledger.views if not view.ended and view.last < _end(log, view)]:
        if time.monotonic() > deadline:
            for view in behind:
                world.journal.violation(
                    f"{view} has seen event {view.last} of {_end(log, view)} {tail_s:.0f} s "
                    f"after the last report, {when}."
                )
            return
        await asyncio.sleep(_POLL_S)


def _end(log: Log, view: View) -> int:
    task = log.tasks.get(view.task_id)
    return 0 if task is None else task.seq


async def _leaks(world: World) -> None:
    """Clients have gone; nothing may be left of them in the servers, nor in PostgreSQL."""
    deadline = time.monotonic() + LEAK_TIMEOUT_S
    while left := await _left(world):
        if time.monotonic() > deadline:
            for sentence in left:
                world.journal.violation(sentence)
            return
        await asyncio.sleep(_POLL_S)


async def _left(world: World) -> list[str]:
    pool = int(SETTINGS["database_connections_max"])
    sentences = []
    for node in world.nodes:
        sockets, most = node.server.sockets(), node.server.sockets_at_start + pool + SOCKETS_SLACK
        if node.clients.connections:
            sentences.append(f"{node.name} still has {node.clients.connections} connections of clients that have gone.")
        if node.database.connections > pool:
            sentences.append(f"{node.name} has {node.database.connections} connections to PostgreSQL; at most {pool}.")
        if node.feed.connections > 1:
            sentences.append(f"{node.name} has {node.feed.connections} connections of its feed; at most 1.")
        if sockets > most:
            began = node.server.sockets_at_start
            sentences.append(f"{node.name} has {sockets} sockets open; at most {most}, and {began} at its start.")
    async with session(world.cluster.url()) as connection:
        sessions = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    if sessions > (most := len(world.nodes) * (pool + 1)):
        sentences.append(f"PostgreSQL has {sessions} sessions; at most {most}.")
    return sentences


@asynccontextmanager
async def _running(coroutines: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that are at work while the block lasts."""
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _finished(tasks: Sequence[asyncio.Task[None]]) -> None:
    """What failed in a client is a fault of the client's, and ends the run."""
    for task in tasks:
        task.result()
