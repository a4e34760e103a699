"""The faults: each breaks something of the world for a while, and has mended it when it returns.

A fault that lasts is told how: it waits for ``held``, which ends after some seconds or, for the last fault of a round,
when the reporters have stopped. So whatever was reported while it lasted is the last thing there is to hear.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

from storage import AddEvent, EventType
from tests.faults.caller import Caller
from tests.faults.cluster import Mode
from tests.faults.ledger import KEY, Ledger
from tests.faults.processes import Process
from tests.faults.proxy import Proxy
from tests.faults.world import Node, World, start

HOLD_S: Final = (0.3, 3.0)
# Longer than clients wait for an answer to a ping, and than the database for a statement.
LONG_HOLD_S: Final = 5.0
DELAYS_S: Final = (0.02, 0.3)
FLOOD_REPORTS: Final = 300
FLOOD_DELAY_S: Final = 0.1
# The way that a fault breaks.
WAYS: Final = ("clients", "database", "feed")


@dataclass
class Scene:
    """What a fault may use."""

    world: World
    random: Random
    ledger: Ledger
    caller: Caller
    # Set when the fault is to end now.
    over: asyncio.Event
    # Whether it is the round's last one, which lasts until it is over.
    last: bool = False
    floods: int = 0

    async def held(self, seconds: float | None = None) -> None:
        """Wait for as long as the fault lasts."""
        drawn = self.random.uniform(*HOLD_S)
        seconds = LONG_HOLD_S if self.last else seconds or drawn
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            pass

    def node(self) -> Node:
        """One server."""
        return self.random.choice(self.world.nodes)

    def nodes(self) -> list[Node]:
        """One server or all."""
        return self.world.nodes if self.random.random() < 0.3 else [self.node()]

    def note(self, words: str) -> None:
        """Write down what is being done."""
        self.world.journal.note(words)


Fault: TypeAlias = Callable[[Scene], Awaitable[None]]


async def kill_a_server(scene: Scene) -> None:
    """SIGKILL, some time without it, and a new process on the same port."""
    node = scene.node()
    scene.note(f"kill {node.name}")
    await node.server.kill()
    await scene.held()
    await _started(scene, node)


async def restart_postgres_fast(scene: Scene) -> None:
    """As an administrator does it."""
    await _restart_postgres(scene, "fast")


async def restart_postgres_immediate(scene: Scene) -> None:
    """As a crash does it."""
    await _restart_postgres(scene, "immediate")


async def _restart_postgres(scene: Scene, mode: Mode) -> None:
    away = scene.random.random() < 0.5
    scene.note(f"stop PostgreSQL ({mode}){', for a while' if away else ''}")
    await scene.world.cluster.stop(mode)
    if away:
        await scene.held()
    await scene.world.cluster.start()
    scene.note("PostgreSQL runs again")


def cut(way: str) -> Fault:
    """All connections of one way end, and for a while no new ones begin."""

    async def fault(scene: Scene) -> None:
        nodes, reset = scene.nodes(), scene.random.random() < 0.5
        brief = scene.random.random() < 0.5 and not scene.last
        scene.note(f"cut {way} of {_names(nodes)} ({'reset' if reset else 'end'}, {'once' if brief else 'and refuse'})")
        if brief:
            await asyncio.gather(*(_way(node, way).cut(reset=reset) for node in nodes))
            return
        async with _all_refusing([_way(node, way) for node in nodes]):
            await scene.held()

    return fault


def delay(way: str) -> Fault:
    """Everything that goes one way takes longer."""

    async def fault(scene: Scene) -> None:
        nodes, seconds = scene.nodes(), scene.random.uniform(*DELAYS_S)
        scene.note(f"delay {way} of {_names(nodes)} by {1000 * seconds:.0f} ms")
        with ExitStack() as stack:
            for node in nodes:
                stack.enter_context(_way(node, way).delayed(seconds))
            await scene.held()

    return fault


def stall(way: str) -> Fault:
    """Connections stay open, and nothing arrives."""

    async def fault(scene: Scene) -> None:
        nodes = scene.nodes()
        seconds = LONG_HOLD_S if scene.random.random() < 0.5 else None
        scene.note(f"stall {way} of {_names(nodes)}")
        with ExitStack() as stack:
            for node in nodes:
                stack.enter_context(_way(node, way).stalled())
            await scene.held(seconds)

    return fault


async def kill_nats(scene: Scene) -> None:
    """The broker dies and comes back empty."""
    nats = scene.world.nats
    assert nats is not None
    scene.note("kill NATS")
    await nats.kill()
    await scene.held()
    await nats.start()
    await nats.ready()


async def pause_a_server(scene: Scene) -> None:
    """A process that stands still for 5 s, with all that it holds, and then goes on as if nothing had been."""
    process: Process = scene.node().server
    scene.note(f"pause {process.name}")
    process.pause()
    try:
        await scene.held(LONG_HOLD_S)
    finally:
        process.go_on()


async def deploy(scene: Scene) -> None:
    """Each server in turn is stopped in order and replaced."""
    for node in scene.world.nodes:
        scene.note(f"stop {node.name} for a deploy")
        status = await node.server.stop()
        if status != 0:
            scene.world.journal.violation(f"{node.name} was told to stop and ended with {status}.")
        await _started(scene, node)


async def flood(scene: Scene) -> None:
    """More reports at once than one server may have waiting, while its database is slow."""
    number = scene.random.randrange(len(scene.world.nodes))
    node = scene.world.nodes[number]
    scene.floods += 1
    scene.note(f"flood {node.name} with {FLOOD_REPORTS} reports")
    entries = []
    for count in range(FLOOD_REPORTS):
        name = f"flood {scene.floods}/{count}"
        task_id = scene.random.choice(scene.ledger.open_tasks)
        report = AddEvent(task_id=task_id, event_type=EventType.LOG, message=f"m {name}", metadata={KEY: name})
        entries.append(scene.ledger.enter(name, report))
    with node.database.delayed(FLOOD_DELAY_S):
        await asyncio.gather(*(scene.caller.attempt(entry, number) for entry in entries))
    refused = sum("Too many changes are waiting" in entry.said for entry in entries)
    scene.world.journal.counts["refused: too many were waiting"] += refused
    scene.note(f"{refused} of the flood were refused because too many were waiting")


def faults_of(world: World) -> dict[str, Fault]:
    """All faults that make sense in a world, by name."""
    faults: dict[str, Fault] = {
        "kill a server": kill_a_server,
        "restart PostgreSQL fast": restart_postgres_fast,
        "restart PostgreSQL immediate": restart_postgres_immediate,
        "pause a server": pause_a_server,
        "deploy": deploy,
        "flood": flood,
    }
    if world.nats is not None:
        faults["kill NATS"] = kill_nats
    for way in WAYS:
        if way != "feed" or world.has_feed:
            faults |= {f"cut {way}": cut(way), f"delay {way}": delay(way), f"stall {way}": stall(way)}
    return faults


async def _started(scene: Scene, node: Node) -> None:
    if not await start(node):
        scene.world.journal.violation(f"{node.name} was started again and did not become ready.")


def _way(node: Node, way: str) -> Proxy:
    return {"clients": node.clients, "database": node.database, "feed": node.feed}[way]


def _names(nodes: Sequence[Node]) -> str:
    return " and ".join(node.name for node in nodes)


@asynccontextmanager
async def _all_refusing(proxies: Sequence[Proxy]) -> AsyncIterator[None]:
    if not proxies:
        yield
        return
    async with proxies[0].refusing(), _all_refusing(proxies[1:]):
        yield
