"""The types of the schema. They describe values of the storage; those values themselves are what resolvers return.

Plain fields are read straight from the value by name. A description here is the reference that clients read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Final

import orjson
import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON
from strawberry.types.scalar import ScalarDefinition

import storage
from graphql_api.auth import Viewer
from graphql_api.context import Info
from storage import (
    BadInput,
    Counts,
    EventType,
    Filter,
    OnDependencyFailure,
    Permission,
    Status,
    TaskPage,
    TokenScope,
    UpdateType,
    cursor,
    history_range,
)

# As much of a wrong value as an error quotes.
QUOTED_CHARACTERS_MAX: Final = 64


def given(value: Any) -> Any:
    """An argument's value, None when it was left out."""
    return None if value is UNSET else value


def _utc(value: datetime) -> datetime:
    # The encoder writes it; it does so many times faster than `isoformat`.
    return value if value.tzinfo is UTC else value.astimezone(UTC)


def _instant(value: Any) -> datetime:
    """The instant that a client means. One without an offset would mean another on each machine."""
    try:
        instant = datetime.fromisoformat(value)
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        pass
    got = repr(value) if isinstance(value, str) and len(value) < QUOTED_CHARACTERS_MAX else "something else"
    raise BadInput(f"A DateTime must be ISO 8601 with an offset, like 2026-11-20T09:30:00Z, got {got}.")


SCALARS: Final[dict[object, ScalarDefinition]] = {
    datetime: strawberry.scalar(
        name="DateTime",
        description="An instant in UTC, as ISO 8601 with microseconds: `2026-11-20T09:30:00.123456Z`.",
        specified_by_url="https://scalars.graphql.org/andimarek/date-time",
        serialize=_utc,
        parse_value=_instant,
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="Any JSON value: object, list, string, number, boolean or null.",
        specified_by_url="https://ecma-international.org/wp-content/uploads/ECMA-404_2nd_edition_december_2017.pdf",
        # The text goes into the answer as it is; the encoder takes plain text only.
        serialize=lambda text: orjson.Fragment(str(text)),
    ),
}


def _enum(cls: type[Enum], name: str, description: str, values: dict[str, str]) -> None:
    """Give an enum of the storage its name, its sentence, and a sentence for each value."""
    strawberry.enum(cls, name=name, description=description)
    for value in cls.__strawberry_definition__.values:  # type: ignore[attr-defined]
        value.description = values[value.name]


_enum(
    Status,
    "TaskStatus",
    "Where a task is in its life. SUCCESS, FAILED and CANCELED are final.",
    {
        "PENDING": "Created, or given back, or to be tried again; nobody is at work on it.",
        "IN_PROGRESS": "Progress was reported, and the task has not ended.",
        "SUCCESS": "Ended by `complete`. Final.",
        "FAILED": "Ended by `fail`, or because its time or its attempts were spent; the last event says why. Final.",
        "CANCELED": "Ended by `cancel`, or because a task on which it depends did not succeed. Final.",
    },
)
_enum(
    EventType,
    "EventType",
    "What an event says about the work.",
    {
        "LOG": "Something worth noting.",
        "PROGRESS": "How far the work has come.",
        "ERROR": "Something went wrong; `fail` and `cancel` write one too.",
        "SUCCESS": "Something succeeded; `complete` writes one too.",
    },
)
_enum(
    OnDependencyFailure,
    "OnDependencyFailure",
    "What becomes of a task when one on which it depends fails, is canceled or is deleted.",
    {
        "CANCEL": "It is canceled, too.",
        "IGNORE": "It no longer waits for that one.",
    },
)
_enum(
    UpdateType,
    "TaskUpdateType",
    "What happened last in an update.",
    {
        "SNAPSHOT": "The task as it is now: the first message of every subscription, and the next ones too when "
        "there are many events after `afterSeq`.",
        "EVENT": "The latest event is of any type but PROGRESS.",
        "PROGRESS": "The latest event is of type PROGRESS, as `updateProgress` writes it.",
        "COMPLETE": "The task succeeded. The last message.",
        "FAIL": "The task failed. The last message.",
        "CANCEL": "The task was canceled. The last message.",
        "DELETE": "The task was deleted with its history. The last message.",
    },
)
_enum(
    Permission,
    "Permission",
    "What a caller may do.",
    {
        "READ": "Read and watch a task whose ID one knows.",
        "REPORT": "Report on a task whose ID one knows: events, progress, its end.",
        "CREATE": "Create tasks.",
        "LIST": "List tasks.",
        "DELETE": "Delete tasks.",
        "ADMIN": "All of these.",
    },
)
_enum(
    TokenScope,
    "TokenScope",
    "What a task token opens its task for.",
    {
        "READ": "Reading and watching: for viewers.",
        "REPORT": "Reporting, and reading, too: for workers.",
    },
)


def _event_id(event: strawberry.Parent[storage.Event]) -> strawberry.ID:
    return strawberry.ID(f"{event.task_id}:{event.seq}")


@strawberry.type(description="One line of a task's log. It never changes.")
class TaskEvent:
    """An event; the value is a ``storage.Event``."""

    id: strawberry.ID = strawberry.field(
        resolver=_event_id, description="The key for client caches; unique among the events of all tasks."
    )
    seq: int = strawberry.field(description="Its number: 1, 2, 3 … per task, without a gap.")
    event_type: EventType = strawberry.field(description="What it says about the work.")
    message: str = strawberry.field(description="What happened, in words.")
    progress: int | None = strawberry.field(description="The progress that was reported with it, 0 to 100.")
    metadata: JSON | None = strawberry.field(description="What the reporter attached.")
    timestamp: datetime = strawberry.field(description="When it was written. Times of one task never run backwards.")
    actor: str | None = strawberry.field(
        description="Who reported it: the name of the API key, the token's `sub`, or `task-token:` and who made the "
        "task token. Null for somebody without a credential, and for what nobody reported: that a time has come, or "
        "that another task has ended."
    )


def _task_id(task: strawberry.Parent[storage.Task]) -> strawberry.ID:
    return strawberry.ID(task.task_id)


# What is said in the place of an event that nobody can read any more.
_GONE: Final = "The task was deleted, and its log with it."


async def _last_event(task: strawberry.Parent[storage.Task], info: Info) -> storage.Event:
    if task.last_event is not None:
        return task.last_event
    for event in await info.context.events(task.task_id, task.seq, task.seq):
        if _is_of(task, event):
            return event
    # An error here would take from a list all its other tasks, and from a subscriber the news of the deletion.
    return storage.Event(task.task_id, task.seq, EventType.LOG, _GONE, None, None, task.updated_at)


async def _history(
    task: strawberry.Parent[storage.Task],
    info: Info,
    first: Annotated[int | None, strawberry.argument(description="So many, the oldest: 1 to 1,000.")] = UNSET,
    last: Annotated[int | None, strawberry.argument(description="So many, the newest: 1 to 1,000.")] = UNSET,
    after: Annotated[int | None, strawberry.argument(description="Only events with a larger number.")] = UNSET,
    before: Annotated[int | None, strawberry.argument(description="Only events with a smaller number.")] = UNSET,
) -> Sequence[storage.Event]:
    first_seq, last_seq = history_range(task, given(first), given(last), given(after), given(before))
    events = await info.context.events(task.task_id, first_seq, last_seq)
    return events if not events or _is_of(task, events[-1]) else ()


def _is_of(task: storage.Task, event: storage.Event) -> bool:
    """Whether an event that was found is of this task, and not of a later one under the same ID."""
    return task.created_at <= event.timestamp <= task.updated_at


def _of_plan(name: str, type_: Any, without: Any, description: str) -> Any:
    """A field of a task's plan; tasks that were created without options have none."""

    def resolve(task: strawberry.Parent[storage.Task]) -> Any:
        return without if task.plan is None else getattr(task.plan, name)

    return strawberry.field(resolver=resolve, graphql_type=type_, description=description)


def _stale(task: strawberry.Parent[storage.Task]) -> bool:
    plan = task.plan
    return plan is not None and plan.lease_expires_at is not None and plan.lease_expires_at < datetime.now(UTC)


@strawberry.type(description="A long-running task.")
class Task:
    """A task; the value is a ``storage.Task``."""

    id: strawberry.ID = strawberry.field(resolver=_task_id, description="The key for client caches; equals `taskId`.")
    task_id: strawberry.ID = strawberry.field(description="The ID that its creator chose.")
    status: Status = strawberry.field(description="Where it is in its life.")
    progress: int = strawberry.field(description="How far it has come, 0 to 100.")
    metadata: JSON | None = strawberry.field(description="What its creator attached.")
    seq: int = strawberry.field(description="The number of its latest event. It grows with every change.")
    last_event = strawberry.field(
        resolver=_last_event,
        graphql_type=TaskEvent,
        description="Its latest event: number `seq`. When the task is deleted, and its log gone with it, one in its "
        "place that says so.",
    )
    history = strawberry.field(
        resolver=_history,
        graphql_type=list[TaskEvent],
        description="Its events up to number `seq`, oldest first. Without `first` and `last`: the newest 50. "
        "None when the task is deleted.",
    )
    created_by: str | None = strawberry.field(
        description="Who created it: the name of the API key, or the token's `sub`."
    )
    created_at: datetime = strawberry.field(
        description="When it was created. A task that was deleted and created again under the same ID differs in this."
    )
    updated_at: datetime = strawberry.field(description="When its latest event was written.")
    started_at: datetime | None = strawberry.field(description="When it was first claimed, or progress first reported.")
    completed_at: datetime | None = strawberry.field(description="When it succeeded.")
    failed_at: datetime | None = strawberry.field(description="When it failed.")
    canceled_at: datetime | None = strawberry.field(description="When it was canceled.")
    tags = _of_plan("tags", list[str], (), "Words to find it by, as given at creation.")
    queue = _of_plan("queue", str | None, None, "The queue from which workers claim it; null: nobody can.")
    priority = _of_plan("priority", int, 0, "Higher ones are claimed first.")
    start_at = _of_plan("start_at", datetime | None, None, "It is not claimed before.")
    depends_on = _of_plan("depends_on", list[strawberry.ID], (), "The tasks on which it depends.")
    blocked_by = _of_plan("blocked_by", list[strawberry.ID], (), "Those of `dependsOn` that have not succeeded.")
    attempt = _of_plan(
        "attempt", int, 0, "The number of the attempt that is made, or was made last; 0 before the first."
    )
    max_attempts = _of_plan("max_attempts", int, 1, "How often it is tried.")
    next_attempt_at = _of_plan(
        "next_attempt_at", datetime | None, None, "After an attempt that failed: the next is not claimed before."
    )
    worker = _of_plan("worker", str | None, None, "Who has claimed it, while the lease holds.")
    lease_expires_at = _of_plan("lease_expires_at", datetime | None, None, "When the lease runs out.")
    stale = strawberry.field(
        resolver=_stale,
        description="Whether its lease has run out and nothing was made of that yet, as of the moment of reading.",
    )
    expires_at = _of_plan("expires_at", datetime | None, None, "It fails if it has not ended by then.")
    delete_at = _of_plan(
        "delete_at", datetime | None, None, "When it will be deleted, once it has ended, if its options say so."
    )


@strawberry.type(description="What a subscriber is sent: one message for each commit that touched the task.")
class TaskUpdate:
    """An update; the value is a ``storage.Update``."""

    type: UpdateType = strawberry.field(description="What happened last.")
    task: Task = strawberry.field(description="The task, at least as new as the events.")
    events: list[TaskEvent] = strawberry.field(
        description="The events since the previous message, oldest first: the first is number last seen + 1."
    )


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the list, with what was asked for."""

    found: TaskPage
    wanted: Filter


def _edges(page: strawberry.Parent[Page]) -> Sequence[storage.Task]:
    return page.found.tasks


def _cursor(task: strawberry.Parent[storage.Task]) -> str:
    return cursor(task)


def _node(task: strawberry.Parent[storage.Task]) -> storage.Task:
    return task


@strawberry.type(description="A task in a list, with its place there.")
class TaskEdge:
    """A place in the list; the value is the ``storage.Task`` in it."""

    cursor = strawberry.field(resolver=_cursor, description="Its place in the list; pass it as `after`.")
    node = strawberry.field(resolver=_node, graphql_type=Task, description="The task.")


def _has_next_page(page: strawberry.Parent[Page]) -> bool:
    return page.found.has_next


def _has_previous_page(page: strawberry.Parent[Page]) -> bool:
    return page.found.has_previous


def _start_cursor(page: strawberry.Parent[Page]) -> str | None:
    return cursor(page.found.tasks[0]) if page.found.tasks else None


def _end_cursor(page: strawberry.Parent[Page]) -> str | None:
    return cursor(page.found.tasks[-1]) if page.found.tasks else None


@strawberry.type(description="Where a page stands in its list.")
class PageInfo:
    """The place of a page; the value is the ``Page``."""

    has_next_page = strawberry.field(resolver=_has_next_page, description="Whether there are more after this page.")
    has_previous_page = strawberry.field(
        resolver=_has_previous_page,
        description="Whether this page was asked for with `after`, so that others precede it.",
    )
    start_cursor = strawberry.field(resolver=_start_cursor, description="The place of the page's first task.")
    end_cursor = strawberry.field(
        resolver=_end_cursor, description="The place of the page's last task; pass it as `after` for the next page."
    )


def _page(page: strawberry.Parent[Page]) -> Page:
    return page


async def _total_count(page: strawberry.Parent[Page], info: Info) -> int:
    return await info.context.storage.reader.count(page.wanted)


@strawberry.type(description="A page of a list of tasks.")
class TaskConnection:
    """A page; the value is a ``Page``."""

    edges = strawberry.field(resolver=_edges, graphql_type=list[TaskEdge], description="The tasks with their places.")
    nodes = strawberry.field(resolver=_edges, graphql_type=list[Task], description="The tasks alone.")
    page_info = strawberry.field(resolver=_page, graphql_type=PageInfo, description="Where this page stands.")
    total_count = strawberry.field(
        resolver=_total_count,
        description="How many tasks the whole list has. Without a filter, and with one by `status` alone, it is known; "
        "with any other it is counted when it is selected, which may take longer than the page.",
    )


def _total(counts: strawberry.Parent[Counts]) -> int:
    return counts.total


@strawberry.type(description="How many tasks there are.")
class TaskStats:
    """Numbers of tasks; the value is the storage's ``Counts``."""

    total = strawberry.field(resolver=_total, description="In whatever status.")
    pending: int = strawberry.field(description="PENDING ones.")
    in_progress: int = strawberry.field(description="IN_PROGRESS ones.")
    success: int = strawberry.field(description="SUCCESS ones.")
    failed: int = strawberry.field(description="FAILED ones.")
    canceled: int = strawberry.field(description="CANCELED ones.")


def _permissions(viewer: strawberry.Parent[Viewer]) -> list[Permission]:
    return viewer.may


def _only_task_id(viewer: strawberry.Parent[Viewer]) -> strawberry.ID | None:
    return None if viewer.task_id is None else strawberry.ID(viewer.task_id)


@strawberry.type(name="Viewer", description="Whoever sends the operation.")
class ViewerType:
    """Who calls; the value is a ``Viewer``."""

    name: str | None = strawberry.field(
        description="The name of the API key, the token's `sub`, or `task-token:` and who made the task token."
    )
    authenticated: bool = strawberry.field(description="Whether there was a credential, and it was good.")
    permissions = strawberry.field(
        resolver=_permissions,
        description="What this caller may do, with what everybody may; with a task token, on its task.",
    )
    task_id = strawberry.field(
        resolver=_only_task_id, description="The one task that a task token is for; null for all other callers."
    )


@strawberry.type(name="TaskToken", description="A credential for one task.")
class IssuedTaskToken:
    """A task token that was made."""

    token: str = strawberry.field(
        description='The token, which is sent as "Authorization: Bearer …". It is shown this once and kept nowhere.'
    )
    expires_at: datetime = strawberry.field(description="Until when it is good.")


@strawberry.input(description="An event to write into a task's log.")
class EventInput:
    """An event of the caller's own."""

    event_type: EventType = strawberry.field(description="What it says about the work.")
    message: str = strawberry.field(description="What happened, in words; at most 64 KB.")
    progress: int | None = strawberry.field(
        default=UNSET, description="How far the work has come, 0 to 100. Reporting it starts a pending task."
    )
    metadata: JSON | None = strawberry.field(default=UNSET, description="Anything to attach; at most 256 KB as JSON.")
