"""An update is rendered once, however many subscribers it goes to.

Subscribers of the same operation with the same variables and the same rights share a ``Rendering``. The first of them
that needs an event's bytes has them made; the others find them. What is kept is bounded, and what is no longer kept is
made again.
"""

import asyncio
import json
from collections.abc import Awaitable, Coroutine
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson
from graphql import ExecutionResult

from graphql_api.auth import Viewer
from graphql_api.context import Context
from graphql_api.errors import present
from graphql_api.execution.executor import Executor, Variables
from graphql_api.execution.json import encode
from storage import Storage, Update

# Renderings of events that are kept for the next who needs them.
KEPT_MAX: Final = 256
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024


def body(result: ExecutionResult, *, suggestions: bool = True) -> bytes:
    """The answer that a result is, as it goes over the wire."""
    if result.errors:
        errors = [present(error, suggestions=suggestions) for error in result.errors]
        return encode({"errors": errors, "data": result.data})
    return encode({"data": result.data})


class Rendering:
    """What the events of one kind of subscriber become."""

    __slots__ = ("__weakref__", "_executor", "_renderings", "_storage", "_variables", "viewer")

    def __init__(
        self, renderings: "Renderings", executor: Executor, variables: Variables, storage: Storage, viewer: Viewer
    ) -> None:
        self._renderings = renderings
        self._executor = executor
        self._variables = variables
        self._storage = storage
        # For whom it is.
        self.viewer = viewer

    def now(self, event: Any) -> bytes | None:
        """The bytes of an event; None when they must be waited for."""
        kept = self._renderings.find(self, event)
        if kept is not None or not self._executor.immediate:
            return kept
        result = self._execute(event)
        assert isinstance(result, ExecutionResult), "a resolver gave an awaitable that nothing had announced"
        return self._renderings.keep(self, event, body(result))

    async def get(self, event: Any) -> bytes:
        """The bytes of an event, made by whoever asks first."""
        found = self.now(event)
        if found is not None:
            return found
        return await self._renderings.once(self, event, self._make(event))

    async def _make(self, event: Any) -> bytes:
        result = self._execute(event)
        if not isinstance(result, ExecutionResult):
            result = await result
        return self._renderings.keep(self, event, body(result))

    def _execute(self, event: Any) -> ExecutionResult | Awaitable[ExecutionResult]:
        # What one operation may read is meant for each event anew.
        return self._executor.execute(self._variables, Context(self._storage, self.viewer), event)


class Renderings:
    """Finds the rendering that a new subscriber shares, and keeps what was rendered last."""

    def __init__(self) -> None:
        self._shared: WeakValueDictionary[tuple[Any, ...], Rendering] = WeakValueDictionary()
        # Oldest first. The event is kept with its bytes: as long as it is, nothing else has its address.
        self._kept: dict[tuple[Rendering, int], tuple[Update, bytes]] = {}
        self._bytes = 0
        self._being_made: dict[tuple[Rendering, int], _Making] = {}
        self.made = 0
        """How often the bytes of an update were made."""

    def shared(self, executor: Executor, variables: Variables, context: Context) -> Rendering:
        """The rendering of an operation with these variables for this viewer."""
        key = (executor, _text(variables.given), context.viewer)
        rendering = self._shared.get(key)
        if rendering is None:
            rendering = Rendering(self, executor, variables, context.storage, context.viewer)
            self._shared[key] = rendering
        return rendering

    def find(self, rendering: Rendering, event: Any) -> bytes | None:
        """What is kept of an event."""
        kept = self._kept.get((rendering, id(event)))
        return None if kept is None else kept[1]

    def keep(self, rendering: Rendering, event: Any, rendered: bytes) -> bytes:
        """Keep what an event became, for a while, if others are sent the very same event: one that was published."""
        if not isinstance(event, Update) or not event.size:
            return rendered
        self.made += 1
        self._kept[rendering, id(event)] = (event, rendered)
        self._bytes += event.size + len(rendered)
        while len(self._kept) > KEPT_MAX or self._bytes > KEPT_BYTES_MAX:
            oldest, its_bytes = self._kept.pop(next(iter(self._kept)))
            self._bytes -= oldest.size + len(its_bytes)
        return rendered

    async def once(self, rendering: Rendering, event: Any, making: Coroutine[Any, Any, bytes]) -> bytes:
        """Await what is being made of an event, by this or by whoever asked before."""
        key = (rendering, id(event))
        made = self._being_made.get(key)
        if made is None:
            made = self._being_made[key] = _Making(asyncio.create_task(making, name="rendering"))
            made.task.add_done_callback(lambda _: self._being_made.pop(key))
        else:
            making.close()
        made.waiting += 1
        try:
            # Whoever goes away while it is made takes nothing from the others.
            return await asyncio.shield(made.task)
        finally:
            made.waiting -= 1
            if not made.waiting:
                made.task.cancel()


class _Making:
    """An event that is being rendered, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[bytes]) -> None:
        self.task = task
        self.waiting = 0


def _text(given: Any) -> bytes:
    """The same bytes for the same variables, in whatever order a client names them."""
    try:
        return orjson.dumps(given, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # A lone surrogate, or a very large integer; what it does is for the resolver to say.
        return json.dumps(given, sort_keys=True).encode()
