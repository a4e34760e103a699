"""A server whose feed is away while all else works: its subscribers and those of the others are late by seconds."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

import pytest

from storage import AddEvent, EventType
from tests.faults.caller import Caller
from tests.faults.journal import Journal
from tests.faults.ledger import KEY, Ledger
from tests.faults.reporters import Reporter
from tests.faults.subscribers import Subscriber
from tests.faults.world import FEEDS, Feed, Node, World, missing, running_world

# A comparison with the table comes every three seconds or so.
LATE_S: Final = 8.0
# Long enough that each server has found out how it is with the other's feed.
AWAY_S: Final = 6.0


@dataclass
class Pair:
    """A reporter at one server, and a subscriber at the other."""

    task_id: str
    reporter: Reporter
    ledger: Ledger
    count: int = 0

    async def late(self) -> float:
        """Report once; how long it takes until the subscriber has seen it, within bounds."""
        self.count += 1
        name = f"event {self.count}"
        event = AddEvent(
            task_id=self.task_id, event_type=EventType.LOG, message=name, metadata={KEY: name}, idempotency_key=name
        )
        entry = self.ledger.enter(name, event)
        await self.reporter.caller.settle(entry, self.reporter.random, asyncio.Event())
        assert entry.seq is not None
        began_at = time.monotonic()
        while self.ledger.views[0].last < entry.seq and time.monotonic() - began_at < LATE_S:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return time.monotonic() - began_at


@asynccontextmanager
async def pair(world: World, reported_to: Node, watched_at: Node) -> AsyncIterator[Pair]:
    ledger, stop, task_id = Ledger(), asyncio.Event(), f"from {reported_to.name}"
    caller = Caller([reported_to.port], world.admin_key, world.journal, ledger)
    reporter = Reporter("reporter", caller, ledger, Random(1))
    await reporter.create(task_id, stop)
    subscriber = Subscriber("subscriber", [watched_at.port], ledger, Random(1), world.journal)
    watching = asyncio.create_task(subscriber.run(stop))
    try:
        yield Pair(task_id, reporter, ledger)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await caller.close()


async def until_late(clients: Pair, ends_at: float) -> float:
    """Report again and again; the longest that it took."""
    late = 0.0
    while late < LATE_S and time.monotonic() < ends_at:
        late = max(late, await clients.late())
    return late


@pytest.mark.timeout(90)
@pytest.mark.parametrize("feed", FEEDS)
def test_what_is_reported_while_a_feed_is_away_is_seen_within_seconds(feed: Feed) -> None:
    if why := missing(feed):
        pytest.skip(why)

    async def run() -> None:
        journal = Journal()
        async with running_world(journal, feed=feed) as world:
            away, other = world.nodes
            async with pair(world, away, other) as there, pair(world, other, away) as here, away.feed.refusing():
                ends_at = time.monotonic() + AWAY_S
                late = await asyncio.gather(until_late(there, ends_at), until_late(here, ends_at))
        assert late[0] < LATE_S, "a server did not see what one committed whose feed was away"
        assert late[1] < LATE_S, "a server whose feed was away did not see what another committed"
        assert journal.violations == []

    asyncio.run(run())
