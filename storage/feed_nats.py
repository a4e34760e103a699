"""The feed between processes over NATS, a server or a cluster.

A task's subject is made from a hash of its ID, and a process subscribes to those under which it watches a task. NATS
keeps nothing: what was announced while somebody was not subscribed, he finds by comparing.
"""

import asyncio
import contextlib
import logging
import random
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error, SecureConnRequiredError, SlowConsumerError

from storage.errors import StartupError
from storage.feed import TURN_S
from storage.follower import Follower
from storage.link import Health, Link, packed, reconnect_waits, unpacked

log = logging.getLogger(__name__)

SCHEMES: Final = ("nats", "tls")
PORT: Final = 4222
# Part of the subjects of all processes of one deployment. When two share it they hear each other in vain, no more.
DEPLOYMENT: Final = "default"
# Subjects of tasks. All processes must agree.
BUCKETS: Final = 256
# In the place of a bucket, stands for all of them.
ALL: Final = -1
# A server takes 1 MB, unless it is told otherwise.
PAYLOAD_BYTES_MAX: Final = 64 * 1024
# What may wait for a server that takes nothing; beyond, the connection is given up.
UNSENT_BYTES_MAX: Final = 8 * 1024 * 1024
# What may wait to be heard, for each subject; beyond, it is dropped and compared.
UNHEARD_MESSAGES_MAX: Final = 1_024
UNHEARD_BYTES_MAX: Final = 4 * 1024 * 1024
CONNECT_WITHIN_S: Final = 2
# How long the start waits to be connected, before it goes on without.
START_WITHIN_S: Final = 2.0
# How often it is seen whether the server answers, and how long it may take.
CHECK_S: Final = 3.0
CHECK_WITHIN_S: Final = 3
# How long the last announcements may take on their way out.
LEAVE_WITHIN_S: Final = 0.5


class NatsLink(Link):
    """Core NATS."""

    def __init__(self, url: str, follower: Follower) -> None:
        super().__init__(follower)
        self._servers, deployment = _parsed(url)
        self._prefix = f"spectral-notify.{deployment}."
        self._hello = self._prefix + "hello"
        self._watched: dict[int, set[str]] = {}
        # Set while every subject is subscribed, so that those of single buckets bring nothing more.
        self._hears_all = asyncio.Event()
        # Whether somebody went on who should have waited for that.
        self._missing = False
        # Set when a task is watched in a bucket that had none.
        self._wanted = asyncio.Event()
        # Whom announcements are given to; None while there is nobody.
        self._client: _Client | None = None
        # Whether it was said why there is nobody.
        self._explained = False
        # Set when it is known for the first time whether a server can be reached.
        self._tried = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def watch(self, task_id: str) -> None:
        """Hear of a task from now on."""
        task_ids = self._watched.get(bucket := bucket_of(task_id))
        if task_ids is None:
            task_ids = self._watched[bucket] = set()
            self._wanted.set()
        task_ids.add(task_id)

    def forget(self, task_id: str) -> None:
        """Hear of a task no more; its subject is left when there is time."""
        task_ids = self._watched.get(bucket := bucket_of(task_id), set())
        task_ids.discard(task_id)
        if not task_ids:
            self._watched.pop(bucket, None)

    def watch_all(self) -> None:
        """Hear of every task from now on."""
        self._watched[ALL] = set()
        self._wanted.set()

    def forget_all(self) -> None:
        """Hear only of those that are watched; the others' subjects are left when there is time."""
        del self._watched[ALL]
        self._hears_all.clear()

    async def hears_all(self) -> None:
        """Wait until it is so; where nobody answers, no longer than the start of the process would."""
        if self._client is not None and not self._hears_all.is_set():
            try:
                async with asyncio.timeout(START_WITHIN_S):
                    await self._hears_all.wait()
            except TimeoutError:
                self._missing = True

    async def start(self) -> None:
        """Connect, or go on trying."""
        self._loop = asyncio.create_task(self._run(), name="nats")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_WITHIN_S):
                await self._tried.wait()

    async def close(self) -> None:
        """Announce what waits, and leave."""
        await self.sent()
        # Again and again: before Python 3.12, `wait_for` forgets a cancellation that comes with what it waited for.
        while self._loop is not None and not self._loop.done():
            self._loop.cancel()
            await asyncio.wait({self._loop}, timeout=2 * LEAVE_WITHIN_S)

    async def send(self, announcements: Mapping[str, int]) -> None:
        """Hand these to the server, a message for each bucket; others have their turn in between."""
        client = self._client
        if client is None:
            self._unsaid = True
            return
        buckets: dict[int, list[tuple[str, int]]] = {}
        for announcement in announcements.items():
            buckets.setdefault(bucket_of(announcement[0]), []).append(announcement)
        clock = asyncio.get_running_loop().time
        turn_ends_at = clock() + TURN_S
        try:
            for bucket, told in buckets.items():
                for payload in packed(told, min(PAYLOAD_BYTES_MAX, client.max_payload)):
                    await client.publish(self._subject(bucket), payload.encode())
                if client.pending_data_size > UNSENT_BYTES_MAX:
                    client.lose("It takes no more announcements.")
                    self._unsaid = True
                    return
                if clock() > turn_ends_at:
                    await asyncio.sleep(0)
                    turn_ends_at = clock() + TURN_S
        except Error as error:
            client.lose(error)
            self._unsaid = True

    async def _run(self) -> None:
        waits = reconnect_waits()
        while True:
            for server in random.sample(self._servers, len(self._servers)):
                if await self._visit(server):
                    waits = reconnect_waits()
                    break
            self._tried.set()
            await asyncio.sleep(next(waits))

    async def _visit(self, server: "_Server") -> bool:
        """Connect to a server and stay as long as it answers; whether it ever did."""
        # The library's own way to connect again would wait for a server that is frozen, and gives up after some errors
        # of the protocol. So each connection has a client of its own, and whatever goes wrong is its end.
        client = _Client(server, self._follower)
        try:
            async with client.life:
                await client.begin()
                await self._stay(client)
        except (OSError, TimeoutError, Error) as error:
            self._explain(client.reason or error)
        except Exception:
            log.exception("The feed over NATS failed; it begins anew.")
        finally:
            joined = self._client is client
            self._client = None
            self._hears_all.clear()
            await client.leave()
        self._become(Health.DEGRADED)
        return joined

    async def _stay(self, client: "_Client") -> None:
        """Subscribe to what is watched, and see again and again that the server answers, until it does not."""
        await _subscribe(client, self._hello, self._on_hello)
        subscribed: dict[int, Subscription] = {}
        while not client.life.expired():
            self._wanted.clear()
            fresh = [bucket for bucket in self._watched if bucket not in subscribed]
            for bucket in fresh:
                hear = self._on_any_announcements if bucket == ALL else self._on_announcements
                subscribed[bucket] = await _subscribe(client, self._subject(bucket), hear)
            # When the answer comes, the server has subscribed all that was asked for before. (Not `flush`: it does
            # not wait for an answer when the task that reads has died.)
            await client.rtt(CHECK_WITHIN_S)
            if self._client is None:
                await self._join(client)
            elif fresh:
                self._follower.compare(chain.from_iterable(self._watched.get(bucket, ()) for bucket in fresh))
                if ALL in fresh:
                    self._follower.look_for_lists()
            if ALL in subscribed and ALL in self._watched:
                self._hears_all.set()
                if self._missing:
                    self._missing = False
                    self._follower.lost()
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._wanted.wait()
            except TimeoutError:
                for bucket in subscribed.keys() - self._watched.keys():
                    await subscribed.pop(bucket).unsubscribe()

    async def _join(self, client: "_Client") -> None:
        # Announcements go out from here on, and what was not announced before is what the hello stands for. The other
        # order would lose what comes in between.
        self._client = client
        self._explained = False
        self._become(Health.CONNECTED)
        await client.publish(self._hello)
        self._follower.resync()
        self._tried.set()

    async def _on_hello(self, _: Msg) -> None:
        self._follower.resync()

    async def _on_announcements(self, message: Msg) -> None:
        if not self._hears_all.is_set():
            await self._on_any_announcements(message)

    async def _on_any_announcements(self, message: Msg) -> None:
        for task_id, seq in unpacked(message.data):
            self._follower.hear(task_id, seq)

    def _subject(self, bucket: int) -> str:
        return self._prefix + ("*" if bucket == ALL else str(bucket))

    def _explain(self, reason: object) -> None:
        if not self._explained:
            self._explained = True
            log.warning("NATS is not there: %s", str(reason) or "It does not answer.")


@dataclass(frozen=True, slots=True)
class _Server:
    """Where a server is, and who calls."""

    address: str
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    token: str | None = field(repr=False)

    @property
    def secure(self) -> bool:
        """Whether nothing may be said without TLS."""
        return self.address.startswith("tls:")


class _Client(Client):
    """One connection to one server. It ends with `lose`, which the library's callbacks call, too."""

    def __init__(self, server: _Server, follower: Follower) -> None:
        super().__init__()
        self._server = server
        self._follower = follower
        self.life = asyncio.timeout(None)
        """What is done by this client is done within it."""
        self.reason: object = None
        """Why it ended, if anybody has said so."""

    async def begin(self) -> None:
        """Connect."""
        async with asyncio.timeout(CONNECT_WITHIN_S):
            await self.connect(
                [self._server.address],
                user=self._server.user,
                password=self._server.password,
                token=self._server.token,
                name="spectral-notify",
                connect_timeout=CONNECT_WITHIN_S,
                allow_reconnect=False,
                reconnect_time_wait=0,
                max_reconnect_attempts=1,
                no_echo=True,
                # Nothing waits in `publish`; `send` has a bound of its own.
                pending_size=0,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
            )

    def lose(self, reason: object = None) -> None:
        """End what is done by this client."""
        self.reason = self.reason or reason
        # It may be over already.
        with contextlib.suppress(RuntimeError):
            self.life.reschedule(0)

    async def leave(self) -> None:
        """Send what waits and close the connection; cut it when the server takes nothing."""
        subscriptions = list(self._subs.values())
        try:
            async with asyncio.timeout(LEAVE_WITHIN_S):
                await self.close()
        except (OSError, TimeoutError, Error):
            if (writer := getattr(self._transport, "_io_writer", None)) is not None:
                writer.transport.abort()
        finally:
            # Each has a task, which the library forgets when closing fails half-way.
            for subscription in subscriptions:
                subscription._stop_processing()

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, SlowConsumerError):
            self._follower.lost()
        else:
            self.lose(error)

    async def _on_closed(self) -> None:
        self.lose()

    def _connect_command(self) -> bytes:
        # The library uses TLS if the server says so, and what the server says can be changed on the way. This is called
        # before the first word is said, which has the password.
        if self._server.secure and not self._server_info.get("tls_required"):
            raise SecureConnRequiredError
        return super()._connect_command()


def bucket_of(task_id: str) -> int:
    """The bucket of a task, the same in all processes."""
    return zlib.crc32(task_id.encode(errors="replace")) % BUCKETS


async def _subscribe(client: Client, subject: str, hear: Callable[[Msg], Awaitable[None]]) -> Subscription:
    return await client.subscribe(
        subject, cb=hear, pending_msgs_limit=UNHEARD_MESSAGES_MAX, pending_bytes_limit=UNHEARD_BYTES_MAX
    )


def _parsed(url: str) -> tuple[list[_Server], str]:
    """The servers that a URL names, and the deployment."""
    try:
        first, *others = url.split(",")
        scheme = first.partition("://")[0]
        parts = [urlsplit(one if "://" in one else f"{scheme}://{one}") for one in (first, *others)]
        servers = [_server(part) for part in parts]
    except ValueError:
        raise StartupError(
            "SPECTRAL_FEED_URL is not a URL of NATS; expected nats://user:password@host:4222/deployment."
        ) from None
    names = {name for part in parts if (name := part.path.strip("/"))} or {DEPLOYMENT}
    if len(names) > 1 or not re.fullmatch("[A-Za-z0-9_-]{1,64}", name := names.pop()):
        raise StartupError(
            "SPECTRAL_FEED_URL must name one deployment after the slash, in at most 64 letters, digits, _ and -."
        )
    return servers, name


def _server(part: SplitResult) -> _Server:
    if part.scheme not in SCHEMES or not part.hostname or part.query or part.fragment:
        raise ValueError
    host = f"[{part.hostname}]" if ":" in part.hostname else part.hostname
    user, password = (None if word is None else unquote(word) for word in (part.username, part.password))
    address = f"{part.scheme}://{host}:{part.port or PORT}"
    if password is None:
        return _Server(address, None, None, token=user or None)
    return _Server(address, user, password, None)
