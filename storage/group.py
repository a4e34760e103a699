"""What a group of commands does, all but its commit: lock the tasks' rows, let the rules decide, write what came of it.

Reports on tasks that this process remembers are decided first, and written by one statement that locks each row and
sees that it still is what was remembered. Those of which that is not true, and all other commands, go the long way.

The number of statements does not depend on the size of the group, and nothing is done per command that can be done per
group. A group that locks one row, or reports one thing, is most common when little happens: it has statements of its
own, with a parameter for each value.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, Final

import orjson
from sqlalchemy import (
    ARRAY,
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
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, aggregate_order_by, array, insert
from sqlalchemy.types import TypeEngine

from storage.commands import Command, Create, CreateMany, Report, Settle, Tick, size_of
from storage.counts import ADD, COLUMNS, PARAMETERS, addition, difference
from storage.dependencies import Links, store_links, take_messages
from storage.errors import BadInput, IdempotencyConflict, OutcomeUnknown, Refusal
from storage.lifecycle import decide
from storage.pool import Connection, compiled
from storage.remembered import Remembered
from storage.tables import of_named_task, plan_columns, task_columns, task_events, task_of, tasks
from storage.task import FINAL, Event, Outcome, Plan, Status, Task, Update, UpdateType, update_of
from storage.turns import Turn, turns_of

Result = Task | tuple[Task, ...] | Refusal | None
"""What a command made of its task (None: it is deleted) or of its tasks, or why it did not."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a group did. It is true once its transaction is committed."""

    # Of each command, in their order.
    results: list[Result]
    # To be published.
    updates: list[Update]
    # The queues in which tasks have become ready.
    queues: frozenset[str] = frozenset()
    # What became of tasks that others wait for; to be brought to those.
    messages: Sequence[Settle] = ()
    # What became of plans, and how late it was of what was due.
    turns: Sequence[Turn] = ()
    lags_s: Sequence[float] = ()


_Key = tuple[str, bytes] | tuple[None, None]
"""An idempotency key, and what it stands for."""
_NO_KEY: Final[_Key] = (None, None)
_NO_OTHERS: Final[Mapping[str, Status]] = {}


@dataclass(slots=True)
class _Row:
    """A task as a group finds it, and as the rules leave it."""

    # The task as the table has it, from before or inserted by this group; None when there is no row.
    stored: Task | None
    # The task after the commands folded so far; None when there is none.
    task: Task | None
    # The command from which this group inserted the row, when it did.
    inserted: Create | None = None
    # Whether others wait for its end.
    depended_on: bool = False
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
    # What became of its plan, and how late, where something was due.
    turns: tuple[Turn, ...] = ()
    late_s: float | None = None

    def copy(self) -> "_Row":
        """The same, to go back to."""
        mutable = {name: getattr(self, name).copy() for name in ("keys", "events", "event_keys", "updates")}
        return replace(self, **mutable)

    @property
    def obsolete(self) -> bool:
        """Whether the stored row must go: it was deleted, or the creation for which it was inserted was refused."""
        return self.stored is not None and (self.deleted or self.inserted is not self.creation)

    @property
    def newly_ready(self) -> bool:
        """Whether the task can be claimed, and could not before."""
        if self.task is None or self.task.plan is None or not self.task.plan.ready:
            return False
        before = self.stored is not None and self.creation is None and self.stored.plan
        return not (before and before.ready)


async def write(
    connection: Connection, commands: Sequence[Command | CreateMany], now: datetime, seen: Mapping[str, Task]
) -> Done:
    """Do what the commands ask, in the transaction that is open.

    The commands on a task that was `seen` are plain reports that may have been done before, by a connection that broke.
    If the task still is as it was, they were not, and never will be; else nobody knows.
    """
    parts = await _parts(connection, commands)
    rows = await _insert_new(connection, commands, now, parts)
    await _lock_old(connection, parts, rows)
    await _look_up_keys(connection, commands, rows)
    links = Links(await take_messages(connection, [command for command in commands if isinstance(command, Settle)]))
    results: list[Result] = []
    for command in commands:
        try:
            if isinstance(command, CreateMany):
                results.append(_create_many(rows, links, command, now))
                continue
            row = rows[command.task_id]
            if command.task_id in seen and not row.events and not _same(row.task, seen[command.task_id]):
                raise OutcomeUnknown
            results.append(_fold(row, command, now, links, rows))
        except Refusal as refusal:
            results.append(refusal)
    return await _store(connection, rows, links, results)


async def write_claims(
    connection: Connection, found: Sequence[Any], leases: Sequence[Command], now: datetime
) -> tuple[Done, list[Task]]:
    """Do the same for leases of tasks whose rows are locked already, as `LOCKED_COLUMNS` of them were found; return
    also the tasks as they were.
    """
    rows = {row[0]: _row_of(row) for row in found}
    before = [row.stored for row in rows.values() if row.stored is not None]
    links = Links()
    results: list[Result] = [_fold(rows[lease.task_id], lease, now, links, rows) for lease in leases]
    return await _store(connection, rows, links, results), before


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided from memory; nothing of it is written yet."""

    # The tasks on which it rests, as they are remembered.
    seen: dict[str, Task]
    # Each of these tasks as the reports leave it.
    _rows: dict[str, _Row]
    # By the place of its command: the task as a report leaves it.
    _tasks: dict[int, Task]

    def outcomes(self, written: "Written") -> dict[int, Task]:
        """By the place of its command, what came of each report on a task that was written."""
        return {
            place: task if task.plan is None else _leased_until(task, task.plan, written[task.task_id])
            for place, task in self._tasks.items()
            if task.task_id in written
        }

    def updates(self, written: "Written") -> list[Update]:
        """What to publish when these tasks are written."""
        updates = []
        for task_id, lease_expires_at in written.items():
            row = self._rows[task_id]
            assert row.task is not None
            task = row.task if row.task.plan is None else _leased_until(row.task, row.task.plan, lease_expires_at)
            updates.append(update_of(task, tuple(row.events), row.size))
        return updates

    @property
    def changed(self) -> list[Task]:
        """The tasks as the reports leave them, in order of task_id, as rows are locked."""
        return [row.task for _, row in sorted(self._rows.items()) if row.task is not None]

    def sent(self, *, moved: bool) -> list[dict[str, Any]]:
        """What is to be written, in the same order: each event, and with the last one of a task how it is left, and as
        what it was seen. Times of its life are among that only if a status has `moved`, which is when they change.
        """
        sent = []
        for task in self.changed:
            sent += [event._asdict() for event in self._rows[task.task_id].events]
            sent[-1] |= _end_of(task, self.seen[task.task_id], moved=moved)
        return sent


Written = Mapping[str, datetime | None]
"""The tasks that were written, each with the end of its lease, which a heartbeat elsewhere may have changed unseen."""


def _leased_until(task: Task, plan: Plan, lease_expires_at: datetime | None) -> Task:
    if plan.lease_expires_at == lease_expires_at:
        return task
    return task._replace(plan=plan._replace(lease_expires_at=lease_expires_at))


def decide_from_memory(commands: Sequence[Command | CreateMany], now: datetime, remembered: Remembered) -> Decided:
    """Let the rules apply reports to tasks as they are remembered, where every command on a task is a plain report that
    leaves its plan as it is.
    """
    seen: dict[str, Task] = {}
    rows: dict[str, _Row] = {}
    tasks_then: dict[int, Task] = {}
    others: set[str] = set()
    links = Links()
    for place, command in enumerate(commands):
        if isinstance(command, CreateMany):
            excluded: Iterable[str] = command.task_ids
        else:
            task_id = command.task_id
            if task_id in others:
                continue
            row = rows.get(task_id)
            if row is None and (task := remembered.get(task_id)) is not None:
                seen[task_id] = task
                row = rows[task_id] = _Row(task, task)
            if row is not None and isinstance(command, Report) and command.idempotency_key is None:
                # It may be that what is remembered is no longer so; who may be refused is asked about under the lock.
                with suppress(Refusal):
                    task = _fold(row, command, now, links, rows)
                    assert task is not None
                    assert row.stored is not None
                    if task.plan is row.stored.plan:
                        tasks_then[place] = task
                        continue
            excluded = (task_id,)
        # Commands on one task stay in order: all go the other way.
        for task_id in excluded:
            others.add(task_id)
            seen.pop(task_id, None)
            rows.pop(task_id, None)
    return Decided(seen, rows, {place: task for place, task in tasks_then.items() if task.task_id in rows})


async def write_decided(connection: Connection, decided: Decided) -> Written:
    """Write what was decided of tasks that still are as they were seen; return those.

    It is one statement, and a transaction of its own.
    """
    # Which of them will be written is not known yet, so the statement counts, where there is something to count.
    moved = any(task.status is not decided.seen[task.task_id].status for task in decided.changed)
    rows = decided.sent(moved=moved)
    if len(rows) == 1:
        found = await connection.run(_REPORT_ONE_IF_SEEN.statement(moved), *rows[0].values())
    else:
        found = await connection.run(_REPORT_IF_SEEN.statement(moved), orjson.dumps(rows).decode())
    return dict(found)


def _end_of(task: Task, seen: Task, *, moved: bool) -> dict[str, Any]:
    end: dict[str, Any] = {
        "left_progress": task.progress,
        "seen_seq": seen.seq,
        "seen_updated_at": seen.updated_at,
        "seen_created_at": seen.created_at,
    }
    if moved:
        end |= {
            "left_status": task.status,
            "left_started_at": task.started_at,
            "left_completed_at": task.completed_at,
            "left_failed_at": task.failed_at,
            "left_canceled_at": task.canceled_at,
            "seen_status": seen.status,
        }
    return end


def _same(task: Task | None, seen: Task) -> bool:
    return task is not None and _seeing(task) == _seeing(seen)


def _single(commands: Iterable[Command | CreateMany]) -> Iterator[Command]:
    """Each command by itself."""
    for command in commands:
        if isinstance(command, CreateMany):
            yield from command.tasks
        else:
            yield command


async def _parts(connection: Connection, commands: Sequence[Command | CreateMany]) -> Sequence[Sequence[str]]:
    """The tasks of the group, be it as those that others wait for, in the order in which their rows are locked: each
    part of them by one statement.

    On Citus a part is what lies in one shard. A statement for several shards locks their rows in no order, or none.
    """
    named: set[str] = set()
    for command in _single(commands):
        named.add(command.task_id)
        if isinstance(command, Create):
            named.update(command.depends_on)
    task_ids = sorted(named)
    if len(task_ids) == 1 or not connection.distributed:
        return [task_ids]
    return [part for (part,) in await connection.run(PARTS, task_ids)]


async def _insert_new(
    connection: Connection, commands: Sequence[Command | CreateMany], now: datetime, parts: Sequence[Sequence[str]]
) -> dict[str, _Row]:
    """Insert a row for each task that the group creates first of all; return those that were new."""
    born: dict[str, tuple[Task, Create]] = {}
    for command in _single(commands):
        if isinstance(command, Create) and command.task_id not in born:
            task = decide(None, command, now)
            assert task is not None
            born[task.task_id] = task, command
    rows: dict[str, _Row] = {}
    for part in parts if born else ():
        new = [born[task_id][0] for task_id in part if task_id in born]
        if new:
            # The rules have not seen the command yet: as far as they know, there is no task.
            for (task_id,) in await _insert(connection, new, _INSERT_NEW):
                rows[task_id] = _Row(born[task_id][0], None, inserted=born[task_id][1])
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
        rows.update((task_id, _Row(None, None)) for task_id in wanted)
        rows.update((row[0], _row_of(row)) for row in found)


def _row_of(row: Sequence[Any]) -> _Row:
    """What ``LOCKED_COLUMNS`` of a task say."""
    task = task_of(row[:-1])
    return _Row(task, task, depended_on=bool(row[-1]))


async def _look_up_keys(
    connection: Connection, commands: Sequence[Command | CreateMany], rows: dict[str, _Row]
) -> None:
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


def _create_many(rows: dict[str, _Row], links: Links, command: CreateMany, now: datetime) -> tuple[Task, ...]:
    """Fold several creations, or none of them."""
    before = {task.task_id: rows[task.task_id].copy() for task in command.tasks}
    links_before = links.copy()
    made: dict[int, Task] = {}
    for place in command.order:
        creation = command.tasks[place]
        try:
            task = _fold(rows[creation.task_id], creation, now, links, rows)
        except Refusal as refusal:
            rows.update(before)
            links.made, links.over = links_before.made, links_before.over
            raise refusal.at(place) from None
        assert task is not None
        made[place] = task
    return tuple(made[place] for place in range(len(made)))


def _fold(row: _Row, command: Command, now: datetime, links: Links, rows: Mapping[str, _Row]) -> Task | None:
    """Let the rules apply a command to what the commands before it left."""
    key = _NO_KEY
    others: Mapping[str, Status] = _NO_OTHERS
    if isinstance(command, Report):
        if command.idempotency_key is not None:
            key = command.idempotency_key, command.fingerprint()
            if row.task is not None and key[0] in row.keys:
                if row.keys[key[0]] != key[1]:
                    raise IdempotencyConflict(command.task_id, key[0])
                return row.task
    elif isinstance(command, Create):
        if command.depends_on and row.task is None:
            others = _statuses(command.depends_on, rows)
    elif isinstance(command, Settle):
        outcome = links.taken.get((command.on, command.task_id))
        if outcome is None or row.deleted or row.creation is not None:
            # Somebody else has brought this message, or it was for a task that had the same ID.
            return row.task
        if outcome is not command.outcome:
            # The message that was brought was about other tasks of these IDs; the table has the one for these.
            command = replace(command, outcome=outcome)
    # The time of birth tells a task from one that was deleted before it, so they must differ within a group too.
    now = now + timedelta(microseconds=len(row.updates)) if row.updates else now
    task = _apply(row, command, now, links, others, key)
    if others and task is not None and task.plan is not None and not task.status.final:
        lost = next((on for on in task.plan.blocked_by if others[on].final), None)
        if lost is None:
            for on in task.plan.blocked_by:
                links.make(on, task.task_id)
        else:
            # What it would wait for is over already, and was no success.
            task = _apply(row, Settle(task_id=task.task_id, on=lost, outcome=Outcome(others[lost])), now, links)
    return task


def _statuses(task_ids: Iterable[str], rows: Mapping[str, _Row]) -> dict[str, Status]:
    """The statuses of tasks on which a new one depends; their rows are locked."""
    statuses = {}
    for task_id in task_ids:
        other = rows[task_id].task
        if other is None:
            raise BadInput(f'dependsOn must name tasks that exist, and there is no task "{task_id}".')
        statuses[task_id] = other.status
    return statuses


def _apply(
    row: _Row,
    command: Command,
    now: datetime,
    links: Links,
    others: Mapping[str, Status] = _NO_OTHERS,
    key: _Key = _NO_KEY,
) -> Task | None:
    """Put down in a row what the rules make of its task."""
    before = row.task
    task = decide(before, command, now, others)
    if task is before:
        return task
    if before is not None and (task is None or task.plan is not before.plan):
        turns = turns_of(before, command, task)
        row.turns += turns
        if turns and isinstance(command, Tick) and before.plan is not None and before.plan.due_at is not None:
            row.late_s = max(0.0, (now - before.plan.due_at).total_seconds())
    if task is None:
        assert before is not None
        links.end(command.task_id, Outcome.DELETED, depended_on=row.depended_on)
        row.updates.append(Update(UpdateType.DELETE, before, tuple(row.events), row.size))
        row.task, row.deleted, row.depended_on, row.creation, row.size = None, True, False, None, 0
        row.events.clear()
        row.event_keys.clear()
        row.keys.clear()
        return None
    row.task = task
    if before is None or task.seq > before.seq:
        assert task.last_event is not None
        row.events.append(task.last_event)
        row.event_keys.append(key)
        row.size += size_of(command)
    if isinstance(command, Create):
        row.creation = command
    else:
        row.changed = True
        if key[0] is not None:
            row.keys[key[0]] = key[1]
        if (before is None or task.status is not before.status) and task.status.final:
            links.end(task.task_id, Outcome(task.status), depended_on=row.depended_on)
    return task


async def _store(connection: Connection, rows: dict[str, _Row], links: Links, results: list[Result]) -> Done:
    """Write what the fold left, with at most one statement of a kind, whatever the size of the group."""
    deleted: list[str] = []
    created: list[Task] = []
    changed: list[Task] = []
    events: list[Event] = []
    keys: list[_Key] = []
    # Whether a plan has changed: few groups do, and only they write plans.
    planned = False
    counts = difference(map(_statuses_of, rows.values()))
    for task_id, row in rows.items():
        if row.obsolete:
            deleted.append(task_id)
        if row.task is None:
            continue
        if row.creation is not None and (row.obsolete or row.stored is None):
            # Created after a deletion: in this group, or by somebody between our insert and our lock. Should yet
            # another have created it by now, the key refuses this statement, and each command of the group tries alone.
            created.append(row.task)
        elif row.creation is not None or row.changed:
            assert row.stored is not None
            replanned = row.task.plan is not row.stored.plan and row.task.plan != row.stored.plan
            if row.changed or replanned:
                changed.append(row.task)
                planned = planned or replanned
        events += row.events
        keys += row.event_keys
    if deleted:
        await connection.run(_DELETE_EVENTS, deleted)
        await connection.run(_DELETE_TASKS, deleted)
    if created:
        await _insert(connection, created, _INSERT)
    if counts and (connection.distributed or not events):
        # On Citus, by a statement of its own: this table is in one place.
        await connection.run(ADD, *counts)
        counts = ()
    if planned:
        await _report_with_plans(connection, changed, events, keys, counts)
    elif len(changed) == len(events) == 1 and not connection.distributed:
        statement = _REPORT_ONE.statement(bool(counts))
        await connection.run(statement, *_changing(changed[0]), *events[0], *keys[0], *counts)
    elif events:
        arrays = (*zip(*events, strict=True), *zip(*keys, strict=True))
        if changed and connection.distributed:
            await connection.run(_UPDATE_IN_SHARDS, *_changing(tuple(zip(*changed, strict=True))))
            await connection.run(_INSERT_EVENTS.plain, *arrays)
        elif changed:
            statement = _REPORT.statement(bool(counts))
            await connection.run(statement, *_changing(tuple(zip(*changed, strict=True))), *arrays, *counts)
        else:
            await connection.run(_INSERT_EVENTS.statement(bool(counts)), *arrays, *counts)
    messages = await store_links(connection, links)
    updates: list[Update] = []
    for row in rows.values():
        updates += row.updates
        if row.task is not None and row.events:
            updates.append(update_of(row.task, tuple(row.events), row.size))
    queues = frozenset(
        row.task.plan.queue
        for row in rows.values()
        if row.newly_ready and row.task and row.task.plan and row.task.plan.queue
    )
    turns = [turn for row in rows.values() for turn in row.turns]
    lags_s = [row.late_s for row in rows.values() if row.late_s is not None] if turns else []
    return Done(results, updates, queues, messages, turns, lags_s)


def _statuses_of(row: _Row) -> tuple[Status | None, Status | None]:
    """The status of a task before the group, and after it; None where there was none."""
    was_there = row.stored is not None and row.inserted is None
    return row.stored.status if row.stored and was_there else None, row.task.status if row.task else None


async def _report_with_plans(
    connection: Connection,
    changed: Sequence[Task],
    events: Sequence[Event],
    keys: Sequence[_Key],
    counts: Sequence[int],
) -> None:
    """Write changed tasks with their plans, and the events."""
    values = list(zip(*((*_changing(task), *_plan_values(task.plan, _PLAN_CHANGING)) for task in changed), strict=True))
    # A heartbeat has no event.
    added = [*zip(*events, strict=True), *zip(*keys, strict=True)] if events else [()] * len(_EVENT)
    if connection.distributed:
        await connection.run(_UPDATE_WITH_PLANS_IN_SHARDS, *values)
        if events:
            await connection.run(_INSERT_EVENTS.plain, *added)
    else:
        await connection.run(_REPORT_WITH_PLANS.statement(bool(counts)), *values, *added, *counts)


async def _insert(connection: Connection, born: Sequence[Task], statements: "_Insertion") -> list[Any]:
    """Insert tasks, in order of task_id, as rows are locked: two processes that create the same tasks never wait for
    each other.
    """
    ordered = sorted(born, key=lambda task: task.task_id)
    if all(task.plan is None for task in ordered):
        *columns, _, _ = zip(*ordered, strict=True)
        return await connection.run(statements.plain, *columns)
    values = ((*task[:_PLAN_AT], *_plan_values(task.plan, Plan._fields)) for task in ordered)
    return await connection.run(statements.planned, *zip(*values, strict=True))


def _plan_values(plan: Plan | None, names: Sequence[str]) -> list[Any]:
    """These fields of a plan as they are sent; of lists, PostgreSQL's own words for them, because lists of lists would
    have to be of one length.
    """
    if plan is None:
        return [None] * len(names)
    values = (getattr(plan, name) for name in names)
    return [_list_words(value) if isinstance(value, tuple) else value for value in values]


def _list_words(texts: Iterable[str]) -> str:
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


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
# Of these, what a report changes of every task, and what only together with its status; beside number and time, which
# are those of its event.
_LEFT: Final = ("progress",)
_LEFT_MOVED: Final = ("status", "started_at", "completed_at", "failed_at", "canceled_at")
_changing = itemgetter(*map(Task._fields.index, _CHANGING))
# The fields of a plan that change, and where it stands among those of a task.
_PLAN_CHANGING: Final = Plan._fields[Plan._fields.index("blocked_by") :]
_PLAN_AT: Final = Task._fields.index("plan")
# What tells a task that a decision rests on from what has become of it since. The number alone would not, when it was
# born again, or when a server that took over had not got the latest events and others have been written since.
_seeing = attrgetter("seq", "updated_at", "created_at")
_EVENT: Final = (*Event._fields, "idempotency_key", "fingerprint")


def _sent(prefix: str, columns: Sequence[Column[Any]], *, many: bool) -> FromClause:
    """A row made from one parameter for each column, or rows made from arrays. JSON travels as text."""

    def kind(of: Column[Any]) -> TypeEngine[Any]:
        # Without the column's collation: an array's type has none to name.
        return Text() if isinstance(of.type, JSONB | Text | ARRAY) else of.type

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
            (cast(item, _as_kept(one)) if isinstance(one.type, JSONB | ARRAY) else item).label(one.name)
            for one, item in zip(columns, items, strict=True)
        )
    ).subquery(prefix)


def _sent_as_json(columns: Sequence[Column[Any]]) -> FromClause:
    """Rows made from one parameter, a JSON array of objects; what is missing in one of them is NULL.

    For the driver that is a third of the work, and less, that arrays are, which it looks through value by value.
    """
    kinds = {one.name: Text() if isinstance(one.type, JSONB | Text) else one.type for one in columns}
    rows = func.json_to_recordset(bindparam("rows", type_=JSON)).table_valued(
        *(column(name, kind) for name, kind in kinds.items()), name="row"
    )
    rows = rows.render_derived(with_types=True)
    return select(
        *(
            (cast(rows.c[one.name], JSONB) if isinstance(one.type, JSONB) else rows.c[one.name]).label(one.name)
            for one in columns
        )
    ).subquery("rows")


def _as_kept(column: Column[Any]) -> TypeEngine[Any]:
    return ARRAY(Text) if isinstance(column.type, ARRAY) else column.type


@dataclass(frozen=True, slots=True)
class _Insertion:
    """A statement that inserts tasks; most have no plan, and need not send that they have none."""

    plain: str
    planned: str


@dataclass(frozen=True, slots=True)
class _Counted:
    """A statement that writes reports, alone or with what they change of the counts; most change nothing."""

    plain: str
    counted: str

    def statement(self, counted: bool) -> str:
        return self.counted if counted else self.plain


def _with_counts(statement: Any, *names: str) -> _Counted:
    """The statement, and the same with a row of counts, of which the parameters are the last."""
    counted = statement.add_cte(addition().cte("counted"))
    return _Counted(compiled(statement, *names), compiled(counted, *names, *PARAMETERS))


def _insertion(finish: Callable[[Any], Any]) -> _Insertion:
    def statement(columns: Sequence[Column[Any]]) -> str:
        names = [column.name for column in columns]
        insertion = insert(tasks).from_select(names, select(_sent("task", columns, many=True)))
        return compiled(finish(insertion), *_names("task", names))

    plain = [tasks.c[name] for name in Task._fields[:_PLAN_AT]]
    return _Insertion(statement(plain), statement([*plain, *plan_columns]))


def _sent_events(*, many: bool) -> FromClause:
    return _sent("event", [task_events.c[name] for name in _EVENT], many=many)


def _insert_events(sent: FromClause, of: Any = None) -> Any:
    # As it will be read: PostgreSQL writes 1e308 out in full.
    of_metadata = func.coalesce(func.octet_length(cast(sent.c.metadata, Text)), literal_column("0"))
    size = func.octet_length(sent.c.message) + of_metadata
    events = select(sent, size)
    return insert(task_events).from_select(
        [*sent.c.keys(), "size"], events if of is None else events.where(sent.c.task_id.in_(of))
    )


def _report(names: Sequence[str], *, many: bool) -> Any:
    """Update these columns of tasks, and insert the events, in one statement."""
    sent = _sent("task", [tasks.c[name] for name in names], many=many)
    # Not simply equal: that could be had by joining all tasks, and would be when they were few at the time of planning.
    same = tasks.c.task_id == any_(array([sent.c.task_id]))
    changed = update(tasks).where(same).values({name: sent.c[name] for name in names[1:]})
    return _insert_events(_sent_events(many=many)).add_cte(changed.cte("changed"))


def _update_in_shards(names: Sequence[str]) -> Any:
    """Update these columns of tasks, and ask only the shards that they are in; the rows are locked already."""
    sent: Any = _sent("task", [tasks.c[name] for name in names], many=True)
    if any(isinstance(tasks.c[name].type, ARRAY) for name in names):
        # To read a list from its words is not allowed within an update of several shards, so it is done before.
        sent = select(sent).cte("sent").prefix_with("MATERIALIZED")
    named = bindparam("task_task_id", type_=ARRAY(Text))
    return (
        update(tasks)
        .where(tasks.c.task_id == sent.c.task_id, tasks.c.task_id == any_(named))
        .values({name: sent.c[name] for name in names[1:]})
    )


def _report_if_seen(*, many: bool) -> _Counted:
    """The same for tasks that still are as they were seen; it returns those. An end for which others wait must be told
    to them, so it goes the other way.

    It is what most reports need, so it is told no more than it must know; `Decided.sent` has that.
    """
    return _Counted(*(_report_if_seen_statement(many=many, moved=moved) for moved in (False, True)))


def _report_if_seen_statement(*, many: bool, moved: bool) -> str:
    left = [*_LEFT, *(_LEFT_MOVED if moved else ())]
    seen = ["seq", "updated_at", "created_at"]
    columns = [
        *(Column(name, task_events.c[name].type) for name in Event._fields),
        Column("left_progress", tasks.c.progress.type),
        *(Column(f"seen_{name}", tasks.c[name].type) for name in seen),
        *(Column(f"left_{name}", tasks.c[name].type) for name in left[1:]),
        *([Column("seen_status", tasks.c.status.type)] if moved else ()),
    ]
    sent = _sent_as_json(columns) if many else _sent("sent", columns, many=False)
    sent = select(sent).cte("sent")
    values = {name: sent.c[f"left_{name}"] for name in left} | {"seq": sent.c.seq, "updated_at": sent.c.timestamp}
    # The time of birth is compared in a way that no index of the list could serve.
    conditions = [
        tasks.c.task_id == any_(array([sent.c.task_id])),
        tasks.c.seq == sent.c.seen_seq,
        tasks.c.updated_at == sent.c.seen_updated_at,
        tasks.c.created_at.is_not_distinct_from(sent.c.seen_created_at),
    ]
    if moved:
        over = sent.c.left_status.in_(list(map(_literal, sorted(FINAL))))
        conditions.append(or_(tasks.c.depended_on.is_(None), not_(over)))
    changed = (
        update(tasks)
        .where(*conditions)
        .values(values)
        .returning(
            tasks.c.task_id,
            tasks.c.lease_expires_at,
            *((tasks.c.status.label("status"), sent.c.seen_status) if moved else ()),
        )
        .cte("changed")
    )
    events = select(*(sent.c[name] for name in Event._fields)).subquery("event")
    written = _insert_events(events, of=select(changed.c.task_id)).cte("written")
    statement = select(changed.c.task_id, changed.c.lease_expires_at).add_cte(written)
    if moved:
        statement = statement.add_cte(addition(_differences(changed)).cte("counted"))
    return compiled(statement, *(["rows"] if many else [f"sent_{one.name}" for one in columns]))


def _differences(changed: Any) -> Any:
    """What the tasks that were written change of the counts; no row when there are none."""

    def number(status: ColumnElement[str], name: str) -> ColumnElement[int]:
        return func.count().filter(status == _literal(Status[name.upper()]))

    differences = (number(changed.c.status, name) - number(changed.c.seen_status, name) for name in COLUMNS)
    return select(*differences).select_from(changed).having(func.count() > literal_column("0"))


def _literal(value: str) -> ColumnElement[str]:
    return literal_column(f"'{value}'", Text)


def _names(prefix: str, columns: Iterable[str]) -> list[str]:
    return [f"{prefix}_{name}" for name in columns]


_ids = bindparam("task_ids", type_=ARRAY(Text))
# Each of these is a subquery that is run for each row of another; that is what the LIMIT is for, where there is one.
_id = func.unnest(_ids)
_wanted = select(_id.label("task_id")).order_by(_id.collate("C")).subquery("wanted")
LOCKED_COLUMNS: Final = (*task_columns, tasks.c.depended_on)
_task = select(*LOCKED_COLUMNS).where(tasks.c.task_id == _wanted.c.task_id).with_for_update().lateral("task")
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
    select(*LOCKED_COLUMNS).where(tasks.c.task_id == bindparam("task_id")).with_for_update(), "task_id"
)
_USED_KEYS: Final = compiled(
    select(_used.c.task_id, _used.c.key, _event.c.fingerprint).select_from(_used.join(_event, true())),
    "task_ids",
    "keys",
)
_INSERT: Final = _insertion(lambda insertion: insertion)
_INSERT_NEW: Final = _insertion(lambda insertion: insertion.on_conflict_do_nothing().returning(tasks.c.task_id))
_REPORT: Final = _with_counts(_report(_CHANGING, many=True), *_names("task", _CHANGING), *_names("event", _EVENT))
_REPORT_ONE: Final = _with_counts(_report(_CHANGING, many=False), *_names("task", _CHANGING), *_names("event", _EVENT))
_WITH_PLANS: Final = (*_CHANGING, *_PLAN_CHANGING)
_REPORT_WITH_PLANS: Final = _with_counts(
    _report(_WITH_PLANS, many=True), *_names("task", _WITH_PLANS), *_names("event", _EVENT)
)
_REPORT_IF_SEEN: Final = _report_if_seen(many=True)
_REPORT_ONE_IF_SEEN: Final = _report_if_seen(many=False)
_INSERT_EVENTS: Final = _with_counts(_insert_events(_sent_events(many=True)), *_names("event", _EVENT))
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
PARTS: Final = compiled(
    select(func.array_agg(aggregate_order_by(column("task_id", Text), column("task_id", Text).collate("C"))))
    .select_from(_id.alias("task_id"))
    .group_by(_shard)
    .order_by(_shard),
    "task_ids",
)
"""On Citus: tasks by shard, those of each sorted."""
_UPDATE_IN_SHARDS: Final = compiled(_update_in_shards(_CHANGING), *_names("task", _CHANGING))
_UPDATE_WITH_PLANS_IN_SHARDS: Final = compiled(_update_in_shards(_WITH_PLANS), *_names("task", _WITH_PLANS))

ON_CITUS: Final[Mapping[str, str]] = {
    # Only of one shard at a time.
    _LOCK: compiled(
        select(*LOCKED_COLUMNS).where(tasks.c.task_id == _named).order_by(tasks.c.task_id).with_for_update(), "task_ids"
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
