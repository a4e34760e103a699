"""Lookups that travel together: those made in the same turn of the event loop become one query.

The query runs in a task of its own, so a caller who goes away disturbs neither the others nor the connection.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context
from typing import Final, Generic, TypeVar

from storage.errors import Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Keys that one query may look up.
BATCH_KEYS_MAX: Final = 1_000
# Batches of one kind that may be under way; meanwhile the next one gathers.
BATCHES_UNDER_WAY_MAX: Final = 4
# Distinct keys that may wait; beyond it a lookup is refused at once.
WAITING_KEYS_MAX: Final = 50_000


class Batches(Generic[K, V]):
    """Gathers keys, loads them together, and gives each caller the value of its own key.

    A batch ends before its keys weigh more than `weight_max` together; a key that weighs more goes alone. Batches begin
    `apart_s` from each other at least, so that a flood of lookups, however it trickles in, is few queries.
    """

    def __init__(
        self,
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        weigh: Callable[[K], int] = lambda _: 1,
        weight_max: int = BATCH_KEYS_MAX,
        apart_s: float = 0.0,
    ) -> None:
        self._load = load
        self._weigh = weigh
        self._weight_max = weight_max
        self._apart_s = apart_s
        self._begun_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._due = False

    async def get(self, key: K) -> V | None:
        """The value of a key, or None when the load found none."""
        futures = self._waiting.get(key)
        if futures is None:
            if len(self._waiting) >= WAITING_KEYS_MAX:
                raise Unavailable("Too many lookups are waiting for the database; try again.")
            futures = self._waiting[key] = []
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        futures.append(future)
        self._schedule()
        return await future

    async def close(self) -> None:
        """Wait for all that was asked for."""
        if self._waiting and self._timer is not None:
            self._timer.cancel()
            self._start()
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _schedule(self) -> None:
        if not self._due and len(self._under_way) < BATCHES_UNDER_WAY_MAX:
            self._due = True
            loop = asyncio.get_running_loop()
            wait_s = self._begun_at + self._apart_s - loop.time() if self._apart_s else 0.0
            if wait_s > 0:
                self._timer = loop.call_later(wait_s, self._start)
            else:
                # Everyone who asks in this turn of the loop gets onto the batch.
                loop.call_soon(self._start)

    def _start(self) -> None:
        self._due = False
        batch = {key: self._waiting.pop(key) for key in self._gather()}
        if not batch:
            return
        if self._apart_s:
            self._begun_at = asyncio.get_running_loop().time()
        task = asyncio.create_task(self._answer(batch), context=Context())
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        if self._waiting:
            self._schedule()

    def _gather(self) -> list[K]:
        keys: list[K] = []
        weight = 0
        for key in self._waiting:
            weight += self._weigh(key)
            if keys and (weight > self._weight_max or len(keys) == BATCH_KEYS_MAX):
                break
            keys.append(key)
        return keys

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting:
            self._schedule()

    async def _answer(self, batch: dict[K, list[asyncio.Future[V | None]]]) -> None:
        try:
            values = await self._load(list(batch))
        except BaseException as error:  # noqa: BLE001 - it belongs to those who asked
            for futures in batch.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            return
        for key, futures in batch.items():
            value = values.get(key)
            for future in futures:
                if not future.done():
                    future.set_result(value)
