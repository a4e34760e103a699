"""What time makes of tasks, done by one process at a time on a real PostgreSQL."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage import Complete, Create, CreateMany, Options, Retry, Status, Storage, open_storage
from storage import timers as timers_module
from storage.messenger import submit_all
from tests.postgres import execute, session
from tests.storage.helpers import kill_connections, messages, note, proxied, row_locked, submit
from tests.storage.linked import until


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def count(database: str, condition: str) -> int:
    async with session(database) as other:
        return int(await other.fetchval(f"SELECT count(*) FROM tasks WHERE {condition}"))


async def until_count(database: str, condition: str, wanted: int) -> None:
    async with session(database) as other:
        while await other.fetchval(f"SELECT count(*) FROM tasks WHERE {condition}") != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def fill(storage: Storage, number: int, **options: Any) -> None:
    for start in range(0, number, 1_000):
        many = (Create(task_id=f"T{n}", options=Options(queue="q", **options)) for n in range(start, start + 1_000))
        await storage.writer.create_many(CreateMany(tasks=tuple(many)[: number - start]))


async def test_what_is_due_is_done_within_a_second(database: str) -> None:
    async with open_storage(database, upgrade=False, timers=True) as storage:
        start, expiry = soon(0.5), soon(1.2)
        await submit(
            storage,
            Create(task_id="later", options=Options(queue="q", start_at=start)),
            Create(task_id="expiring", options=Options(expires_at=expiry)),
            Create(task_id="lapsing", options=Options(queue="q", priority=9, retry=Retry(max_attempts=2))),
            Create(task_id="kept", status=Status.SUCCESS, options=Options(keep_for_s=1)),
        )
        (claim,) = await storage.claimer.claim("q", "w", lease_s=1)
        assert claim.task.task_id == "lapsing"
        with storage.queues.listen("q") as ear:
            assert await storage.claimer.claim("q", "w") == []
            assert await ear.wait(10)
            (later,) = await storage.claimer.claim("q", "w")
        assert later.task.task_id == "later"
        assert start <= later.task.updated_at <= start + timedelta(seconds=1)
        await until_count(database, "task_id = 'lapsing' AND status = 'PENDING'", 1)
        await until_count(database, "task_id = 'expiring' AND status = 'FAILED'", 1)
        await until_count(database, "task_id = 'kept'", 0)
        for task_id, due_at in (("lapsing", claim.expires_at), ("expiring", expiry)):
            task = await storage.reader.task(task_id)
            assert task is not None
            assert due_at <= task.updated_at <= due_at + timedelta(seconds=1)


async def test_what_was_due_while_nobody_looked_is_done_by_whoever_looks_next(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await fill(storage, 5_000, expires_at=soon(0))
        assert storage.timers is None
    async with open_storage(database, upgrade=False, timers=True):
        await until_count(database, "status = 'FAILED'", 5_000)
    assert await count(database, "due_at IS NOT NULL") == 0


async def test_reports_are_not_kept_waiting_while_much_is_due(database: str) -> None:
    async with open_storage(database, upgrade=False, timers=True) as storage:
        await submit(storage, Create(task_id="busy"))
        await fill(storage, 4_000, expires_at=soon(0.2))
        await until_count(database, "status = 'FAILED' AND task_id = 'T0'", 1)
        slowest = 0.0
        while await count(database, "status = 'FAILED'") < 4_000:
            begun = time.monotonic()
            await submit(storage, note("busy"))
            slowest = max(slowest, time.monotonic() - begun)
        # A lot takes some tens of milliseconds; all of them take seconds on a slow machine.
        assert slowest < 1


async def test_one_process_looks_and_another_takes_over_when_it_ends(database: str) -> None:
    async with open_storage(database, upgrade=False, timers=True) as one:
        assert one.timers is not None
        await until(lambda: bool(one.timers and one.timers.holding))
        async with open_storage(database, upgrade=False, timers=True) as two:
            assert two.timers is not None
            # It has tried, and is not the one.
            for _ in range(3):
                assert not await two.timers._hold()
            begun = time.monotonic()
            await one.timers.close()
            await until(lambda: bool(two.timers and two.timers.holding))
            assert time.monotonic() - begun < 2


async def test_the_timers_of_a_process_that_dies_without_a_word_are_taken_over_within_five_seconds(
    database: str,
) -> None:
    async with open_storage(database, upgrade=False, timers=True) as one:
        assert one.timers is not None
        await until(lambda: bool(one.timers and one.timers.holding))
        async with open_storage(database, upgrade=False, timers=True) as two:
            # It neither goes on nor says so.
            assert one.timers._task is not None
            assert one.timers._removing is not None
            one.timers._task.cancel()
            one.timers._removing.cancel()
            begun = time.monotonic()
            await submit(two, Create(task_id="T", options=Options(expires_at=soon(0))))
            await until_count(database, "status = 'FAILED'", 1)
            assert time.monotonic() - begun < 5
            assert two.timers is not None
            assert two.timers.holding


async def test_two_that_look_at_once_do_everything_once(database: str) -> None:
    async with (
        open_storage(database, upgrade=False) as one,
        open_storage(database, upgrade=False) as two,
    ):
        await fill(one, 500, expires_at=soon(0))
        both = [timers_module.Timers(storage.pool, storage.writer) for storage in (one, two)]
        for timers in both:
            timers.holding, timers._renew_at = True, float("inf")
        await asyncio.gather(*(timers.look() for timers in both))
        assert await count(database, "status = 'FAILED' AND seq = 2") == 500


async def test_a_connection_that_dies_does_not_end_the_timers(database: str) -> None:
    async with open_storage(database, upgrade=False, timers=True) as storage:
        await until(lambda: bool(storage.timers and storage.timers.holding))
        assert await kill_connections(database)
        await submit(storage, Create(task_id="T", options=Options(expires_at=soon(0))))
        await until_count(database, "status = 'FAILED'", 1)


async def test_a_due_task_that_somebody_has_locked_keeps_no_other_waiting(database: str) -> None:
    async with open_storage(database, upgrade=False, timers=True, lock_timeout_ms=100) as storage:
        await submit(storage, Create(task_id="T", options=Options(expires_at=soon(1))))
        async with row_locked(database):
            await submit(storage, Create(task_id="U", options=Options(expires_at=soon(1.1))))
            await until_count(database, "status = 'FAILED'", 1)
        await until_count(database, "status = 'FAILED'", 2)


async def test_finished_tasks_are_deleted_when_they_have_been_kept_long_enough(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers_module, "KEPT_TASKS_MAX", 10)
    monkeypatch.setattr(timers_module, "SWEEP_S", 0.0)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=f"old{n}", status=Status.FAILED) for n in range(35)))
        await submit(storage, Create(task_id="open"), Create(task_id="mine", options=Options(keep_for_s=10**6)))
        await submit(storage, Complete(task_id="mine"))
        await execute(
            database,
            "UPDATE tasks SET failed_at = failed_at - interval '2 days', created_at = created_at - interval '2 days',"
            " completed_at = completed_at - interval '2 days', updated_at = updated_at - interval '2 days'",
        )
        await submit(storage, Create(task_id="new", status=Status.SUCCESS))
    async with open_storage(database, upgrade=False, timers=True, keep_finished_s=24 * 3600) as storage:
        await until_count(database, "true", 3)
        assert await messages(storage, "new") == ["Task created"]
        async with session(database) as other:
            assert await other.fetchval("SELECT array_agg(task_id ORDER BY task_id) FROM tasks") == [
                "mine",
                "new",
                "open",
            ]
            assert await other.fetchval("SELECT count(*) FROM task_events") == 4


async def deletions_take(database: str, seconds: float) -> None:
    """From now on, it takes so long to delete a task."""
    async with session(database) as other:
        await other.execute(
            f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN OLD; END $$;"
            "CREATE TRIGGER slow BEFORE DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION slow()"
        )


async def test_what_is_to_be_deleted_keeps_nothing_else_that_is_due_waiting(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        done = (Create(task_id=f"T{n}", status=Status.SUCCESS, options=Options(keep_for_s=0)) for n in range(1_000))
        await storage.writer.create_many(CreateMany(tasks=tuple(done)))
        await deletions_take(database, 0.02)
    async with open_storage(database, upgrade=False, timers=True) as storage:
        await until_count(database, "task_id = 'T0'", 0)
        due = soon(0.5)
        await submit(storage, Create(task_id="expiring", options=Options(expires_at=due)))
        await until_count(database, "status = 'FAILED'", 1)
        task = await storage.reader.task("expiring")
        assert task is not None
        assert task.updated_at <= due + timedelta(seconds=1)
        # All the while there was much to be deleted.
        assert await count(database, "status = 'SUCCESS'") > 100


async def test_a_task_that_cannot_be_deleted_in_time_keeps_nothing_waiting(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers_module, "KEPT_TASKS_MAX", 1)
    monkeypatch.setattr(timers_module, "SWEEP_S", 0.0)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="heavy", status=Status.SUCCESS))
        await submit(storage, Create(task_id="light", status=Status.SUCCESS))
        await execute(database, "UPDATE tasks SET completed_at = completed_at - interval '1 h' WHERE task_id = 'heavy'")
        await execute(
            database,
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.task_id = 'heavy' THEN PERFORM pg_sleep(60); END IF; RETURN OLD; END $$",
        )
        await execute(database, "CREATE TRIGGER slow BEFORE DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION slow()")
    async with open_storage(
        database, upgrade=False, timers=True, keep_finished_s=0, statement_timeout_ms=2_000
    ) as storage:
        # It is the first of those that are to go, and is refused; the next has its turn nevertheless.
        for number in range(3):
            due = soon(0.5)
            await submit(storage, Create(task_id=f"T{number}", options=Options(expires_at=due, keep_for_s=10**6)))
            await until_count(database, f"task_id = 'T{number}' AND status = 'FAILED'", 1)
            task = await storage.reader.task(f"T{number}")
            assert task is not None
            assert task.updated_at <= due + timedelta(seconds=1)
        await until_count(database, "task_id = 'light'", 0)
        assert await count(database, "task_id = 'heavy'") == 1


@pytest.mark.parametrize(
    ("weights", "lots"),
    [
        ([], []),
        ([1] * 200, [200]),
        ([1] * 450, [200, 200, 50]),
        ([400, 400, 400, 400], [3, 1]),
        ([5_000, 1, 1], [1, 2]),
        ([999, 1, 1], [2, 1]),
    ],
)
def test_a_lot_ends_with_what_makes_it_full_or_heavy(weights: list[int], lots: list[int]) -> None:
    commands = [(note(f"T{place}"), weight) for place, weight in enumerate(weights)]
    assert [len(lot) for lot in timers_module._lots(commands)] == lots


async def test_that_the_database_is_away_is_told_once_and_that_it_is_here_again(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timers_module, "TRY_S", 0.01)
    caplog.set_level("INFO", timers_module.__name__)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == timers_module.__name__]

    async with proxied(database) as (proxy, url), open_storage(url, upgrade=False, timers=True) as storage:
        for times in (1, 2):
            failed = storage.pool.gauges.failed
            async with proxy.refusing():
                while storage.pool.gauges.failed < failed + 5:  # noqa: ASYNC110 - the pool tells nobody
                    await asyncio.sleep(0.01)
                assert len(told()) == 2 * times - 1
            while len(told()) < 2 * times:  # noqa: ASYNC110 - neither does the log
                await asyncio.sleep(0.01)
    away, here, *again = told()
    assert away.startswith("The timers wait for the database: ")
    assert here == "The timers go on."
    assert again[1] == here


async def test_a_fault_in_a_command_of_ones_own_is_logged_and_a_refusal_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def submit_one(command: Any) -> None:
        raise {"T0": RuntimeError("ours"), "T1": asyncio.CancelledError()}.get(command.task_id, KeyError("x"))

    commands = [note("T0"), note("T2")]
    assert await submit_all(submit_one, commands) == commands
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
