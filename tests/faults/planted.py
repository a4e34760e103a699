"""Servers with bugs planted, to show that the checker finds them: ``python -m tests.faults.planted NAME,… serve``.

A bug is planted by changing the program in its process; nothing of it is in the program.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from unittest.mock import patch
from zlib import crc32

from graphql_api import leases
from graphql_api.program import main
from storage import (
    Command,
    CreateMany,
    Filter,
    ListWatch,
    Report,
    Task,
    Update,
    UpdateProgress,
    UpdateType,
    claimer,
    committer,
    group,
    lifecycle,
    live_follower,
    plan,
    timers,
)
from storage.commands import Settle, Tick
from storage.committer import Committer, Entry
from storage.errors import OutcomeUnknown
from storage.follower import Follower
from storage.link import Link
from storage.live import LiveLists
from storage.live_follower import LiveFollower
from storage.messenger import Messenger
from storage.pool import Connection
from storage.queues import Queues
from storage.reader import Reader
from storage.timers import Timers

# How long what was published too early stays so, and what is not locked may change.
WINDOW_S: Final = 0.1
# By how much what is due is done too early.
TOO_EARLY: Final = timedelta(seconds=0.8)


def publish_before_commit() -> None:
    """Subscribers hear of changes that may never be made."""
    _go_the_long_way()

    async def commit(
        self: Committer, entries: Sequence[Entry], now: datetime, lock_timeout_ms: int | None, seen: Mapping[str, Task]
    ) -> Any:
        connection = await self._connected()
        try:
            await connection.begin(lock_timeout_ms)
            commands = [entry.command for entry in entries]
            done = await group.write(connection, commands, now, seen)
            await self._aftermath.follow(done)
            await asyncio.sleep(WINDOW_S)
            try:
                await connection.commit()
            except Exception as error:
                raise committer._unknown(error) from error
        except BaseException as error:
            if isinstance(error, OutcomeUnknown) or not await committer._rolled_back(connection):
                self.disconnect()
            raise
        return group.Done(done.results, [])

    _replace(Committer, "_commit", commit)


def lost_announcements_without_resync() -> None:
    """Every other announcement is lost, and nobody compares with the table."""
    announce = Link.announce
    count = 0

    def lossy_announce(self: Link, task_id: str, seq: int) -> None:
        nonlocal count
        count += 1
        if count % 2:
            announce(self, task_id, seq)

    _replace(Link, "announce", lossy_announce)
    _never_compare()


def no_reread_after_reconnect() -> None:
    """What was announced while the listener was away is not looked for when it is back."""
    _never_compare()


def number_outside_the_lock() -> None:
    """Two servers give the same number to two events; the table refuses the second."""
    _go_the_long_way()
    for name in ("_LOCK", "_LOCK_ONE"):
        statement = getattr(group, name)
        assert " FOR UPDATE" in statement
        _replace(group, name, statement.replace(" FOR UPDATE", ""))


def number_outside_the_lock_unguarded() -> None:
    """The same, and whoever wrote it has found a way around the error that the table gave."""
    number_outside_the_lock()
    for name in ("_REPORT", "_REPORT_ONE", "_INSERT_EVENTS"):
        _go_around_conflicts(name)


def no_idempotency_keys() -> None:
    """Most reports are written as often as they come."""

    async def look_up(*_: object) -> None:
        return

    fold = group._fold

    def forgetful_fold(row: Any, command: Any, *rest: Any) -> Task | None:
        row.keys.clear()
        task = fold(row, command, *rest)
        # Those whose metadata says which report they are.
        if row.event_keys and not isinstance(command, UpdateProgress):
            row.event_keys[-1] = group._NO_KEY
        return task

    _replace(group, "_look_up_keys", look_up)
    _replace(group, "_fold", forgetful_fold)


def claims_without_locks() -> None:
    """Two servers give the same task to two workers, and the table's refusal is gone around."""
    assert " FOR UPDATE SKIP LOCKED" in claimer.NEXT
    _replace(claimer, "NEXT", claimer.NEXT.replace(" FOR UPDATE SKIP LOCKED", ""))
    _go_around_conflicts("_REPORT_WITH_PLANS")
    write_claims = group.write_claims

    async def write_late(*arguments: Any) -> Any:
        await asyncio.sleep(WINDOW_S)
        return await write_claims(*arguments)

    _replace(claimer, "write_claims", write_late)


def stale_tokens() -> None:
    """A report is taken whatever token it shows."""

    def changed(task: Task | None, command: Command, now: datetime) -> tuple[Command, datetime]:
        return (replace(command, token=None) if isinstance(command, Report) else command), now

    _decide_otherwise(changed)


def fast_clock() -> None:
    """Whatever time does, it does too early."""

    def changed(task: Task | None, command: Command, now: datetime) -> tuple[Command, datetime]:
        return command, now + TOO_EARLY if isinstance(command, Tick) else now

    _decide_otherwise(changed)
    _replace(Timers, "look", lambda self: _look(self, lambda rows: rows, TOO_EARLY))


def failures_do_not_count() -> None:
    """A task that fails is tried again as often as it likes."""
    begun = plan.begun
    _replace(lifecycle, "begun", lambda before: begun(before._replace(attempt=0)))


def create_many_by_parts() -> None:
    """What comes before the item that is to blame is created."""

    def create_many(rows: Any, links: Any, command: CreateMany, now: datetime) -> tuple[Task, ...]:
        return tuple(group._fold(rows[one.task_id], one, now, links, rows) for one in command.tasks)  # type: ignore[misc]

    _replace(group, "_create_many", create_many)


def messages_are_lost() -> None:
    """Half of those who wait for others are not told of their end, and nobody looks for them."""
    bring = Messenger.bring

    def lossy_bring(self: Messenger, messages: Sequence[Settle]) -> None:
        bring(self, [message for message in messages if crc32(message.task_id.encode()) % 2])

    async def sweep(_: Timers) -> None:
        return

    _replace(Messenger, "bring", lossy_bring)
    _replace(Timers, "sweep", sweep)


def links_without_locks() -> None:
    """A task that others are about to depend on may end meanwhile, and nobody notices."""
    waited_for: dict[int, list[str]] = {}
    parts, lock_old = group._parts, group._lock_old
    look = group._LOCK.replace(" FOR UPDATE", "")

    async def own_parts(connection: Connection, commands: Sequence[Any]) -> Any:
        own = {task_id for command in commands for task_id in command.task_ids}
        all_parts = await parts(connection, commands)
        waited_for[id(connection)] = [name for part in all_parts for name in part if name not in own]
        return [[name for name in part if name in own] for part in all_parts]

    async def lock_own(connection: Connection, parts: Any, rows: dict[str, Any]) -> None:
        await lock_old(connection, parts, rows)
        if names := waited_for.pop(id(connection), None):
            rows.update((name, group._Row(None, None)) for name in names)
            rows.update((row[0], group._row_of(row)) for row in await connection.run(look, names))
            await asyncio.sleep(WINDOW_S)

    _replace(group, "_parts", own_parts)
    _replace(group, "_lock_old", lock_own)


def timers_forget() -> None:
    """Of some tasks nothing is ever due."""

    def some(rows: Sequence[Any]) -> Sequence[Any]:
        return [row for row in rows if crc32(row[0].encode()) % 3]

    _replace(Timers, "look", lambda self: _look(self, some, timedelta()))


def lists_hear_half() -> None:
    """Of some tasks, what others commit is told to lists when the log is looked at, and not before."""
    hear = LiveFollower.hear

    def deaf_hear(self: LiveFollower, announced: str, seq: int) -> bool:
        heard = announced.startswith(live_follower._MARK) or crc32(announced.encode()) % 2
        return hear(self, announced, seq) if heard else False

    _replace(LiveFollower, "hear", deaf_hear)


def older_states_stay() -> None:
    """What waits for a subscriber of a list is not replaced by what came later."""
    put = ListWatch.put

    def put_first(self: ListWatch, update: Update) -> None:
        if update.task.task_id not in self._waiting:
            put(self, update)

    _replace(ListWatch, "put", put_first)


def deletions_are_not_told() -> None:
    """Lists hear nothing of the end of tasks."""
    hear = LiveLists._hear

    def hear_of_life(self: LiveLists, update: Update, *arguments: Any, **named: Any) -> None:
        if update.type is not UpdateType.DELETE:
            hear(self, update, *arguments, **named)

    _replace(LiveLists, "_hear", hear_of_life)


def lists_run_backwards() -> None:
    """What was read of a task is told to lists although something later was told meanwhile."""
    latest = Reader.latest

    async def latest_late(self: Reader, task_ids: Sequence[str]) -> Any:
        found = await latest(self, task_ids)
        await asyncio.sleep(WINDOW_S)
        return found

    _replace(Reader, "latest", latest_late)
    _replace(LiveLists, "_is_news", lambda *_: True)


def filters_forget_tags() -> None:
    """Lists are told of tasks whatever tags they have."""
    fits = Filter.fits
    _replace(Filter, "fits", lambda self, task: fits(replace(self, tags=None), task))


def lists_end_for_nothing() -> None:
    """Now and then lists end although nothing was missed."""
    read = LiveFollower._read
    count = 0

    async def read_or_end(self: LiveFollower, task_ids: Sequence[str]) -> None:
        nonlocal count
        count += 1
        if count % 3 == 0:
            self.lost()
        await read(self, task_ids)

    _replace(LiveFollower, "_read", read_or_end)


def wakes_are_lost() -> None:
    """Who waits for a queue finds out by counting, and that is rare."""
    _replace(leases, "COUNT_EVERY_S", 60)
    _replace(Queues, "_wake_here", lambda *_: None)


def slow_timers() -> None:
    """What is due is looked for too rarely."""
    _replace(timers, "LOOK_S", 4 * timers.HOLD_S)


async def _look(self: Timers, chosen: Callable[[Sequence[Any]], Sequence[Any]], early: timedelta) -> int:
    rows = await self._pool.read(timers._DUE, self._clock() + early, timers.DUE_TASKS_MAX)
    done, _ = await self._submit((self._tick(task_id), 1) for (task_id,) in chosen(rows))
    return done


def _decide_otherwise(changed: Callable[[Task | None, Command, datetime], tuple[Command, datetime]]) -> None:
    # Perhaps another bug's.
    decide = vars(group)["decide"]

    def decide_otherwise(task: Task | None, command: Command, now: datetime, *others: Any) -> Task | None:
        decided: Task | None = decide(task, *changed(task, command, now), *others)
        return decided

    _replace(group, "decide", decide_otherwise)


def _never_compare() -> None:
    async def compare_all(_: Follower) -> None:
        return

    _replace(Follower, "_compare_all", compare_all)


def _go_the_long_way() -> None:
    """Have every change made in a transaction, under the lock of its task's row."""
    _replace(committer, "decide_from_memory", lambda *_: group.Decided({}, {}, {}))


def _go_around_conflicts(name: str) -> None:
    """What the table would refuse is left out in silence."""
    statement = getattr(group, name)
    plain, counted = (f"{words} ON CONFLICT DO NOTHING" for words in (statement.plain, statement.counted))
    _replace(group, name, replace(statement, plain=plain, counted=counted))


def _replace(where: object, name: str, what: object) -> None:
    patch.object(where, name, what).start()


BUGS: Final[Mapping[str, Callable[[], None]]] = {
    bug.__name__: bug
    for bug in (
        publish_before_commit,
        lost_announcements_without_resync,
        no_reread_after_reconnect,
        number_outside_the_lock,
        number_outside_the_lock_unguarded,
        no_idempotency_keys,
        claims_without_locks,
        stale_tokens,
        fast_clock,
        failures_do_not_count,
        create_many_by_parts,
        messages_are_lost,
        links_without_locks,
        timers_forget,
        slow_timers,
        lists_hear_half,
        older_states_stay,
        deletions_are_not_told,
        lists_run_backwards,
        filters_forget_tags,
        lists_end_for_nothing,
        wakes_are_lost,
    )
}

if __name__ == "__main__":
    for chosen in sys.argv.pop(1).split(","):
        BUGS[chosen]()
    main()
