"""A PostgreSQL of the benchmark's own, and in it a seeded database from which each round gets a clone.

PostgreSQL is the embedded one with the settings it has for users: what is acknowledged is on its disk.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
from sqlalchemy import make_url

from bench.storage import _stat
from storage import Permission, open_storage
from storage.embedded import embedded_postgres
from storage.embedded_account import account_for
from storage.embedded_programs import Programs

TASKS: Final = 10_000
LONG_TASKS: Final = 2_000
LONG_EVENTS: Final = 200
TIMEOUT_S: Final = 120.0
REPORTED_WITHIN_S: Final = 11.0
_TEMPLATE: Final = "bench_template"
_TRANSACTIONS: Final = "SELECT xact_commit FROM pg_stat_database WHERE datname = $1"


def _ids(kind: str, count: int) -> list[str]:
    # As users' IDs are: in no order.
    return [hashlib.md5(f"{kind} {number}".encode()).hexdigest() for number in range(1, count + 1)]


TASK_IDS: Final = _ids("task", TASKS)
LONG_IDS: Final = _ids("long", LONG_TASKS)
HOT_ID: Final = _ids("hot", 1)[0]
# The order in which the load generator knows them.
ALL_IDS: Final = (*TASK_IDS, HOT_ID)


@dataclass(frozen=True, slots=True)
class Databases:
    """The PostgreSQL, and what its databases are made from."""

    url: str
    # The process that all others of this PostgreSQL are children of.
    postmaster: int
    # An API key that every clone knows.
    key: str
    # What `SHOW server_version` says.
    version: str

    @asynccontextmanager
    async def clone(self, name: str) -> AsyncIterator[str]:
        """A seeded database, as nobody has used it yet."""
        async with session(self.url) as connection:
            # Copying files makes a checkpoint too, so that none comes in the middle of a measure.
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY")
        try:
            yield _named(self.url, name)
        finally:
            async with session(self.url) as connection:
                await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def open_databases(folder: Path) -> AsyncIterator[Databases]:
    """Make a PostgreSQL with a seeded database; it is stopped at the end, and the folder is the caller's."""
    async with embedded_postgres(folder, role="command"):
        pass
    await _allow_databases(folder)
    async with embedded_postgres(folder, role="server") as url:
        async with session(url) as connection:
            await connection.execute(f"CREATE DATABASE {_TEMPLATE}")
            backend = _stat(Path(f"/proc/{connection.get_server_pid()}"))
            version = str(await connection.fetchval("SHOW server_version"))
        assert backend is not None
        yield Databases(url, backend.parent, await _seed(_named(url, _TEMPLATE)), version)


@asynccontextmanager
async def session(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the program's."""
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def connect(url: str) -> asyncpg.Connection:
    """A connection by the driver alone."""
    parsed = make_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    return await asyncpg.connect(**arguments)


async def sum_of_seq(url: str) -> int:
    """How many events all tasks have had."""
    async with session(url) as connection:
        return int(await connection.fetchval("SELECT sum(seq) FROM tasks"))


async def transactions_of(databases: "Databases", url: str) -> int:
    """How many transactions a database has seen; a statement that reads is one."""
    # Sessions that lie idle say within this what they have done. Meanwhile whoever listens looks after its connection
    # three or four times, which is counted, too.
    await asyncio.sleep(REPORTED_WITHIN_S)
    async with session(databases.url) as connection:
        return int(await connection.fetchval(_TRANSACTIONS, make_url(url).database))


async def fill_queue(url: str, queue: str, count: int) -> None:
    """Put tasks into a queue, all of them ready."""
    async with session(url) as connection:
        await connection.execute(_FILL_QUEUE, _ids(queue, count), queue, False)
        await connection.execute("VACUUM (ANALYZE) tasks")


async def fill_due(connection: asyncpg.Connection, queue: str, count: int) -> None:
    """Put tasks into a queue of which the time to start has come, and nobody has seen it."""
    await connection.execute(_FILL_QUEUE, _ids(queue, count), queue, True)


async def checkpoint(url: str) -> None:
    """Write now what would otherwise be written while something is measured."""
    async with session(url) as connection:
        await connection.execute("CHECKPOINT")


def _named(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


async def _allow_databases(folder: Path) -> None:
    """Let the role make databases, which that of a user's data may not."""
    cluster = folder / "postgres"
    programs = Programs(folder / "postgres.log")
    programs.account = account_for(cluster)
    statements = "ALTER ROLE spectral_notify CREATEDB\nGRANT pg_checkpoint TO spectral_notify\n"
    await programs.run("postgres", "--single", "-D", str(cluster), "postgres", stdin=statements, timeout_s=TIMEOUT_S)
    (cluster / "pg_hba.conf").write_text("local all spectral_notify scram-sha-256\n")


async def _seed(url: str) -> str:
    async with open_storage(url) as storage:
        key = await storage.keys.create(
            "bench", [Permission.CREATE, Permission.READ, Permission.REPORT, Permission.LIST]
        )
    async with session(url) as connection:
        await connection.execute(_FILL_TASKS, [*TASK_IDS, HOT_ID], 1)
        await connection.execute(_FILL_TASKS, LONG_IDS, LONG_EVENTS)
        await connection.execute(_FILL_EVENTS)
        await connection.execute("VACUUM (ANALYZE, FREEZE)")
    return key


# Bulk SQL, because only what comes after it is measured.
_FILL_TASKS: Final = """
    INSERT INTO tasks (task_id, status, progress, metadata, seq, created_by, created_at, updated_at, started_at)
    SELECT task_id, 'IN_PROGRESS', 50, '{"job": "nightly report", "rows": 125000}', $2, 'bench', born, born, born
    FROM unnest($1::text[]) WITH ORDINALITY AS given (task_id, number)
    CROSS JOIN LATERAL (SELECT now() - number * interval '1 second' AS born) AS made
"""
_FILL_QUEUE: Final = """
    WITH queued AS (
        INSERT INTO tasks (task_id, status, progress, seq, created_by, created_at, updated_at, tags, queue, priority,
            start_at, depends_on, on_dependency_failure, max_attempts, retry_initial_s, retry_max_s, retry_factor,
            blocked_by, attempt, ready, due_at)
        SELECT task_id, 'PENDING', 0, 1, 'bench', born, born, '{}', $2, 0,
            start_at, '{}', 'CANCEL', 1, 10, 3600, 2,
            '{}', 0, start_at IS NULL, start_at
        FROM unnest($1::text[]) WITH ORDINALITY AS given (task_id, number)
        CROSS JOIN LATERAL (
            SELECT now() - number * interval '1 ms' AS born, CASE WHEN $3 THEN now() END AS start_at
        ) AS made
        RETURNING task_id, created_at
    )
    INSERT INTO task_events (task_id, seq, event_type, message, timestamp, size)
    SELECT task_id, 1, 'LOG', 'Task created', created_at, 12 FROM queued
"""
_FILL_EVENTS: Final = """
    INSERT INTO task_events (task_id, seq, event_type, message, progress, timestamp, size)
    SELECT task_id, number, 'PROGRESS', message, number % 101, created_at, octet_length(message)
    FROM tasks
    CROSS JOIN generate_series(1, seq) AS number
    CROSS JOIN LATERAL (SELECT format('Progress updated to %s%%', number % 101) AS message) AS said
"""
