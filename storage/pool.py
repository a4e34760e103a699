"""The connections of a process: at most so many, each with the statements that it has prepared.

Statements are written with SQLAlchemy and become text once, when the program starts; at run time there is the driver
alone. A pool of our own, because the driver's takes as long to lend a connection as a statement takes to run.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

from storage.database import Connector, driver_arguments, is_dead_connection, is_passing, is_unsendable
from storage.errors import NotConnected, Unavailable
from storage.gauges import PoolGauges

T = TypeVar("T")

# How long a session may take to end in order, before it is ended without.
CLOSE_TIMEOUT_S: Final = 2
NOT_IN_TIME: Final = "The database did not answer in time; try again."
# Planning a statement takes as long as running it, so each is planned once, for any values. A plan that was made while
# the tables were small would scan them when they are large, until somebody analyzes them: a hundred times slower at
# 100,000 tasks. So there must be no plan but the one by the index, and each statement that names its rows is written so
# that there is none. Those that list or count rows are planned each time, see `begin_list`.
# Reports are updated in the order in which they are sent, row by row, and so locked in that order.
PLANNING: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_indexscan": "on",
    "enable_nestloop": "on",
}
# A list has one processor.
_FOR_A_LIST: Final = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL max_parallel_workers_per_gather = 0"
_FOR_A_SEARCH: Final = f"{_FOR_A_LIST}; SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on"
# Of all connections, those that lists may have at a time: one list may take seconds, and reads by ID go on beside it.
LISTS_SHARE: Final = 3
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = "


_DIALECT: Final = dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


def compiled(statement: ClauseElement, *names: str) -> str:
    """The text of a statement, whose parameters are $1, $2 … in the order of these names."""
    result = statement.compile(dialect=_DIALECT)
    assert isinstance(result, SQLCompiler)
    found = result.positiontup or []
    assert sorted(found) == sorted(names), f"{found} are not {names}"
    return re.sub(r"\$(\d+)", lambda place: f"${names.index(found[int(place[1]) - 1]) + 1}", str(result))


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is said to one kind of database and not to another."""

    # What a session is set to, besides what every session is.
    settings: Mapping[str, str]
    # Those of all its settings that each transaction is told again, and what is said to have them passed on.
    repeated: Sequence[str] = ()
    passing_on: str = ""
    # Statements for which others are prepared, which take the same parameters and bring the same rows.
    instead: Mapping[str, str] = field(default_factory=dict)
    # Whether the tables are spread over several machines by `task_id`.
    distributed: bool = False


POSTGRES: Final = Dialect(PLANNING)


class Connection:
    """A session. Each statement is prepared when it first comes, and kept."""

    __slots__ = ("_begin_words", "_dialect", "_prepared", "_repeated", "driver", "interrupted")

    def __init__(self, driver: Any, dialect: Dialect, begin_words: str, repeated: str) -> None:
        self.driver = driver
        self._dialect = dialect
        self._begin_words = begin_words
        self._repeated = repeated
        self._prepared: dict[str, Any] = {}
        # Whether a statement ended in another way than by an answer, so that it may still be under way.
        self.interrupted = False

    @property
    def sound(self) -> bool:
        """Whether it may be used for something else: alive, and in the middle of nothing."""
        return not (self.interrupted or self.driver.is_closed() or self.driver.is_in_transaction())

    @property
    def distributed(self) -> bool:
        """Whether the tables are spread over several machines."""
        return self._dialect.distributed

    async def run(self, statement: str, *arguments: Any) -> list[Any]:
        """The rows that a statement brings."""
        try:
            prepared = self._prepared.get(statement)
            if prepared is None:
                words = self._dialect.instead.get(statement, statement)
                prepared = self._prepared[statement] = await self.driver.prepare(words)
            rows: list[Any] = await prepared.fetch(*arguments)
        except BaseException as error:
            self._failed(error)
            raise
        return rows

    async def run_once(self, statement: str, *arguments: Any) -> list[Any]:
        """The same in a transaction, for a statement of which there are too many to keep them all prepared."""
        try:
            rows: list[Any] = await (await self.driver.prepare(statement, name="")).fetch(*arguments)
        except BaseException as error:
            self._failed(error)
            raise
        return rows

    async def begin(self, lock_timeout_ms: int | None = None) -> None:
        """Begin a transaction; in it, locks are waited for as long as always, or only so long."""
        lock_timeout = "" if lock_timeout_ms is None else f"; {_LOCK_TIMEOUT}{lock_timeout_ms}"
        if self._repeated:
            # In a message of their own, because the whole of it is passed on.
            await self._begin(f"; {self._dialect.passing_on}")
            await self._say(self._repeated + lock_timeout)
        else:
            await self._begin(lock_timeout)

    async def begin_list(self, *, ordered: bool = False) -> None:
        """Begin a transaction in which each statement is planned for its values and for the tables as they are.

        What is `ordered` is read from an index of its order, though it may look cheaper to gather all and sort them.
        """
        await self._say(f"BEGIN READ ONLY; {_FOR_A_LIST if ordered else _FOR_A_SEARCH}")

    async def commit(self) -> None:
        """Put on disk what was done since `begin`."""
        await self._say("COMMIT")

    async def roll_back(self) -> None:
        """Undo what was done since `begin`."""
        await self._say("ROLLBACK")

    async def close(self) -> None:
        """End the session, in order if that is possible."""
        try:
            await self.driver.close(timeout=CLOSE_TIMEOUT_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.driver.terminate()

    async def _begin(self, more: str) -> None:
        await self._say(self._begin_words + more)

    async def _say(self, words: str) -> None:
        try:
            await self.driver.execute(words)
        except BaseException as error:
            self._failed(error)
            raise

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, asyncpg.PostgresError):
            # It quotes whole rows. What clients sent stays out of errors, and so out of the log.
            error.detail = None
            self.interrupted = self.interrupted or is_dead_connection(error)
        elif is_unsendable(error):
            # As does this one, after the colon.
            error.args = (str(error.args[0]).partition(":")[0],)
        else:
            # Only when somebody said no is it certain that nothing is left to come.
            self.interrupted = True


class PooledConnection(Connection):
    """A connection to a pooler, which lends it a session for each transaction.

    So each statement is in a transaction, which begins with the settings that a session of our own has from its start;
    and a statement is prepared where it runs, without a name, because another may have the name there.
    """

    __slots__ = ("_wait_s",)

    def __init__(self, driver: Any, dialect: Dialect, begin_words: str, repeated: str, wait_s: float) -> None:
        super().__init__(driver, dialect, begin_words, repeated)
        self._wait_s = wait_s

    async def run(self, statement: str, *arguments: Any) -> list[Any]:
        """The rows that a statement brings, in the transaction that is open or in one of its own."""
        words = self._dialect.instead.get(statement, statement)
        # Prepared without a name, as what is run once always is.
        if self.driver.is_in_transaction():
            return await self.run_once(words, *arguments)
        await self.begin()
        try:
            rows = await self.run_once(words, *arguments)
        except Exception:
            if not self.interrupted:
                # What went wrong first is what is told.
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await self.roll_back()
            raise
        await self.commit()
        return rows

    async def begin_list(self, *, ordered: bool = False) -> None:
        """Begin a transaction in which each statement is planned for its values and for the tables as they are."""
        await self._begin(f"; SET TRANSACTION READ ONLY; {_FOR_A_LIST if ordered else _FOR_A_SEARCH}")

    async def _begin(self, more: str) -> None:
        # A pooler that has no session to lend keeps us waiting, as the pool does that has no connection.
        try:
            async with asyncio.timeout(self._wait_s):
                await self._say(self._begin_words + more)
        except TimeoutError as error:
            raise NotConnected(NOT_IN_TIME) from error


class Pool:
    """Connections, made when first needed; the one that was used last is used next."""

    def __init__(
        self, connector: Connector, dialect: Dialect, repeated: str, *, connections_max: int, wait_s: float
    ) -> None:
        self._connector = connector
        self.dialect = dialect
        """How all its connections are spoken to."""
        self._repeated = repeated
        self._wait_s = wait_s
        self._places = asyncio.Semaphore(connections_max)
        self._places_for_lists = asyncio.Semaphore(max(1, connections_max // LISTS_SHARE))
        self._idle: list[Connection] = []
        # All that are open, whoever has them.
        self._connections: set[Connection] = set()
        self._connections_max = connections_max
        self.gauges = PoolGauges()
        self._ending: set[asyncio.Task[None]] = set()

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._connections

    @property
    def connections(self) -> tuple[int, int, int]:
        """How many connections are open, how many of them somebody has, and how many there may be."""
        return len(self._connections), len(self._connections) - len(self._idle), self._connections_max

    async def acquire(self, *, connect_within_s: float | None = None) -> Connection:
        """A connection of one's own until it is released, or NotConnected."""
        await self._wait_for(self._places)
        while self._idle:
            connection = self._idle.pop()
            if connection.sound:
                return connection
            self._connections.discard(connection)
        try:
            async with asyncio.timeout(connect_within_s):
                connection = await self._connect()
        except BaseException as error:
            self._places.release()
            if isinstance(error, Exception):
                self.gauges.failed += 1
                raise NotConnected(NOT_IN_TIME) from error
            raise
        self._connections.add(connection)
        self.gauges.made += 1
        return connection

    async def _wait_for(self, places: asyncio.Semaphore) -> None:
        if not places.locked():
            await places.acquire()
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._wait_s):
                await places.acquire()
        except TimeoutError as error:
            self.gauges.failed += 1
            raise NotConnected(NOT_IN_TIME) from error
        finally:
            self.gauges.wait_s.observe(time.monotonic() - began)

    def release(self, connection: Connection) -> None:
        """Give a connection back. One that is in the middle of something is ended."""
        if connection.sound:
            self._idle.append(connection)
            self._places.release()
            return
        # In a task of its own: whoever used it may be on the way out.
        task = asyncio.create_task(self._end(connection))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection while the block lasts."""
        connection = await self.acquire()
        try:
            yield connection
        finally:
            self.release(connection)

    async def run(self, statement: str, *arguments: Any) -> list[Any]:
        """The rows that a statement brings; it is a transaction of its own, which saves two round trips."""
        connection = await self.acquire()
        try:
            return await connection.run(statement, *arguments)
        finally:
            self.release(connection)

    async def read(self, statement: str, *arguments: Any) -> list[Any]:
        """As `run`, and once more when the connection turns out to have died while it lay idle."""
        return await _patiently(lambda: self.run(statement, *arguments))

    async def read_list(self, statement: str, *arguments: Any, ordered: bool = False) -> list[Any]:
        """As `read`, for a statement that does not name its rows; few of these are under way at a time.

        There are few whose order an index has; of others there are many, so they are prepared each time.
        """

        async def read() -> list[Any]:
            async with self.connection() as connection:
                await connection.begin_list(ordered=ordered)
                run = connection.run if ordered else connection.run_once
                rows = await run(statement, *arguments)
                await connection.commit()
                return rows

        await self._wait_for(self._places_for_lists)
        try:
            return await _patiently(read)
        finally:
            self._places_for_lists.release()

    async def close(self) -> None:
        """End all connections."""
        self._idle.clear()
        closing = [connection.close() for connection in self._connections]
        await asyncio.gather(*closing, *self._ending, return_exceptions=True)
        self._connections.clear()

    async def _connect(self) -> Connection:
        driver, own = await self._connector.connect()
        if own:
            return Connection(driver, self.dialect, "BEGIN", self._repeated)
        words = f"BEGIN ISOLATION LEVEL READ COMMITTED; {self._connector.settings_of_transaction}"
        return PooledConnection(driver, self.dialect, words, self._repeated, self._wait_s)

    async def _end(self, connection: Connection) -> None:
        try:
            await connection.close()
        finally:
            self._connections.discard(connection)
            self._places.release()


def open_pool(
    url: str,
    dialect: Dialect = POSTGRES,
    *,
    connections_max: int,
    pool_wait_s: float,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
) -> Pool:
    """The pool for a PostgreSQL URL."""
    arguments = driver_arguments(url, statement_timeout_ms, lock_timeout_ms, dialect.settings)
    settings = arguments["server_settings"]
    repeated = "; ".join(f"SET LOCAL {name} = '{settings[name]}'" for name in dialect.repeated)
    return Pool(Connector(arguments), dialect, repeated, connections_max=connections_max, wait_s=pool_wait_s)


@contextmanager
def translated() -> Iterator[None]:
    """Turn a failure that may pass into Unavailable; let every other error through."""
    try:
        yield
    except Exception as error:
        if is_passing(error):
            raise Unavailable(NOT_IN_TIME) from error
        raise


async def _patiently(read: Callable[[], Awaitable[T]]) -> T:
    with translated():
        try:
            return await read()
        except Exception as error:
            if not is_dead_connection(error):
                raise
            return await read()
