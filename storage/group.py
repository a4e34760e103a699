"""What a group of commands does, all but its commit: lock the tasks' rows, let the rules decide, write what came of it.

Reports on tasks that this process remembers are decided first, and written by one statement that locks each row and
sees that it still is what was remembered. Those of which that is not true, and all other commands, go the long way.

The number of statements does not depend on the size of the group, and nothing is done per command that can be done per
group. A group that locks one row, or reports one thing, is most common when little happens: it has statements of its
own, without arrays.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    FromClause,
    Text,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by, array, insert
from sqlalchemy.types import TypeEngine

from storage.commands import Command, Create, Report, size_of
from storage.errors import IdempotencyConflict, OutcomeUnknown, Refusal
from storage.lifecycle import decide
from storage.pool import Connection, compiled
from storage.remembered import Remembered
from storage.tables import of_named_task, task_columns, task_events, task_of, tasks
from storage.task import Event, Task, Update, UpdateType, update_of

Outcome = Task | Refusal | None
"""What a command made of its task (None: it is deleted), or why it did not."""


_Key = tuple[str, bytes] | tuple[None, None]
"""An idempotency key, and what it stands for."""
_NO_KEY: Final[_Key] = (None, None)


@dataclass(slots=True)
class _Row:
    """A task as a group finds it, and as the rules leave it."""

    # Whether the table holds a row for it, from before or inserted by this group.
    stored: bool
    # The task after the commands folded so far; None when there is none.
    task: Task | None
    # Idempotency keys that are taken, with what each stands for.
    keys: dict[str, bytes] = field(default_factory=dict)
    # Whether the stored row and its events must go, whatever is made under the same ID afterwards.
    deleted: bool = False
    # Whether the stored row is older than `task`.
    changed: bool = False
    # The command that made the task, when it was made in this group.
    creation: Create | None = None
    # The events that the group adds, and the idempotency key with which each was reported.
    events: list[Event] = field(default_factory=list)
    event_keys: list[_Key] = field(default_factory=list)
    # Roughly their bytes.
    size: int = 0
    # Deletions, each with the events that went with it.
    updates: list[Update] = field(default_factory=list)


async def write(
    connection: Connection, commands: Sequence[Command], now: datetime, seen: Mapping[str, Task]
) -> tuple[list[Outcome], list[Update]]:
    """Do what the commands ask, in the transaction that is open; return what came of each, and what to publish, both
    true once the transaction is committed.

    The commands on a task that was `seen` are plain reports that may have been done before, by a connection that broke.
    If the task still is as it was, they were not, and never will be; else nobody knows.
    """
    parts = await _parts(connection, commands)
    rows = await _insert_new(connection, commands, now, parts)
    await _lock_old(connection, parts, rows)
    await _look_up_keys(connection, commands, rows)
    outcomes: list[Outcome] = []
    for command in commands:
        row = rows[command.task_id]
        try:
            if command.task_id in seen and not row.events and not _same(row.task, seen[command.task_id]):
                raise OutcomeUnknown
            outcomes.append(_fold(row, command, now))
        except Refusal as refusal:
            outcomes.append(refusal)
    await _store(connection, rows)
    updates: list[Update] = []
    for row in rows.values():
        updates += row.updates
        if row.task is not None and row.events:
            updates.append(update_of(row.task, tuple(row.events), row.size))
    return outcomes, updates


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided from memory; nothing of it is written yet."""

    # The tasks on which it rests, as they are remembered.
    seen: dict[str, Task]
    # Each of these tasks as the reports leave it.
    _rows: dict[str, _Row]
    # By the place of its command: the task as a report leaves it.
    _tasks: dict[int, Task]

    def outcomes(self, written: AbstractSet[str]) -> dict[int, Task]:
        """By the place of its command, what came of each report on a task that was written."""
        return {place: task for place, task in self._tasks.items() if task.task_id in written}

    def updates(self, written: AbstractSet[str]) -> list[Update]:
        """What to publish when these tasks are written."""
        updates = []
        for task_id in written:
            row = self._rows[task_id]
            assert row.task is not None
            updates.append(update_of(row.task, tuple(row.events), row.size))
        return updates

    @property
    def changed(self) -> list[Task]:
        """The tasks as the reports leave them, in order of task_id, as rows are locked."""
        return [row.task for _, row in sorted(self._rows.items()) if row.task is not None]

    @property
    def events(self) -> list[Event]:
        """What the reports add."""
        return [event for row in self._rows.values() for event in row.events]


def decide_from_memory(commands: Sequence[Command], now: datetime, remembered: Remembered) -> Decided:
    """Let the rules apply reports to tasks as they are remembered, where every command on a task is a plain report."""
    seen: dict[str, Task] = {}
    rows: dict[str, _Row] = {}
    tasks_then: dict[int, Task] = {}
    others: set[str] = set()
    for place, command in enumerate(commands):
        task_id = command.task_id
        if task_id in others:
            continue
        row = rows.get(task_id)
        if row is None and (task := remembered.get(task_id)) is not None:
            seen[task_id] = task
            row = rows[task_id] = _Row(True, task)
        if row is not None and isinstance(command, Report) and command.idempotency_key is None:
            # It may be that what is remembered is no longer so; who may be refused is asked about under the lock.
            with suppress(Refusal):
                task = _fold(row, command, now)
                assert task is not None
                tasks_then[place] = task
                continue
        # Commands on one task stay in order: all go the other way.
        others.add(task_id)
        seen.pop(task_id, None)
        rows.pop(task_id, None)
    return Decided(seen, rows, {place: task for place, task in tasks_then.items() if task.task_id in rows})


async def write_decided(connection: Connection, decided: Decided) -> set[str]:
    """Write what was decided of tasks that still are as they were seen; return the IDs of those.

    It is one statement, and a transaction of its own.
    """
    changed, events = decided.changed, decided.events
    seen = [_seeing(decided.seen[task.task_id]) for task in changed]
    if len(events) == 1:
        found = await connection.run(_REPORT_ONE_IF_SEEN, *_changing(changed[0]), *seen[0], *events[0], *_NO_KEY)
    else:
        found = await connection.run(
            _REPORT_IF_SEEN,
            *_changing(tuple(zip(*changed, strict=True))),
            *zip(*seen, strict=True),
            *zip(*events, strict=True),
            *zip(*[_NO_KEY] * len(events), strict=True),
        )
    return {task_id for (task_id,) in found}


def _same(task: Task | None, seen: Task) -> bool:
    return task is not None and _seeing(task) == _seeing(seen)


async def _parts(connection: Connection, commands: Sequence[Command]) -> Sequence[Sequence[str]]:
    """The tasks of the group, in the order in which their rows are locked: each part of them by one statement.

    On Citus a part is what lies in one shard. A statement for several shards locks their rows in no order, or none.
    """
    task_ids = sorted({command.task_id for command in commands})
    if len(task_ids) == 1 or not connection.distributed:
        return [task_ids]
    return [part for (part,) in await connection.run(_PARTS, task_ids)]


async def _insert_new(
    connection: Connection, commands: Sequence[Command], now: datetime, parts: Sequence[Sequence[str]]
) -> dict[str, _Row]:
    """Insert a row for each task that the group creates first of all; return those that were new."""
    born: dict[str, Task] = {}
    for command in commands:
        if isinstance(command, Create) and command.task_id not in born:
            task = decide(None, command, now)
            assert task is not None
            born[task.task_id] = task
    rows: dict[str, _Row] = {}
    for part in parts if born else ():
        new = [born[task_id] for task_id in part if task_id in born]
        if new:
            inserted = await connection.run(_INSERT_NEW_TASKS, *_task_arrays(new))
            # The rules have not seen the command yet: as far as they know, there is no task.
            rows.update((task_id, _Row(True, None)) for (task_id,) in inserted)
    return rows


async def _lock_old(connection: Connection, parts: Sequence[Sequence[str]], rows: dict[str, _Row]) -> None:
    """Lock the row of every other task that the group names; add what is found, and what is not."""
    for part in parts:
        wanted = [task_id for task_id in part if task_id not in rows]
        if not wanted:
            continue
        if len(wanted) == 1:
            found = await connection.run(_LOCK_ONE, *wanted)
        else:
            found = await connection.run(_LOCK, wanted)
        rows.update((task_id, _Row(False, None)) for task_id in wanted)
        rows.update((task.task_id, _Row(True, task)) for task in map(task_of, found))


async def _look_up_keys(connection: Connection, commands: Sequence[Command], rows: dict[str, _Row]) -> None:
    """Find which of the group's idempotency keys were used before. The rows are locked, so the answer stays true."""
    wanted = {
        (command.task_id, command.idempotency_key)
        for command in commands
        if isinstance(command, Report)
        and command.idempotency_key is not None
        and rows[command.task_id].task is not None
    }
    if not wanted:
        return
    for task_id, key, fingerprint in await connection.run(_USED_KEYS, *zip(*wanted, strict=True)):
        rows[task_id].keys[key] = fingerprint


def _fold(row: _Row, command: Command, now: datetime) -> Task | None:
    """Let the rules apply a command to what the commands before it left."""
    key = _NO_KEY
    if isinstance(command, Report) and command.idempotency_key is not None:
        key = command.idempotency_key, command.fingerprint()
        if row.task is not None and key[0] in row.keys:
            if row.keys[key[0]] != key[1]:
                raise IdempotencyConflict(command.task_id, key[0])
            return row.task
    # The time of birth tells a task from one that was deleted before it, so they must differ within a group too.
    task = decide(row.task, command, now + timedelta(microseconds=len(row.updates)) if row.updates else now)
    if task is None:
        assert row.task is not None
        row.updates.append(Update(UpdateType.DELETE, row.task, tuple(row.events), row.size))
        row.task, row.deleted, row.creation, row.size = None, True, None, 0
        row.events.clear()
        row.event_keys.clear()
        row.keys.clear()
        return None
    assert task.last_event is not None
    row.task = task
    row.events.append(task.last_event)
    row.event_keys.append(key)
    row.size += size_of(command)
    if isinstance(command, Create):
        row.creation = command
    else:
        row.changed = True
        if key[0] is not None:
            row.keys[key[0]] = key[1]
    return task


async def _store(connection: Connection, rows: dict[str, _Row]) -> None:
    """Write what the fold left, with at most one statement of a kind, whatever the size of the group."""
    deleted: list[str] = []
    created: list[Task] = []
    changed: list[Task] = []
    events: list[Event] = []
    keys: list[_Key] = []
    for task_id, row in rows.items():
        gone = row.stored and row.deleted
        if gone:
            deleted.append(task_id)
        if row.task is None:
            assert row.deleted or not row.stored, f"{task_id} was inserted, and nothing was made of it"
            continue
        if row.creation is not None and (gone or not row.stored):
            # Created after a deletion: in this group, or by somebody between our insert and our lock. Should yet
            # another have created it by now, the key refuses this statement, and each command of the group tries alone.
            created.append(row.task)
        elif row.changed:
            changed.append(row.task)
        events += row.events
        keys += row.event_keys
    if deleted:
        await connection.run(_DELETE_EVENTS, deleted)
        await connection.run(_DELETE_TASKS, deleted)
    if created:
        await connection.run(_INSERT_TASKS, *_task_arrays(created))
    if len(changed) == len(events) == 1 and not connection.distributed:
        await connection.run(_REPORT_ONE, *_changing(changed[0]), *events[0], *keys[0])
    elif events:
        arrays = (*zip(*events, strict=True), *zip(*keys, strict=True))
        if changed and connection.distributed:
            await connection.run(_UPDATE_IN_SHARDS, *_changing(tuple(zip(*changed, strict=True))))
            await connection.run(_INSERT_EVENTS, *arrays)
        elif changed:
            await connection.run(_REPORT, *_changing(tuple(zip(*changed, strict=True))), *arrays)
        else:
            await connection.run(_INSERT_EVENTS, *arrays)


def _task_arrays(born: Iterable[Task]) -> Iterable[Sequence[Any]]:
    """The columns of tasks; not the last event."""
    # In order of task_id, as rows are locked: two processes that create the same tasks never wait for each other.
    *columns, _ = zip(*sorted(born, key=lambda task: task.task_id), strict=True)
    return columns


# Of a task's fields, or of columns in the same order, those that a report changes, after the ID.
_CHANGING: Final = (
    "task_id",
    "status",
    "progress",
    "seq",
    "updated_at",
    "started_at",
    "completed_at",
    "failed_at",
    "canceled_at",
)
_changing = itemgetter(*map(Task._fields.index, _CHANGING))
# What tells a task that a decision rests on from what has become of it since. The number alone would not, when it was
# born again, or when a server that took over had not got the latest events and others have been written since.
_seeing = attrgetter("seq", "updated_at", "created_at")
_SEEN: Final = (
    Column("seen_seq", BigInteger),
    Column("seen_updated_at", tasks.c.updated_at.type),
    Column("seen_created_at", tasks.c.created_at.type),
)
_EVENT: Final = (*Event._fields, "idempotency_key", "fingerprint")


def _sent(prefix: str, columns: Sequence[Column[Any]], *, many: bool) -> FromClause:
    """A row made from one parameter for each column, or rows made from arrays. JSON travels as text."""

    def kind(of: Column[Any]) -> TypeEngine[Any]:
        # Without the column's collation: an array's type has none to name.
        return Text() if isinstance(of.type, JSONB | Text) else of.type

    items: list[ColumnElement[Any]]
    if many:
        arrays = (bindparam(f"{prefix}_{one.name}", type_=ARRAY(kind(one))) for one in columns)
        rows = func.unnest(*arrays).table_valued(*(column(one.name, kind(one)) for one in columns), name="sent")
        rows = rows.render_derived()
        items = [rows.c[one.name] for one in columns]
    else:
        items = [cast(bindparam(f"{prefix}_{one.name}", type_=kind(one)), kind(one)) for one in columns]
    return select(
        *(
            (cast(item, JSONB) if isinstance(one.type, JSONB) else item).label(one.name)
            for one, item in zip(columns, items, strict=True)
        )
    ).subquery(prefix)


def _insert_tasks() -> Any:
    return insert(tasks).from_select(tasks.c.keys(), select(_sent("task", list(tasks.c), many=True)))


def _insert_events(*, many: bool, of: Any = None) -> Any:
    sent = _sent("event", [task_events.c[name] for name in _EVENT], many=many)
    # As it will be read: PostgreSQL writes 1e308 out in full.
    of_metadata = func.coalesce(func.octet_length(cast(sent.c.metadata, Text)), literal_column("0"))
    size = func.octet_length(sent.c.message) + of_metadata
    events = select(sent, size)
    return insert(task_events).from_select(
        [*_EVENT, "size"], events if of is None else events.where(sent.c.task_id.in_(of))
    )


def _report(*, many: bool) -> Any:
    """Update tasks and insert their events in one statement."""
    sent = _sent("task", [tasks.c[name] for name in _CHANGING], many=many)
    # Not simply equal: that could be had by joining all tasks, and would be when they were few at the time of planning.
    same = tasks.c.task_id == any_(array([sent.c.task_id]))
    changed = update(tasks).where(same).values({name: sent.c[name] for name in _CHANGING[1:]})
    return _insert_events(many=many).add_cte(changed.cte("changed"))


def _update_in_shards() -> Any:
    """Update tasks, and ask only the shards that they are in; the rows are locked already."""
    sent = _sent("task", [tasks.c[name] for name in _CHANGING], many=True)
    named = bindparam("task_task_id", type_=ARRAY(Text))
    return (
        update(tasks)
        .where(tasks.c.task_id == sent.c.task_id, tasks.c.task_id == any_(named))
        .values({name: sent.c[name] for name in _CHANGING[1:]})
    )


def _report_if_seen(*, many: bool) -> Any:
    """The same for tasks that still are as they were seen; it returns the IDs of those."""
    sent = _sent("task", [*(tasks.c[name] for name in _CHANGING), *_SEEN], many=many)
    same = tasks.c.task_id == any_(array([sent.c.task_id]))
    # The time of birth is compared in a way that no index of the list could serve.
    changed = (
        update(tasks)
        .where(
            same,
            tasks.c.seq == sent.c.seen_seq,
            tasks.c.updated_at == sent.c.seen_updated_at,
            tasks.c.created_at.is_not_distinct_from(sent.c.seen_created_at),
        )
        .values({name: sent.c[name] for name in _CHANGING[1:]})
        .returning(tasks.c.task_id)
        .cte("changed")
    )
    written = _insert_events(many=many, of=select(changed.c.task_id)).cte("written")
    return select(changed.c.task_id).add_cte(written)


def _names(prefix: str, columns: Iterable[str]) -> list[str]:
    return [f"{prefix}_{name}" for name in columns]


_ids = bindparam("task_ids", type_=ARRAY(Text))
# Each of these is a subquery that is run for each row of another; that is what the LIMIT is for, where there is one.
_id = func.unnest(_ids)
_wanted = select(_id.label("task_id")).order_by(_id.collate("C")).subquery("wanted")
_task = select(*task_columns).where(tasks.c.task_id == _wanted.c.task_id).with_for_update().lateral("task")
_used = func.unnest(_ids, bindparam("keys", type_=ARRAY(Text))).table_valued("task_id", "key", name="used")
_used = _used.render_derived()
_event = (
    select(task_events.c.fingerprint)
    .where(task_events.c.task_id == _used.c.task_id, task_events.c.idempotency_key == _used.c.key)
    .limit(literal_column("1"))
    .lateral("event")
)
_gone = func.unnest(_ids).table_valued("task_id", name="gone").render_derived()

# The lock of the whole design: in one place, and always in order of task_id, so that no two groups, of whatever
# processes, can each hold a row that the other waits for.
_LOCK: Final = compiled(select(_task).select_from(_wanted.join(_task, true())), "task_ids")
_LOCK_ONE: Final = compiled(
    select(*task_columns).where(tasks.c.task_id == bindparam("task_id")).with_for_update(), "task_id"
)
_USED_KEYS: Final = compiled(
    select(_used.c.task_id, _used.c.key, _event.c.fingerprint).select_from(_used.join(_event, true())),
    "task_ids",
    "keys",
)
_INSERT_TASKS: Final = compiled(_insert_tasks(), *_names("task", tasks.c.keys()))
_INSERT_NEW_TASKS: Final = compiled(
    _insert_tasks().on_conflict_do_nothing().returning(tasks.c.task_id), *_names("task", tasks.c.keys())
)
_REPORT: Final = compiled(_report(many=True), *_names("task", _CHANGING), *_names("event", _EVENT))
_REPORT_ONE: Final = compiled(_report(many=False), *_names("task", _CHANGING), *_names("event", _EVENT))
_REPORT_SENT: Final = (*_CHANGING, *(one.name for one in _SEEN))
_REPORT_IF_SEEN: Final = compiled(_report_if_seen(many=True), *_names("task", _REPORT_SENT), *_names("event", _EVENT))
_REPORT_ONE_IF_SEEN: Final = compiled(
    _report_if_seen(many=False), *_names("task", _REPORT_SENT), *_names("event", _EVENT)
)
_INSERT_EVENTS: Final = compiled(_insert_events(many=True), *_names("event", _EVENT))
_DELETE_EVENTS: Final = compiled(
    delete(task_events).where(task_events.c.task_id == any_(array([_gone.c.task_id]))), "task_ids"
)
_DELETE_TASKS: Final = compiled(delete(tasks).where(tasks.c.task_id == any_(array([_gone.c.task_id]))), "task_ids")

# On Citus the IDs are compared with a parameter, by which it finds the shards that are concerned. It cannot carry out
# what is run for each row of another table, and does not have to: there, statements are planned for their values.
_named = any_(_ids)
# Grouped, so that it is looked up, and the history of a task is not joined: Citus would not carry out a LIMIT.
_event_in_shard = (
    select(task_events.c.fingerprint)
    .where(of_named_task(_named), task_events.c.idempotency_key == _used.c.key)
    .group_by(task_events.c.task_id, task_events.c.idempotency_key, task_events.c.fingerprint)
    .correlate(_used, tasks)
    .lateral("event")
)
_shard = func.get_shard_id_for_distribution_column(literal_column(f"'{tasks.name}'"), column("task_id", Text))
_PARTS: Final = compiled(
    select(func.array_agg(aggregate_order_by(column("task_id", Text), column("task_id", Text).collate("C"))))
    .select_from(_id.alias("task_id"))
    .group_by(_shard)
    .order_by(_shard),
    "task_ids",
)
_UPDATE_IN_SHARDS: Final = compiled(_update_in_shards(), *_names("task", _CHANGING))

ON_CITUS: Final[Mapping[str, str]] = {
    # Only of one shard at a time.
    _LOCK: compiled(
        select(*task_columns).where(tasks.c.task_id == _named).order_by(tasks.c.task_id).with_for_update(), "task_ids"
    ),
    _USED_KEYS: compiled(
        select(_used.c.task_id, _used.c.key, _event_in_shard.c.fingerprint)
        .select_from(_used)
        .join(tasks, tasks.c.task_id == _used.c.task_id)
        .join(_event_in_shard, true())
        .where(tasks.c.task_id == _named),
        "task_ids",
        "keys",
    ),
    _DELETE_EVENTS: compiled(delete(task_events).where(task_events.c.task_id == _named), "task_ids"),
    _DELETE_TASKS: compiled(delete(tasks).where(tasks.c.task_id == _named), "task_ids"),
}
"""What is said on Citus instead of a statement above."""
