"""What other processes commit, told to those who watch lists here.

An announcement says that a task has reached a number: its latest state is read, with those of all others that were
announced meanwhile, and told. What no announcement told of is looked for in the log by time, every few seconds, and
tasks that were heard of are looked for in the table, because nothing else shows that one is gone.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import orjson

from storage.errors import Unavailable
from storage.live import LiveLists
from storage.reader import Reader
from storage.tables import STATUSES
from storage.task import OnDependencyFailure, Plan, Task, size_of_events, update_of

log = logging.getLogger(__name__)

# Announcements for lists begin with it: a task that was deleted, or nothing else. No task has such an ID, and no queue
# such a name, so an older version takes them for queues that nobody waits for.
_MARK: Final = "\0\0"
# What else begins so is of queues.
_NO_TASK: Final = "\0"
LOST: Final = _MARK
"""Whoever announces it has failed to announce something before."""
# What an announcement may have in all; a description that is longer goes without its tags.
_DESCRIPTION_BYTES_MAX: Final = 4_000
# Tasks that one query reads, each with metadata and its latest event.
READ_TASKS_MAX: Final = 200
# Between two reads. What is announced alone is read at once.
READS_APART_S: Final = 0.05
# Announced tasks that may wait to be read; beyond, everybody is to read his list anew.
WANTED_TASKS_MAX: Final = 20_000
# How often the log is looked at: as a rule, and while announcements are known to be lost.
LOOK_S: Final = 15.0
LOOK_DEGRADED_S: Final = 3.0
# Tasks that one look finds; beyond, everybody is to read his list anew.
LOOKED_TASKS_MAX: Final = 50_000
# What is committed may be so much older than the moment at which it can be seen, and clocks may differ by as much.
OVERLAP: Final = timedelta(seconds=5)
# Known tasks that one look finds in the table, or not.
COMPARED_TASKS_MAX: Final = 2_000
# That many in one query.
RESYNC_TASKS_MAX: Final = 1_000
# What was committed just now may be on its way: it counts as lost when it has not come after this.
ANNOUNCED_WITHIN_S: Final = 0.25
# While announcements are lost, a deletion of a task that was never heard of here shows nowhere: lists end so often.
OUTDATED_S: Final = 60.0


class LiveFollower:
    """Reads what changed elsewhere, while anybody watches a list here."""

    def __init__(self, lists: LiveLists, reader: Reader) -> None:
        self._lists = lists
        self._reader = reader
        # Whether announcements are being lost; None where there are no other processes.
        self.degraded: Callable[[], bool] | None = None
        # By task: the number that it is said to have reached.
        self._wanted: dict[str, int] = {}
        # As others have described those that they have deleted.
        self._ended: dict[str, Task] = {}
        self._reading: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        # When somebody began to listen, and from when on the log is to be looked at.
        self._begun_at = self._since = datetime.now(UTC)
        # When it was forgotten last what was heard before.
        self._forgot = self._since
        # Tasks that the table has not been asked about in this round; None: all that are known, at once.
        self._to_compare: list[str] | None = []
        self.repairs = 0
        """How many changes were found that no announcement told of."""
        self.looks = 0
        """How often the log was looked at."""
        lists.doubted = self.read
        lists.begun = self._begin
        lists.over = self._end

    async def close(self) -> None:
        """Stop, wherever it is."""
        tasks = [task for task in (self._reading, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def hear(self, announced: str, seq: int) -> bool:
        """Take an announcement; True when it was for lists alone."""
        if announced == LOST:
            self.lost()
            return True
        if announced.startswith(_MARK):
            if self._listening and (task := described(announced)) is not None:
                # It is told if the table says the same.
                self._ended[task.task_id] = task
                self.read([task.task_id])
            return True
        if announced.startswith(_NO_TASK):
            return False
        if self._listening and (seq == 0 or seq > self._lists.heard(announced)):
            self.read([announced], seq)
        return False

    def read(self, task_ids: Iterable[str], seq: int = 0) -> None:
        """Read these tasks, and tell of what is new."""
        for task_id in task_ids:
            self._wanted[task_id] = max(seq, self._wanted.get(task_id, 0))
        if len(self._wanted) > WANTED_TASKS_MAX:
            log.warning("More tasks were changed elsewhere than could be read; lists are to be read anew.")
            self._wanted.clear()
            self._ended.clear()
            self._lists.outdate()
        if self._reading is None and self._wanted:
            self._reading = asyncio.create_task(self._read_all(), name="list read", context=Context())

    def look(self) -> None:
        """Look at the log now: announcements may have been lost."""
        self._to_compare = None
        self._due.set()

    def lost(self) -> None:
        """Announcements were lost, perhaps of deletions, which the log does not show."""
        self._lists.outdate()

    @property
    def _listening(self) -> bool:
        return self._looking is not None

    def _begin(self) -> None:
        self._begun_at = self._since = self._forgot = datetime.now(UTC)
        if self.degraded is not None:
            look = self._look_often(self.degraded)
            self._looking = asyncio.create_task(look, name="list look", context=Context())

    def _end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._wanted.clear()
        self._ended.clear()

    async def _read_all(self) -> None:
        try:
            while self._wanted:
                task_ids = list(islice(self._wanted, READ_TASKS_MAX))
                wanted = {task_id: self._wanted.pop(task_id) for task_id in task_ids}
                try:
                    await self._read(task_ids)
                except Unavailable:
                    # The database is away: what is wanted is wanted still.
                    for task_id, seq in wanted.items():
                        self._wanted[task_id] = max(seq, self._wanted.get(task_id, 0))
                    await asyncio.sleep(1)
                if len(self._wanted) < READ_TASKS_MAX:
                    await asyncio.sleep(READS_APART_S)
        except Exception:
            log.exception("Tasks that were changed elsewhere could not be read; lists are to be read anew.")
            self._lists.outdate()
        finally:
            self._reading = None

    async def _read(self, task_ids: Sequence[str]) -> None:
        found = await self._reader.latest(task_ids)
        for task_id in task_ids:
            last = [task for task in (self._lists.known(task_id), self._ended.pop(task_id, None)) if task is not None]
            gone = max(last, key=attrgetter("created_at"), default=None)
            # Another may be there under its ID. Its end is told first.
            if gone is not None and (task_id not in found or gone.created_at < found[task_id][0].created_at):
                self._lists.hear_of_end(gone)
        await self._lists.hear([update_of(task, (event,), size_of_events((event,))) for task, event in found.values()])

    async def _look(self) -> None:
        """Find what has changed since the last look, and which of the known tasks are gone."""
        now = datetime.now(UTC)
        changed = await self._reader.changed_since(self._since - OVERLAP, LOOKED_TASKS_MAX + 1)
        if self._unheard(changed):
            # What was committed just now may be on its way.
            await asyncio.sleep(ANNOUNCED_WITHIN_S)
        unheard = self._unheard(changed)
        if self._since > self._begun_at:
            # What is from before anybody listened was not to be heard, nor is what is gone by now.
            self.repairs += sum(not self._lists.is_gone(task_id) for task_id in unheard)
        if len(changed) > LOOKED_TASKS_MAX:
            self._lists.outdate()
        else:
            for task_id, seq in unheard.items():
                self.read([task_id], seq)
        self._since = now
        if now - self._forgot > timedelta(seconds=LOOK_S) + OVERLAP:
            # By now each look begins after it.
            self._forgot = now
            self._lists.forget_heard()
        self.looks += 1
        task_ids = self._next_to_compare()
        for start in range(0, len(task_ids), RESYNC_TASKS_MAX):
            some = task_ids[start : start + RESYNC_TASKS_MAX]
            found = await self._reader.positions(some)
            for task_id in some:
                known = self._lists.known(task_id)
                place = found.get(task_id)
                if known is not None and (place is None or place > (known.created_at, known.seq)):
                    self.read([task_id])

    def _unheard(self, changed: Mapping[str, int]) -> dict[str, int]:
        return {
            task_id: seq
            for task_id, seq in changed.items()
            if task_id not in self._wanted and self._lists.heard(task_id) < seq
        }

    def _next_to_compare(self) -> list[str]:
        if self._to_compare is None:
            self._to_compare = []
            return self._lists.known_ids
        if not self._to_compare:
            self._to_compare = self._lists.known_ids
        some, self._to_compare = self._to_compare[:COMPARED_TASKS_MAX], self._to_compare[COMPARED_TASKS_MAX:]
        return some

    async def _look_often(self, degraded: Callable[[], bool]) -> None:
        outdated_at = time.monotonic() + OUTDATED_S
        while True:
            wait_s = LOOK_DEGRADED_S if degraded() else LOOK_S
            # Not all processes at the same moments.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.6, 0.9)):  # noqa: S311 - no secret
                    await self._due.wait()
            self._due.clear()
            try:
                await self._look()
            except Unavailable:
                log.warning("The log could not be looked at for lists.")
            except Exception:
                log.exception("Looking at the log for lists failed.")
            if not degraded():
                outdated_at = time.monotonic() + OUTDATED_S
            elif time.monotonic() > outdated_at:
                outdated_at = time.monotonic() + OUTDATED_S
                self._lists.outdate()


def description(task: Task) -> str:
    """A task that was deleted, as an announcement: what filters ask for and people look at, without metadata."""
    plan = task.plan
    words: list[Any] = [
        *(task.task_id, task.status, task.progress, task.seq, task.created_by),
        list[Any](task)[_TIMES],
        None if plan is None else [plan.queue, plan.priority, plan.attempt, plan.max_attempts, list(plan.tags)],
    ]
    text = orjson.dumps(words)
    if plan is not None and len(text) > _DESCRIPTION_BYTES_MAX:
        words[-1][-1] = []
        text = orjson.dumps(words)
    return _MARK + text.decode()


def described(announced: str) -> Task | None:
    """The task that an announcement describes; None for whatever else somebody may have sent."""
    try:
        task_id, status, progress, seq, created_by, times, planned = orjson.loads(announced.removeprefix(_MARK))
        times = [None if time is None else datetime.fromisoformat(time) for time in times]
        plan = None if planned is None else _NO_PLAN._replace(**dict(zip(_PLANNED, planned, strict=True)))
        task = Task._make(
            (str(task_id), STATUSES[status], int(progress), None, int(seq), created_by, *times, plan, None)
        )
        # A stranger may have sent it, and clients are shown it.
        task = task._replace(plan=plan and plan._replace(tags=tuple(map(str, plan.tags))))
        return task if task.created_at <= task.updated_at else None
    except (ValueError, TypeError, KeyError):
        return None


_TIMES: Final = slice(Task._fields.index("created_at"), Task._fields.index("plan"))
_PLANNED: Final = ("queue", "priority", "attempt", "max_attempts", "tags")
_NO_PLAN: Final = Plan(
    tags=(),
    queue=None,
    priority=0,
    start_at=None,
    depends_on=(),
    on_dependency_failure=OnDependencyFailure.CANCEL,
    max_attempts=1,
    retry_initial_s=0,
    retry_max_s=0,
    retry_factor=1,
    expires_at=None,
    keep_for_s=None,
    blocked_by=(),
    attempt=0,
    next_attempt_at=None,
    ready=False,
    worker=None,
    lease_expires_at=None,
    lease_token=None,
    delete_at=None,
    due_at=None,
)
