"""Lookups that travel together, ranges of a history, and pages of the list."""

import asyncio
import base64
from collections.abc import Collection
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage import (
    BadInput,
    Complete,
    Create,
    Delete,
    Filter,
    Status,
    Storage,
    Task,
    TaskPage,
    TooLarge,
    Unavailable,
    UpdateProgress,
    cursor,
    history_range,
    open_storage,
)
from storage.lifecycle import decide
from storage.pool import open_pool
from storage.reader import EVENTS_BYTES_MAX, Reader
from tests.postgres import session
from tests.storage.helpers import kill_connections, note, spied, submit, until_blocked
from tests.storage.test_lifecycle import NOW


def without_database() -> Reader:
    """A reader for what is refused before anybody asks a database."""
    url, nothing = "postgresql://nobody@localhost:1/", 1
    return Reader(
        open_pool(
            url, connections_max=nothing, pool_wait_s=nothing, statement_timeout_ms=nothing, lock_timeout_ms=nothing
        )
    )


LOCK_TASKS: Final = "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"


async def test_lookups_in_the_same_turn_are_one_query_of_each_kind(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        created = await submit(storage, *(Create(task_id=f"T{n}") for n in range(5)))
        noted = await submit(storage, *(note(f"T{n}", "first") for n in range(5)), *(note(f"T{n}") for n in range(5)))
        reader = storage.reader
        with spied(storage) as spy:
            found, ranges, logs = await asyncio.gather(
                asyncio.gather(*(reader.task(task_id) for task_id in ("T0", "T3", "missing", "T0"))),
                asyncio.gather(
                    reader.events("T0", 1, 1),
                    reader.events("T0", 2, 3),
                    reader.events("T1", 2, 2),
                    reader.events("missing", 1, 9),
                    reader.events("T0", 2, 3),
                    reader.events("T0", 3, 2),
                ),
                asyncio.gather(reader.log("T2", 0), reader.log("T4", 1), reader.log("T2", 3), reader.log("missing", 0)),
            )
        # For tasks, single events, ranges and logs.
        assert len(spy.statements) == 4
        assert [task and (task.task_id, task.seq) for task in found] == [("T0", 3), ("T3", 3), None, ("T0", 3)]
        history = {n: (created[n].last_event, noted[n].last_event, noted[5 + n].last_event) for n in range(5)}
        assert list(ranges) == [history[0][:1], history[0][1:], history[1][1:2], (), history[0][1:], ()]
        assert [page and (page.task.task_id, page.events) for page in logs] == [
            ("T2", history[2]),
            ("T4", history[4][1:]),
            ("T2", ()),
            None,
        ]


async def test_a_page_of_the_log_is_of_one_instant(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        await submit(storage, Create(task_id="T"), note(message="old"), note(message="old"))
        # Whoever looks for a task has begun to read, and goes on when the lock is free.
        await other.execute(
            "CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_advisory_xact_lock_shared(1); RETURN true; END $$;"
            " ALTER TABLE tasks RENAME TO stored; CREATE VIEW tasks AS SELECT * FROM stored WHERE wait();"
            " SELECT pg_advisory_lock(1)"
        )
        reading = asyncio.create_task(storage.reader.log("T", 0))
        await until_blocked(database)
        await other.execute("DELETE FROM task_events WHERE message = 'old'; UPDATE stored SET seq = 1")
        await other.execute("SELECT pg_advisory_unlock(1)")
        page = await reading
        assert page is not None
        assert page.task.seq == 3
        assert [event.message for event in page.events] == ["Task created", "old", "old"]


async def test_lookups_that_arrive_while_others_are_under_way_wait_for_one_query_more(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        await submit(storage, *(Create(task_id=f"T{n}") for n in range(50)))
        with spied(storage) as spy:
            lookups = []
            async with other.transaction():
                await other.execute(LOCK_TASKS)
                for n in range(50):
                    lookups.append(asyncio.create_task(storage.reader.task(f"T{n}")))
                    await asyncio.sleep(0)
                await until_blocked(database, sessions=4)
            found = await asyncio.gather(*lookups)
        assert [task and task.task_id for task in found] == [f"T{n}" for n in range(50)]
        assert len(spy.statements) == 5


async def test_a_query_looks_up_at_most_its_number_of_keys(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.batches.BATCH_KEYS_MAX", 10)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=f"T{n}") for n in range(25)))
        with spied(storage) as spy:
            found = await asyncio.gather(*(storage.reader.task(f"T{n}") for n in range(25)))
        assert [task and task.task_id for task in found] == [f"T{n}" for n in range(25)]
        assert len(spy.statements) == 3


async def test_a_query_brings_at_most_its_number_of_events(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.reader.HISTORY_BATCH_EVENTS_MAX", 10)
    monkeypatch.setattr("storage.reader.BATCH_EVENTS_MAX", 10)
    async with open_storage(database, upgrade=False) as storage:
        ids = [f"T{n}" for n in range(5)]
        await submit(
            storage,
            *(Create(task_id=task_id) for task_id in ids),
            *(note(task_id) for task_id in ids for _ in range(11)),
        )
        with spied(storage) as spy:
            ranges = await asyncio.gather(
                *(storage.reader.events(task_id, 1, 4) for task_id in ids), storage.reader.events("T0", 1, 12)
            )
        assert [len(events) for events in ranges] == [4, 4, 4, 4, 4, 12]
        # Two and two and one; and one that weighs too much for company.
        assert len(spy.statements) == 4
        # Those who read logs get shorter chunks when they are many.
        pages = await asyncio.gather(*(storage.reader.log(task_id, 0) for task_id in ids))
        assert [page and len(page.events) for page in pages] == [2] * 5
        (page,) = await asyncio.gather(storage.reader.log("T0", 0))
        assert page is not None
        assert len(page.events) == 10


async def test_too_many_lookups_are_refused_at_once(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.batches.WAITING_KEYS_MAX", 2)
    async with open_storage(database, upgrade=False) as storage:
        lookups = (storage.reader.task(task_id) for task_id in ("T0", "T1", "T2", "T1"))
        outcomes = await asyncio.gather(*lookups, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), type(None), Unavailable, type(None)]


async def test_a_caller_who_goes_away_disturbs_no_other_lookup(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with other.transaction():
            await other.execute(LOCK_TASKS)
            lookups = [asyncio.create_task(storage.reader.task(task_id)) for task_id in ("T", "T", "other")]
            await until_blocked(database)
            lookups[0].cancel()
            lookups[2].cancel()
        gone, found, _ = await asyncio.gather(*lookups, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert isinstance(found, Task)
        assert found.task_id == "T"
        assert await storage.reader.task("other") is not None


async def test_lookups_that_the_database_does_not_answer_in_time_are_unavailable(database: str) -> None:
    async with open_storage(database, upgrade=False, lock_timeout_ms=100) as storage, session(database) as other:
        await submit(storage, Create(task_id="T"))
        async with other.transaction():
            await other.execute(LOCK_TASKS)
            outcomes = await asyncio.gather(
                storage.reader.task("T"),
                storage.reader.task("missing"),
                storage.reader.log("T", 0),
                storage.reader.page(1, None),
                storage.reader.count(Filter(queue="q")),
                return_exceptions=True,
            )
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
        assert await storage.reader.task("T") is not None


async def test_connections_that_died_while_they_lay_idle_disturb_no_reader(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        for read in (
            lambda: storage.reader.task("T"),
            lambda: storage.reader.events("T", 1, 1),
            lambda: storage.reader.log("T", 0),
            lambda: storage.reader.page(1, None),
            lambda: storage.reader.count(),
        ):
            before = await read()
            assert await kill_connections(database) >= 1
            assert await read() == before


@pytest.mark.parametrize(
    "metadata",
    [
        "x" * 200_000,
        # PostgreSQL writes these out in full: fifty times as long as they came.
        [1e308] * 700,
    ],
    ids=["long text", "long numbers"],
)
async def test_an_answer_holds_a_bounded_number_of_bytes(database: str, metadata: Any) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), *[note(metadata=metadata)] * 60)
        with pytest.raises(TooLarge, match=r"61 events hold more than \d+ bytes; ask for fewer"):
            await storage.reader.events("T", 1, 61)
        assert len(await storage.reader.events("T", 1, 20)) == 20
        page = await storage.reader.log("T", 0)
        assert page is not None
        assert 20 <= len(page.events) < 61
        assert sum(len(event.metadata or "") for event in page.events) <= EVENTS_BYTES_MAX


@pytest.mark.parametrize("task_id", ["", "i" * 256, "\0", "\ud800"])
async def test_an_id_that_no_task_can_have_is_refused(task_id: str) -> None:
    with pytest.raises(BadInput, match="taskId"):
        await without_database().task(task_id)


def task_with(seq: int) -> Task:
    task = decide(None, Create(task_id="T"), NOW)
    for _ in range(seq - 1):
        assert task is not None
        task = decide(task, note(), NOW)
    assert task is not None
    return task


a_count = st.none() | st.integers(1, 70) | st.just(1_000)
a_number = st.none() | st.integers(0, 70) | st.just(2**31 - 1)


@given(st.integers(1, 60), a_count, st.booleans(), a_number, a_number)
@example(60, None, False, None, None)
def test_every_history_is_the_slice_that_its_arguments_say(
    seq: int, size: int | None, from_start: bool, after: int | None, before: int | None
) -> None:
    events = [
        number
        for number in range(1, seq + 1)
        if (after is None or number > after) and (before is None or number < before)
    ]
    expected = events[-50:] if size is None else events[:size] if from_start else events[-size:]
    first, last = (size, None) if from_start else (None, size)
    low, high = history_range(task_with(seq), first, last, after, before)
    assert list(range(low, high + 1)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": 1, "last": 1}, "history takes first or last, got both."),
        ({"first": 0}, "first must be 1 to 1000, got 0."),
        ({"first": -1}, "first must be 1 to 1000, got -1."),
        ({"first": 1_001}, "first must be 1 to 1000, got 1001."),
        ({"last": 0}, "last must be 1 to 1000, got 0."),
        ({"last": -1}, "last must be 1 to 1000, got -1."),
        ({"last": 5_000}, "last must be 1 to 1000, got 5000."),
        ({"after": -1}, "after must be the number of an event, got -1."),
        ({"before": -1}, "before must be the number of an event, got -1."),
    ],
)
def test_a_history_that_cannot_be_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        history_range(task_with(3), **{"first": None, "last": None, "after": None, "before": None, **arguments})
    assert str(refused.value) == message


async def walk(storage: Storage, first: int, statuses: Collection[Status] | None = None) -> list[str]:
    """The whole list, page by page."""
    listed: list[str] = []
    after = None
    while True:
        page = await storage.reader.page(first, after, Filter(statuses=statuses))
        assert page.has_previous == (after is not None)
        assert len(page.tasks) == first or not page.has_next
        listed += [task.task_id for task in page.tasks]
        if not page.has_next:
            return listed
        after = cursor(page.tasks[-1])


STRANGE_IDS: Final = ("a", "b", "a:b", "B", "é", "\U0001f600", "￿", " ", "=", "_")


async def test_the_list_is_newest_first_and_each_page_goes_on_where_the_last_one_ended(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        # Those of one group were created at the same time: then the ID decides.
        for prefix in "12":
            await submit(storage, *(Create(task_id=prefix + task_id) for task_id in STRANGE_IDS))
        order = [prefix + task_id for prefix in "21" for task_id in sorted(STRANGE_IDS, reverse=True)]
        for first in (1, 2, 3, 19, 20, 21, 1_000):
            assert await walk(storage, first) == order


async def test_pages_stay_in_place_while_tasks_come_and_go(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=f"old {n}") for n in range(6)))
        page = await storage.reader.page(2, None)
        assert [task.task_id for task in page.tasks] == ["old 5", "old 4"]
        # New ones come before it, and the very task that the cursor stands for goes.
        await submit(storage, *(Create(task_id=f"new {n}") for n in range(6)), Delete(task_id="old 4"))
        # A report does not move a task.
        await submit(storage, note("old 3"))
        rest = await storage.reader.page(10, cursor(page.tasks[-1]))
        assert [task.task_id for task in rest.tasks] == ["old 3", "old 2", "old 1", "old 0"]


async def test_the_list_and_its_count_can_be_of_some_statuses(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        # No two tasks of a status stand together.
        born = [Create(task_id=f"{n:02} {status}", status=status) for n in range(3) for status in Status]
        await submit(storage, *born)
        some_statuses: list[Collection[Status] | None] = [
            None,
            [Status.PENDING],
            [Status.IN_PROGRESS, Status.SUCCESS],
            [Status.CANCELED, Status.CANCELED, Status.FAILED],
            list(Status),
            frozenset(Status),
            [],
            (),
        ]
        for statuses in some_statuses:
            wanted = [task.task_id for task in born if statuses is None or task.status in statuses]
            assert await storage.reader.count(Filter(statuses=statuses)) == len(wanted)
            for first in (1, 2, 100):
                assert await walk(storage, first, statuses) == sorted(wanted, reverse=True)


async def test_a_task_is_listed_under_the_status_that_it_has_now(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), UpdateProgress(task_id="T", progress=1))
        await submit(storage, Complete(task_id="T"))
        for status in Status:
            page = await storage.reader.page(1, None, Filter(statuses=[status]))
            assert [task.task_id for task in page.tasks] == (["T"] if status is Status.SUCCESS else [])


async def test_an_empty_list_is_an_empty_page(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        assert await storage.reader.page(1_000, None) == TaskPage((), has_next=False, has_previous=False)
        assert await storage.reader.count() == 0


def encoded(text: str | bytes) -> str:
    return base64.urlsafe_b64encode(text if isinstance(text, bytes) else text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "=",
        "====",
        "é",
        "\ud800",
        "\0",
        "a" * 1_000_000,
        encoded(""),
        encoded("1"),
        encoded("1:2"),
        encoded("1::T"),
        encoded("1:x:T"),
        encoded("1:1.5:T"),
        encoded("1:5:"),
        encoded("1:5:\0"),
        encoded("1:5:" + "i" * 256),
        encoded(b"1:5:\xff"),
        encoded("2:5:T"),
        encoded("0:5:T"),
        # What Python reads as a number, and we never wrote.
        encoded("1: 5:T"),
        encoded("1:+5:T"),
        encoded("1:05:T"),
        encoded("1:1_0:T"),
        encoded("1:٣:T"),
        encoded("1:" + "9" * 30 + ":T"),
        encoded("1:-" + "9" * 30 + ":T"),
        encoded("1:" + "9" * 10_000 + ":T"),
        encoded("1:5:T") + "==",
        " " + encoded("1:5:T"),
        encoded("1:5:T") + "\n",
    ],
    ids=lambda text: ascii(text[:20]),
)
async def test_a_cursor_that_is_not_ours_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="after must be an endCursor or a cursor that this list gave"):
        await without_database().page(1, text)


async def test_a_cursor_may_stand_for_any_time(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        for microseconds, found in ((-62135596800000000, []), (253402300799999999, ["T"])):
            page = await storage.reader.page(1, encoded(f"1:{microseconds}:T"))
            assert [task.task_id for task in page.tasks] == found


@pytest.mark.parametrize("first", [-1, 0, 1_001])
async def test_a_page_has_between_1_and_1000_tasks(first: int) -> None:
    with pytest.raises(BadInput, match=f"first must be 1 to 1000, got {first}"):
        await without_database().page(first, None)
