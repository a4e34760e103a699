"""What a task is, how it may change, where it lives, and how others hear of it.

This is the door; the rest of the package is behind it::

    async with open_storage(url) as storage:
        await storage.writer.submit(Create(task_id="T-7"))
        task = await storage.reader.task("T-7")
        async for update in storage.watch("T-7", after_seq=0): ...
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from storage.citus import CITUS, SHARDS, SHARDS_MAX, distribute, is_distributed
from storage.claimer import Claim, Claimer, claim_of
from storage.commands import (
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    CreateMany,
    Delete,
    Fail,
    Heartbeat,
    Release,
    Report,
    UpdateProgress,
)
from storage.counts import Counts, recount
from storage.database import explain, open_engine
from storage.errors import (
    BadInput,
    IdempotencyConflict,
    LeaseLost,
    ListOutdated,
    Refusal,
    StartupError,
    TaskAlreadyExists,
    TaskFinished,
    TaskNotFound,
    TooLarge,
    Unavailable,
)
from storage.feed import Feed, Listener
from storage.feed_nats import NatsLink
from storage.feed_postgres import PostgresLink
from storage.filters import Filter
from storage.follower import Follower
from storage.keys import Key, Keys, Permission
from storage.limits import CREATE_MANY_TASKS_MAX, REPORTS_MAX, TASK_ID_CHARACTERS_MAX, check_name, check_range
from storage.link import Health, Link
from storage.live import LiveLists
from storage.live_follower import LiveFollower
from storage.live_watch import ListWatch
from storage.migrate import MIGRATION_WAIT_MS, current, explained, head, migrate, require
from storage.options import QUEUE_CHARACTERS_MAX, Options, Retry
from storage.pool import Pool, open_pool
from storage.queues import Queues
from storage.reader import LogPage, Reader, TaskPage, cursor, history_range
from storage.signing_keys import SigningKey, SigningKeys
from storage.task import Event, EventType, Json, OnDependencyFailure, Plan, Status, Task, Update, UpdateType
from storage.task_tokens import TASK_TOKEN_PREFIX, HasExpired, NotTrusted, TaskToken, TaskTokens, TokenScope
from storage.timers import Timers
from storage.watch import Watch
from storage.writer import Writer

__all__ = [
    "CREATE_MANY_TASKS_MAX",
    "QUEUE_CHARACTERS_MAX",
    "REPORTS_MAX",
    "SHARDS",
    "SHARDS_MAX",
    "TASK_ID_CHARACTERS_MAX",
    "TASK_TOKEN_PREFIX",
    "AddEvent",
    "BadInput",
    "Cancel",
    "Claim",
    "Command",
    "Complete",
    "Counts",
    "Create",
    "CreateMany",
    "Delete",
    "Event",
    "EventType",
    "Fail",
    "Filter",
    "HasExpired",
    "Health",
    "Heartbeat",
    "IdempotencyConflict",
    "Json",
    "Key",
    "Keys",
    "LeaseLost",
    "ListOutdated",
    "ListWatch",
    "Listener",
    "LogPage",
    "NotTrusted",
    "OnDependencyFailure",
    "Options",
    "Permission",
    "Plan",
    "Refusal",
    "Release",
    "Report",
    "Retry",
    "SigningKey",
    "StartupError",
    "Status",
    "Storage",
    "Task",
    "TaskAlreadyExists",
    "TaskFinished",
    "TaskNotFound",
    "TaskPage",
    "TaskToken",
    "TaskTokens",
    "TokenScope",
    "TooLarge",
    "Unavailable",
    "Update",
    "UpdateProgress",
    "UpdateType",
    "Watch",
    "check_name",
    "check_range",
    "claim_of",
    "cursor",
    "distribute",
    "history_range",
    "open_storage",
    "recount_database",
    "upgrade_database",
]

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 10
# Groups of changes under way at a time.
GROUPS_MAX: Final = 2
GROUP_COMMANDS_MAX: Final = 512
WAITING_COMMANDS_MAX: Final = 10_000
POOL_WAIT_S: Final = 5.0
STATEMENT_TIMEOUT_MS: Final = 10_000
LOCK_TIMEOUT_MS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Storage:
    """One database, opened: who writes, who reads, who hears, and who has keys."""

    pool: Pool
    feed: Feed
    # Who hears of all tasks that a filter means.
    live: LiveLists
    live_follower: LiveFollower
    # Who waits for tasks to claim.
    queues: Queues
    follower: Follower
    # The way to other processes; None says that there are none.
    link: Link | None
    writer: Writer
    claimer: Claimer
    # None where others do what time makes due.
    timers: Timers | None
    reader: Reader
    keys: Keys
    signing_keys: SigningKeys
    task_tokens: TaskTokens

    @property
    def feed_health(self) -> Health:
        """How this process hears of changes that others make."""
        return Health.ALONE if self.link is None else self.link.health

    def watch(self, task_id: str, after_seq: int | None = None) -> Watch:
        """What a subscriber of a task sees; close it with ``aclosing``."""
        return Watch(self.feed, self.reader, task_id, after_seq)

    async def check(self) -> dict[str, bool]:
        """Whether each thing that is needed to work is there."""
        try:
            revision = await current(self.pool)
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is the same
            log.warning("The database cannot be used: %s", explain(error) or type(error).__name__)
            return {"database": False, "migrations": False, "writer": self.writer.alive}
        return {"database": True, "migrations": revision == head(), "writer": self.writer.alive}


async def upgrade_database(url: str) -> tuple[str | None, str]:
    """Bring a database's schema up to date; return its revision before (None: it had none) and after."""
    engine = open_engine(url, statement_timeout_ms=MIGRATION_WAIT_MS, lock_timeout_ms=MIGRATION_WAIT_MS)
    try:
        return await migrate(engine)
    finally:
        await engine.dispose()


async def recount_database(url: str) -> Counts:
    """Count the tasks of a database anew, while others go on."""
    open_ = partial(
        open_pool,
        url,
        connections_max=1,
        pool_wait_s=POOL_WAIT_S,
        statement_timeout_ms=MIGRATION_WAIT_MS,
        lock_timeout_ms=MIGRATION_WAIT_MS,
    )
    pool = open_()
    try:
        await require(pool)
        if await is_distributed(pool):
            await pool.close()
            pool = open_(CITUS)
        with explained():
            await recount(pool)
        return await Reader(pool).counts()
    finally:
        await pool.close()


def _link(feed_url: str | None, follower: Follower) -> Link | None:
    if feed_url is None:
        return None
    if feed_url.startswith(("nats://", "tls://")):
        return NatsLink(feed_url, follower)
    return PostgresLink(feed_url, follower)


@asynccontextmanager
async def open_storage(
    url: str,
    *,
    upgrade: bool = True,
    feed_url: str | None = None,
    connections_max: int = CONNECTIONS_MAX,
    group_commands_max: int = GROUP_COMMANDS_MAX,
    waiting_commands_max: int = WAITING_COMMANDS_MAX,
    pool_wait_s: float = POOL_WAIT_S,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    task_token_secrets: Sequence[str | None] = (),
    timers: bool = False,
    keep_finished_s: int | None = None,
) -> AsyncIterator[Storage]:
    """Open a database and work until the block ends; changes that were accepted are finished first.

    `feed_url` says how other processes on the same database are heard: a PostgreSQL that is reached directly, or
    `nats://…`. Without it there must be none. Task tokens are signed with the first of the `task_token_secrets` and
    verified with all of them; without a first, with keys that the database keeps.

    With `timers`, this process is one of those of which one at a time does what time makes due; some process must be,
    or nothing starts later, runs out or expires. Finished tasks that do not say so themselves are deleted after
    `keep_finished_s`, or never.

    Its schema is brought up to date, or, without `upgrade`, must be so already.
    """
    if upgrade:
        await upgrade_database(url)
    open_ = partial(
        open_pool,
        url,
        connections_max=connections_max,
        pool_wait_s=pool_wait_s,
        statement_timeout_ms=statement_timeout_ms,
        lock_timeout_ms=lock_timeout_ms,
    )
    pool = open_()
    try:
        if not upgrade:
            await require(pool)
        if await is_distributed(pool):
            await pool.close()
            pool = open_(CITUS)
        feed = Feed()
        live = LiveLists(feed)
        queues = Queues()
        writer = Writer(
            pool,
            feed,
            queues,
            # Each has a connection, and most must be the readers'.
            groups_max=GROUPS_MAX if connections_max > 2 * GROUPS_MAX else 1,
            group_commands_max=group_commands_max,
            waiting_commands_max=waiting_commands_max,
            wait_s=pool_wait_s,
        )
        reader = Reader(pool)
        live_follower = LiveFollower(live, reader)
        follower = Follower(feed, reader, queues, live_follower)
        link = _link(feed_url, follower)
        if link is not None:
            live_follower.degraded = lambda: link.health is Health.DEGRADED
        keys = Keys(pool)
        signing_keys = SigningKeys(pool, task_token_secrets)
        task_tokens = TaskTokens(signing_keys, keys)
        claimer = Claimer(pool, writer.aftermath, writer.submit)
        timing = Timers(pool, writer, keep_finished_s=keep_finished_s) if timers else None
        storage = Storage(
            pool=pool,
            feed=feed,
            live=live,
            live_follower=live_follower,
            queues=queues,
            follower=follower,
            link=link,
            writer=writer,
            claimer=claimer,
            timers=timing,
            reader=reader,
            keys=keys,
            signing_keys=signing_keys,
            task_tokens=task_tokens,
        )
        follower.start()
        try:
            if link is not None:
                feed.announcer = queues.announcer = link
                await link.start()
            if timing is not None:
                timing.start()
            yield storage
        finally:
            if timing is not None:
                await timing.close()
            await storage.claimer.close()
            await storage.writer.close()
            if link is not None:
                await link.close()
            await follower.close()
            await live_follower.close()
            await live.close()
            await storage.reader.close()
            await storage.keys.close()
            await storage.signing_keys.close()
    finally:
        await pool.close()
