"""A connection for writing: a group of commands becomes one transaction, and its callers hear what came of it.

What a group does is told in ``group``; here it is committed once, the feed is told, and its callers are answered. What
a group cannot do because of one of its commands, each command tries alone.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final

from storage.aftermath import Aftermath
from storage.commands import Command, CreateMany
from storage.database import explain, is_connection_failure, is_dead_connection, is_passing, is_undone, sqlstate
from storage.errors import NotConnected, OutcomeUnknown, Unavailable
from storage.feed import Feed
from storage.gauges import WriterGauges
from storage.group import Decided, Done, Result, decide_from_memory, write, write_decided
from storage.pool import NOT_IN_TIME, Connection, Pool
from storage.remembered import Remembered
from storage.tally import Tally
from storage.task import Task

log = logging.getLogger(__name__)

# Who waited for a lock as a group has waited; alone, each command only finds out whose row is held.
ALONE_LOCK_TIMEOUT_MS: Final = 10
# However long a group has waited, it has so much time for a connection.
CONNECT_WITHIN_MIN_S: Final = 1.0
# Tasks that a line about a group names.
LOGGED_TASKS_MAX: Final = 10
_LOCK_NOT_AVAILABLE: Final = "55P03"


@dataclass(slots=True)
class Entry:
    """A command that waits for its group, and whoever waits for the command."""

    command: Command | CreateMany
    size: int
    future: asyncio.Future[Any]
    # By `time.monotonic`.
    came_at: float
    # What a tracer knows of it.
    trace: Any = None


class Committer:
    """Works off one group at a time."""

    def __init__(
        self,
        pool: Pool,
        feed: Feed,
        remembered: Remembered,
        aftermath: Aftermath,
        clock: Callable[[], datetime],
        gauges: WriterGauges,
        *,
        wait_s: float,
    ) -> None:
        self._pool = pool
        self._feed = feed
        self._aftermath = aftermath
        # Shared with the other committers of the process, which have other tasks at any time.
        self._remembered = remembered
        self._clock = clock
        self._gauges = gauges
        self._connection: Connection | None = None
        self._unconnected = Tally()
        self._wait_s = wait_s
        # Until when the group under way waits for one, by `time.monotonic`.
        self._due = 0.0

    async def work_off(self, group: list[Entry]) -> None:
        """Do what the commands of a group ask, and answer each; the tasks must be in no other group meanwhile."""
        error: Exception | None = None
        seen: Mapping[str, Task] = {}
        self._due = max(group[0].came_at + self._wait_s, time.monotonic() + CONNECT_WITHIN_MIN_S)
        now = self._clock()
        decided = decide_from_memory([entry.command for entry in group], now, self._remembered)
        if decided.seen:
            group, seen, error = await self._attempt_decided(group, decided)
        if error is None and group:
            error = await self._attempt(group, now, seen=seen)
        if error is None:
            return
        if isinstance(error, OutcomeUnknown):
            self.leave_unknown(group, error)
            return
        if seen:
            # What broke before may have been done, and it was not found out.
            unknown, group = _parted(group, seen)
            self.leave_unknown(unknown, _unknown(error))
            if not group:
                return
        if len(group) == 1 or isinstance(error, NotConnected) or is_connection_failure(error):
            self._answer_alike(group, self._told(error, group))
            return
        # The database refused the group, and one command may be to blame: each has one try alone.
        self._gauges.taken_apart += 1
        log.warning(
            "A group of %d commands was refused; trying each alone.", len(group), exc_info=error, extra=_tasks(group)
        )
        lock_timeout_ms = ALONE_LOCK_TIMEOUT_MS if sqlstate(error) == _LOCK_NOT_AVAILABLE else None
        stuck: set[str] = set()
        for entry in group:
            # A row that somebody else holds is waited for once, not once for each command that wants it.
            if not stuck.isdisjoint(entry.command.task_ids):
                answer(entry, Unavailable(NOT_IN_TIME))
                continue
            error = await self._attempt([entry], now, lock_timeout_ms)
            if isinstance(error, OutcomeUnknown):
                self.leave_unknown([entry], error)
            elif error is not None:
                if sqlstate(error) == _LOCK_NOT_AVAILABLE:
                    stuck.update(entry.command.task_ids)
                answer(entry, self._told(error, [entry]))

    def leave_unknown(self, group: Sequence[Entry], error: OutcomeUnknown) -> None:
        """Tell callers that nobody knows, and have subscribers read the log: the change may be there unpublished."""
        self._gauges.unknown += 1
        log.error(
            "Whether a group of %d commands was committed is not known.",
            len(group),
            exc_info=error,
            extra=_tasks(group),
        )
        self._answer_alike(group, error)
        self._aftermath.doubt({task_id for entry in group for task_id in entry.command.task_ids})

    async def _attempt_decided(
        self, group: list[Entry], decided: Decided
    ) -> tuple[list[Entry], Mapping[str, Task], Exception | None]:
        """Write what was decided from memory, and answer.

        Return those commands that are left, the tasks of those that may have been done nevertheless, as they were seen,
        and why the database would not have any of it, if so.
        """
        try:
            connection = await self._connected()
        except NotConnected as error:
            return group, {}, error
        began = time.monotonic()
        try:
            written = await write_decided(connection, decided)
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it and the loop go on
            if is_connection_failure(error) or connection.interrupted:
                self.disconnect()
            if is_undone(error):
                # A connection of no more use does not say that another would not do.
                return group, {}, None if is_connection_failure(error) else error
            if is_dead_connection(error):
                # Under the lock it can be seen whether it was done.
                return group, decided.seen, None
            # Who has waited for an answer as long as one may does not wait again.
            unknown, others = _parted(group, decided.seen)
            self.leave_unknown(unknown, _unknown(error))
            self._answer_alike(others, _later(error))
            return [], {}, None
        self._gauges.remembered_s.observe(time.monotonic() - began)
        for task_id in decided.seen.keys() - written.keys():
            self._remembered.forget(task_id)
        outcomes = decided.outcomes(written)
        for place, outcome in outcomes.items():
            answer(group[place], outcome)
        await self._aftermath.follow(Done([], decided.updates(written)))
        return [entry for place, entry in enumerate(group) if place not in outcomes], {}, None

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.sound:
            self.disconnect()
        if self._connection is None:
            left_s = max(0.0, self._due - time.monotonic())
            self._connection = await self._pool.acquire(connect_within_s=left_s)
        return self._connection

    def _answer_alike(self, group: Sequence[Entry], outcome: Exception) -> None:
        for entry in group:
            answer(entry, outcome)

    async def _attempt(
        self,
        group: list[Entry],
        now: datetime,
        lock_timeout_ms: int | None = None,
        seen: Mapping[str, Task] | None = None,
    ) -> Exception | None:
        """Commit the group and answer its callers, or return why the database would not have it.

        Of tasks that are no longer as they were `seen`, nobody knows what became of these commands.
        """
        try:
            try:
                done = await self._commit(group, now, lock_timeout_ms, seen or {})
            except Exception as error:
                if not is_dead_connection(error):
                    raise
                # Most often it died while it lay idle. Nothing was committed, so a fresh one may try.
                done = await self._commit(group, now, lock_timeout_ms, seen or {})
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it and the loop go on
            return error
        for entry, result in zip(group, done.results, strict=True):
            answer(entry, result)
        unsure = [
            entry for entry, result in zip(group, done.results, strict=True) if isinstance(result, OutcomeUnknown)
        ]
        if unsure:
            self.leave_unknown(unsure, _unknown(NotConnected(NOT_IN_TIME)))
        await self._aftermath.follow(done)
        return None

    async def _commit(
        self, group: Sequence[Entry], now: datetime, lock_timeout_ms: int | None, seen: Mapping[str, Task]
    ) -> Done:
        connection = await self._connected()
        began = time.monotonic()
        try:
            await connection.begin(lock_timeout_ms)
            done = await write(connection, [entry.command for entry in group], now, seen)
            try:
                await connection.commit()
            except Exception as error:
                raise _unknown(error) from error
        except BaseException as error:
            # A connection on which the database said no is good: kept, so that no readers stand before us in a queue.
            if isinstance(error, OutcomeUnknown) or not await _rolled_back(connection):
                self.disconnect()
            raise
        self._gauges.locked_s.observe(time.monotonic() - began)
        return done

    def _told(self, error: Exception, group: Sequence[Entry]) -> Exception:
        """What the callers of a failed group hear."""
        if isinstance(error, NotConnected):
            self._gauges.unavailable += 1
            # Every group of an outage ends here, and a line for each would bury the one that says why.
            if told := self._unconnected.add(len(group)):
                why = explain(error) or type(error.__cause__).__name__
                log.error("No connection to the database could be had for %d commands: %s", told, why)
            return error
        if is_passing(error):
            self._gauges.unavailable += 1
            log.warning("A group of %d commands could not be written.", len(group), exc_info=error, extra=_tasks(group))
            return _later(error)
        return error

    def disconnect(self) -> None:
        """Give the connection back; the pool ends it when it is of no more use."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(connection)


async def _rolled_back(connection: Connection) -> bool:
    """Whether the connection can be used again, with nothing left of what was begun."""
    if connection.interrupted:
        return False
    try:
        await connection.roll_back()
    except Exception:  # noqa: BLE001 - whatever it is, the connection is not to be trusted
        return False
    return True


def _unknown(error: Exception) -> OutcomeUnknown:
    unknown = OutcomeUnknown()
    unknown.__cause__ = error
    return unknown


def _parted(group: Sequence[Entry], seen: Mapping[str, Task]) -> tuple[list[Entry], list[Entry]]:
    """The commands on tasks that were seen, and the others."""
    parts: tuple[list[Entry], list[Entry]] = [], []
    for entry in group:
        parts[seen.keys().isdisjoint(entry.command.task_ids)].append(entry)
    return parts


def answer(entry: Entry, result: Result | Exception) -> None:
    """Tell whoever waits what came of a command."""
    if entry.future.done():
        return
    if isinstance(result, Exception):
        entry.future.set_exception(result)
    else:
        entry.future.set_result(result)


def _tasks(group: Sequence[Entry]) -> dict[str, Any]:
    """What a line about a group says of whom it concerns."""
    task_ids = dict.fromkeys(task_id for entry in group for task_id in entry.command.task_ids)
    return {"task_ids": list(islice(task_ids, LOGGED_TASKS_MAX))}


def _later(error: Exception) -> Unavailable:
    unavailable = Unavailable(NOT_IN_TIME)
    unavailable.__cause__ = error
    return unavailable
