"""Watchers: they show a list, as the documentation tells clients to: subscribe, then read, and put both together by ID.

They begin anew whenever the socket ends or is silent, and when they are told that their list is outdated.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from websockets.asyncio.client import ClientConnection

from tests.faults.journal import Journal
from tests.faults.ledger import Ledger, ListView, State, Told
from tests.faults.wire import LEAVING, RECONNECT_WAITS_S, Gone, begin, connected, errors_of, messages, passing

PAGE: Final = 500
_FIELDS: Final = "taskId createdAt seq status progress updatedAt queue tags"
_WATCH: Final = f"subscription($filter: TaskFilter) {{ tasksUpdated(filter: $filter) {{ type task {{ {_FIELDS} }} }} }}"
_READ: Final = (
    f"query($filter: TaskFilter, $after: String) {{ tasks(first: {PAGE}, after: $after, filter: $filter)"
    f" {{ nodes {{ {_FIELDS} }} pageInfo {{ endCursor hasNextPage }} }} }}"
)
_LIST: Final = "list"
_OUTDATED: Final = "LIST_OUTDATED"


@dataclass
class Watcher:
    """One client that shows one list."""

    name: str
    ports: Sequence[int]
    key: str
    wish: Mapping[str, Any]
    # It shows tasks that are not older.
    since: datetime
    ledger: Ledger
    random: Random
    journal: Journal
    # Pages that were asked for.
    _count: int = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            server = self.random.randrange(len(self.ports))
            try:
                async with connected(self.ports[server], self.key) as wire:
                    self.journal.counts["connections of watchers"] += 1
                    await self._watch(wire, f"server {server + 1}")
            except LEAVING as error:
                self.journal.counts[f"watchers left by {type(error).__name__}"] += 1
            await asyncio.sleep(self.random.uniform(*RECONNECT_WAITS_S))

    async def _watch(self, wire: ClientConnection, server: str) -> None:
        """Show the list over one connection, anew whenever it is outdated."""
        view = self._view(server)
        try:
            async with aclosing(messages(wire)) as heard:
                async for message in heard:
                    if message["type"] == "connection_ack":
                        await self._begin(wire)
                    elif message["id"] not in (_LIST, self._page):
                        # Of a list before this one.
                        continue
                    elif errors := errors_of(message):
                        view.outdated = errors[0].get("extensions", {}).get("code") == _OUTDATED
                        if not view.outdated:
                            self._refused(view, errors)
                        self.journal.counts["lists that were outdated"] += 1
                        view.ended_at = datetime.now(UTC)
                        view = self._view(server)
                        await self._begin(wire)
                    elif message["type"] == "next":
                        await self._take(view, message["payload"]["data"], wire)
                    elif message["type"] != "complete" or message["id"] == _LIST:
                        self.journal.violation(f"{view} was sent {message['type']}, for which there is no reason.")
        finally:
            view.ended_at = datetime.now(UTC)

    def _view(self, server: str) -> ListView:
        view = ListView(f"{self.name} {json.dumps(self.wish)}", self.wish, server)
        self.ledger.lists.append(view)
        return view

    def _refused(self, view: ListView, errors: list[dict[str, Any]]) -> None:
        if not passing(errors):
            self.journal.violation(f"{view} was refused: {errors[0]}")
        raise Gone

    async def _begin(self, wire: ClientConnection) -> None:
        await begin(wire, _LIST, _WATCH, {"filter": self.wish})
        await self._read(wire, None)

    async def _read(self, wire: ClientConnection, after: str | None) -> None:
        wanted = {**self.wish, "createdAfter": self.since.isoformat()}
        self._count += 1
        await begin(wire, self._page, _READ, {"filter": wanted, "after": after})

    @property
    def _page(self) -> str:
        return f"page {self._count}"

    async def _take(self, view: ListView, data: Mapping[str, Any], wire: ClientConnection) -> None:
        now = datetime.now(UTC)
        if "tasksUpdated" in data:
            self.journal.counts["messages to watchers"] += 1
            update = data["tasksUpdated"]
            view.take(Told(now, _state(update["task"]), deleted=update["type"] == "DELETE"))
            return
        page = data["tasks"]
        for task in page["nodes"]:
            view.take(Told(now, _state(task), by_page=True))
        if page["pageInfo"]["hasNextPage"]:
            await self._read(wire, page["pageInfo"]["endCursor"])
        else:
            view.read_at = now


def _state(task: Mapping[str, Any]) -> State:
    created_at, updated_at = (datetime.fromisoformat(task[name]) for name in ("createdAt", "updatedAt"))
    named = (task["taskId"], created_at, task["seq"], task["status"], task["progress"], updated_at, task["queue"])
    return State(*named, tuple(task["tags"]))
