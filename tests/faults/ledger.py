"""What clients did and saw: each report with what its reporter was told, each claim, and each view of a task."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from storage import Command, Create, Delete, Report

KEY: Final = "report"
"""Under this, the metadata of a report says which one it is."""


class Outcome(StrEnum):
    """What a reporter knows of its report; and so how often its event may be in the log."""

    # Not sent, or never settled although it has a key: at most once.
    OPEN = "open"
    # The connection or the time ended without an answer, or the answer says that nobody knows: at most once.
    UNKNOWN = "unknown"
    # Acknowledged: exactly once.
    DONE = "done"
    # The answer says that it was not done, or it could not be sent: never.
    REFUSED = "refused"


@dataclass(slots=True)
class Entry:
    """A report, or a creation, under a name that no other has."""

    name: str
    command: Command
    outcome: Outcome = Outcome.OPEN
    # The number that the task had in the answer.
    seq: int | None = None
    attempts: int = 0
    first_sent_at: float = 0.0
    settled_at: float = 0.0
    # What was answered last, in words, and the code of a refusal.
    said: str = ""
    code: str | None = None

    @property
    def keyed(self) -> bool:
        """Whether it may be sent again without harm.

        The creation of a task that may be deleted is not sent again: one that comes late could make it a second time.
        """
        command = self.command
        return (
            isinstance(command, Delete)
            or (isinstance(command, Create) and command.options is None)
            or (isinstance(command, Report) and command.idempotency_key is not None)
        )

    @property
    def settled(self) -> bool:
        """Whether nothing more will be asked."""
        return self.outcome is not Outcome.OPEN

    def sent(self) -> None:
        """One more attempt begins."""
        self.attempts += 1
        self.first_sent_at = self.first_sent_at or time.monotonic()

    def settle(self, outcome: Outcome, said: str = "", seq: int | None = None) -> None:
        """Nothing more will be asked."""
        self.outcome, self.said, self.seq, self.settled_at = outcome, said, seq, time.monotonic()

    def __str__(self) -> str:
        told = f", {self.said}" if self.said else ""
        return f"{self.command.operation} {self.name} ({self.outcome} after {self.attempts} attempts{told})"


class Beat(NamedTuple):
    """What the answer to a claim, or to a heartbeat, said of the lease."""

    seq: int
    expires_at: datetime


@dataclass(slots=True)
class Hold:
    """A task as the worker has it whose claim was acknowledged."""

    # Each claim is made under a name that no other has, so that the log tells whose it was.
    worker: str
    task_id: str
    token: str
    attempt: int
    # The claim, then the heartbeats that were acknowledged.
    beats: list[Beat]
    # What is known of its being given back; None: nobody asked for that.
    released: Outcome | None = None
    # Whether something was refused because the lease is another's.
    lost: bool = False

    def __str__(self) -> str:
        return f"{self.worker} on {self.task_id}"


class Seen(NamedTuple):
    """An event as a subscriber was told of it."""

    seq: int
    event_type: str
    message: str
    progress: int | None


@dataclass(slots=True)
class View:
    """What one subscriber saw of one task, over however many connections."""

    subscriber: str
    task_id: str
    # The first snapshot: everything after this number must be seen. None before it.
    after: int | None = None
    created_at: str = ""
    events: list[Seen] = field(default_factory=list)
    # The last message was a final one, and the stream was completed.
    ended: bool = False
    # What was seen at last, to tell in which state it hangs.
    connected_to: str = ""

    @property
    def last(self) -> int:
        """The number of the event seen last."""
        return self.events[-1].seq if self.events else self.after or 0

    def __str__(self) -> str:
        return f"{self.subscriber} on {self.task_id} at {self.connected_to or 'no server'}"


class State(NamedTuple):
    """A task at a moment, as lists show it."""

    task_id: str
    created_at: datetime
    seq: int
    status: str
    progress: int
    updated_at: datetime
    queue: str | None
    tags: tuple[str, ...]

    @property
    def place(self) -> tuple[datetime, int]:
        """Of two states of one task, the newer one has the larger."""
        return self.created_at, self.seq

    def __str__(self) -> str:
        return f"{self.task_id} {self.status} {self.progress} % at {self.seq}"


class Told(NamedTuple):
    """What a subscriber of a list was told, by a message or by a page."""

    at: datetime
    state: State
    deleted: bool = False
    by_page: bool = False


@dataclass(slots=True)
class ListView:
    """What one subscriber of a list was told by one subscription, and what its list is by that."""

    watcher: str
    # What it asks for, as it is asked.
    wish: Mapping[str, Any]
    server: str
    # When it had the list; None before.
    read_at: datetime | None = None
    ended_at: datetime | None = None
    # Whether it ended with LIST_OUTDATED.
    outdated: bool = False
    told: list[Told] = field(default_factory=list)
    # By task, what is newest: the rule that clients are given.
    latest: dict[str, Told] = field(default_factory=dict)

    def take(self, told: Told) -> None:
        """Put it together with what was told before."""
        self.told.append(told)
        state = told.state
        last = self.latest.get(state.task_id)
        if last is not None:
            older = state.created_at < last.state.created_at if told.deleted else state.place < last.state.place
            if older or (last.deleted and state.created_at <= last.state.created_at):
                return
        self.latest[state.task_id] = told

    def __str__(self) -> str:
        return f"{self.watcher} at {self.server}"


class Trouble(NamedTuple):
    """A time in which something was broken, or had not recovered from that."""

    begins_at: datetime
    ends_at: datetime


@dataclass
class Ledger:
    """All of one round."""

    entries: dict[str, Entry] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    # Tasks that exist and for all we know have not ended, to report on and to watch.
    open_tasks: list[str] = field(default_factory=list)
    # Every task without options that was ever asked for.
    task_ids: list[str] = field(default_factory=list)
    # Every task with options that was ever asked for, and what was asked for first.
    plans: dict[str, Create] = field(default_factory=dict)
    # Those that exist, to depend on and to report on; and those among them that nobody will delete, to watch.
    planned: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    # Creations that were asked for together.
    batches: list[Sequence[Entry]] = field(default_factory=list)
    # The names under which something was claimed, and what came of it as far as it is known.
    claims: set[str] = field(default_factory=set)
    holds: list[Hold] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    # Of each subscription to a list.
    lists: list[ListView] = field(default_factory=list)
    # Queues whose workers ask for tasks only when they are told that there are some.
    belled: set[str] = field(default_factory=set)

    def enter(self, name: str, command: Command) -> Entry:
        """Write down what will be asked, before it is."""
        assert name not in self.entries, name
        entry = self.entries[name] = Entry(name, command)
        if isinstance(command, Create):
            if command.options is not None:
                self.plans.setdefault(command.task_id, command)
            else:
                self.task_ids.append(command.task_id)
        return entry

    def ended(self, task_id: str) -> bool:
        """Report on it no more; whether that is news."""
        if task_id not in self.open_tasks:
            return False
        self.open_tasks.remove(task_id)
        return True
