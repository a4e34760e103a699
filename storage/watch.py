"""What a subscriber sees: a snapshot, then every event after it, each once and in order.

Subscribe to the feed, then read; the other order loses a change that commits in between. Older than seen: skip. Next in
line: send. A hole, or a buffer that overran: read the log. Numbers without gaps make each of these a comparison.

A watch is iterated, or fetched from until it has caught up and then listened to: each update that is next in line is
handed over while it is published, and whoever listens needs no task that waits. When something else comes (a hole, or
the listener has no room), the listener is woken and fetches again until it has caught up.
"""

import asyncio
import random
from itertools import chain, repeat
from typing import Final

from storage.errors import BadInput, TaskNotFound, Unavailable
from storage.feed import Feed, Listener, Subscriber, age_s
from storage.reader import LogPage, Reader
from storage.task import Event, Task, Update, UpdateType, update_of

# A read of the log that fails is tried again after these, and then always after the last of them.
LOG_RETRY_WAITS_S: Final = (0.5, 1, 2, 4)


class Watch:
    """SNAPSHOT (in chunks when much came after `after_seq`), then one update per commit; ends when the task does."""

    __slots__ = (
        "_after_seq",
        "_begun",
        "_behind",
        "_ended",
        "_feed",
        "_given",
        "_listener",
        "_reader",
        "_replaying",
        "_seen",
        "_subscriber",
        "_taken",
        "_task",
        "_task_id",
    )

    def __init__(self, feed: Feed, reader: Reader, task_id: str, after_seq: int | None) -> None:
        self._feed = feed
        self._reader = reader
        self._task_id = task_id
        self._after_seq = after_seq
        self._subscriber: Subscriber | None = None
        # The task and the number of the event that the subscriber has seen last.
        self._task: Task | None = None
        self._seen = 0
        # Taken from the feed and not looked at yet.
        self._taken: list[Update] = []
        self._listener: Listener | None = None
        # What was given out last, if it was news: whoever asks for more has delivered it.
        self._given: Update | None = None
        # Whether a snapshot was given out.
        self._begun = False
        # Whether what is read from the log is still the snapshot.
        self._replaying = False
        # Whether the next events are to be read from the log.
        self._behind = False
        self._ended = False

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> Update:
        while (update := await self.fetch()) is None:
            if self._ended or self._subscriber is None:
                raise StopAsyncIteration
            try:
                await self._subscriber.news()
            except BaseException:
                self.close()
                raise
        return update

    async def fetch(self) -> Update | None:
        """The next update, from the log where need be; None when there is none yet, or the watch has ended."""
        if self._given is not None:
            self._feed.gauges.buffered_s.observe(age_s(self._given))
            self._given = None
        update = None
        try:
            while update is None and not self._ended and not self.caught_up:
                update = await self._step()
        except BaseException:
            self.close()
            raise
        if update is not None and update.type is not UpdateType.SNAPSHOT:
            self._given = update
        return update

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    @property
    def caught_up(self) -> bool:
        """Whether everything that is known here was given out, so that one can listen."""
        return (
            self._begun
            and not self._ended
            and not self._behind
            and not self._taken
            and self._subscriber is not None
            and not self._subscriber.has_news
        )

    def listen(self, listener: Listener) -> None:
        """Hand each update over while it is published, until the listener is woken."""
        assert self.caught_up
        assert self._subscriber is not None
        self._listener = listener
        self._subscriber.listen(self)

    def close(self) -> None:
        """Give the subscription back."""
        self._ended = True
        self._listener = None
        self._taken = []
        if self._subscriber is not None:
            self._subscriber.close()

    async def aclose(self) -> None:
        """Give the subscription back, as an asynchronous generator does."""
        self.close()

    def hear(self, update: Update) -> bool:
        """Hand an update to the listener, if it is next in line and there is room for it."""
        listener, task, seen = self._listener, self._task, self._seen
        assert listener is not None
        fresh = self._fresh(update)
        if fresh is None:
            return not self._behind
        heard = False
        try:
            heard = listener.hear(fresh)
        finally:
            if heard:
                if self._ended:
                    self.close()
            elif self._listener is listener:
                # As if it had not been looked at.
                self._task, self._seen, self._ended = task, seen, False
        return heard

    def wake(self) -> None:
        """Wake the listener: it is to fetch."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.wake()

    async def _step(self) -> Update | None:
        """The next update, if this step of the way brings one."""
        if self._subscriber is None:
            return await self._begin()
        if self._behind:
            return await self._read_on()
        if not self._taken:
            taken = self._subscriber.take_now()
            if taken is None:
                # An overrun: like a hole, or another task under the same ID, it is for the log to mend.
                self._behind = True
                return None
            self._taken = taken
        update = self._fresh(self._taken.pop(0))
        if self._ended:
            self.close()
        return update

    async def _begin(self) -> Update | None:
        after_seq = self._after_seq
        if after_seq is not None and after_seq < 0:
            raise BadInput(f"afterSeq must be the number of the last event seen, or 0 for all events, got {after_seq}.")
        self._subscriber = self._feed.subscribe(self._task_id)
        if after_seq is not None:
            return self._resume(await self._reader.resume(self._task_id, after_seq), after_seq)
        self._task = task = await self._reader.task(self._task_id)
        if task is None:
            raise TaskNotFound(self._task_id)
        self._seen = task.seq
        return self._snapshot(task, ())

    def _resume(self, page: LogPage | None, after_seq: int) -> Update | None:
        if page is None:
            raise TaskNotFound(self._task_id)
        self._task = page.task
        if after_seq > page.task.seq:
            # The number is from before a deletion: that subscriber starts over.
            self._behind = self._replaying = True
            return None
        self._seen = page.events[-1].seq if page.events else after_seq
        if self._seen < page.task.seq:
            self._begun = self._behind = self._replaying = True
            return Update(UpdateType.SNAPSHOT, page.task, page.events)
        return self._snapshot(page.task, page.events)

    def _snapshot(self, task: Task, events: tuple[Event, ...]) -> Update:
        """The snapshot, which is whole."""
        assert self._subscriber is not None
        self._begun = True
        self._subscriber.begin_at(task)
        if task.status.final:
            self.close()
        return Update(UpdateType.SNAPSHOT, task, events)

    async def _read_on(self) -> Update | None:
        """What the log holds next; a DELETE when that very task is no more."""
        task = self._task
        assert task is not None
        page = await self._read_log()
        if page is not None and not self._begun and page.task.created_at != task.created_at:
            # Deleted and created again since it was looked up: that one it is, from its beginning.
            self._task, self._seen = page.task, 0
            return None
        if page is None or page.task.created_at != task.created_at:
            if not self._begun:
                raise TaskNotFound(self._task_id)
            self.close()
            return Update(UpdateType.DELETE, task, ())
        if not page.events:
            self._behind = False
            assert self._subscriber is not None
            self._subscriber.begin_at(page.task)
            return None
        self._task = task = page.task
        self._seen = page.events[-1].seq
        self._begun = True
        update = update_of(task, page.events)
        if self._replaying:
            update = Update(UpdateType.SNAPSHOT, task, page.events)
        if self._seen >= task.seq:
            self._behind = self._replaying = False
            assert self._subscriber is not None
            self._subscriber.begin_at(task)
            if task.status.final:
                self.close()
        return update

    async def _read_log(self) -> LogPage | None:
        """A page of the log; a database that is away ends no subscription that has begun."""
        self._feed.gauges.catch_ups += 1
        for wait_s in chain(LOG_RETRY_WAITS_S, repeat(LOG_RETRY_WAITS_S[-1])):
            try:
                return await self._reader.log(self._task_id, self._seen)
            except Unavailable:
                if not self._begun:
                    raise
                # Not all at the same moment.
                await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
        raise AssertionError("unreachable")

    def _fresh(self, update: Update) -> Update | None:
        """What of a published update is new, None for nothing; `_behind` is set when the log must say."""
        assert self._task is not None
        if update.task.created_at != self._task.created_at:
            self._behind = True
            return None
        events = _following(update.events, self._seen)
        if update.type is UpdateType.DELETE:
            # What is missing before it went with the task; nobody can read it any more.
            events = events or ()
            self._ended = True
        elif events is None:
            self._behind = True
            return None
        elif not events:
            return None
        else:
            self._task = update.task
            self._seen = events[-1].seq
            self._ended = update.task.status.final and self._seen >= update.task.seq
        # The very same object for all who missed nothing: what is made of it can be shared.
        return update if events is update.events else Update(update.type, update.task, events)


def _following(events: tuple[Event, ...], seen: int) -> tuple[Event, ...] | None:
    """The events after number `seen`; None when the next one is missing."""
    if events and events[0].seq != seen + 1:
        events = tuple(event for event in events if event.seq > seen)
        if events and events[0].seq != seen + 1:
            return None
    return events
