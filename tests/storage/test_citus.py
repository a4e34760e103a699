"""The same service on Citus, where tasks are spread over machines: a coordinator, and two workers with the rows."""

import asyncio
import random
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

import asyncpg
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer

from graphql_api import program
from storage import (
    Complete,
    Create,
    CreateMany,
    Delete,
    Filter,
    Health,
    Heartbeat,
    IdempotencyConflict,
    Options,
    StartupError,
    Status,
    Storage,
    Task,
    TaskAlreadyExists,
    Unavailable,
    UpdateProgress,
    UpdateType,
    cursor,
    distribute,
    group,
    open_storage,
    reader,
    recount_database,
    upgrade_database,
)
from storage.citus import CITUS
from storage.counts import FOLD
from storage.database import open_engine
from storage.errors import OutcomeUnknown
from storage.limits import metadata_json
from storage.pool import POSTGRES
from storage.reader import EVENTS_BYTES_MAX
from storage.timers import Timers
from tests.citus import SHARDS, CitusCluster
from tests.postgres import execute, session
from tests.storage.helpers import (
    CREATED,
    at_commit,
    messages,
    note,
    numbers,
    row_locked,
    spied,
    submit,
    task_and_log,
    until_blocked,
)
from tests.storage.linked import following, processes, until_all

IDS: Final = [f"T{n:03}" for n in range(100)]


async def nodes_of(database: str) -> dict[str, int]:
    """The port of the worker on which each task lies."""
    async with session(database) as other:
        rows = await other.fetch(
            "SELECT task_id, nodeport FROM tasks JOIN citus_shards"
            " ON shardid = get_shard_id_for_distribution_column('tasks', task_id) ORDER BY task_id"
        )
    return dict(rows)


# What is found out, and how tables come to be distributed.


async def test_a_storage_finds_out_by_itself_where_it_is(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        assert storage.pool.dialect is CITUS
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
    assert len(set((await nodes_of(distributed_database)).values())) == 2


async def test_citus_that_is_there_and_not_used_changes_nothing(citus: CitusCluster) -> None:
    database = await citus.new_database()
    async with open_storage(database) as storage:
        assert storage.pool.dialect is POSTGRES
        await submit(storage, Create(task_id="T"))
        assert await messages(storage) == [CREATED]


async def test_what_was_there_before_is_there_after(citus: CitusCluster) -> None:
    database = await citus.new_database()
    async with open_storage(database) as storage:
        await submit(storage, *(Create(task_id=task_id, metadata={"n": 1}) for task_id in IDS))
        await submit(storage, *(note(task_id, idempotency_key="k") for task_id in IDS))
        before = [await task_and_log(storage, task_id) for task_id in IDS]
        with pytest.raises(StartupError, match=r"^Servers have \d connections to this database; stop them first\.$"):
            await distribute(database, SHARDS)
    assert await distribute(database, SHARDS)
    assert not await distribute(database, SHARDS)
    async with open_storage(database) as storage:
        assert [await task_and_log(storage, task_id) for task_id in IDS] == before
        assert [task.seq for task in await submit(storage, *(note(i, idempotency_key="k") for i in IDS))] == [2] * 100
        assert [task.seq for task in await submit(storage, *map(note, IDS))] == [3] * 100


def test_the_command_line_says_what_it_did(
    citus: CitusCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTRAL_DATABASE_URL", asyncio.run(citus.new_database()))

    def say(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["spectral-notify", *words])
        with pytest.raises(SystemExit):
            program.main()
        out, err = capsys.readouterr()
        return out + err

    assert "the database's schema is at nothing" in say("distribute").lower()
    assert say("migrate").startswith("The schema went from none to ")
    assert say("distribute", "--shards", "4") == "Tasks are distributed by task_id; start the servers.\n"
    assert say("distribute") == "Tasks are distributed already.\n"


async def test_postgresql_without_citus_is_refused(empty_database: str) -> None:
    await upgrade_database(empty_database)
    with pytest.raises(StartupError) as refused:
        await distribute(empty_database, SHARDS)
    assert str(refused.value) == "This PostgreSQL has no Citus; name the coordinator of a Citus cluster."


async def test_who_may_not_create_the_extension_is_told_who_may(citus: CitusCluster) -> None:
    database = await citus.new_database()
    await execute(database.replace("spectral_notify@", "postgres@"), "DROP EXTENSION citus")
    await upgrade_database(database)
    with pytest.raises(StartupError) as refused:
        await distribute(database, SHARDS)
    assert str(refused.value) == (
        'Citus cannot be set up in this database: permission denied to create extension "citus". '
        "A superuser must say CREATE EXTENSION citus in it, on the coordinator and on every worker."
    )


async def test_who_may_not_distribute_is_told_why(citus: CitusCluster) -> None:
    database = await citus.new_database()
    await upgrade_database(database)
    await execute(database.replace("spectral_notify@", "postgres@"), "ALTER TABLE task_events OWNER TO postgres")
    with pytest.raises(StartupError) as refused:
        await distribute(database, SHARDS)
    assert str(refused.value) == "The tables cannot be distributed: must be owner of table task_events."
    async with open_storage(database) as storage:
        assert storage.pool.dialect is POSTGRES


async def test_migrations_change_distributed_tables(citus: CitusCluster) -> None:
    database = await citus.distributed_database()

    def migrate(connection: Connection) -> None:
        with connection.begin():
            op = Operations(MigrationContext.configure(connection))
            op.add_column("tasks", Column("rank", Integer, nullable=False, server_default="0"))
            op.create_check_constraint("tasks_rank", "tasks", "rank >= 0")
            op.drop_index("tasks_created_at_task_id", table_name="tasks")
            op.create_index("tasks_rank_task_id", "tasks", ["rank", "task_id"])
            op.execute("UPDATE tasks SET rank = 5")
            op.alter_column("tasks", "rank", server_default=None)

    async with open_storage(database) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        engine = open_engine(database, statement_timeout_ms=60_000, lock_timeout_ms=60_000)
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
        await engine.dispose()
        async with session(database) as other:
            assert [row[0] for row in await other.fetch("SELECT rank FROM tasks")] == [5] * len(IDS)
        # Who is at work goes on.
        assert [task.seq for task in await submit(storage, *map(note, IDS))] == [2] * len(IDS)


async def test_a_fresh_connection_asks_for_no_types(distributed_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(*_: Any) -> None:
        raise AssertionError("the driver knows all types")

    monkeypatch.setattr("asyncpg.connection.Connection._introspect_types", ask)
    async with open_storage(distributed_database, upgrade=False) as storage:
        keyed = [note(task_id, idempotency_key="k", metadata={}) for task_id in IDS]
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        assert {type(outcome) for outcome in await submit(storage, *keyed)} == {Task}
        await asyncio.gather(*(storage.reader.log(task_id, 0) for task_id in IDS))
        await asyncio.gather(*(storage.reader.events(task_id, 1, 2) for task_id in IDS))
        await asyncio.gather(*(storage.reader.events(task_id, 1, 1) for task_id in IDS))
        assert await storage.reader.positions(IDS)
        assert (await storage.reader.page(5, None, Filter(statuses=set(Status)))).has_next


# Changes.


async def test_a_group_of_many_shards_does_what_one_of_one_does(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        outcomes = await submit(
            storage,
            *(Create(task_id=task_id, metadata={"x": 1e308}) for task_id in IDS),
            *(Create(task_id=task_id) for task_id in IDS[:10]),
            *(UpdateProgress(task_id=task_id, progress=50) for task_id in IDS),
        )
        assert [type(one) for one in outcomes] == [Task] * 100 + [TaskAlreadyExists] * 10 + [Task] * 100
        some, others = IDS[:50], IDS[50:]
        await submit(
            storage,
            *(Complete(task_id=task_id) for task_id in some),
            *(Delete(task_id=task_id) for task_id in others),
            *(Create(task_id=task_id) for task_id in others[:25]),
            *(Create(task_id=f"new {task_id}") for task_id in some),
        )
        for task_id in some:
            task, events = await task_and_log(storage, task_id)
            assert task is not None and task.status is Status.SUCCESS
            assert [event.seq for event in events] == [1, 2, 3]
        for task_id in (*others[:25], *(f"new {task_id}" for task_id in some)):
            assert await messages(storage, task_id) == [CREATED]
        async with session(distributed_database) as other:
            assert await other.fetchval("SELECT count(*) FROM tasks") == 125
            assert await other.fetchval("SELECT count(*) FROM task_events") == 50 * 3 + 75


async def test_fifty_callers_of_two_processes_share_ten_tasks(
    distributed_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    reports = 10
    async with processes(distributed_database, distributed_database) as (one, two):
        await until_all(Health.CONNECTED, one, two)
        await submit(one, *(Create(task_id=task_id) for task_id in IDS[:10]))

        async def call(number: int) -> list[int]:
            storage, task_id = (one, two)[number % 2], IDS[number % 10]
            found = [await storage.writer.submit(note(task_id, f"{number} {turn}")) for turn in range(reports)]
            return [task.seq for task in found if task is not None]

        async def see(storage: Storage, task_id: str) -> list[int]:
            seen: list[int] = []
            async with aclosing(storage.watch(task_id, 0)) as watch:
                while len(seen) < 1 + 5 * reports:
                    seen += numbers([await following(watch)])
            return seen

        watched = [asyncio.create_task(see(storage, task_id)) for storage in (one, two) for task_id in IDS[:10]]
        answered = await asyncio.gather(*map(call, range(50)))
        for position in range(10):
            given = sorted(chain(*answered[position::10]))
            assert given == list(range(2, 2 + 5 * reports))
            said = await messages(one, IDS[position])
            assert len(set(said)) == 1 + 5 * reports
        for seen in await asyncio.gather(*watched):
            assert seen == list(range(1, 2 + 5 * reports))
    # No deadlock, and nothing that had to be tried again.
    assert caplog.records == []


async def test_two_processes_create_and_change_the_same_tasks_in_opposite_orders(
    distributed_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = IDS[:40]
    async with open_storage(distributed_database) as one, open_storage(distributed_database) as two:

        async def work(storage: Storage, order: list[str]) -> list[Any]:
            outcomes = await submit(storage, *(Create(task_id=task_id) for task_id in order))
            for turn in range(6):
                keyed = (note(task_id, "both", idempotency_key=f"{turn}") for task_id in order)
                new = (Create(task_id=f"{turn} {task_id}") for task_id in order)
                outcomes += await submit(storage, *(note(task_id) for task_id in order), *keyed, *new)
            return outcomes

        outcomes = chain(*await asyncio.gather(work(one, ids), work(two, ids[::-1])))
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert [type(refusal) for refusal in refused] == [TaskAlreadyExists] * (7 * len(ids))
        assert caplog.records == []
        for task_id in ids:
            assert sorted(await messages(one, task_id)) == sorted([CREATED] + ["m"] * 12 + ["both"] * 6)


async def test_rows_are_locked_in_one_order_on_all_machines(
    distributed_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_storage(distributed_database) as one, open_storage(distributed_database) as two:
        await submit(one, *(Create(task_id=task_id) for task_id in IDS))
        nodes = await nodes_of(distributed_database)
        # Both stop at the same row, each with what it has locked before. Were one to begin with what lies behind that
        # row, then each would wait for the other afterwards.
        for task_id in random.sample(IDS, 5):
            async with row_locked(distributed_database, task_id):
                both = asyncio.gather(submit(one, *map(note, IDS)), submit(two, *map(note, IDS[::-1])))
                await until_blocked(distributed_database, sessions=2)
            assert [type(outcome) for outcome in chain(*await both)] == [Task] * 200
    assert len(set(nodes.values())) == 2
    assert caplog.records == []


async def test_a_key_is_written_once_whoever_sends_it(distributed_database: str) -> None:
    async with open_storage(distributed_database) as one, open_storage(distributed_database) as two:
        await submit(one, *(Create(task_id=task_id) for task_id in IDS))
        keyed = [note(task_id, idempotency_key="k") for task_id in IDS]
        for outcomes in await asyncio.gather(submit(one, *keyed, *keyed), submit(two, *keyed)):
            assert {task.seq for task in outcomes} == {2}
        conflicts = await submit(two, *(note(task_id, "other", idempotency_key="k") for task_id in IDS))
        assert [type(conflict) for conflict in conflicts] == [IdempotencyConflict] * len(IDS)
        assert {tuple(await messages(one, task_id)) for task_id in IDS} == {(CREATED, "m")}


async def test_workers_are_told_what_holds_for_a_transaction(citus: CitusCluster, distributed_database: str) -> None:
    settings = "SELECT current_setting('lock_timeout'), current_setting('synchronous_commit'), inet_server_port()"
    async with open_storage(distributed_database, lock_timeout_ms=123_000) as storage:
        await submit(storage, Create(task_id="T"))
        before = len(citus.log)
        async with storage.pool.connection() as connection:
            for lock_timeout_ms, told in ((None, "123s"), (7, "7ms")):
                await connection.begin(lock_timeout_ms)
                lock_timeout, synchronous_commit, port = (
                    await connection.run(f"{settings} FROM tasks WHERE task_id = 'T'")
                )[0]
                await connection.roll_back()
                assert (lock_timeout, synchronous_commit) == (told, "on")
                assert port in citus.ports[1:]
        await submit(storage, note())
        await storage.reader.page(1, None)
    # Nothing but that: no second BEGIN, at which a worker would wonder.
    assert "WARNING" not in citus.log[before:]


async def test_a_row_that_somebody_holds_stops_nobody_else(distributed_database: str) -> None:
    async with open_storage(distributed_database, lock_timeout_ms=300) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        async with row_locked(distributed_database, IDS[0]):
            # The time-out is told to the machine that has the row.
            outcomes = await submit(storage, *map(note, IDS[:20]))
        assert [type(outcome) for outcome in outcomes] == [Unavailable] + [Task] * 19


@pytest.mark.parametrize("when", ["before", "at the commit"])
async def test_a_group_is_on_all_machines_or_on_none(citus: CitusCluster, distributed_database: str, when: str) -> None:
    async with open_storage(distributed_database) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        broken = 0

        async def break_one_worker(_: Any) -> None:
            nonlocal broken
            if broken == 0:
                name = distributed_database.rpartition("/")[2]
                async with session(citus.url(citus.ports[1], name, "postgres")) as worker:
                    broken = len(
                        await worker.fetch(
                            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                            " WHERE datname = current_database() AND state = 'idle in transaction'"
                        )
                    )

        if when == "before":
            await submit(storage, note(IDS[0]))
            async with row_locked(distributed_database, IDS[50]):
                asking = asyncio.create_task(submit(storage, *map(note, IDS[1:])))
                await until_blocked(distributed_database)
                await break_one_worker(None)
            outcomes = await asking
            # It was tried again on fresh connections.
            assert {type(outcome) for outcome in outcomes} == {Task}
        else:
            with at_commit(storage, break_one_worker):
                outcomes = await submit(storage, *map(note, IDS))
            assert {type(outcome) for outcome in outcomes} == {OutcomeUnknown}
        assert broken > 0
        counts = {len(await messages(storage, task_id)) for task_id in IDS[1:]}
        assert counts == ({2} if when == "before" else {1})
        assert {type(outcome) for outcome in await submit(storage, *map(note, IDS))} == {Task}


# Reading.


async def test_histories_and_logs_are_read_together(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        reader = storage.reader
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        for turn in range(5):
            await submit(storage, *(note(task_id, f"{turn}", metadata={"n": turn}) for task_id in IDS))
        with spied(storage) as spy:
            tasks, slices, singles, logs = await asyncio.gather(
                asyncio.gather(*(reader.task(task_id) for task_id in (*IDS, "missing"))),
                asyncio.gather(*(reader.events(task_id, first, 5) for task_id in (*IDS, "no") for first in (1, 3))),
                asyncio.gather(*(reader.events(task_id, seq, seq) for task_id in IDS for seq in (1, 6, 7))),
                asyncio.gather(*(reader.log(task_id, after) for task_id in (*IDS, "missing") for after in (0, 4, 6))),
            )
        assert spy.count("FROM tasks") + spy.count("FROM task_events") <= 6
        assert [task and task.seq for task in tasks] == [6] * len(IDS) + [None]
        assert [[event.message for event in found] for found in slices[:2]] == [
            [CREATED, "0", "1", "2", "3"],
            ["1", "2", "3"],
        ]
        assert {tuple(event.seq for event in found) for found in slices} == {(1, 2, 3, 4, 5), (3, 4, 5), ()}
        assert [[event.message for event in found] for found in singles[:3]] == [[CREATED], ["4"], []]
        assert [page and [event.seq for event in page.events] for page in logs] == [
            [1, 2, 3, 4, 5, 6],
            [5, 6],
            [],
        ] * len(IDS) + [None] * 3
        assert (await reader.positions([IDS[7], "missing"])).keys() == {IDS[7]}


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(
    ("statement", "values", "looked_up"),
    [
        (reader._SINGLE_EVENTS, [["T"], [1]], "seq ="),
        (reader._SLICES, [["T"], [1], [9]], "seq <="),
        (reader._LOGS, [["T"], [0], 9, 9_000], "seq >"),
        (group._USED_KEYS, [["T"], ["k"]], "idempotency_key ="),
    ],
)
async def test_of_a_long_history_only_what_is_wanted_is_read(
    distributed_database: str, statement: str, values: list[Any], looked_up: str, analyzed: bool
) -> None:
    async with open_storage(distributed_database) as storage, session(distributed_database) as other:
        await submit(storage, Create(task_id="T"))
        await other.execute(
            "INSERT INTO task_events (task_id, seq, event_type, message, timestamp, idempotency_key, fingerprint)"
            " SELECT 'T', number, 'LOG', 'm', now(), number::text, '' FROM generate_series(2, 20000) AS number"
        )
        if analyzed:
            await other.execute("ANALYZE tasks, task_events")
        # Many are asked for, among them this one.
        wanted = [values[0] + IDS, *(value * 101 if isinstance(value, list) else value for value in values[1:])]
        await other.execute("SET citus.explain_all_tasks = on")
        lines = [row[0] for row in await other.fetch(f"EXPLAIN {CITUS.instead[statement]}", *wanted)]
        shard = await other.fetchval("SELECT get_shard_id_for_distribution_column('task_events', 'T')")
    plan = "\n".join(lines)
    (scan,) = (number for number, line in enumerate(lines) if f" on task_events_{shard} " in line)
    assert "Index Scan" in lines[scan], plan
    assert looked_up in lines[scan + 1], plan


async def test_what_is_too_large_for_one_answer_is_cut(distributed_database: str) -> None:
    message = "m" * 60_000
    async with open_storage(distributed_database) as storage:
        await submit(storage, Create(task_id="T"))
        count = EVENTS_BYTES_MAX // len(message) + 5
        for _ in range(count):
            await storage.writer.submit(note(message=message))
        page = await storage.reader.log("T", 0)
        assert page is not None and 1 < len(page.events) < count
        more = await storage.reader.log("T", page.events[-1].seq)
        assert more is not None
        assert [event.seq for event in (*page.events, *more.events)] == list(range(1, count + 2))


async def test_pages_of_the_list_come_from_all_machines(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        for start in range(0, 100, 10):
            await submit(storage, *(Create(task_id=task_id) for task_id in IDS[start : start + 10]))
        await submit(storage, *(Complete(task_id=task_id) for task_id in IDS[::2]))
        for statuses, wanted in ((None, IDS), ({Status.SUCCESS}, IDS[::2]), (set(Status), IDS)):
            found: list[Task] = []
            after = None
            while True:
                page = await storage.reader.page(7, after, Filter(statuses=statuses))
                found += page.tasks
                if not page.has_next:
                    break
                after = cursor(page.tasks[-1])
            assert [task.task_id for task in found] == wanted[::-1]
            assert await storage.reader.count(Filter(statuses=statuses)) == len(wanted)


async def test_lists_are_asked_by_whatever_tasks_have_and_their_numbers_are_known(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        for number, task_id in enumerate(IDS):
            options = Options(tags=("odd",), queue="q") if number % 2 else None
            creation = Create(task_id=task_id, created_by=f"c{number % 4}", metadata={"n": number % 5}, options=options)
            await storage.writer.submit(creation)
        began = datetime.now(UTC)
        await submit(storage, *(UpdateProgress(task_id=task_id, progress=1) for task_id in IDS[:10]))
        await submit(storage, *(Complete(task_id=task_id) for task_id in IDS[5:15]))
        assert len(await storage.claimer.claim("q", "w", limit=3)) == 3
        await submit(storage, Delete(task_id=IDS[0]), *(note(task_id) for task_id in IDS[20:30]))
        everything = (await storage.reader.page(1_000, None)).tasks
        now = datetime.now(UTC)
        for wanted in (
            Filter(created_by="c1"),
            Filter(tags=["odd"], statuses=[Status.SUCCESS, Status.PENDING]),
            Filter(queue="q", created_by="c3"),
            Filter(task_id_prefix=IDS[7][:-1]),
            Filter(metadata=metadata_json({"n": 3})),
            Filter(created_before=everything[10].created_at),
            Filter(updated_after=began),
            Filter(updated_after=began, metadata=metadata_json({"n": 3}), tags=["odd"]),
            Filter(stale=True),
            Filter(stale=False, queue="q"),
        ):
            meant = [task.task_id for task in everything if wanted.matches(task, now)]
            assert [task.task_id for task in (await storage.reader.page(1_000, None, wanted)).tasks] == meant, wanted
            assert await storage.reader.count(wanted) == len(meant), wanted
        known = await storage.reader.counts()
        assert known.total == len(everything) == len(IDS) - 1
        for status in Status:
            meant = [task.task_id for task in everything if task.status is status]
            assert known.of([status]).total == len(meant)
        await storage.pool.run(FOLD, 100)
        assert await storage.reader.counts() == known
        assert await recount_database(distributed_database) == known


async def test_keys_are_made_found_and_revoked(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        key = await storage.keys.create("web", ["READ"])  # type: ignore[list-item]
        found = await storage.keys.find(key)
        assert found is not None and found.name == "web"
        await storage.keys.revoke("web")
        assert [one.name for one in await storage.keys.list()] == ["web"]


async def test_a_subscriber_hears_of_a_deletion_elsewhere(distributed_database: str) -> None:
    async with processes(distributed_database, distributed_database) as (one, two):
        await until_all(Health.CONNECTED, one, two)
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T", 0)) as watch:
            assert (await following(watch)).type is UpdateType.SNAPSHOT
            await submit(one, note())
            assert numbers([await following(watch)]) == [2]
            await submit(one, Delete(task_id="T"))
            assert (await following(watch)).type is UpdateType.DELETE


async def test_an_unknown_error_of_citus_is_not_hidden(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await storage.pool.run("SELECT FROM tasks FOR UPDATE")


# What is more than reports.


async def test_each_task_of_a_queue_goes_to_one_worker(distributed_database: str) -> None:
    async with processes(distributed_database, distributed_database) as (first, second):
        many = tuple(Create(task_id=task_id, options=Options(queue="q", tags=("a b", "ü"))) for task_id in IDS)
        assert len(await first.writer.create_many(CreateMany(tasks=many))) == len(IDS)
        assert await first.reader.ready("q") == len(IDS)
        done: list[str] = []

        async def work(storage: Storage, name: str) -> None:
            # Who gets nothing may have been beaten to it.
            while await storage.reader.ready("q"):
                for claim in await storage.claimer.claim("q", name, limit=7):
                    task_id, token = claim.task.task_id, claim.token
                    assert await submit(storage, Heartbeat(task_id=task_id, token=token, lease_s=60))
                    assert await submit(storage, UpdateProgress(task_id=task_id, progress=5, token=token))
                    (ended,) = await submit(storage, Complete(task_id=task_id, token=token))
                    assert (ended.status, ended.plan.tags) == (Status.SUCCESS, ("a b", "ü"))
                    done.append(task_id)

        await asyncio.gather(*(work(storage, f"w{n}") for n in range(2) for storage in (first, second)))
        assert sorted(done) == IDS
        assert await first.claimer.claim("q", "w") == []


async def test_who_waits_for_tasks_of_other_shards_is_told(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS[:20]))
        waiting = Options(queue="q", depends_on=IDS[:20])
        (made,) = await submit(storage, Create(task_id="waits", options=waiting))
        assert made.plan.blocked_by == tuple(IDS[:20])
        await submit(storage, Create(task_id="waits too", options=waiting))
        await submit(storage, *(Complete(task_id=task_id) for task_id in IDS[:20]))
        await storage.writer.messenger.brought()
        assert await storage.reader.ready("q") == 2
        async with session(distributed_database) as other:
            assert await other.fetch("SELECT FROM task_dependencies") == []


async def test_what_is_due_is_done(distributed_database: str) -> None:
    async with open_storage(distributed_database) as storage:
        kept = Options(keep_for_s=0)
        await submit(storage, *(Create(task_id=task_id, options=kept) for task_id in IDS))
        await submit(storage, *(Complete(task_id=task_id) for task_id in IDS))
        timers = Timers(storage.pool, storage.writer)
        assert await timers.remove() == len(IDS)
        await timers.close()
        assert await storage.reader.count() == 0
