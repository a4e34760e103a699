"""What the tests of the storage share, so that each of them can be a whole small program."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import make_url

from storage import AddEvent, Command, Event, EventType, Storage, Task, Update, Watch, group, open_storage
from storage.database import driver_arguments
from storage.pool import Connection, Pool
from tests.faults.ports import HOST
from tests.faults.proxy import Proxy
from tests.postgres import session

# The message of every first event.
CREATED: Final = "Task created"
# Statements that put something on disk: the end of a transaction, and those that are one.
REPORTS_IF_SEEN: Final = (
    *(group._REPORT_IF_SEEN.plain, group._REPORT_IF_SEEN.counted),
    *(group._REPORT_ONE_IF_SEEN.plain, group._REPORT_ONE_IF_SEEN.counted),
)
COMMITS: Final = ("COMMIT", *REPORTS_IF_SEEN)


def note(task_id: str = "T", message: str = "m", **arguments: Any) -> AddEvent:
    """A report that any open task takes and that changes nothing else."""
    return AddEvent(task_id=task_id, event_type=EventType.LOG, message=message, **arguments)


async def submit(storage: Storage, *commands: Command) -> list[Any]:
    """Ask for several things in one turn of the loop: they are one group. Refusals are outcomes like others."""
    return await asyncio.gather(*map(storage.writer.submit, commands), return_exceptions=True)


async def task_and_log(storage: Storage, task_id: str = "T") -> tuple[Task | None, list[Event]]:
    """What the tables hold of a task."""
    task = await storage.reader.task(task_id)
    return task, list(await storage.reader.events(task_id, 1, 1 if task is None else task.seq))


async def messages(storage: Storage, task_id: str = "T") -> list[str]:
    """The messages of a task's events, which are numbered without a gap."""
    _, events = await task_and_log(storage, task_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.message for event in events]


async def collect(updates: Watch, until: Callable[[Update], bool] | None = None) -> list[Update]:
    """What a subscriber is sent, up to the first update that is wanted (None: until the stream ends)."""
    collected: list[Update] = []
    try:
        async for update in updates:
            collected.append(update)
            if until is not None and until(update):
                break
    finally:
        await updates.aclose()
    return collected


def numbers(updates: Iterable[Update]) -> list[int]:
    """The numbers of the events in updates."""
    return [event.seq for update in updates for event in update.events]


@contextmanager
def opened(database: str) -> Iterator[tuple[Storage, Callable[[Coroutine[Any, Any, Any]], Any]]]:
    """A storage for the many examples of one property, with what runs a coroutine in its loop."""
    with asyncio.Runner(debug=False) as runner:
        storage = open_storage(database, upgrade=False)
        try:
            yield runner.run(storage.__aenter__()), runner.run
        finally:
            runner.run(storage.__aexit__(None, None, None))


@asynccontextmanager
async def proxied(database: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the database, and the URL that leads through it."""
    arguments = driver_arguments(database, 1, 1, {})
    host, port = arguments.get("host", HOST), arguments.get("port") or 5432
    async with Proxy(Path(host, f".s.PGSQL.{port}") if host.startswith("/") else port) as proxy:
        url = make_url(database).set(host=HOST, port=proxy.port, query={})
        yield proxy, url.render_as_string(hide_password=False)


@asynccontextmanager
async def row_locked(database: str, task_id: str = "T") -> AsyncIterator[None]:
    """While it lasts, somebody else holds the task's row, and the writer that wants it waits."""
    async with session(database) as other, other.transaction():
        assert await other.fetchval("SELECT 1 FROM tasks WHERE task_id = $1 FOR UPDATE", task_id)
        yield


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask PostgreSQL until something is so; it has no way to tell by itself."""
    while not await condition():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(0.005)


async def until_blocked(database: str, sessions: int = 1) -> None:
    """Wait until so many of the program's sessions wait for a lock."""
    waiting = (
        "SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'spectral-notify' AND wait_event_type = 'Lock'"
    )
    async with session(database) as other:
        if await other.fetchval("SELECT count(*) = 1 FROM pg_extension WHERE extname = 'citus'"):
            # They wait on other machines.
            waiting = "SELECT count(DISTINCT waiting_gpid) = $1 FROM citus_lock_waits"
        await until(lambda: other.fetchval(waiting, sessions))


async def kill_connections(database: str) -> int:
    """End all of the program's sessions, as a restart of PostgreSQL would; return how many there were."""
    async with session(database) as other:
        killed = await other.fetch(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'spectral-notify'"
        )
    assert all(row[0] for row in killed)
    return len(killed)


@dataclass
class Spy:
    """What a pool was asked to do."""

    statements: list[str] = field(default_factory=list)
    commits: int = 0
    # How often a connection was taken from the pool.
    connections: int = 0

    def count(self, words: str) -> int:
        """How many statements hold these words."""
        return sum(words in statement for statement in self.statements)


@contextmanager
def spied(storage: Storage) -> Iterator[Spy]:
    """Write down what a storage asks of its database."""
    spy = Spy()

    async def on_statement(_: Connection, statement: str) -> None:
        spy.commits += statement in COMMITS
        if statement not in ("BEGIN", "COMMIT", "ROLLBACK"):
            spy.statements.append(statement)

    acquire = Pool.acquire

    async def on_acquire(pool: Pool, **arguments: Any) -> Connection:
        spy.connections += pool is storage.pool
        return await acquire(pool, **arguments)

    with _before_each(storage, on_statement), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "acquire", on_acquire)
        yield spy


@contextmanager
def at_commit(storage: Storage, act: Callable[[Any], Awaitable[object]]) -> Iterator[None]:
    """Do something with the driver's connection just before it commits."""

    async def on_statement(connection: Connection, statement: str) -> None:
        if statement in COMMITS:
            await act(connection.driver)

    with _before_each(storage, on_statement):
        yield


@contextmanager
def _before_each(storage: Storage, act: Callable[[Connection, str], Awaitable[None]]) -> Iterator[None]:
    """Do something before each statement, and before each of those that begin and end transactions."""
    run, say = Connection.run, Connection._say

    async def on_run(connection: Connection, statement: str, *arguments: Any) -> list[Any]:
        if connection in storage.pool:
            await act(connection, statement)
        return await run(connection, statement, *arguments)

    async def on_say(connection: Connection, words: str) -> None:
        if connection in storage.pool:
            await act(connection, words)
        await say(connection, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "run", on_run)
        patch.setattr(Connection, "_say", on_say)
        yield
