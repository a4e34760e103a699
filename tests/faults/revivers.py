"""Revivers: they create a task, report on it, delete it and create it anew under the same ID, by whichever server.

What came of it nobody writes down: it is for those who watch lists, and what a task was is in the archive.
"""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import Final

from storage import AddEvent, Cancel, Command, Complete, Create, Delete, EventType, UpdateProgress
from tests.faults.caller import DOCUMENTS, Caller, variables
from tests.faults.journal import Journal

TASKS: Final = 4
THINK_S: Final = 0.15
_EXPECTED: Final = frozenset({None, "TASK_NOT_FOUND", "TASK_ALREADY_EXISTS", "TASK_FINISHED"})


@dataclass
class Reviver:
    """One client whose tasks live often, and not long."""

    name: str
    caller: Caller
    random: Random
    journal: Journal
    # The tasks that are there, for all it knows.
    _there: set[str] = field(default_factory=set)

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until told to stop."""
        while not stop.is_set():
            task_id = f"{self.name}-{self.random.randrange(TASKS)}"
            await self._do(self._next(task_id))
            await asyncio.sleep(self.random.expovariate(1 / THINK_S))

    def _next(self, task_id: str) -> Command:
        if task_id not in self._there:
            return Create(task_id=task_id, created_by="admin")
        commands: list[Command] = [
            UpdateProgress(task_id=task_id, progress=self.random.randrange(101)),
            AddEvent(task_id=task_id, event_type=EventType.LOG, message="revived"),
            Complete(task_id=task_id),
            Cancel(task_id=task_id),
            Delete(task_id=task_id),
        ]
        return self.random.choices(commands, (30, 10, 15, 5, 40))[0]

    async def _do(self, command: Command) -> None:
        server = self.random.randrange(self.caller.servers)
        reply = await self.caller.ask(server, DOCUMENTS[type(command)], variables(command))
        if reply.code not in _EXPECTED:
            self.journal.violation(f"{self.name} got an answer that nobody should get: {reply.said}")
        elif isinstance(command, Delete) and (reply.code == "TASK_NOT_FOUND" or reply.code is None):
            # Should it be there still, that is found when it is created.
            self._there.discard(command.task_id)
        elif isinstance(command, Create) and (reply.code == "TASK_ALREADY_EXISTS" or reply.code is None):
            self._there.add(command.task_id)
        elif reply.code == "TASK_NOT_FOUND":
            self._there.discard(command.task_id)
