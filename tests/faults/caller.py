"""Asks servers, and understands what they answer: whether a thing was done, was not, or nobody knows.

Answers that nobody should get are violations, whoever asked.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple

import httpx

from graphql_api.app import PATH
from storage import AddEvent, Cancel, Command, Complete, Create, Delete, Fail, Options, Report, UpdateProgress
from tests.faults.journal import Journal
from tests.faults.ledger import Entry, Ledger, Outcome
from tests.faults.ports import HOST

# One attempt may take so long before another server is asked.
ATTEMPT_TIMEOUT_S: Final = 4.0
# The pause before the next attempt.
RETRY_WAITS_S: Final = (0.05, 0.4)
# When nothing is broken any more, whatever has a key must be settled within this.
SETTLE_TIMEOUT_S: Final = 30.0

_REPORT: Final = (
    "mutation($taskId: ID!, $key: String, $token: String{types}) {{ {operation}(taskId: $taskId, idempotencyKey: $key,"
    " token: $token{arguments}) {{ seq status }} }}"
)


def _report(operation: str, **types: str) -> str:
    return _REPORT.format(
        operation=operation,
        types="".join(f", ${name}: {kind}" for name, kind in types.items()),
        arguments="".join(f", {name}: ${name}" for name in types),
    )


DOCUMENTS: Final[Mapping[type[Command], str]] = {
    Create: "mutation($taskId: ID!, $metadata: JSON, $options: TaskOptions)"
    " { create(taskId: $taskId, metadata: $metadata, options: $options) { seq status } }",
    Delete: "mutation($taskId: ID!) { delete(taskId: $taskId) }",
    AddEvent: _report("addEvent", event="EventInput!"),
    UpdateProgress: _report("updateProgress", progress="Int!"),
    Complete: _report("complete", metadata="JSON"),
    Fail: _report("fail", error="String!", metadata="JSON", retry="Boolean"),
    Cancel: _report("cancel", metadata="JSON"),
}
CREATE_MANY: Final = "mutation($tasks: [NewTask!]!) { createMany(tasks: $tasks) { seq status } }"
REPORT: Final = (
    "mutation($reports: [TaskReport!]!)"
    " { report(reports: $reports) { taskId task { seq status } error { code message } } }"
)
# The words by which a server says that it does not know whether a change was made.
_NOBODY_KNOWS: Final = "may or may not have been made"
# What may be said of a task that others work on, fail and delete.
_OF_PLANNED: Final = frozenset({"LEASE_LOST", "TASK_NOT_FOUND", "BAD_USER_INPUT"})


class Reply(NamedTuple):
    """What came of asking once."""

    outcome: Outcome
    said: str = ""
    # Of a refusal that asking again would not change.
    code: str | None = None
    place: int | None = None
    data: Any = None

    @property
    def passing(self) -> bool:
        """Whether asking again may help."""
        return self.outcome is not Outcome.DONE and self.code is None


class Caller:
    """Sends commands to servers, and writes down what came of them."""

    def __init__(self, ports: Sequence[int], admin_key: str, journal: Journal, ledger: Ledger) -> None:
        self.servers = len(ports)
        self._ports = ports
        self._headers = {"Authorization": f"Bearer {admin_key}", "Accept": "application/json"}
        self._journal = journal
        self._ledger = ledger
        self._http = httpx.AsyncClient(
            trust_env=False,
            verify=False,
            timeout=ATTEMPT_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
        )

    async def close(self) -> None:
        """Leave."""
        await self._http.aclose()

    async def ask(self, server: int, document: str, variables: Mapping[str, Any]) -> Reply:
        """Ask one server once."""
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                response = await self._http.post(
                    f"http://{HOST}:{self._ports[server]}{PATH}",
                    json={"query": document, "variables": variables},
                    headers=self._headers,
                )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Reply(Outcome.REFUSED, f"not sent: {type(error).__name__}")
        except (httpx.TransportError, TimeoutError) as error:
            return Reply(Outcome.UNKNOWN, f"no answer: {type(error).__name__}")
        return self._understood(response)

    def _understood(self, response: httpx.Response) -> Reply:
        try:
            answer = response.json()
            errors = answer.get("errors") or []
            if not errors:
                (data,) = answer["data"].values()
                return Reply(Outcome.DONE, data=data)
            extensions, message = errors[0]["extensions"], errors[0]["message"]
            code = extensions["code"]
        except (ValueError, KeyError, AttributeError, TypeError):
            return Reply(Outcome.UNKNOWN, f"{response.status_code} {response.text[:200]}", code="no answer")
        if code == "UNAVAILABLE" and not extensions.get("retryable"):
            self._journal.violation(f"UNAVAILABLE was answered without `retryable`: {message}")
        return _refused(code, message, extensions.get("index"))

    async def attempt(self, entry: Entry, server: int) -> bool:
        """Ask one server once; whether the entry is settled."""
        entry.sent()
        return self._judged(entry, await self.ask(server, DOCUMENTS[type(entry.command)], variables(entry.command)))

    async def settle(self, entry: Entry, random: Random, stop: asyncio.Event) -> bool:
        """Ask until it is settled; False when that took too long with nothing broken any more."""
        return await self.settle_each([entry], random, stop)

    async def settle_each(self, entries: Sequence[Entry], random: Random, stop: asyncio.Event) -> bool:
        """The same for reports that are made together, each with its own outcome."""
        server = random.randrange(self.servers)
        give_up_at: float | None = None
        while waiting := [entry for entry in entries if not entry.settled]:
            if len(entries) == 1:
                await self.attempt(entries[0], server)
            else:
                await self._attempt_each(waiting, server)
            if stop.is_set():
                give_up_at = give_up_at or time.monotonic() + SETTLE_TIMEOUT_S
                if time.monotonic() > give_up_at:
                    for entry in waiting:
                        self._journal.violation(
                            f"{entry} is not settled {SETTLE_TIMEOUT_S:.0f} s after the last fault began."
                        )
                    return False
            server = (server + 1) % self.servers
            if any(not entry.settled for entry in waiting):
                await asyncio.sleep(random.uniform(*RETRY_WAITS_S))
        return True

    async def _attempt_each(self, entries: Sequence[Entry], server: int) -> None:
        for entry in entries:
            entry.sent()
        reply = await self.ask(server, REPORT, {"reports": [_item(entry.command) for entry in entries]})
        if reply.outcome is not Outcome.DONE:
            for entry in entries:
                self._judged(entry, reply)
            return
        if [item["taskId"] for item in reply.data] != [entry.command.task_id for entry in entries]:
            self._journal.violation(f"A batch of {len(entries)} reports was answered with others: {reply.data}")
        for entry, item in zip(entries, reply.data, strict=True):
            error = item["error"]
            told = Reply(Outcome.DONE, data=item["task"]) if error is None else _refused(**error)
            self._judged(entry, told)

    async def create_together(self, entries: Sequence[Entry], server: int, *, bad: int | None = None) -> bool:
        """Have tasks created all or none; whether they were. One of them may be there already."""
        self._ledger.batches.append(entries)
        for entry in entries:
            entry.sent()
        reply = await self.ask(server, CREATE_MANY, {"tasks": [variables(entry.command) for entry in entries]})
        if reply.outcome is Outcome.DONE:
            for entry, task in zip(entries, reply.data, strict=True):
                entry.settle(Outcome.DONE, seq=task["seq"])
            if bad is not None:
                self._journal.violation(f"createMany took item {bad}, which was there already.")
            return True
        # What one depends on may be gone, and then that one is to blame.
        there = reply.code == "TASK_ALREADY_EXISTS" and reply.place == bad
        if not (reply.passing or there or reply.code == "BAD_USER_INPUT"):
            self._journal.violation(f"createMany got an answer that nobody should get: {reply.said} ({reply.place})")
        for place, entry in enumerate(entries):
            entry.settle(reply.outcome, reply.said)
            entry.code = reply.code if place == reply.place else None
        return False

    def _judged(self, entry: Entry, reply: Reply) -> bool:
        """Write down what came of an attempt; whether that settles the entry."""
        if reply.outcome is Outcome.DONE:
            # A deletion is answered with the ID.
            entry.settle(Outcome.DONE, seq=reply.data["seq"] if isinstance(reply.data, dict) else None)
            self._journal.counts["acknowledged"] += 1
            return True
        if reply.passing:
            self._journal.counts[f"attempts that were {reply.outcome}"] += 1
            entry.said = reply.said
            if not entry.keyed:
                entry.settle(reply.outcome, reply.said)
            return not entry.keyed
        planned = entry.command.task_id in self._ledger.plans
        gone = "TASK_ALREADY_EXISTS" if isinstance(entry.command, Create) else "TASK_NOT_FOUND"
        if entry.attempts > 1 and reply.code == gone and isinstance(entry.command, Create | Delete):
            # An attempt before did it, and its answer was lost.
            entry.settle(Outcome.DONE)
            return True
        if entry.attempts > 1 and reply.code == "TASK_NOT_FOUND" and planned:
            # An attempt before may have done it; the key went with the task.
            entry.settle(Outcome.UNKNOWN, reply.said)
            entry.code = reply.code
            return True
        if reply.code == "TASK_FINISHED" or (planned and reply.code in _OF_PLANNED):
            entry.settle(Outcome.REFUSED, reply.said)
            entry.code = reply.code
            self._journal.counts[f"refused: {reply.code}"] += 1
            return True
        self._journal.violation(f"{entry} got an answer that nobody should get: {reply.said}")
        entry.settle(Outcome.UNKNOWN, reply.said)
        return True


def _refused(code: str, message: str, index: int | None = None) -> Reply:
    if code == "UNAVAILABLE":
        return Reply(Outcome.UNKNOWN if _NOBODY_KNOWS in message else Outcome.REFUSED, message)
    return Reply(Outcome.REFUSED, f"{code} {message}", code, index)


def variables(command: Command) -> dict[str, Any]:
    """The variables of the mutation that the command is."""
    named: dict[str, Any] = {"taskId": command.task_id}
    match command:
        case Create():
            named["metadata"] = command.metadata
            if command.options is not None:
                named["options"] = _options(command.options)
        case Report():
            named |= {"key": command.idempotency_key, "token": command.token}
    match command:
        case AddEvent():
            named["event"] = _event(command)
        case UpdateProgress():
            named["progress"] = command.progress
        case Fail():
            named |= {"error": command.error, "metadata": command.metadata, "retry": command.retry}
        case Complete() | Cancel():
            named["metadata"] = command.metadata
    return named


def _item(command: Command) -> dict[str, Any]:
    """A report as one of several."""
    assert isinstance(command, Report)
    named = {"taskId": command.task_id, "idempotencyKey": command.idempotency_key, "token": command.token}
    match command:
        case AddEvent():
            return {**named, "event": _event(command)}
        case UpdateProgress():
            return {**named, "progress": command.progress}
        case Fail():
            return {**named, "fail": command.error, "metadata": command.metadata, "retry": command.retry}
        case Complete():
            return {**named, "complete": True, "metadata": command.metadata}
        case _:
            return {**named, "cancel": True, "metadata": command.metadata}


def _event(command: AddEvent) -> dict[str, Any]:
    return {
        "eventType": command.event_type,
        "message": command.message,
        "progress": command.progress,
        "metadata": command.metadata,
    }


def _options(options: Options) -> dict[str, Any]:
    return {
        "tags": options.tags,
        "queue": options.queue,
        "priority": options.priority,
        "startAt": options.start_at and options.start_at.isoformat(),
        "dependsOn": options.depends_on,
        "onDependencyFailure": options.on_dependency_failure,
        "expiresAt": options.expires_at and options.expires_at.isoformat(),
        "keepForSeconds": options.keep_for_s,
        "retry": {
            "maxAttempts": options.retry.max_attempts,
            "initialDelaySeconds": options.retry.initial_s,
            "maxDelaySeconds": options.retry.max_s,
            "factor": options.retry.factor,
        },
    }
