"""A task as the code that works on it sees it: what it can say, and what it was asked to do."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from worker.progress import Counter, Progress
from worker.reports import EventType, Json, Reports

T = TypeVar("T")

# How long a loop over items keeps the event loop for itself.
_TURN_S: Final = 0.01


class Task:
    """A task that is worked on. Everything that it says carries the lease, if there is one."""

    def __init__(self, reports: Reports, progress: Progress) -> None:
        self._reports = reports
        self._progress = progress
        # What `complete` is to carry as metadata, in the end: where the result is, rather than the result.
        self.result: Json = None

    @property
    def task_id(self) -> str:
        """Which task it is."""
        return self._reports.task_id

    def progress(self, percent: int) -> None:
        """Say how far the work has come, 0 to 100. It never waits; the latest number is told twice a second at most."""
        self._progress.set(percent)

    async def event(
        self,
        message: str,
        *,
        event_type: EventType = "LOG",
        progress: int | None = None,
        metadata: Json = None,
    ) -> None:
        """Write an event into the task's log; when this returns, it is on disk."""
        await self._progress.flush()
        event = {"eventType": event_type, "message": message, "progress": progress, "metadata": metadata}
        await self._reports.add_event(event)

    def track(self, items: Iterable[T] | AsyncIterable[T], *, total: int | None = None) -> AsyncIterator[T]:
        """The same items, with progress as they are done. Give `total` where `len` cannot say how many they are."""
        return self._tracked(items, Counter(items, total))

    async def _tracked(self, items: Iterable[T] | AsyncIterable[T], counter: Counter) -> AsyncIterator[T]:
        async for item in items if isinstance(items, AsyncIterable) else _in_turns(items):
            yield item
            if (percent := counter.next()) is not None:
                self.progress(percent)


async def _in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Items of a loop that may never wait for anything, so that heartbeats and reports have their turn too."""
    clock = asyncio.get_running_loop().time
    turn_ends = clock() + _TURN_S
    for item in items:
        if clock() > turn_ends:
            await asyncio.sleep(0)
            turn_ends = clock() + _TURN_S
        yield item


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker was given with a claim."""

    task_id: str
    # As given when the task was created: what is to be done.
    metadata: Any
    tags: Sequence[str]
    # 1 for the first.
    attempt: int
    max_attempts: int


class ClaimedTask(Task):
    """A task that is this worker's for now."""

    def __init__(self, reports: Reports, progress: Progress, job: Job) -> None:
        super().__init__(reports, progress)
        # What is to be done.
        self.job = job

    @property
    def metadata(self) -> Any:
        """The metadata with which the task was created: what is to be done."""
        return self.job.metadata
