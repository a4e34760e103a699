"""The rules: which command a task in which status allows, and what becomes of it.

Pure functions of ``(task, command, now)``: no clock, no chance, no SQL, no GraphQL. ``TRANSITIONS`` is the whole truth
about statuses; the diagram in ``docs/lifecycle.md`` is made from it.

What time and other tasks do to a task are commands like those of clients: ``Tick`` and ``Settle``.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from zlib import crc32

from storage.commands import (
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    Fail,
    Heartbeat,
    Lease,
    Release,
    Report,
    Settle,
    Tick,
    UpdateProgress,
)
from storage.errors import LeaseLost, TaskAlreadyExists, TaskFinished, TaskNotFound, TooLarge
from storage.limits import PROGRESS_MAX, SEQ_MAX
from storage.options import Options
from storage.plan import begun, ended, pause_s, timed, unclaimed, without
from storage.task import FINAL, Event, EventType, Json, OnDependencyFailure, Outcome, Plan, Status, Task


class Move(StrEnum):
    """What a report means to the status. The value completes the sentence "the task can no longer …"."""

    NOTE = "take events"
    PROGRESS = "report progress"
    COMPLETE = "be completed"
    FAIL = "be failed"
    CANCEL = "be canceled"
    CLAIM = "be claimed"
    RELEASE = "be given back"
    # An attempt is over without success, and another one is left.
    RETRY = "be tried again"
    # Time has ended it: it expired, or a lease ran out and no attempt is left.
    TIME_OUT = "run out of time"


# A status that is missing from a row refuses the move: no report leaves a final status.
TRANSITIONS: Final[Mapping[Move, Mapping[Status, Status]]] = {
    Move.NOTE: {Status.PENDING: Status.PENDING, Status.IN_PROGRESS: Status.IN_PROGRESS},
    Move.PROGRESS: {Status.PENDING: Status.IN_PROGRESS, Status.IN_PROGRESS: Status.IN_PROGRESS},
    Move.COMPLETE: {Status.PENDING: Status.SUCCESS, Status.IN_PROGRESS: Status.SUCCESS},
    Move.FAIL: {Status.PENDING: Status.FAILED, Status.IN_PROGRESS: Status.FAILED},
    Move.CANCEL: {Status.PENDING: Status.CANCELED, Status.IN_PROGRESS: Status.CANCELED},
    Move.CLAIM: {Status.PENDING: Status.IN_PROGRESS},
    Move.RELEASE: {Status.IN_PROGRESS: Status.PENDING},
    Move.RETRY: {Status.PENDING: Status.PENDING, Status.IN_PROGRESS: Status.PENDING},
    Move.TIME_OUT: {Status.PENDING: Status.FAILED, Status.IN_PROGRESS: Status.FAILED},
}

# The time that a status sets when it is entered, for the first time.
ENTERED_AT: Final[Mapping[Status, str]] = {
    Status.IN_PROGRESS: "started_at",
    Status.SUCCESS: "completed_at",
    Status.FAILED: "failed_at",
    Status.CANCELED: "canceled_at",
}


# From PENDING, these are an attempt of their own: whoever says how the work ended has tried.
_ATTEMPTS: Final = frozenset({Move.PROGRESS, Move.COMPLETE, Move.FAIL, Move.RETRY, Move.CLAIM})
# Born in one of these, a task has been tried.
_TRIED: Final = frozenset({Status.IN_PROGRESS, Status.SUCCESS, Status.FAILED})
_NOBODY: Final[Mapping[str, Status]] = {}


def decide(task: Task | None, command: Command, now: datetime, others: Mapping[str, Status] = _NOBODY) -> Task | None:
    """What the command makes of the task (None: there is none), or the refusal that it meets.

    The event that it adds is the ``last_event`` of the task that comes back. A heartbeat adds none, nor does a tick
    that only makes a task ready; and the very same task comes back when nothing is to be done. The `others` are the
    statuses of tasks on which a new one depends, as far as they are known.
    """
    if isinstance(command, Report):
        if task is None:
            raise TaskNotFound(command.task_id)
        return _report(task, command, now)
    if isinstance(command, Create):
        return _create(task, command, now, others)
    if task is None:
        raise TaskNotFound(command.task_id)
    match command:
        case Delete(wanted=wanted):
            return None if wanted is None or wanted.matches(task, now) else task
        case Lease():
            return _lease(task, command, now)
        case Heartbeat():
            return _heartbeat(task, command, now)
        case Release():
            return _release(task, command, now)
        case Tick():
            return _tick(task, command, now)
        case Settle():
            return _settle(task, command, now)
        case _:
            raise AssertionError(f"{type(command).__name__} has no rule")


def _create(task: Task | None, command: Create, now: datetime, others: Mapping[str, Status]) -> Task:
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
        plan=None if command.options is None else _plan(command.options, command.status, now, others),
        last_event=Event(
            command.task_id, 1, EventType.LOG, "Task created", None, command.metadata_json, now, command.created_by
        ),
    )


def _plan(options: Options, status: Status, now: datetime, others: Mapping[str, Status]) -> Plan:
    def over(task_id: str) -> bool:
        other = others.get(task_id)
        if options.on_dependency_failure is OnDependencyFailure.IGNORE:
            return other in FINAL
        return other is Status.SUCCESS

    plan = Plan(
        tags=tuple(options.tags),
        queue=options.queue,
        priority=options.priority,
        start_at=None if options.start_at is None else max(options.start_at, now),
        depends_on=tuple(options.depends_on),
        on_dependency_failure=options.on_dependency_failure,
        max_attempts=options.retry.max_attempts,
        retry_initial_s=options.retry.initial_s,
        retry_max_s=options.retry.max_s,
        retry_factor=options.retry.factor,
        expires_at=options.expires_at,
        keep_for_s=options.keep_for_s,
        blocked_by=tuple(task_id for task_id in options.depends_on if not over(task_id)),
        attempt=int(status in _TRIED),
        next_attempt_at=None,
        ready=False,
        worker=None,
        lease_expires_at=None,
        lease_token=None,
        delete_at=None,
        due_at=None,
    )
    return timed(ended(plan, now) if status.final else plan, status, now)


def _report(task: Task, command: Report, now: datetime) -> Task:
    move, event_type, message, progress = _meaning(command)
    plan = task.plan
    if command.token is not None and (plan is None or plan.lease_token != command.token):
        raise LeaseLost(task.task_id)
    if plan is None:
        return _moved(task, move, now, event_type, message, progress, command.metadata_json, command.actor)
    if move is Move.FAIL and _attempts_left(task, plan):
        move, progress = Move.RETRY, 0
    moved = _moved(task, move, now, event_type, message, progress, command.metadata_json, command.actor)
    if moved.status is task.status and move is not Move.RETRY:
        # Most reports: what time makes of the task is for a tick to say.
        return moved
    now = moved.updated_at
    if task.status is Status.PENDING and move in _ATTEMPTS:
        plan = begun(plan)
    if move is Move.RETRY:
        pause = timedelta(seconds=pause_s(plan, _chance(moved)))
        plan = unclaimed(plan)._replace(next_attempt_at=now + pause)
    elif moved.status.final:
        plan = ended(plan, now)
    return moved._replace(plan=timed(plan, moved.status, now))


def _attempts_left(task: Task, plan: Plan) -> bool:
    """Whether another attempt is left after the one under way, which a report on a PENDING task stands for."""
    return not task.status.final and plan.attempt + (task.status is Status.PENDING) < plan.max_attempts


def _chance(task: Task) -> float:
    """A number from 0 to 1 that differs between tasks and attempts, and is no secret; real chance is not for rules."""
    return crc32(f"{task.seq} {task.task_id}".encode()) / 0xFFFFFFFF


def _lease(task: Task, command: Lease, now: datetime) -> Task:
    plan = task.plan
    assert plan is not None and plan.ready, "only what is ready is found by a claimer"
    plan = begun(plan)
    message = f'Claimed by "{command.worker}", attempt {plan.attempt} of {plan.max_attempts}'
    moved = _moved(task, Move.CLAIM, now, EventType.LOG, message, actor=command.actor)
    # From the clock, not from the event: where the two differ, it is the clock by which the lease runs out.
    plan = plan._replace(
        worker=command.worker,
        lease_token=command.token,
        lease_expires_at=now + timedelta(seconds=command.lease_s),
    )
    return moved._replace(plan=timed(plan, moved.status, now))


def _heartbeat(task: Task, command: Heartbeat, now: datetime) -> Task:
    plan = task.plan
    if plan is None or plan.lease_token != command.token:
        raise LeaseLost(task.task_id)
    if not plan.claimed:
        # It has ended, perhaps by somebody else's word; the worker sees that by the status.
        return task
    plan = plan._replace(lease_expires_at=now + timedelta(seconds=command.lease_s))
    return task._replace(plan=timed(plan, task.status, now))


def _release(task: Task, command: Release, now: datetime) -> Task:
    plan = task.plan
    if plan is None or plan.lease_token != command.token:
        raise LeaseLost(task.task_id)
    message = f'Given back by "{plan.worker}"'
    moved = _moved(task, Move.RELEASE, now, EventType.LOG, message, 0, actor=command.actor)
    plan = unclaimed(plan)._replace(attempt=plan.attempt - 1)
    return moved._replace(plan=timed(plan, moved.status, now))


def _tick(task: Task, command: Tick, now: datetime) -> Task | None:
    plan = task.plan
    if task.status.final:
        return None if _to_be_deleted(task, plan, command.keep_finished_s, now) else task
    if plan is None:
        return task
    if plan.expires_at is not None and plan.expires_at <= now:
        return _timed_out(task, plan, f"Expired: it had not ended by {plan.expires_at.isoformat()}", now)
    if plan.lease_expires_at is not None and plan.lease_expires_at <= now:
        lapse = f'The lease of "{plan.worker}" ran out in attempt {plan.attempt} of {plan.max_attempts}'
        if not _attempts_left(task, plan):
            return _timed_out(task, plan, lapse, now)
        moved = _moved(task, Move.RETRY, now, EventType.ERROR, lapse, 0)
        return moved._replace(plan=timed(unclaimed(plan), moved.status, now))
    after = timed(plan, task.status, now)
    return task if after == plan else task._replace(plan=after)


def _timed_out(task: Task, plan: Plan, why: str, now: datetime) -> Task:
    moved = _moved(task, Move.TIME_OUT, now, EventType.ERROR, why)
    return moved._replace(plan=timed(ended(plan, moved.updated_at), moved.status, now))


def _to_be_deleted(task: Task, plan: Plan | None, keep_finished_s: int | None, now: datetime) -> bool:
    if plan is not None and plan.delete_at is not None:
        return plan.delete_at <= now
    ended_at = task.completed_at or task.failed_at or task.canceled_at
    assert ended_at is not None
    return keep_finished_s is not None and ended_at + timedelta(seconds=keep_finished_s) <= now


_HAS: Final[Mapping[Outcome, str]] = {
    Outcome.SUCCESS: "has succeeded",
    Outcome.FAILED: "has failed",
    Outcome.CANCELED: "was canceled",
    Outcome.DELETED: "was deleted",
}


def _settle(task: Task, command: Settle, now: datetime) -> Task:
    plan = task.plan
    if task.status.final or plan is None or command.on not in plan.blocked_by:
        return task
    what = f'"{command.on}", on which this task depends, {_HAS[command.outcome]}'
    if command.outcome is not Outcome.SUCCESS and plan.on_dependency_failure is OnDependencyFailure.CANCEL:
        moved = _moved(task, Move.CANCEL, now, EventType.ERROR, f"Task canceled: {what}")
        plan = ended(plan, moved.updated_at)
    else:
        moved = _moved(task, Move.NOTE, now, EventType.LOG, what)
        plan = plan._replace(blocked_by=without(plan.blocked_by, command.on))
    return moved._replace(plan=timed(plan, moved.status, now))


def _moved(
    task: Task,
    move: Move,
    now: datetime,
    event_type: EventType,
    message: str,
    progress: int | None = None,
    metadata: Json | None = None,
    actor: str | None = None,
) -> Task:
    """The task one event later, in the status to which the move leads, with the plan that it had."""
    status = TRANSITIONS[move].get(task.status)
    if status is None:
        raise TaskFinished(task.task_id, task.status, move)
    if task.seq >= SEQ_MAX:
        raise TooLarge(f'Task "{task.task_id}" has {SEQ_MAX} events and can take no more.')
    # Clocks jump, and machines disagree; the times of one task's events never run backwards.
    if now < task.updated_at:
        now = task.updated_at
    seq = task.seq + 1
    event = Event(task.task_id, seq, event_type, message, progress, metadata, now, actor)
    # One after the other: a copy with changes by name takes five times as long, and most reports change no more.
    moved = Task(
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
        task.plan,
        event,
    )
    if status is task.status:
        return moved
    time = ENTERED_AT.get(status)
    if time is None or getattr(task, time) is not None:
        return moved
    entered: dict[str, Any] = {time: now}
    return moved._replace(**entered)


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
