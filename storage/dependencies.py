"""Who waits for whom: what a group writes down of it, and what it tells those who wait.

A link belongs to the task that is waited for, and is made and given its outcome under the lock of that task: so a task
that ends either sees the link, or has ended before the link could be made, and whoever would make it sees that. A link
with an outcome is a message to the one who waits. It is taken, and thereby deleted, under the lock of that one, in the
transaction that acts on it; so it is acted on once, whoever brings it and how often.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ARRAY, Text, any_, bindparam, delete, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import array, insert

from storage.commands import Settle
from storage.pool import Connection, compiled
from storage.tables import task_dependencies, tasks
from storage.task import Outcome

Link = tuple[str, str]
"""The task that is waited for, and the one that waits."""


@dataclass(slots=True)
class Links:
    """What a group knows of links while it folds."""

    # The messages that the group has taken.
    taken: dict[Link, Outcome] = field(default_factory=dict)
    # The links that it makes, by the task that is waited for, with the outcomes that come in the same group.
    made: dict[str, dict[str, Outcome | None]] = field(default_factory=dict)
    # The tasks that end or are deleted in it, and that others waited for before.
    over: dict[str, Outcome] = field(default_factory=dict)

    def make(self, task_id: str, dependent_id: str) -> None:
        """Write down that a task is waited for by another."""
        self.made.setdefault(task_id, {})[dependent_id] = None

    def end(self, task_id: str, outcome: Outcome, *, depended_on: bool) -> None:
        """Write down that a task is over."""
        for waits, told in self.made.get(task_id, {}).items():
            if told is None:
                self.made[task_id][waits] = outcome
        if depended_on:
            # A task of this ID that comes later in the group is another: nobody waited for it before.
            self.over.setdefault(task_id, outcome)

    def copy(self) -> "Links":
        """The same, to go back to."""
        return Links(self.taken, {on: dict(waiting) for on, waiting in self.made.items()}, dict(self.over))


async def take_messages(connection: Connection, settles: list[Settle]) -> dict[Link, Outcome]:
    """Take the messages that these commands bring; those that somebody else has taken are not among them."""
    if not settles:
        return {}
    # In one order for all, as every lock.
    links = sorted({(settle.on, settle.task_id) for settle in settles})
    taken = await connection.run(_TAKE, *zip(*links, strict=True))
    return {(task_id, dependent_id): Outcome(outcome) for task_id, dependent_id, outcome in taken}


async def store_links(connection: Connection, links: Links) -> list[Settle]:
    """Write what the fold left of links; return the messages that are to be brought after the commit."""
    messages: list[Settle] = []
    if links.over:
        told = await connection.run(_TELL, *zip(*sorted(links.over.items()), strict=True))
        messages += [Settle(task_id=waits, on=on, outcome=Outcome(outcome)) for on, waits, outcome in told]
    if links.made:
        made = sorted((on, waits, told) for on, waiting in links.made.items() for waits, told in waiting.items())
        await connection.run(_LINK, *zip(*made, strict=True))
        await connection.run(_MARK, sorted({on for on, _, told in made if told is None}))
        messages += [Settle(task_id=waits, on=on, outcome=told) for on, waits, told in made if told is not None]
    return messages


_task_ids = bindparam("task_ids", type_=ARRAY(Text))
_dependent_ids = bindparam("dependent_ids", type_=ARRAY(Text))
_outcomes = bindparam("outcomes", type_=ARRAY(Text))
_row = task_dependencies.c


def _sent(*names: str) -> Any:
    by_name = {"task_id": _task_ids, "dependent_id": _dependent_ids, "outcome": _outcomes}
    return func.unnest(*(by_name[name] for name in names)).table_valued(*names, name="sent").render_derived()


_pairs = _sent("task_id", "dependent_id")
_told = _sent("task_id", "outcome")
_links = _sent("task_id", "dependent_id", "outcome")
_marked = _sent("task_id")

# Each finds its rows by their keys, as those of `group` do, in the order in which they are sent.
_TAKE: Final = compiled(
    delete(task_dependencies)
    .where(
        _row.task_id == any_(array([_pairs.c.task_id])),
        _row.dependent_id == any_(array([_pairs.c.dependent_id])),
        # In words that no index of messages is made for.
        func.coalesce(_row.outcome, literal_column("''")) != literal_column("''"),
    )
    .returning(_row.task_id, _row.dependent_id, _row.outcome),
    "task_ids",
    "dependent_ids",
)
_TELL: Final = compiled(
    update(task_dependencies)
    .where(_row.task_id == any_(array([_told.c.task_id])), _row.outcome.is_(None))
    .values(outcome=_told.c.outcome)
    .returning(_row.task_id, _row.dependent_id, _row.outcome),
    "task_ids",
    "outcomes",
)
_insertion = insert(task_dependencies).from_select(["task_id", "dependent_id", "outcome"], select(_links))
# One that is there is from a task of the same ID as the one that waits, which was deleted.
_LINK: Final = compiled(
    _insertion.on_conflict_do_update(
        index_elements=["task_id", "dependent_id"], set_={"outcome": _insertion.excluded.outcome}
    ),
    "task_ids",
    "dependent_ids",
    "outcomes",
)
_MARK: Final = compiled(
    update(tasks)
    .where(tasks.c.task_id == any_(array([_marked.c.task_id])), tasks.c.depended_on.is_(None))
    .values(depended_on=literal_column("true")),
    "task_ids",
)
_message = (
    select(_row.task_id, _row.dependent_id, _row.outcome).where(_row.outcome.is_not(None)).limit(bindparam("limit"))
)
# On Citus they are compared with a parameter, by which it finds the shards; there, statements are planned for values.
_named = any_(_task_ids)

ON_CITUS: Final[Mapping[str, str]] = {
    _TAKE: compiled(
        delete(task_dependencies)
        .where(
            _row.task_id == _pairs.c.task_id,
            _row.dependent_id == _pairs.c.dependent_id,
            _row.task_id == _named,
            _row.outcome.is_not(None),
        )
        .returning(_row.task_id, _row.dependent_id, _row.outcome),
        "task_ids",
        "dependent_ids",
    ),
    _TELL: compiled(
        update(task_dependencies)
        .where(_row.task_id == _told.c.task_id, _row.task_id == _named, _row.outcome.is_(None))
        .values(outcome=_told.c.outcome)
        .returning(_row.task_id, _row.dependent_id, _row.outcome),
        "task_ids",
        "outcomes",
    ),
    _MARK: compiled(
        update(tasks)
        .where(tasks.c.task_id == _named, tasks.c.depended_on.is_(None))
        .values(depended_on=literal_column("true")),
        "task_ids",
    ),
}
"""What is said on Citus instead of a statement above."""

# Messages that nobody has taken: a process died before it brought them, or is about to.
UNTAKEN: Final = compiled(_message, "limit")
