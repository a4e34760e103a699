"""A real NATS server for a test: Debian's `nats-server`, on a free port of its own, and ended by its process ID."""

import asyncio
import shutil
import signal
import socket
import subprocess
from typing import Final

import pytest

READY_WITHIN_S: Final = 10


class NatsServer:
    """One server, which can be killed, started again, and frozen."""

    def __init__(self, *options: str) -> None:
        program = shutil.which("nats-server", path="/usr/sbin:/usr/local/bin:/usr/bin") or shutil.which("nats-server")
        if program is None:
            pytest.skip("nats-server is not installed")
        self.port = free_port()
        self._command = [program, "-a", "127.0.0.1", "-p", str(self.port), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self._popen()
        async with asyncio.timeout(READY_WITHIN_S):
            while True:
                assert self._process is not None
                assert self._process.poll() is None, "nats-server ended at its start"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.005)
                else:
                    writer.close()
                    return

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Have it do nothing, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _popen(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
