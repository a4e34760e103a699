"""What other processes commit, told here: heard of or found out, read from the log once, and published.

An announcement says only that a task has reached a number. It may be late, doubled or lost; the log has the events, and
their numbers say what is missing. So whatever is heard leads to the same thing: read what comes after the last number
that was published here. And because an announcement may be lost, the numbers of all watched tasks are compared with the
table every few seconds.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from itertools import islice
from typing import Final

from storage.errors import Unavailable
from storage.feed import Feed
from storage.live_follower import LiveFollower
from storage.queues import Queues
from storage.reader import Reader
from storage.task import size_of_events, update_of

log = logging.getLogger(__name__)

RESYNC_S: Final = 3.0
# When there is no other process that could have changed anything.
RESYNC_ALONE_S: Final = 60.0
RESYNCS_APART_S: Final = 0.5
# Tasks that one query of a resync asks about.
RESYNC_TASKS_MAX: Final = 1_000
# What was committed just now may be on its way: it counts as lost when it has not come after this.
ANNOUNCED_WITHIN_S: Final = 0.25
# Tasks whose logs are read at the same time.
READS_MAX: Final = 1_000


class Follower:
    """Reads the logs of watched tasks on behalf of all their subscribers."""

    def __init__(self, feed: Feed, reader: Reader, queues: Queues, lists: LiveFollower) -> None:
        self._feed = feed
        self._queues = queues
        self._lists = lists
        self._reader = reader
        # By task: the read that is under way, and whether there is more to read when it ends.
        self._reads: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, int] = {}
        self._room = asyncio.Semaphore(READS_MAX)
        self._resyncing: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        # Tasks to be compared before the others, and what does it.
        self._doubtful: set[str] = set()
        self._comparing: asyncio.Task[None] | None = None
        self.repairs = 0
        """How often the table had what no announcement told of in time."""
        self.resyncs = 0
        """How often all were compared."""
        self.resync_s = 0.0
        """How long that took the last time."""
        feed.behind = self.follow

    def start(self) -> None:
        """Compare every few seconds from now on."""
        self._resyncing = asyncio.create_task(self._run(), name="resync")

    async def close(self) -> None:
        """Stop, wherever it is."""
        tasks = [*self._reads.values(), *(task for task in (self._resyncing, self._comparing) if task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def hear(self, task_id: str, seq: int) -> None:
        """Take an announcement; 0 stands for a task that is gone."""
        if self._lists.hear(task_id, seq) or self._queues.hear(task_id):
            return
        topic = self._feed.topic(task_id)
        if topic is not None and (seq == 0 or topic.created_at is None or seq > topic.seq):
            self.follow(task_id, seq)

    def follow(self, task_id: str, seq: int) -> None:
        """Publish what the log has beyond what was published; `seq` is a number that it is said to have, or 0."""
        if task_id in self._reads:
            self._again[task_id] = max(seq, self._again.get(task_id, 0))
            return
        self._reads[task_id] = asyncio.create_task(self._follow_to_end(task_id, seq), name="follow", context=Context())

    def resync(self) -> None:
        """Compare now: announcements may have been lost."""
        self._due.set()
        self._lists.look()

    def look_for_lists(self) -> None:
        """Find what has changed, for those who watch lists: nothing was heard of it before."""
        self._lists.look()

    def lost(self) -> None:
        """Compare now: announcements were lost."""
        self._lists.lost()
        self.resync()

    def compare(self, task_ids: Iterable[str]) -> None:
        """Compare these tasks now, and no others: announcements of them may have been lost."""
        # What else is watched, as queues are, is not in the table.
        self._doubtful.update(task_id for task_id in task_ids if self._feed.topic(task_id) is not None)
        if self._comparing is None and self._doubtful:
            self._comparing = asyncio.create_task(self._compare_doubtful(), name="compare", context=Context())

    async def _follow_to_end(self, task_id: str, seq: int) -> None:
        try:
            await self._follow(task_id, seq)
        finally:
            # In the step in which it last looked whether there is more: nothing that is heard falls between.
            self._reads.pop(task_id, None)
            self._again.pop(task_id, None)

    async def _follow(self, task_id: str, seq: int) -> None:
        while (topic := self._feed.topic(task_id)) is not None:
            born = topic.created_at
            if born is None and seq == 0:
                self._feed.look([task_id])
                return
            # When nobody knows how far the subscribers are, each finds out by the number that it hears.
            after_seq = topic.seq if born is not None else max(seq - 1, 0)
            try:
                async with self._room:
                    page = await self._reader.log(task_id, after_seq)
            except Unavailable:
                # The next comparison sees that it is missing.
                return
            except Exception:
                log.exception("The log of a watched task could not be read.")
                return
            if page is None or (born is not None and page.task.created_at != born):
                self._feed.look([task_id])
            elif page.events:
                await self._feed.tell([update_of(page.task, page.events, size_of_events(page.events))])
                if page.events[-1].seq < page.task.seq:
                    continue
            again = self._again.pop(task_id, None)
            # What was heard meanwhile may be in what was read; that a task is gone may not.
            if again is None or 0 < again <= (page.events[-1].seq if page is not None and page.events else after_seq):
                return
            seq = again

    async def _run(self) -> None:
        while True:
            self._due.clear()
            try:
                await self._compare_all()
            except Unavailable:
                log.warning("What is watched here could not be compared with the database.")
            except Exception:
                log.exception("A comparison with the database failed.")
            # Whoever says hello again and again is heard once in a while.
            await asyncio.sleep(RESYNCS_APART_S)
            try:
                # A process that nobody hears, because its own connection is broken, may write nevertheless: only who
                # was told that there is no other can take its time.
                wait_s = RESYNC_ALONE_S if self._feed.announcer is None else RESYNC_S
                # Not all processes at the same moments.
                async with asyncio.timeout(wait_s * random.uniform(0.6, 0.9)):  # noqa: S311 - no secret
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _compare_all(self) -> None:
        began = time.monotonic()
        watched = self._feed.watched
        missing: dict[str, int] = {}
        for start in range(0, len(watched), RESYNC_TASKS_MAX):
            missing |= await self._missing(watched[start : start + RESYNC_TASKS_MAX])
        self.resync_s = time.monotonic() - began
        self.resyncs += 1
        await self._mend(missing)

    async def _compare_doubtful(self) -> None:
        try:
            while self._doubtful:
                task_ids = list(islice(self._doubtful, RESYNC_TASKS_MAX))
                self._doubtful.difference_update(task_ids)
                await self._mend(await self._missing(task_ids))
        except Unavailable:
            # The next comparison of all has them, too.
            log.warning("What is watched here could not be compared with the database.")
        except Exception:
            log.exception("A comparison with the database failed.")
        finally:
            self._doubtful.clear()
            self._comparing = None

    async def _mend(self, missing: Mapping[str, int]) -> None:
        if not missing:
            return
        await asyncio.sleep(ANNOUNCED_WITHIN_S)
        for task_id, seq in missing.items():
            topic = self._feed.topic(task_id)
            if topic is None:
                continue
            if seq == 0:
                self._feed.look([task_id])
            elif topic.created_at is None or topic.seq < seq:
                # What is being read was heard of, or found by another comparison.
                self.repairs += topic.created_at is not None and task_id not in self._reads
                self.follow(task_id, seq)

    async def _missing(self, task_ids: Sequence[str]) -> dict[str, int]:
        """The tasks that are ahead of what was published here, with their numbers; 0 for one that is gone."""
        found = await self._reader.positions(task_ids)
        missing = {}
        for task_id in task_ids:
            topic = self._feed.topic(task_id)
            if topic is None:
                continue
            created_at, seq = found.get(task_id, (None, 0))
            if topic.created_at is None or created_at != topic.created_at:
                missing[task_id] = seq if topic.created_at is None else 0
            elif seq > topic.seq:
                missing[task_id] = seq
        return missing
