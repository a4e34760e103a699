"""The schema: that migrations make what the tables say, at any start, and that it refuses what no bug may do."""

import asyncio
import socket
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final

import asyncpg
import pytest
from alembic import command
from sqlalchemy import CheckConstraint, NullPool, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage import Create, StartupError, open_storage, upgrade_database
from storage.migrate import config, head
from storage.tables import schema
from tests.postgres import execute, session, set_for_database
from tests.storage.helpers import submit, until, until_blocked

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)

# Everything that the schema is made of, in PostgreSQL's own words.
CATALOG: Final = """
    SELECT format('%s.%s %s %s %s %s', c.relname, attname, format_type(atttypid, atttypmod), collname, attnotnull,
        pg_get_expr(adbin, adrelid)) AS words
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_collation o ON o.oid = attcollation
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE c.relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
    UNION SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    UNION SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION SELECT format('%s %s', relname, reloptions) FROM pg_class WHERE relnamespace = 'public'::regnamespace
"""


async def catalog(database: str) -> set[str]:
    async with session(database) as other:
        return {row["words"] for row in await other.fetch(CATALOG) if "alembic_version" not in row["words"]}


async def test_migrations_make_what_the_tables_say(database: str, empty_database: str) -> None:
    async with engine_of(database).connect() as connection:
        # As Alembic compares them, it would write no migration.
        await connection.run_sync(lambda sync: command.check(config(sync)))
    # It does not look at everything; so we look at what PostgreSQL says, too.
    async with engine_of(empty_database).begin() as connection:
        assert await catalog(empty_database) == set()
        await connection.run_sync(schema.create_all)
    assert await catalog(database) == await catalog(empty_database) != set()


def engine_of(database: str) -> AsyncEngine:
    return create_async_engine(database, poolclass=NullPool)


UPGRADE: Final = "import asyncio, sys, storage; print(asyncio.run(storage.upgrade_database(sys.argv[1])))"


async def upgrade_in_another_process(database: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", UPGRADE, database),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return eval(printed)


async def test_processes_that_start_at_once_on_an_empty_database_all_come_up(empty_database: str) -> None:
    # Those who waited must see what was made meanwhile, even where that is not the default.
    await set_for_database(empty_database, "default_transaction_isolation = serializable")
    async with session(empty_database) as other:
        # All of them wait at the same door before the first one goes through.
        await other.execute("SELECT pg_advisory_lock(7305806316)")
        starting = asyncio.gather(
            *(upgrade_in_another_process(empty_database) for _ in range(2)),
            *(upgrade_database(empty_database) for _ in range(2)),
        )
        await until_blocked(empty_database, sessions=4)
        await other.execute("SELECT pg_advisory_unlock(7305806316)")
        # One makes the schema, and the others find it made.
        assert sorted(await starting, key=str) == [(head(), head())] * 3 + [(None, head())]
    async with open_storage(empty_database, upgrade=False) as storage:
        assert [task.seq for task in await submit(storage, Create(task_id="T"))] == [1]


async def test_one_who_waits_for_anothers_migration_is_more_patient_than_a_statement_is(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.database.DRIVER_GRACE_S", 0.1)
    async with session(empty_database) as other:
        await other.execute("SELECT pg_advisory_lock(7305806316)")

        async def start() -> None:
            async with open_storage(empty_database, statement_timeout_ms=100, lock_timeout_ms=100):
                pass

        async with asyncio.TaskGroup() as group:
            group.create_task(start())
            await until(
                lambda: other.fetchval(
                    "SELECT bool_or(clock_timestamp() - query_start > interval '0.5 s') FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
            await other.execute("SELECT pg_advisory_unlock(7305806316)")


async def test_a_migration_that_waits_for_a_table_keeps_nobody_from_it_for_long(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["storage.migrate"], "TABLE_WAIT_MS", 100)
    async with engine_of(empty_database).connect() as connection:
        await connection.run_sync(lambda sync: command.upgrade(config(sync), "0003"))
        await connection.commit()
    async with session(empty_database) as other, session(empty_database) as reader:
        async with other.transaction():
            # As a backup does, for hours.
            await other.execute("LOCK TABLE tasks IN ACCESS SHARE MODE")
            upgrading = asyncio.create_task(upgrade_database(empty_database))
            await until_blocked(empty_database)
            async with asyncio.timeout(10):
                assert await reader.fetchval("SELECT count(*) FROM tasks") == 0
        assert await upgrading == ("0003", head())


async def test_migrating_again_does_nothing(empty_database: str) -> None:
    assert await upgrade_database(empty_database) == (None, head())
    before = await catalog(empty_database)
    assert await upgrade_database(empty_database) == (head(), head())
    assert await catalog(empty_database) == before


@pytest.mark.parametrize("upgrade", [True, False])
async def test_a_schema_of_a_later_version_is_refused_and_left_alone(database: str, upgrade: bool) -> None:
    await execute(database, "UPDATE alembic_version SET version_num = '9999'")
    before = await catalog(database)
    with pytest.raises(StartupError) as refused:
        async with open_storage(database, upgrade=upgrade):
            pass
    assert str(refused.value) == (
        f"The database's schema (9999) is newer than this program (which knows {head()} as the latest). "
        "Install the newer spectral-notify, or name another database."
    )
    assert await catalog(database) == before


async def test_without_an_upgrade_an_empty_database_is_refused_and_left_alone(empty_database: str) -> None:
    with pytest.raises(StartupError, match="The database's schema is at nothing, and this program works with"):
        async with open_storage(empty_database, upgrade=False):
            pass
    assert await catalog(empty_database) == set()


async def test_a_migration_that_fails_leaves_nothing_behind(empty_database: str) -> None:
    await execute(empty_database, "CREATE TABLE tasks (somebody_elses integer)")
    before = await catalog(empty_database)
    with pytest.raises(StartupError) as refused:
        await upgrade_database(empty_database)
    assert str(refused.value) == (
        'The database cannot be used: relation "tasks" already exists. Check SPECTRAL_DATABASE_URL.'
    )
    assert await catalog(empty_database) == before


NOT_A_URL: Final = "SPECTRAL_DATABASE_URL is not a URL; expected postgresql://user:password@host/name."
CANNOT: Final = "The database cannot be used: *. Check SPECTRAL_DATABASE_URL."


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", NOT_A_URL),
        ("nonsense", NOT_A_URL),
        ("postgresql://u:secret@h:port/d", NOT_A_URL),
        ("mysql://u:secret@h/d", "SPECTRAL_DATABASE_URL must begin with postgresql://."),
        (
            "postgresql://u:secret@h/d?colour=red",
            "SPECTRAL_DATABASE_URL has an option that is not known here: 'colour'.",
        ),
        ("postgresql://u:secret@127.0.0.1:1/d", CANNOT),
        ("postgresql://u:secret@127.0.0.1:1/d?sslmode=red", CANNOT),
        ("postgresql://u:secret@no.such.host.invalid/d", CANNOT),
    ],
)
async def test_a_url_that_leads_nowhere_is_explained_in_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(StartupError) as refused:
        async with open_storage(url):
            pass
    check_sentence(str(refused.value), sentence)


async def test_a_database_that_is_not_there_is_explained_in_one_sentence(empty_database: str) -> None:
    url = make_url(empty_database).set(database="no_such_database").render_as_string(hide_password=False)
    with pytest.raises(StartupError) as refused:
        await upgrade_database(url)
    check_sentence(str(refused.value), CANNOT)


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.database.CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StartupError) as refused:
        await upgrade_database(f"postgresql://u:secret@127.0.0.1:{silent.getsockname()[1]}/d?ssl=disable")
    check_sentence(
        str(refused.value),
        "The database cannot be used: it did not answer in time. Check SPECTRAL_DATABASE_URL.",
    )


def check_sentence(said: str, pattern: str) -> None:
    assert fnmatchcase(said, pattern), said
    # For a person: one line, no secrets, and nothing of how the program is made.
    for word in ("\n", "secret", "<class", "asyncpg", "sqlalche", "Traceback"):
        assert word not in said, said


async def test_readiness_tells_what_is_missing(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        assert await storage.check() == {"database": True, "migrations": True, "writer": True}
        await execute(database, "UPDATE alembic_version SET version_num = '9999'")
        assert await storage.check() == {"database": True, "migrations": False, "writer": True}
        await storage.writer.close()
        assert await storage.check() == {"database": True, "migrations": False, "writer": False}


async def test_readiness_tells_that_the_database_is_gone(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=1, pool_wait_s=0) as storage:
        # Where a server restarts or a network breaks, there is no connection to be had either.
        async with storage.pool.connection():
            assert await storage.check() == {"database": False, "migrations": False, "writer": True}
        assert await storage.check() == {"database": True, "migrations": True, "writer": True}


A_TASK: Final = {
    "task_id": "T",
    "status": "PENDING",
    "progress": 0,
    "seq": 1,
    "created_at": NOW,
    "updated_at": NOW,
}
AN_EVENT: Final = {"task_id": "T", "seq": 1, "event_type": "LOG", "message": "m", "timestamp": NOW}
A_KEY: Final = {"key_id": "K", "name": "ci", "secret_hash": b"", "permissions": ["READ"], "created_at": NOW}
A_SIGNING_KEY: Final = {"key_id": "S", "secret": b"s", "created_at": NOW}
A_PLANNED_TASK: Final = {
    **A_TASK,
    "tags": [],
    "queue": "default",
    "priority": 0,
    "depends_on": [],
    "on_dependency_failure": "CANCEL",
    "max_attempts": 2,
    "retry_initial_s": 1,
    "retry_max_s": 1,
    "retry_factor": 1.0,
    "blocked_by": [],
    "attempt": 0,
    "ready": True,
}
A_CLAIMED_TASK: Final = {
    **A_PLANNED_TASK,
    "status": "IN_PROGRESS",
    "started_at": NOW,
    "attempt": 2,
    "ready": False,
    "worker": "w",
    "lease_expires_at": NOW,
    "lease_token": "t",
}
A_DEPENDENCY: Final = {"task_id": "T", "dependent_id": "D"}
A_COUNT: Final = {"id": 1, "pending": 1, "in_progress": -1, "success": 0, "failed": 0, "canceled": 0}
A_DUTY: Final = {"name": "timers", "holder": "h", "held_until": NOW}
A_KEYED_EVENT: Final = {**AN_EVENT, "idempotency_key": "k", "fingerprint": b"f"}

# What each constraint refuses: rows of which the last one is too much.
REFUSED: Final[list[tuple[str, str, list[dict[str, Any]]]]] = [
    ("tasks_pkey", "tasks", [A_TASK, A_TASK]),
    ("tasks_status", "tasks", [{**A_TASK, "status": "DONE"}]),
    ("tasks_progress", "tasks", [{**A_TASK, "progress": -1}]),
    ("tasks_progress", "tasks", [{**A_TASK, "progress": 101}]),
    ("tasks_seq", "tasks", [{**A_TASK, "seq": 0}]),
    ("tasks_updated_at", "tasks", [{**A_TASK, "created_at": NOW.replace(year=2027)}]),
    ("tasks_started_at", "tasks", [{**A_TASK, "status": "IN_PROGRESS"}]),
    ("tasks_completed_at", "tasks", [{**A_TASK, "status": "SUCCESS"}]),
    ("tasks_completed_at", "tasks", [{**A_TASK, "completed_at": NOW}]),
    ("tasks_failed_at", "tasks", [{**A_TASK, "status": "FAILED"}]),
    ("tasks_failed_at", "tasks", [{**A_TASK, "failed_at": NOW}]),
    ("tasks_canceled_at", "tasks", [{**A_TASK, "status": "CANCELED"}]),
    ("tasks_canceled_at", "tasks", [{**A_TASK, "canceled_at": NOW}]),
    ("tasks_canceled_at", "tasks", [{**A_TASK, "status": "SUCCESS", "completed_at": NOW, "canceled_at": NOW}]),
    *(
        ("tasks_plan", "tasks", [{name: value for name, value in A_PLANNED_TASK.items() if name != missing}])
        for missing in (
            "tags",
            "priority",
            "depends_on",
            "on_dependency_failure",
            "max_attempts",
            "blocked_by",
            "ready",
        )
    ),
    ("tasks_plan", "tasks", [{**A_TASK, "tags": ["a"]}]),
    ("tasks_attempt", "tasks", [{**A_PLANNED_TASK, "attempt": -1}]),
    ("tasks_attempt", "tasks", [{**A_CLAIMED_TASK, "attempt": 3}]),
    ("tasks_attempts_left", "tasks", [{**A_PLANNED_TASK, "attempt": 2}]),
    ("tasks_ready", "tasks", [{**A_PLANNED_TASK, "queue": None}]),
    ("tasks_ready", "tasks", [{**A_PLANNED_TASK, "blocked_by": ["other"]}]),
    ("tasks_ready", "tasks", [{**A_CLAIMED_TASK, "ready": True}]),
    ("tasks_worker", "tasks", [{**A_CLAIMED_TASK, "worker": None}]),
    ("tasks_worker", "tasks", [{**A_CLAIMED_TASK, "lease_expires_at": None}]),
    ("tasks_lease", "tasks", [{**A_CLAIMED_TASK, "lease_token": None}]),
    ("tasks_lease", "tasks", [{**A_CLAIMED_TASK, "status": "SUCCESS", "completed_at": NOW}]),
    ("tasks_lease", "tasks", [{**A_CLAIMED_TASK, "status": "PENDING", "attempt": 1}]),
    ("task_dependencies_pkey", "task_dependencies", [A_DEPENDENCY, A_DEPENDENCY]),
    ("task_dependencies_outcome", "task_dependencies", [{**A_DEPENDENCY, "outcome": "PENDING"}]),
    ("task_counts_pkey", "task_counts", [A_COUNT, A_COUNT]),
    ("duties_pkey", "duties", [A_DUTY, A_DUTY]),
    ("task_events_pkey", "task_events", [AN_EVENT, AN_EVENT]),
    ("task_events_seq", "task_events", [{**AN_EVENT, "seq": 0}]),
    ("task_events_event_type", "task_events", [{**AN_EVENT, "event_type": "WARNING"}]),
    ("task_events_progress", "task_events", [{**AN_EVENT, "progress": -1}]),
    ("task_events_progress", "task_events", [{**AN_EVENT, "progress": 101}]),
    ("task_events_fingerprint", "task_events", [{**AN_EVENT, "idempotency_key": "k"}]),
    ("task_events_fingerprint", "task_events", [{**AN_EVENT, "fingerprint": b"f"}]),
    ("task_events_task_id_idempotency_key", "task_events", [A_KEYED_EVENT, {**A_KEYED_EVENT, "seq": 2}]),
    ("api_keys_pkey", "api_keys", [A_KEY, {**A_KEY, "name": "other"}]),
    ("api_keys_name", "api_keys", [A_KEY, {**A_KEY, "key_id": "other"}]),
    ("signing_keys_pkey", "signing_keys", [A_SIGNING_KEY, A_SIGNING_KEY]),
]
# And what looks like it and is right.
TAKEN: Final[list[tuple[str, list[dict[str, Any]]]]] = [
    ("tasks", [A_TASK, {**A_TASK, "task_id": "other"}]),
    ("tasks", [{**A_TASK, "progress": 100, "status": "IN_PROGRESS", "started_at": NOW}]),
    ("tasks", [{**A_TASK, "status": "SUCCESS", "completed_at": NOW, "started_at": NOW}]),
    ("tasks", [{**A_TASK, "status": "FAILED", "failed_at": NOW}]),
    ("tasks", [{**A_TASK, "status": "CANCELED", "canceled_at": NOW}]),
    ("tasks", [A_PLANNED_TASK, {**A_CLAIMED_TASK, "task_id": "other"}]),
    ("tasks", [{**A_PLANNED_TASK, "queue": None, "ready": False, "blocked_by": ["other"]}]),
    # The token may outlive the lease.
    ("tasks", [{**A_CLAIMED_TASK, "status": "FAILED", "failed_at": NOW, "worker": None, "lease_expires_at": None}]),
    ("task_dependencies", [A_DEPENDENCY, {**A_DEPENDENCY, "dependent_id": "other", "outcome": "DELETED"}]),
    ("task_counts", [A_COUNT, {**A_COUNT, "id": 2}]),
    ("duties", [A_DUTY]),
    ("task_events", [AN_EVENT, {**AN_EVENT, "seq": 2}, {**AN_EVENT, "task_id": "other"}]),
    ("task_events", [A_KEYED_EVENT, {**A_KEYED_EVENT, "task_id": "other"}]),
    ("api_keys", [{**A_KEY, "revoked_at": NOW}, {**A_KEY, "key_id": "other"}]),
    ("signing_keys", [A_SIGNING_KEY, {**A_SIGNING_KEY, "key_id": "other"}]),
]


async def test_the_tables_refuse_what_no_bug_may_do(database: str) -> None:
    tested = {constraint for constraint, _, _ in REFUSED}
    for table in schema.tables.values():
        checks = {item.name for item in table.constraints if isinstance(item, CheckConstraint)}
        assert checks | {item.name for item in table.indexes if item.unique} | {table.primary_key.name} <= tested
    async with session(database) as other:
        for constraint, table_name, rows in REFUSED:
            with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
                await insert(other, table_name, rows)
            assert refused.value.constraint_name == constraint
        for table_name, rows in TAKEN:
            await insert(other, table_name, rows)


async def insert(connection: asyncpg.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows and take them out again; the last one may be refused."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for row in rows:
            places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
            await connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())
    finally:
        await transaction.rollback()
