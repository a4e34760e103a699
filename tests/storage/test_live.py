"""LiveLists that are watched: what is told of which change, and what other processes commit."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage import (
    Complete,
    Create,
    Delete,
    Event,
    EventType,
    Filter,
    Health,
    Json,
    ListOutdated,
    ListWatch,
    Status,
    Task,
    Unavailable,
    Update,
    UpdateProgress,
    UpdateType,
    live,
    live_follower,
    live_watch,
    open_storage,
    reader,
)
from storage.feed import Feed
from storage.live import LiveLists
from storage.live_follower import LOST, described, description
from storage.options import Options
from storage.task import update_of
from tests.postgres import execute
from tests.storage.helpers import note, submit
from tests.storage.linked import WAIT_S, processes, until, until_all

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def following(updates: ListWatch) -> Update:
    """The next update."""
    return await asyncio.wait_for(anext(updates), WAIT_S)


async def all_ended(updates: ListWatch) -> None:
    """Wait until the watch says that something was missed."""
    with pytest.raises(ListOutdated):
        while True:
            await following(updates)


def change(seq: int = 1, status: Status = Status.PENDING, task_id: str = "T", **fields: Any) -> Update:
    """A change of a task that was born at midnight."""
    event = Event(task_id, seq, EventType.LOG, "m", None, None, NOW + timedelta(seconds=seq))
    given: dict[str, Any] = {"created_at": NOW, "updated_at": event.timestamp, "metadata": None, **fields}
    rest = dict.fromkeys(("started_at", "completed_at", "failed_at", "canceled_at"))
    task = Task(task_id=task_id, status=status, progress=0, seq=seq, created_by=None, **{**rest, **given})
    return update_of(task, (event,), 300)


async def told(wanted: Filter, changes: Iterable[Update]) -> list[tuple[Status, int]]:
    """What of some changes somebody is told who takes each before the next comes."""
    hub = LiveLists(Feed())
    seen = []
    async with aclosing(await hub.watch(wanted)) as updates:
        for update in changes:
            await hub.hear([update])
            updates.begin_round()
            while (found := await updates.fetch()) is not None:
                seen.append((found.task.status, found.task.seq))
    assert hub.subscribers == hub.filters == 0
    return seen


RUN, PENDING, SUCCESS, FAILED = Status.IN_PROGRESS, Status.PENDING, Status.SUCCESS, Status.FAILED


@pytest.mark.parametrize(
    ("wanted", "statuses", "expected"),
    [
        ({RUN}, [(1, PENDING), (2, RUN), (3, RUN), (4, SUCCESS)], [2, 3, 4]),
        ({PENDING}, [(1, PENDING), (2, RUN), (3, RUN), (4, PENDING), (5, SUCCESS)], [1, 2, 4, 5]),
        ({SUCCESS}, [(1, PENDING), (2, RUN), (4, RUN), (9, FAILED)], []),
        ({SUCCESS, FAILED}, [(1, PENDING), (9, FAILED)], [9]),
        # What lies between may have been anything that is not final.
        ({RUN}, [(1, PENDING), (5, SUCCESS)], [5]),
        ({RUN}, [(1, PENDING), (5, PENDING)], [5]),
        ({PENDING}, [(3, RUN), (5, RUN), (8, SUCCESS)], [3, 8]),
        ({SUCCESS}, [(3, RUN), (8, PENDING)], []),
        (set(), [(1, PENDING), (2, RUN)], []),
        # Late, or doubled.
        (None, [(2, RUN), (1, PENDING), (2, RUN), (3, RUN)], [2, 3]),
    ],
)
async def test_who_wants_some_statuses_is_told_of_what_has_one_or_may_have_had_one(
    wanted: set[Status] | None, statuses: list[tuple[int, Status]], expected: list[int]
) -> None:
    found = await told(Filter(statuses=wanted), [change(seq, status) for seq, status in statuses])
    assert [seq for _, seq in found] == expected


async def test_what_is_heard_of_a_task_after_its_end_is_of_another_task_or_not_told() -> None:
    gone = Update(UpdateType.DELETE, change(3).task, ())
    later = NOW + timedelta(days=1)
    born_again = change(1, created_at=later, updated_at=later)
    found = await told(Filter(), [change(2), gone, change(3), gone, change(4), born_again, change(5), gone])
    assert [seq for _, seq in found] == [2, 3, 1]
    # One of whose end nobody has told may have matched.
    found = await told(Filter(statuses=[RUN]), [change(5, RUN), change(2, PENDING, created_at=later, updated_at=later)])
    assert [seq for _, seq in found] == [5, 2]


async def test_metadata_are_looked_at_once_however_often_the_task_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    value = Json.value

    def counted(text: Json) -> Any:
        nonlocal looks
        looks += text == theirs
        return value(text)

    theirs = Json('{"a":1,"b":2}')
    wanted = Filter(metadata=Json('{"a":1}'))
    monkeypatch.setattr(Json, "value", counted)
    changes = [change(seq, RUN, task_id, metadata=theirs) for seq in range(1, 20) for task_id in "AB"]
    assert len(await told(wanted, changes)) == 38
    # Both tasks have the same.
    assert looks == 1


@pytest.mark.parametrize("size", [1_000, 1_001])
async def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(live_watch, "WAITING_BYTES_MAX", 2 * (300 + 1_000))
    hub = LiveLists(Feed())
    metadata = Json('"' + "m" * 998 + '"')
    async with aclosing(await hub.watch(Filter())) as updates:
        # The same task takes its own place.
        for seq in range(1, 9):
            await hub.hear([change(seq, metadata=metadata)])
        await hub.hear([change(task_id="other", metadata=Json(metadata + " " * (size - 1_000)))])
        if size == 1_000:
            assert (await following(updates)).task.seq == 8
            assert (await following(updates)).task.task_id == "other"
        else:
            await all_ended(updates)
    assert hub.gauges.coalesced == 7
    await hub.close()


async def test_nothing_is_done_while_nobody_listens(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        assert storage.live.known("T") is None
        async with aclosing(await storage.live.watch(Filter())) as updates:
            await submit(storage, note())
            assert (await following(updates)).task.seq == 2
            assert storage.live.known_ids == ["T"]
        await submit(storage, note())
        assert storage.live.known_ids == []


async def test_what_one_process_commits_the_lists_of_another_are_told(database: str, feed_url: str) -> None:
    async with processes(database, feed_url) as (one, two), aclosing(await two.live.watch(Filter())) as updates:
        await submit(one, Create(task_id="T"))
        update = await following(updates)
        assert (update.type, update.task.seq, len(update.events)) == (UpdateType.EVENT, 1, 1)
        await submit(one, UpdateProgress(task_id="T", progress=40))
        update = await following(updates)
        assert (update.type, update.task.progress, update.events[0].seq) == (UpdateType.PROGRESS, 40, 2)
        await submit(one, Complete(task_id="T"))
        assert (await following(updates)).type is UpdateType.COMPLETE
        await submit(one, Delete(task_id="T"))
        update = await following(updates)
        assert (update.type, update.task.status, update.events) == (UpdateType.DELETE, Status.SUCCESS, ())
        assert two.live_follower.repairs == 0


async def test_a_deletion_of_a_task_that_was_never_heard_of_is_told(database: str, feed_url: str) -> None:
    async with open_storage(database, upgrade=False, feed_url=feed_url) as one:
        create = Create(task_id="T", metadata={"a": 1}, created_by="ann", options=Options(tags=("x",)))
        await submit(one, create, Create(task_id="other", created_by="bob"))
        assert one.link is not None
        await one.link.sent()
        # Of its metadata nothing is known.
        wanted = Filter(created_by="ann", tags=["x"], metadata=Json('{"b":2}'))
        async with (
            open_storage(database, upgrade=False, feed_url=feed_url) as two,
            aclosing(await two.live.watch(wanted)) as updates,
        ):
            await until_all(Health.CONNECTED, one, two)
            await submit(one, Delete(task_id="other"))
            await submit(one, Delete(task_id="T"))
            update = await following(updates)
            assert (update.type, update.task.task_id, update.task.metadata) == (UpdateType.DELETE, "T", None)
            assert (update.task.seq, update.task.created_by) == (1, "ann")


async def test_a_flood_of_another_process_is_told_to_its_end(database: str, feed_url: str) -> None:
    async with processes(database, feed_url) as (one, two), aclosing(await two.live.watch(Filter())) as updates:
        await submit(one, *(Create(task_id=f"T-{number}") for number in range(500)))
        for progress in range(10):
            await submit(one, *(UpdateProgress(task_id=f"T-{number}", progress=progress) for number in range(500)))
        seen: dict[str, int] = {}
        while len(seen) < 500 or min(seen.values()) < 11:
            task = (await following(updates)).task
            assert task.seq > seen.get(task.task_id, 0)
            seen[task.task_id] = task.seq


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log looked at again and again."""
    for name in ("LOOK_S", "LOOK_DEGRADED_S"):
        monkeypatch.setattr(live_follower, name, 0.05)
    monkeypatch.setattr(live_follower, "ANNOUNCED_WITHIN_S", 0.01)


async def test_what_no_announcement_told_is_found_by_looking(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_often(monkeypatch)
    async with processes(database, feed_url) as (one, two):
        await submit(one, Create(task_id="before"))
        monkeypatch.setattr(one.feed, "announcer", None)
        async with aclosing(await two.live.watch(Filter(task_id_prefix="T"))) as updates:
            await until(lambda: two.live_follower.looks > 0)
            await submit(one, Create(task_id="T"))
            assert (await following(updates)).task.seq == 1
            await submit(one, note(), note())
            while (await following(updates)).task.seq < 3:
                pass
            assert two.live_follower.repairs >= 2
            # Of this one nothing but the table tells.
            await submit(one, Delete(task_id="T"))
            update = await following(updates)
            assert (update.type, update.task.seq) == (UpdateType.DELETE, 3)


async def test_what_was_found_out_is_not_read_again(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_often(monkeypatch)
    monkeypatch.setattr(live_follower, "ANNOUNCED_WITHIN_S", WAIT_S / 5)
    async with processes(database, feed_url) as (one, two), aclosing(await two.live.watch(Filter())) as updates:
        await submit(one, Create(task_id="T"))
        await submit(two, Create(task_id="U"))
        for _ in "TU":
            await following(updates)
        reads: list[str] = []
        latest = two.reader.latest

        async def counted(task_ids: list[str]) -> Any:
            reads.extend(task_ids)
            return await latest(task_ids)

        monkeypatch.setattr(two.reader, "latest", counted)
        looks = two.live_follower.looks
        await until(lambda: two.live_follower.looks > looks + 3)
        assert not reads
        assert two.live_follower.repairs == 0


async def test_lists_end_when_announcements_were_lost(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(database, feed_url) as (one, two):
        assert one.link is not None
        # Over PostgreSQL, nobody is told anything before he was heard of.
        await until(lambda: getattr(one.link, "_others", True))
        async with aclosing(await two.live.watch(Filter())) as updates:
            # Another one says that it could not say something.
            one.link.announce(LOST, 1)
            await all_ended(updates)
        async with aclosing(await two.live.watch(Filter())) as updates:
            # And so do those whose own way is there again.
            assert two.link is not None
            two.link._become(Health.DEGRADED)
            two.link._become(Health.CONNECTED)
            await all_ended(updates)
        assert two.live.gauges.outdated == 2


async def test_a_process_that_could_not_announce_says_so_later(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(database, feed_url) as (one, two), aclosing(await two.live.watch(Filter())) as updates:
        assert one.link is not None
        await until(lambda: getattr(one.link, "_others", True))
        one.link._become(Health.DEGRADED)
        await submit(one, Create(task_id="T"))
        await one.link.sent()
        one.link._become(Health.CONNECTED)
        await all_ended(updates)


async def test_while_announcements_are_lost_lists_end_now_and_then(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_often(monkeypatch)
    monkeypatch.setattr(live_follower, "OUTDATED_S", 0.2)
    async with processes(database, feed_url) as (_, two):
        two.live_follower.degraded = lambda: True
        async with aclosing(await two.live.watch(Filter())) as updates:
            await all_ended(updates)


async def test_more_than_can_be_read_or_found_ends_lists(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_storage(database, upgrade=False, feed_url=feed_url) as storage:
        await until_all(Health.CONNECTED, storage)
        await submit(storage, *(Create(task_id=f"T-{number}") for number in range(5)))
        monkeypatch.setattr(live_follower, "WANTED_TASKS_MAX", 4)
        async with aclosing(await storage.live.watch(Filter())) as updates:
            storage.live_follower.read([f"T-{number}" for number in range(4)])
            for _ in range(4):
                await following(updates)
            storage.live_follower.read([f"X-{number}" for number in range(5)])
            await all_ended(updates)
        look_often(monkeypatch)
        monkeypatch.setattr(live_follower, "LOOKED_TASKS_MAX", 4)
        async with aclosing(await storage.live.watch(Filter())) as updates:
            storage.live_follower.look()
            await all_ended(updates)


async def test_a_database_that_is_away_is_asked_again(
    database: str, feed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(database, feed_url) as (one, two), aclosing(await two.live.watch(Filter())) as updates:
        latest = two.reader.latest

        async def away(_: Any) -> Any:
            monkeypatch.setattr(two.reader, "latest", latest)
            raise Unavailable("away")

        monkeypatch.setattr(two.reader, "latest", away)
        await submit(one, Create(task_id="T"))
        assert (await following(updates)).task.task_id == "T"


async def test_what_may_have_been_committed_is_looked_at(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, storage_of(database) as other:
        await submit(other, Create(task_id="T"))
        async with aclosing(await storage.live.watch(Filter())) as updates:
            # As the committer says it when nobody knows what became of a commit.
            storage.feed.look({"T", "never"})
            assert (await following(updates)).task.task_id == "T"


def storage_of(database: str) -> Any:
    """Another process, of which the first hears nothing."""
    return open_storage(database, upgrade=False)


def test_a_deleted_task_is_described_within_bounds_and_read_again() -> None:
    plain = change(3, SUCCESS, 'T"\n\\é').task
    assert described(description(plain)) == plain._replace(last_event=None)
    for unreadable in ("", "null", "[]", "[1,2,3,4,5,6,7]", '["T","NO",1,1,null,[],null]', "{}", '"x"'):
        assert described("\0\0" + unreadable) is None


async def test_the_plan_of_a_deleted_task_is_described_without_what_is_secret(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        options = Options(tags=("é" * 64, *(f"{number}" + "x" * 60 for number in range(19))), queue="q", priority=7)
        await submit(storage, Create(task_id="T", options=options))
        (claim,) = await storage.claimer.claim("q", "w")
        text = description(claim.task)
        assert claim.token not in text
        found = described(text)
        assert found is not None and found.plan is not None and claim.task.plan is not None
        assert (found.plan.queue, found.plan.priority, found.plan.attempt) == ("q", 7, 1)
        assert sorted(found.plan.tags) == sorted(claim.task.plan.tags)


async def test_filters_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FILTERS_MAX", 2)
    hub = LiveLists(Feed())
    watches = [await hub.watch(Filter(queue=queue)) for queue in "aba"]
    assert (hub.filters, hub.subscribers) == (2, 3)
    with pytest.raises(Unavailable):
        await hub.watch(Filter(queue="c"))
    for watch in watches:
        watch.close()
        watch.close()
    assert hub.filters == 0


async def test_filters_that_look_into_metadata_take_turns_with_everybody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = 20
    # Each turn is over when it begins.
    monkeypatch.setattr(live, "TURN_S", -1.0)
    hub = LiveLists(Feed())
    watches = [await hub.watch(Filter(metadata=Json(f'{{"a": [{number}]}}'))) for number in range(filters)]
    telling = asyncio.create_task(hub.hear([change(metadata=Json('{"a": [0, 7]}'))]))
    turns = 0
    while not telling.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= filters
    for number, watch in enumerate(watches):
        watch.begin_round()
        assert (await watch.fetch() is not None) is (number in (0, 7))
        watch.close()


async def test_what_changed_lately_is_found_by_the_index_of_times(database: str) -> None:
    await execute(
        database,
        """
        INSERT INTO task_events (task_id, seq, event_type, message, timestamp)
        SELECT 'T-' || n % 1000, n, 'LOG', 'm', '2026-01-01'::timestamptz + n * interval '1 s'
        FROM generate_series(1, 200000) AS n
        """,
    )
    await execute(database, "VACUUM ANALYZE task_events")
    async with open_storage(database, upgrade=False) as storage:
        last = NOW + timedelta(seconds=200_000)
        found = await storage.reader.changed_since(last - timedelta(seconds=9), 1_000)
        assert found == {f"T-{number % 1000}": number for number in range(199_991, 200_001)}
        assert len(await storage.reader.changed_since(NOW, 7)) == 7
        async with storage.pool.connection() as connection:
            await connection.begin_list()
            lines = await connection.driver.fetch(f"EXPLAIN {reader._CHANGED_SINCE}", last, 1_000)
            await connection.roll_back()
    assert any("Bitmap Index Scan on task_events_timestamp" in line for (line,) in lines), lines


async def test_a_queue_that_is_ready_elsewhere_ends_no_list(database: str, feed_url: str) -> None:
    async with processes(database, feed_url) as (one, two), aclosing(await two.live.watch(Filter())) as updates:
        await submit(one, Create(task_id="S"))
        assert (await following(updates)).task.task_id == "S"
        one.queues.wake(["images"])
        await submit(one, Create(task_id="T"))
        assert (await following(updates)).task.task_id == "T"
        assert two.live.gauges.outdated == 0


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_task_that_was_created_anew_leaves_lists_that_show_the_one_before(
    database: str, feed_url: str, elsewhere: bool
) -> None:
    async with processes(database, feed_url) as (one, two):
        if elsewhere:
            # Nobody there has heard of the one before.
            await submit(one, Create(task_id="T"), Complete(task_id="T"))
            assert one.link is not None
            await one.link.sent()
        async with aclosing(await two.live.watch(Filter(statuses={SUCCESS}))) as updates:
            if not elsewhere:
                await submit(one, Create(task_id="T"), Complete(task_id="T"))
                assert (await following(updates)).type is UpdateType.COMPLETE
            await submit(one, Delete(task_id="T"), Create(task_id="T"))
            update = await following(updates)
            assert (update.type, update.task.status) == (UpdateType.DELETE, SUCCESS)


async def test_a_task_that_was_created_anew_is_told_after_the_end_of_the_one_before() -> None:
    hub = LiveLists(Feed())
    async with aclosing(await hub.watch(Filter(statuses={SUCCESS}))) as updates:
        await hub.hear([change(4, SUCCESS), change(1, created_at=NOW + timedelta(minutes=1))])
        update = await following(updates)
        # What waited of the one before is over with it.
        assert (update.type, update.task.seq) == (UpdateType.DELETE, 4)
        await hub.hear([change(2, SUCCESS, created_at=NOW + timedelta(minutes=1))])
        assert (await following(updates)).task.created_at > NOW
