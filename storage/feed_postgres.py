"""The feed between processes by LISTEN and NOTIFY, over a connection that does nothing else.

NOTIFY has a transaction of its own: in a task's transaction it would take a lock on the whole cluster at each commit.
And it need not be on disk, so it waits for none.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from storage.database import Connector, driver_arguments, explain
from storage.follower import Follower
from storage.link import Health, Link, packed, reconnect_waits, unpacked

log = logging.getLogger(__name__)

CHANNEL: Final = "spectral_notify"
# What a notification may hold is less than 8,000 bytes.
PAYLOAD_BYTES_MAX: Final = 7_900
# Whoever has just come: others announce to it from now on, and look what it may have changed unannounced.
HELLO: Final = "hello"
# How often it is seen whether the connection lives, and whether anybody else listens; and how long that may take.
CHECK_S: Final = 3.0
CHECK_WITHIN_S: Final = 3.0
# How long the last announcements may take when the process ends.
CLOSE_WITHIN_S: Final = 1.0
# Shared by all who listen on a database, so that they can be counted, whoever they are.
LISTENERS_LOCK: Final = 0x73706563

_NOTIFY: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"
_JOIN: Final = "SELECT pg_advisory_lock_shared($1)"
_COUNT: Final = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND objid = $1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class PostgresLink(Link):
    """LISTEN and NOTIFY."""

    def __init__(self, url: str, follower: Follower) -> None:
        super().__init__(follower)
        timeout_ms = int(1000 * CHECK_WITHIN_S)
        arguments = driver_arguments(
            url, timeout_ms, timeout_ms, {"synchronous_commit": "off"}, named="SPECTRAL_LISTEN_URL"
        )
        self._connector = Connector(arguments)
        self._why: str | None = None
        self._connection: Any = None
        # One statement at a time.
        self._free = asyncio.Lock()
        # As far as is known; nobody is told anything while nobody listens.
        self._others = True
        self._lost = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, or go on trying."""
        first = asyncio.Event()
        self._loop = asyncio.create_task(self._run(first), name="listen")
        await first.wait()

    async def close(self) -> None:
        """Announce what waits, and leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self.sent()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})

    async def send(self, announcements: Mapping[str, int]) -> None:
        """Notify the others, if there are any."""
        if self._others:
            await self._notify(list(packed(announcements.items(), PAYLOAD_BYTES_MAX)))

    async def _notify(self, payloads: list[str]) -> None:
        connection, lost = self._connection, self._lost
        if connection is None:
            self._unsaid = True
            return
        try:
            async with self._free:
                await connection.fetch(_NOTIFY, CHANNEL, payloads)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is to be made anew
            log.warning("Announcements were lost: %s", explain(error) or type(error).__name__)
            self._unsaid = True
            lost.set()

    async def _run(self, first: asyncio.Event) -> None:
        waits = reconnect_waits()
        while True:
            try:
                joined_at: float | None = None
                connection, own = await self._connector.connect()
                if not own:
                    connection.terminate()
                    raise ConnectionError("it leads through a pooler; SPECTRAL_LISTEN_URL must lead to the database")
                try:
                    await self._join(connection)
                    first.set()
                    joined_at = time.monotonic()
                    await self._stay(connection)
                finally:
                    if joined_at is not None and time.monotonic() - joined_at > CHECK_S:
                        waits = reconnect_waits()
                    self._connection = None
                    connection.terminate()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is to be made anew
                why = explain(error) or type(error).__name__
                if why != self._why:
                    # Once, and not at each try.
                    self._why = why
                    log.warning("The connection that listens is broken: %s", why)
            first.set()
            self._become(Health.DEGRADED)
            await asyncio.sleep(next(waits))

    async def _join(self, connection: Any) -> None:
        """Listen, be counted, and say hello."""
        self._lost = asyncio.Event()
        connection.add_termination_listener(lambda _: self._lost.set())
        own = connection.get_server_pid()

        def hear(_: Any, sender: int, __: str, payload: str) -> None:
            if sender != own:
                self._hear(payload)

        await connection.add_listener(CHANNEL, hear)
        await connection.fetch(_JOIN, LISTENERS_LOCK)
        self._others = True
        self._connection = connection
        # Before the hello: what is committed from now on is announced to whoever comes in the same moment.
        self._become(Health.CONNECTED)
        self._why = None
        await self._notify([HELLO])
        # What was announced before it listened was announced to nobody.
        self._follower.resync()

    async def _stay(self, connection: Any) -> None:
        """See again and again that the connection lives, until it does not."""
        while not self._lost.is_set():
            async with self._free:
                listeners = await connection.fetchval(_COUNT, LISTENERS_LOCK)
            self._others = listeners > 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._lost.wait()

    def _hear(self, payload: str) -> None:
        if payload == HELLO:
            self._others = True
            self._follower.resync()
        for task_id, seq in unpacked(payload):
            self._follower.hear(task_id, seq)
