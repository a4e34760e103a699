"""What all tests share: coroutines that run, one real PostgreSQL, and a fresh database for each test that asks.

The embedded PostgreSQL serves unless TEST_DATABASE_URL names another, whose user may create databases. With TEST_CITUS
tests are given distributed databases of a Citus cluster instead, where such is installed.
"""

import asyncio
import inspect
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
import uvloop
from sqlalchemy import make_url

from storage import upgrade_database
from storage.tables import schema
from tests.citus import CitusCluster
from tests.postgres import execute, session

# How long anything that a test waits for may take, on the slowest machine.
TEST_TIMEOUT_S: Final = 60.0

# A shell has what it runs in the background ignore interrupts, and so would every program that a test starts and
# interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine, in a loop of its own and with one time-out."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    # The loop that serves: its transports differ from asyncio's in what they call, and when.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_leaving_nothing_behind(test(**arguments)))
    return True


async def _leaving_nothing_behind(test: Awaitable[None]) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await test
    # What is still running may be about to end; what does not end was left behind.
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        _, forgotten = await asyncio.wait(left, timeout=1)
        assert not forgotten, f"the test left behind {forgotten}"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL in which one may create databases."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        yield make_url(named).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
        return
    # A loop and a thread of its own: tests come and go with theirs.
    url: Future[str] = Future()
    stop = threading.Event()
    # Not in pytest's own folder: each session that starts closes that to the account which runs PostgreSQL as root.
    with tempfile.TemporaryDirectory(prefix="spectral-test-") as parent:
        folder = Path(parent) / "data"
        thread = threading.Thread(target=lambda: asyncio.run(_serve(folder, url, stop)), name="postgres")
        thread.start()
        try:
            yield url.result(TEST_TIMEOUT_S)
        finally:
            stop.set()
            thread.join()


async def _serve(folder: Path, url: Future[str], stop: threading.Event) -> None:
    # Imported here: with TEST_DATABASE_URL, nothing embedded need be installed.
    from storage.embedded import embedded_postgres

    try:
        async with embedded_postgres(folder, role="command"):
            pass
        await _let_it_create_databases(folder)
        async with embedded_postgres(folder, role="server") as started:
            url.set_result(started)
            await asyncio.to_thread(stop.wait)
    except BaseException as error:
        if url.done():
            raise
        url.set_exception(error)


async def _let_it_create_databases(folder: Path) -> None:
    """Users' data is safer when the program's role can do nothing but own its database; tests want one each."""
    from storage.embedded_account import account_for
    from storage.embedded_programs import Programs

    cluster = folder / "postgres"
    programs = Programs(folder / "postgres.log")
    programs.account = account_for(cluster)
    # A database is dropped whoever is at work in it, and that may be autovacuum.
    statements = "ALTER ROLE spectral_notify CREATEDB\nGRANT pg_signal_autovacuum_worker TO spectral_notify\n"
    await programs.run(
        "postgres", "--single", "-D", str(cluster), "postgres", stdin=statements, timeout_s=TEST_TIMEOUT_S
    )
    (cluster / "pg_hba.conf").write_text("local all spectral_notify scram-sha-256\n")


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """A database with the program's schema and no rows, from which others are cloned."""
    with _database(server) as url:
        asyncio.run(upgrade_database(url))
        yield url


@pytest.fixture(scope="session")
def citus() -> Iterator[CitusCluster]:
    """A Citus cluster."""
    cluster = CitusCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def distributed_databases(citus: CitusCluster) -> "Clones":
    """The distributed databases that tests have given back."""
    return Clones(lambda: asyncio.run(citus.distributed_database()))


@pytest.fixture
def distributed_database(distributed_databases: "Clones") -> Iterator[str]:
    """The URL of a distributed database with the program's schema and no rows, for one test alone."""
    url = distributed_databases.take()
    yield url
    asyncio.run(distributed_databases.give_back(url))


@pytest.fixture(scope="session")
def clones(request: pytest.FixtureRequest) -> Iterator["Clones"]:
    """The databases that tests have given back."""
    if os.environ.get("TEST_CITUS"):
        yield request.getfixturevalue("distributed_databases")
        return
    server, template = request.getfixturevalue("server"), request.getfixturevalue("template")
    with ExitStack() as stack:
        options = f"TEMPLATE {make_url(template).database}"
        yield Clones(lambda: stack.enter_context(_database(server, options)))


@pytest.fixture
def database(clones: "Clones") -> Iterator[str]:
    """The URL of a database with the program's schema and no rows, for one test alone."""
    url = clones.take()
    yield url
    asyncio.run(clones.give_back(url))


@pytest.fixture
def empty_database(server: str) -> Iterator[str]:
    """The URL of a database with nothing in it, for one test alone."""
    with _database(server) as url:
        yield url


@contextmanager
def _database(server: str, options: str = "") -> Iterator[str]:
    name = f"test_{secrets.token_hex(4)}"
    asyncio.run(execute(server, f"CREATE DATABASE {name} {options}"))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        asyncio.run(execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


class Clones:
    """Databases that are alike. To empty one takes a tenth of the time that it takes to make one."""

    def __init__(self, clone: Callable[[], str]) -> None:
        self._clone = clone
        self._schemas: dict[str, str] = {}
        self._unused: list[str] = []

    def take(self) -> str:
        """One that nobody has."""
        if self._unused:
            return self._unused.pop()
        url = self._clone()
        self._schemas[url] = asyncio.run(_schema(url))
        return url

    async def give_back(self, url: str) -> None:
        """Take it for another test, unless this one has changed more than rows."""
        if await _schema(url) != self._schemas[url]:
            return
        async with session(url) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid();"
                f"TRUNCATE {', '.join(schema.tables)}"
            )
        self._unused.append(url)


async def _schema(url: str) -> str:
    """What a database has beside rows: its tables, triggers and so on, its settings, and its revision."""
    kinds = ("pg_class", "pg_proc", "pg_trigger", "pg_constraint", "pg_attrdef")
    objects = " UNION ALL ".join(f"SELECT oid FROM {kind} WHERE oid >= 16384" for kind in kinds)
    async with session(url) as connection:
        return str(
            await connection.fetchrow(
                f"SELECT array(SELECT * FROM ({objects}) AS objects ORDER BY 1),"
                " array(SELECT version_num FROM alembic_version),"
                " array(SELECT setconfig FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
                " WHERE datname = current_database())"
            )
        )
