"""What follows a commit: the tasks are remembered as they are now, and whoever is to hear of it hears of it."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

from storage.commands import Settle
from storage.feed import Feed
from storage.group import Done
from storage.queues import Queues
from storage.remembered import Remembered
from storage.task import UpdateType

# When the log is read after a commit whose outcome is unknown: it may still be on its way.
LOOK_AFTER_S: Final = (0, 2, 15)


class Aftermath:
    """Tells subscribers of tasks, workers of queues, and those who wait for other tasks."""

    def __init__(
        self, feed: Feed, queues: Queues, remembered: Remembered, bring: Callable[[Sequence[Settle]], None]
    ) -> None:
        self._feed = feed
        self._queues = queues
        self._remembered = remembered
        self._bring = bring

    async def follow(self, done: Done) -> None:
        """Do all this for what was committed just now."""
        for update in done.updates:
            if update.type is UpdateType.DELETE:
                self._remembered.forget(update.task.task_id)
            else:
                self._remembered.keep(update.task)
        if done.queues:
            self._queues.wake(done.queues)
        if done.messages:
            self._bring(done.messages)
        await self._feed.publish(*done.updates)

    def doubt(self, task_ids: Collection[str]) -> None:
        """Nobody knows whether these were changed: subscribers read the log, where it may be unpublished."""
        for task_id in task_ids:
            self._remembered.forget(task_id)
        for wait_s in LOOK_AFTER_S:
            asyncio.get_running_loop().call_later(wait_s, self._feed.look, task_ids)
