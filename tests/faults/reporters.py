"""Reporters: they tell the service what happens to tasks, and insist until they know that it has heard.

A report with an idempotency key is sent again, to another server, until it is acknowledged or refused for good. One
without is sent once, and it is written down whether its outcome is known.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import httpx

from graphql_api.app import PATH
from storage import AddEvent, Cancel, Command, Complete, Create, EventType, Fail, UpdateProgress
from tests.faults.journal import Journal
from tests.faults.ledger import KEY, Entry, Ledger, Outcome
from tests.faults.ports import HOST

# One attempt may take so long before another server is asked.
ATTEMPT_TIMEOUT_S: Final = 4.0
# The pause before the next attempt, and on average between the reports of one reporter.
RETRY_WAITS_S: Final = (0.05, 0.4)
THINK_S: Final = 0.03
# When nothing is broken any more, whatever has a key must be settled within this.
SETTLE_TIMEOUT_S: Final = 30.0

_REPORT: Final = (
    "mutation($taskId: ID!, $key: String{types}) {{ {operation}(taskId: $taskId, idempotencyKey: $key{arguments})"
    " {{ seq status }} }}"
)


def _report(operation: str, **types: str) -> str:
    return _REPORT.format(
        operation=operation,
        types="".join(f", ${name}: {kind}" for name, kind in types.items()),
        arguments="".join(f", {name}: ${name}" for name in types),
    )


DOCUMENTS: Final[Mapping[type[Command], str]] = {
    Create: "mutation($taskId: ID!, $metadata: JSON) { create(taskId: $taskId, metadata: $metadata) { seq status } }",
    AddEvent: _report("addEvent", event="EventInput!"),
    UpdateProgress: _report("updateProgress", progress="Int!"),
    Complete: _report("complete", metadata="JSON"),
    Fail: _report("fail", error="String!", metadata="JSON"),
    Cancel: _report("cancel", metadata="JSON"),
}
# The words by which a server says that it does not know whether a change was made.
_NOBODY_KNOWS: Final = "may or may not have been made"


class Caller:
    """Sends commands to servers, and writes down what came of them."""

    def __init__(self, ports: Sequence[int], admin_key: str, journal: Journal) -> None:
        self._ports = ports
        self._headers = {"Authorization": f"Bearer {admin_key}", "Accept": "application/json"}
        self._journal = journal
        self._http = httpx.AsyncClient(
            trust_env=False,
            verify=False,
            timeout=ATTEMPT_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
        )

    async def close(self) -> None:
        """Leave."""
        await self._http.aclose()

    async def attempt(self, entry: Entry, server: int) -> bool:
        """Ask one server once; whether the entry is settled."""
        entry.sent()
        body = {"query": DOCUMENTS[type(entry.command)], "variables": variables(entry.command)}
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                response = await self._http.post(
                    f"http://{HOST}:{self._ports[server]}{PATH}", json=body, headers=self._headers
                )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return self._failed(entry, Outcome.REFUSED, f"not sent: {type(error).__name__}")
        except (httpx.TransportError, TimeoutError) as error:
            return self._failed(entry, Outcome.UNKNOWN, f"no answer: {type(error).__name__}")
        return self._answered(entry, response)

    def _answered(self, entry: Entry, response: httpx.Response) -> bool:
        try:
            answer = response.json()
            errors = answer.get("errors") or []
            if not errors:
                (task,) = answer["data"].values()
                entry.settle(Outcome.DONE, seq=task["seq"])
                self._journal.counts["acknowledged"] += 1
                return True
            code, message = errors[0]["extensions"]["code"], errors[0]["message"]
        except (ValueError, KeyError, AttributeError, TypeError):
            return self._unexpected(entry, f"{response.status_code} {response.text[:200]}")
        if code == "UNAVAILABLE":
            if not errors[0]["extensions"].get("retryable"):
                self._journal.violation(f"{entry} was answered UNAVAILABLE without `retryable`: {message}")
            outcome = Outcome.UNKNOWN if _NOBODY_KNOWS in message else Outcome.REFUSED
            return self._failed(entry, outcome, message)
        if code == "TASK_FINISHED":
            entry.settle(Outcome.REFUSED, message)
            self._journal.counts["refused: the task had ended"] += 1
            return True
        if code == "TASK_ALREADY_EXISTS" and entry.attempts > 1:
            # An attempt before did it, and its answer was lost.
            entry.settle(Outcome.DONE)
            return True
        return self._unexpected(entry, f"{code} {message}")

    def _failed(self, entry: Entry, outcome: Outcome, said: str) -> bool:
        """Settle what is sent only once; the others go on."""
        self._journal.counts[f"attempts that were {outcome}"] += 1
        entry.said = said
        if not entry.keyed:
            entry.settle(outcome, said)
        return not entry.keyed

    def _unexpected(self, entry: Entry, said: str) -> bool:
        self._journal.violation(f"{entry} got an answer that nobody should get: {said}")
        entry.settle(Outcome.UNKNOWN, said)
        return True


def variables(command: Command) -> dict[str, Any]:
    """The variables of the mutation that the command is."""
    named: dict[str, Any] = {"taskId": command.task_id, "key": getattr(command, "idempotency_key", None)}
    match command:
        case AddEvent():
            event = {"eventType": command.event_type, "message": command.message, "progress": command.progress}
            named["event"] = {**event, "metadata": command.metadata}
        case UpdateProgress():
            named["progress"] = command.progress
        case Fail():
            named |= {"error": command.error, "metadata": command.metadata}
        case Complete() | Cancel() | Create():
            named["metadata"] = command.metadata
        case _:
            raise AssertionError(command)
    if isinstance(command, Create):
        del named["key"]
    return named


@dataclass
class Reporter:
    """One client that reports, one thing after the other."""

    name: str
    caller: Caller
    ledger: Ledger
    servers: int
    random: Random
    journal: Journal
    _count: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Report on tasks until told to stop; then settle what is under way."""
        while not stop.is_set():
            entry = self._next()
            settled_by = await self.settle(entry, stop)
            if settled_by and entry.command.operation in ("complete", "fail", "cancel"):
                await self._replace(entry.command.task_id, stop)
            await asyncio.sleep(self.random.expovariate(1 / THINK_S))

    async def settle(self, entry: Entry, stop: asyncio.Event) -> bool:
        """Ask until it is settled; False when that took too long with nothing broken any more."""
        server = self.random.randrange(self.servers)
        give_up_at: float | None = None
        while not await self.caller.attempt(entry, server):
            if stop.is_set():
                give_up_at = give_up_at or time.monotonic() + SETTLE_TIMEOUT_S
                if time.monotonic() > give_up_at:
                    self.journal.violation(
                        f"{entry} is not settled {SETTLE_TIMEOUT_S:.0f} s after the last fault began."
                    )
                    return False
            server = (server + 1) % self.servers
            await asyncio.sleep(self.random.uniform(*RETRY_WAITS_S))
        return True

    async def create(self, task_id: str, stop: asyncio.Event) -> None:
        """Make a task, which then is one to report on."""
        name = f"create {task_id}"
        entry = self.ledger.enter(name, Create(task_id=task_id, metadata={KEY: name}, created_by="admin"))
        if await self.settle(entry, stop) and entry.outcome is Outcome.DONE:
            self.ledger.open_tasks.append(task_id)

    async def call(self, task_id: str, stop: asyncio.Event) -> None:
        """Report once on a task, to whichever server."""
        name = f"call {task_id}"
        message, metadata = f"m {name}", {KEY: name}
        event = AddEvent(
            task_id=task_id, event_type=EventType.LOG, message=message, metadata=metadata, idempotency_key=name
        )
        await self.settle(self.ledger.enter(name, event), stop)

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
