"""A storage that makes up what it is asked for, for tests that mean only the schema above it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, cast

from graphql_api.auth import Viewer
from graphql_api.context import Context
from storage import (
    Delete,
    Event,
    EventType,
    Json,
    Permission,
    Status,
    Storage,
    Task,
    TaskNotFound,
    TaskPage,
    Unavailable,
    Update,
    UpdateType,
)

_NOW = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@dataclass
class StandIn:
    """Reader, writer and watch, of one seed: the same question has the same answer."""

    seed: str
    faults: float = 0.0
    turns_max: int = 0
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def reader(self) -> "StandIn":
        return self

    @property
    def writer(self) -> "StandIn":
        return self

    async def task(self, task_id: str) -> Task | None:
        random = await self._asked("task", task_id)
        return None if random.random() < 0.2 else self._task(random, task_id)

    async def events(self, task_id: str, first_seq: int, last_seq: int) -> Sequence[Event]:
        random = await self._asked("events", task_id, first_seq, last_seq)
        count = max(0, min(last_seq - first_seq + 1, 4))
        return tuple(self._event(random, task_id, first_seq + index) for index in range(count))

    async def page(self, first: int, after: str | None, statuses: Sequence[Status] | None) -> TaskPage:
        random = await self._asked("page", first, after, statuses)
        return TaskPage(
            tuple(self._task(random, f"T-{index}") for index in range(random.randrange(3))),
            random.random() < 0.5,
            False,
        )

    async def count(self, statuses: Sequence[Status] | None) -> int:
        return (await self._asked("count", statuses)).choice([0, 3, 2**31])

    async def submit(self, command: Any) -> Task | None:
        random = await self._asked("submit", repr(command))
        return None if isinstance(command, Delete) else self._task(random, command.task_id)

    async def watch(self, task_id: str, after_seq: int | None) -> AsyncGenerator[Update, None]:
        for number in range(2):
            random = await self._asked("watch", task_id, after_seq, number)
            events = tuple(self._event(random, task_id, seq) for seq in range(random.randrange(3)))
            yield Update(random.choice(list(UpdateType)), self._task(random, task_id), events)

    async def _asked(self, *question: Any) -> Random:
        self.calls.append(question)
        random = Random(f"{self.seed} {question}")
        for _ in range(random.randint(0, self.turns_max)):
            await asyncio.sleep(0)
        if random.random() < self.faults:
            raise random.choice([TaskNotFound("T-9"), Unavailable("away"), RuntimeError("a fault of ours")])
        return random

    def _task(self, random: Random, task_id: str) -> Task:
        made = Task(
            task_id=task_id,
            status=random.choice(list(Status)),
            progress=random.randint(0, 100),
            metadata=random.choice([None, Json('{"a": [1, null]}'), Json("7")]),
            seq=random.randint(1, 60),
            created_by=random.choice([None, "maker"]),
            created_at=_NOW - timedelta(microseconds=random.randrange(10**12)),
            updated_at=_NOW,
            started_at=random.choice([None, _NOW]),
            completed_at=None,
            failed_at=None,
            canceled_at=None,
            last_event=self._event(random, task_id, 5) if random.random() < 0.5 else None,
        )
        return cast("Task", self._spoiled(random, made, ["status", "progress", "created_at", "task_id", "metadata"]))

    def _event(self, random: Random, task_id: str, seq: int) -> Event:
        made = Event(
            task_id=task_id,
            seq=seq,
            event_type=random.choice(list(EventType)),
            message=random.choice(["", "step", "naïve"]),
            progress=random.choice([None, 40]),
            metadata=random.choice([None, Json("[]")]),
            timestamp=_NOW.astimezone(),
            actor=random.choice([None, "worker"]),
        )
        return cast("Event", self._spoiled(random, made, ["seq", "event_type", "message", "timestamp", "progress"]))

    def _spoiled(self, random: Random, made: Any, names: list[str]) -> Any:
        if random.random() < self.faults:
            wrong = random.choice([None, 2**40, "text", 1.5, float("nan"), object, ValueError("returned")])
            return made._replace(**{random.choice(names): wrong})
        return made


def context(stand_in: StandIn, permissions: Sequence[Permission], *, authenticated: bool = True) -> Context:
    """A context over a stand-in."""
    viewer = Viewer("tester", authenticated=authenticated, permissions=frozenset(permissions))
    return Context(cast("Storage", stand_in), viewer)
