"""How PostgreSQL finds the rows that statements name: by their keys, whatever the tables held when it was planned."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import pytest

from storage import Filter, Status, claimer, dependencies, group, keys, lists, open_storage, reader, timers
from storage.task import FINAL
from tests.postgres import execute

ROWS: Final = 100_000
# What EXPLAIN says of a way into a table; a scan of an index without a condition reads all of it.
SCAN: Final = re.compile(
    r"(\w+(?: Only)? Scan)(?: Backward)?(?: using (\w+))? on "
    r"(tasks|task_events|task_dependencies|task_counts|api_keys)\b"
)

# Each statement that names its rows, with values of the right kinds, and the indexes by which it finds them.
IDS: Final = ["id 1", "id 2"]
TASKS: Final = "tasks_pkey"
EVENTS: Final = "task_events_pkey"
LINKS: Final = "task_dependencies_pkey"
KEYED: Final[dict[str, tuple[str, Sequence[Any], list[str]]]] = {
    "lock one": (group._LOCK_ONE, ["id 1"], [TASKS]),
    "lock": (group._LOCK, [IDS], [TASKS]),
    "used keys": (group._USED_KEYS, [IDS, ["k", "k"]], ["task_events_task_id_idempotency_key"]),
    "report one": (group._REPORT_ONE.plain, [None] * 19, [TASKS]),
    "report one, counted": (group._REPORT_ONE.counted, [None] * 24, [TASKS]),
    "report": (group._REPORT.plain, [None] * 19, [TASKS]),
    "report, counted": (group._REPORT.counted, [None] * 24, [TASKS]),
    "report one if seen": (group._REPORT_ONE_IF_SEEN.plain, [None] * 12, [TASKS]),
    "report one if seen, counted": (group._REPORT_ONE_IF_SEEN.counted, [None] * 18, [TASKS]),
    "report if seen": (group._REPORT_IF_SEEN.plain, [None], [TASKS]),
    "report if seen, counted": (group._REPORT_IF_SEEN.counted, [None], [TASKS]),
    "report with plans": (group._REPORT_WITH_PLANS.plain, [None] * 28, [TASKS]),
    "report with plans, counted": (group._REPORT_WITH_PLANS.counted, [None] * 33, [TASKS]),
    "take messages": (dependencies._TAKE, [IDS, IDS], [LINKS]),
    "tell those who wait": (dependencies._TELL, [IDS, IDS], [LINKS]),
    "mark those waited for": (dependencies._MARK, [IDS], [TASKS]),
    "due": (timers._DUE, ["2027-01-01", 9], ["tasks_due_at"]),
    "to be deleted": (timers._TO_BE_DELETED, ["2027-01-01", 9, IDS], ["tasks_delete_at"]),
    "kept": (timers._KEPT, ["2027-01-01", 9, IDS], ["tasks_ended_at"]),
    "ready": (reader._READY, ["q 1", 9], ["tasks_ready"]),
    "claim": (claimer.NEXT, ["q 1", 9], ["tasks_ready"]),
    "delete events": (group._DELETE_EVENTS, [IDS], [EVENTS]),
    "delete tasks": (group._DELETE_TASKS, [IDS], [TASKS]),
    "tasks": (reader._TASKS, [IDS], [TASKS]),
    "latest": (reader._LATEST, [IDS], [TASKS, EVENTS]),
    "single events": (reader._SINGLE_EVENTS, [IDS, [1, 1]], [EVENTS]),
    "slices": (reader._SLICES, [IDS, [1, 1], [9, 9]], [EVENTS]),
    "logs": (reader._LOGS, [IDS, [0, 0], 9, 9_000], [TASKS, EVENTS]),
    "keys": (keys._BY_ID, [IDS], ["api_keys_pkey"]),
}

FILL: Final = """
    INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at)
    SELECT 'id ' || number, 'PENDING', 0, 1, now(), now() FROM generate_series({0}, {1}) AS number;
    INSERT INTO task_events (task_id, seq, event_type, message, timestamp, idempotency_key, fingerprint)
    SELECT 'id ' || number % 100, number, 'LOG', 'm', now(), number::text, ''
    FROM generate_series({0}, {1}) AS number;
    INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at, tags, queue, priority, depends_on,
        on_dependency_failure, max_attempts, retry_initial_s, retry_max_s, retry_factor, blocked_by, attempt, ready,
        due_at)
    SELECT 'planned ' || number, 'PENDING', 0, 1, now(), now(), '{{}}', 'q ' || number % 10, number % 5, '{{}}',
        'CANCEL', 3, 1, 1, 1, '{{}}', 0, number % 3 > 0, CASE WHEN number % 7 = 0 THEN now() END
    FROM generate_series({0}, {1}) AS number;
    INSERT INTO task_dependencies (task_id, dependent_id, outcome)
    SELECT 'id ' || number % 100, 'id ' || number, CASE WHEN number % 9 = 0 THEN 'SUCCESS' END
    FROM generate_series({0}, {1}) AS number;
    INSERT INTO api_keys (key_id, name, secret_hash, permissions, created_at)
    SELECT 'id ' || number, number::text, '', '{{}}', now() FROM generate_series({0}, {1}) AS number;
"""


@pytest.mark.parametrize("rows_before", [0, 1, 30])
async def test_a_plan_that_was_made_while_the_tables_were_small_is_good_when_they_are_large(
    database: str, rows_before: int
) -> None:
    if rows_before:
        # As they are after a first try of the program, and a night.
        await execute(database, FILL.format(1, rows_before))
        await execute(database, "VACUUM ANALYZE")
    async with open_storage(database, upgrade=False) as storage, storage.pool.connection() as connection:
        driver = connection.driver
        # Nothing but the plans that are kept; no table is analyzed meanwhile.
        for number, (statement, _, _) in enumerate(KEYED.values()):
            await driver.execute(f"PREPARE statement_{number} AS {statement}")
        before = [await plan(driver, number, values) for number, (_, values, _) in enumerate(KEYED.values())]
        await execute(database, FILL.format(rows_before + 1, ROWS))
        after = [await plan(driver, number, values) for number, (_, values, _) in enumerate(KEYED.values())]
        assert before == after
        await execute(database, "ANALYZE")
        analyzed = [await plan(driver, number, values) for number, (_, values, _) in enumerate(KEYED.values())]
    for (name, (_, _, indexes)), *plans in zip(KEYED.items(), after, analyzed, strict=True):
        for lines in plans:
            ways = [(way, index) for way, index, _ in SCAN.findall(lines)]
            assert [index for _, index in ways] == indexes, f"{name}:\n{lines}"
            assert {way for way, _ in ways} <= {"Index Scan", "Index Only Scan"}, f"{name}:\n{lines}"
            # What an index is asked for is the key; nothing is read and then thrown away.
            assert lines.count("Index Cond") == len(indexes), f"{name}:\n{lines}"
            assert "Filter: (task" not in lines, f"{name}:\n{lines}"
    # Rows are locked one by one, in order of their keys.
    lock = after[list(KEYED).index("lock")]
    assert re.match(r'Nested Loop\s+->  Sort\s+Sort Key: .* COLLATE "C"', lock), lock
    assert lock.index("Sort Key") < lock.index("LockRows") < lock.index(TASKS), lock
    # Or updated so: in the order in which they are sent, which is that of their keys.
    report = after[list(KEYED).index("report if seen")]
    assert re.search(r"Update on tasks\s+->  Nested Loop\s+->  CTE Scan on sent\s+->  Index Scan", report), report


async def test_messages_that_nobody_has_taken_are_found_by_an_index_of_nothing_else(database: str) -> None:
    await execute(database, FILL.format(1, ROWS))
    async with open_storage(database, upgrade=False) as storage, storage.pool.connection() as connection:
        for analyze in ("SELECT 1", "ANALYZE"):
            await execute(database, analyze)
            await connection.driver.execute(f"PREPARE statement_{len(analyze)} AS {dependencies.UNTAKEN}")
            lines = await plan(connection.driver, len(analyze), [9])
            assert SCAN.findall(lines) == [("Index Scan", "task_dependencies_untaken", "task_dependencies")], lines


async def plan(driver: asyncpg.Connection, number: int, values: Sequence[Any]) -> str:
    """The plan of a prepared statement, as text without what it is thought to cost."""
    rows = await driver.fetch(f"EXPLAIN (COSTS OFF) EXECUTE statement_{number} ({', '.join(map(literal, values))})")
    return "\n".join(row[0] for row in rows)


def literal(value: Any) -> str:
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(literal, value))}]"
    return "NULL" if value is None else str(value) if isinstance(value, int) else f"'{value}'"


POSITION: Final = (datetime(2026, 1, 1, tzinfo=UTC), "id 1")
LISTED: Final[list[tuple[lists.Question | None, set[str]]]] = [
    (lists.page(Filter(), 51, None, POSITION[0]), {"tasks_created_at_task_id"}),
    (lists.page(Filter(), 51, POSITION, POSITION[0]), {"tasks_created_at_task_id"}),
    (lists.page(Filter(statuses=[Status.FAILED]), 51, None, POSITION[0]), {"tasks_status_created_at_task_id"}),
    (lists.page(Filter(statuses=[Status.FAILED]), 51, POSITION, POSITION[0]), {"tasks_status_created_at_task_id"}),
    (lists.page(Filter(statuses=FINAL), 51, None, POSITION[0]), {"tasks_status_created_at_task_id"}),
]


async def test_a_page_of_the_list_is_read_from_the_index_of_its_order(database: str) -> None:
    await execute(database, FILL.format(1, ROWS) + "; ANALYZE")
    async with open_storage(database, upgrade=False) as storage, storage.pool.connection() as connection:
        await connection.begin_list()
        for number, (question, indexes) in enumerate(LISTED):
            assert question is not None
            await connection.driver.execute(f"PREPARE statement_{number} AS {question.statement}")
            lines = await plan(connection.driver, number, question.arguments)
            assert {index for _, index, _ in SCAN.findall(lines)} == indexes, lines
            # It is read in order; only what comes of several statuses may have to be sorted.
            assert "Append" in lines or "Sort" not in lines, lines
        await connection.roll_back()
