"""Who hears of a change: publish and subscribe in this process, keyed by task, with a place for other processes.

The feed is a hint, the log is the truth. A subscriber's buffer is bounded; when it overruns, the buffer is dropped
and the subscriber is told that there is something to read in the log. Publishing never waits for anybody.

A subscriber either waits for news and takes it, or has a listener that is called as the news is published. A listener
costs no task and no turn of the loop; one that cannot take an update at once says so, and the update is buffered.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Protocol, Self

from storage.gauges import FeedGauges
from storage.task import Task, Update, UpdateType, size_of_events, update_of
from storage.tracer import Tracer

log = logging.getLogger(__name__)

# A subscriber that is this far behind reads the log instead. What is buffered is shared by all subscribers of the task.
BUFFERED_UPDATES_MAX: Final = 64
BUFFERED_EVENTS_MAX: Final = 256
BUFFERED_BYTES_MAX: Final = 1024 * 1024
# How long subscribers are told before everybody else has a turn.
TURN_S: Final = 0.005


class Listener(Protocol):
    """Somebody who is called rather than waits. It must not wait itself."""

    def hear(self, update: Update) -> bool:
        """Take an update. False: not now; it is kept, and `wake` follows."""

    def wake(self) -> None:
        """There is news to take, and this listener is called no more until it listens again."""


class Subscriber:
    """One ear. Only the watch that opened it takes from it."""

    __slots__ = ("_bytes", "_closed", "_events", "_feed", "_listener", "_overrun", "_task_id", "_updates", "_waiter")

    def __init__(self, feed: "Feed", task_id: str) -> None:
        self._feed = feed
        self._task_id = task_id
        # Most have nothing to keep for most of their lives.
        self._updates: list[Update] | None = None
        self._events = 0
        self._bytes = 0
        self._overrun = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Listener | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hear nothing more; whoever waits for news waits no longer."""
        self._listener = None
        self._closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._feed.forget(self._task_id, self)

    @property
    def has_news(self) -> bool:
        """Whether there is something to take."""
        return bool(self._updates) or self._overrun

    def begin_at(self, task: Task) -> None:
        """Say that this subscriber has, or reads, all up to a task as it was read; it counts when there is no other."""
        topic = self._feed.topic(self._task_id)
        if topic is not None and topic.created_at is None and len(topic.subscribers) == 1:
            topic.reach(task, task.seq)

    def listen(self, listener: Listener) -> None:
        """Have a listener called with each update from now on. What came before must have been taken."""
        assert not self.has_news
        self._listener = listener

    async def news(self) -> None:
        """Wait until there is something to take, or nothing ever will be."""
        while not self.has_news and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def take(self) -> list[Update] | None:
        """Wait for news, and take it."""
        await self.news()
        return self.take_now()

    def take_now(self) -> list[Update] | None:
        """What there is. None says that the buffer overran: what happened stands in the log."""
        if self._overrun:
            self._overrun = False
            return None
        taken, self._updates = self._updates or [], None
        self._events = self._bytes = 0
        return taken

    def put(self, update: Update) -> bool:
        """Have the listener take an update (True), or buffer it, or drop all when there is no more room."""
        if self._listener is not None and self._heard(self._listener, update):
            return True
        if not self._overrun:
            if self._updates is None:
                self._updates = []
            if (
                len(self._updates) >= BUFFERED_UPDATES_MAX
                or self._events >= BUFFERED_EVENTS_MAX
                or (self._updates and self._bytes + update.size > BUFFERED_BYTES_MAX)
            ):
                self._feed.gauges.overruns += 1
                self.look()
                return False
            self._updates.append(update)
            self._events += len(update.events)
            self._bytes += update.size
        self._wake()
        return False

    def look(self) -> None:
        """Say that there may be something in the log which nobody published here."""
        self._updates = None
        self._events = self._bytes = 0
        self._overrun = True
        self._wake()

    def _heard(self, listener: Listener, update: Update) -> bool:
        try:
            return listener.hear(update)
        except Exception:
            # A fault in one ear is not the writer's, nor anybody else's.
            log.exception("A listener of a task failed; it reads the log.")
            return False

    def _wake(self) -> None:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            try:
                listener.wake()
            except Exception:
                log.exception("A listener of a task failed; it hears no more.")
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Topic:
    """A task that somebody watches: who, and how far all of them have been told."""

    __slots__ = ("created_at", "seq", "subscribers")

    def __init__(self) -> None:
        self.subscribers: set[Subscriber] = set()
        # The task's birth and the number up to which its events were published; None until somebody has read it.
        self.created_at: datetime | None = None
        self.seq = 0

    def reach(self, task: Task, seq: int) -> None:
        """Write down how far the subscribers have been told."""
        self.created_at, self.seq = task.created_at, seq


class Announcer(Protocol):
    """Who tells other processes that a task has changed."""

    def announce(self, task_id: str, seq: int) -> None:
        """Say that a task has reached a number; 0 says that it is gone. It must not wait."""

    def announce_end(self, task: Task) -> None:
        """Say that a task is gone, and what it was."""

    def watch(self, task_id: str) -> None:
        """Hear of a task from now on."""

    def forget(self, task_id: str) -> None:
        """Hear of a task no more."""

    def watch_all(self) -> None:
        """Hear of every task from now on."""

    async def hears_all(self) -> None:
        """Wait until it is so, unless it cannot be."""

    def forget_all(self) -> None:
        """Hear only of those that are watched."""


class Overhearer(Protocol):
    """Who hears of every task."""

    async def hear(self, updates: Sequence[Update]) -> None:
        """Take what was committed here."""

    def look(self, task_ids: Iterable[str]) -> None:
        """These tasks may have changed without being told."""


class Feed:
    """The feed of a process: what is committed here, and what others were heard to have committed.

    `publish` never leaves out a number: where one is missing, because another process has committed it and was not
    heard yet, `behind` is called instead, which is to have the log read once for all subscribers of the task.
    """

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self.gauges = FeedGauges()
        # Who is told of each update that goes out, if anybody is.
        self.tracer: Tracer | None = None
        # With other processes, both are set: by them one hears, and is heard.
        self.announcer: Announcer | None = None
        self.behind: Callable[[str, int], None] = self._look_one
        # Who hears of every task, while somebody watches a list.
        self._overhearer: Overhearer | None = None

    def subscribe(self, task_id: str) -> Subscriber:
        """Hear every update of a task that is published from now on, until it is closed."""
        topic = self._topics.get(task_id)
        if topic is None:
            topic = self._topics[task_id] = Topic()
            if self.announcer is not None:
                self.announcer.watch(task_id)
        subscriber = Subscriber(self, task_id)
        topic.subscribers.add(subscriber)
        return subscriber

    def forget(self, task_id: str, subscriber: Subscriber) -> None:
        """Drop a subscriber; `Subscriber.close` calls it."""
        topic = self._topics.get(task_id)
        if topic is None:
            return
        topic.subscribers.discard(subscriber)
        if not topic.subscribers:
            del self._topics[task_id]
            if self.announcer is not None:
                self.announcer.forget(task_id)

    def hear_all(self, overhearer: Overhearer | None) -> None:
        """Have somebody hear of every task from now on; None: nobody any more."""
        self._overhearer = overhearer
        if self.announcer is not None:
            if overhearer is None:
                self.announcer.forget_all()
            else:
                self.announcer.watch_all()

    def topic(self, task_id: str) -> Topic | None:
        """What is known of a task that somebody watches."""
        return self._topics.get(task_id)

    @property
    def watched(self) -> list[str]:
        """The tasks that somebody watches."""
        return list(self._topics)

    async def publish(self, *updates: Update) -> None:
        """Tell of changes that were committed here. Call it after the commit, in the order of commits.

        It waits for no subscriber; where telling them takes long, others get a turn in between.
        """
        if self.announcer is not None:
            for update in updates:
                if update.type is UpdateType.DELETE:
                    self.announcer.announce_end(update.task)
                else:
                    self.announcer.announce(update.task.task_id, update.task.seq)
        if self._overhearer is not None:
            await self._overhearer.hear(updates)
        await self.tell(updates, committed_at=time.monotonic())

    async def tell(self, updates: Iterable[Update], committed_at: float | None = None) -> None:
        """Tell the subscribers here, and nobody else; `committed_at` is when by `time.monotonic`, if that is known."""
        clock = asyncio.get_running_loop().time
        turn_ends_at = clock() + TURN_S
        for update in updates:
            topic = self._topics.get(update.task.task_id)
            fresh = None if topic is None else self._next(topic, update)
            if topic is None or fresh is None:
                continue
            told = None if self.tracer is None else self.tracer.delivery(fresh, len(topic.subscribers))
            heard = 0
            # A copy: whoever hears of an end leaves.
            for subscriber in tuple(topic.subscribers):
                heard += subscriber.put(fresh)
                if clock() > turn_ends_at:
                    await asyncio.sleep(0)
                    turn_ends_at = clock() + TURN_S
            if told is not None:
                told()
            if heard and committed_at is not None:
                self.gauges.direct_s.observe(time.monotonic() - committed_at, heard)
            elif heard:
                self.gauges.followed_s.observe(age_s(fresh), heard)

    def look(self, task_ids: Collection[str]) -> None:
        """Say that the log of these tasks may hold something that was not published."""
        for task_id in task_ids:
            self._look_one(task_id)
        if self._overhearer is not None:
            self._overhearer.look(task_ids)

    @property
    def subscribers(self) -> int:
        """How many subscribers there are."""
        return sum(len(topic.subscribers) for topic in self._topics.values())

    def _look_one(self, task_id: str, _: int = 0) -> None:
        topic = self._topics.get(task_id)
        if topic is not None:
            topic.created_at = None
            for subscriber in tuple(topic.subscribers):
                subscriber.look()

    def _next(self, topic: Topic, update: Update) -> Update | None:
        """What of an update its subscribers are to be told: all, the end of it, or nothing."""
        events = update.events
        if update.type is UpdateType.DELETE:
            topic.created_at = None
            return update
        if topic.created_at == update.task.created_at:
            if events[-1].seq <= topic.seq:
                return None
            if events[0].seq > topic.seq + 1:
                self.gauges.holes += 1
                self.behind(update.task.task_id, events[-1].seq)
                return None
            if events[0].seq <= topic.seq:
                events = tuple(event for event in events if event.seq > topic.seq)
        topic.reach(update.task, events[-1].seq)
        return update if events is update.events else update_of(update.task, events, size_of_events(events))


def age_s(update: Update) -> float:
    """How long ago the first event of an update was, by this machine's clock; a deletion has none."""
    if not update.events:
        return 0.0
    return max(0.0, (datetime.now(UTC) - update.events[0].timestamp).total_seconds())
