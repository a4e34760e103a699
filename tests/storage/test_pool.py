"""Connections: how many there are, and which of them are used again."""

import asyncio
import socket

import pytest

from storage import Create, Status, Storage, Unavailable, open_storage
from storage.database import ACKNOWLEDGED_WITHIN_S
from storage.errors import NotConnected
from tests.postgres import session
from tests.storage.helpers import note, proxied, submit, until, until_blocked

OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'spectral-notify'"


async def backend(storage: Storage) -> int:
    return int((await storage.pool.run("SELECT pg_backend_pid()"))[0][0])


async def test_there_are_never_more_connections_than_may_be(database: str) -> None:
    async with (
        open_storage(database, upgrade=False, connections_max=3) as storage,
        session(database) as other,
        other.transaction(),
    ):
        await submit(storage, Create(task_id="T"))
        # Nobody gets through, so whoever may have a connection takes one: the writer, and two of the readers.
        await other.execute("LOCK TABLE tasks, task_events")
        reader = storage.reader
        lookups = [reader.task("T"), reader.events("T", 1, 1), reader.events("T", 1, 2), reader.log("T", 0)]
        reading = asyncio.gather(*lookups, return_exceptions=True)
        writing = asyncio.create_task(submit(storage, note()))
        await until_blocked(database, sessions=3)
        assert await other.fetchval(f"SELECT count(*) {OURS}") == 3
        await other.execute("ROLLBACK; BEGIN")
        assert [task.seq for task in await writing] == [2]
        assert not [found for found in await reading if isinstance(found, BaseException)]


async def test_one_who_waits_too_long_for_a_connection_is_told_so(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=1, pool_wait_s=0.01) as storage:
        async with storage.pool.connection():
            with pytest.raises(NotConnected, match="did not answer in time"):
                await storage.pool.acquire()
            with pytest.raises(Unavailable):
                await storage.reader.task("T")
        assert await storage.reader.task("T") is None


async def test_one_who_gives_up_waiting_for_a_connection_takes_none(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=1) as storage:
        async with storage.pool.connection():
            waiting = asyncio.create_task(storage.pool.acquire())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert await storage.reader.task("T") is None


async def test_the_connection_that_was_used_last_is_used_next(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        async with storage.pool.connection(), storage.pool.connection():
            pass
        assert await backend(storage) == await backend(storage)


async def test_a_connection_whose_caller_was_cancelled_in_a_statement_is_ended(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=1) as storage, session(database) as other:
        before = await backend(storage)
        reading = asyncio.create_task(storage.pool.run("SELECT pg_sleep(60)"))
        await until(lambda: other.fetchval(f"SELECT count(*) = 1 {OURS} AND wait_event = 'PgSleep'"))
        reading.cancel()
        await asyncio.wait([reading])
        # Its place is free when it is gone, and what it was in the middle of has ended.
        assert await backend(storage) != before
        await until(lambda: other.fetchval(f"SELECT count(*) = 0 {OURS} AND wait_event = 'PgSleep'"))


async def test_a_connection_that_is_left_in_a_transaction_is_ended(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=1) as storage:
        before = await backend(storage)
        async with storage.pool.connection() as connection:
            await connection.begin()
        assert await backend(storage) != before


async def test_a_connection_on_which_a_statement_was_refused_is_used_again(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=1) as storage:
        before = await backend(storage)
        with pytest.raises(Exception, match="division by zero"):
            await storage.pool.run("SELECT 1/0")
        with pytest.raises(Exception, match="invalid input"):
            await storage.pool.run("SELECT $1::integer", "not a number")
        assert await backend(storage) == before


async def test_nothing_is_left_of_the_connections_when_the_storage_is_closed(database: str) -> None:
    async with session(database) as other:
        async with open_storage(database, upgrade=False) as storage:
            await submit(storage, Create(task_id="T"))
            await storage.reader.task("T")
            forgotten = await storage.pool.acquire()
            assert forgotten in storage.pool
            assert await other.fetchval(f"SELECT count(*) {OURS}") == 2
        await until(lambda: other.fetchval(f"SELECT count(*) = 0 {OURS}"))


async def test_what_was_prepared_is_prepared_anew_when_somebody_has_changed_the_tables(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        await submit(storage, Create(task_id="T", status=Status.IN_PROGRESS))
        await submit(storage, note())
        before = await storage.reader.task("T")
        # Another kind of column than what the statements were prepared for.
        await other.execute("ALTER TABLE tasks ALTER progress TYPE smallint")
        assert await storage.reader.task("T") == before
        assert [task.seq for task in await submit(storage, note())] == [3]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="The kernel has no bound for silence.")
async def test_what_nobody_acknowledges_ends_a_connection_soon(database: str) -> None:
    async with (
        proxied(database) as (_, url),
        open_storage(url, upgrade=False) as storage,
        storage.pool.connection() as connection,
    ):
        kernel = connection.driver._transport.get_extra_info("socket")
        bound_ms = kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert bound_ms == 1_000 * ACKNOWLEDGED_WITHIN_S
