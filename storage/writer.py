"""The queue before the only place where tasks change: commands gather into groups, and each group is one transaction.

While a group commits, the next gathers. It may be begun beside the first, so that the process has something to do while
the database flushes its disk; but a task is in one group at a time, and commands on it stay in the order in which they
came. So every change is made under its task's row lock, and many changes share one flush.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from storage.aftermath import Aftermath
from storage.commands import Command, CreateMany, size_of
from storage.committer import Committer, Entry, answer
from storage.errors import OutcomeUnknown, Unavailable
from storage.feed import Feed
from storage.gauges import WriterGauges
from storage.messenger import Messenger
from storage.pool import NOT_IN_TIME, Pool
from storage.queues import Queues
from storage.remembered import Remembered
from storage.task import Task
from storage.tracer import Tracer

log = logging.getLogger(__name__)

GROUP_BYTES_MAX: Final = 8 * 1024 * 1024
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
# A group beside another is begun when so many commands wait; fewer are better off together with those that come next.
BESIDE_COMMANDS_MIN: Final = 8
# Unless the other takes longer than this, because it waits for a lock or deletes a long history.
BESIDE_AFTER_S: Final = 0.05


class Writer:
    """Takes commands, and has them committed in groups."""

    def __init__(
        self,
        pool: Pool,
        feed: Feed,
        queues: Queues,
        *,
        groups_max: int,
        group_commands_max: int,
        waiting_commands_max: int,
        wait_s: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._group_commands_max = group_commands_max
        self.waiting_commands_max = waiting_commands_max
        self._wait_s = wait_s
        self._waiting: deque[Entry] = deque()
        # The tasks of the groups under way, each with those commands that must wait for its group to end.
        self._held: dict[str, list[Entry]] = {}
        # All that wait, with those that are held.
        self._waiting_commands = 0
        self._waiting_bytes = 0
        self._closing = False
        self.gauges = WriterGauges()
        # Who is told of each command and group, if anybody is.
        self.tracer: Tracer | None = None
        self.messenger = Messenger(self.submit)
        """Who brings to tasks what became of others."""
        # Reports that are decided from memory lock rows as they are written: over several machines, in no order.
        remembered = Remembered(any_task=not pool.dialect.distributed)
        self.aftermath = Aftermath(feed, queues, remembered, self.messenger.bring)
        """What follows each commit."""
        # Those that have no group; the one that had one last is next, because its connection is warm.
        self._idle = [
            Committer(pool, feed, remembered, self.aftermath, clock, self.gauges, wait_s=wait_s)
            for _ in range(groups_max)
        ]
        # Those that have one, each with the time at which it was begun.
        self._busy: dict[Committer, float] = {}
        # When those that wait beside a group are looked at again.
        self._beside: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # When commands that have waited too long are refused.
        self._looking: asyncio.TimerHandle | None = None
        # Whether one has been told to begin, and takes its group when all others have had their turn.
        self._beginning = False

    @property
    def alive(self) -> bool:
        """Whether commands are being taken and worked off."""
        return not self._closing

    @property
    def waiting(self) -> tuple[int, int]:
        """How many commands wait for their group, and their bytes."""
        return self._waiting_commands, self._waiting_bytes

    async def submit(self, command: Command) -> Task | None:
        """Do what the command asks; return the task as the command left it (None: deleted) when that is on disk.

        Whoever goes away while waiting cancels nothing: the command is done, and nobody hears of it.
        """
        task: Task | None = await self._take(command)
        return task

    async def submit_each(self, commands: Sequence[Command]) -> list[Task | BaseException | None]:
        """Do what several commands ask, each by itself; return what came of each: its task, or why it was not done.

        Those that come together are committed together, as far as groups have room.
        """
        taken: list[asyncio.Future[Any]] = []
        try:
            taken += map(self._take, commands)
        except Unavailable as error:
            # There was no room for this one and those after it.
            refused: list[Task | BaseException | None] = [error] * (len(commands) - len(taken))
        else:
            refused = []
        outcomes: list[Task | BaseException | None] = []
        try:
            # One after the other: that is not called for each when all have been answered.
            for future in taken:
                try:
                    outcomes.append(await future)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is an outcome
                    outcomes.append(error)
        finally:
            # Of who goes away, nobody looks at what came of the rest.
            for future in taken[len(outcomes) :]:
                future.cancel()
        return outcomes + refused

    async def create_many(self, command: CreateMany) -> tuple[Task, ...]:
        """Create several tasks, all or none; a refusal says which of them it concerns."""
        if not command.tasks:
            return ()
        tasks: tuple[Task, ...] = await self._take(command)
        return tasks

    def _take(self, command: Command | CreateMany) -> asyncio.Future[Any]:
        """Put a command into the queue, and have it worked off."""
        if not self.alive:
            raise Unavailable("The server is shutting down; try again.")
        size = size_of(command)
        if self._waiting_commands >= self.waiting_commands_max or self._waiting_bytes + size > WAITING_BYTES_MAX:
            self.gauges.turned_away += 1
            raise Unavailable(f"Too many changes are waiting to be written ({self._waiting_commands}); try again.")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        entry = Entry(command, size, future, time.monotonic())
        if self.tracer is not None:
            entry.trace = self.tracer.change(command, future)
        self._waiting.append(entry)
        if self._looking is None:
            self._look_in(self._wait_s)
        self._waiting_commands += 1
        self._waiting_bytes += size
        self._begin()
        return future

    async def close(self) -> None:
        """Take no more commands, finish those that were accepted, and stop."""
        self._closing = True
        await self.messenger.close()
        while self._tasks:
            # Whoever gives up waiting gives up nothing but waiting.
            await asyncio.wait(self._tasks)
        for timer in (self._looking, self._beside):
            if timer is not None:
                timer.cancel()
        for committer in self._idle:
            committer.disconnect()

    @property
    def _due(self) -> bool:
        """Whether a group is to be begun, alone or beside those under way."""
        if not self._busy:
            return bool(self._waiting)
        if len(self._waiting) >= BESIDE_COMMANDS_MIN:
            return True
        return bool(self._waiting) and max(self._busy.values()) + BESIDE_AFTER_S <= time.monotonic()

    def _begin(self) -> None:
        """Have a group begun if one is due and somebody has nothing to do."""
        if not self._idle or self._beginning:
            return
        if self._due:
            self._beginning = True
            # It serves many callers, so nothing that is bound to this one goes with it.
            task = asyncio.create_task(self._run(self._idle.pop()), name="writer", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._beside is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._beside = loop.call_later(BESIDE_AFTER_S, self._look_beside, context=Context())

    def _look_beside(self) -> None:
        """Begin a group for those that wait, if the one under way takes long."""
        self._beside = None
        self._begin()

    async def _run(self, committer: Committer) -> None:
        """Work off groups for as long as there are any."""
        self._beginning = False
        group = self._gather()
        try:
            while group:
                self._busy[committer] = time.monotonic()
                # What a full group has left need not wait until somebody else comes.
                self._begin()
                self._count(group)
                try:
                    if self.tracer is None:
                        await committer.work_off(group)
                    else:
                        traced = [(task_id, entry.trace) for entry in group for task_id in entry.command.task_ids]
                        with self.tracer.group(traced):
                            await committer.work_off(group)
                except Exception:
                    # A fault of ours, after the commit for all we know. The writer goes on.
                    log.exception("A group of %d commands was not ended in order.", len(group))
                    committer.leave_unknown(group, OutcomeUnknown())
                del self._busy[committer]
                self._release(group)
                group = self._gather() if self._due else []
        finally:
            self._idle.append(committer)
            if group:
                # Canceled in the middle of it.
                self._closing = True
                committer.leave_unknown(group, OutcomeUnknown())
                for entry in self._all_waiting:
                    answer(entry, Unavailable("The server is shutting down; try again."))
            else:
                self._begin()

    def _count(self, group: list[Entry]) -> None:
        now = time.monotonic()
        self.gauges.group_commands.observe(len(group))
        self.gauges.queue_wait_s.observe_all([now - entry.came_at for entry in group])

    def _gather(self) -> list[Entry]:
        """Take a group of what waits; its tasks are held until it is released."""
        group: list[Entry] = []
        task_ids: set[str] = set()
        held = self._held.keys()
        size = 0
        while self._waiting and len(group) < self._group_commands_max:
            entry = self._waiting[0]
            named = entry.command.task_ids
            if not held.isdisjoint(named):
                busy = next(task_id for task_id in named if task_id in held)
                self._held[busy].append(self._waiting.popleft())
                continue
            size += entry.size
            if group and size > GROUP_BYTES_MAX:
                break
            group.append(self._waiting.popleft())
            task_ids.update(named)
            self._waiting_bytes -= entry.size
        self._waiting_commands -= len(group)
        self._held.update((task_id, []) for task_id in task_ids)
        return group

    def _refuse_late(self) -> None:
        """Tell callers whose commands have waited too long, and look again when the next may have."""
        self._looking = None
        came_by = time.monotonic() - self._wait_s
        late = [entry for entry in self._all_waiting if entry.came_at <= came_by]
        if late:
            self._refuse(late)
            self._waiting = deque(entry for entry in self._waiting if entry.came_at > came_by)
            for task_id, held in self._held.items():
                self._held[task_id] = [entry for entry in held if entry.came_at > came_by]
        first = min((entry.came_at for entry in self._all_waiting), default=None)
        if first is not None:
            self._look_in(first - came_by)

    def _look_in(self, wait_s: float) -> None:
        # It serves many callers, so nothing that is bound to one goes with it.
        self._looking = asyncio.get_running_loop().call_later(wait_s, self._refuse_late, context=Context())

    @property
    def _all_waiting(self) -> Iterator[Entry]:
        return chain(self._waiting, *self._held.values())

    def _refuse(self, late: list[Entry]) -> None:
        log.warning("%d commands waited longer than %.1f s and were refused.", len(late), self._wait_s)
        self.gauges.turned_away += len(late)
        self._waiting_commands -= len(late)
        for entry in late:
            self._waiting_bytes -= entry.size
            answer(entry, Unavailable(NOT_IN_TIME))

    def _release(self, group: list[Entry]) -> None:
        """Let go of a group's tasks; what waited for them is next."""
        for task_id in {task_id for entry in group for task_id in entry.command.task_ids}:
            self._waiting.extendleft(reversed(self._held.pop(task_id)))
