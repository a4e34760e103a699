"""Tasks as this process left them, so that a report on one can be decided before its row is locked.

What is remembered may be out of date: another process may have changed the task. So a decision that rests on it is
written only if the row still has the number that was remembered, and a refusal that rests on it is not believed.
"""

from collections import OrderedDict
from sys import getsizeof
from typing import Final

from storage.task import Task

# A task that is forgotten is read again under its lock.
REMEMBERED_TASKS_MAX: Final = 20_000
REMEMBERED_BYTES_MAX: Final = 32 * 1024 * 1024
_TASK_BYTES: Final = 1_024
_PLAN_BYTES: Final = 1_024


class Remembered:
    """The tasks that were changed last, with bounds on their number and their bytes."""

    def __init__(self, *, any_task: bool = True) -> None:
        # Where nothing may rest on what is remembered, nothing is.
        self._any_task = any_task
        # Least recently changed first.
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def task_ids(self) -> list[str]:
        """All that are remembered, the one that changed last at the end."""
        return list(self._tasks)

    def get(self, task_id: str) -> Task | None:
        """The task as it was left, or None when nothing is remembered of it."""
        return self._tasks.get(task_id)

    def keep(self, task: Task) -> None:
        """Remember how a task was left."""
        if not self._any_task:
            return
        self.forget(task.task_id)
        self._tasks[task.task_id] = task
        self._bytes += _size_of(task)
        while len(self._tasks) > REMEMBERED_TASKS_MAX or self._bytes > REMEMBERED_BYTES_MAX:
            _, oldest = self._tasks.popitem(last=False)
            self._bytes -= _size_of(oldest)

    def forget(self, task_id: str) -> None:
        """Know nothing of a task any more."""
        task = self._tasks.pop(task_id, None)
        if task is not None:
            self._bytes -= _size_of(task)


def _size_of(task: Task) -> int:
    # As they lie in memory: four bytes for each character when one of them needs as many.
    event = task.last_event
    texts = (task.metadata, event and event.message, event and event.metadata)
    size = _TASK_BYTES + sum(getsizeof(text) for text in texts if text)
    if task.plan is not None:
        size += _PLAN_BYTES + sum(map(getsizeof, (*task.plan.tags, *task.plan.depends_on)))
    return size
