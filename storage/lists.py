"""What is asked of the database about the tasks that a filter means: pages of them, newest first, and their number.

There is a statement for each shape of a filter, that is, for which of its fields are given. Each field has an index,
and which of them leads is for PostgreSQL to say, by what it knows of the values.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from storage.filters import Filter
from storage.pool import compiled
from storage.tables import task_columns, task_events, tasks
from storage.task import Status

# Statements whose text is kept; there are some hundred shapes that people use, and some thousand that there are.
TEXTS_KEPT_MAX: Final = 512
_Time: Final = DateTime(timezone=True)


class Question(NamedTuple):
    """A statement, and what it is asked with."""

    statement: str
    arguments: tuple[Any, ...]
    # Whether an index has these tasks, and no others between them, in their order, so that nothing else need be thought
    # of. There are few such statements, and they are the most usual.
    ordered: bool


Position = tuple[datetime, str]
"""Where a task stands in the list: when it was created, and its ID."""


def page(wanted: Filter, limit: int, position: Position | None, now: datetime) -> Question | None:
    """The next tasks after a position, newest first; None when there can be none."""
    statuses = merged(wanted)
    if statuses is not None and not statuses:
        return None
    fields = _fields(wanted)
    arguments: dict[str, Any] = {"limit": limit}
    if position is not None:
        arguments |= zip(("after_created_at", "after_task_id"), position, strict=True)
    arguments |= _values(wanted, fields, now)
    arguments |= {_of_status(place): status for place, status in enumerate(statuses or ())}
    statement = _page(fields, wanted.stale, None if statuses is None else len(statuses), position is None)
    return Question(statement, tuple(arguments.values()), any(ordered.issuperset(fields) for ordered in _ORDERED))


def counts(wanted: Filter, now: datetime) -> Question:
    """How many tasks there are in each status that has some."""
    fields = _fields(wanted)
    arguments = _values(wanted, fields, now)
    statuses = merged(wanted)
    if statuses is not None:
        arguments["statuses"] = statuses
    return Question(_counts(fields, wanted.stale, statuses is not None), tuple(arguments.values()), ordered=False)


def merged(wanted: Filter) -> list[Status] | None:
    """The statuses of which the newest are merged, each from its own part of an index; None when none matters."""
    statuses = wanted.statuses
    if wanted.stale:
        # Only work in progress has a lease.
        statuses = {Status.IN_PROGRESS} & set(Status if statuses is None else statuses)
    elif statuses is None and (wanted.created_by is not None or wanted.queue is not None):
        # Their indexes are divided by status, so that these two may be asked about together.
        statuses = set(Status)
    return None if statuses is None else sorted(statuses)


def _fields(wanted: Filter) -> tuple[str, ...]:
    return tuple(name for name in _MEANING if getattr(wanted, name) is not None)


def _values(wanted: Filter, fields: Collection[str], now: datetime) -> dict[str, Any]:
    return {name: now if name == "stale" else getattr(wanted, name) for name in fields}


def _bound(name: str) -> Any:
    return bindparam(name, type_=_TYPES.get(name, Text()))


def _leased_in_vain() -> ColumnElement[bool]:
    # Whoever has a lease is due by its end, so it is among the few that are due.
    due = and_(tasks.c.due_at < _bound("stale"), tasks.c.delete_at.is_(None))
    return and_(due, tasks.c.lease_expires_at < _bound("stale"))


def _not_leased_in_vain() -> ColumnElement[bool]:
    return or_(tasks.c.lease_expires_at.is_(None), tasks.c.lease_expires_at >= _bound("stale"))


def _tagged() -> ColumnElement[bool]:
    return and_(tasks.c.tags.contains(_bound("tags")), tasks.c.tags != literal_column("'{}'"))


def _created_with() -> ColumnElement[bool]:
    # The first event has it too, and never changes: there the index has one entry for a task, whatever becomes of it.
    # The task's own is asked as well, for when the list is walked and not the index.
    part = cast(_bound("metadata"), JSONB)
    first = task_events.c.seq == literal_column("1")
    return and_(
        tasks.c.metadata.contains(part),
        tasks.c.task_id.in_(select(task_events.c.task_id).where(first, task_events.c.metadata.contains(part))),
    )


def _updated_after() -> ColumnElement[bool]:
    # No index may hold what each report changes, but events stay as they are, and the latest has the same time.
    time = _bound("updated_after")
    latest = select(task_events.c.task_id, task_events.c.seq).where(task_events.c.timestamp >= time)
    return and_(tasks.c.updated_at >= time, tuple_(tasks.c.task_id, tasks.c.seq).in_(latest))


_TYPES: Final[Mapping[str, Any]] = {
    "tags": ARRAY(Text),
    "created_after": _Time,
    "created_before": _Time,
    "updated_after": _Time,
    "stale": _Time,
}
# What each field of a filter asks for, but for the statuses and `stale`, which is told by its value.
_MEANING: Final[Mapping[str, Callable[[], ColumnElement[bool]]]] = {
    "created_by": lambda: tasks.c.created_by == _bound("created_by"),
    "tags": _tagged,
    # As the index has it, which no claim is to take for its own.
    "queue": lambda: tasks.c.queue.collate("POSIX") == _bound("queue"),
    "task_id_prefix": lambda: tasks.c.task_id.op("^@", is_comparison=True)(_bound("task_id_prefix")),
    "metadata": _created_with,
    "created_after": lambda: tasks.c.created_at >= _bound("created_after"),
    "created_before": lambda: tasks.c.created_at < _bound("created_before"),
    "updated_after": _updated_after,
    "stale": _leased_in_vain,
}
# What the indexes of the order are asked by, beside the status.
_OF_TIME: Final = frozenset({"created_after", "created_before"})
_ORDERED: Final = (_OF_TIME | {"created_by"}, _OF_TIME | {"queue"})
_LISTED: Final = tasks.c.task_id.collate("POSIX")


def _of_status(place: int) -> str:
    return f"status_{place}"


def _conditions(fields: Collection[str], stale: bool | None) -> list[ColumnElement[bool]]:
    return [_not_leased_in_vain() if name == "stale" and not stale else _MEANING[name]() for name in fields]


@lru_cache(TEXTS_KEPT_MAX)
def _page(fields: tuple[str, ...], stale: bool | None, statuses: int | None, from_start: bool) -> str:
    limit = bindparam("limit", type_=BigInteger)
    newest: Select[Any] = select(*task_columns).where(*_conditions(fields, stale))
    newest = newest.order_by(tasks.c.created_at.desc(), _LISTED.desc()).limit(limit)
    names = ["limit"]
    if not from_start:
        position = bindparam("after_created_at", type_=_Time), bindparam("after_task_id", type_=Text)
        newest = newest.where(tuple_(tasks.c.created_at, _LISTED) < tuple_(*position))
        names += ["after_created_at", "after_task_id"]
    names += fields
    if statuses is None:
        return compiled(newest, *names)
    # The newest of each status, each from its own index, then the newest of those. One scan for several statuses would
    # walk past every task that has none of them.
    of_status = [_of_status(place) for place in range(statuses)]
    found = [newest.where(tasks.c.status == bindparam(name, type_=Text)).subquery() for name in of_status]
    together = union_all(*(select(part) for part in found)).subquery()
    newest = select(together).order_by(together.c.created_at.desc(), together.c.task_id.collate("POSIX").desc())
    return compiled(newest.limit(limit), *names, *of_status)


@lru_cache(TEXTS_KEPT_MAX)
def _counts(fields: tuple[str, ...], stale: bool | None, of_statuses: bool) -> str:
    counted = select(tasks.c.status, func.count()).where(*_conditions(fields, stale)).group_by(tasks.c.status)
    if not of_statuses:
        return compiled(counted, *fields)
    counted = counted.where(tasks.c.status == any_(bindparam("statuses", type_=ARRAY(Text))))
    return compiled(counted, *fields, "statuses")
