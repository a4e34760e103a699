"""Reporters: they tell the service what happens to tasks, and insist until they know that it has heard.

A report with an idempotency key is sent again, to another server, until it is acknowledged or refused for good. One
without is sent once, and it is written down whether its outcome is known.
"""

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from storage import AddEvent, Cancel, Command, Complete, Create, EventType, Fail, UpdateProgress
from tests.faults.caller import Caller
from tests.faults.ledger import KEY, Entry, Ledger, Outcome

# The pause between the reports of one reporter, on average.
THINK_S: Final = 0.03
# How often it makes several reports together, and at most how many.
BATCHES: Final = 0.03
BATCH_MAX: Final = 6


@dataclass
class Reporter:
    """One client that reports, one thing after the other."""

    name: str
    caller: Caller
    ledger: Ledger
    random: Random
    _count: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Report on tasks until told to stop; then settle what is under way."""
        while not stop.is_set():
            together = self.random.randint(2, BATCH_MAX) if self.random.random() < BATCHES else 1
            entries = [self._next() for _ in range(together)]
            await self.caller.settle_each(entries, self.random, stop)
            for entry in entries:
                if entry.outcome is not Outcome.OPEN and entry.command.operation in ("complete", "fail", "cancel"):
                    await self._replace(entry.command.task_id, stop)
            await asyncio.sleep(self.random.expovariate(1 / THINK_S))

    async def create(self, task_id: str, stop: asyncio.Event) -> None:
        """Make a task, which then is one to report on."""
        name = f"create {task_id}"
        entry = self.ledger.enter(name, Create(task_id=task_id, metadata={KEY: name}, created_by="admin"))
        if await self.caller.settle(entry, self.random, stop) and entry.outcome is Outcome.DONE:
            self.ledger.open_tasks.append(task_id)

    async def call(self, task_id: str, stop: asyncio.Event) -> None:
        """Report once on a task, to whichever server."""
        name = f"call {task_id}"
        message, metadata = f"m {name}", {KEY: name}
        event = AddEvent(
            task_id=task_id, event_type=EventType.LOG, message=message, metadata=metadata, idempotency_key=name
        )
        await self.caller.settle(self.ledger.enter(name, event), self.random, stop)

    async def _replace(self, task_id: str, stop: asyncio.Event) -> None:
        """As many tasks are open at the end as were at the beginning."""
        if self.ledger.ended(task_id):
            self._count += 1
            await self.create(f"{self.name}-task-{self._count}", stop)

    def _next(self) -> Entry:
        self._count += 1
        name = f"{self.name}/{self._count}"
        return self.ledger.enter(name, self._command(name, self.random.choice(self.ledger.open_tasks)))

    def _command(self, name: str, task_id: str) -> Command:
        keyed: dict[str, Any] = {"task_id": task_id, "idempotency_key": name}
        metadata = {KEY: name}
        drawn = self.random.random()
        if drawn < 0.3:
            return UpdateProgress(progress=self.random.randrange(101), **keyed)
        if drawn < 0.31:
            end = self.random.choice((Complete, Cancel, Fail))
            error: dict[str, Any] = {"error": f"{name} went wrong"} if end is Fail else {}
            return end(metadata=metadata, **keyed, **error)
        if drawn < 0.6:
            # Without a key: these go the short way, by which a report is decided before its row is locked.
            del keyed["idempotency_key"]
        progress = self.random.randrange(101) if self.random.random() < 0.3 else None
        event_type = self.random.choice(list(EventType))
        return AddEvent(event_type=event_type, message=f"m {name}", progress=progress, metadata=metadata, **keyed)
