"""Publish and subscribe in one process: who hears what, and what a buffer holds."""

import asyncio
import time
from itertools import count
from typing import Final

import pytest

from storage import Create, Event, EventType, Update, UpdateType
from storage.feed import BUFFERED_BYTES_MAX, BUFFERED_EVENTS_MAX, BUFFERED_UPDATES_MAX, Feed, Subscriber
from storage.lifecycle import decide
from tests.storage.test_lifecycle import NOW

seqs: Final = count(2)


def news(task_id: str = "T", events: int = 1, size: int = 0) -> Update:
    """An update that is like no other."""
    task = decide(None, Create(task_id=task_id), NOW)
    assert task is not None
    return Update(
        UpdateType.EVENT,
        task,
        tuple(Event(task_id, next(seqs), EventType.LOG, "m", None, None, NOW) for _ in range(events)),
        size,
    )


async def test_every_subscriber_of_a_task_hears_the_very_same_updates_in_order() -> None:
    feed = Feed()
    updates = [news() for _ in range(3)]
    with feed.subscribe("T") as one, feed.subscribe("T") as two, feed.subscribe("other") as other:
        for update in updates:
            await feed.publish(update)
        later = news("other")
        await feed.publish(later)
        for subscriber in (one, two):
            taken = await subscriber.take()
            assert taken is not None
            assert [id(update) for update in taken] == [id(update) for update in updates]
        assert await other.take() == [later]


async def test_a_subscriber_hears_nothing_from_before_and_nothing_twice() -> None:
    feed = Feed()
    await feed.publish(news())
    with feed.subscribe("T") as subscriber:
        for update in (news(), news()):
            await feed.publish(update)
            assert await subscriber.take() == [update]


async def test_one_who_waits_is_woken() -> None:
    feed = Feed()
    with feed.subscribe("T") as subscriber:
        waiting = asyncio.create_task(subscriber.take())
        await asyncio.sleep(0)
        updates = [news(), news()]
        for update in updates:
            await feed.publish(update)
        assert await waiting == updates


async def test_one_who_stops_waiting_can_wait_again() -> None:
    feed = Feed()
    with feed.subscribe("T") as subscriber:
        waiting = asyncio.create_task(subscriber.take())
        await asyncio.sleep(0)
        waiting.cancel()
        update = news()
        # Just when the other is about to go away.
        await feed.publish(update)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await subscriber.take() == [update]


def fill(subscriber: Subscriber, updates: int, events_each: int, size_each: int) -> None:
    for _ in range(updates):
        subscriber.put(news(events=events_each, size=size_each))


@pytest.mark.parametrize(
    ("updates", "events_each", "size_each"),
    [
        (BUFFERED_UPDATES_MAX, 1, 1),
        (2, BUFFERED_EVENTS_MAX // 2, 1),
        (4, 1, BUFFERED_BYTES_MAX // 4),
        # A large one is taken when it comes alone.
        (1, 10 * BUFFERED_EVENTS_MAX, 10 * BUFFERED_BYTES_MAX),
    ],
)
async def test_a_buffer_that_overruns_is_dropped_and_the_subscriber_is_told_once(
    updates: int, events_each: int, size_each: int
) -> None:
    with Feed().subscribe("T") as subscriber:
        for _ in range(2):
            fill(subscriber, updates, events_each, size_each)
            taken = await subscriber.take()
            assert taken is not None
            assert len(taken) == updates
        fill(subscriber, updates + 1, events_each, size_each)
        assert held(subscriber) == 0
        assert await subscriber.take() is None
        # And it hears what comes then.
        fill(subscriber, updates, events_each, size_each)
        taken = await subscriber.take()
        assert taken is not None
        assert len(taken) == updates


async def test_one_who_never_takes_holds_no_more_than_the_bound() -> None:
    with Feed().subscribe("T") as subscriber:
        most = 0
        for _ in range(10_000):
            subscriber.put(news())
            most = max(most, held(subscriber))
        assert most == BUFFERED_UPDATES_MAX


def held(subscriber: Subscriber) -> int:
    """How many updates a subscriber keeps alive."""
    return len(subscriber._updates or ())


async def test_subscribers_of_a_task_can_be_told_to_look_into_its_log() -> None:
    feed = Feed()
    with feed.subscribe("T") as subscriber, feed.subscribe("other") as other:
        waiting = asyncio.create_task(subscriber.take())
        await asyncio.sleep(0)
        feed.look(["T", "unknown"])
        assert await waiting is None
        await feed.publish(news())
        feed.look(["T"])
        assert await subscriber.take() is None
        update = news("other")
        await feed.publish(update)
        assert await other.take() == [update]


async def test_a_subscriber_who_leaves_is_forgotten_however_it_leaves() -> None:
    feed = Feed()
    with feed.subscribe("T"), feed.subscribe("T"), feed.subscribe("other"):
        assert feed.subscribers == 3
        with pytest.raises(KeyError), feed.subscribe("T"):
            raise KeyError
        assert feed.subscribers == 3
    assert feed.subscribers == 0
    # Nor is the task.
    assert feed._topics == {}
    await feed.publish(news())


async def test_while_many_are_told_others_have_their_turn() -> None:
    class Busy:
        """A listener that takes its time."""

        heard = 0

        def hear(self, update: Update) -> bool:
            self.heard += 1
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            return True

        def wake(self) -> None:
            raise AssertionError

    feed, listener, turns = Feed(), Busy(), 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    # Few for each task, and many tasks in one group.
    for task_id in "abcdefghij":
        for _ in range(5):
            feed.subscribe(task_id).listen(listener)
    counting = asyncio.create_task(count_turns())
    await feed.publish(*(news(task_id) for task_id in "abcdefghij"))
    counting.cancel()
    assert listener.heard == 50
    assert turns >= 5
