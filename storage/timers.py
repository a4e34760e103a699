"""What time makes of tasks: one process at a time looks for what is due, and has it done by commands.

Who looks is said by a row that names a holder until some time; the holder renews it, and who finds it lapsed takes it.
Not by an advisory lock: that is a session's, which a pooler takes away, and which a process that is frozen, or a
machine that is gone without a word, keeps for as long as TCP believes in it. A row is not exact. Two may look at the
same time, and nothing comes of it: each command is decided under the lock of its task, and finds it done.

Whatever was due while nobody looked is found in the same way, later.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import DateTime, Interval, Text, bindparam, case, delete, func, literal_column, or_, select
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
# How often it looks for messages that nobody has taken, and for tasks that have been kept long enough.
SWEEP_S: Final = 2.0
# Tasks that one look finds; when there are more, it looks again at once.
DUE_TASKS_MAX: Final = 1_000
# Tasks that one sweep deletes. Reports have the writer to themselves before the next.
KEPT_TASKS_MAX: Final = 100
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
        self._renew_at = 0.0
        self._sweep_at = 0.0
        self._waiting = False
        self.holding = False
        """Whether this process is the one that looks."""
        self.gauges = TimerGauges()

    def start(self) -> None:
        """Look, or try to, from now on."""
        self._task = asyncio.create_task(self._run(), name="timers")

    async def close(self) -> None:
        """Stop, and let another begin at once."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        if self.holding:
            self.holding = False
            try:
                await self._pool.run(_GIVE_UP, _DUTY, self._holder)
            except Exception as error:  # noqa: BLE001 - it lapses by itself
                log.info("The timers could not be handed over: %s", type(error).__name__)

    async def look(self) -> int:
        """Have done what is due; return for how many tasks."""
        due = await self._pool.read(_DUE, self._clock(), DUE_TASKS_MAX)
        if due:
            self.gauges.found.observe(len(due))
        return await self._submit(self._ticks(due))

    async def sweep(self) -> None:
        """Put counts together, bring the messages that nobody has taken, and delete what was kept long enough."""
        await self._pool.read(FOLD, FOLDED_MAX)
        rows = await self._pool.read(UNTAKEN, DUE_TASKS_MAX)
        await self._submit([(Settle(task_id=waits, on=on, outcome=Outcome(told)), 1) for on, waits, told in rows])
        if self._keep_finished_s is not None:
            ended_by = self._clock() - timedelta(seconds=self._keep_finished_s)
            await self._submit(self._ticks(await self._pool.read(_KEPT, ended_by, KEPT_TASKS_MAX)))

    def _ticks(self, rows: Iterable[Sequence[Any]]) -> list[tuple[Command, int]]:
        return [(Tick(task_id=task_id, keep_finished_s=self._keep_finished_s), weight) for task_id, weight in rows]

    async def _run(self) -> None:
        while True:
            pause_s = TRY_S * random.uniform(0.5, 1)  # noqa: S311 - no secret
            try:
                if await self._hold():
                    pause_s = 0 if await self.look() == DUE_TASKS_MAX else LOOK_S
                    loop = asyncio.get_running_loop()
                    if loop.time() >= self._sweep_at:
                        await self.sweep()
                        self._sweep_at = loop.time() + SWEEP_S
                self._told(None)
            except Unavailable as error:
                self._told(error)
            except Exception:
                log.exception("The timers failed; they go on.")
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
        self.holding = False
        self.holding = bool(await self._pool.read(_HOLD, _DUTY, self._holder, timedelta(seconds=HOLD_S)))
        self._renew_at = now + RENEW_S
        return self.holding

    async def _submit(self, commands: Sequence[tuple[Command, int]]) -> int:
        """Submit commands with their weights, a lot at a time, so that most room in a group is for what clients ask;
        return how many were done.
        """
        done = 0
        for lot in _lots(commands):
            if not await self._hold():
                break
            done += await submit_all(self._writer.submit, lot)
        return done


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
    select(tasks.c.task_id, case((tasks.c.delete_at <= _now, tasks.c.seq), else_=literal_column("1")))
    .where(tasks.c.due_at <= _now)
    .order_by(tasks.c.due_at)
    .limit(bindparam("limit")),
    "now",
    "limit",
)
_ended_at = func.coalesce(tasks.c.completed_at, tasks.c.failed_at, tasks.c.canceled_at)
_KEPT: Final = compiled(
    select(tasks.c.task_id, tasks.c.seq)
    .where(tasks.c.keep_for_s.is_(None), _ended_at.is_not(None), _ended_at <= _now)
    .order_by(_ended_at)
    .limit(bindparam("limit")),
    "now",
    "limit",
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
