"""What time makes of tasks: one process at a time looks for what is due, and has it done by commands.

Who looks is said by a row that names a holder until some time; the holder renews it, and who finds it lapsed takes it.
Not by an advisory lock: that is a session's, which a pooler takes away, and which a process that is frozen, or a
machine that is gone without a word, keeps for as long as TCP believes in it. A row is not exact. Two may look at the
same time, and nothing comes of it: each command is decided under the lock of its task, and finds it done.

Whatever was due while nobody looked is found in the same way, later.

Tasks that have been kept long enough are deleted beside all that, by a loop of its own: there may be a million of them,
and one with a million events takes seconds.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ARRAY, DateTime, Interval, Text, bindparam, delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from storage.commands import Command, Settle, Tick
from storage.counts import FOLD, FOLDED_MAX
from storage.database import explain
from storage.dependencies import UNTAKEN
from storage.errors import Unavailable
from storage.gauges import TimerGauges
from storage.messenger import UNDER_WAY_MAX, submit_all
from storage.pool import Pool, compiled
from storage.tables import duties, tasks
from storage.task import Outcome
from storage.writer import Writer

log = logging.getLogger(__name__)

# How long the duty is held without being renewed, how often it is renewed, and how often others look whether it is.
HOLD_S: Final = 3.0
RENEW_S: Final = 1.0
TRY_S: Final = 1.0
# How often the holder looks for what is due.
LOOK_S: Final = 0.25
# How often it looks for messages that nobody has taken, and for tasks that have been kept as long as all are.
SWEEP_S: Final = 2.0
# Tasks that one look finds; when there are more, it looks again at once.
DUE_TASKS_MAX: Final = 1_000
# Tasks that one sweep deletes. Reports have the writer to themselves before the next.
KEPT_TASKS_MAX: Final = 100
# How long a task is left alone that could not be deleted: it would be the first of each look, and take as long again.
# Each time it is twice as long, up to a bound; and so many tasks are remembered for it.
PUT_OFF_S: Final = 1.0
PUT_OFF_MAX_S: Final = 600.0
PUT_OFF_TASKS_MAX: Final = 1_000
# A lot ends with the command that makes it so heavy: deleting a task takes as long as it has events, and reports that
# come meanwhile wait for it.
LOT_WEIGHT_MAX: Final = 1_000
_DUTY: Final = "timers"


class Timers:
    """Looks for what is due while it holds the duty, and tries to get it while another does."""

    def __init__(
        self,
        pool: Pool,
        writer: Writer,
        *,
        keep_finished_s: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._keep_finished_s = keep_finished_s
        self._clock = clock
        self._holder = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self._renew_at = 0.0
        self._sweep_at = 0.0
        self._sweep_kept_at = 0.0
        # The tasks that could not be deleted, the last of them last; each with the time until which it is left alone,
        # and how long that is.
        self._put_off: dict[str, tuple[float, float]] = {}
        # Whether it was said that the database is waited for.
        self._waiting = False
        self.holding = False
        """Whether this process is the one that looks."""
        self.gauges = TimerGauges()

    def start(self) -> None:
        """Look, or try to, from now on."""
        self._task = asyncio.create_task(self._run(), name="timers")
        self._removing = asyncio.create_task(self._run_removals(), name="removals")

    async def close(self) -> None:
        """Stop, and let another begin at once."""
        if self._task is None or self._removing is None:
            return
        for task in (both := {self._task, self._removing}):
            task.cancel()
        await asyncio.wait(both)
        if self.holding:
            self.holding = False
            try:
                await self._pool.run(_GIVE_UP, _DUTY, self._holder)
            except Exception as error:  # noqa: BLE001 - it lapses by itself
                log.info("The timers could not be handed over: %s", type(error).__name__)

    async def look(self) -> int:
        """Have done what is due, but for deletions; return for how many tasks."""
        due = await self._pool.read(_DUE, self._clock(), DUE_TASKS_MAX)
        if due:
            self.gauges.found.observe(len(due))
        done, _ = await self._submit((self._tick(task_id), 1) for (task_id,) in due)
        return done

    async def sweep(self) -> None:
        """Bring the messages that nobody has taken, and put counts together."""
        rows = await self._pool.read(UNTAKEN, DUE_TASKS_MAX)
        await self._submit((Settle(task_id=waits, on=on, outcome=Outcome(told)), 1) for on, waits, told in rows)
        await self._pool.read(FOLD, FOLDED_MAX)

    async def remove(self) -> int:
        """Delete the tasks that have been kept for as long as they say; return how many were found."""
        found = await self._pool.read(_TO_BE_DELETED, self._clock(), DUE_TASKS_MAX, self._left_alone())
        if found:
            self.gauges.found.observe(len(found))
        await self._delete(found)
        return len(found)

    async def remove_kept(self) -> None:
        """Delete some of the tasks that have been kept for as long as those are that do not say."""
        if self._keep_finished_s is not None:
            ended_by = self._clock() - timedelta(seconds=self._keep_finished_s)
            await self._delete(await self._pool.read(_KEPT, ended_by, KEPT_TASKS_MAX, self._left_alone()))

    async def _delete(self, found: Iterable[Sequence[Any]]) -> None:
        _, failed = await self._submit((self._tick(task_id), events) for task_id, events in found)
        now = asyncio.get_running_loop().time()
        for command in failed:
            _, before_s = self._put_off.pop(command.task_id, (now, PUT_OFF_S / 2))
            pause_s = min(2 * before_s, PUT_OFF_MAX_S)
            self._put_off[command.task_id] = now + pause_s, pause_s
        while len(self._put_off) > PUT_OFF_TASKS_MAX:
            del self._put_off[next(iter(self._put_off))]

    def _left_alone(self) -> list[str]:
        """The tasks that are not to be deleted now, because they could not be a while ago."""
        now = asyncio.get_running_loop().time()
        return [task_id for task_id, (until, _) in self._put_off.items() if until > now]

    async def _submit(self, commands: Iterable[tuple[Command, int]]) -> tuple[int, list[Command]]:
        """Submit commands with their weights, a lot at a time, so that most room in a group is for what clients ask;
        return how many were done, and those that were not.
        """
        done = 0
        failed: list[Command] = []
        for lot in _lots(commands):
            if not await self._hold():
                break
            not_done = await submit_all(self._writer.submit, lot)
            done += len(lot) - len(not_done)
            failed += not_done
        return done, failed

    def _tick(self, task_id: str) -> Tick:
        return Tick(task_id=task_id, keep_finished_s=self._keep_finished_s)

    async def _run(self) -> None:
        while True:
            pause_s = TRY_S * random.uniform(0.5, 1)  # noqa: S311 - no secret
            try:
                if await self._hold():
                    pause_s = 0 if await self.look() == DUE_TASKS_MAX else LOOK_S
                    loop = asyncio.get_running_loop()
                    if loop.time() >= self._sweep_at:
                        self._sweep_at = loop.time() + SWEEP_S
                        await self.sweep()
                self._told(None)
            except Unavailable as error:
                self._told(error)
            except Exception:
                log.exception("The timers failed; they go on.")
            await asyncio.sleep(pause_s)

    async def _run_removals(self) -> None:
        while True:
            pause_s = LOOK_S
            try:
                if self.holding:
                    pause_s = 0 if await self.remove() == DUE_TASKS_MAX else LOOK_S
                    loop = asyncio.get_running_loop()
                    if loop.time() >= self._sweep_kept_at:
                        await self.remove_kept()
                        self._sweep_kept_at = loop.time() + SWEEP_S
            except Unavailable as error:
                self._told(error)
            except Exception:
                log.exception("Deletions failed; they go on.")
                pause_s = TRY_S
            await asyncio.sleep(pause_s)

    def _told(self, error: Unavailable | None) -> None:
        """Say that the database is away, or here again: a line for each, however often it was asked."""
        if error is not None and not self._waiting:
            log.warning("The timers wait for the database: %s", explain(error) or error)
        elif error is None and self._waiting:
            log.info("The timers go on.")
        self._waiting = error is not None

    async def _hold(self) -> bool:
        """Renew the duty, or take it if it has lapsed; whether it is held."""
        now = asyncio.get_running_loop().time()
        if self.holding and now < self._renew_at:
            return True
        try:
            held = await self._pool.read(_HOLD, _DUTY, self._holder, timedelta(seconds=HOLD_S))
        except BaseException:
            self.holding = False
            raise
        self.holding = bool(held)
        self._renew_at = now + RENEW_S
        return self.holding


def _lots(commands: Iterable[tuple[Command, int]]) -> Iterator[list[Command]]:
    lot: list[Command] = []
    weight = 0
    for command, its_weight in commands:
        lot.append(command)
        weight += its_weight
        if len(lot) == UNDER_WAY_MAX or weight >= LOT_WEIGHT_MAX:
            yield lot
            lot, weight = [], 0
    if lot:
        yield lot


_now = bindparam("now", type_=DateTime(timezone=True))
_DUE: Final = compiled(
    select(tasks.c.task_id)
    .where(tasks.c.due_at <= _now, tasks.c.delete_at.is_(None))
    .order_by(tasks.c.due_at)
    .limit(bindparam("limit")),
    "now",
    "limit",
)
_may_go = func.array_position(bindparam("put_off", type_=ARRAY(Text)), tasks.c.task_id).is_(None)
_TO_BE_DELETED: Final = compiled(
    select(tasks.c.task_id, tasks.c.seq)
    .where(tasks.c.delete_at <= _now, _may_go)
    .order_by(tasks.c.delete_at)
    .limit(bindparam("limit")),
    "now",
    "limit",
    "put_off",
)
_ended_at = func.coalesce(tasks.c.completed_at, tasks.c.failed_at, tasks.c.canceled_at)
_KEPT: Final = compiled(
    select(tasks.c.task_id, tasks.c.seq)
    .where(tasks.c.keep_for_s.is_(None), _ended_at.is_not(None), _ended_at <= _now, _may_go)
    .order_by(_ended_at)
    .limit(bindparam("limit")),
    "now",
    "limit",
    "put_off",
)
# By the clock of the database, which is the same for all.
_clock = func.clock_timestamp()
_holding = insert(duties).values(
    name=bindparam("name", type_=Text),
    holder=bindparam("holder", type_=Text),
    held_until=_clock + bindparam("hold", type_=Interval),
)
_HOLD: Final = compiled(
    _holding.on_conflict_do_update(
        index_elements=["name"],
        set_={"holder": _holding.excluded.holder, "held_until": _holding.excluded.held_until},
        where=or_(duties.c.holder == _holding.excluded.holder, duties.c.held_until < _clock),
    ).returning(duties.c.name),
    "name",
    "holder",
    "hold",
)
_GIVE_UP: Final = compiled(
    delete(duties).where(duties.c.name == bindparam("name"), duties.c.holder == bindparam("holder")), "name", "holder"
)
