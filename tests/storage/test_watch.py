"""What a subscriber sees: a snapshot, then every event after it, each once and in order."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from storage import (
    BadInput,
    Cancel,
    Complete,
    Create,
    Delete,
    Fail,
    LogPage,
    Status,
    Storage,
    Task,
    TaskNotFound,
    Unavailable,
    Update,
    UpdateProgress,
    UpdateType,
    open_storage,
)
from storage.reader import LOG_CHUNK_EVENTS, Reader
from storage.watch import Watch
from tests.storage.helpers import collect, messages, note, numbers, submit, task_and_log

SNAPSHOT, EVENT, DELETE = UpdateType.SNAPSHOT, UpdateType.EVENT, UpdateType.DELETE


def told(updates: list[Update]) -> list[tuple[UpdateType, int, list[int]]]:
    """What matters of updates: the type, how new the task is, and the numbers of the events."""
    return [(update.type, update.task.seq, numbers([update])) for update in updates]


async def task_with(storage: Storage, seq: int, status: Status = Status.PENDING) -> None:
    """Make a task with so many events."""
    await submit(storage, Create(task_id="T", status=status), *[note()] * (seq - 1))


@pytest.mark.parametrize(
    ("after_seq", "events"),
    [(None, []), (0, [1, 2, 3, 4, 5]), (3, [4, 5]), (5, []), (6, [1, 2, 3, 4, 5]), (2**31 - 1, [1, 2, 3, 4, 5])],
)
async def test_a_snapshot_comes_first_with_what_came_after_the_number_that_was_seen(
    database: str, after_seq: int | None, events: list[int]
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 5)
        async with aclosing(storage.watch("T", after_seq)) as updates:
            snapshot = await anext(updates)
            task, log = await task_and_log(storage)
            assert snapshot == Update(SNAPSHOT, task, tuple(event for event in log if event.seq in events))  # type: ignore[arg-type]
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, 6, [6])]
        assert storage.feed.subscribers == 0


async def test_a_long_snapshot_comes_in_chunks(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 2 * LOG_CHUNK_EVENTS + 3)
        last = 2 * LOG_CHUNK_EVENTS + 3
        async with aclosing(storage.watch("T", 1)) as updates:
            chunks = [await anext(updates) for _ in range(3)]
            assert [chunk.type for chunk in chunks] == [SNAPSHOT] * 3
            assert [len(chunk.events) for chunk in chunks] == [LOG_CHUNK_EVENTS, LOG_CHUNK_EVENTS, 2]
            assert numbers(chunks) == list(range(2, last + 1))
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, last + 1, [last + 1])]


async def test_each_commit_is_one_update_named_after_what_happened_last(database: str) -> None:
    groups: list[list[Any]] = [
        [note()],
        [UpdateProgress(task_id="T", progress=10)],
        [UpdateProgress(task_id="T", progress=20), note(), note()],
        [note(), UpdateProgress(task_id="T", progress=30), note("other")],
        [note(), Complete(task_id="T")],
    ]
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        watching = storage.watch("T")
        updates = [await anext(watching)]
        for group in groups:
            await submit(storage, *group)
        updates += await collect(watching)
        assert told(updates) == [
            (SNAPSHOT, 1, []),
            (EVENT, 2, [2]),
            (UpdateType.PROGRESS, 3, [3]),
            (EVENT, 6, [4, 5, 6]),
            (UpdateType.PROGRESS, 8, [7, 8]),
            (UpdateType.COMPLETE, 10, [9, 10]),
        ]


@pytest.mark.parametrize(
    ("ending", "named"),
    [
        (Complete(task_id="T"), UpdateType.COMPLETE),
        (Fail(task_id="T", error="e"), UpdateType.FAIL),
        (Cancel(task_id="T"), UpdateType.CANCEL),
    ],
)
async def test_a_stream_ends_when_its_task_does(database: str, ending: Any, named: UpdateType) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        watching = storage.watch("T")
        await anext(watching)
        await submit(storage, ending)
        assert told(await collect(watching)) == [(named, 2, [2])]
        assert storage.feed.subscribers == 0


async def test_a_stream_ends_when_its_task_is_deleted(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        watching = storage.watch("T")
        await anext(watching)
        # What happened in the same group before, and what is made of the ID after.
        await submit(storage, note(), Delete(task_id="T"), Create(task_id="T"), note())
        assert told(await collect(watching)) == [(DELETE, 2, [2])]


@pytest.mark.parametrize("after_seq", [None, 0, 1, 600, 601, 700])
async def test_a_stream_of_a_finished_task_is_its_snapshot(database: str, after_seq: int | None) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 600)
        await submit(storage, Complete(task_id="T"))
        updates = await collect(storage.watch("T", after_seq))
        assert {update.type for update in updates} == {SNAPSHOT}
        seen = 601 if after_seq is None else after_seq if after_seq <= 601 else 0
        assert numbers(updates) == list(range(seen + 1, 602))


async def test_a_task_that_is_not_there_cannot_be_watched(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        for after_seq in (None, 0, 7):
            with pytest.raises(TaskNotFound):
                await collect(storage.watch("T", after_seq))
        with pytest.raises(BadInput, match="taskId must have 1 to 255 characters, got 0"):
            await collect(storage.watch("", None))
        await task_with(storage, 1)
        with pytest.raises(BadInput, match=r"afterSeq must be the number of the last event seen, or 0 .*, got -1"):
            await collect(storage.watch("T", -1))
        assert storage.feed.subscribers == 0


class Slow(Reader):
    """A reader whose answers reach their reader only after something else has happened."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.pool)
        self.before_task: list[Any] = []
        self.after_task: list[Any] = []
        self.before_log: list[Any] = []
        self.after_log: list[Any] = []
        # Reads of the log that fail, before one does not.
        self.failures = 0
        self._storage = storage

    async def task(self, task_id: str) -> Task | None:
        await self._happens(self.before_task)
        task = await super().task(task_id)
        await self._happens(self.after_task)
        return task

    async def resume(self, task_id: str, after_seq: int) -> LogPage | None:
        self._fail()
        await self._happens(self.before_task)
        page = await super().resume(task_id, after_seq)
        await self._happens(self.after_task)
        return page

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("The database is away.")

    async def log(self, task_id: str, after_seq: int) -> LogPage | None:
        self._fail()
        await self._happens(self.before_log)
        page = await super().log(task_id, after_seq)
        await self._happens(self.after_log)
        return page

    async def _happens(self, commands: list[Any]) -> None:
        group, commands[:] = commands[:], []
        if group:
            assert not [outcome for outcome in await submit(self._storage, *group) if isinstance(outcome, Exception)]

    def watch(self, after_seq: int | None) -> Watch:
        return Watch(self._storage.feed, self, "T", after_seq)


async def test_a_change_between_subscribing_and_reading_is_in_the_snapshot_and_does_not_come_again(
    database: str,
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        reader = Slow(storage)
        reader.before_task = [note()]
        async with aclosing(reader.watch(0)) as updates:
            assert told([await anext(updates)]) == [(SNAPSHOT, 2, [1, 2])]
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, 3, [3])]


@pytest.mark.parametrize("after_seq", [None, 1])
async def test_a_change_between_reading_and_the_snapshot_comes_after_it(database: str, after_seq: int | None) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        reader = Slow(storage)
        reader.after_task = [note()]
        async with aclosing(reader.watch(after_seq)) as updates:
            assert told([await anext(updates)]) == [(SNAPSHOT, 1, [])]
            await submit(storage, note())
            # Each from the feed; a subscriber that came too late would have found both in the log.
            assert told([await anext(updates), await anext(updates)]) == [(EVENT, 2, [2]), (EVENT, 3, [3])]


async def test_changes_around_the_reading_of_the_log_come_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        many = LOG_CHUNK_EVENTS + 2
        await task_with(storage, many)
        reader = Slow(storage)
        reader.after_task, reader.before_log, reader.after_log = [note()], [note()], [note(), note()]
        async with aclosing(reader.watch(1)) as updates:
            assert told([await anext(updates)]) == [(SNAPSHOT, many, list(range(2, many)))]
            assert told([await anext(updates)]) == [(SNAPSHOT, many + 2, [many, many + 1, many + 2])]
            assert told([await anext(updates)]) == [(EVENT, many + 4, [many + 3, many + 4])]


async def test_a_group_that_was_partly_seen_comes_without_what_was_seen(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 2)
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            _, log = await task_and_log(storage)
            await submit(storage, note())
            task, (*_, third) = await task_and_log(storage)
            assert task is not None
            # As another process may announce it: the same numbers, cut in another way.
            await storage.feed.publish(Update(EVENT, task, (log[1], third)))
            assert told([await anext(updates)]) == [(EVENT, 3, [3])]
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, 4, [4])]


async def test_a_hole_in_the_feed_is_mended_from_the_log(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, open_storage(database, upgrade=False) as elsewhere:
        await task_with(storage, 1)
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            # This process hears nothing of what another one writes, until it writes itself.
            await submit(elsewhere, *[note()] * (LOG_CHUNK_EVENTS + 10))
            await submit(storage, note())
            mended = [await anext(updates), await anext(updates)]
            last = LOG_CHUNK_EVENTS + 12
            assert numbers(mended) == list(range(2, last + 1))
            assert [len(update.events) for update in mended] == [LOG_CHUNK_EVENTS, 11]
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, last + 1, [last + 1])]


async def test_a_deletion_after_a_hole_comes_without_the_events_that_do_not_follow(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, open_storage(database, upgrade=False) as elsewhere:
        await task_with(storage, 1)
        watching = storage.watch("T")
        await anext(watching)
        await submit(elsewhere, note())
        await submit(storage, note(), Delete(task_id="T"))
        assert told(await collect(watching)) == [(DELETE, 3, [])]


async def test_a_database_that_is_away_for_a_moment_ends_no_stream(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.watch.LOG_RETRY_WAITS_S", (0, 0))
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        reader = Slow(storage)
        async with aclosing(reader.watch(None)) as updates:
            await anext(updates)
            await submit(storage, note())
            for failures in (1, 2, 20):
                storage.feed.look(["T"])
                await submit(storage, note())
                reader.failures = failures
                assert numbers([await anext(updates)]) == {1: [2, 3], 2: [4], 20: [5]}[failures]
        # One that has not begun is told.
        async with aclosing(reader.watch(1)) as updates:
            reader.failures = 1
            with pytest.raises(Unavailable):
                await anext(updates)
        assert storage.feed.subscribers == 0


async def test_an_ending_that_nobody_announced_is_found_in_the_log(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, open_storage(database, upgrade=False) as elsewhere:
        await task_with(storage, 1)
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            await submit(elsewhere, *[note()] * LOG_CHUNK_EVENTS, Complete(task_id="T"))
            storage.feed.look(["T"])
            rest = await collect(updates)
            assert [update.type for update in rest] == [EVENT, UpdateType.COMPLETE]
            assert numbers(rest) == list(range(2, LOG_CHUNK_EVENTS + 3))


async def test_one_who_does_not_read_costs_little_and_then_sees_everything_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            for _ in range(300):
                await submit(storage, *[note()] * 10)
            (buffer,) = [subscriber._updates for subscriber in storage.feed._topics["T"].subscribers]
            assert buffer is None or len(buffer) <= 64
            behind: list[Update] = []
            while numbers(behind)[-1:] != [3001]:
                behind.append(await anext(updates))
            assert numbers(behind) == list(range(2, 3002))
            assert max(len(update.events) for update in behind) == LOG_CHUNK_EVENTS
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, 3002, [3002])]


@pytest.mark.parametrize("again", [[], [Create(task_id="T")], [Create(task_id="T"), *[note()] * 50]])
@pytest.mark.parametrize("overrun", [False, True])
async def test_one_who_was_behind_when_the_task_was_deleted_sees_the_deletion_and_nothing_of_its_successor(
    database: str, again: list[Any], overrun: bool
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 3)
        watching = storage.watch("T")
        born = (await anext(watching)).task.created_at
        await submit(storage, note())
        for command in (Delete(task_id="T"), *again):
            await submit(storage, command)
        if overrun:
            storage.feed.look(["T"])
        updates = await collect(watching)
        assert told(updates) == ([(DELETE, 3, [])] if overrun else [(EVENT, 4, [4]), (DELETE, 4, [])])
        assert {update.task.created_at for update in updates} == {born}
        assert storage.feed.subscribers == 0


async def test_one_who_comes_while_a_task_is_replaced_follows_the_new_one(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 3)
        reader = Slow(storage)
        # The feed tells of the end of the old one; the reader has only seen the new one.
        reader.before_task = [note(), Delete(task_id="T"), Create(task_id="T")]
        async with aclosing(reader.watch(None)) as updates:
            assert told([await anext(updates)]) == [(SNAPSHOT, 1, [])]
            await submit(storage, note())
            assert told([await anext(updates)]) == [(EVENT, 2, [2])]


async def test_one_who_comes_while_a_task_is_replaced_sees_the_end_of_the_old_one(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 3)
        reader = Slow(storage)
        reader.after_task = [Delete(task_id="T"), Create(task_id="T"), note()]
        assert told(await collect(reader.watch(1))) == [(SNAPSHOT, 3, [2, 3]), (DELETE, 3, [])]


async def test_one_who_waits_is_let_go_when_the_watch_is_closed(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        watching = storage.watch("T")
        await anext(watching)
        waiting = asyncio.create_task(anext(watching, None))
        await asyncio.sleep(0)
        watching.close()
        assert await waiting is None
        assert storage.feed.subscribers == 0


async def test_a_task_that_is_deleted_while_its_log_is_read(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 3)
        reader = Slow(storage)
        reader.before_task = [Delete(task_id="T")]
        with pytest.raises(TaskNotFound):
            await collect(reader.watch(0))
        await task_with(storage, LOG_CHUNK_EVENTS + 3)
        reader.after_task = [Delete(task_id="T")]
        updates = await collect(reader.watch(0))
        assert [update.type for update in updates] == [SNAPSHOT, DELETE]
        assert len(numbers(updates)) == LOG_CHUNK_EVENTS
        assert storage.feed.subscribers == 0


async def test_a_subscriber_who_is_cancelled_while_it_waits_is_forgotten(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        got_snapshot = asyncio.Event()

        async def subscriber() -> None:
            async with aclosing(storage.watch("T")) as updates:
                async for _ in updates:
                    got_snapshot.set()

        subscribed = asyncio.create_task(subscriber())
        await got_snapshot.wait()
        assert storage.feed.subscribers == 1
        subscribed.cancel()
        await asyncio.wait([subscribed])
        assert storage.feed.subscribers == 0
        assert await messages(storage) == ["Task created"]


async def test_subscribers_who_missed_nothing_share_the_very_same_update(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        async with aclosing(storage.watch("T")) as one, aclosing(storage.watch("T", 0)) as two:
            await anext(one)
            await anext(two)
            await submit(storage, note())
            assert await anext(one) is await anext(two)


CALLERS, REPORTS_EACH, SUBSCRIBERS = 50, 20, 200
EVENTS = 1 + CALLERS * REPORTS_EACH


@pytest.mark.parametrize("seed", range(3))
async def test_subscribers_who_come_and_go_see_every_event_after_their_snapshot_once_and_in_order(
    database: str, seed: int
) -> None:
    moments = random.Random(seed)
    # Each is set when somebody was told that the event with this number was written.
    written = [asyncio.Event() for _ in range(EVENTS + 2)]
    async with open_storage(database, upgrade=False, group_commands_max=20) as storage:
        await submit(storage, Create(task_id="T"))

        async def report(caller: int) -> None:
            for turn in range(REPORTS_EACH):
                task = await storage.writer.submit(note(message=f"{caller} {turn}"))
                assert task is not None
                written[task.seq].set()

        async def subscribe(visits: list[int], first_after: int | None, dawdles: int) -> None:
            """Come at the odd moments and go at the even ones, and come back with the last number seen."""
            after_seq = first_after
            for come, go in zip(visits[::2], visits[1::2], strict=True):
                await written[come].wait()
                seen = after_seq
                async with aclosing(storage.watch("T", after_seq)) as updates:
                    async for update in updates:
                        if seen is None:
                            assert (update.type, update.events) == (SNAPSHOT, ())
                            seen = update.task.seq
                        for event in update.events:
                            seen += 1
                            assert event.seq == seen
                        assert update.task.seq >= seen
                        if seen >= go:
                            break
                        # Some do not read for a while: till so many more events were written.
                        await written[min(seen + dawdles, EVENTS)].wait()
                after_seq = seen
            assert after_seq == EVENTS + 1

        subscribers = []
        for _ in range(SUBSCRIBERS):
            visits = sorted(moments.choices(range(2, EVENTS), k=2 * moments.randrange(4) + 1))
            dawdles = moments.choice([0, 0, 0, 100, 400])
            first_after = moments.choice([None, 0, 1])
            subscribers.append(subscribe([*visits, EVENTS + 1], first_after, dawdles))
        callers = asyncio.gather(*map(report, range(CALLERS)))
        async with asyncio.TaskGroup() as group:
            for subscriber in subscribers:
                group.create_task(subscriber)
            await callers
            await submit(storage, Complete(task_id="T"))
        assert storage.feed.subscribers == 0
        assert len(await messages(storage)) == EVENTS + 1


class Ear:
    """A listener that fetches again when it is woken, as a socket does; it takes what it has room for."""

    def __init__(self, watching: Watch, room: Callable[[], bool] = lambda: True) -> None:
        self.watching = watching
        self.room = room
        self.updates: list[Update] = []
        self.heard: list[Update] = []
        self.wakings = 0
        self.fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        while update := await self.watching.fetch():
            self.updates.append(update)
        if not self.watching.ended:
            self.watching.listen(self)

    def hear(self, update: Update) -> bool:
        if not self.room():
            return False
        self.updates.append(update)
        self.heard.append(update)
        return True

    def wake(self) -> None:
        self.wakings += 1
        self.fetching = asyncio.create_task(self._fetch())

    async def until(self, seqs: list[int]) -> None:
        """Wait until it has these events."""
        async with asyncio.timeout(10):
            while numbers(self.updates) != seqs:  # noqa: ASYNC110 - it is told by plain calls
                await asyncio.sleep(0)


async def test_a_listener_is_handed_the_very_same_updates_while_they_are_published(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        ears = [Ear(storage.watch("T")) for _ in range(2)]
        for ear in ears:
            await ear.fetching
        for command in (note(), note(), Complete(task_id="T")):
            await submit(storage, command)
        for ear in ears:
            assert numbers(ear.updates) == [2, 3, 4]
            assert ear.wakings == 0
            assert ear.watching.ended
        assert [id(update) for update in ears[0].heard] == [id(update) for update in ears[1].heard]
        assert storage.feed.subscribers == 0


async def test_a_listener_without_room_finds_what_it_refused_by_fetching(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        room = False
        ear = Ear(storage.watch("T"), lambda: room)
        await ear.fetching
        for ending in (False, True):
            await submit(storage, Complete(task_id="T") if ending else note())
            assert ear.wakings == 1 + ending
            await ear.fetching
        assert told(ear.updates) == [(SNAPSHOT, 1, []), (EVENT, 2, [2]), (UpdateType.COMPLETE, 3, [3])]
        assert ear.heard == []
        assert storage.feed.subscribers == 0


async def test_a_listener_is_woken_for_what_only_the_log_can_tell(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, open_storage(database, upgrade=False) as elsewhere:
        await task_with(storage, 1)
        ear = Ear(storage.watch("T"))
        await ear.fetching
        await submit(elsewhere, note())
        await submit(storage, note())
        # What is missing is read once, for all who listen.
        await ear.until([2, 3])
        assert ear.wakings == 0
        storage.feed.look(["T"])
        await submit(elsewhere, note())
        await submit(storage, note())
        await ear.until([2, 3, 4, 5])
        await submit(storage, Delete(task_id="T"), Create(task_id="T"))
        assert ear.updates[-1].type is DELETE
        assert ear.watching.ended
        assert storage.feed.subscribers == 0


async def test_a_listener_that_fails_harms_nobody_and_misses_nothing(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)

        def room() -> bool:
            raise RuntimeError

        broken, other = Ear(storage.watch("T"), room), Ear(storage.watch("T"))
        for ear in (broken, other):
            await ear.fetching
        await submit(storage, note())
        assert numbers(other.heard) == [2]
        await broken.fetching
        assert numbers(broken.updates) == [2]
        assert "A listener of a task failed" in caplog.text
        for ear in (broken, other):
            ear.watching.close()
        await submit(storage, note())
        assert numbers(other.updates) == [2]


async def test_listeners_that_come_and_go_and_refuse_see_each_event_once_in_order(database: str) -> None:
    chance = random.Random(7)
    async with open_storage(database, upgrade=False) as storage:
        await task_with(storage, 1)
        ears = [Ear(storage.watch("T", 0), lambda: chance.random() < 0.7) for _ in range(20)]
        for ear in ears:
            await ear.fetching

        async def report() -> None:
            for _ in range(30):
                await submit(storage, note())
                if chance.random() < 0.1:
                    storage.feed.look(["T"])

        await asyncio.gather(*(report() for _ in range(5)))
        await submit(storage, Complete(task_id="T"))
        for ear in ears:
            while not ear.fetching.done():
                await ear.fetching
            assert ear.watching.ended
            assert numbers(ear.updates) == list(range(1, 153))
        assert any(ear.heard for ear in ears)
        assert any(ear.wakings > 1 for ear in ears)
        assert storage.feed.subscribers == 0
