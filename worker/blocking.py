"""The same for code without an event loop: reports travel in a thread of their own, and the work does not wait.

for page in report_progress(tqdm(pages), "https://…/graphql", task_id, key=key):
    render(page)
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from threading import Thread
from typing import Any, TypeVar

from worker.progress import Counter
from worker.reporting import progressing, reporting_async
from worker.reports import EventType, Json
from worker.task import Task

T = TypeVar("T")


class BlockingTask:
    """A task that is worked on by code without an event loop."""

    def __init__(self, task: Task, elsewhere: "_Elsewhere") -> None:
        self._task = task
        self._elsewhere = elsewhere

    @property
    def task_id(self) -> str:
        """Which task it is."""
        return self._task.task_id

    @property
    def result(self) -> Json:
        """What `complete` is to carry as metadata, in the end: where the result is, rather than the result."""
        return self._task.result

    @result.setter
    def result(self, metadata: Json) -> None:
        self._task.result = metadata

    def progress(self, percent: int) -> None:
        """Say how far the work has come, 0 to 100. It does not wait for the server; the latest number is told twice a
        second at most.
        """
        self._elsewhere.call(lambda: self._task.progress(percent))

    def event(
        self, message: str, *, event_type: EventType = "LOG", progress: int | None = None, metadata: Json = None
    ) -> None:
        """Write an event into the task's log; when this returns, it is on disk."""
        self._elsewhere.run(self._task.event(message, event_type=event_type, progress=progress, metadata=metadata))

    def track(self, items: Iterable[T], *, total: int | None = None) -> Iterator[T]:
        """The same items, with progress as they are done. Give `total` where `len` cannot say how many they are."""
        return self._tracked(items, Counter(items, total))

    def _tracked(self, items: Iterable[T], counter: Counter) -> Iterator[T]:
        for item in items:
            yield item
            if (percent := counter.next()) is not None:
                self.progress(percent)


@contextmanager
def reporting(url: str, task_id: str, *, key: str | None = None, token: str | None = None) -> Iterator[BlockingTask]:
    """Work on a task: when the block ends it has succeeded, when it raises it has failed, and the exception goes on.

    The `key` is an API key or a task token; the `token` is that of a lease, if somebody holds one.
    """
    with _blocking(reporting_async(url, task_id, key=key, token=token)) as task:
        yield task


def report_progress(
    items: Iterable[T],
    url: str,
    task_id: str,
    *,
    key: str | None = None,
    token: str | None = None,
    total: int | None = None,
) -> Iterator[T]:
    """The same items, with the progress of a task as they are done. It does not end the task.

    Around whatever is iterated: a list, or a bar of tqdm. Give `total` where `len` cannot say how many items there are.
    A server that cannot be reached does not stop the loop; a task that nobody wants any more does, as `Unwanted`.
    """
    Counter(items, total)  # which refuses items that cannot be counted, now rather than at the first
    return _reported(items, url, task_id, key, token, total)


def _reported(
    items: Iterable[T], url: str, task_id: str, key: str | None, token: str | None, total: int | None
) -> Iterator[T]:
    with _blocking(progressing(url, task_id, key, token)) as task:
        yield from task.track(items, total=total)


@contextmanager
def _blocking(context: AbstractAsyncContextManager[Task]) -> Iterator[BlockingTask]:
    elsewhere = _Elsewhere()
    try:
        task = elsewhere.run(context.__aenter__())
        try:
            yield BlockingTask(task, elsewhere)
        except BaseException:
            elsewhere.run(context.__aexit__(*sys.exc_info()))
            raise
        elsewhere.run(context.__aexit__(None, None, None))
    finally:
        elsewhere.close()


class _Elsewhere:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A program that ends without closing this is not kept from it.
        self._thread = Thread(target=self._loop.run_forever, name="reports", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call(self, function: Callable[[], None]) -> None:
        """Call a function there, which must not wait, and see what it raises."""

        async def called() -> None:
            function()

        self.run(called())

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
