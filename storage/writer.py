"""The queue before the only place where tasks change: commands gather into groups, and each group is one transaction.

While one group commits, the next gathers. What a group does is told in ``group``; here it is committed once, the feed
is told, and its callers are answered. So every change is made under its task's row lock, and many changes share one
flush of the disk.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from storage.commands import Command, size_of
from storage.database import is_connection_failure, is_dead_connection, is_passing, sqlstate
from storage.errors import NotConnected, OutcomeUnknown, Unavailable
from storage.feed import Feed
from storage.group import Outcome, write, write_remembered
from storage.pool import NOT_IN_TIME, Connection, Pool
from storage.remembered import Remembered
from storage.task import Task, Update, UpdateType

log = logging.getLogger(__name__)

GROUP_BYTES_MAX: Final = 8 * 1024 * 1024
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
# Who waited for a lock as a group has waited; alone, each command only finds out whose row is held.
ALONE_LOCK_TIMEOUT_MS: Final = 10
# When the log is read after a commit whose outcome is unknown: it may still be on its way.
LOOK_AFTER_S: Final = (0, 2, 15)
_LOCK_NOT_AVAILABLE: Final = "55P03"


@dataclass(slots=True)
class _Entry:
    """A command that waits for its group, and whoever waits for the command."""

    command: Command
    size: int
    future: asyncio.Future[Task | None]


class Writer:
    """Takes commands, commits them in groups, and tells the feed."""

    def __init__(
        self,
        pool: Pool,
        feed: Feed,
        *,
        group_commands_max: int,
        waiting_commands_max: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        self._feed = feed
        self._group_commands_max = group_commands_max
        self._waiting_commands_max = waiting_commands_max
        self._clock = clock
        self._waiting: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._remembered = Remembered()
        # Those that are being worked off.
        self._group: list[_Entry] = []
        self._news = asyncio.Event()
        self._closing = False
        self._connection: Connection | None = None
        self._loop = asyncio.create_task(self._run(), name="writer")

    @property
    def alive(self) -> bool:
        """Whether commands are being taken and worked off."""
        return not self._closing and not self._loop.done()

    async def submit(self, command: Command) -> Task | None:
        """Do what the command asks; return the task as the command left it (None: deleted) when that is on disk.

        Whoever goes away while waiting cancels nothing: the command is done, and nobody hears of it.
        """
        if not self.alive:
            raise Unavailable("The server is shutting down; try again.")
        size = size_of(command)
        if len(self._waiting) >= self._waiting_commands_max or self._waiting_bytes + size > WAITING_BYTES_MAX:
            raise Unavailable(f"Too many changes are waiting to be written ({len(self._waiting)}); try again.")
        future: asyncio.Future[Task | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(command, size, future))
        self._waiting_bytes += size
        self._news.set()
        return await future

    async def close(self) -> None:
        """Take no more commands, finish those that were accepted, and stop."""
        self._closing = True
        self._news.set()
        # Whoever gives up waiting gives up nothing but waiting.
        await asyncio.wait({self._loop})
        self._loop.result()

    async def _run(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    self._group = self._gather()
                    try:
                        await self._work_off(self._group)
                    except Exception:
                        # A fault of ours, after the commit for all we know. The writer goes on.
                        log.exception("A group of %d commands was not ended in order.", len(self._group))
                        self._leave_unknown(self._group, OutcomeUnknown())
                if self._closing:
                    return
        finally:
            for entry in (*self._group, *self._waiting):
                _answer(entry, Unavailable("The server is shutting down; try again."))
            self._disconnect()

    def _gather(self) -> list[_Entry]:
        group: list[_Entry] = []
        size = 0
        while self._waiting and len(group) < self._group_commands_max:
            size += self._waiting[0].size
            if group and size > GROUP_BYTES_MAX:
                break
            entry = self._waiting.popleft()
            self._waiting_bytes -= entry.size
            group.append(entry)
        return group

    async def _work_off(self, group: list[_Entry]) -> None:
        error: Exception | None
        group, error = await self._attempt_from_memory(group)
        if error is not None and is_dead_connection(error):
            error = await self._attempt_again(group, error)
        elif error is None and group:
            error = await self._attempt(group)
        if error is None:
            return
        if isinstance(error, OutcomeUnknown):
            log.error("Whether a group of %d commands was committed is not known.", len(group), exc_info=error)
            self._leave_unknown(group, error)
            return
        if len(group) == 1 or isinstance(error, NotConnected) or is_connection_failure(error):
            told = _told(error, group)
            for entry in group:
                _answer(entry, told)
            return
        # The database refused the group, and one command may be to blame: each has one try alone.
        log.warning("A group of %d commands was refused; trying each alone.", len(group), exc_info=error)
        lock_timeout_ms = ALONE_LOCK_TIMEOUT_MS if sqlstate(error) == _LOCK_NOT_AVAILABLE else None
        stuck: set[str] = set()
        for entry in group:
            # A row that somebody else holds is waited for once, not once for each command that wants it.
            if entry.command.task_id in stuck:
                _answer(entry, Unavailable(NOT_IN_TIME))
                continue
            error = await self._attempt([entry], lock_timeout_ms)
            if isinstance(error, OutcomeUnknown):
                self._leave_unknown([entry], error)
            elif error is not None:
                if sqlstate(error) == _LOCK_NOT_AVAILABLE:
                    stuck.add(entry.command.task_id)
                _answer(entry, _told(error, [entry]))

    def _leave_unknown(self, group: Sequence[_Entry], error: OutcomeUnknown) -> None:
        """Tell callers that nobody knows, and have subscribers read the log: the change may be there unpublished."""
        for entry in group:
            _answer(entry, error)
        task_ids = {entry.command.task_id for entry in group}
        for task_id in task_ids:
            self._remembered.forget(task_id)
        for wait_s in LOOK_AFTER_S:
            asyncio.get_running_loop().call_later(wait_s, self._feed.look, task_ids)

    async def _attempt_from_memory(self, group: list[_Entry]) -> tuple[list[_Entry], Exception | None]:
        """Do what can be done without reading first; return what is left, and why the database would not have it."""
        if not any(self._remembered.get(entry.command.task_id) for entry in group):
            return group, None
        try:
            if self._connection is not None and not self._connection.sound:
                self._disconnect()
            if self._connection is None:
                self._connection = await self._pool.acquire()
        except NotConnected as error:
            return group, error
        try:
            outcomes, updates = await write_remembered(
                self._connection, [entry.command for entry in group], self._clock(), self._remembered
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it and the loop go on
            if is_connection_failure(error):
                self._disconnect()
            if is_connection_failure(error) and not is_dead_connection(error):
                # Who has waited for an answer as long as one may does not wait again.
                return group, _unknown(error)
            return group, error
        for place, outcome in outcomes.items():
            _answer(group[place], outcome)
        await self._published(updates)
        return [entry for place, entry in enumerate(group) if place not in outcomes], None

    async def _attempt_again(self, group: list[_Entry], broken: Exception) -> Exception | None:
        """Do what was under way when the connection broke, unless it turns out that it may have been done."""
        seen = {entry.command.task_id: self._remembered.get(entry.command.task_id) for entry in group}
        error = await self._attempt(group, seen={task_id: task for task_id, task in seen.items() if task is not None})
        if error is None or isinstance(error, OutcomeUnknown):
            return error
        return _unknown(broken)

    async def _attempt(
        self, group: list[_Entry], lock_timeout_ms: int | None = None, seen: Mapping[str, Task] | None = None
    ) -> Exception | None:
        """Commit the group and answer its callers, or return why the database would not have it.

        Of tasks that are no longer as they were `seen`, nobody knows what became of these commands.
        """
        try:
            try:
                outcomes, updates = await self._commit(group, lock_timeout_ms, seen or {})
            except Exception as error:
                if not is_dead_connection(error):
                    raise
                # Most often it died while it lay idle. Nothing was committed, so a fresh one may try.
                outcomes, updates = await self._commit(group, lock_timeout_ms, seen or {})
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it and the loop go on
            return error
        for entry, outcome in zip(group, outcomes, strict=True):
            _answer(entry, outcome)
        unsure = [entry for entry, outcome in zip(group, outcomes, strict=True) if isinstance(outcome, OutcomeUnknown)]
        if unsure:
            self._leave_unknown(unsure, _unknown(NotConnected(NOT_IN_TIME)))
        await self._published(updates)
        return None

    async def _published(self, updates: Sequence[Update]) -> None:
        """Tell of what was committed, and remember it."""
        for change in updates:
            if change.type is UpdateType.DELETE:
                self._remembered.forget(change.task.task_id)
            else:
                self._remembered.keep(change.task)
        await self._feed.publish(*updates)

    async def _commit(
        self, group: Sequence[_Entry], lock_timeout_ms: int | None, seen: Mapping[str, Task]
    ) -> tuple[Sequence[Outcome], Sequence[Update]]:
        if self._connection is None:
            self._connection = await self._pool.acquire()
        connection = self._connection
        try:
            await connection.begin(lock_timeout_ms)
            done = await write(connection, [entry.command for entry in group], self._clock(), seen)
            try:
                await connection.commit()
            except Exception as error:
                raise _unknown(error) from error
        except BaseException as error:
            # A connection on which the database said no is good: kept, so that no readers stand before us in a queue.
            if isinstance(error, OutcomeUnknown) or not await _rolled_back(connection):
                self._disconnect()
            raise
        return done

    def _disconnect(self) -> None:
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


def _answer(entry: _Entry, outcome: Task | Exception | None) -> None:
    if entry.future.done():
        return
    if isinstance(outcome, Exception):
        entry.future.set_exception(outcome)
    else:
        entry.future.set_result(outcome)


def _told(error: Exception, group: Sequence[_Entry]) -> Exception:
    """What the callers of a failed group hear."""
    if isinstance(error, NotConnected):
        log.error("No connection to the database could be had for %d commands.", len(group), exc_info=error)
        return error
    if is_passing(error):
        log.warning("A group of %d commands could not be written.", len(group), exc_info=error)
        unavailable = Unavailable(NOT_IN_TIME)
        unavailable.__cause__ = error
        return unavailable
    return error
