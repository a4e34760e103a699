"""Subscribers: they watch tasks, come back whenever the socket ends or is silent, and check each message as it comes.

They know that a server is there by its answers to their pings, as browsers' clients do. So a subscriber whose server
is well and says nothing about a change waits in vain, and that is found.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from websockets.asyncio.client import ClientConnection

from tests.faults.journal import Journal
from tests.faults.ledger import Ledger, Seen, View
from tests.faults.wire import LEAVING, RECONNECT_WAITS_S, Gone, begin, connected, messages, passing

# So many of the newest tasks that others plan are watched.
RECENT: Final = 20
_FINAL: Final = {"SUCCESS": "COMPLETE", "FAILED": "FAIL", "CANCELED": "CANCEL"}
_OPERATION_ID: Final = "1"
_WATCH: Final = """
    subscription($taskId: ID!, $afterSeq: Int) {
      taskUpdates(taskId: $taskId, afterSeq: $afterSeq) {
        type task { taskId status progress seq createdAt } events { seq eventType message progress }
      }
    }
"""


@dataclass
class Subscriber:
    """One client that watches one task after the other, each until it ends."""

    name: str
    ports: Sequence[int]
    ledger: Ledger
    random: Random
    journal: Journal

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until cancelled; when told to stop, begin nothing new."""
        while not stop.is_set():
            # Tasks that workers have, too, except those that will be deleted.
            planned = self.ledger.kept if self.random.random() < 0.25 else []
            task_id = self.random.choice(planned[-RECENT:] or self.ledger.open_tasks)
            view = View(self.name, task_id, after=0 if self.random.random() < 0.5 else None)
            self.ledger.views.append(view)
            while not view.ended:
                await self._connected(view)
                await asyncio.sleep(self.random.uniform(*RECONNECT_WAITS_S))

    async def _connected(self, view: View) -> None:
        """Watch over one connection, for as long as it lasts."""
        server = self.random.randrange(len(self.ports))
        try:
            async with connected(self.ports[server]) as wire:
                self.journal.counts["connections of subscribers"] += 1
                view.connected_to = f"server {server + 1}"
                await self._watch(wire, view)
        except LEAVING as error:
            self.journal.counts[f"subscribers left by {type(error).__name__}"] += 1
        finally:
            view.connected_to = ""

    async def _watch(self, wire: ClientConnection, view: View) -> None:
        variables = {"taskId": view.task_id, "afterSeq": None if view.after is None else view.last}
        check = _Check(view, self.journal)
        async with aclosing(messages(wire)) as heard:
            async for message in heard:
                match message["type"]:
                    case "connection_ack":
                        await begin(wire, _OPERATION_ID, _WATCH, variables)
                    case "next":
                        self.journal.counts["messages to subscribers"] += 1
                        check.message(message["payload"])
                    case "complete":
                        check.completed()
                        return
                    case "error":
                        check.refused(message["payload"])
                    case kind:
                        self.journal.violation(f"{view} was sent a message of type {kind}.")


class _Check:
    """What is promised of the messages of one subscription."""

    def __init__(self, view: View, journal: Journal) -> None:
        self._view = view
        self._journal = journal
        self._begun = False
        self._live = False
        self._final = False

    def message(self, payload: dict[str, Any]) -> None:
        """Take an update, and see that it is what had to come."""
        if (payload.get("data") or {}).get("taskUpdates") is None:
            self.refused(payload.get("errors") or [{"message": f"{payload}"}])
            return
        update = payload["data"]["taskUpdates"]
        kind, task, events = update["type"], update["task"], [Seen(*event.values()) for event in update["events"]]
        view = self._view
        if task["taskId"] != view.task_id:
            self._violated(f"was told of {task['taskId']}")
        if self._final:
            self._violated(f"was sent {kind} after the end")
        if not self._begun and kind != "SNAPSHOT":
            self._violated(f"was sent {kind} before a snapshot")
        if self._live and kind == "SNAPSHOT":
            self._violated("was sent a snapshot after other updates")
        self._begun, self._live = True, kind != "SNAPSHOT"
        if view.after is None:
            # Without afterSeq a snapshot has no events, and everything after it is to come.
            view.after = task["seq"]
            if events:
                self._violated(f"asked for no events before the snapshot and got {_range(events)}")
                return
        view.created_at = view.created_at or task["createdAt"]
        if task["createdAt"] != view.created_at:
            self._violated(f"was told that it was created at {task['createdAt']} and before at {view.created_at}")
        for event in events:
            if event.seq != view.last + 1:
                word = "again" if event.seq <= view.last else "too early"
                self._violated(f"was told event {event.seq} {word}: after {view.last}, in {kind} {_range(events)}")
                # What is wrong with it is said once; then it goes on from there.
                if event.seq <= view.last:
                    continue
            view.events.append(event)
        if task["seq"] < view.last:
            self._violated(f"was told event {view.last} with the task at {task['seq']}")
        if kind != "SNAPSHOT" and not events and kind != "DELETE":
            self._violated(f"was sent {kind} without events")
        if task["status"] in _FINAL and task["seq"] == view.last:
            self._final = True
            if kind not in ("SNAPSHOT", _FINAL[task["status"]]):
                self._violated(f"was told that it is {task['status']} by {kind}")

    def completed(self) -> None:
        """Take the end of the stream, which only a final status may have."""
        if self._final:
            self._view.ended = True
        else:
            self._violated(f"saw the stream end at event {self._view.last}, before the task has ended")

    def refused(self, errors: list[dict[str, Any]]) -> None:
        """Come again later if that is what it says; nothing else should be said."""
        if not passing(errors):
            self._violated(f"was refused after event {self._view.last}: {errors[0]}")
        raise Gone

    def _violated(self, words: str) -> None:
        self._journal.violation(f"{self._view} {words}.")


def _range(events: Sequence[Seen]) -> str:
    return f"{events[0].seq}…{events[-1].seq}" if events else "nothing"
