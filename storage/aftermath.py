"""What follows a commit: the tasks are remembered as they are now, and whoever is to hear of it hears of it."""

from collections.abc import Callable, Sequence

from storage.commands import Settle
from storage.feed import Feed
from storage.gauges import PlanGauges
from storage.group import Done
from storage.queues import Queues
from storage.remembered import Remembered
from storage.task import UpdateType


class Aftermath:
    """Tells subscribers of tasks, workers of queues, and those who wait for other tasks."""

    def __init__(
        self, feed: Feed, queues: Queues, remembered: Remembered, bring: Callable[[Sequence[Settle]], None]
    ) -> None:
        self._feed = feed
        self._queues = queues
        self._remembered = remembered
        self._bring = bring
        self.gauges = PlanGauges()

    async def follow(self, done: Done) -> None:
        """Do all this for what was committed just now."""
        for update in done.updates:
            if update.type is UpdateType.DELETE:
                self._remembered.forget(update.task.task_id)
            else:
                self._remembered.keep(update.task)
        if done.turns:
            self.gauges.count(done.turns, done.lags_s)
        if done.queues:
            self._queues.wake(done.queues)
        if done.messages:
            self._bring(done.messages)
        await self._feed.publish(*done.updates)
