"""Who hears of every change of whatever task, if a filter means it; the feed beside it is by task.

Nothing is done while nobody listens. While somebody does, a change costs this: is it news, and which filters mean it?
Subscribers with the same filter are one audience, of which that is asked once. What is told is handed over in rounds,
all subscribers together, so that what is made of an update can be shared, and with pauses, so that a flood of changes
is fewer messages and leaves the process to those who report.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from storage.errors import Unavailable
from storage.feed import TURN_S, Feed
from storage.filters import Filter
from storage.gauges import ListGauges
from storage.live_watch import ListWatch
from storage.remembered import Remembered
from storage.task import EVENT_BYTES, FINAL, Status, Task, Update, UpdateType, size_of_events

log = logging.getLogger(__name__)

# Filters that each change is held against.
FILTERS_MAX: Final = 1_000
# The first change goes out at once, those that come so long after a round together.
ROUNDS_APART_S: Final = 0.1
# After a round there is a pause of at least so many times as long as it took.
REST_TIMES: Final = 3
# Updates that one subscriber is handed before the next has its turn. Fewer than are kept rendered.
TURN_UPDATES: Final = 64
# Answers that do not change, kept for each filter; and tasks of which it is known that they were deleted.
ANSWERS_MAX: Final = 20_000
GONE_MAX: Final = 20_000
# Tasks of which it is known how far they were heard of lately.
HEARD_MAX: Final = 200_000


class Audience:
    """All who asked with the same filter."""

    __slots__ = ("_fits", "_statuses", "filter", "watches")

    def __init__(self, wanted: Filter) -> None:
        self.filter = wanted
        # In the order in which they came.
        self.watches: dict[ListWatch, None] = {}
        # What of a task never changes is looked at once: metadata are long.
        self._fits: dict[tuple[str, datetime], bool] | None = None
        if replace(wanted, statuses=None, stale=None, updated_after=None) != Filter():
            self._fits = {}
        # Those that a task can have had before another one.
        self._statuses = frozenset(wanted.statuses or ()) - FINAL

    def wants(self, task: Task, before: Task | None, *, next_in_line: bool, now: datetime) -> bool:
        """Whether to tell of a task that has changed: the filter means it now, or may have meant it before.

        `before` is the task as it was heard of last. Unless the change is the `next_in_line`, others lie between.
        """
        if not self.filter.holds(task, now) and not self._may_have_held(task, before, next_in_line, now):
            return False
        return self._fits is None or self.fits(task)

    def fits(self, task: Task) -> bool:
        """Whether the filter means it, as far as that cannot change."""
        if self._fits is None:
            return True
        key = task.task_id, task.created_at
        answer = self._fits.get(key)
        if answer is None:
            if len(self._fits) >= ANSWERS_MAX:
                self._fits.clear()
            answer = self._fits[key] = self.filter.fits(task)
        return answer

    def may_fit(self, task: Task) -> bool:
        """The same of a task of which the metadata are not known."""
        answer = None if self._fits is None else self._fits.get((task.task_id, task.created_at))
        return replace(self.filter, metadata=None).fits(task) if answer is None else answer

    def _may_have_held(self, task: Task, before: Task | None, next_in_line: bool, now: datetime) -> bool:
        if self.filter.stale is not None and (_has_lease(task) or (before is not None and _has_lease(before))):
            # Time and heartbeats change the answer, and nobody says so.
            return True
        if next_in_line:
            return before is not None and self.filter.holds(before, now)
        # What has ended stays so: if it is not SUCCESS now, it was not before.
        return bool(self._statuses - {task.status}) and not (before is not None and _same_work(before, task))


class LiveLists:
    """The audiences of a process."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._audiences: dict[Filter, Audience] = {}
        # Tasks as they were heard of last, while anybody listens, and when those were born that are gone.
        self._known = Remembered()
        self._gone: OrderedDict[str, datetime] = OrderedDict()
        # The numbers that tasks were heard to have reached, lately and just before.
        self._heard: tuple[dict[str, int], dict[str, int]] = ({}, {})
        # Those for whom something waits and who wait for it.
        self._ready: dict[ListWatch, None] = {}
        self._rounds: asyncio.Task[None] | None = None
        # Who reads tasks of which nobody knows how they are.
        self.doubted: Callable[[Iterable[str]], None] | None = None
        # Called when the first comes: others hear of nothing that happened before.
        self.begun: Callable[[], None] | None = None
        # Called when the last has left.
        self.over: Callable[[], None] | None = None
        self.gauges = ListGauges()

    async def watch(self, wanted: Filter) -> ListWatch:
        """Hear of what a filter means, from here on; close it with ``aclosing``."""
        watch = self._begin(wanted)
        try:
            if self._feed.announcer is not None:
                await self._feed.announcer.hears_all()
        except BaseException:
            watch.close()
            raise
        return watch

    async def close(self) -> None:
        """End the rounds."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait({self._rounds})

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return sum(len(audience.watches) for audience in self._audiences.values())

    @property
    def filters(self) -> int:
        """How many different filters they have."""
        return len(self._audiences)

    async def hear(self, updates: Iterable[Update]) -> None:
        """Tell of changes, here and of other processes, in whatever order they come."""
        now = datetime.now(UTC)
        clock = asyncio.get_running_loop().time
        turn_ends_at = clock() + TURN_S
        # Filters that may have much to look at do that before the change is told, with turns for others in between.
        looking = [audience for audience in self._audiences.values() if audience.filter.metadata is not None]
        for update in updates:
            for audience in looking:
                audience.fits(update.task)
                if clock() > turn_ends_at:
                    await asyncio.sleep(0)
                    turn_ends_at = clock() + TURN_S
            self._hear(update, now)
            if clock() > turn_ends_at:
                await asyncio.sleep(0)
                turn_ends_at = clock() + TURN_S

    def hear_of_end(self, task: Task) -> None:
        """Tell of a task that another process has deleted; it has no metadata unless it is known here."""
        known = self._known.get(task.task_id)
        whole = known is not None and known.created_at == task.created_at
        update = Update(UpdateType.DELETE, known if whole and known is not None else task, ())
        self._hear(update, datetime.now(UTC), whole=whole)

    def look(self, task_ids: Iterable[str]) -> None:
        """Say that these tasks may have changed without being told."""
        if self.doubted is not None:
            self.doubted(task_ids)

    def outdate(self) -> None:
        """Tell everybody that something was missed."""
        for audience in self._audiences.values():
            for watch in tuple(audience.watches):
                watch.outdate()

    def known(self, task_id: str) -> Task | None:
        """A task as it was heard of last, as far as that is remembered."""
        return self._known.get(task_id)

    def is_gone(self, task_id: str) -> bool:
        """Whether a task was deleted, as far as that is remembered; it may be there again."""
        return task_id in self._gone

    def heard(self, task_id: str) -> int:
        """The number that a task was heard to have reached lately; 0 for none."""
        lately, before = self._heard
        return lately.get(task_id) or before.get(task_id, 0)

    def forget_heard(self) -> None:
        """Keep what was heard lately, and no longer what was heard before."""
        self._heard = ({}, self._heard[0])

    @property
    def known_ids(self) -> list[str]:
        """The tasks that are remembered, the one that was heard of last at the end."""
        return self._known.task_ids

    def _begin(self, wanted: Filter) -> ListWatch:
        audience = self._audiences.get(wanted)
        if audience is None:
            if len(self._audiences) >= FILTERS_MAX:
                raise Unavailable(f"{FILTERS_MAX} different lists are watched here; try again.")
            if not self._audiences:
                self._feed.hear_all(self)
                if self.begun is not None:
                    self.begun()
            audience = self._audiences[wanted] = Audience(wanted)
        watch = ListWatch(self.gauges, self._want_round, lambda watch: self._forget(audience, watch))
        audience.watches[watch] = None
        return watch

    def _hear(self, update: Update, now: datetime, *, whole: bool = True) -> None:
        task = update.task
        before = self._known.get(task.task_id)
        if not self._is_news(update, before):
            return
        reborn = before is not None and before.created_at != task.created_at
        if reborn and before is not None:
            # Nobody has told of the end of the one before. A list that shows it may not mean the new one.
            self._hear(Update(UpdateType.DELETE, before, ()), now)
            before = None
        if update.type is UpdateType.DELETE:
            self._known.forget(task.task_id)
            self._heard[0].pop(task.task_id, None)
            self._heard[1].pop(task.task_id, None)
            self._bury(task)
            update = Update(UpdateType.DELETE, task, (), EVENT_BYTES)
            for audience in self._audiences.values():
                if audience.fits(task) if whole else audience.may_fit(task):
                    _put(audience, update)
            return
        self._known.keep(task)
        if self._feed.announcer is not None:
            self._heard[0][task.task_id] = task.seq
            if len(self._heard[0]) > HEARD_MAX:
                self.forget_heard()
        next_in_line = not reborn and update.events[0].seq == (1 if before is None else before.seq + 1)
        event = update.events[-1:]
        if len(update.events) > 1:
            update = Update(update.type, task, event, size_of_events(event))
        for audience in self._audiences.values():
            if audience.wants(task, before, next_in_line=next_in_line, now=now):
                _put(audience, update)

    def _is_news(self, update: Update, before: Task | None) -> bool:
        """Whether it is later than all that was heard of the task."""
        task = update.task
        died = self._gone.get(task.task_id)
        if died is not None and task.created_at <= died:
            return False
        if before is None or task.created_at > before.created_at:
            return True
        return task.created_at == before.created_at and (task.seq > before.seq or update.type is UpdateType.DELETE)

    def _bury(self, task: Task) -> None:
        self._gone[task.task_id] = task.created_at
        self._gone.move_to_end(task.task_id)
        if len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)

    def _forget(self, audience: Audience, watch: ListWatch) -> None:
        self._ready.pop(watch, None)
        audience.watches.pop(watch, None)
        if not audience.watches and self._audiences.get(audience.filter) is audience:
            del self._audiences[audience.filter]
            if not self._audiences:
                self._feed.hear_all(None)
                if self.over is not None:
                    self.over()
                # Whoever comes next would be told nothing by what was so long ago.
                self._known = Remembered()
                self._heard = ({}, {})
                self._gone.clear()

    def _want_round(self, watch: ListWatch) -> None:
        self._ready[watch] = None
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._go_round(), name="lists", context=Context())

    async def _go_round(self) -> None:
        try:
            while self._ready:
                took_s = await self._give_out()
                await asyncio.sleep(max(ROUNDS_APART_S, REST_TIMES * took_s))
        finally:
            self._rounds = None

    async def _give_out(self) -> float:
        """Hand over all that waits, to each some of it in turn; return how long that took, without what others did."""
        ready, self._ready = list(self._ready), {}
        for watch in ready:
            watch.begin_round()
        took_s = turn_s = 0.0
        while ready:
            more: list[ListWatch] = []
            for watch in ready:
                began = time.thread_time()
                try:
                    if watch.give(TURN_UPDATES):
                        more.append(watch)
                except Exception:
                    # A fault in one ear is nobody else's.
                    log.exception("A listener of a list failed; it is to read the list anew.")
                    watch.outdate()
                turn_s += time.thread_time() - began
                if turn_s > TURN_S:
                    took_s, turn_s = took_s + turn_s, 0.0
                    await asyncio.sleep(0)
            ready = more
        return took_s + turn_s


def _put(audience: Audience, update: Update) -> None:
    for watch in tuple(audience.watches):
        watch.put(update)


def _has_lease(task: Task) -> bool:
    return task.plan is not None and task.plan.claimed


def _same_work(before: Task, task: Task) -> bool:
    """Whether a task has had one status all the time between: it is at work by the same claim, in the same attempt."""
    if before.status is not Status.IN_PROGRESS or task.status is not Status.IN_PROGRESS:
        return False
    if before.plan is None or task.plan is None:
        return True
    return (before.plan.attempt, before.plan.lease_token) == (task.plan.attempt, task.plan.lease_token)
