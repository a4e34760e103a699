"""All that a run needs: PostgreSQL, servers, a broker where one is used, and proxies on every way between them."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from graphql_api.settings import PREFIX
from storage import Permission, open_storage, upgrade_database
from tests.faults.archive import keep_archive
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.journal import Journal
from tests.faults.ports import HOST, free_port
from tests.faults.processes import Nats, Server, nats_program
from tests.faults.proxy import Proxy

Feed = Literal["postgres", "nats"]
FEEDS: Final[tuple[Feed, ...]] = ("postgres", "nats")

# Small, so that faults of seconds reach the bounds.
SETTINGS: Final[Mapping[str, str]] = {
    "migrate_on_start": "false",
    "database_connections_max": "6",
    "database_wait_ms": "2000",
    "statement_timeout_ms": "2000",
    "lock_timeout_ms": "1000",
    "group_commands_max": "32",
    "waiting_commands_max": "100",
    "shutdown_timeout_ms": "2000",
}
# From the end of a fault until every server says that it is ready.
RECOVERY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Node:
    """A server with the ways to it and from it."""

    server: Server
    # Clients connect here.
    clients: Proxy
    # Its pool connects here.
    database: Proxy
    # The connection by which it hears of the others: to PostgreSQL directly, or to the broker.
    feed: Proxy

    @property
    def name(self) -> str:
        """The server's."""
        return self.server.name

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.clients.port


@dataclass(frozen=True)
class World:
    """What runs."""

    cluster: Cluster
    nodes: list[Node]
    nats: Nats | None
    # Whether there is a connection of its own by which a server hears of the others.
    has_feed: bool
    # May do everything.
    admin_key: str
    journal: Journal

    async def recovered(self) -> None:
        """Wait until every server is ready; it is promised that no restart is needed for that."""
        for node in self.nodes:
            if await node.server.ready(RECOVERY_TIMEOUT_S):
                continue
            status = node.server.died
            why = f"it ended with status {status}" if status is not None else f"after {RECOVERY_TIMEOUT_S:.0f} s"
            self.journal.violation(f"{node.name} is not ready although nothing is broken any more: {why}.")
            self.journal.note(node.server.last_words())
            # So that the run can go on.
            await node.server.kill()
            await start(node)

    def last_words(self) -> str:
        """The ends of all logs."""
        return "\n".join(node.server.last_words() for node in self.nodes)


async def start(node: Node) -> bool:
    """Start a server and wait until it is ready; whether it came to that."""
    await node.server.start()
    ready = await node.server.ready()
    if ready:
        node.server.sockets_at_start = node.server.sockets()
    return ready


def missing(feed: Feed) -> str | None:
    """Why a run with this feed is not possible here, if so."""
    if feed == "nats" and find_spec("storage.feed_nats") is None:
        return "this program has no feed by NATS"
    if feed == "nats" and nats_program() is None:
        return "there is no nats-server; Debian's package has that name"
    return None


@asynccontextmanager
async def running_world(
    journal: Journal, *, feed: Feed | None, servers: int = 2, planted: str | None = None
) -> AsyncIterator[World]:
    """Everything, started and ready, while the block lasts; `planted` names a bug that the servers then have."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spectral-faults-", dir="/tmp")))
        cluster = await stack.enter_async_context(running_cluster(folder))
        await upgrade_database(cluster.url())
        await keep_archive(cluster.url())
        async with open_storage(cluster.url(), upgrade=False) as storage:
            admin_key = await storage.keys.create("admin", [Permission.ADMIN])
        nats = None
        if feed == "nats":
            program = nats_program()
            assert program is not None
            nats = await stack.enter_async_context(Nats(program, folder / "nats.log"))
            await nats.start()
            await nats.ready()
        nodes = []
        for number in range(1, servers + 1):
            port = free_port()
            clients = await stack.enter_async_context(Proxy(port))
            database = await stack.enter_async_context(Proxy(cluster.port))
            hearing = await stack.enter_async_context(Proxy(nats.port if nats else cluster.port))
            environ = _environ(port, cluster.url(database.port), _feed_settings(feed, cluster, hearing.port))
            log_file = folder / f"server-{number}.log"
            server = Server(f"server {number}", _command(planted), environ, log_file, port)
            nodes.append(Node(await stack.enter_async_context(server), clients, database, hearing))
        world = World(cluster, nodes, nats, feed is not None, admin_key, journal)
        if not all(await asyncio.gather(*(start(node) for node in nodes))):
            raise AssertionError(f"a server does not start:\n{world.last_words()}")
        journal.note(f"{servers} servers are ready; feed {feed or 'none'}, planted {planted or 'nothing'}")
        yield world


def _command(planted: str | None) -> list[str]:
    program = ["graphql_api"] if planted is None else ["tests.faults.planted", planted]
    return [sys.executable, "-m", *program, "serve"]


def _feed_settings(feed: Feed | None, cluster: Cluster, port: int) -> dict[str, str]:
    if feed == "postgres":
        return {"listen_url": cluster.url(port)}
    # Servers that are told to be alone hear nothing of each other.
    return {"feed_url": "alone" if feed is None else f"nats://{HOST}:{port}"}


def _environ(port: int, database_url: str, feed_settings: Mapping[str, str]) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    settings = {**SETTINGS, "host": HOST, "port": str(port), "database_url": database_url, **feed_settings}
    return {**outside, **{PREFIX + name.upper(): value for name, value in settings.items()}}
