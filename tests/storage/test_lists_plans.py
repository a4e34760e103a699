"""What lists cost among a million tasks: whatever a filter asks for, an index leads to the few tasks that have it."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from storage import Counts, Filter, Json, Status, Storage, TooLarge, lists, open_storage
from storage.counts import TOTALS, recount
from tests.conftest import Clones
from tests.postgres import session
from tests.storage.helpers import spied

ROWS: Final = 1_000_000
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
END: Final = BEGIN + timedelta(seconds=ROWS)
# Of 8 KB; the table alone has some fifty thousand. A page of fifty that is found row by row reads about 300.
PAGES_READ_MAX: Final = 2_000

# A task for each second; of callers, queues and tags there are many common ones and a rare one.
FILL: Final = f"""
    INSERT INTO tasks (task_id, status, progress, metadata, seq, created_by, created_at, updated_at, started_at,
        completed_at, failed_at, tags, queue, priority, depends_on, on_dependency_failure, max_attempts,
        retry_initial_s, retry_max_s, retry_factor, blocked_by, attempt, ready, worker, lease_expires_at, lease_token,
        due_at)
    SELECT CASE n % 50000 WHEN 0 THEN 'import%_' WHEN 1 THEN 'IMPORT_' ELSE 'task ' END || lpad(n::text, 7, '0'),
        CASE WHEN leased THEN 'IN_PROGRESS' WHEN queued THEN 'PENDING' WHEN n % 100 = 7 THEN 'FAILED'
            ELSE 'SUCCESS' END,
        0, jsonb_build_object('user', n % 100000, 'kind', 'kind ' || n % 3), CASE WHEN n % 50000 = 13 THEN 2 ELSE 1 END,
        CASE WHEN n % 100000 = 0 THEN 'rare' WHEN n % 3 > 0 THEN 'caller ' || n % 100 END, created_at,
        CASE WHEN n % 50000 = 13 THEN '{END}' ELSE created_at END,
        CASE WHEN leased THEN created_at END,
        CASE WHEN NOT leased AND NOT queued AND n % 100 <> 7 THEN created_at END,
        CASE WHEN NOT leased AND NOT queued AND n % 100 = 7 THEN created_at END,
        CASE WHEN planned THEN CASE WHEN n % 100000 = 0 THEN ARRAY['rare', 'common'] ELSE ARRAY['common'] END END,
        CASE WHEN planned THEN CASE WHEN n % 100000 = 0 THEN 'rare' ELSE 'queue ' || n % 4 END END,
        CASE WHEN planned THEN 0 END, CASE WHEN planned THEN '{{}}'::text[] END, CASE WHEN planned THEN 'CANCEL' END,
        CASE WHEN planned THEN 2 END, CASE WHEN planned THEN 1 END, CASE WHEN planned THEN 1 END,
        CASE WHEN planned THEN 1 END, CASE WHEN planned THEN '{{}}'::text[] END, CASE WHEN planned THEN 0 END,
        CASE WHEN planned THEN queued AND NOT leased END, CASE WHEN leased THEN 'w' END,
        CASE WHEN leased THEN leased_until END, CASE WHEN leased THEN 't' END, CASE WHEN leased THEN leased_until END
    FROM generate_series(1, {ROWS}) AS n,
        LATERAL (SELECT '{BEGIN}'::timestamptz + n * interval '1 s' AS created_at, n % 5 = 0 AS planned,
            n % 500 = 0 AS queued, n % 10000 = 0 AS leased,
            CASE WHEN n % 200000 = 0 THEN '{BEGIN}' ELSE now() + interval '1 day' END AS leased_until) AS more;
    INSERT INTO task_events (task_id, seq, event_type, message, metadata, timestamp)
    SELECT task_id, 1, 'LOG', 'Task created', metadata, created_at FROM tasks;
    INSERT INTO task_events (task_id, seq, event_type, message, timestamp)
    SELECT task_id, 2, 'LOG', 'm', updated_at FROM tasks WHERE seq = 2
"""


@pytest.fixture(scope="module")
def million(clones: Clones) -> Iterator[str]:
    """A database with a million tasks."""
    url = clones.take()
    asyncio.run(fill(url))
    yield url
    asyncio.run(clones.give_back(url))


async def fill(url: str) -> None:
    """Fill a database, and make the indexes when it is full, which takes half the time."""
    async with session(url) as connection:
        indexes = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes"
            " WHERE tablename IN ('tasks', 'task_events') AND indexname NOT LIKE '%_pkey'"
        )
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['indexname']}")
        for statement in FILL.split(";"):
            await connection.execute(statement)
        for index in indexes:
            await connection.execute(index["indexdef"])
        await connection.execute("VACUUM ANALYZE tasks, task_events")


USER: Final = Json('{"user": 77}')
KIND: Final = Json('{"kind": "kind 1"}')
# What only some have. The number is of the tasks that are found.
SELECTIVE: Final[list[tuple[Filter, int]]] = [
    (Filter(created_by="rare"), 10),
    (Filter(created_by="nobody"), 0),
    (Filter(created_by="caller 7", statuses=[Status.IN_PROGRESS]), 0),
    (Filter(tags=["rare"]), 10),
    (Filter(tags=["nobody", "common"]), 0),
    (Filter(queue="rare"), 10),
    (Filter(queue="queue 0", statuses=[Status.IN_PROGRESS]), 90),
    (Filter(task_id_prefix="import%_"), 20),
    (Filter(task_id_prefix="none"), 0),
    (Filter(metadata=USER), 10),
    (Filter(metadata=Json('{"user": -1}')), 0),
    (Filter(created_after=BEGIN + timedelta(seconds=1_000), created_before=BEGIN + timedelta(seconds=1_020)), 20),
    (Filter(updated_after=END), 21),
    (Filter(stale=True), 5),
    # Together: one that leads is enough, whichever that is.
    (Filter(created_by="caller 7", statuses=[Status.SUCCESS], tags=["rare"]), 0),
    (Filter(created_by="caller 4", created_before=BEGIN + timedelta(seconds=1_000)), 7),
    (Filter(created_by="caller 77", metadata=USER), 7),
    (Filter(statuses=[Status.FAILED, Status.SUCCESS], metadata=USER), 10),
    (Filter(tags=["common"], metadata=Json('{"user": 0}')), 10),
    (Filter(tags=["rare"], metadata=KIND), 4),
    (Filter(tags=["common"], updated_after=END), 1),
    (Filter(task_id_prefix="import%_", metadata=KIND), 7),
    (Filter(queue="queue 0", stale=True), 0),
    (Filter(queue="rare", stale=False), 5),
    (
        Filter(
            statuses=list(Status),
            created_by="rare",
            tags=["rare", "common"],
            queue="rare",
            task_id_prefix="i",
            metadata=Json('{"user": 0}'),
            created_after=BEGIN,
            created_before=END + timedelta(days=1),
            updated_after=BEGIN,
            stale=True,
        ),
        5,
    ),
]
# What so many have that a page of the newest is soon full.
COMMON: Final = [
    Filter(),
    Filter(statuses=list(Status)),
    Filter(created_by="caller 4"),
    Filter(created_by="caller 7", statuses=[Status.FAILED]),
    Filter(tags=["common"]),
    Filter(queue="queue 0"),
    Filter(queue="queue 0", statuses=[Status.PENDING, Status.IN_PROGRESS]),
    Filter(task_id_prefix="t"),
    Filter(metadata=KIND),
    Filter(updated_after=BEGIN),
    Filter(updated_after=END - timedelta(seconds=ROWS // 10)),
    Filter(stale=False),
    Filter(tags=["common"], metadata=KIND, stale=False),
]


async def test_what_few_tasks_have_is_found_by_an_index_and_counted_by_it(million: str) -> None:
    now = datetime.now(UTC)
    async with open_storage(million, upgrade=False) as storage:
        for wanted, number in SELECTIVE:
            page = await storage.reader.page(51, None, wanted)
            assert len(page.tasks) == min(number, 51), wanted
            assert all(wanted.matches(task, now) for task in page.tasks)
            assert await storage.reader.count(wanted) == number, wanted
            for question in (
                lists.page(wanted, 51, None, now),
                lists.page(wanted, 51, (BEGIN + timedelta(seconds=ROWS // 2), "m"), now),
                lists.counts(wanted, now),
            ):
                await check_ways(storage, question)


async def test_what_many_tasks_have_is_found_among_the_newest(million: str) -> None:
    now = datetime.now(UTC)
    async with open_storage(million, upgrade=False) as storage:
        for wanted in COMMON:
            page = await storage.reader.page(50, None, wanted)
            assert len(page.tasks) == 50 and page.has_next, wanted
            for position in (None, (END - timedelta(seconds=ROWS // 20), "m")):
                await check_ways(storage, lists.page(wanted, 51, position, now))


async def check_ways(storage: Storage, question: lists.Question | None) -> None:
    """See that a statement goes by indexes, and reads a small part of the tables."""
    assert question is not None
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {question.statement}"
    (((found,),),) = [await storage.pool.read_list(explain, *question.arguments, ordered=question.ordered)]
    plan = json.loads(found)[0]["Plan"]
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert pages <= PAGES_READ_MAX, f"{pages} pages: {question}"
    assert "Seq Scan" not in set(ways(plan)), question


def ways(plan: dict[str, Any]) -> Iterator[str]:
    """The kinds of all nodes of a plan."""
    yield plan["Node Type"]
    for part in plan.get("Plans", ()):
        yield from ways(part)


async def test_a_filter_for_which_nothing_leads_is_given_up_and_hurts_nobody(million: str) -> None:
    async with open_storage(million, upgrade=False, statement_timeout_ms=20, connections_max=6) as storage:
        asking = [asyncio.create_task(storage.reader.count(Filter(stale=False))) for _ in range(20)]
        assert await storage.reader.task("nobody") is None
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(outcome, TooLarge)
            assert str(outcome).startswith("The tasks that the filter means are too hard to find")


async def test_all_tasks_and_those_in_a_status_are_not_counted(million: str) -> None:
    async with open_storage(million, upgrade=False) as storage:
        await recount(storage.pool)
        known = Counts(pending=1_900, in_progress=100, success=988_000, failed=10_000, canceled=0)
        with spied(storage) as spy:
            assert await storage.reader.counts() == known
            assert await storage.reader.count() == ROWS
            assert await storage.reader.counts(Filter(statuses=[Status.FAILED])) == Counts(failed=10_000)
        assert spy.statements == [TOTALS] * 3
