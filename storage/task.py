"""What a task is: frozen values, made by the rules and read from the log. Tasks and events are made by the thousand, so
they are tuples with names, which cost the least to make.

A task is the fold of its events. ``Task.seq`` is the number of its latest event, and the numbers of one task's events
are 1, 2, 3 … without a gap, so whoever holds events up to some number knows whether anything is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

# What an event takes beside its texts.
EVENT_BYTES: Final = 256


class Status(StrEnum):
    """Where a task is in its life."""

    # Created, or given back for another attempt, and nobody has reported progress since. The first progress or a claim
    # moves it on; it may also end from here.
    PENDING = "PENDING"
    # Somebody reported progress, or has claimed it. It stays so until it ends, or the attempt does.
    IN_PROGRESS = "IN_PROGRESS"
    # Final, by `complete`.
    SUCCESS = "SUCCESS"
    # Final, by `fail` with no attempt left, or by time; the error is the message of its last event.
    FAILED = "FAILED"
    # Final, by `cancel`, or because a task that it depends on did not succeed.
    CANCELED = "CANCELED"

    @property
    def final(self) -> bool:
        """Whether nothing but a deletion can follow."""
        return self in FINAL


FINAL = frozenset({Status.SUCCESS, Status.FAILED, Status.CANCELED})


class EventType(StrEnum):
    """What an event says about the work."""

    LOG = "LOG"
    PROGRESS = "PROGRESS"
    ERROR = "ERROR"
    SUCCESS = "SUCCESS"


class UpdateType(StrEnum):
    """What happened last in an update."""

    SNAPSHOT = "SNAPSHOT"
    EVENT = "EVENT"
    PROGRESS = "PROGRESS"
    COMPLETE = "COMPLETE"
    FAIL = "FAIL"
    CANCEL = "CANCEL"
    DELETE = "DELETE"


class Json(str):
    """JSON as text, the way it is kept and sent. Nothing on the way from the database to a client looks into it."""

    __slots__ = ()

    def value(self) -> Any:
        """The value that it is."""
        return orjson.loads(self.encode())


class Event(NamedTuple):
    """One line of a task's log. It never changes."""

    task_id: str
    seq: int
    event_type: EventType
    message: str
    progress: int | None
    metadata: Json | None
    timestamp: datetime
    # Who reported it; None for somebody without a credential.
    actor: str | None = None


class OnDependencyFailure(StrEnum):
    """What becomes of a task when one that it depends on ends in another way than by success, or is deleted."""

    # It is canceled, by an event that names the other.
    CANCEL = "CANCEL"
    # The other counts as done.
    IGNORE = "IGNORE"


class Outcome(StrEnum):
    """How a task that others depend on is over."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    DELETED = "DELETED"


class Plan(NamedTuple):
    """The wishes with which a task was created, and how far they have come."""

    # As given at creation, and never changed.
    tags: tuple[str, ...]
    # Workers claim tasks of a queue. A task without one is nobody's to claim: who knows of it reports on it.
    queue: str | None
    priority: int
    start_at: datetime | None
    depends_on: tuple[str, ...]
    on_dependency_failure: OnDependencyFailure
    max_attempts: int
    retry_initial_s: int
    retry_max_s: int
    retry_factor: float
    expires_at: datetime | None
    keep_for_s: int | None
    # Those of `depends_on` that have not succeeded yet (IGNORE: have not ended yet).
    blocked_by: tuple[str, ...]
    # The number of the attempt that is being made, or was made last; 0 before the first.
    attempt: int
    # When the next one may be made, after one that failed; None when nothing is to be waited for.
    next_attempt_at: datetime | None
    # Whether a worker may claim it now: PENDING, in a queue, its times passed, blocked by nothing.
    ready: bool
    # Who has claimed it and until when, while the claim holds.
    worker: str | None
    lease_expires_at: datetime | None
    # What the worker shows to prove that the claim is its own. It outlives the lease when the task ends, so that a
    # worker whose task was canceled is told that, and not that the task was taken from it.
    lease_token: str | None
    # When it is to be removed; known once it has ended.
    delete_at: datetime | None
    # The earliest moment at which time itself may change something, or earlier; None when it never does.
    due_at: datetime | None

    @property
    def claimed(self) -> bool:
        """Whether somebody has a lease."""
        return self.lease_expires_at is not None


class Task(NamedTuple):
    """A task as it was when its latest event was number ``seq``."""

    task_id: str
    status: Status
    progress: int
    metadata: Json | None
    seq: int
    created_by: str | None
    # Set once. A task that was deleted and created again under the same ID differs from the first in this.
    created_at: datetime
    # The time of the latest event. It never runs backwards, whatever the clock does.
    updated_at: datetime
    # When progress was first reported; a task that ended without progress has none.
    started_at: datetime | None
    # Each final status has its own time, and no other.
    completed_at: datetime | None
    failed_at: datetime | None
    canceled_at: datetime | None
    # What it was asked for beside being reported on; None for most.
    plan: Plan | None = None
    # Known to the rules that made it. A task that was read has none: it is event number `seq`, one lookup away.
    last_event: Event | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What a subscriber is sent: what happened last, the task (at least as new as its events), and the events since the
    previous update.
    """

    type: UpdateType
    task: Task
    events: tuple[Event, ...]
    # Roughly the bytes of the events, for whoever keeps it; 0 for what is not kept.
    size: int = 0


_ENDINGS = {
    Status.SUCCESS: UpdateType.COMPLETE,
    Status.FAILED: UpdateType.FAIL,
    Status.CANCELED: UpdateType.CANCEL,
}


def size_of_events(events: Iterable[Event]) -> int:
    """Roughly how many bytes events keep in memory."""
    return sum(EVENT_BYTES + len(event.message) + len(event.metadata or "") for event in events)


def update_of(task: Task, events: tuple[Event, ...], size: int = 0) -> Update:
    """The update that these newest events of a task are. It is derived, so that the log tells the same story as the
    feed.
    """
    latest = events[-1]
    if latest.seq == task.seq and task.status.final:
        return Update(_ENDINGS[task.status], task, events, size)
    if latest.event_type is EventType.PROGRESS:
        return Update(UpdateType.PROGRESS, task, events, size)
    return Update(UpdateType.EVENT, task, events, size)
