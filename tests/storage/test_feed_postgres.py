"""Several processes that hear of each other by LISTEN and NOTIFY; `test_links` has what every way promises."""

from contextlib import aclosing

import pytest
from sqlalchemy import make_url

from storage import Create, Health, open_storage
from storage.feed_postgres import PostgresLink
from storage.link import SEQ_MAX, unpacked
from tests.postgres import execute, session
from tests.storage.helpers import kill_connections, note, numbers, spied, submit
from tests.storage.linked import following, never_resync, processes, until


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
        await until(lambda: one.follower.alone)
        async with session(database) as other:
            heard: list[str] = []
            await other.add_listener("spectral_notify", lambda *arguments: heard.append(arguments[3]))
            await submit(one, Create(task_id="T"))
            await link.sent()
            async with open_storage(database, upgrade=False, feed_url=database) as two:
                await until(lambda: heard == ["hello"])
                await until(lambda: not one.follower.alone)
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
