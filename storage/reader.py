"""What is known: tasks by ID, events by number, pages of the list. It changes nothing.

Events are numbered 1, 2, 3 … without a gap, so every question about a history is a range of numbers, and any number of
ranges, of any tasks, is one query.
"""

import asyncio
import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ARRAY, BigInteger, Row, Text, any_, bindparam, func, literal, or_, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from storage.batches import Batches
from storage.database import patiently
from storage.errors import BadInput, TooLarge
from storage.limits import (
    HISTORY_PAGE_DEFAULT,
    HISTORY_PAGE_MAX,
    TASK_ID_CHARACTERS_MAX,
    TASKS_PAGE_MAX,
    check_name,
)
from storage.tables import event_columns, event_of, task_columns, task_events, task_of, tasks
from storage.task import Event, Status, Task

# Events in one chunk of a subscription's snapshot or of what it missed.
LOG_CHUNK_EVENTS: Final = 500
# Events that one query may bring. When many subscribers come back at once, each gets smaller chunks.
BATCH_EVENTS_MAX: Final = 20_000
# Message and metadata of the events in one answer: a chunk ends there, and a history is refused.
EVENTS_BYTES_MAX: Final = 8 * 1024 * 1024

Range = tuple[str, int, int]
"""A task's ID with the numbers of the first and the last event wanted."""


@dataclass(frozen=True, slots=True)
class LogPage:
    """A task and the next of its events, as of the same instant."""

    task: Task
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page of the list, newest first."""

    tasks: tuple[Task, ...]
    has_next: bool
    has_previous: bool


@dataclass(slots=True)
class _Events:
    """The events of a range, or as many of them as may be held."""

    events: tuple[Event, ...] = ()
    cut: bool = False


class Reader:
    """Lookups that travel together, and the list."""

    def __init__(self, engine: AsyncEngine) -> None:
        # A single statement is its own transaction; that saves two round trips.
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        # Two statements that must tell of the same instant.
        self._instant = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._tasks = Batches(self._load_tasks)
        self._events = Batches(
            self._load_events, weigh=lambda wanted: wanted[2] - wanted[1] + 1, weight_max=BATCH_EVENTS_MAX
        )
        self._logs = Batches(self._load_logs)
        # Reads that nothing can be batched with.
        self._under_way: set[asyncio.Task[Sequence[Row[Any]]]] = set()

    async def task(self, task_id: str) -> Task | None:
        """The task with this ID, or None."""
        check_name("taskId", task_id, TASK_ID_CHARACTERS_MAX)
        return await self._tasks.get(task_id)

    async def events(self, task_id: str, first_seq: int, last_seq: int) -> tuple[Event, ...]:
        """The events from one number to another, both inclusive, oldest first."""
        if first_seq > last_seq:
            return ()
        found = await self._events.get((task_id, first_seq, last_seq))
        if found is None:
            return ()
        if found.cut:
            raise TooLarge(
                f"These {last_seq - first_seq + 1} events hold more than {EVENTS_BYTES_MAX} bytes; ask for fewer."
            )
        return found.events

    async def log(self, task_id: str, after_seq: int) -> LogPage | None:
        """The task and the next chunk of events after a number; None when there is no such task."""
        return await self._logs.get((task_id, after_seq))

    async def page(self, first: int, after: str | None, statuses: Collection[Status] | None) -> TaskPage:
        """A page of the list: newest first, stable while tasks are created, as fast at its end as at its start."""
        if not 1 <= first <= TASKS_PAGE_MAX:
            raise BadInput(f"first must be 1 to {TASKS_PAGE_MAX}, got {first}.")
        position = None if after is None else _position(after)
        rows = () if statuses is not None and not statuses else await self._apart(_page(first + 1, position, statuses))
        return TaskPage(
            tuple(map(task_of, rows[:first])), has_next=len(rows) > first, has_previous=position is not None
        )

    async def count(self, statuses: Collection[Status] | None) -> int:
        """How many tasks there are. It costs a scan; ask only when somebody wants to know."""
        statement = select(func.count()).select_from(tasks)
        if statuses is not None:
            statement = statement.where(tasks.c.status.in_([status.value for status in statuses]))
        return int((await self._apart(statement))[0][0])

    async def close(self) -> None:
        """Wait for what is under way."""
        for batches in (self._tasks, self._events, self._logs):
            await batches.close()
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _apart(self, statement: Any) -> Sequence[Row[Any]]:
        # In a task of its own: a caller who goes away leaves no connection in the middle of a statement.
        task = asyncio.create_task(self._rows(statement))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _rows(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        async def read() -> Sequence[Row[Any]]:
            async with self._single.connect() as connection:
                return (await connection.execute(statement, parameters)).all()

        return await patiently(read)

    async def _load_tasks(self, task_ids: Sequence[str]) -> Mapping[str, Task]:
        return {row.task_id: task_of(row) for row in await self._rows(_TASKS_BY_ID, {"task_ids": list(task_ids)})}

    async def _load_events(self, ranges: Sequence[Range]) -> Mapping[Range, _Events]:
        return _by_range(ranges, await self._rows(_EVENTS_BY_RANGE, _range_parameters(ranges)))

    async def _load_logs(self, keys: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], LogPage]:
        async def read() -> Mapping[tuple[str, int], LogPage]:
            async with self._instant.connect() as connection, connection.begin():
                return await _logs(connection, keys)

        return await patiently(read)


def history_range(
    task: Task, first: int | None, last: int | None, after: int | None, before: int | None
) -> tuple[int, int]:
    """The numbers of the first and the last event that `history` with these arguments means, as of that task."""
    if first is not None and last is not None:
        raise BadInput("history takes first or last, got both.")
    for name, count in (("first", first), ("last", last)):
        if count is not None and not 1 <= count <= HISTORY_PAGE_MAX:
            raise BadInput(f"{name} must be 1 to {HISTORY_PAGE_MAX}, got {count}.")
    for name, seq in (("after", after), ("before", before)):
        if seq is not None and seq < 0:
            raise BadInput(f"{name} must be the number of an event, got {seq}.")
    low = 1 if after is None else after + 1
    high = task.seq if before is None else min(task.seq, before - 1)
    if first is not None:
        return low, min(high, low + first - 1)
    return max(low, high - (HISTORY_PAGE_DEFAULT if last is None else last) + 1), high


def cursor(task: Task) -> str:
    """Where a task stands in the list, as a word that clients hand back and do not read."""
    return _cursor((task.created_at - _EPOCH) // timedelta(microseconds=1), task.task_id)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR_VERSION: Final = "1"


def _cursor(microseconds: int, task_id: str) -> str:
    return base64.urlsafe_b64encode(f"{_CURSOR_VERSION}:{microseconds}:{task_id}".encode()).decode().rstrip("=")


def _position(text: str) -> tuple[datetime, str]:
    try:
        _, number, task_id = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_").decode().split(":", 2)
        microseconds = int(number)
        # Ours is the one way to write it. Python reads others, too.
        if text != _cursor(microseconds, task_id):
            raise ValueError(text)
        check_name("taskId", task_id, TASK_ID_CHARACTERS_MAX)
        return _EPOCH + timedelta(microseconds=microseconds), task_id
    except (ValueError, OverflowError, BadInput):
        raise BadInput("after must be an endCursor or a cursor that this list gave, got something else.") from None


_TASKS_BY_ID: Final = select(*task_columns).where(tasks.c.task_id == any_(bindparam("task_ids", type_=ARRAY(Text))))

_wanted = select(
    func.unnest(bindparam("task_ids", type_=ARRAY(Text))).label("task_id"),
    func.unnest(bindparam("first_seqs", type_=ARRAY(BigInteger))).label("first_seq"),
    func.unnest(bindparam("last_seqs", type_=ARRAY(BigInteger))).label("last_seq"),
).subquery("wanted")
_slice = (
    select(
        *event_columns,
        func.sum(task_events.c.size).over(order_by=task_events.c.seq).label("bytes"),
        func.sum(task_events.c.size).over().label("bytes_all"),
    )
    .where(
        task_events.c.task_id == _wanted.c.task_id,
        task_events.c.seq.between(_wanted.c.first_seq, _wanted.c.last_seq),
    )
    .order_by(task_events.c.seq)
    .lateral("slice")
)
# The first event of a range comes whatever its size: there must be something to go on from.
_EVENTS_BY_RANGE: Final = select(
    _wanted.c.first_seq,
    _wanted.c.last_seq,
    _slice.c.bytes_all > EVENTS_BYTES_MAX,
    *(_slice.c[column.name] for column in event_columns),
).select_from(_wanted.join(_slice, or_(_slice.c.bytes <= EVENTS_BYTES_MAX, _slice.c.seq == _wanted.c.first_seq)))


def _range_parameters(ranges: Sequence[Range]) -> dict[str, list[Any]]:
    task_ids, first_seqs, last_seqs = zip(*ranges, strict=True)
    return {"task_ids": list(task_ids), "first_seqs": list(first_seqs), "last_seqs": list(last_seqs)}


def _by_range(ranges: Sequence[Range], rows: Iterable[Sequence[Any]]) -> Mapping[Range, _Events]:
    found: dict[Range, list[Event]] = {key: [] for key in ranges}
    cut: set[Range] = set()
    for row in rows:
        event = event_of(row[3:])
        key = (event.task_id, row[0], row[1])
        found[key].append(event)
        if row[2]:
            cut.add(key)
    return {key: _Events(tuple(events), key in cut) for key, events in found.items()}


async def _logs(connection: AsyncConnection, keys: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], LogPage]:
    rows = await connection.execute(_TASKS_BY_ID, {"task_ids": list({task_id for task_id, _ in keys})})
    known = {row.task_id: task_of(row) for row in rows}
    chunk = min(LOG_CHUNK_EVENTS, max(1, BATCH_EVENTS_MAX // len(keys)))
    ranges = {
        (task_id, seq): (task_id, seq + 1, min(known[task_id].seq, seq + chunk))
        for task_id, seq in keys
        if task_id in known and seq < known[task_id].seq
    }
    events: Mapping[Range, _Events] = {}
    if ranges:
        wanted = list(ranges.values())
        events = _by_range(wanted, await connection.execute(_EVENTS_BY_RANGE, _range_parameters(wanted)))
    return {
        key: LogPage(known[key[0]], events[ranges[key]].events if key in ranges else ())
        for key in keys
        if key[0] in known
    }


def _page(limit: int, position: tuple[datetime, str] | None, statuses: Collection[Status] | None) -> Any:
    order = (tasks.c.created_at.desc(), tasks.c.task_id.desc())
    newest = select(*task_columns).order_by(*order).limit(limit)
    if position is not None:
        newest = newest.where(tuple_(tasks.c.created_at, tasks.c.task_id) < tuple_(*map(literal, position)))
    if statuses is None:
        return newest
    # The newest of each status, each from its own index, then the newest of those. One scan for several statuses would
    # walk past every task that has none of them.
    found = [newest.where(tasks.c.status == status.value).subquery() for status in sorted(set(statuses))]
    merged = union_all(*(select(part) for part in found)).subquery()
    return select(merged).order_by(merged.c.created_at.desc(), merged.c.task_id.desc()).limit(limit)
