"""The rules: which command a task in which status allows, and what becomes of it.

Pure functions of ``(task, command, now)``: no clock, no SQL, no GraphQL. ``TRANSITIONS`` is the whole truth about
statuses; the diagram in ``docs/lifecycle.md`` is made from it.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from storage.commands import AddEvent, Cancel, Command, Complete, Create, Delete, Fail, Report, UpdateProgress
from storage.errors import TaskAlreadyExists, TaskFinished, TaskNotFound, TooLarge
from storage.limits import PROGRESS_MAX, SEQ_MAX
from storage.task import Event, EventType, Status, Task


class Move(StrEnum):
    """What a report means to the status. The value completes the sentence "the task can no longer …"."""

    NOTE = "take events"
    PROGRESS = "report progress"
    COMPLETE = "be completed"
    FAIL = "be failed"
    CANCEL = "be canceled"


# A status that is missing from a row refuses the move: no report leaves a final status.
TRANSITIONS: Final[Mapping[Move, Mapping[Status, Status]]] = {
    Move.NOTE: {Status.PENDING: Status.PENDING, Status.IN_PROGRESS: Status.IN_PROGRESS},
    Move.PROGRESS: {Status.PENDING: Status.IN_PROGRESS, Status.IN_PROGRESS: Status.IN_PROGRESS},
    Move.COMPLETE: {Status.PENDING: Status.SUCCESS, Status.IN_PROGRESS: Status.SUCCESS},
    Move.FAIL: {Status.PENDING: Status.FAILED, Status.IN_PROGRESS: Status.FAILED},
    Move.CANCEL: {Status.PENDING: Status.CANCELED, Status.IN_PROGRESS: Status.CANCELED},
}

# The time that a status sets when it is entered.
ENTERED_AT: Final[Mapping[Status, str]] = {
    Status.IN_PROGRESS: "started_at",
    Status.SUCCESS: "completed_at",
    Status.FAILED: "failed_at",
    Status.CANCELED: "canceled_at",
}


def decide(task: Task | None, command: Command, now: datetime) -> Task | None:
    """What the command makes of the task (None: there is none), or the refusal that it meets.

    The event that a report or a creation adds is the ``last_event`` of the task that comes back.
    """
    if isinstance(command, Report):
        if task is None:
            raise TaskNotFound(command.task_id)
        return _report(task, command, now)
    if isinstance(command, Create):
        return _create(task, command, now)
    assert isinstance(command, Delete)
    if task is None:
        raise TaskNotFound(command.task_id)
    return None


def _create(task: Task | None, command: Create, now: datetime) -> Task:
    if task is not None:
        raise TaskAlreadyExists(command.task_id)
    times: dict[str, datetime] = {}
    if command.status in ENTERED_AT:
        times[ENTERED_AT[command.status]] = now
    return Task(
        task_id=command.task_id,
        status=command.status,
        # As `complete` has it: what has succeeded is done.
        progress=PROGRESS_MAX if command.status is Status.SUCCESS else command.progress,
        metadata=command.metadata_json,
        seq=1,
        created_by=command.created_by,
        created_at=now,
        updated_at=now,
        started_at=times.get("started_at"),
        completed_at=times.get("completed_at"),
        failed_at=times.get("failed_at"),
        canceled_at=times.get("canceled_at"),
        last_event=Event(
            command.task_id, 1, EventType.LOG, "Task created", None, command.metadata_json, now, command.created_by
        ),
    )


def _report(task: Task, command: Report, now: datetime) -> Task:
    move, event_type, message, progress = _meaning(command)
    status = TRANSITIONS[move].get(task.status)
    if status is None:
        raise TaskFinished(task.task_id, task.status, move)
    if task.seq >= SEQ_MAX:
        raise TooLarge(f'Task "{task.task_id}" has {SEQ_MAX} events and can take no more.')
    # Clocks jump, and machines disagree; the times of one task's events never run backwards.
    if now < task.updated_at:
        now = task.updated_at
    seq = task.seq + 1
    event = Event(task.task_id, seq, event_type, message, progress, command.metadata_json, now, command.actor)
    # One after the other: a copy with changes by name takes five times as long, and most reports change no more.
    reported = Task(
        task.task_id,
        status,
        task.progress if progress is None else progress,
        task.metadata,
        seq,
        task.created_by,
        task.created_at,
        now,
        task.started_at,
        task.completed_at,
        task.failed_at,
        task.canceled_at,
        event,
    )
    if status is task.status:
        return reported
    entered: dict[str, Any] = {ENTERED_AT[status]: now}
    return reported._replace(**entered)


def _meaning(command: Report) -> tuple[Move, EventType, str, int | None]:
    match command:
        case UpdateProgress(progress=progress):
            return Move.PROGRESS, EventType.PROGRESS, f"Progress updated to {progress}%", progress
        case AddEvent(progress=None):
            return Move.NOTE, command.event_type, command.message, None
        case AddEvent(progress=progress):
            return Move.PROGRESS, command.event_type, command.message, progress
        case Complete():
            return Move.COMPLETE, EventType.SUCCESS, "Task completed successfully", PROGRESS_MAX
        case Fail(error=error):
            return Move.FAIL, EventType.ERROR, error, None
        case Cancel():
            return Move.CANCEL, EventType.ERROR, "Task canceled", None
        case _:
            raise AssertionError(f"{type(command).__name__} has no meaning")
