"""The processes of the benchmark: servers and what they cost, wrk, and the load generator."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from bench.storage import _postgres_cpu_s, _stat

HERE: Final = Path(__file__).parent
LOAD: Final = HERE / "load"
CONNECTIONS: Final = 32
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
COMMAND_TIMEOUT_S: Final = 300.0
# How long a server may take to be done with what was asked of it, and how long it must then do nothing.
SETTLE_TIMEOUT_S: Final = 60.0
SETTLED_S: Final = 0.3
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# What the load generator counts when somebody did not get exactly what was published.
_FAULTS: Final = ("missing", "repeated", "wrong", "refused", "closed")


class Failed(Exception):
    """What was measured did not work, so its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs as a process of its own."""

    name: str
    pid: int
    port: int
    # From exec to the first answer.
    started_in_s: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    def cpu_s(self) -> float:
        """Processor time of the process so far, in user space and in the kernel."""
        stat = _stat(Path(f"/proc/{self.pid}"))
        if stat is None:
            raise Failed(f"{self.name} has ended.")
        return stat.ticks / _TICKS_PER_S

    def rss_bytes(self) -> int:
        """The memory that the process has in RAM."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def settle(self) -> None:
        """Wait until it does nothing any more."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        before = self.cpu_s()
        while time.monotonic() < deadline:
            await asyncio.sleep(SETTLED_S)
            if (now := self.cpu_s()) - before <= 1 / _TICKS_PER_S:
                return
            before = now
        raise Failed(f"{self.name} is still at work {SETTLE_TIMEOUT_S:.0f} s after the load ended.")

    async def ask(self, body: str, key: str | None) -> Any:
        """The data of one answer."""
        async with httpx.AsyncClient(trust_env=False, timeout=START_TIMEOUT_S) as http:
            return data_of(await http.post(self.url, content=body, headers=headers(key)))


class Cost:
    """The processor time that a server and PostgreSQL took while the block ran."""

    def __init__(self, server: Server | None, postmaster: int) -> None:
        self._server = server
        self._postmaster = postmaster
        self.server_s = 0.0
        self.postgres_s = 0.0
        self.seconds = 0.0

    def _times(self) -> tuple[float, float, float]:
        postgres = _postgres_cpu_s(self._postmaster)
        if postgres is None:
            raise Failed("PostgreSQL has ended.")
        return self._server.cpu_s() if self._server else 0.0, postgres, time.perf_counter()

    def __enter__(self) -> Self:
        self._before = self._times()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            after = self._times()
            self.server_s, self.postgres_s, self.seconds = (
                now - then for now, then in zip(after, self._before, strict=True)
            )


def headers(key: str | None) -> dict[str, str]:
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    return {"Content-Type": "application/json", "Accept": "application/json", **authorization}


def data_of(answer: httpx.Response) -> Any:
    """What was asked for; or Failed with what came instead."""
    content = answer.json()
    if answer.status_code != 200 or "errors" in content:
        raise Failed(f"An answer that was not asked for: {answer.status_code} {answer.text[:500]}")
    return content["data"]


@asynccontextmanager
async def serving(
    name: str, arguments: Sequence[str], port: int, first: str, key: str | None, **settings: str
) -> AsyncIterator[Server]:
    """Run Python with these arguments and settings, from the first answer to `first` until the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECTRAL_")}
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**environment, "SPECTRAL_LOG_LEVEL": "warning", **settings},
        stdin=asyncio.subprocess.DEVNULL,
        # Ctrl-C is for the benchmark, which then stops its servers.
        start_new_session=True,
    )
    try:
        await _first_answer(process, port, first, key)
        yield Server(name, process.pid, port, time.perf_counter() - start)
    finally:
        await _stop(process)


async def _first_answer(process: asyncio.subprocess.Process, port: int, body: str, key: str | None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    async with httpx.AsyncClient(trust_env=False, timeout=START_TIMEOUT_S) as http:
        while True:
            if process.returncode is not None or time.monotonic() > deadline:
                raise Failed("A server does not answer; above is what it said.")
            try:
                data_of(await http.post(f"http://127.0.0.1:{port}/graphql", content=body, headers=headers(key)))
                return
            except httpx.TransportError:
                await asyncio.sleep(0.005)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# ---------------------------------------------------------------- load


async def wrk(server: Server, bodies: Path, seconds: int, *, look: bool, key: str | None) -> dict[str, float]:
    """Ask what is in a file, on 32 connections; `look` at whether the answers are what was asked for."""
    authorization = ["-H", f"Authorization: Bearer {key}"] if key else []
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "http.lua")),
        *(*authorization, server.url, "--", str(bodies), "look" if look else "trust"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds + START_TIMEOUT_S):
            said = (await process.communicate())[0].decode()
    finally:
        await _stop(process)
    _, found, result = said.partition("\nRESULT ")
    if not found:
        raise Failed(f"wrk says: {said}")
    figures: dict[str, float] = json.loads(result)
    if figures["failed"] or figures["refused"] or not figures["answers"]:
        raise Failed(f"{server.name} did not answer everything that {bodies.name} asks: {figures}")
    return figures


class Load:
    """The load generator for subscriptions, connected to one server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def command(self, line: str) -> dict[str, float]:
        """What it counted; Failed if any subscriber did not get each event exactly once and in order."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            answer = await self._process.stdout.readline()
        if not answer:
            raise Failed(f"The load generator ended at {line!r}.")
        counted: dict[str, float] = json.loads(answer)
        if any(counted[fault] for fault in _FAULTS):
            raise Failed(f"Subscribers did not get what they should at {line!r}: {counted}")
        return counted

    async def connect(self, count: int, first: int, span: int, *, own: bool) -> dict[str, float]:
        """Open sockets with a subscription each."""
        counted = await self.command(f"connect {count} {first} {span} {'own' if own else 'same'}")
        if counted["subscribers"] != count:
            raise Failed(f"Of {count:,} subscriptions {counted['subscribers']:,} began.")
        return counted


@asynccontextmanager
async def generating(
    server: Server, tasks: Path, subscription: str, mutation: str, key: str | None, publish_to: Server | None = None
) -> AsyncIterator[Load]:
    """A load generator for a server; mutations may go to another."""
    process = await asyncio.create_subprocess_exec(
        *(str(LOAD), f"{server.port}:{(publish_to or server).port}", str(tasks), subscription, mutation),
        *([key] if key else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Load(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await _stop(process)
