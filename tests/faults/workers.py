"""Workers: they claim tasks under short leases, and do with them all that a worker may do, and what it should not.

Some die without a word, some come back when their lease is over and report as if nothing had been. What each was told
is written down; that nobody else had the task meanwhile is for the checker to see.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, Final

from storage import AddEvent, Complete, EventType, Fail, Report, UpdateProgress
from tests.faults.bells import Bell
from tests.faults.caller import Caller
from tests.faults.journal import Journal
from tests.faults.ledger import KEY, Beat, Hold, Ledger, Outcome

LEASES_S: Final = (1, 2)
CLAIMED_MAX: Final = 3
# Between heartbeats, and when there was nothing to claim.
BEAT_S: Final = 0.3
IDLE_S: Final = 0.15
# How long a worker works that does not forget its lease, and one that does.
WORK_S: Final = (0.02, 1.0)
FORGETS_S: Final = 1.2

_CLAIM: Final = (
    "mutation($queue: String!, $worker: String!, $limit: Int!, $leaseSeconds: Int!)"
    " { claim(queue: $queue, worker: $worker, limit: $limit, leaseSeconds: $leaseSeconds)"
    " { token attempt expiresAt task { taskId seq status } } }"
)
_HEARTBEAT: Final = (
    "mutation($taskId: ID!, $token: String!, $leaseSeconds: Int!)"
    " { heartbeat(taskId: $taskId, token: $token, leaseSeconds: $leaseSeconds)"
    " { expiresAt task { seq status } } }"
)
_RELEASE: Final = "mutation($taskId: ID!, $token: String!) { release(taskId: $taskId, token: $token) { seq status } }"


@dataclass
class Worker:
    """One client that claims."""

    name: str
    queue: str
    caller: Caller
    ledger: Ledger
    random: Random
    journal: Journal
    # Who tells it that there are tasks; without one it asks again and again.
    bell: Bell | None = None
    # When it is set, whatever is claimed is completed at once.
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop; what is held then is left."""
        while not stop.is_set():
            holds = await self._claim()
            await asyncio.gather(*(self._work(hold, stop) for hold in holds or ()))
            if holds == [] and self.bell is not None:
                await self.bell.rung(stop)
            elif not holds:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * IDLE_S)

    async def _claim(self) -> list[Hold] | None:
        """Ask for tasks; None when that was refused or not answered."""
        self._count += 1
        worker, limit = f"{self.name}/{self._count}", self.random.randint(1, CLAIMED_MAX)
        self.ledger.claims.add(worker)
        wish = {"queue": self.queue, "worker": worker, "limit": limit, "leaseSeconds": self.random.choice(LEASES_S)}
        reply = await self.caller.ask(self._server(), _CLAIM, wish)
        if reply.outcome is not Outcome.DONE:
            self._passing(reply.code is None, f"{worker} could not claim: {reply.said}")
            return None
        if len(reply.data) > limit:
            self.journal.violation(f"{worker} asked for {limit} tasks and got {len(reply.data)}.")
        holds = []
        for claim in reply.data:
            task = claim["task"]
            if task["status"] != "IN_PROGRESS":
                self.journal.violation(f"{worker} was given {task['taskId']}, which is {task['status']}.")
            beat = Beat(task["seq"], datetime.fromisoformat(claim["expiresAt"]))
            holds.append(Hold(worker, task["taskId"], claim["token"], claim["attempt"], [beat]))
        self.ledger.holds += holds
        self.journal.counts["claims"] += len(holds)
        return holds

    async def _work(self, hold: Hold, stop: asyncio.Event) -> None:
        doings = ("complete", "fail", "release", "forget", "die")
        (doing,) = self.random.choices(doings, (50, 20, 10, 12, 8))
        if self.hurry.is_set():
            doing = "complete"
        elif doing == "forget":
            await asyncio.sleep(self.random.uniform(1, 2) * FORGETS_S)
        else:
            await self._busy(hold, stop)
        if stop.is_set() or hold.lost:
            return
        match doing:
            case "complete" | "forget":
                await self._report(hold, stop, Complete)
            case "fail":
                await self._report(hold, stop, Fail, error=f"{hold.worker} failed", retry=self.random.random() < 0.8)
            case "release":
                await self._release(hold)

    async def _busy(self, hold: Hold, stop: asyncio.Event) -> None:
        """Report now and then, and keep the lease meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.random.uniform(*WORK_S)
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat(hold))
            while loop.time() < until and not (stop.is_set() or hold.lost or self.hurry.is_set()):
                if self.random.random() < 0.5:
                    await self._report(hold, stop, UpdateProgress, progress=self.random.randrange(101))
                else:
                    await self._report(hold, stop, AddEvent, event_type=EventType.LOG, message="")
                await asyncio.sleep(self.random.uniform(0, BEAT_S))
            beating.cancel()

    async def _beat(self, hold: Hold) -> None:
        while not hold.lost:
            await asyncio.sleep(self.random.uniform(0.5, 1) * BEAT_S)
            asked = {"taskId": hold.task_id, "token": hold.token, "leaseSeconds": self.random.choice(LEASES_S)}
            reply = await self.caller.ask(self._server(), _HEARTBEAT, asked)
            if reply.outcome is Outcome.DONE:
                self.journal.counts["heartbeats"] += 1
                task = reply.data["task"]
                hold.beats.append(Beat(task["seq"], datetime.fromisoformat(reply.data["expiresAt"])))
                if task["status"] != "IN_PROGRESS":
                    return
            else:
                self._refused(hold, reply.code, reply.said)

    async def _report(self, hold: Hold, stop: asyncio.Event, kind: type[Report], **arguments: Any) -> None:
        self._count += 1
        name = f"{self.name}/{self._count}"
        arguments |= {"task_id": hold.task_id, "token": hold.token}
        # What has no metadata is known by its key; some of the others go the short way, without one.
        if kind is not AddEvent or self.random.random() < 0.5:
            arguments["idempotency_key"] = name
        if kind is not UpdateProgress:
            arguments["metadata"] = {KEY: name}
        if kind is AddEvent:
            arguments["message"] = f"m {name}"
        entry = self.ledger.enter(name, kind(**arguments))
        await self.caller.settle(entry, self.random, stop)
        hold.lost |= entry.code == "LEASE_LOST"

    async def _release(self, hold: Hold) -> None:
        hold.released = Outcome.OPEN
        asked = {"taskId": hold.task_id, "token": hold.token}
        reply = await self.caller.ask(self._server(), _RELEASE, asked)
        hold.released = reply.outcome
        if reply.outcome is Outcome.DONE:
            self.journal.counts["releases"] += 1
        else:
            self._refused(hold, reply.code, reply.said)

    def _refused(self, hold: Hold, code: str | None, said: str) -> None:
        hold.lost |= code == "LEASE_LOST"
        self._passing(code in (None, "LEASE_LOST", "TASK_FINISHED", "TASK_NOT_FOUND"), f"{hold} got an answer: {said}")

    def _passing(self, expected: bool, words: str) -> None:
        self.journal.counts["workers refused or without an answer"] += 1
        if not expected:
            self.journal.violation(words)

    def _server(self) -> int:
        return self.random.randrange(self.caller.servers)
