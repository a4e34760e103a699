"""The programs of a run as processes: killed, paused, stopped and started again on their own ports."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from tests.faults.ports import HOST, free_port

ROOT: Final = Path(__file__).parents[2]
START_TIMEOUT_S: Final = 60.0
# What is promised, and some of a slow machine's time.
STOP_TIMEOUT_S: Final = 15.0
LOG_LINES_SHOWN: Final = 40
_POLL_S: Final = 0.05


class Process:
    """A program that is expected to run unless somebody here has ended it."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._command = command
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        """The number of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def died(self) -> int | None:
        """The status with which it ended although nobody asked it to."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it; it may not be ready yet."""
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=dict(self._environ),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the run, which then ends its processes.
                start_new_session=True,
            )

    async def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    async def stop(self) -> int | None:
        """End it in order; return its status, or None when it had to be killed."""
        assert self._process is not None
        process = self._process
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                status = await process.wait()
        except TimeoutError:
            await self.kill()
            return None
        self._process = None
        return status

    def pause(self) -> None:
        """Stop its clock: it keeps all its connections and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again, if it does."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self.pid, signal.SIGCONT)

    def last_words(self) -> str:
        """The end of what it said."""
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join([f"--- the end of what {self.name} said", *lines])


class Server(Process):
    """A spectral-notify."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], log_file: Path, port: int
    ) -> None:
        super().__init__(name, command, environ, log_file)
        # Where it listens itself; clients come by way of a proxy.
        self.port = port
        # Open sockets when it had just become ready and no client had come.
        self.sockets_at_start = 0

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> bool:
        """Wait until it says that it is ready; whether it came to that."""
        deadline = time.monotonic() + timeout_s
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=2) as http:
            while time.monotonic() < deadline and self.died is None:
                try:
                    if (await http.get(f"http://{HOST}:{self.port}/readyz")).status_code == 200:
                        return True
                except httpx.TransportError:
                    pass
                await asyncio.sleep(_POLL_S)
        return False

    async def feed(self) -> str | None:
        """How it hears of the others, as it says itself."""
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=2) as http:
            try:
                return str((await http.get(f"http://{HOST}:{self.port}/readyz")).json()["feed"])
            except httpx.TransportError:
                return None

    def sockets(self) -> int:
        """How many sockets it has open, of whatever kind."""
        count = 0
        for file in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                count += str(file.readlink()).startswith("socket:")
            except FileNotFoundError:
                continue
        return count


def nats_program() -> str | None:
    """Where the broker is; Debian puts it into a folder that not every PATH names."""
    return shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class Nats(Process):
    """A broker that keeps nothing on disk."""

    def __init__(self, program: str, log_file: Path) -> None:
        self.port = free_port()
        super().__init__("nats", [program, "-a", HOST, "-p", str(self.port)], {}, log_file)

    async def ready(self) -> None:
        """Wait until it takes connections."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(HOST, self.port)
                except OSError:
                    await asyncio.sleep(_POLL_S)
                    continue
                writer.close()
                return
