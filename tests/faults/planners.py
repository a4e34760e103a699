"""Planners: they create tasks that wait, for a time, for a worker, for each other, and meddle with what became of them.

What is hard to get right happens on purpose: a task that others depend on ends, or is deleted, at the very moment in
which a dependent is created, by way of another server.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

from storage import (
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    EventType,
    Fail,
    OnDependencyFailure,
    Options,
    Retry,
)
from tests.faults.caller import Caller
from tests.faults.ledger import KEY, Entry, Ledger, Outcome

# The pause between what one planner does, on average.
THINK_S: Final = 0.3
# So many of the newest tasks are depended on and meddled with.
RECENT: Final = 20
DEPENDENCIES_MAX: Final = 3
TOGETHER_MAX: Final = 6
# Each task has one of so many tags.
TAGS: Final = 3
# Tasks start at most so late, and have so long.
START_S: Final = (-1.0, 2.5)
EXPIRE_S: Final = (0.3, 3.0)
# What nobody can claim expires after so long, should nobody else end it.
RACE_S: Final = 6.0


@dataclass
class Planner:
    """One client that creates tasks with options."""

    name: str
    queue: str
    caller: Caller
    ledger: Ledger
    random: Random
    _count: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Plan until told to stop; then settle what is under way."""
        doings = (self._create, self._race, self._create_together, self._meddle)
        while not stop.is_set():
            (doing,) = self.random.choices(doings, (40, 25, 15, 20))
            await doing(stop)
            await asyncio.sleep(self.random.expovariate(1 / THINK_S))

    async def _create(self, stop: asyncio.Event) -> None:
        entry = self._creation(**self._wishes())
        if await self.caller.settle(entry, self.random, stop):
            self._created(entry)

    async def _race(self, stop: asyncio.Event) -> None:
        """Create a task while one that it depends on ends, before that, or after."""
        first = self._creation(expires_at=datetime.now(UTC) + timedelta(seconds=RACE_S))
        if not await self.caller.settle(first, self.random, stop) or first.outcome is not Outcome.DONE:
            return
        on = first.command.task_id
        policy = self.random.choice(list(OnDependencyFailure))
        second = self._creation(queue=self.queue, depends_on=[on], on_dependency_failure=policy)
        end = self._ending(on, self.random.choice((Complete, Complete, Fail, Cancel, Delete)))
        both = [second, end]
        self.random.shuffle(both)

        async def later(entry: Entry, seconds: float) -> None:
            await asyncio.sleep(seconds)
            await self.caller.settle(entry, self.random, stop)

        await asyncio.gather(later(both[0], 0), later(both[1], self.random.choice((0, 0.002, 0.01, 0.05))))
        self._created(second)

    async def _create_together(self, _stop: asyncio.Event) -> None:
        """Create several that depend on each other, in any order; some times one of them is there already."""
        entries: list[Entry] = []
        for _ in range(self.random.randint(2, TOGETHER_MAX)):
            others = [entry.command.task_id for entry in entries]
            wishes = self._wishes()
            if others and self.random.random() < 0.7:
                wishes["depends_on"] = self.random.sample(others, min(len(others), 2))
            entries.append(self._creation(**wishes))
        self.random.shuffle(entries)
        bad = None
        if self.ledger.kept and self.random.random() < 0.25:
            self._count += 1
            name, there = f"{self.name}/again {self._count}", self.random.choice(self.ledger.kept)
            bad = self.random.randint(0, len(entries))
            options = Options(queue=self.queue)
            entries.insert(bad, self.ledger.enter(name, Create(task_id=there, metadata={KEY: name}, options=options)))
        if await self.caller.create_together(entries, self.random.randrange(self.caller.servers), bad=bad):
            for entry in entries:
                self._created(entry)

    async def _meddle(self, stop: asyncio.Event) -> None:
        """Say something about a task that a worker may have, or nobody; end it, or delete it."""
        if not self.ledger.planned:
            return
        task_id = self._recent(1)[0]
        (kind,) = self.random.choices((AddEvent, Cancel, Complete, Fail, Delete), (40, 20, 10, 15, 15))
        if kind is Delete and task_id in self.ledger.kept:
            kind = Cancel
        await self.caller.settle(self._ending(task_id, kind), self.random, stop)

    def _creation(self, **wishes: Any) -> Entry:
        self._count += 1
        task_id = f"{self.name}-{self._count}"
        options = Options(**{"retry": Retry(max_attempts=1), **wishes})
        metadata = {KEY: f"create {task_id}"}
        return self.ledger.enter(
            f"create {task_id}", Create(task_id=task_id, metadata=metadata, created_by="admin", options=options)
        )

    def _created(self, entry: Entry) -> None:
        if entry.outcome is not Outcome.DONE:
            return
        assert isinstance(entry.command, Create) and entry.command.options is not None
        self.ledger.planned.append(entry.command.task_id)
        if entry.command.options.keep_for_s is None and self.random.random() < 0.5:
            self.ledger.kept.append(entry.command.task_id)

    def _wishes(self) -> dict[str, Any]:
        chance, now = self.random.random, datetime.now(UTC)
        wishes: dict[str, Any] = {
            "tags": [f"tag {self._count % TAGS}"],
            "queue": self.queue,
            "priority": self.random.randint(-2, 2),
            "retry": Retry(max_attempts=self.random.randint(1, 3), initial_s=self.random.randint(0, 1), max_s=1),
        }
        if chance() < 0.3:
            wishes["start_at"] = now + timedelta(seconds=self.random.uniform(*START_S))
        if chance() < 0.25:
            begins_at = wishes.get("start_at", now)
            wishes["expires_at"] = begins_at + timedelta(seconds=self.random.uniform(*EXPIRE_S))
            # Nobody can claim it, so it will expire.
            if chance() < 0.3:
                wishes["queue"] = None
        if chance() < 0.3:
            wishes["keep_for_s"] = self.random.randint(0, 2)
        if chance() < 0.4 and self.ledger.planned:
            wishes["depends_on"] = self._recent(self.random.randint(1, DEPENDENCIES_MAX))
            wishes["on_dependency_failure"] = self.random.choice(list(OnDependencyFailure))
        return wishes

    def _recent(self, count: int) -> list[str]:
        recent = self.ledger.planned[-RECENT:]
        return self.random.sample(recent, min(count, len(recent)))

    def _ending(self, task_id: str, kind: type[Command]) -> Entry:
        self._count += 1
        name = f"{self.name}/{self._count}"
        if kind is Delete:
            return self.ledger.enter(name, Delete(task_id=task_id))
        arguments: dict[str, Any] = {"task_id": task_id, "metadata": {KEY: name}, "idempotency_key": name}
        if kind is AddEvent:
            arguments |= {"event_type": EventType.LOG, "message": f"m {name}"}
        if kind is Fail:
            arguments["error"] = f"{name} went wrong"
        return self.ledger.enter(name, kind(**arguments))
