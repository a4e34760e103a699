"""Which tasks a filter means: what the database finds, and what is said of a task at hand, are the same."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from storage import (
    BadInput,
    Create,
    Delete,
    Filter,
    Json,
    Options,
    Status,
    Storage,
    Task,
    TaskPage,
    UpdateProgress,
    cursor,
    open_storage,
)
from storage.errors import NotConnected
from storage.filters import METADATA_VALUES_MAX
from storage.limits import metadata_json
from storage.lists import merged
from storage.writer import Writer
from tests.postgres import execute, session
from tests.storage.helpers import note, opened, spied, submit
from tests.storage.test_lifecycle import NOW

# What may be taken for another of these.
NUMBERS: Final = (0, 1, 1.0, -0.0, True, False, 0.1, 1e22, 1e23, 2**53 + 1, float(2**53), 2**62, float(2**62), 1e308)
TEXTS: Final = ("", "a", "A", "é", "e\u0301", "\U0001f600", "1", "true", "null", "%", "_", "\\", '"', "a b")
IDS: Final = ("a%b", "a_b", "a\\b", "a", "A", "ab", "é", "e\u0301", "\U0001f600", "\uffff", "a%", "%")

_scalars = st.one_of(st.none(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS))
_keys = st.sampled_from(("a", "b", "", "é", "e\u0301"))
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=6,
)
_objects = st.dictionaries(_keys, _values, max_size=3)
_times = st.sampled_from([NOW + timedelta(microseconds=n) for n in range(4)])
_names = st.sampled_from(("a", "A", "é", "a b"))
_tags = st.lists(st.sampled_from(("a", "A", "b", "é", 'with "quotes"', "{}", "NULL", "a,b", "\\")), max_size=3)


@st.composite
def _creations(draw: st.DrawFn) -> list[tuple[Create, datetime, datetime | None, datetime | None]]:
    """Tasks to create, each with the time of that, of a report on it, and until when somebody has it."""
    made = []
    for task_id in draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=8, unique=True)):
        options = None
        if draw(st.booleans()):
            options = Options(tags=tuple(set(draw(_tags))), queue=draw(st.one_of(st.none(), _names)))
        creation = Create(
            task_id=task_id,
            status=draw(st.sampled_from(Status)),
            metadata=draw(st.one_of(_values, _objects)),
            created_by=draw(st.one_of(st.none(), _names)),
            options=options,
        )
        lease = draw(st.sampled_from((None, NOW, NOW + timedelta(days=36_500))))
        made.append((creation, draw(_times), draw(st.one_of(st.none(), _times)), lease))
    return made


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.none(), strategy)


_filters = st.builds(
    Filter,
    statuses=_maybe(st.lists(st.sampled_from(Status), max_size=3)),
    created_by=_maybe(_names),
    tags=_maybe(_tags),
    queue=_maybe(_names),
    task_id_prefix=_maybe(st.sampled_from(("a", "a%", "a_", "a\\", "A", "é", "e", "%", "_", "\U0001f600"))),
    metadata=_maybe(_objects.map(metadata_json)),
    created_after=_maybe(_times),
    created_before=_maybe(_times),
    updated_after=_maybe(_times),
    stale=_maybe(st.booleans()),
)


def test_the_database_and_whoever_has_a_task_say_the_same(database: str) -> None:
    with opened(database) as (storage, run):

        async def check(made: Any, filters: list[Filter]) -> None:
            tasks = await fill(storage, database, made)
            for wanted in filters:
                now = datetime.now(UTC)
                meant = [task.task_id for task in tasks if wanted.matches(task, now)]
                page = await storage.reader.page(50, None, wanted)
                assert [task.task_id for task in page.tasks] == meant, wanted
                assert await storage.reader.count(wanted) == len(meant)

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(_creations(), st.lists(_filters, min_size=1, max_size=4))
        def holds(made: Any, filters: list[Filter]) -> None:
            run(check(made, filters))

        holds()


def test_what_an_object_contains_is_what_postgresql_says(database: str) -> None:
    with opened(database) as (storage, run):

        async def contains(whole: Any, part: Any) -> bool:
            (row,) = await storage.pool.run("SELECT $1::jsonb @> $2::jsonb", metadata_json(whole), metadata_json(part))
            return bool(row[0])

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.one_of(_values, _objects), _objects)
        @example({"a": [1, [2]]}, {"a": [[2]]})
        @example({"a": [1]}, {"a": 1})
        @example({"a": 2**62}, {"a": float(2**62)})
        @example({"a": float(2**62)}, {"a": 2**62})
        @example({"a": float(2**62)}, {"a": float(2**62)})
        @example({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]})
        @example({"a": True}, {"a": 1})
        @example({"a": [True, "1", None]}, {"a": [1]})
        @example({"a": [1, True]}, {"a": [1.0, True]})
        @example({"a": [{"b": [0]}, [0], 0]}, {"a": [0, [0], {"b": [0]}]})
        @example({"a": [[]]}, {"a": [[], {}]})
        @example({"a": [2**62, 0.5]}, {"a": [2**62, 0.5]})
        @example({"a": None}, {"a": None})
        @example({}, {"a": None})
        def holds(whole: Any, part: dict[str, Any]) -> None:
            wanted = Filter(metadata=metadata_json(part))
            task = Task("T", Status.PENDING, 0, metadata_json(whole), 1, None, NOW, NOW, None, None, None, None)
            expected = False if whole is None else run(contains(whole, part))
            assert wanted.matches(task, NOW) == expected

        holds()


async def fill(storage: Storage, database: str, made: Any) -> list[Task]:
    """Create tasks at times of our own; return them as the list has them."""
    await execute(database, "TRUNCATE tasks, task_events, task_counts, task_dependencies")
    clock = [NOW]
    writer = Writer(
        storage.pool,
        storage.feed,
        storage.queues,
        groups_max=1,
        group_commands_max=100,
        waiting_commands_max=100,
        wait_s=5,
        clock=lambda: clock[0],
    )
    for creation, created_at, updated_at, leased_until in made:
        clock[0] = created_at
        await writer.submit(creation)
        if updated_at is not None and not creation.status.final:
            clock[0] = updated_at
            await writer.submit(note(creation.task_id))
        if leased_until is not None:
            await execute(
                database,
                f"UPDATE tasks SET worker = 'w', lease_token = 't', lease_expires_at = '{leased_until}',"
                f" due_at = '{leased_until}' WHERE status = 'IN_PROGRESS' AND max_attempts IS NOT NULL",
            )
    await writer.close()
    return list((await storage.reader.page(50, None)).tasks)


async def walk(storage: Storage, wanted: Filter, first: int) -> list[str]:
    """The whole list, page by page."""
    found: list[str] = []
    after = None
    while True:
        page = await storage.reader.page(first, after, wanted)
        found += [task.task_id for task in page.tasks]
        if not page.has_next:
            return found
        after = cursor(page.tasks[-1])


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(created_by="me"),
        Filter(queue="q"),
        Filter(tags=["t"]),
        Filter(metadata=Json('{"a": 1}')),
        Filter(task_id_prefix="T"),
        Filter(updated_after=NOW, stale=False),
        Filter(queue="q", statuses=[Status.PENDING, Status.FAILED], created_by="me"),
    ],
)
async def test_a_filtered_list_is_walked_page_by_page_while_others_come_and_go(database: str, wanted: Filter) -> None:
    async with open_storage(database, upgrade=False) as storage:

        async def create(*task_ids: str) -> None:
            for task_id in task_ids:
                wishes = Options(tags=("t", "u"), queue="q")
                creation = Create(task_id=task_id, created_by="me", metadata={"a": 1, "b": 2}, options=wishes)
                await storage.writer.submit(creation)
                await storage.writer.submit(Create(task_id=f"other {task_id}"))

        ids = [f"T{number}" for number in range(10)]
        await create(*ids)
        expected = sorted([*ids, *([f"other {task_id}" for task_id in ids] if wanted.stale is False else [])])
        for first in (1, 3, 10, 50):
            assert sorted(await walk(storage, wanted, first)) == expected
        page = await storage.reader.page(4, None, wanted)
        await create("T new")
        await storage.writer.submit(Delete(task_id=page.tasks[-1].task_id))
        rest = await storage.reader.page(50, cursor(page.tasks[-1]), wanted)
        assert sorted(task.task_id for task in (*page.tasks, *rest.tasks)) == expected


def test_statuses_that_cannot_be_are_not_asked_about() -> None:
    assert merged(Filter()) is None
    assert merged(Filter(stale=True)) == [Status.IN_PROGRESS]
    assert merged(Filter(stale=True, statuses=[Status.FAILED])) == []
    assert merged(Filter(stale=False)) is None
    assert merged(Filter(queue="q")) == merged(Filter(created_by="c")) == sorted(Status)
    assert merged(Filter(queue="q", statuses=[Status.FAILED])) == [Status.FAILED]


async def test_a_filter_that_means_nothing_asks_for_nothing(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with spied(storage) as spy:
            wanted = Filter(statuses=[Status.FAILED], stale=True)
            assert await storage.reader.page(5, None, wanted) == TaskPage((), has_next=False, has_previous=False)
        assert spy.statements == []
        assert await storage.reader.count(wanted) == 0


async def test_a_task_is_deleted_only_if_it_is_meant_when_its_row_is_locked(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), Create(task_id="b"))
        pending = Filter(statuses=[Status.PENDING])
        outcomes = await submit(
            storage,
            UpdateProgress(task_id="a", progress=1),
            Delete(task_id="a", wanted=pending),
            Delete(task_id="b", wanted=pending),
        )
        assert outcomes[1].status is Status.IN_PROGRESS
        assert outcomes[2] is None
        assert await walk(storage, Filter(), 10) == ["a"]


async def test_lists_leave_connections_for_what_else_is_read(database: str) -> None:
    async with open_storage(database, upgrade=False, connections_max=4, pool_wait_s=0.2) as storage:
        await submit(storage, Create(task_id="T"))
        async with session(database) as other, other.transaction():
            # Lists wait for this; what is read by ID does not.
            await other.execute("LOCK TABLE task_events")
            lists = [
                asyncio.create_task(storage.reader.page(1, None, Filter(metadata=Json('{"a": 1}')))) for _ in range(3)
            ]
            outcomes = await asyncio.gather(*lists[1:], return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [NotConnected] * 2
            assert await storage.reader.task("T") is not None
        assert (await lists[0]).tasks == ()


def test_the_bounds_of_a_filter() -> None:
    Filter(metadata=metadata_json({str(number): number for number in range(METADATA_VALUES_MAX - 1)}))
    with pytest.raises(BadInput) as refused:
        Filter(metadata=metadata_json({str(number): number for number in range(METADATA_VALUES_MAX)}))
    assert str(refused.value) == "metadata must hold at most 64 values, got 65."
    Filter(metadata=metadata_json({"a": [{}] * 4 + [1], "b": {"c": [[[]], [[]]]}}))
    with pytest.raises(BadInput) as refused:
        Filter(metadata=metadata_json({"a": [{}] * 5, "b": {"c": [[[]], [[]]]}}))
    assert str(refused.value) == "metadata must hold at most 8 objects and lists in its lists, got 9."
    for wrong in cast(tuple[Any, ...], (1, [], "a", True)):
        with pytest.raises(BadInput, match="metadata must be an object"):
            Filter(metadata=metadata_json(wrong))
    Filter(tags=[f"t{number}" for number in range(20)], task_id_prefix="x" * 255, queue="q" * 64)
    for arguments in (
        {"tags": [f"t{number}" for number in range(21)]},
        {"tags": ["x" * 65]},
        {"task_id_prefix": "x" * 256},
        {"task_id_prefix": ""},
        {"queue": "q" * 65},
        {"created_by": "\0"},
    ):
        with pytest.raises(BadInput):
            Filter(**arguments)
    assert Filter(tags=[]).empty and not Filter(statuses=[]).empty
