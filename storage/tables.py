"""The tables, and the invariants that no bug may break.

``task_id`` is part of every key of tasks, events and dependencies, so that these tables can be spread over machines by
it. Events carry no foreign key to their task: the writer adds and removes both under the task's row lock, and a foreign
key would lock that row once more for each event.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from storage.task import Event, EventType, Json, OnDependencyFailure, Plan, Status, Task

schema = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "ck": "%(table_name)s_%(constraint_name)s",
    }
)

# Byte order: the same on every machine, and no operating system update can reorder an index.
_Name = Text(collation="C")
_LISTED: Final = 'COLLATE "POSIX"'
_Time = DateTime(timezone=True)

tasks = Table(
    "tasks",
    schema,
    Column("task_id", _Name, nullable=False),
    Column("status", Text, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("metadata", JSONB(none_as_null=True)),
    Column("seq", BigInteger, nullable=False),
    Column("created_by", Text),
    Column("created_at", _Time, nullable=False),
    Column("updated_at", _Time, nullable=False),
    Column("started_at", _Time),
    Column("completed_at", _Time),
    Column("failed_at", _Time),
    Column("canceled_at", _Time),
    # The plan, in the order of its fields; NULL in all of it for a task without one, which `max_attempts` tells.
    Column("tags", ARRAY(Text)),
    Column("queue", _Name),
    Column("priority", Integer),
    Column("start_at", _Time),
    Column("depends_on", ARRAY(Text)),
    Column("on_dependency_failure", Text),
    Column("max_attempts", Integer),
    Column("retry_initial_s", Integer),
    Column("retry_max_s", Integer),
    Column("retry_factor", Double),
    Column("expires_at", _Time),
    Column("keep_for_s", Integer),
    Column("blocked_by", ARRAY(Text)),
    Column("attempt", Integer),
    Column("next_attempt_at", _Time),
    Column("ready", Boolean),
    Column("worker", Text),
    Column("lease_expires_at", _Time),
    Column("lease_token", Text),
    Column("delete_at", _Time),
    Column("due_at", _Time),
    # Whether others depend on it, so that an end is told to them; never unset. Only the writer reads it.
    Column("depended_on", Boolean),
    PrimaryKeyConstraint("task_id"),
    CheckConstraint("status IN ('PENDING', 'IN_PROGRESS', 'SUCCESS', 'FAILED', 'CANCELED')", name="status"),
    CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
    CheckConstraint("seq >= 1", name="seq"),
    CheckConstraint("updated_at >= created_at", name="updated_at"),
    # Each final status has its own time and no other; work in progress has started.
    CheckConstraint("(status = 'SUCCESS') = (completed_at IS NOT NULL)", name="completed_at"),
    CheckConstraint("(status = 'FAILED') = (failed_at IS NOT NULL)", name="failed_at"),
    CheckConstraint("(status = 'CANCELED') = (canceled_at IS NOT NULL)", name="canceled_at"),
    CheckConstraint("status <> 'IN_PROGRESS' OR started_at IS NOT NULL", name="started_at"),
    CheckConstraint(
        "num_nulls(tags, priority, depends_on, on_dependency_failure, max_attempts, retry_initial_s, retry_max_s,"
        " retry_factor, blocked_by, attempt, ready) IN (0, 11)",
        name="plan",
    ),
    CheckConstraint("attempt BETWEEN 0 AND max_attempts", name="attempt"),
    # Who waits for another attempt has one left.
    CheckConstraint("status <> 'PENDING' OR attempt < max_attempts", name="attempts_left"),
    CheckConstraint("NOT ready OR (status = 'PENDING' AND queue IS NOT NULL AND blocked_by = '{}')", name="ready"),
    # A lease is somebody's, until some time, with a token, for work in progress. The token may outlive it.
    CheckConstraint("num_nulls(worker, lease_expires_at) IN (0, 2)", name="worker"),
    CheckConstraint("lease_expires_at IS NULL OR (status = 'IN_PROGRESS' AND lease_token IS NOT NULL)", name="lease"),
    # The list, newest first, whole and by status. Neither holds what a report changes, except a change of status.
    # Under another name for the same order, which no search for a task_id asks for: while a table is small, PostgreSQL
    # would look for one task in these as readily as in the index of the key, and keep to it when the table has grown.
    Index(None, "created_at", "task_id", postgresql_ops={"task_id": _LISTED}),
    Index(None, "status", "created_at", "task_id", postgresql_ops={"task_id": _LISTED}),
    # Who asks for somebody's tasks, or for those of a queue, asks for some statuses of them, or is shown all merged.
    Index(
        "tasks_created_by",
        "created_by",
        "status",
        "created_at",
        "task_id",
        postgresql_ops={"task_id": _LISTED},
        postgresql_where=text("created_by IS NOT NULL"),
    ),
    Index(
        "tasks_queue",
        "queue",
        "status",
        "created_at",
        "task_id",
        postgresql_ops={"queue": _LISTED, "task_id": _LISTED},
        postgresql_where=text("queue IS NOT NULL"),
    ),
    # A search waits for nothing that was put off, and no report has to do what others have put off.
    Index(
        "tasks_tags",
        "tags",
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
        postgresql_where=text("tags <> '{}'"),
    ),
    # What a worker claims next.
    Index("tasks_ready", "queue", text("priority DESC"), "created_at", "task_id", postgresql_where=text("ready")),
    # What time itself changes next, and what it deletes next: of those there may be many, which nothing else waits for.
    Index("tasks_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL AND delete_at IS NULL")),
    Index("tasks_delete_at", "delete_at", postgresql_where=text("delete_at IS NOT NULL")),
    # The ended ones that do not say how long they are to be kept, oldest end first.
    Index(
        "tasks_ended_at",
        text("(COALESCE(completed_at, failed_at, canceled_at))"),
        postgresql_where=text("keep_for_s IS NULL AND COALESCE(completed_at, failed_at, canceled_at) IS NOT NULL"),
    ),
    # Room on each page for the new versions of its rows, so that an update touches no index.
    postgresql_with={"fillfactor": "70"},
)

task_events = Table(
    "task_events",
    schema,
    Column("task_id", _Name, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("progress", Integer),
    Column("metadata", JSONB(none_as_null=True)),
    Column("timestamp", _Time, nullable=False),
    # The bytes of message and metadata as they are read, so that a reader can stop before it holds too many.
    Column("size", Integer, nullable=False, server_default=text("0")),
    # The key that a client gave with the report, and what it stood for.
    Column("idempotency_key", _Name),
    Column("fingerprint", LargeBinary),
    # Who reported it; NULL for somebody without a credential, and in what is older than the column.
    Column("actor", Text),
    PrimaryKeyConstraint("task_id", "seq"),
    CheckConstraint("seq >= 1", name="seq"),
    CheckConstraint("event_type IN ('LOG', 'PROGRESS', 'ERROR', 'SUCCESS')", name="event_type"),
    CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
    CheckConstraint("(idempotency_key IS NULL) = (fingerprint IS NULL)", name="fingerprint"),
    Index(
        None,
        "task_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    # What tasks were created with, which their first events have, too. There it never changes; in an index of tasks
    # each change of a status would write all of it again.
    Index(
        "task_events_created_with",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_with={"fastupdate": "off"},
        postgresql_where=text("seq = 1 AND metadata IS NOT NULL"),
    ),
    # Which tasks were changed lately: events are added at the end, so an index of the times on each part of the table
    # is a thousandth of its size, and costs an event nothing.
    Index(
        "task_events_timestamp",
        "timestamp",
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on", "pages_per_range": "32"},
    ),
)

# How many tasks are in each status: the sum of these rows. Each group of changes adds what it has changed of it as a
# row of its own, in its transaction, so that no two groups wait for each other; the timers put rows together.
task_counts = Table(
    "task_counts",
    schema,
    Column("id", BigInteger, Identity(), nullable=False),
    *(Column(status.lower(), BigInteger, nullable=False) for status in Status),
    PrimaryKeyConstraint("id"),
)

# Who waits for whom. A row belongs to the task that is waited for, and is changed under its lock; once it has an
# outcome it is a message to the one that waits, which is taken under the lock of that one.
task_dependencies = Table(
    "task_dependencies",
    schema,
    Column("task_id", _Name, nullable=False),
    Column("dependent_id", _Name, nullable=False),
    # NULL until the task has ended or is deleted.
    Column("outcome", Text),
    PrimaryKeyConstraint("task_id", "dependent_id"),
    CheckConstraint("outcome IN ('SUCCESS', 'FAILED', 'CANCELED', 'DELETED')", name="outcome"),
    # Messages that nobody has taken yet.
    Index("task_dependencies_untaken", "outcome", postgresql_where=text("outcome IS NOT NULL")),
)

# What one process at a time does for all of them, and which one until when.
duties = Table(
    "duties",
    schema,
    Column("name", _Name, nullable=False),
    Column("holder", Text, nullable=False),
    Column("held_until", _Time, nullable=False),
    PrimaryKeyConstraint("name"),
)

api_keys = Table(
    "api_keys",
    schema,
    # The public half of a key, by which it is found.
    Column("key_id", _Name, nullable=False),
    Column("name", Text, nullable=False),
    # SHA-256 of the secret half. The secret is 256 random bits: nothing slower is needed to keep it.
    Column("secret_hash", LargeBinary, nullable=False),
    Column("permissions", ARRAY(Text), nullable=False),
    Column("created_at", _Time, nullable=False),
    # A revoked key stays, so that it can be seen that it was there; its name is free again.
    Column("revoked_at", _Time),
    PrimaryKeyConstraint("key_id"),
    Index(None, "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

signing_keys = Table(
    "signing_keys",
    schema,
    # What a task token says of the key that signed it.
    Column("key_id", _Name, nullable=False),
    # All servers sign and verify with it, so it is kept as it is.
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", _Time, nullable=False),
    # Since when it signs no more; what it signed is good until it expires.
    Column("retired_at", _Time),
    PrimaryKeyConstraint("key_id"),
)


def read(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column as it is read: JSON as the text that it is sent as."""
    return cast(column, Text).label(str(column.key)) if isinstance(column.type, JSONB) else column


plan_columns = [tasks.c[name] for name in Plan._fields]
# A plan is read as one text. Most tasks have none, and twenty columns of nothing would take as long as all the others.
_plan: ColumnElement[Any] = case(
    (tasks.c.max_attempts.is_not(None), cast(func.json_build_array(*plan_columns), Text))
).label("plan")
# What is read of a task, and of an event beside the task that it is of.
task_columns = [*(read(tasks.c[name]) for name in Task._fields[: Task._fields.index("plan")]), _plan]
event_columns = [read(task_events.c[name]) for name in Event._fields[1:]]


def of_named_task(named: ColumnElement[Any]) -> ColumnElement[bool]:
    """For Citus: whether an event is of the row of `tasks` at hand, whose ID is one of the `named`.

    It carries out joins by `task_id` alone, and asks those shards in which something is named, and no others.
    """
    # Under the other name for the same order, so that an event is searched by the ID at hand, not by all of them.
    return and_(task_events.c.task_id == tasks.c.task_id, task_events.c.task_id.collate("POSIX") == named)


STATUSES: Final[Mapping[str, Status]] = {status.value: status for status in Status}
EVENT_TYPES: Final[Mapping[str, EventType]] = {event_type.value: event_type for event_type in EventType}
_LISTS: Final = [place for place, column in enumerate(plan_columns) if isinstance(column.type, ARRAY)]
_TIMES: Final = [place for place, column in enumerate(plan_columns) if isinstance(column.type, DateTime)]
_ON_FAILURE: Final = Plan._fields.index("on_dependency_failure")


def task_of(row: Iterable[Any]) -> Task:
    """The task that a row of ``task_columns`` is."""
    task_id, status, progress, metadata, *rest, planned = row
    text = None if metadata is None else Json(metadata)
    plan = None if planned is None else _plan_of(planned)
    return Task._make((task_id, STATUSES[status], progress, text, *rest, plan, None))


def _plan_of(text: str) -> Plan:
    values: list[Any] = orjson.loads(text)
    for place in _LISTS:
        values[place] = tuple(values[place])
    for place in _TIMES:
        if (time := values[place]) is not None:
            values[place] = datetime.fromisoformat(time).astimezone(UTC)
    values[_ON_FAILURE] = OnDependencyFailure(values[_ON_FAILURE])
    return Plan._make(values)


def event_of(task_id: str, row: Iterable[Any]) -> Event:
    """The event that a row of ``event_columns`` is."""
    seq, event_type, message, progress, metadata, timestamp, actor = row
    text = None if metadata is None else Json(metadata)
    return Event(task_id, seq, EVENT_TYPES[event_type], message, progress, text, timestamp, actor)
