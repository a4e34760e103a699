"""What becomes of commands when the database refuses, holds, dies, or does not say."""

import asyncio
import logging
from contextlib import aclosing
from typing import Any, Final

import asyncpg
import pytest

from storage import (
    AddEvent,
    Command,
    Create,
    Task,
    TaskNotFound,
    Unavailable,
    Update,
    UpdateProgress,
    open_storage,
)
from storage import committer as committing
from storage.database import CONNECT_TIMEOUT_S
from storage.errors import OutcomeUnknown
from tests.postgres import execute, session, set_for_database
from tests.storage.helpers import (
    CREATED,
    at_commit,
    kill_connections,
    messages,
    note,
    proxied,
    row_locked,
    spied,
    submit,
    until_blocked,
)


def unchecked(message: str) -> AddEvent:
    """A report that the checks should not have let through."""
    report = note(message="")
    object.__setattr__(report, "message", message)
    return report


# Nothing that the checks let through is refused by the tables; so the tables are made to refuse 13.
NO_THIRTEEN: Final = "ALTER TABLE tasks ADD CHECK (progress <> 13)"


@pytest.mark.parametrize(
    "culprit",
    [
        UpdateProgress(task_id="T", progress=13),
        UpdateProgress(task_id="culprit", progress=13),
        Create(task_id="new", progress=13),
        unchecked("\ud800"),
        unchecked("\0"),
    ],
    ids=["same task", "other task", "creation", "refused by the driver", "refused by the server"],
)
async def test_when_the_database_refuses_a_group_only_the_culprit_fails(
    database: str, culprit: Command, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(database, NO_THIRTEEN)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="culprit"))
        with storage.feed.subscribe("T") as subscriber:
            good, bad, after = await submit(storage, note(message="before"), culprit, note(message="after"))
            assert (good.seq, after.seq) == (2, 3)
            # It is none of the refusals: something is wrong with the program.
            assert isinstance(bad, asyncpg.PostgresError | asyncpg.InterfaceError)
            assert await messages(storage) == [CREATED, "before", "after"]
            # And heard of once.
            updates = await subscriber.take()
            assert updates is not None
            assert [event.seq for update in updates for event in update.events] == [2, 3]
        assert await messages(storage, "culprit") == [CREATED]
        assert await storage.reader.task("new") is None
    # Reports on tasks that are remembered go before; then the creation is alone.
    alone = isinstance(culprit, Create)
    assert [record.levelno for record in caplog.records] == ([] if alone else [logging.WARNING])


async def test_each_command_of_a_group_that_the_database_refuses_is_tried_alone_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with session(database) as other:
            await other.execute(
                "CREATE SEQUENCE tries; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                # A sequence counts what is rolled back, too.
                " PERFORM nextval('tries'); IF NEW.message = 'bad' THEN RAISE 'no'; END IF; RETURN NEW; END $$;"
                " CREATE TRIGGER refuse BEFORE INSERT ON task_events FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            outcomes = await submit(storage, note(message="bad"), note(message="a"), note(message="b"))
            assert [isinstance(outcome, asyncpg.PostgresError) for outcome in outcomes] == [True, False, False]
            # One in the group, which ends there; then each of the three alone.
            assert await other.fetchval("SELECT last_value FROM tries") == 4
        assert await messages(storage) == [CREATED, "a", "b"]


async def test_a_writer_whom_the_database_refuses_keeps_its_connection(database: str) -> None:
    await execute(database, NO_THIRTEEN)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with spied(storage) as spy:
            await submit(storage, UpdateProgress(task_id="T", progress=13), note())
        assert spy.connections == 0
        assert await messages(storage) == [CREATED, "m"]


async def test_what_clients_sent_stays_out_of_the_log(database: str, caplog: pytest.LogCaptureFixture) -> None:
    await execute(database, "ALTER TABLE task_events ADD CHECK (seq < 3)")
    caplog.set_level(logging.DEBUG)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        outcomes = await submit(storage, note(), note(message="my secret", metadata="my secret"))
        assert isinstance(outcomes[1], asyncpg.PostgresError)
        assert "my secret" not in str(outcomes[1])
    assert "seq" in caplog.text
    assert "my secret" not in caplog.text


async def test_a_row_that_somebody_else_holds_is_unavailable_and_the_others_go_through(database: str) -> None:
    async with open_storage(database, upgrade=False, lock_timeout_ms=100) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="free"))
        with spied(storage) as spy:
            async with row_locked(database):
                outcomes = await submit(storage, note(), note("free"), note(), note("free"), note())
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Task, Unavailable, Task, Unavailable]
        assert outcomes[0].extensions == {"retryable": True}
        # One of the three that want the row, and two others: nobody waits for the same row twice.
        assert spy.count("FOR UPDATE") == 3
        # And those who have waited as a group hardly wait again.
        assert spy.count("SET LOCAL lock_timeout") == 3
        assert await messages(storage) == [CREATED]
        assert await messages(storage, "free") == [CREATED, "m", "m"]
        assert [outcome.seq for outcome in await submit(storage, note())] == [2]


async def test_what_is_acknowledged_is_on_disk_whatever_the_servers_default_is(database: str) -> None:
    await set_for_database(database, "synchronous_commit = off")
    async with session(database) as other:
        await other.execute(
            "CREATE TABLE seen (setting text); CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
            " CREATE TRIGGER look AFTER INSERT ON tasks EXECUTE FUNCTION look()"
        )
        async with open_storage(database, upgrade=False) as storage:
            await submit(storage, Create(task_id="T"))
        assert await other.fetchval("SELECT string_agg(setting, ' ') FROM seen") == "on"


async def test_a_connection_that_died_while_it_lay_idle_disturbs_nobody(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        assert await kill_connections(database) >= 1
        assert [task.seq for task in await submit(storage, note(), note())] == [2, 3]


async def test_a_group_whose_connection_dies_is_written_again_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with row_locked(database):
            writing = asyncio.create_task(submit(storage, note("other"), note(), note("unknown")))
            await until_blocked(database)
            await kill_connections(database)
            await until_blocked(database)
        other, task, refused = await writing
        assert (other.seq, task.seq, type(refused)) == (2, 2, TaskNotFound)
        assert await messages(storage) == await messages(storage, "other") == [CREATED, "m"]


async def test_a_group_whose_connection_dies_again_and_again_is_unavailable_and_nothing_is_written(
    database: str,
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with row_locked(database):
            writing = asyncio.create_task(submit(storage, note("other"), note()))
            for _ in range(3):
                await until_blocked(database)
                await kill_connections(database)
            outcomes = await writing
        # The first try was one statement that commits by itself.
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
        assert outcomes[0].extensions == {"retryable": True}
        assert storage.writer.alive
        assert [task.seq for task in await submit(storage, note(), note("other"))] == [2, 2]


async def test_a_connection_that_dies_before_its_commit_leaves_the_outcome_unknown(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            hearing = asyncio.create_task(anext(updates))
            with spied(storage) as spy, at_commit(storage, lambda _: kill_connections(database)):
                keyed = [note(message="lost", idempotency_key="k"), note("other", idempotency_key="k")]
                outcomes = await submit(storage, *keyed)
            # Nobody tries again by himself: it might be done twice.
            assert spy.commits == 1
            assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
            assert (outcomes[0].code, outcomes[0].extensions) == ("UNAVAILABLE", {"retryable": True})
            await submit(storage, note(message="next"))
            # What was not committed was not heard of either.
            assert [event.message for event in (await hearing).events] == ["next"]
        assert await messages(storage) == [CREATED, "next"]


async def commit_and_break(connection: Any) -> None:
    """Commit, and let the answer be lost."""
    await connection.execute("COMMIT")
    raise ConnectionResetError


async def test_a_change_whose_answer_was_lost_is_not_made_again_under_its_key(database: str) -> None:
    keyed = note(message="keyed", idempotency_key="k")
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with at_commit(storage, commit_and_break):
            assert [type(outcome) for outcome in await submit(storage, keyed)] == [OutcomeUnknown]
        assert [task.seq for task in await submit(storage, keyed)] == [2]
        assert await messages(storage) == [CREATED, "keyed"]


async def test_subscribers_see_a_change_whose_answer_was_lost(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with at_commit(storage, commit_and_break):
                await submit(storage, note())
            assert [event.seq for event in (await anext(updates)).events] == [2]


async def test_subscribers_see_a_change_that_was_made_alone_and_whose_answer_was_lost(database: str) -> None:
    await execute(database, NO_THIRTEEN)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="culprit"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with at_commit(storage, commit_and_break):
                culprit = UpdateProgress(task_id="culprit", progress=13, idempotency_key="k")
                await submit(storage, culprit, note(idempotency_key="k"))
            assert [event.seq for event in (await anext(updates)).events] == [2]


async def test_subscribers_look_again_for_a_change_that_takes_long_to_commit(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.aftermath.LOOK_AFTER_S", (0, 0.01, 0.02))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        with storage.feed.subscribe("T") as subscriber, storage.feed.subscribe("other") as other:
            with at_commit(storage, lambda _: kill_connections(database)):
                await submit(storage, note())
            for _ in range(3):
                assert await subscriber.take() is None
            # Who watches something else has nothing to look for.
            await submit(storage, note("other"))
            assert await other.take() is not None


async def test_the_writer_goes_on_after_a_fault_of_its_own(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Update) -> None:
        raise ZeroDivisionError

    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with monkeypatch.context() as patch:
                patch.setattr(storage.feed, "publish", broken)
                outcomes = await submit(storage, note(), note())
            # It is on disk, and that was answered before; subscribers find it there.
            assert [task.seq for task in outcomes] == [2, 3]
            assert [event.seq for event in (await anext(updates)).events] == [2, 3]
        assert storage.writer.alive
        assert [task.seq for task in await submit(storage, note())] == [4]
    assert "ZeroDivisionError" in caplog.text


async def test_a_command_that_waits_too_long_for_its_group_is_refused(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_storage(database, upgrade=False, pool_wait_s=0.05) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with row_locked(database):
            first = asyncio.create_task(storage.writer.submit(note()))
            await until_blocked(database)
            held = asyncio.create_task(storage.writer.submit(note()))
            beside = asyncio.create_task(storage.writer.submit(note("other")))
            # While the group before them has not ended, and may not for a while.
            for late in (held, beside):
                with pytest.raises(Unavailable, match="did not answer in time"):
                    await late
        task = await first
        assert task is not None
        assert task.seq == 2
        # It no longer counts among those that wait, and its task is free again.
        assert (storage.writer._waiting_commands, storage.writer._waiting_bytes, storage.writer._held) == (0, 0, {})
        assert [task.seq for task in await submit(storage, note(), note("other"))] == [3, 2]
    assert "commands waited longer than 0.1 s and were refused." in caplog.text


async def test_a_group_that_has_waited_does_not_wait_as_long_again_for_a_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "CONNECT_WITHIN_MIN_S", 0.05)
    async with proxied(database) as (proxy, url), open_storage(url, upgrade=False, pool_wait_s=0.05) as storage:
        await submit(storage, Create(task_id="T"))
        with proxy.stalled():
            await proxy.cut()
            async with asyncio.timeout(CONNECT_TIMEOUT_S - 1):
                with pytest.raises(Unavailable):
                    await storage.writer.submit(note())
        assert [task.seq for task in await submit(storage, note())] == [2]


async def test_an_outage_is_told_in_one_line_that_says_why(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async with proxied(database) as (proxy, url), open_storage(url, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with proxy.refusing():
            for _ in range(5):
                with pytest.raises(Unavailable):
                    await storage.writer.submit(note())
    told = [record for record in caplog.records if record.name == committing.__name__]
    assert {record.exc_info for record in told} == {None}
    # One of each connection that writes, at most.
    assert 1 <= len(told) <= 2
    assert "No connection to the database could be had for 1 commands: [Errno" in told[0].getMessage()


async def test_a_writer_that_is_cancelled_answers_those_that_are_held_too(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with row_locked(database):
            first = asyncio.create_task(storage.writer.submit(note()))
            await until_blocked(database)
            held = asyncio.create_task(storage.writer.submit(note()))
            others = [asyncio.create_task(storage.writer.submit(Create(task_id=f"{n}"))) for n in range(8)]
            await asyncio.gather(*others)
            assert storage.writer._held["T"]
            for task in list(storage.writer._tasks):
                task.cancel()
            async with asyncio.timeout(5):
                for waiting in (first, held):
                    with pytest.raises(Unavailable):
                        await waiting
