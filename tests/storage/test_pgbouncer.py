"""Behind PgBouncer in transaction mode, where no session lasts: the same promises as without it."""

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import make_url

from storage import Complete, Create, Filter, Health, Storage, Unavailable, UpdateType, open_storage, upgrade_database
from storage.database import driver_arguments
from storage.errors import NotConnected
from storage.migrate import MIGRATION_LOCK, head
from storage.pool import Connection, PooledConnection
from tests.postgres import session, set_for_database
from tests.storage.helpers import collect, kill_connections, messages, note, numbers, row_locked, submit, until_blocked

PROGRAM: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
WAIT_S: Final = 10
SESSIONS_MAX: Final = 2

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed (apt-get install pgbouncer)")


@dataclass
class PgBouncer:
    """A PgBouncer before the PostgreSQL of a URL, on a port of its own."""

    database: str
    folder: Path
    options: dict[str, Any]
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    log: Path = field(init=False)

    @property
    def url(self) -> str:
        """The database as it is reached through it."""
        parsed = make_url(self.database).set(host="127.0.0.1", port=self.port, query={})
        return parsed.render_as_string(hide_password=False)

    def configure(self) -> None:
        """Write what it reads at its start."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        arguments = driver_arguments(self.database, 1, 1, {})
        host, port = arguments["host"], arguments.get("port") or 5432
        (self.folder / "users.txt").write_text(f'"{arguments["user"]}" "{arguments["password"]}"\n')
        self.log = self.folder / "pgbouncer.log"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self.folder / "users.txt",
            "logfile": self.log,
            "pool_mode": "transaction",
            "default_pool_size": SESSIONS_MAX,
            # How soon it tries again to reach a PostgreSQL that was away.
            "server_login_retry": 1,
            **self.options,
        }
        if os.geteuid() == 0:
            # It refuses to run as root; and the folder of PostgreSQL's socket is open to its owner alone.
            settings["user"] = Path(host).owner() if host.startswith("/") else "nobody"
            shutil.chown(self.folder, settings["user"])
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={host} port={port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )

    async def start(self) -> None:
        """Run it, until it takes connections."""
        assert PROGRAM is not None
        self.process = await asyncio.create_subprocess_exec(
            PROGRAM, "-q", str(self.folder / "pgbouncer.ini"), stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(WAIT_S):
            while self.process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return
        pytest.fail(f"PgBouncer has ended: {self.log.read_text() if self.log.exists() else 'without a word'}")

    async def stop(self) -> None:
        """End it at once, with all connections."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@asynccontextmanager
async def pgbouncer(database: str, folder: Path, **options: Any) -> AsyncIterator[PgBouncer]:
    """A PgBouncer while the block lasts."""
    started = PgBouncer(database, folder, options)
    started.configure()
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others than root may be given; within pytest's own they would not get to it."""
    with tempfile.TemporaryDirectory(prefix="spectral-pgbouncer-") as found:
        yield Path(found)


SETTINGS: Final = "SELECT name, setting FROM pg_settings WHERE name = ANY ($1) ORDER BY name"
EXPECTED: Final = {
    "default_transaction_isolation": "read committed",
    "enable_bitmapscan": "off",
    "enable_indexscan": "on",
    "enable_nestloop": "on",
    "enable_seqscan": "off",
    "idle_in_transaction_session_timeout": "60000",
    "jit": "off",
    "lock_timeout": "345",
    "plan_cache_mode": "force_generic_plan",
    "statement_timeout": "6789",
    "synchronous_commit": "on",
    "TimeZone": "UTC",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
}
OF_A_LIST: Final = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "on",
    "enable_bitmapscan": "on",
    "max_parallel_workers_per_gather": "0",
    "transaction_read_only": "on",
}
SWALLOWED: Final = ",".join(name for name in EXPECTED if not name.startswith("transaction"))


async def spoil(database: str) -> None:
    """Make every setting of a session that begins another than the program's."""
    for name, value in {
        "default_transaction_isolation": "'repeatable read'",
        "enable_seqscan": "on",
        "enable_indexscan": "off",
        "plan_cache_mode": "auto",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "synchronous_commit": "off",
        "jit": "on",
        "timezone": "'Asia/Tokyo'",
    }.items():
        await set_for_database(database, f"{name} = {value}")


@pytest.mark.parametrize("way", ["direct", "refused", "swallowed", "session"])
async def test_the_same_settings_are_in_force_whatever_the_way(empty_database: str, folder: Path, way: str) -> None:
    await upgrade_database(empty_database)
    await spoil(empty_database)
    options = {"swallowed": {"ignore_startup_parameters": SWALLOWED}, "session": {"pool_mode": "session"}}
    async with pgbouncer(empty_database, folder, **options.get(way, {})) as bouncer:
        url = empty_database if way == "direct" else bouncer.url
        async with open_storage(url, upgrade=False, statement_timeout_ms=6_789, lock_timeout_ms=345) as storage:
            pool, names = storage.pool, list(EXPECTED)
            # The statement that is a transaction of its own.
            assert dict(await pool.run(SETTINGS, names)) == EXPECTED
            assert dict(await pool.read_list(SETTINGS, names)) == EXPECTED | OF_A_LIST
            async with pool.connection() as connection:
                assert type(connection) is (Connection if way == "direct" else PooledConnection)
                await connection.begin()
                assert dict(await connection.run(SETTINGS, names)) == EXPECTED
                await connection.commit()
                await connection.begin(lock_timeout_ms=7)
                assert dict(await connection.run(SETTINGS, names)) == EXPECTED | {"lock_timeout": "7"}
                await connection.roll_back()
                # And of a second connection.
                assert dict(await pool.run(SETTINGS, names)) == EXPECTED
        if way != "direct":
            # Nothing is left in the session for whoever is lent it next.
            async with session(bouncer.url) as other, other.transaction():
                left = dict(await other.fetch(SETTINGS, names))
            assert (left["synchronous_commit"], left["statement_timeout"]) == ("off", "0")


async def test_many_connections_share_few_sessions(database: str, folder: Path) -> None:
    async with (
        pgbouncer(database, folder) as bouncer,
        open_storage(bouncer.url, upgrade=False) as one,
        open_storage(bouncer.url, upgrade=False) as two,
    ):
        ids = [f"T-{number}" for number in range(20)]
        await submit(one, *(Create(task_id=task_id) for task_id in ids))

        async def work(storage: Storage, name: str) -> None:
            for number in range(25):
                await asyncio.gather(
                    *(storage.writer.submit(note(task_id, f"{name} {number}")) for task_id in ids),
                    storage.reader.task(ids[number % 20]),
                    storage.reader.events(ids[number % 20], 1, 5),
                    storage.reader.page(5, None, Filter(statuses=())),
                )

        await asyncio.gather(work(one, "one"), work(two, "two"))
        for task_id in ids:
            found = await messages(two, task_id)
            for name in ("one", "two"):
                assert [each for each in found if each.startswith(name)] == [f"{name} {number}" for number in range(25)]
        async with session(database) as other:
            ours = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            assert await other.fetchval(f"SELECT count(*) {ours}") == SESSIONS_MAX
        assert len(one.pool._connections) + len(two.pool._connections) > SESSIONS_MAX


async def test_two_processes_hear_of_each_other_by_a_way_around_it(database: str, folder: Path) -> None:
    async with (
        pgbouncer(database, folder) as bouncer,
        open_storage(bouncer.url, upgrade=False, feed_url=database) as one,
        open_storage(bouncer.url, upgrade=False, feed_url=database) as two,
    ):
        assert (one.feed_health, two.feed_health) == (Health.CONNECTED, Health.CONNECTED)
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            assert (await anext(updates)).task.seq == 1
            for seq in range(2, 8):
                await submit(one, note())
                assert numbers([await asyncio.wait_for(anext(updates), WAIT_S)]) == [seq]
            await submit(one, Complete(task_id="T"))
            assert [update.type for update in await collect(updates)] == [UpdateType.COMPLETE]
        assert two.follower.repairs == 0


async def test_its_restart_is_survived(database: str, folder: Path) -> None:
    async with (
        pgbouncer(database, folder) as bouncer,
        open_storage(bouncer.url, upgrade=False, pool_wait_s=1) as storage,
    ):
        await submit(storage, Create(task_id="T"), note())
        assert (await submit(storage, note()))[0].seq == 3
        await bouncer.stop()
        with pytest.raises(Unavailable):
            await storage.reader.task("T")
        (refused,) = await submit(storage, note("T", "never"))
        assert isinstance(refused, Unavailable)
        await bouncer.start()
        assert (await submit(storage, note("T", "again")))[0].seq == 4
        assert (await messages(storage))[-1] == "again"


async def test_a_restart_while_everything_lies_idle_is_not_noticed(database: str, folder: Path) -> None:
    async with pgbouncer(database, folder) as bouncer, open_storage(bouncer.url, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        await storage.reader.task("T")
        await bouncer.stop()
        await bouncer.start()
        assert (await submit(storage, note()))[0].seq == 2
        # And one of PostgreSQL behind it.
        assert await kill_connections(database) > 0
        assert (await submit(storage, note()))[0].seq == 3
        await kill_connections(database)
        task = await storage.reader.task("T")
        assert task is not None and task.seq == 3
        assert await messages(storage) == ["Task created", "m", "m"]


async def test_the_time_limits_are_in_force(database: str, folder: Path) -> None:
    async with (
        pgbouncer(database, folder) as bouncer,
        open_storage(bouncer.url, upgrade=False, statement_timeout_ms=300, lock_timeout_ms=100) as storage,
    ):
        await submit(storage, Create(task_id="T"), Create(task_id="U"))
        async with storage.pool.connection() as connection:
            for _ in range(2):
                with pytest.raises(asyncpg.QueryCanceledError, match="statement timeout"):
                    await connection.run("SELECT pg_sleep(60)")
                # It was rolled back, and may be used again.
                assert connection.sound
        async with row_locked(database):
            # By the statement that is a transaction of its own, and by the one that locks.
            stuck, free = await submit(storage, note("T"), note("U"))
            assert isinstance(stuck, Unavailable)
            assert free.seq == 2
        assert (await submit(storage, note("T")))[0].seq == 2


async def test_who_is_lent_no_session_in_time_is_told_so_and_nothing_was_done(database: str, folder: Path) -> None:
    async with (
        pgbouncer(database, folder, default_pool_size=1) as bouncer,
        open_storage(bouncer.url, upgrade=False, pool_wait_s=0.3) as storage,
    ):
        await submit(storage, Create(task_id="T"))
        async with session(bouncer.url) as other, other.transaction():
            await other.execute("SELECT 1")
            # The task is remembered, so this would be one statement. Nobody doubts that it was not made.
            (refused,) = await submit(storage, note("T", "never"))
            assert type(refused) is NotConnected
            with pytest.raises(Unavailable):
                await storage.reader.task("T")
        assert [task.seq for task in await submit(storage, note("T", "then"))] == [2]
        assert await messages(storage) == ["Task created", "then"]


async def test_what_is_refused_leaves_a_connection_that_can_be_used(database: str, folder: Path) -> None:
    async with (
        pgbouncer(database, folder) as bouncer,
        open_storage(bouncer.url, upgrade=False) as storage,
        storage.pool.connection() as connection,
    ):
        for statement, arguments in [("SELECT 1/0", ()), ("SELECT $1::integer", ("no number",)), ("SELEC", ())]:
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await connection.run(statement, *arguments)
            assert connection.sound
        assert [row[0] for row in await connection.run("SELECT $1::integer", 7)] == [7]


async def test_the_schema_is_made_through_it_by_many_at_once(empty_database: str, folder: Path) -> None:
    # Less than they wait for each other: what they are given is a limit of their own.
    await set_for_database(empty_database, "statement_timeout = 200")
    async with pgbouncer(empty_database, folder, default_pool_size=4) as bouncer, session(empty_database) as other:
        async with other.transaction():
            await other.execute(f"SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            upgrades = [asyncio.create_task(upgrade_database(bouncer.url)) for _ in range(4)]
            await until_blocked(empty_database, sessions=4)
            await other.execute("SELECT pg_sleep(0.4)")
        assert sorted(await asyncio.gather(*upgrades), key=str) == [(head(), head())] * 3 + [(None, head())]
        async with open_storage(bouncer.url) as storage:
            assert (await storage.check()) == {"database": True, "migrations": True, "writer": True}
            await submit(storage, Create(task_id="T"))
            assert await messages(storage) == ["Task created"]


async def test_a_statement_that_another_prepared_under_a_name_of_the_drivers_is_no_matter(
    database: str, folder: Path
) -> None:
    async with (
        pgbouncer(database, folder, default_pool_size=1, ignore_startup_parameters=SWALLOWED) as bouncer,
        open_storage(bouncer.url, upgrade=False) as storage,
    ):
        async with session(bouncer.url) as other:
            # The driver's names are numbers, so those of two processes are the same.
            next_number = asyncpg.connection._uid + 1
            for number in range(next_number, next_number + 200):
                await other.execute(f"PREPARE __asyncpg_stmt_{number:x}__ AS SELECT 'wrong'")
        await submit(storage, Create(task_id="T"))
        assert await messages(storage) == ["Task created"]
        assert await upgrade_database(bouncer.url) == (head(), head())
