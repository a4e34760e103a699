"""The only place where tasks change: commands gather into groups, and each group is one transaction.

While one group commits, the next gathers. A group inserts its new rows, locks its old ones in order of ``task_id``,
lets the rules fold its commands in order of arrival, writes what came of it, commits once, tells the feed, and
answers its callers. So every change is made under its task's row lock, and many changes share one flush of the disk.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ARRAY, Column, Select, Text, any_, bindparam, cast, delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction

from storage.commands import Command, Create, Report, size_of
from storage.database import is_connection_failure, is_passing, sqlstate
from storage.errors import IdempotencyConflict, NotConnected, OutcomeUnknown, Refusal, Unavailable
from storage.feed import Feed
from storage.lifecycle import decide
from storage.tables import task_columns, task_events, task_of, tasks
from storage.task import Event, Task, Update, UpdateType, update_of

log = logging.getLogger(__name__)

GROUP_BYTES_MAX: Final = 8 * 1024 * 1024
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
# Who waited for a lock as a group has waited; alone, each command only finds out whose row is held.
ALONE_LOCK_TIMEOUT_MS: Final = 10
# When the log is read after a commit whose outcome is unknown: it may still be on its way.
LOOK_AFTER_S: Final = (0, 2, 15)
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NOT_IN_TIME: Final = "The database did not answer in time; try again."
_OUTCOME_UNKNOWN: Final = (
    "The connection to the database broke during the commit: the change may or may not have been made. "
    "Try again with the same idempotencyKey, or read the task."
)


@dataclass(slots=True)
class _Entry:
    """A command that waits for its group, and whoever waits for the command."""

    command: Command
    future: asyncio.Future[Task | None]
    # What the group makes of it; told to the caller when the group has committed.
    outcome: Task | Refusal | None = None


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
    # The events that the group adds, each with the command that it came from.
    events: list[tuple[Event, Create | Report]] = field(default_factory=list)
    # Deletions, each with the events that went with it.
    updates: list[Update] = field(default_factory=list)


class Writer:
    """Takes commands, commits them in groups, and tells the feed."""

    def __init__(
        self,
        engine: AsyncEngine,
        feed: Feed,
        *,
        group_commands_max: int,
        waiting_commands_max: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._feed = feed
        self._group_commands_max = group_commands_max
        self._waiting_commands_max = waiting_commands_max
        self._clock = clock
        self._waiting: deque[_Entry] = deque()
        self._waiting_bytes = 0
        # Those that are being worked off.
        self._group: list[_Entry] = []
        self._news = asyncio.Event()
        self._closing = False
        self._connection: AsyncConnection | None = None
        self._loop = asyncio.create_task(self._run(), name="writer")

    @property
    def alive(self) -> bool:
        """Whether commands are being taken and worked off."""
        return not self._closing and not self._loop.done()

    async def submit(self, command: Command) -> Task | None:
        """Do what the command asks; return the task as the command left it (None: deleted) when that is on disk.

        Whoever goes away while waiting cancels nothing: the command is done, and nobody hears of it.
        """
        if not self.alive:
            raise Unavailable("The server is shutting down; try again.")
        if (
            len(self._waiting) >= self._waiting_commands_max
            or self._waiting_bytes + size_of(command) > WAITING_BYTES_MAX
        ):
            raise Unavailable(f"Too many changes are waiting to be written ({len(self._waiting)}); try again.")
        entry = _Entry(command, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._waiting_bytes += size_of(command)
        self._news.set()
        return await entry.future

    async def close(self) -> None:
        """Take no more commands, finish those that were accepted, and stop."""
        self._closing = True
        self._news.set()
        # Whoever gives up waiting gives up nothing but waiting.
        await asyncio.wait({self._loop})
        self._loop.result()

    async def _run(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    self._group = self._gather()
                    try:
                        await self._work_off(self._group)
                    except Exception:
                        # A fault of ours, after the commit for all we know. The writer goes on.
                        log.exception("A group of %d commands was not ended in order.", len(self._group))
                        self._leave_unknown(self._group, OutcomeUnknown(_OUTCOME_UNKNOWN))
                if self._closing:
                    return
        finally:
            for entry in (*self._group, *self._waiting):
                _answer(entry, Unavailable("The server is shutting down; try again."))
            await self._disconnect()

    def _gather(self) -> list[_Entry]:
        group: list[_Entry] = []
        size = 0
        while self._waiting and len(group) < self._group_commands_max:
            size += size_of(self._waiting[0].command)
            if group and size > GROUP_BYTES_MAX:
                break
            entry = self._waiting.popleft()
            self._waiting_bytes -= size_of(entry.command)
            group.append(entry)
        return group

    async def _work_off(self, group: list[_Entry]) -> None:
        error = await self._attempt(group)
        if error is None:
            return
        if isinstance(error, OutcomeUnknown):
            log.error("Whether a group of %d commands was committed is not known.", len(group), exc_info=error)
            self._leave_unknown(group, error)
            return
        if len(group) == 1 or isinstance(error, NotConnected) or is_connection_failure(error):
            told = _told(error, group)
            for entry in group:
                _answer(entry, told)
            return
        # The database refused the group, and one command may be to blame: each has one try alone.
        log.warning("A group of %d commands was refused; trying each alone.", len(group), exc_info=error)
        lock_timeout_ms = ALONE_LOCK_TIMEOUT_MS if sqlstate(error) == _LOCK_NOT_AVAILABLE else None
        stuck: set[str] = set()
        for entry in group:
            # A row that somebody else holds is waited for once, not once for each command that wants it.
            if entry.command.task_id in stuck:
                _answer(entry, Unavailable(_NOT_IN_TIME))
                continue
            error = await self._attempt([entry], lock_timeout_ms)
            if isinstance(error, OutcomeUnknown):
                self._leave_unknown([entry], error)
            elif error is not None:
                if sqlstate(error) == _LOCK_NOT_AVAILABLE:
                    stuck.add(entry.command.task_id)
                _answer(entry, _told(error, [entry]))

    def _leave_unknown(self, group: Sequence[_Entry], error: OutcomeUnknown) -> None:
        """Tell callers that nobody knows, and have subscribers read the log: the change may be there unpublished."""
        for entry in group:
            _answer(entry, error)
        task_ids = {entry.command.task_id for entry in group}
        for wait_s in LOOK_AFTER_S:
            asyncio.get_running_loop().call_later(wait_s, self._feed.look, task_ids)

    async def _attempt(self, group: list[_Entry], lock_timeout_ms: int | None = None) -> Exception | None:
        """Commit the group and answer its callers, or return why the database would not have it."""
        try:
            try:
                updates = await self._commit(group, lock_timeout_ms)
            except DBAPIError as error:
                if not is_connection_failure(error):
                    raise
                # Most often the connection died while it lay idle. Nothing was committed, so a fresh one may try.
                updates = await self._commit(group, lock_timeout_ms)
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it and the loop go on
            return error
        for entry in group:
            _answer(entry, entry.outcome)
        for change in updates:
            await self._feed.publish(change)
        return None

    async def _commit(self, group: list[_Entry], lock_timeout_ms: int | None) -> list[Update]:
        transaction: AsyncTransaction | None = None
        try:
            if self._connection is None:
                self._connection = await self._connect()
            transaction = await self._connection.begin()
            if lock_timeout_ms is not None:
                await self._connection.execute(text(f"SET LOCAL lock_timeout = {lock_timeout_ms}"))
            updates = await _write(self._connection, group, self._clock())
            try:
                await transaction.commit()
            except Exception as error:
                raise OutcomeUnknown(_OUTCOME_UNKNOWN) from error
            return updates
        except BaseException as error:
            # A connection on which the database said no is good: kept, so that no readers stand before us in a queue.
            if (
                transaction is None
                or not sqlstate(error)
                or is_connection_failure(error)
                or not await _rolled_back(transaction)
            ):
                await self._disconnect()
            raise

    async def _connect(self) -> AsyncConnection:
        try:
            return await self._engine.connect()
        except Exception as error:
            raise NotConnected(_NOT_IN_TIME) from error

    async def _disconnect(self) -> None:
        """Give the connection back; the pool rolls back what is open and drops what is broken."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close()
            except Exception as error:
                log.debug("A connection could not be closed in order.", exc_info=error)


async def _rolled_back(transaction: AsyncTransaction) -> bool:
    try:
        await transaction.rollback()
    except Exception:  # noqa: BLE001 - whatever it is, the connection is not to be trusted
        return False
    return True


def _answer(entry: _Entry, outcome: Task | Exception | None) -> None:
    if entry.future.done():
        return
    if isinstance(outcome, Exception):
        entry.future.set_exception(outcome)
    else:
        entry.future.set_result(outcome)


def _told(error: Exception, group: Sequence[_Entry]) -> Exception:
    """What the callers of a failed group hear."""
    if isinstance(error, NotConnected):
        log.error("No connection to the database could be had for %d commands.", len(group), exc_info=error)
        return error
    if is_passing(error):
        log.warning("A group of %d commands could not be written.", len(group), exc_info=error)
        unavailable = Unavailable(_NOT_IN_TIME)
        unavailable.__cause__ = error
        return unavailable
    return error


async def _write(connection: AsyncConnection, group: Sequence[_Entry], now: datetime) -> list[Update]:
    """Everything of a group but its commit: lock, fold, write. Returns what to publish once it has committed."""
    rows = await _insert_new(connection, group, now)
    await _lock_old(connection, group, rows)
    await _look_up_keys(connection, group, rows)
    for entry in group:
        try:
            entry.outcome = _fold(rows[entry.command.task_id], entry.command, now)
        except Refusal as refusal:
            entry.outcome = refusal
    await _store(connection, rows)
    updates: list[Update] = []
    for row in rows.values():
        updates.extend(row.updates)
        if row.task is not None and row.events:
            size = sum(size_of(command) for _, command in row.events)
            updates.append(update_of(row.task, tuple(event for event, _ in row.events), size))
    return updates


async def _insert_new(connection: AsyncConnection, group: Sequence[_Entry], now: datetime) -> dict[str, _Row]:
    """Insert a row for each task that the group creates first of all; return those that were new."""
    born: dict[str, tuple[Task, Create]] = {}
    for entry in group:
        if isinstance(entry.command, Create) and entry.command.task_id not in born:
            task = decide(None, entry.command, now)
            assert task is not None
            born[task.task_id] = (task, entry.command)
    if not born:
        return {}
    inserted = await connection.execute(_INSERT_NEW_TASKS, _task_parameters(born.values()))
    # The rules have not seen the command yet: as far as they know, there is no task.
    return {task_id: _Row(stored=True, task=None) for task_id in inserted.scalars()}


async def _lock_old(connection: AsyncConnection, group: Sequence[_Entry], rows: dict[str, _Row]) -> None:
    """Lock the row of every other task that the group names; add what is found, and what is not."""
    wanted = {entry.command.task_id for entry in group} - rows.keys()
    if not wanted:
        return
    for task in map(task_of, await connection.execute(_LOCK, {"task_ids": list(wanted)})):
        rows[task.task_id] = _Row(stored=True, task=task)
    for task_id in wanted - rows.keys():
        rows[task_id] = _Row(stored=False, task=None)


async def _look_up_keys(connection: AsyncConnection, group: Sequence[_Entry], rows: dict[str, _Row]) -> None:
    """Find which of the group's idempotency keys were used before. The rows are locked, so the answer stays true."""
    wanted = {
        (entry.command.task_id, entry.command.idempotency_key)
        for entry in group
        if isinstance(entry.command, Report)
        and entry.command.idempotency_key is not None
        and rows[entry.command.task_id].task is not None
    }
    if not wanted:
        return
    task_ids, keys = zip(*wanted, strict=True)
    for task_id, key, fingerprint in await connection.execute(_USED_KEYS, {"task_ids": task_ids, "keys": keys}):
        rows[task_id].keys[key] = fingerprint


def _fold(row: _Row, command: Command, now: datetime) -> Task | None:
    """Let the rules apply a command to what the commands before it left."""
    if isinstance(command, Report) and command.idempotency_key is not None:
        taken = row.keys.get(command.idempotency_key)
        if taken is not None and row.task is not None:
            if taken != command.fingerprint():
                raise IdempotencyConflict(command.task_id, command.idempotency_key)
            return row.task
    # The time of birth tells a task from one that was deleted before it, so they must differ within a group too.
    task = decide(row.task, command, now + timedelta(microseconds=len(row.updates)))
    if task is None:
        assert row.task is not None
        size = sum(size_of(reported) for _, reported in row.events)
        row.updates.append(Update(UpdateType.DELETE, row.task, tuple(event for event, _ in row.events), size))
        row.task, row.deleted, row.creation = None, True, None
        row.events.clear()
        row.keys.clear()
        return None
    assert task.last_event is not None
    assert isinstance(command, Create | Report)
    row.task = task
    row.events.append((task.last_event, command))
    if isinstance(command, Create):
        row.creation = command
    else:
        row.changed = True
        if command.idempotency_key is not None:
            row.keys[command.idempotency_key] = command.fingerprint()
    return task


async def _store(connection: AsyncConnection, rows: dict[str, _Row]) -> None:
    """Write what the fold left, with at most one statement of a kind, whatever the size of the group."""
    deleted = [task_id for task_id, row in rows.items() if row.stored and row.deleted]
    if deleted:
        await connection.execute(_DELETE_EVENTS, {"task_ids": deleted})
        await connection.execute(_DELETE_TASKS, {"task_ids": deleted})
    # Created after a deletion: in this group, or by somebody between our insert and our lock. Should yet another have
    # created it by now, the key refuses this statement, and each command of the group tries alone.
    created = [
        (row.task, row.creation)
        for row in rows.values()
        if row.task is not None and row.creation is not None and (row.deleted or not row.stored)
    ]
    if created:
        await connection.execute(_INSERT_TASKS, _task_parameters(created))
    changed = [
        row.task for row in rows.values() if row.task is not None and row.changed and row.stored and not row.deleted
    ]
    if changed:
        await connection.execute(_UPDATE_TASKS, _columns(_CHANGING, changed))
    events = [pair for row in rows.values() for pair in row.events]
    if events:
        await connection.execute(_INSERT_EVENTS, _event_parameters(events))


def _task_parameters(pairs: Iterable[tuple[Task, Create]]) -> dict[str, list[Any]]:
    # In order of task_id, as rows are locked: two processes that create the same tasks never wait for each other.
    born = sorted(pairs, key=lambda pair: pair[0].task_id)
    parameters = _columns([column.name for column in tasks.c if column.name != "metadata"], [task for task, _ in born])
    parameters["metadata_array"] = [creation.metadata_json for _, creation in born]
    return parameters


def _event_parameters(pairs: Sequence[tuple[Event, Create | Report]]) -> dict[str, list[Any]]:
    names = ("task_id", "seq", "event_type", "message", "progress", "timestamp")
    parameters = _columns(names, [event for event, _ in pairs])
    parameters["metadata_array"] = [command.metadata_json for _, command in pairs]
    keyed = [command if isinstance(command, Report) and command.idempotency_key else None for _, command in pairs]
    parameters["idempotency_key_array"] = [None if report is None else report.idempotency_key for report in keyed]
    parameters["fingerprint_array"] = [None if report is None else report.fingerprint() for report in keyed]
    return parameters


def _columns(names: Iterable[str], values: Sequence[Task] | Sequence[Event]) -> dict[str, list[Any]]:
    return {f"{name}_array": [getattr(value, name) for value in values] for name in names}


def _arrays(columns: Iterable[Column[Any]]) -> Select[Any]:
    """Rows made from one array for each column. JSON travels as text."""
    unnested: list[Any] = []
    for column in columns:
        is_json = isinstance(column.type, JSONB)
        # Without the column's collation: an array's type has none to name.
        item = Text() if is_json or isinstance(column.type, Text) else column.type
        array: Any = func.unnest(bindparam(f"{column.name}_array", type_=ARRAY(item)))
        unnested.append((cast(array, JSONB) if is_json else array).label(column.name))
    return select(*unnested)


# What a report changes of a task, after the name of the task.
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
_new = _arrays(tasks.c[name] for name in _CHANGING).subquery("new")
_task_ids = bindparam("task_ids", type_=ARRAY(Text))

# The lock of the whole design: one statement in one place. Always in order of task_id, so that no two groups, of
# whatever processes, can each hold a row that the other waits for.
_LOCK: Final = (
    select(*task_columns).where(tasks.c.task_id == any_(_task_ids)).order_by(tasks.c.task_id).with_for_update()
)
_USED_KEYS: Final = select(task_events.c.task_id, task_events.c.idempotency_key, task_events.c.fingerprint).where(
    tuple_(task_events.c.task_id, task_events.c.idempotency_key).in_(
        select(func.unnest(_task_ids), func.unnest(bindparam("keys", type_=ARRAY(Text))))
    )
)
_INSERT_TASKS: Final = insert(tasks).from_select(tasks.columns.keys(), _arrays(tasks.c))
_INSERT_NEW_TASKS: Final = _INSERT_TASKS.on_conflict_do_nothing().returning(tasks.c.task_id)
_UPDATE_TASKS: Final = (
    update(tasks).where(tasks.c.task_id == _new.c.task_id).values({name: _new.c[name] for name in _CHANGING[1:]})
)
_events = _arrays(column for column in task_events.c if column.name != "size").subquery("events")
_INSERT_EVENTS: Final = insert(task_events).from_select(
    [*_events.c.keys(), "size"],
    select(
        _events,
        # As it will be read: PostgreSQL writes 1e308 out in full.
        func.octet_length(_events.c.message) + func.coalesce(func.octet_length(cast(_events.c.metadata, Text)), 0),
    ),
)
_DELETE_EVENTS: Final = delete(task_events).where(task_events.c.task_id == any_(_task_ids))
_DELETE_TASKS: Final = delete(tasks).where(tasks.c.task_id == any_(_task_ids))
