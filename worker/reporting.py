"""Reports on a task that nobody claims: it was created for this very work, or a claim was made elsewhere.

No heartbeats are sent, so who reports hears of an end by somebody else's word at the next report: as `Unwanted`.
"""

import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from worker.client import Client
from worker.errors import Unreachable, Unwanted, WorkerError
from worker.progress import Counter, Progress
from worker.reports import WRONG_RESULT, Reports
from worker.task import Task

T = TypeVar("T")

log: Final = logging.getLogger("spectral.worker")


@asynccontextmanager
async def reporting_async(
    url: str, task_id: str, *, key: str | None = None, token: str | None = None
) -> AsyncIterator[Task]:
    """Work on a task: when the block ends it has succeeded, when it raises it has failed, and the exception goes on.

    The `key` is an API key or a task token; the `token` is that of a lease, if somebody holds one.
    """
    async with _connected(url, task_id, key, token) as (reports, progress):
        task = Task(reports, progress)
        try:
            yield task
        except BaseException as error:
            if reports.unwanted is None:
                await _fail(reports, progress, error)
            raise
        await progress.close()
        try:
            await reports.complete(task.result)
        except Unwanted:
            raise
        except WRONG_RESULT as error:
            await _fail(reports, progress, error)
            raise


@asynccontextmanager
async def progressing(url: str, task_id: str, key: str | None, token: str | None) -> AsyncIterator[Task]:
    """A task of which the block only says how far it has come; the last number is told before it is over."""
    async with _connected(url, task_id, key, token) as (reports, progress):
        try:
            yield Task(reports, progress)
        finally:
            if reports.unwanted is None:
                await _flush(reports, progress)


@asynccontextmanager
async def _connected(
    url: str, task_id: str, key: str | None, token: str | None
) -> AsyncIterator[tuple[Reports, Progress]]:
    def not_told(error: WorkerError) -> None:
        if isinstance(error, Unreachable):
            log.warning("Progress of task %s could not be told: %s", task_id, error)

    client = Client(url, key)
    reports = Reports(client, task_id, token)
    progress = Progress(reports.update_progress, not_told)
    try:
        yield reports, progress
    finally:
        await progress.close()
        await client.close()


async def _fail(reports: Reports, progress: Progress, error: BaseException) -> None:
    try:
        await progress.flush()
        await reports.fail(error)
    except WorkerError as unheard:
        # What the block has raised is more to the point.
        log.error("That task %s failed could not be told: %s", reports.task_id, unheard)


async def _flush(reports: Reports, progress: Progress) -> None:
    try:
        await progress.flush()
    except WorkerError as unheard:
        # The work is done; how far it had come is no reason to raise.
        log.warning("The last progress of task %s could not be told: %s", reports.task_id, unheard)


def report_progress_async(
    items: Iterable[T] | AsyncIterable[T],
    url: str,
    task_id: str,
    *,
    key: str | None = None,
    token: str | None = None,
    total: int | None = None,
) -> AsyncIterator[T]:
    """The same items, with the progress of a task as they are done. It does not end the task."""
    Counter(items, total)  # which refuses items that cannot be counted, now rather than at the first
    return _reported(items, url, task_id, key, token, total)


async def _reported(
    items: Iterable[T] | AsyncIterable[T], url: str, task_id: str, key: str | None, token: str | None, total: int | None
) -> AsyncIterator[T]:
    async with progressing(url, task_id, key, token) as task:
        async for item in task.track(items, total=total):
            yield item
