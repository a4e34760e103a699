"""How many tasks there are in each status, known without counting them.

It is the sum of a table's few rows. A group that changes a status adds a row that says by how much, in its transaction;
so nothing is lost or counted twice, and no two groups want the same row. The timers put rows together now and then.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, any_, bindparam, cast, delete, exists, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert

from storage.pool import Pool, compiled
from storage.tables import task_counts, tasks
from storage.task import Status

# Rows that are put together at a time.
FOLDED_MAX: Final = 10_000


class Counts(NamedTuple):
    """Numbers of tasks by status, in the order of the statuses."""

    pending: int = 0
    in_progress: int = 0
    success: int = 0
    failed: int = 0
    canceled: int = 0

    @property
    def total(self) -> int:
        """Of tasks in whatever status."""
        return sum(self)

    def of(self, statuses: Collection[Status]) -> "Counts":
        """Those of these statuses alone."""
        return Counts(*(number if status in statuses else 0 for status, number in zip(Status, self, strict=True)))


_PLACES: Final = {status: place for place, status in enumerate(Status)}


def counts_of(rows: Iterable[tuple[str, int]]) -> Counts:
    """The counts that rows of statuses with their numbers are."""
    return Counts(**{status.lower(): number for status, number in rows})


def difference(changes: Iterable[tuple[Status | None, Status | None]]) -> Sequence[int]:
    """What changes of tasks, from one status to another, change of the counts; empty when that is nothing.

    None is the status of what is not there.
    """
    changed = [0] * len(_PLACES)
    for before, after in changes:
        if before is not after:
            if before is not None:
                changed[_PLACES[before]] -= 1
            if after is not None:
                changed[_PLACES[after]] += 1
    return changed if any(changed) else ()


COLUMNS: Final = tuple(status.lower() for status in Status)
PARAMETERS: Final = tuple(f"counted_{name}" for name in COLUMNS)


def addition(values: Any = None) -> Any:
    """The insertion of a row: of parameters, or of what a SELECT brings."""
    if values is None:
        values = select(*(cast(bindparam(name, type_=BigInteger), BigInteger) for name in PARAMETERS))
    return insert(task_counts).from_select(COLUMNS, values)


ADD: Final = compiled(addition(), *PARAMETERS)
_numbers = [task_counts.c[name] for name in COLUMNS]


def _sums(of: Any) -> Any:
    # A sum of bigint is numeric.
    return select(*(cast(func.coalesce(func.sum(of.c[name]), literal_column("0")), BigInteger) for name in COLUMNS))


TOTALS: Final = compiled(_sums(task_counts).select_from(task_counts))
"""The counts."""

_several = exists(select(literal_column("1")).select_from(task_counts).offset(literal_column("1")))
_some = (
    select(task_counts.c.id)
    .where(_several)
    .order_by(task_counts.c.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_gone = (
    delete(task_counts)
    .where(task_counts.c.id == any_(func.array(_some.scalar_subquery())))
    .returning(*_numbers)
    .cte("gone")
)
FOLD: Final = compiled(addition(_sums(_gone).select_from(_gone).having(func.count() > literal_column("0"))), "limit")
"""Put rows together, where there are several, into one. Whoever reads sees all of them, or that one."""

_LOCK: Final = compiled(select(task_counts.c.id).with_for_update())
_counted = tuple(func.count().filter(tasks.c.status == literal_column(f"'{status}'")) for status in Status)
_replaced = delete(task_counts).returning(task_counts.c.id).cte("replaced")
_undisturbed = (
    select(func.count()).select_from(_replaced).scalar_subquery()
    == select(func.count()).select_from(task_counts).scalar_subquery()
)
_count = addition(select(*_counted).select_from(tasks))
_RECOUNT: Final = compiled(_count.add_cte(_replaced).returning(_undisturbed))
# On Citus this cannot be one statement.
_CLEAR: Final = compiled(delete(task_counts))
_COUNT: Final = compiled(_count)


async def recount(pool: Pool) -> None:
    """Count all tasks anew. What others change meanwhile is counted by them, and nobody waits for it.

    On Citus nobody may change anything meanwhile.
    """
    undisturbed = False
    async with pool.connection() as connection:
        while not undisturbed:
            await connection.begin()
            # From now on these are not put together with others. Those that come before the next statement may be, in
            # the middle of it, and then it has counted what it has not replaced.
            await connection.run(_LOCK)
            if connection.distributed:
                await connection.run(_CLEAR)
                await connection.run(_COUNT)
                undisturbed = True
            else:
                ((undisturbed,),) = await connection.run(_RECOUNT)
            await (connection.commit() if undisturbed else connection.roll_back())
