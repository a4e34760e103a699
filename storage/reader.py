"""What is known: tasks by ID, events by number, pages of the list. It changes nothing.

Events are numbered 1, 2, 3 … without a gap, so every question about a history is a range of numbers, and any number of
ranges, of any tasks, is one query.
"""

import asyncio
import base64
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    FromClause,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from storage import lists
from storage.batches import Batches
from storage.counts import TOTALS, Counts, counts_of
from storage.database import is_out_of_time
from storage.errors import BadInput, TooLarge, Unavailable
from storage.filters import EVERYTHING, Filter
from storage.limits import (
    HISTORY_PAGE_DEFAULT,
    HISTORY_PAGE_MAX,
    TASK_ID_CHARACTERS_MAX,
    TASKS_PAGE_MAX,
    check_name,
)
from storage.options import QUEUE_CHARACTERS_MAX
from storage.pool import Pool, compiled
from storage.tables import (
    EVENT_TYPES,
    event_columns,
    event_of,
    of_named_task,
    read,
    task_columns,
    task_events,
    task_of,
    tasks,
)
from storage.task import Event, Json, Task

# Events in one chunk of a subscription's snapshot or of what it missed.
LOG_CHUNK_EVENTS: Final = 500
# Events that one query may bring. When many subscribers come back at once, each gets smaller chunks.
BATCH_EVENTS_MAX: Final = 20_000
# Of histories, fewer: the rows of one query are read while PostgreSQL works on the next.
HISTORY_BATCH_EVENTS_MAX: Final = 600
# Between two queries for subscribers who come. One who comes alone waits for nothing.
RESUMPTIONS_APART_S: Final = 0.05
# Whoever asks how many tasks are ready wants to know whether there is work, and roughly how much.
READY_COUNTED_MAX: Final = 1_000
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


class _Slice(NamedTuple):
    """The events of a range, or as many of them as may be held."""

    events: tuple[Event, ...]
    cut: bool


class Reader:
    """Lookups that travel together, and the list."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tasks = Batches(self._load_tasks)
        self._single_events = Batches(self._load_single_events)
        self._slices = Batches(
            self._load_slices, weigh=lambda wanted: wanted[2] - wanted[1] + 1, weight_max=HISTORY_BATCH_EVENTS_MAX
        )
        self._logs = Batches(self._load_logs)
        self._resumptions = Batches(self._load_logs, apart_s=RESUMPTIONS_APART_S)
        # One queue at a time, counted once for all who ask meanwhile.
        self._ready = Batches(self._load_ready, weight_max=1)
        self._counts = Batches(self._load_counts)
        # Reads that nothing can be batched with.
        self._under_way: set[asyncio.Task[Sequence[Any]]] = set()

    async def task(self, task_id: str) -> Task | None:
        """The task with this ID, or None."""
        check_name("taskId", task_id, TASK_ID_CHARACTERS_MAX)
        return await self._tasks.get(task_id)

    async def events(self, task_id: str, first_seq: int, last_seq: int) -> tuple[Event, ...]:
        """The events from one number to another, both inclusive, oldest first."""
        if first_seq > last_seq:
            return ()
        if first_seq == last_seq:
            found = await self._single_events.get((task_id, first_seq))
        else:
            found = await self._slices.get((task_id, first_seq, last_seq))
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

    async def resume(self, task_id: str, after_seq: int) -> LogPage | None:
        """The same for a subscriber who comes: they come by thousands when a server has gone."""
        check_name("taskId", task_id, TASK_ID_CHARACTERS_MAX)
        return await self._resumptions.get((task_id, after_seq))

    async def positions(self, task_ids: Sequence[str]) -> dict[str, tuple[datetime, int]]:
        """When these tasks were created, and the numbers of their latest events."""
        rows = await self._apart(self._pool.read(_POSITIONS, task_ids))
        return {task_id: (created_at, seq) for task_id, created_at, seq in rows}

    async def latest(self, task_ids: Sequence[str]) -> dict[str, tuple[Task, Event]]:
        """These tasks as they are, each with its latest event."""
        rows = await self._apart(self._pool.read(_LATEST, task_ids))
        columns = len(task_columns)
        return {row[0]: (task_of(row[:columns]), event_of(row[0], row[columns:])) for row in rows}

    async def changed_since(self, time: datetime, tasks_max: int) -> dict[str, int]:
        """Tasks with events of this time or later, so many at most, and the numbers of their latest events."""
        return dict(await self._apart(self._pool.read_list(_CHANGED_SINCE, time, tasks_max)))

    async def ready(self, queue: str) -> int:
        """How many tasks of a queue can be claimed; it is counted no further than to `READY_COUNTED_MAX`."""
        check_name("queue", queue, QUEUE_CHARACTERS_MAX)
        return await self._ready.get(queue) or 0

    async def page(self, first: int, after: str | None, wanted: Filter = EVERYTHING) -> TaskPage:
        """A page of the list: newest first, stable while tasks are created, as fast at its end as at its start."""
        if not 1 <= first <= TASKS_PAGE_MAX:
            raise BadInput(f"first must be 1 to {TASKS_PAGE_MAX}, got {first}.")
        position = None if after is None else _position(after)
        question = lists.page(wanted, first + 1, position, datetime.now(UTC))
        rows = () if question is None else await self._ask(question)
        return TaskPage(
            tuple(map(task_of, rows[:first])), has_next=len(rows) > first, has_previous=position is not None
        )

    async def counts(self, wanted: Filter = EVERYTHING) -> Counts:
        """How many of the tasks that are meant there are in each status.

        Of all tasks, and of those in some statuses, it is known; with any other filter they are counted.
        """
        if not replace(wanted, statuses=None).empty:
            return counts_of(await self._ask(lists.counts(wanted, datetime.now(UTC))))
        known = await self._counts.get(None)
        assert known is not None
        return known if wanted.statuses is None else known.of(wanted.statuses)

    async def count(self, wanted: Filter = EVERYTHING) -> int:
        """How many tasks are meant."""
        return (await self.counts(wanted)).total

    async def close(self) -> None:
        """Wait for what is under way."""
        for batches in (self._tasks, self._single_events, self._slices, self._logs, self._resumptions):
            await batches.close()
        await self._ready.close()
        await self._counts.close()
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _apart(self, reading: Coroutine[Any, Any, Sequence[Any]]) -> Sequence[Any]:
        # In a task of its own: a caller who goes away leaves no connection in the middle of a statement.
        task = asyncio.create_task(reading)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _ask(self, question: lists.Question) -> Sequence[Any]:
        statement, arguments, ordered = question
        try:
            return await self._apart(self._pool.read_list(statement, *arguments, ordered=ordered))
        except Unavailable as error:
            if ordered or error.__cause__ is None or not is_out_of_time(error.__cause__):
                raise
            raise TooLarge(
                "The tasks that the filter means are too hard to find: it took too long. Ask for something that fewer "
                "tasks have, by itself or together with the rest."
            ) from error

    async def _load_counts(self, keys: Sequence[None]) -> Mapping[None, Counts]:
        (row,) = await self._pool.read(TOTALS)
        return dict.fromkeys(keys, Counts._make(row))

    async def _load_ready(self, queues: Sequence[str]) -> Mapping[str, int]:
        (queue,) = queues
        ((ready,),) = await self._pool.read(_READY, queue, READY_COUNTED_MAX)
        return {queue: ready}

    async def _load_tasks(self, task_ids: Sequence[str]) -> Mapping[str, Task]:
        return {row[0]: task_of(row) for row in await self._pool.read(_TASKS, task_ids)}

    async def _load_single_events(self, keys: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], _Slice]:
        found = {}
        for place, too_large, *row in await self._pool.read(_SINGLE_EVENTS, *zip(*keys, strict=True)):
            key = keys[place - 1]
            found[key] = _Slice((event_of(key[0], row),), too_large)
        return found

    async def _load_slices(self, ranges: Sequence[Range]) -> Mapping[Range, _Slice]:
        found = {}
        for place, *slice_ in await self._pool.read(_SLICES, *zip(*ranges, strict=True)):
            key = ranges[place - 1]
            found[key] = _slice_of(key[0], slice_)
        return found

    async def _load_logs(self, keys: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], LogPage]:
        chunk = min(LOG_CHUNK_EVENTS, max(1, BATCH_EVENTS_MAX // len(keys)))
        task_ids, seqs = zip(*keys, strict=True)
        found = {}
        # All of them together have a bound on their bytes, too; each brings one event at least.
        bytes_max = EVENTS_BYTES_MAX // len(keys)
        for place, *row in await self._pool.read(_LOGS, task_ids, seqs, chunk, bytes_max):
            key = keys[place - 1]
            found[key] = LogPage(task_of(row[: len(task_columns)]), _slice_of(key[0], row[len(task_columns) :]).events)
        return found


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


def _slice_of(task_id: str, row: Sequence[Any]) -> _Slice:
    """The events that a row of arrays is: one for each of the columns of events, all as long."""
    cut, seqs, event_types, messages, progresses, metadata, timestamps, actors = row
    if seqs is None:
        return _Slice((), False)
    events = tuple(
        map(
            Event,
            repeat(task_id),
            seqs,
            map(EVENT_TYPES.__getitem__, event_types),
            messages,
            progresses,
            [None if text is None else Json(text) for text in metadata],
            timestamps,
            actors,
        )
    )
    # The last one shows that it is one too many; but the first comes whatever its size: there must be something to go
    # on from.
    return _Slice(events[:-1] if cut and len(events) > 1 else events, cut)


def _wanted(**kinds: Any) -> Any:
    """Rows made from arrays, numbered from 1: arrays cost less to send and to bring than rows do."""
    arrays = (bindparam(f"{name}s", type_=ARRAY(kind)) for name, kind in kinds.items())
    columns = (column(name, kind) for name, kind in kinds.items())
    rows = func.unnest(*arrays).table_valued(*columns, with_ordinality="place", name="wanted")
    return rows.render_derived()


def _task_of(wanted: Any, columns: Sequence[ColumnElement[Any]] = task_columns) -> FromClause:
    # Run for each row of what is wanted, which is what the LIMIT is for. It could be had by a join of all tasks
    # otherwise, and would be when they were few at the time of planning.
    one = select(*columns).where(tasks.c.task_id == wanted.c.task_id).limit(literal_column("1"))
    return one.lateral("task")


def _slice_after(wanted: Any, numbers: ColumnElement[bool], bytes_max: ColumnElement[int]) -> FromClause:
    """One row of arrays: the events of these numbers up to the first that is one too many."""
    bytes_so_far = func.sum(task_events.c.size).over(order_by=task_events.c.seq, rows=(None, 0))
    slice_ = (
        select(task_events, bytes_so_far.label("bytes"))
        .where(task_events.c.task_id == wanted.c.task_id, numbers)
        .order_by(task_events.c.seq)
        .correlate(wanted)
        .subquery("slice")
    )
    arrays = (
        func.array_agg(cast(slice_.c[name], Text) if name == "metadata" else slice_.c[name]).label(name)
        for name in Event._fields[1:]
    )
    within = slice_.c.bytes - slice_.c.size <= bytes_max
    return select((func.max(slice_.c.bytes) > bytes_max).label("cut"), *arrays).where(within).lateral("events")


def _slice_of_task(wanted: Any, numbers: ColumnElement[bool], bytes_max: ColumnElement[int]) -> FromClause:
    """The same for Citus, of the row of `tasks` at hand."""
    bytes_so_far = func.sum(task_events.c.size).over(order_by=task_events.c.seq, rows=(None, 0))
    slice_ = (
        select(task_events, bytes_so_far.label("bytes"))
        .where(of_named_task(_named), numbers)
        .correlate(wanted, tasks)
        .subquery("slice")
    )
    arrays = (
        func.array_agg(
            aggregate_order_by(cast(slice_.c[name], Text) if name == "metadata" else slice_.c[name], slice_.c.seq)
        ).label(name)
        for name in Event._fields[1:]
    )
    within = slice_.c.bytes - slice_.c.size <= bytes_max
    return (
        select(slice_.c.task_id, (func.max(slice_.c.bytes) > bytes_max).label("cut"), *arrays)
        .where(within)
        .group_by(slice_.c.task_id)
        .lateral("events")
    )


def _but_task_id(slice_: FromClause) -> Sequence[ColumnElement[Any]]:
    return [column for column in slice_.c if column.name != "task_id"]


_bytes_max: Final[ColumnElement[int]] = literal_column(str(EVENTS_BYTES_MAX))
_ids = _wanted(task_id=Text)
_numbers = _wanted(task_id=Text, seq=BigInteger)
_ranges = _wanted(task_id=Text, first_seq=BigInteger, last_seq=BigInteger)
_task = _task_of(_ids)
_task_at = _task_of(_numbers)
_position_of = _task_of(_ids, (tasks.c.task_id, tasks.c.created_at, tasks.c.seq))
_event = (
    select((task_events.c.size > _bytes_max).label("too_large"), *event_columns)
    .where(task_events.c.task_id == _numbers.c.task_id, task_events.c.seq == _numbers.c.seq)
    .limit(literal_column("1"))
    .lateral("event")
)
_latest = (
    select(*event_columns)
    .where(task_events.c.task_id == _ids.c.task_id, task_events.c.seq == _task.c.seq)
    .limit(literal_column("1"))
    .lateral("latest")
)
_of_range = task_events.c.seq.between(_ranges.c.first_seq, _ranges.c.last_seq)
_of_chunk = and_(
    task_events.c.seq > _numbers.c.seq, task_events.c.seq <= _numbers.c.seq + bindparam("chunk", type_=BigInteger)
)
_chunk_bytes_max = bindparam("bytes_max", type_=BigInteger)
_slice = _slice_after(_ranges, _of_range, _bytes_max)
_chunk = _slice_after(_numbers, _of_chunk, _chunk_bytes_max)

_TASKS: Final = compiled(select(_task).select_from(_ids.join(_task, true())), "task_ids")
_POSITIONS: Final = compiled(
    select(_position_of).select_from(_ids.join(_position_of, true())),
    "task_ids",
)
_LATEST: Final = compiled(
    select(_task, _latest).select_from(_ids.join(_task, true()).join(_latest, true())), "task_ids"
)
_SINGLE_EVENTS: Final = compiled(
    select(_numbers.c.place, _event).select_from(_numbers.join(_event, true())), "task_ids", "seqs"
)
_SLICES: Final = compiled(
    select(_ranges.c.place, _slice).select_from(_ranges.join(_slice, true())), "task_ids", "first_seqs", "last_seqs"
)
# One statement, so that tasks and events are of the same instant.
_LOGS: Final = compiled(
    select(_numbers.c.place, _task_at, _chunk).select_from(_numbers.join(_task_at, true()).join(_chunk, true())),
    "task_ids",
    "seqs",
    "chunk",
    "bytes_max",
)
# Named by a parameter, so that Citus finds the shards that are concerned.
_named = any_(bindparam("task_ids", type_=ARRAY(Text)))
_named_tasks = tasks.c.task_id == _named
# Grouped, so that it is looked up, and the history of a task is not joined: Citus would not carry out a LIMIT.
_event_in_shard = (
    select(task_events)
    .where(of_named_task(_named), task_events.c.seq == _numbers.c.seq)
    .group_by(task_events.c.task_id, task_events.c.seq)
    .correlate(_numbers, tasks)
    .lateral("event")
)
_latest_in_shard = (
    select(task_events)
    .where(of_named_task(_named), task_events.c.seq == tasks.c.seq)
    .group_by(task_events.c.task_id, task_events.c.seq)
    .correlate(tasks)
    .lateral("latest")
)
_too_large = (_event_in_shard.c.size > _bytes_max).label("too_large")
_slice_in_shard = _slice_of_task(_ranges, _of_range, _bytes_max)
_chunk_in_shard = _slice_of_task(_numbers, _of_chunk, _chunk_bytes_max)

ON_CITUS: Final[Mapping[str, str]] = {
    _TASKS: compiled(select(*task_columns).where(_named_tasks), "task_ids"),
    _POSITIONS: compiled(select(tasks.c.task_id, tasks.c.created_at, tasks.c.seq).where(_named_tasks), "task_ids"),
    _LATEST: compiled(
        select(*task_columns, *(read(_latest_in_shard.c[name]) for name in Event._fields[1:]))
        .select_from(tasks)
        .join(_latest_in_shard, true())
        .where(_named_tasks),
        "task_ids",
    ),
    _SINGLE_EVENTS: compiled(
        select(_numbers.c.place, _too_large, *(read(_event_in_shard.c[name]) for name in Event._fields[1:]))
        .select_from(_numbers)
        .join(tasks, tasks.c.task_id == _numbers.c.task_id)
        .join(_event_in_shard, true())
        .where(_named_tasks),
        "task_ids",
        "seqs",
    ),
    _SLICES: compiled(
        select(_ranges.c.place, *_but_task_id(_slice_in_shard))
        .select_from(_ranges)
        .join(tasks, tasks.c.task_id == _ranges.c.task_id)
        .join(_slice_in_shard, _slice_in_shard.c.task_id == tasks.c.task_id)
        .where(_named_tasks),
        "task_ids",
        "first_seqs",
        "last_seqs",
    ),
    # Of one task, all is in one shard, and of one instant.
    _LOGS: compiled(
        select(_numbers.c.place, *task_columns, *_but_task_id(_chunk_in_shard))
        .select_from(_numbers)
        .join(tasks, tasks.c.task_id == _numbers.c.task_id)
        .outerjoin(_chunk_in_shard, _chunk_in_shard.c.task_id == tasks.c.task_id)
        .where(_named_tasks),
        "task_ids",
        "seqs",
        "chunk",
        "bytes_max",
    ),
}
"""What is said on Citus instead of a statement above."""

_CHANGED_SINCE: Final = compiled(
    select(task_events.c.task_id, func.max(task_events.c.seq))
    .where(task_events.c.timestamp >= bindparam("time", type_=DateTime(timezone=True)))
    .group_by(task_events.c.task_id)
    .limit(bindparam("tasks_max", type_=BigInteger)),
    "time",
    "tasks_max",
)
_ready = (
    select(literal_column("1").label("one"))
    .where(tasks.c.queue == bindparam("queue", type_=Text), tasks.c.ready)
    .limit(bindparam("limit"))
    .subquery()
)
_READY: Final = compiled(select(func.count()).select_from(_ready), "queue", "limit")
