"""What every way between processes promises: what one commits, the subscribers of the others see, once and in order."""

import asyncio
import time
from contextlib import aclosing

import pytest

from storage import Complete, Create, Delete, Health, Storage, UpdateType, link, open_storage
from storage import follower as follower_module
from storage.link import packed, unpacked
from tests.storage.helpers import note, numbers, submit
from tests.storage.linked import WAIT_S, following, never_resync, processes, until, until_all


async def test_what_one_commits_the_subscribers_of_the_other_see_at_once(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with processes(database, feed_url) as (one, two):
        assert (one.feed_health, two.feed_health) == (Health.CONNECTED, Health.CONNECTED)
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates, aclosing(two.watch("T")) as others:
            assert (await following(updates)).task.seq == (await following(others)).task.seq == 1
            for seq in range(2, 12):
                await submit(one if seq % 3 else two, note())
                update = await following(updates)
                assert numbers([update]) == [seq]
                # Read once, and told to both.
                assert await following(others) is update
            await submit(one, Complete(task_id="T"))
            assert (await following(updates)).type is UpdateType.COMPLETE
            with pytest.raises(StopAsyncIteration):
                await following(updates)
        assert one.follower.repairs == two.follower.repairs == 0


async def test_a_task_that_both_change_is_seen_whole_by_the_subscribers_of_both(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    seen: list[list[int]] = []

    async def see(storage: Storage) -> None:
        mine: list[int] = []
        seen.append(mine)
        async with aclosing(storage.watch("T", 0)) as updates:
            async for update in updates:
                mine += numbers([update])

    async def report(storage: Storage) -> None:
        for _ in range(40):
            await submit(storage, note())

    async with processes(database, feed_url, 3) as storages:
        await submit(storages[0], Create(task_id="T"))
        subscribers = [asyncio.create_task(see(storage)) for storage in storages for _ in range(5)]
        await asyncio.gather(*(report(storage) for storage in storages for _ in range(3)))
        await submit(storages[0], Complete(task_id="T"))
        await asyncio.wait_for(asyncio.gather(*subscribers), WAIT_S)
        assert all(mine == list(range(1, 363)) for mine in seen)


async def test_a_task_that_is_deleted_elsewhere_ends_and_one_that_is_born_again_is_another(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with processes(database, feed_url) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            await submit(one, note(), Delete(task_id="T"), Create(task_id="T"), note())
            while (await following(updates)).type is not UpdateType.DELETE:
                pass
        async with aclosing(two.watch("T", 0)) as updates:
            assert numbers([await following(updates)]) == [1, 2]


async def test_what_no_announcement_told_is_found_by_comparing(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "RESYNC_S", 0.05)
    monkeypatch.setattr(follower_module, "ANNOUNCED_WITHIN_S", 0.01)
    async with processes(database, feed_url) as (one, two):
        monkeypatch.setattr(one.feed, "announcer", None)
        await submit(one, Create(task_id="T"), Create(task_id="gone"))
        async with aclosing(two.watch("T")) as updates, aclosing(two.watch("gone")) as others:
            await following(updates)
            await following(others)
            await submit(one, note(), note())
            assert numbers([await following(updates)]) == [2, 3]
            assert two.follower.repairs == 1
            await submit(one, Delete(task_id="gone"))
            assert (await following(others)).type is UpdateType.DELETE


async def test_an_announcement_takes_milliseconds(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    async with processes(database, feed_url) as (one, two):
        await submit(one, Create(task_id="T"))
        async with aclosing(two.watch("T")) as updates:
            await following(updates)
            begun = time.monotonic()
            for _ in range(10):
                await submit(one, note())
                await following(updates)
            # Far less than a comparison would take; how much less is for the benchmark to say.
            assert time.monotonic() - begun < 5


def test_announcements_are_packed_below_a_size_and_read_again() -> None:
    announcements = [("é" * 100 + str(number), number) for number in range(300)] + [('"\n\\', 0), ("x" * 50, 2**60)]
    payloads = list(packed(announcements, 1_000))
    assert all(len(payload.encode()) < 1_000 for payload in payloads)
    assert [one for payload in payloads for one in unpacked(payload)] == announcements
    others = ["", "null", "hello", "[", "{}", "[1]", '[["T"]]', '[["T","1"]]', "[[1,1]]", '[["T",true]]', '[["T",-1]]']
    for other in (*others, f'[["T",{2**63}]]'):
        assert unpacked(other) == []


async def test_who_comes_has_the_others_compare_at_once(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_storage(database, upgrade=False, feed_url=feed_url) as one:
        await until_all(Health.CONNECTED, one)
        asked: list[None] = []
        monkeypatch.setattr(one.follower, "resync", lambda: asked.append(None))
        # It may have changed anything while it could not say so.
        async with open_storage(database, upgrade=False, feed_url=feed_url):
            await until(lambda: bool(asked))


async def test_what_waits_to_be_announced_is_announced_before_the_end(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_resync(monkeypatch)
    monkeypatch.setattr(link, "GATHER_S", 0.3)
    async with open_storage(database, upgrade=False, feed_url=feed_url) as one:
        await submit(one, Create(task_id="T"))
        async with aclosing(one.watch("T")) as updates:
            await following(updates)
            async with open_storage(database, upgrade=False, feed_url=feed_url) as two:
                await until_all(Health.CONNECTED, one, two)
                await submit(two, note())
                assert numbers([await following(updates)]) == [2]
                # It waits for others to go along.
                await submit(two, note())
            assert numbers([await following(updates)]) == [3]
            assert one.follower.repairs == 0
