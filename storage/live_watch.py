"""What a subscriber of a list sees: the latest state of each task that has changed, from now on.

A list is about states, where the watch of a task is about events. While a subscriber has not taken a change, later ones
of the same task take its place; so what waits for it is bounded by the tasks that change, and not by how often. When
more of them have changed than may wait, its list can no longer be mended by telling: it ends, and says so.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from storage.errors import ListOutdated
from storage.feed import Listener
from storage.gauges import ListGauges
from storage.task import Update

# Changed tasks that may wait for a subscriber, and what their updates and metadata hold.
WAITING_TASKS_MAX: Final = 5_000
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024


class ListWatch:
    """One subscriber. It hears from its making on, and is given what waits in rounds that the lists keep apart.

    As the watch of a task, it is iterated, or fetched from until it has caught up and then listened to.
    """

    __slots__ = (
        "_bytes",
        "_forget",
        "_gauges",
        "_listener",
        "_order",
        "_outdated",
        "_ready",
        "_waiter",
        "_waiting",
        "ended",
    )

    def __init__(
        self, gauges: ListGauges, ready: Callable[["ListWatch"], None], forget: Callable[["ListWatch"], None]
    ) -> None:
        self._gauges = gauges
        self._ready = ready
        self._forget = forget
        # By task.
        self._waiting: dict[str, Update] = {}
        self._bytes = 0
        # The tasks that are being given out in this round, the last one first.
        self._order: list[str] = []
        self._outdated = False
        self._listener: Listener | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        """Whether nothing more will come."""

    def __aiter__(self) -> "ListWatch":
        return self

    async def __anext__(self) -> Update:
        try:
            while (update := await self.fetch()) is None:
                if self.ended:
                    raise StopAsyncIteration
                await self._round()
        except BaseException:
            self.close()
            raise
        return update

    async def fetch(self) -> Update | None:
        """The next update of this round; None when it is over. ListOutdated when something was missed."""
        if self._outdated:
            self.close()
            raise ListOutdated
        return self._take() if self._order else None

    @property
    def caught_up(self) -> bool:
        """Whether the round is over, so that one can listen."""
        return not self._order and not self._outdated

    def listen(self, listener: Listener) -> None:
        """Hand each update over in the rounds to come, until the listener is woken."""
        assert self.caught_up
        self._listener = listener
        if self._waiting:
            self._ready(self)

    def close(self) -> None:
        """Hear nothing more; whoever waits for a round waits no longer."""
        if not self.ended:
            self.ended = True
            self._forget(self)
            self._drop()
            self._listener = None
            self._wake()

    async def aclose(self) -> None:
        """Hear nothing more, as an asynchronous generator does."""
        self.close()

    def put(self, update: Update) -> None:
        """Keep an update until it is taken, in the place of an older one of the same task."""
        if self._outdated or self.ended:
            return
        task_id = update.task.task_id
        older = self._waiting.get(task_id)
        if older is not None:
            self._bytes -= _weight(older)
            self._gauges.coalesced += 1
        self._waiting[task_id] = update
        self._bytes += _weight(update)
        if len(self._waiting) > WAITING_TASKS_MAX or (self._bytes > WAITING_BYTES_MAX and len(self._waiting) > 1):
            self.outdate()
        elif older is None and self._idle:
            self._ready(self)

    def outdate(self) -> None:
        """Say that something was missed, and end."""
        if not self._outdated and not self.ended:
            self._gauges.outdated += 1
            self._outdated = True
            self._drop()
            self._wake()

    def begin_round(self) -> None:
        """Give out, from now on, what waits at this moment."""
        self._order = list(reversed(self._waiting))

    def give(self, most: int) -> bool:
        """Hand over so many updates of the round, or wake whoever fetches them; whether there is more to hand over."""
        while self._order and (listener := self._listener) is not None:
            if most == 0:
                return True
            most -= 1
            task_id = self._order[-1]
            if not listener.hear(self._waiting[task_id]):
                break
            # It may have been the end.
            if self._order:
                self._take()
        if self._order:
            self._wake()
        return False

    @property
    def _idle(self) -> bool:
        """Whether somebody waits for a round to begin."""
        return not self._order and (self._listener is not None or self._waiter is not None)

    def _take(self) -> Update:
        update = self._waiting.pop(self._order.pop())
        self._bytes -= _weight(update)
        self._gauges.told += 1
        return update

    async def _round(self) -> None:
        """Wait for a round."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self._waiting:
            self._ready(self)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _drop(self) -> None:
        self._waiting, self._order, self._bytes = {}, [], 0

    def _wake(self) -> None:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.wake()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _weight(update: Update) -> int:
    return update.size + len(update.task.metadata or ())
