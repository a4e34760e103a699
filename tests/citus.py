"""A real Citus for tests: a coordinator and two workers, where a PostgreSQL with that extension is installed.

They run on ports of their own, as `postgres` when the tests are run by root, and are ended by their process IDs.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from storage import distribute, upgrade_database
from tests.nats import free_port
from tests.postgres import execute

READY_WITHIN_S: Final = 30
WORKERS: Final = 2
SHARDS: Final = 8
ROLE: Final = "spectral_notify"
_SETTINGS: Final = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_preload_libraries = 'citus'
max_connections = 200
max_prepared_transactions = 200
fsync = off
citus.node_conninfo = 'sslmode=disable'
"""


class CitusCluster:
    """A coordinator and its workers."""

    def __init__(self) -> None:
        self._programs = _find()
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            # PostgreSQL will not run as root.
            account = pwd.getpwnam("postgres")
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.ports = [free_port() for _ in range(1 + WORKERS)]
        self._folder = Path(tempfile.mkdtemp(prefix="spectral-citus-"))
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all, and wait until they answer."""
        if self._user:
            os.chown(self._folder, self._user["user"], self._user["group"])
        first = self._folder / str(self.ports[0])
        self._run("initdb", "-D", str(first), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (first / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS)
        for port in self.ports[1:]:
            subprocess.run(["cp", "-a", first, self._folder / str(port)], check=True)
        for port in self.ports:
            self._processes.append(self._popen("postgres", "-D", str(self._folder / str(port)), "-p", str(port)))
        for port in self.ports:
            deadline = time.monotonic() + READY_WITHIN_S
            while subprocess.run([self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)

    def stop(self) -> None:
        """End all, and leave nothing behind."""
        for process in self._processes:
            process.send_signal(signal.SIGQUIT)
        for process in self._processes:
            process.wait(READY_WITHIN_S)
        shutil.rmtree(self._folder)

    @property
    def log(self) -> str:
        """What all of them have said."""
        return (self._folder / "log").read_text()

    def url(self, port: int, database: str, role: str = ROLE) -> str:
        """Where a database is."""
        return f"postgresql+asyncpg://{role}@127.0.0.1:{port}/{database}"

    async def new_database(self) -> str:
        """A database that all nodes know, with Citus in it and nothing else; its owner may do nothing more."""
        name = f"test_{secrets.token_hex(4)}"
        for port in reversed(self.ports):
            admin = self.url(port, "postgres", "postgres")
            with suppress(asyncpg.DuplicateObjectError):
                await execute(admin, f"CREATE ROLE {ROLE} LOGIN")
            await execute(admin, f"CREATE DATABASE {name} OWNER {ROLE}")
            await execute(self.url(port, name, "postgres"), "CREATE EXTENSION citus")
        coordinator, *workers = self.ports
        admin = self.url(coordinator, name, "postgres")
        await execute(admin, f"SELECT citus_set_coordinator_host('127.0.0.1', {coordinator})")
        for port in workers:
            await execute(admin, f"SELECT citus_add_node('127.0.0.1', {port})")
        return self.url(coordinator, name)

    async def distributed_database(self) -> str:
        """A database with the program's schema, distributed, and no rows."""
        url = await self.new_database()
        await upgrade_database(url)
        assert await distribute(url, SHARDS)
        return url

    def _run(self, program: str, *arguments: str) -> None:
        process = self._popen(program, *arguments)
        assert process.wait(READY_WITHIN_S) == 0, self.log

    def _popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments], stdout=log, stderr=log, cwd="/", **self._user
            )


def _find() -> Path:
    """Where the programs of a PostgreSQL with Citus are."""
    folders = [Path(found).parent for found in [shutil.which("pg_config")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if not (folder / "postgres").exists():
            continue
        shared = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=True)
        if Path(shared.stdout.strip(), "extension", "citus.control").exists():
            return folder
    pytest.skip("no PostgreSQL with Citus is installed")
