"""A worker: claims the tasks of a queue while it has room for them, waits while there are none, stops in order."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from worker.backoff import jittered, pauses
from worker.bell import listen
from worker.claim import RELEASE_PATIENCE_S, Claim
from worker.client import TIMEOUT_S, Client
from worker.documents import CLAIM
from worker.errors import Unreachable, Unwanted, WorkerError
from worker.reports import Json
from worker.task import ClaimedTask, Job

log: Final = logging.getLogger("spectral.worker")

LEASE_S: Final = 60
POLL_S: Final = 5.0
GRACE_S: Final = 20.0
# What one claim may take; more room is filled by the next.
CLAIM_TASKS_MAX: Final = 100
# Two requests that hang must not take a whole lease.
_TIMEOUTS_PER_LEASE: Final = 3


class Worker:
    """Takes tasks of one queue. What it holds is kept by heartbeats, which need the event loop: work that blocks
    belongs into `asyncio.to_thread`.

    On SIGTERM, or `stop()`, it claims no more, gives back what was not begun, and lets blocks finish for `grace_s`
    seconds; then it ends them, and gives their tasks back too. With `signals=()` it leaves signals to others.
    `direct` goes past any proxy that the surroundings name.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        queue: str = "default",
        name: str | None = None,
        lease_s: int = LEASE_S,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
        signals: Collection[signal.Signals] = (signal.SIGTERM,),
        direct: bool = False,
    ) -> None:
        self.queue = queue
        self.name = f"{socket.gethostname()}:{os.getpid()}" if name is None else name
        self._client = Client(url, key, timeout_s=min(TIMEOUT_S, lease_s / _TIMEOUTS_PER_LEASE), direct=direct)
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._signals = signals
        self._held: set[Claim] = set()
        self._stopping = False
        # Set when something has happened for which those who wait should look again.
        self._news = asyncio.Event()
        # Whether tasks may be ready, as far as is known, and when to ask whatever is known.
        self._rung = True
        self._ask_at = 0.0
        self._background: set[asyncio.Task[Any]] = set()
        self._timers: list[asyncio.TimerHandle] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in self._signals:
            # Only the main thread may, and only where there are signals.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        self._bell = asyncio.create_task(listen(self._client, self.queue, self._ring), name=f"bell of {self.queue}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
            if error is not None and not isinstance(error, Exception):
                self._interrupt()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s + 2 * RELEASE_PATIENCE_S):
                    while self._held or self._background:
                        await self._until_news()
        finally:
            for timer in self._timers:
                timer.cancel()
            for number in self._signals:
                with suppress(NotImplementedError, RuntimeError, ValueError):
                    asyncio.get_running_loop().remove_signal_handler(number)
            self._bell.cancel()
            await asyncio.wait([self._bell])
            await self._client.close()

    def stop(self) -> None:
        """Claim no more; give back what was not begun; let the rest finish within the grace time."""
        if self._stopping:
            return
        log.info("Worker %s stops, with %d tasks in hand", self.name, len(self._held))
        self._stopping = True
        self._give_back_unless_begun(self._held)
        self._timers.append(asyncio.get_running_loop().call_later(self._grace_s, self._interrupt))
        self._tell_news()

    async def claims(self, limit: int = 1) -> AsyncGenerator[Claim, None]:
        """Claims of the queue as they can be had, until the worker stops. At most `limit` are held at once, begun or
        not; each is to be entered, or released.
        """
        waits = pauses()
        while room := await self._room(limit):
            try:
                claims = await self._claim(room)
            except Unreachable as error:
                pause_s = next(waits)
                log.warning("No tasks of queue %s can be had; asking again in %.1f s: %s", self.queue, pause_s, error)
                self._rung = False
                self._ask_at = asyncio.get_running_loop().time() + pause_s
                continue
            waits = pauses()
            try:
                while claims:
                    claim = claims.pop(0)
                    if not (claim.lost or self._stopping):
                        yield claim
            finally:
                # Who leaves the loop never comes to these.
                self._give_back_unless_begun(claims)

    async def run(self, handler: Callable[[ClaimedTask], Awaitable[Json]], *, concurrency: int = 1) -> None:
        """Have each task handled, so many at once, until the worker stops. What the handler returns is the metadata of
        `complete`; what it raises fails the task.
        """
        refused: WorkerError | None = None
        async with asyncio.TaskGroup() as group:
            try:
                async for claim in self.claims(concurrency):
                    task = group.create_task(self._handle(claim, handler), name=f"task {claim.job.task_id}")
                    # It may be canceled before its first step.
                    task.add_done_callback(partial(self._give_back_unless_begun, [claim]))
            except WorkerError as error:
                # What is under way may come to its end first.
                refused = error
        if refused is not None:
            raise refused

    async def _handle(self, claim: Claim, handler: Callable[[ClaimedTask], Awaitable[Json]]) -> None:
        try:
            async with claim as task:
                task.result = await handler(task)
        except Unwanted as unwanted:
            log.info("Task %s was not begun: %s", claim.job.task_id, unwanted)

    async def _room(self, limit: int) -> int:
        """Wait until it is worth asking; return for how many tasks, 0 when the worker stops."""
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            room = min(limit - len(self._held), CLAIM_TASKS_MAX)
            if room > 0 and (self._rung or clock() >= self._ask_at):
                return room
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._ask_at if room > 0 else None):
                    await self._until_news()
        return 0

    async def _claim(self, room: int) -> list[Claim]:
        # Whoever goes away while the server answers leaves tasks that nobody knows of, so the answer is waited for.
        asking = asyncio.create_task(self._ask(room), name=f"claim of {self.queue}")
        self._background.add(asking)
        asking.add_done_callback(self._done)
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            (claims,) = await asyncio.gather(asking, return_exceptions=True)
            if not isinstance(claims, BaseException):
                self._give_back_unless_begun(claims)
            raise

    async def _ask(self, room: int) -> list[Claim]:
        now = asyncio.get_running_loop().time()
        # Before it is asked: what becomes ready meanwhile rings again.
        self._rung = False
        self._ask_at = now + jittered(self._poll_s)
        answers = await self._client.ask(
            CLAIM,
            {"queue": self.queue, "worker": self.name, "limit": room, "leaseSeconds": self._lease_s},
            patience_s=0,
        )
        claims = []
        for answer in answers:
            task = answer["task"]
            job = Job(task["taskId"], task["metadata"], task["tags"], answer["attempt"], task["maxAttempts"])
            claims.append(Claim(self._client, job, answer["token"], self._lease_s, now, self._given_up))
        self._held.update(claims)
        # There may be more than there was room for.
        self._rung = self._rung or len(claims) == room
        if self._stopping:
            self._give_back_unless_begun(claims)
        return claims

    def _give_back_unless_begun(self, claims: Iterable[Claim], _done: object = None) -> None:
        for claim in claims:
            if not (claim.entered or claim.lost):
                releasing = asyncio.create_task(self._give_back(claim), name=f"release of {claim.job.task_id}")
                self._background.add(releasing)
                releasing.add_done_callback(self._done)

    async def _give_back(self, claim: Claim) -> None:
        if not claim.entered:
            try:
                await claim.release()
            except WorkerError as error:
                log.warning("Task %s could not be given back: %s", claim.job.task_id, error)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        self._tell_news()

    def _given_up(self, claim: Claim) -> None:
        self._held.discard(claim)
        self._tell_news()

    def _interrupt(self) -> None:
        for claim in [claim for claim in self._held if claim.entered]:
            claim.interrupt()

    def _ring(self) -> None:
        self._rung = True
        self._tell_news()

    def _tell_news(self) -> None:
        self._news.set()

    async def _until_news(self) -> None:
        self._news.clear()
        await self._news.wait()
