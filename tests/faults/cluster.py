"""A real PostgreSQL of the run's own, which keeps its promises about the disk and can be restarted in two ways."""

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import URL

from storage.embedded_account import account_for, let_in
from storage.embedded_programs import Programs, until
from tests.faults.ports import HOST, free_port

NAME: Final = "faults"
# On a machine that does much else at the same time.
TIMEOUT_S: Final = 60.0
_SETTINGS: Final = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    "shared_buffers": "64MB",
    # What a crash must replay is not much.
    "max_wal_size": "256MB",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}
Mode = Literal["fast", "immediate"]
"""Fast ends sessions and writes everything out; immediate is a crash, after which the log of changes is replayed."""
_SIGNALS: Final[dict[Mode, signal.Signals]] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Cluster:
    """The PostgreSQL of one folder, on one port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log_file = folder / "postgres.log"
        self._parent = folder
        self._folder = folder / "postgres"
        self._password = secrets.token_urlsafe(16)
        self._programs = Programs(self.log_file)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, port: int | None = None) -> str:
        """How to connect: directly, or by way of a proxy's port."""
        return URL.create(
            "postgresql+asyncpg", NAME, self._password, HOST, port or self.port, NAME, {"ssl": "disable"}
        ).render_as_string(hide_password=False)

    async def make(self) -> None:
        """Make the cluster, with one role and one database."""
        account = self._programs.account = account_for(self._folder)
        self._folder.mkdir(mode=0o700)
        if account is not None:
            let_in(account, self._parent)
            let_in(account, self._programs.folder)
            os.chown(self._folder, account.uid, account.gid)
        await self._programs.run(
            *("initdb", f"--pgdata={self._folder}", "--username=postgres", "--auth=reject", "--no-instructions"),
            *("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            timeout_s=TIMEOUT_S,
        )
        await self._programs.run(
            *("postgres", "--single", "-D", str(self._folder), "-c", "exit_on_error=on", "postgres"),
            stdin=f"CREATE ROLE {NAME} LOGIN PASSWORD '{self._password}'\nCREATE DATABASE {NAME} OWNER {NAME}\n",
            timeout_s=TIMEOUT_S,
        )
        (self._folder / "pg_hba.conf").write_text(f"host {NAME} {NAME} {HOST}/32 scram-sha-256\n")

    async def start(self) -> None:
        """Start it, and wait until it takes connections."""
        # After a crash its children end a moment later than itself.
        assert await until(self._programs.none_runs, TIMEOUT_S), "the PostgreSQL before does not end"
        settings = {**_SETTINGS, "port": str(self.port)}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        process = self._process = self._programs.spawn("postgres", "-D", str(self._folder), *options)
        status = self._folder / "postmaster.pid"

        def ready() -> bool:
            lines = status.read_text().split() if status.exists() else []
            return bool(lines) and lines[0] == str(process.pid) and lines[-1] == "ready"

        started = await until(lambda: process.poll() is not None or ready(), TIMEOUT_S)
        assert started and process.poll() is None, f"PostgreSQL did not start: {self._programs.last_words()}"

    async def stop(self, mode: Mode) -> None:
        """Stop it, and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(_SIGNALS[mode])
        if not await until(lambda: process.poll() is not None, TIMEOUT_S):
            process.kill()
            await asyncio.to_thread(process.wait)
            raise AssertionError(f"PostgreSQL did not stop ({mode})")

    async def restart(self, mode: Mode) -> None:
        """Stop and start it."""
        await self.stop(mode)
        await self.start()


@asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A new cluster, while the block lasts."""
    cluster = Cluster(folder)
    await cluster.make()
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop("immediate")
