"""A PostgreSQL cluster in a folder of its own: made, started, found running, and stopped.

::

    <data folder>/
    ├── lock                held by the process that owns the cluster; says which one that is
    ├── postgres/           the cluster with its socket; it gets this name when it is complete, and not before
    ├── postgres-new/       a cluster in the making
    ├── postgres-password   of the only role that can log in
    └── postgres.log        what PostgreSQL says; what it said earlier, if that was much, is in postgres.log.1
"""

import asyncio
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from storage.embedded_account import Account, account_for, as_account, check_runs, let_in
from storage.embedded_programs import ENVIRONMENT, POSTGRES_MAJOR, Programs, open_private, until
from storage.errors import StartupError

_log = logging.getLogger(__name__)

# Of the database, and of the role that owns it.
NAME: Final = "spectral_notify"
# Names the socket; there is no TCP.
PORT: Final = 5432
# What macOS takes; Linux takes four more.
SOCKET_PATH_BYTES_MAX: Final = 103
# Where a socket goes when it cannot be with its cluster. Rather than TMPDIR, because it is short and every account can
# reach it.
_TMP: Final = "/tmp"  # noqa: S108 - in it, a folder that only its owner can enter
_SOCKET_DIR_PREFIX: Final = "spectral-notify-"

MAKE_TIMEOUT_S: Final = 300
# After a crash the log of changes is replayed first, which can take minutes on a slow disk.
START_TIMEOUT_S: Final = 600
# A stop writes out what is only in memory.
STOP_TIMEOUT_S: Final = 60
STOP_AT_ONCE_TIMEOUT_S: Final = 10
_SIGNAL_TIMEOUT_S: Final = 10

# For the owner of the machine to change, in postgresql.conf.
_FIRST_SETTINGS: Final = {
    # Room for the pools of a server and of commands beside it; an idle connection costs a few MB.
    "max_connections": "100",
    # The tasks in use and their indexes; memory is taken when it is first needed.
    "shared_buffers": "256MB",
    # What goes wrong is logged without the values that clients sent.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
# Given at each start, above every file: what is promised to clients and to other users of the machine.
_FIXED_SETTINGS: Final = {
    "cluster_name": "spectral-notify",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # It would close the log, and with it give back the lock that says that PostgreSQL runs.
    "logging_collector": "off",
    # On macOS every other method ends in the disk's cache.
    **({"wal_sync_method": "fsync_writethrough"} if sys.platform == "darwin" else {}),
}


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What a PostgreSQL says of itself in ``postmaster.pid``, and may have left there when it crashed."""

    pid: int
    socket_dir: Path
    ready: bool

    def listens(self) -> bool:
        """Whether there is a process behind the words."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket_dir / f".s.PGSQL.{PORT}"))
            except (ConnectionError, FileNotFoundError):
                return False
        return True


class Cluster:
    """The cluster of one data folder. Only the holder of the folder's lock starts or stops it; anybody may look."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._folder = data_dir / "postgres"
        self._password_file = data_dir / "postgres-password"
        self._programs = Programs(data_dir / "postgres.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted = False
        self._socket_dir: Path | None = None

    def url(self) -> str | None:
        """Where the running PostgreSQL accepts connections; None while it does not."""
        postmaster = self._postmaster()
        if postmaster is None or not postmaster.ready or not postmaster.listens():
            return None
        return URL.create(
            "postgresql+asyncpg",
            username=NAME,
            password=self._password_file.read_text(),
            database=NAME,
            # All said, so that no PGPORT or PGSSLMODE of the surroundings has a say.
            query={"host": str(postmaster.socket_dir), "port": str(PORT), "ssl": "disable"},
        ).render_as_string(hide_password=False)

    async def start(self) -> str:
        """Start PostgreSQL, or adopt the one that a killed process left running; return where it is."""
        await asyncio.to_thread(self._prepare)
        url: str | None = None

        def settled() -> bool:
            nonlocal url
            url = self.url()
            return url is not None or self._programs.none_runs()

        # What a killed process left behind may be on its way up or down, or be making a cluster.
        if not await until(settled, START_TIMEOUT_S):
            raise StartupError(f"A PostgreSQL that was left in {self._folder} neither accepts connections nor ends.")
        left = self._postmaster()
        self._socket_dir = left.socket_dir if left else None
        if url is not None:
            self._adopted = True
            _log.info("Adopted the PostgreSQL that was left running in %s.", self._folder)
            return url
        self._clear()
        self._programs.rotate_log()
        if not self._folder.exists():
            await self._make()
        return await self._start()

    async def stop(self) -> None:
        """Stop what start() started or adopted."""
        if self._process is None and not self._adopted:
            return
        # Connections are ended and changes written out. If that takes too long, the next start replays them.
        for mode, timeout_s in (("fast", STOP_TIMEOUT_S), ("immediate", STOP_AT_ONCE_TIMEOUT_S)):
            self._ask_to_stop(mode)
            if await until(self._stopped, timeout_s):
                self._clear()
                return
        _log.error("The PostgreSQL in %s did not stop; the next start will find it.", self._folder)

    def _prepare(self) -> None:
        account = self._programs.account = account_for(self._folder)
        if account is not None:
            let_in(account, self.data_dir)
            let_in(account, self._programs.folder)
            check_runs(account, self._programs.folder / "postgres", self.data_dir)
        if self._folder.exists():
            version_file = self._folder / "PG_VERSION"
            version = version_file.read_text().strip() if version_file.exists() else "none"
            if version != POSTGRES_MAJOR:
                raise StartupError(
                    f"Expected a cluster of PostgreSQL {POSTGRES_MAJOR} in {self._folder}, got {version}. "
                    "Dump it with the version that made it, or choose another SPECTRAL_DATA_DIR."
                )

    async def _make(self) -> None:
        started = time.monotonic()
        account = self._programs.account
        new = self.data_dir / "postgres-new"
        # Left by a process that died on the way.
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if account is not None:
            os.chown(new, account.uid, account.gid)
        password = secrets.token_urlsafe(32)
        _write(self._password_file, password)
        # The superuser has no password and no way in: the program owns its database, and can do no more than that.
        await self._programs.run(
            *("initdb", f"--pgdata={new}", "--username=postgres", "--auth=reject", "--no-instructions"),
            *("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *(f"--set={name}={value}" for name, value in _FIRST_SETTINGS.items()),
            timeout_s=MAKE_TIMEOUT_S,
        )
        await self._programs.run(
            *("postgres", "--single", "-D", str(new), "-c", "exit_on_error=on", "postgres"),
            # By stdin, because everybody can read a command line.
            stdin=f"CREATE ROLE {NAME} LOGIN PASSWORD '{password}'\nCREATE DATABASE {NAME} OWNER {NAME}\n",
            timeout_s=MAKE_TIMEOUT_S,
        )
        _write(new / "pg_hba.conf", f"local {NAME} {NAME} scram-sha-256\n", account)
        new.rename(self._folder)
        _sync(self.data_dir)
        _log.info("Made a PostgreSQL cluster in %s (%.1f s).", self._folder, time.monotonic() - started)

    async def _start(self) -> str:
        self._socket_dir = self._choose_socket_dir()
        settings = {**_FIXED_SETTINGS, "unix_socket_directories": str(self._socket_dir)}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        process = self._process = self._programs.spawn("postgres", "-D", str(self._folder), *options)

        def ready() -> bool:
            postmaster = self._postmaster()
            return postmaster is not None and postmaster.pid == process.pid and postmaster.ready

        if not await until(lambda: process.poll() is not None or ready(), START_TIMEOUT_S):
            raise StartupError(f"PostgreSQL did not start in {self._folder} within {START_TIMEOUT_S} s.")
        if (url := self.url()) is None:
            raise StartupError(f"PostgreSQL did not start: {self._programs.last_words()}")
        return url

    def _choose_socket_dir(self) -> Path:
        short = len(os.fsencode(self._folder / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES_MAX
        # URLs and lists of folders give a meaning to other characters, each to different ones.
        if short and re.fullmatch(r"[A-Za-z0-9/._-]+", str(self._folder)):
            return self._folder
        folder = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir=_TMP))
        if self._programs.account is not None:
            os.chown(folder, self._programs.account.uid, self._programs.account.gid)
        return folder

    def _postmaster(self) -> Postmaster | None:
        try:
            lines = os.fsdecode((self._folder / "postmaster.pid").read_bytes()).split("\n")
        except FileNotFoundError:
            return None
        # PostgreSQL adds to it while it starts: its ID is the first line, its socket's folder the fifth, its state the
        # eighth.
        if len(lines) < 8 or not lines[0].isdecimal():
            return None
        return Postmaster(int(lines[0]), Path(lines[4]), ready=lines[7].strip() == "ready")

    def _ask_to_stop(self, mode: str) -> None:
        if self._process is not None:
            # Works from the first moment on, when there is no postmaster.pid yet.
            self._process.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
            return
        # As the account, which cannot harm other processes if the ID in the file is not what it should be.
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603 - our own program
                [self._programs.folder / "pg_ctl", "stop", "--no-wait", f"--mode={mode}", f"--pgdata={self._folder}"],
                **as_account(self._programs.account),
                cwd="/",
                env=ENVIRONMENT,
                capture_output=True,
                check=False,
                timeout=_SIGNAL_TIMEOUT_S,
            )

    def _stopped(self) -> bool:
        return (self._process is None or self._process.poll() is not None) and self._programs.none_runs()

    def _clear(self) -> None:
        # Nothing runs here any more. What a crashed PostgreSQL wrote about itself would keep the next from starting as
        # soon as its number belongs to another process.
        (self._folder / "postmaster.pid").unlink(missing_ok=True)
        _remove_socket(self._folder)
        if self._socket_dir is not None and self._socket_dir.match(f"{_TMP}/{_SOCKET_DIR_PREFIX}*"):
            # Others clean up there as well.
            with suppress(OSError):
                _remove_socket(self._socket_dir)
                self._socket_dir.rmdir()


def _remove_socket(folder: Path) -> None:
    for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
        (folder / name).unlink(missing_ok=True)


def _write(path: Path, text: str, owner: Account | None = None) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(open_private(path, os.O_WRONLY, owner), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
