"""Which tasks somebody means, as a frozen value. A filter that exists is well-formed: to make it is to check it.

The reader asks the database with it; `matches` says the same of a task at hand, for whoever hears of changes.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from json import loads
from typing import Any, Final

from storage.errors import BadInput
from storage.limits import CREATED_BY_CHARACTERS_MAX, TASK_ID_CHARACTERS_MAX, check_name
from storage.options import QUEUE_CHARACTERS_MAX, TAG_CHARACTERS_MAX, TAGS_MAX
from storage.task import Json, Status, Task

# Each is looked for in the metadata of every task that changes.
METADATA_VALUES_MAX: Final = 64
# Of these, objects and lists that stand in a list: each is held against every item of the task's list.
METADATA_LISTED_MAX: Final = 8
# Of numbers beyond it, Python takes some for the same that PostgreSQL, which goes by their digits, does not.
EXACT_BELOW: Final = 2**53


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which tasks are meant: those of which all that is given is true. What is None does not matter."""

    # In one of these; in none of them when it is empty.
    statuses: Collection[Status] | None = None
    created_by: str | None = None
    # With all of these.
    tags: Sequence[str] | None = None
    queue: str | None = None
    task_id_prefix: str | None = None
    # An object that the metadata of the task contains, as PostgreSQL's `@>` says it.
    metadata: Json | None = None
    # At this time or later; before this time; changed at this time or later.
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    # Whether a worker has it whose lease has run out.
    stale: bool | None = None

    def __post_init__(self) -> None:
        if self.statuses is not None:
            object.__setattr__(self, "statuses", frozenset(self.statuses))
        if self.created_by is not None:
            check_name("createdBy", self.created_by, CREATED_BY_CHARACTERS_MAX)
        if self.tags is not None:
            # No tags ask for nothing.
            object.__setattr__(self, "tags", tuple(sorted(set(self.tags))) or None)
        for tag in self.tags or ():
            check_name("tag", tag, TAG_CHARACTERS_MAX)
        if self.tags is not None and len(self.tags) > TAGS_MAX:
            raise BadInput(f"tags must have at most {TAGS_MAX} items, got {len(self.tags)}.")
        if self.queue is not None:
            check_name("queue", self.queue, QUEUE_CHARACTERS_MAX)
        if self.task_id_prefix is not None:
            check_name("taskIdPrefix", self.task_id_prefix, TASK_ID_CHARACTERS_MAX)
        if self.metadata is not None:
            if not isinstance(wanted := self.metadata.value(), dict):
                raise BadInput("metadata must be an object: a task is found when its own contains it.")
            if (values := sum(1 for _ in _values(wanted))) > METADATA_VALUES_MAX:
                raise BadInput(f"metadata must hold at most {METADATA_VALUES_MAX} values, got {values}.")
            lists = (value for value in _values(wanted) if isinstance(value, list))
            if (
                listed := sum(isinstance(item, dict | list) for items in lists for item in items)
            ) > METADATA_LISTED_MAX:
                raise BadInput(
                    f"metadata must hold at most {METADATA_LISTED_MAX} objects and lists in its lists, got {listed}."
                )

    @property
    def empty(self) -> bool:
        """Whether it asks for nothing, so that it means every task."""
        return all(getattr(self, field.name) is None for field in fields(self))

    def matches(self, task: Task, now: datetime) -> bool:
        """Whether it means a task as it is."""
        return self.holds(task, now) and self.fits(task)

    def holds(self, task: Task, now: datetime) -> bool:
        """Whether that is true of which the answer changes in the life of a task."""
        return (
            (self.statuses is None or task.status in self.statuses)
            and (self.updated_after is None or task.updated_at >= self.updated_after)
            and (self.stale is None or is_stale(task, now) is self.stale)
        )

    def fits(self, task: Task) -> bool:
        """Whether all else is true of it. For one task the answer is always the same."""
        plan = task.plan
        return (
            (self.created_by is None or task.created_by == self.created_by)
            and (self.tags is None or (plan is not None and set(self.tags) <= set(plan.tags)))
            and (self.queue is None or (plan is not None and plan.queue == self.queue))
            and (self.task_id_prefix is None or task.task_id.startswith(self.task_id_prefix))
            and (self.created_after is None or task.created_at >= self.created_after)
            and (self.created_before is None or task.created_at < self.created_before)
            # The last, as it is by far the most to do.
            and (
                self.metadata is None
                or (task.metadata is not None and _contains(self._read(task.metadata), self._object))
            )
        )

    @cached_property
    def _object(self) -> Any:
        assert self.metadata is not None
        return self._read(self.metadata)

    @cached_property
    def _exactly(self) -> bool:
        """Whether it has numbers that must be compared by their digits, which costs ten times as much."""
        assert self.metadata is not None
        return any(_is_number(value) and abs(value) >= EXACT_BELOW for value in _values(self.metadata.value()))

    def _read(self, metadata: Json) -> Any:
        return _parsed(metadata, self._exactly)


EVERYTHING: Final = Filter()


def is_stale(task: Task, now: datetime) -> bool:
    """Whether a worker has it whose lease has run out."""
    return task.plan is not None and task.plan.lease_expires_at is not None and task.plan.lease_expires_at < now


@lru_cache(maxsize=2)
def _parsed(metadata: Json, exactly: bool) -> Any:
    """What metadata are. All filters look at the same task, one after the other."""
    return loads(metadata, parse_float=Decimal) if exactly else metadata.value()


def _contains(whole: Any, part: Any) -> bool:
    """What `whole @> part` is for two values of jsonb."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and _contains(whole[name], value) for name, value in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(whole, list)
            and (not (plain := _plain(part)) or plain <= _plain(whole))
            and all(
                any(_contains(one, wanted) for one in whole if type(one) is type(wanted))
                for wanted in part
                if isinstance(wanted, dict | list)
            )
        )
    # To Python, True is 1.
    return bool(whole == part) and (type(whole) is type(part) or (_is_number(whole) and _is_number(part)))


def _plain(items: list[Any]) -> set[tuple[bool, Any]]:
    """What of a list is neither object nor list, with what tells True from 1."""
    return {(isinstance(item, bool), item) for item in items if not isinstance(item, dict | list)}


def _values(value: Any) -> Iterator[Any]:
    """A value with all that are in it."""
    yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values(child)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
