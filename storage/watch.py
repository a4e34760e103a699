"""What a subscriber sees: a snapshot, then every event after it, each once and in order.

Subscribe to the feed, then read; the other order loses a change that commits in between. Older than seen: skip. Next in
line: send. A hole, or a buffer that overran: read the log. Numbers without gaps make each of these a comparison.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from storage.errors import BadInput, TaskNotFound, Unavailable
from storage.feed import Feed
from storage.reader import LogPage, Reader
from storage.task import Event, Task, Update, UpdateType, update_of

# A read of the log that fails is tried again after these.
LOG_RETRY_WAITS_S: Final = (0.5, 1, 2, 4, 8)


async def watch(feed: Feed, reader: Reader, task_id: str, after_seq: int | None) -> AsyncGenerator[Update, None]:
    """SNAPSHOT (in chunks when much came after `after_seq`), then one update per commit; ends when the task does."""
    if after_seq is not None and after_seq < 0:
        raise BadInput(f"afterSeq must be the number of the last event seen, or 0 for all events, got {after_seq}.")
    with feed.subscribe(task_id) as subscriber:
        task = await reader.task(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        if after_seq is None or after_seq == task.seq:
            seen = task.seq
            yield Update(UpdateType.SNAPSHOT, task, ())
        else:
            # A number beyond the task's own is from before a deletion: that subscriber starts over.
            seen = after_seq if after_seq < task.seq else 0
            begun = False
            async with aclosing(_log(reader, task, seen)) as chunks:
                async for chunk in chunks:
                    if chunk.type is UpdateType.DELETE:
                        if not begun:
                            raise TaskNotFound(task_id)
                        yield chunk
                        return
                    begun = True
                    task, seen = chunk.task, chunk.events[-1].seq
                    yield replace(chunk, type=UpdateType.SNAPSHOT)

        while not task.status.final:
            # None is an overrun: like a hole, or another task under the same ID, it is for the log to mend.
            taken: Sequence[Update | None] = await subscriber.take() or [None]
            for update in taken:
                fresh = None
                if update is not None and update.task.created_at == task.created_at:
                    fresh = _following(update.events, seen)
                    if update.type is UpdateType.DELETE:
                        # What is missing before it went with the task; nobody can read it any more.
                        yield replace(update, events=fresh or ())
                        return
                if update is None or fresh is None:
                    async with aclosing(_log(reader, task, seen)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                            if chunk.type is UpdateType.DELETE:
                                return
                            task, seen = chunk.task, chunk.events[-1].seq
                elif fresh:
                    task, seen = update.task, fresh[-1].seq
                    # The very same object for all who missed nothing: what is made of it can be shared.
                    yield update if len(fresh) == len(update.events) else replace(update, events=fresh)


def _following(events: tuple[Event, ...], seen: int) -> tuple[Event, ...] | None:
    """The events after number `seen`; None when the next one is missing."""
    fresh = tuple(event for event in events if event.seq > seen)
    return None if fresh and fresh[0].seq != seen + 1 else fresh


async def _read(reader: Reader, task_id: str, seen: int) -> LogPage | None:
    """A page of the log; a database that is away for a moment ends no subscription."""
    for wait_s in LOG_RETRY_WAITS_S:
        try:
            return await reader.log(task_id, seen)
        except Unavailable:
            await asyncio.sleep(wait_s)
    return await reader.log(task_id, seen)


async def _log(reader: Reader, task: Task, seen: int) -> AsyncGenerator[Update, None]:
    """What the log holds after `seen`, in chunks; a DELETE when that very task is no more."""
    while True:
        page = await _read(reader, task.task_id, seen)
        if page is None or page.task.created_at != task.created_at:
            yield Update(UpdateType.DELETE, task, ())
            return
        if not page.events:
            return
        task, seen = page.task, page.events[-1].seq
        yield update_of(task, page.events)
        if seen >= task.seq:
            return
