"""What the tests of the storage share, so that each of them can be a whole small program."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from storage import AddEvent, Command, Event, EventType, Storage, Task, Update, Watch, open_storage
from tests.postgres import session

# The message of every first event.
CREATED: Final = "Task created"


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
    async with session(database) as other:
        await until(
            lambda: other.fetchval(
                "SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'spectral-notify' AND wait_event_type = 'Lock'",
                sessions,
            )
        )


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
    """What an engine was asked to do."""

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

    def on_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        spy.statements.append(statement)

    def on_commit(_connection: Any) -> None:
        spy.commits += 1

    def on_checkout(*_: Any) -> None:
        spy.connections += 1

    with (
        _listening(storage.engine, "before_cursor_execute", on_statement),
        _listening(storage.engine, "commit", on_commit),
        _listening(storage.engine, "checkout", on_checkout),
    ):
        yield spy


@contextmanager
def at_commit(storage: Storage, act: Callable[[Any], Awaitable[object]]) -> Iterator[None]:
    """Do something with the driver's connection just before it commits."""

    def on_commit(connection: Any) -> None:
        await_only(act(connection.connection.driver_connection))

    with _listening(storage.engine, "commit", on_commit):
        yield


@contextmanager
def before_statement(storage: Storage, words: str, act: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Do something once, just before a statement that holds these words."""
    pending = [act]

    def on_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if words in statement and pending:
            await_only(pending.pop()())

    with _listening(storage.engine, "before_cursor_execute", on_statement):
        yield
    assert not pending


@contextmanager
def _listening(engine: AsyncEngine, name: str, listener: Callable[..., None]) -> Iterator[None]:
    event.listen(engine.sync_engine, name, listener)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, name, listener)
