"""Gives the tasks of queues to workers, each to one.

The claims of one turn of the loop become one transaction. It locks rows that are ready and locked by nobody, and so
waits for no lock while it holds any: whatever order it takes them in, it is in no deadlock. What comes of them is
decided by the rules and written as every other change is.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ARRAY, Text, and_, any_, bindparam, select

from storage.aftermath import Aftermath
from storage.commands import Command, Lease, Release
from storage.database import is_dead_connection, is_passing
from storage.errors import NotConnected, OutcomeUnknown, Unavailable
from storage.gauges import ClaimGauges
from storage.group import LOCKED_COLUMNS, PARTS, Done, write_claims
from storage.limits import (
    ACTOR_CHARACTERS_MAX,
    CLAIM_TASKS_MAX,
    LEASE_MAX_S,
    WORKER_CHARACTERS_MAX,
    check_name,
    check_range,
)
from storage.messenger import submit_all
from storage.options import QUEUE_CHARACTERS_MAX
from storage.plan import ready_since
from storage.pool import NOT_IN_TIME, Connection, Pool, compiled
from storage.tables import tasks
from storage.task import Task

log = logging.getLogger(__name__)

# Tasks that one transaction gives away.
GIVEN_TASKS_MAX: Final = 512
# Claims that may wait; beyond, one is refused at once.
WAITING_CLAIMS_MAX: Final = 10_000
_TOKEN_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that a worker has for some time. With the token it reports, and says that it is alive."""

    task: Task
    token: str
    attempt: int
    expires_at: datetime


def claim_of(task: Task, token: str) -> Claim:
    """The claim that a task is under, or was: one that has ended since has the time of its end."""
    plan = task.plan
    assert plan is not None
    return Claim(task, token, plan.attempt, plan.lease_expires_at or task.updated_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A worker that asks for tasks, and waits."""

    queue: str
    worker: str
    limit: int
    lease_s: int
    actor: str | None
    future: asyncio.Future[list[Claim]]


class Claimer:
    """Takes claims, and works them off one lot after the other."""

    def __init__(
        self,
        pool: Pool,
        aftermath: Aftermath,
        submit: Callable[[Command], Awaitable[object]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        # By which tasks are given back that nobody is there to take.
        self._submit = submit
        self._aftermath = aftermath
        self._clock = clock
        self._waiting: deque[_Wish] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.gauges = ClaimGauges()

    async def claim(
        self, queue: str, worker: str, *, limit: int = 1, lease_s: int = 60, actor: str | None = None
    ) -> list[Claim]:
        """The next tasks of a queue, at most so many and perhaps none: higher priority first, then the oldest.

        They are the worker's for so many seconds from now, unless a heartbeat makes them more.
        """
        check_name("queue", queue, QUEUE_CHARACTERS_MAX)
        check_name("worker", worker, WORKER_CHARACTERS_MAX)
        check_range("limit", limit, 1, CLAIM_TASKS_MAX)
        check_range("leaseSeconds", lease_s, 1, LEASE_MAX_S)
        if actor is not None:
            check_name("actor", actor, ACTOR_CHARACTERS_MAX)
        if self._closing:
            raise Unavailable("The server is shutting down; try again.")
        if len(self._waiting) >= WAITING_CLAIMS_MAX:
            raise Unavailable(f"Too many claims are waiting ({len(self._waiting)}); try again.")
        future: asyncio.Future[list[Claim]] = asyncio.get_running_loop().create_future()
        self._waiting.append(
            _Wish(queue=queue, worker=worker, limit=limit, lease_s=lease_s, actor=actor, future=future)
        )
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="claimer")
        return await future

    async def close(self) -> None:
        """Take no more claims, and finish those that were accepted."""
        self._closing = True
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while lot := self._gather():
                try:
                    await self._work_off(lot)
                except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
                    outcome = _told(error)
                    for wish in lot:
                        if not wish.future.done():
                            wish.future.set_exception(outcome)
        finally:
            self._task = None

    def _gather(self) -> list[_Wish]:
        lot: list[_Wish] = []
        tasks_wanted = 0
        while self._waiting and tasks_wanted + self._waiting[0].limit <= GIVEN_TASKS_MAX:
            wish = self._waiting.popleft()
            # For somebody who has gone there is nothing to be claimed.
            if not wish.future.done():
                lot.append(wish)
                tasks_wanted += wish.limit
        return lot

    async def _work_off(self, lot: Sequence[_Wish]) -> None:
        try:
            given, done, before = await self._commit(lot)
        except Exception as error:
            if not is_dead_connection(error):
                raise
            # Most often it died while it lay idle. Nothing was committed, so a fresh one may try.
            given, done, before = await self._commit(lot)
        self._count(lot, given, before)
        claims: dict[int, list[Claim]] = {id(wish): [] for wish in lot}
        for (wish, lease), task in zip(given, done.results, strict=True):
            assert isinstance(task, Task)
            claims[id(wish)].append(claim_of(task, lease.token))
        gone: list[Command] = []
        for wish in lot:
            if not wish.future.done():
                wish.future.set_result(claims[id(wish)])
                continue
            # Who has gone meanwhile would let the lease run out, and the attempt be lost.
            gone += (
                Release(task_id=claim.task.task_id, token=claim.token, actor=wish.actor) for claim in claims[id(wish)]
            )
        await self._aftermath.follow(done)
        await submit_all(self._submit, gone)

    def _count(self, lot: Sequence[_Wish], given: Sequence[tuple[_Wish, Lease]], before: Sequence[Task]) -> None:
        now = self._clock()
        self.gauges.taken += len(before)
        self.gauges.empty += len(lot) - len({id(wish) for wish, _ in given})
        # Clocks of machines differ.
        self.gauges.wait_s.observe_all([max(0.0, (now - ready_since(task)).total_seconds()) for task in before])

    async def _commit(self, lot: Sequence[_Wish]) -> tuple[list[tuple[_Wish, Lease]], Done, list[Task]]:
        async with self._pool.connection() as connection:
            await connection.begin()
            try:
                found: list[Any] = []
                given: list[tuple[_Wish, Lease]] = []
                for queue in dict.fromkeys(wish.queue for wish in lot):
                    wishes = [wish for wish in lot if wish.queue == queue]
                    rows = await _next(connection, queue, sum(wish.limit for wish in wishes))
                    found += rows
                    takers = (wish for wish in wishes for _ in range(wish.limit))
                    given += [(wish, _lease(row[0], wish)) for wish, row in zip(takers, rows, strict=False)]
                done, before = await write_claims(connection, found, [lease for _, lease in given], self._clock())
            except BaseException:
                if not connection.interrupted:
                    await connection.roll_back()
                raise
            try:
                await connection.commit()
            except Exception as error:
                # The tasks may have been given to somebody who does not know. The lease runs out.
                self._aftermath.doubt({lease.task_id for _, lease in given})
                raise OutcomeUnknown from error
        return given, done, before


async def _next(connection: Connection, queue: str, limit: int) -> list[Any]:
    """Lock the next tasks of a queue.

    On Citus, rows of several shards cannot be locked at once, so they are looked for first. Of two servers that look at
    the same moment one finds less than there is; whoever it has nothing for asks again.
    """
    if not connection.distributed:
        return await connection.run(NEXT, queue, limit)
    task_ids = [task_id for (task_id,) in await connection.run(_LOOK, queue, limit)]
    found: dict[str, Any] = {}
    for (part,) in await connection.run(PARTS, task_ids) if task_ids else ():
        found.update((row[0], row) for row in await connection.run(_NEXT_OF, queue, part))
    return [found[task_id] for task_id in task_ids if task_id in found]


def _lease(task_id: str, wish: _Wish) -> Lease:
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    return Lease(task_id=task_id, worker=wish.worker, token=token, lease_s=wish.lease_s, actor=wish.actor)


def _told(error: Exception) -> Exception:
    if isinstance(error, Unavailable):
        log.warning("Claims could not be answered.", exc_info=error)
        return error
    if is_passing(error):
        log.warning("Claims could not be answered.", exc_info=error)
        unavailable = NotConnected(NOT_IN_TIME)
        unavailable.__cause__ = error
        return unavailable
    return error


_ready = and_(tasks.c.queue == bindparam("queue", type_=Text), tasks.c.ready)
_order = (tasks.c.priority.desc(), tasks.c.created_at, tasks.c.task_id)
NEXT: Final = compiled(
    select(*LOCKED_COLUMNS).where(_ready).order_by(*_order).limit(bindparam("limit")).with_for_update(skip_locked=True),
    "queue",
    "limit",
)
"""The next tasks of a queue that nobody has locked, locked."""
# The same on Citus: looked for, and locked in one shard.
_LOOK: Final = compiled(
    select(tasks.c.task_id).where(_ready).order_by(*_order).limit(bindparam("limit")), "queue", "limit"
)
_NEXT_OF: Final = compiled(
    select(*LOCKED_COLUMNS)
    .where(_ready, tasks.c.task_id == any_(bindparam("task_ids", type_=ARRAY(Text))))
    .with_for_update(skip_locked=True),
    "queue",
    "task_ids",
)
