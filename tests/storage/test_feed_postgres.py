"""Several processes that hear of each other by LISTEN and NOTIFY; `test_links` has what every way promises."""

import asyncio
from contextlib import aclosing
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url

from storage import Create, Delete, Health, StartupError, feed_postgres, open_storage
from storage import follower as follower_module
from storage.feed_postgres import PostgresLink
from storage.link import SEQ_MAX, unpacked
from tests.postgres import execute, session
from tests.storage.helpers import kill_connections, note, numbers, spied, submit
from tests.storage.linked import WAIT_S, following, never_resync, processes, until


async def test_a_listener_that_was_cut_off_connects_again_and_has_missed_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with processes(database, database) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            for seq in range(2, 5):
                # Two pools' and two listeners'.
                assert await kill_connections(database) >= 4
                await submit(one, note())
                assert numbers([await following(updates)]) == [seq]
                await until(lambda: (one.feed_health, two.feed_health) == (Health.CONNECTED, Health.CONNECTED))


async def test_a_process_without_others_announces_nothing_until_one_comes(database: str) -> None:
    async with processes(database, database, 1) as (one,):
        link = one.link
        assert isinstance(link, PostgresLink)
        await until(lambda: not link._others)
        async with session(database) as other:
            heard: list[str] = []
            await other.add_listener("spectral_notify", lambda *arguments: heard.append(arguments[3]))
            await submit(one, Create(task_id="T"))
            await link.sent()
            async with open_storage(database, upgrade=False, feed_url=database) as two:
                await until(lambda: heard == ["hello"])
                await until(lambda: link._others)
                async with aclosing(two.watch("T")) as updates:
                    await following(updates)
                    await submit(one, note())
                    await following(updates)
                    await until(lambda: '[["T",2]]' in heard)


async def test_announcements_under_load_go_together(database: str) -> None:
    async with processes(database, database) as (one, two):
        del two
        with spied(one):
            task_ids = [f"T{number}" for number in range(2_000)]
            async with session(database) as other:
                heard: list[str] = []
                await other.add_listener("spectral_notify", lambda *arguments: heard.append(arguments[3]))
                await submit(one, *(Create(task_id=task_id) for task_id in task_ids))
                await until(lambda: sorted(told(heard)) == sorted((task_id, 1) for task_id in task_ids))
        assert all(len(payload.encode()) < 8_000 for payload in heard)
        assert len(heard) < 40


def told(payloads: list[str]) -> list[tuple[str, int]]:
    return [announcement for payload in payloads for announcement in unpacked(payload)]


async def test_a_database_that_cannot_be_listened_to_is_no_reason_not_to_start(database: str) -> None:
    nowhere = make_url(database).set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)
    async with open_storage(database, upgrade=False, feed_url=nowhere) as storage:
        assert storage.feed_health is Health.DEGRADED
        await submit(storage, Create(task_id="T"))


async def test_strangers_may_say_what_they_like_on_the_channel(database: str) -> None:
    async with processes(database, database) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            payloads = ["x", '[["T",9]]', '[["T",-1]]', '[["T",0]]', '[["other",5]]', '[["T",true]]']
            payloads += [f'[["T",0],["T",{seq}]]' for seq in (0, 5, SEQ_MAX, SEQ_MAX + 1, 2**64 - 1)]
            for payload in payloads:
                await execute(database, f"NOTIFY spectral_notify, '{payload}'")
            await submit(one, note())
            assert numbers([await following(updates)]) == [2]


async def test_a_process_whose_listener_cannot_connect_is_heard_of_by_comparing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "RESYNC_S", 0.1)
    monkeypatch.setattr(follower_module, "RESYNCS_APART_S", 0.0)
    nowhere = make_url(database).set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)
    async with (
        open_storage(database, upgrade=False, feed_url=nowhere) as unheard,
        open_storage(database, upgrade=False, feed_url=database) as other,
    ):
        link = other.link
        assert isinstance(link, PostgresLink)
        await until(lambda: not link._others)
        await submit(unheard, Create(task_id="T"))
        async with aclosing(other.watch("T")) as updates:
            await following(updates)
            await submit(unheard, note())
            assert numbers([await following(updates)]) == [2]
        async with aclosing(unheard.watch("T")) as updates:
            await following(updates)
            await submit(other, note())
            assert numbers([await following(updates)]) == [3]


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("lost"), RuntimeError("of another kind")])
async def test_a_listener_goes_on_whatever_its_driver_raises(
    database: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(database, database, 1) as (one,):
        link = one.link
        assert isinstance(link, PostgresLink)
        errors = [error]
        stay = PostgresLink._stay

        async def fail_once(link: PostgresLink, connection: Any) -> None:
            if errors:
                raise errors.pop()
            await stay(link, connection)

        monkeypatch.setattr(PostgresLink, "_stay", fail_once)
        first = link._connection
        await kill_connections(database)
        await until(lambda: not errors and link._connection not in (None, first))
        assert one.feed_health is Health.CONNECTED


@pytest.mark.parametrize("option", ["statement_cache_size=0", "max_cached_statement_lifetime=abc"])
async def test_a_listener_that_cannot_be_made_does_not_stop_the_start(database: str, option: str) -> None:
    url = database + ("&" if "?" in database else "?") + option
    async with asyncio.timeout(WAIT_S):
        try:
            async with open_storage(database, upgrade=False, feed_url=url) as storage:
                await submit(storage, Create(task_id="T"))
        except StartupError:
            pass


async def test_what_is_heard_in_the_moment_in_which_a_read_ends_is_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            for seq in range(2, 30):
                await submit(one, note())
                two.follower.hear("T", seq)
                # In every turn of the loop while that is read, and just after.
                for _ in range(seq % 6):
                    await asyncio.sleep(0)
            seen: list[int] = []
            while seen[-1:] != [29]:
                seen += numbers([await following(updates)])
            assert seen == list(range(2, 30))


async def test_two_who_come_on_either_side_of_a_change_elsewhere_both_see_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))
        early, late = two.watch("T"), two.watch("T")
        read = two.reader.task
        reading = asyncio.Event()

        async def read_and_wait(task_id: str) -> Any:
            task = await read(task_id)
            if not reading.is_set():
                reading.set()
                # Meanwhile there is a change, and another subscriber who reads it.
                await submit(one, note())
                assert (await following(late)).task.seq == 2
            return task

        monkeypatch.setattr(two.reader, "task", read_and_wait)
        async with aclosing(early), aclosing(late):
            assert (await following(early)).task.seq == 1
            two.follower.hear("T", 2)
            assert numbers([await following(early)]) == [2]


async def test_what_is_told_from_the_log_has_its_size_and_what_is_deleted_and_made_again_is_announced_as_gone(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            await submit(one, note(message="m" * 1_000))
            two.follower.hear("T", 2)
            assert (await following(updates)).size >= 1_000
    async with processes(database, database) as (one, two):
        link = one.link
        assert isinstance(link, PostgresLink)
        sent: list[dict[str, int]] = []

        async def send(announcements: Any) -> None:
            sent.append(dict(announcements))

        monkeypatch.setattr(link, "send", send)
        await submit(one, Delete(task_id="T"), Create(task_id="T"), note())
        await link.sent()
        (announced,) = sent
        # Beside it goes what the task was, for those who watch lists.
        assert {name: number for name, number in announced.items() if not name.startswith("\0")} == {"T": 0}


async def test_a_connection_that_cannot_announce_is_made_anew(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    never_resync(monkeypatch)
    monkeypatch.setattr(feed_postgres, "CHECK_S", 600.0)
    async with processes(database, database) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            assert isinstance(one.link, PostgresLink)
            broken = one.link._connection
            with monkeypatch.context() as patch:
                # An error that leaves the connection as it is.
                patch.setattr(feed_postgres, "_NOTIFY", "SELECT 1 / 0, $1::text, $2::text[]")
                await submit(one, note())
                await one.link.sent()
            # Its hello has the other compare, and so nothing is missed.
            assert numbers([await following(updates)]) == [2]
            assert one.link._connection is not broken
