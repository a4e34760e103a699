"""Servers with a bug planted, to show that the checker finds it: ``python -m tests.faults.planted NAME serve``.

A bug is planted by changing the program in its process; nothing of it is in the program.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from unittest.mock import patch

from graphql_api.cli import main
from storage import Task, UpdateProgress, committer, group
from storage.committer import Committer, Entry
from storage.errors import OutcomeUnknown
from storage.follower import Follower
from storage.link import Link

# How long what was published too early stays so.
WINDOW_S: Final = 0.1


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
        statement = getattr(group, name)
        plain, counted = (f"{words} ON CONFLICT DO NOTHING" for words in (statement.plain, statement.counted))
        _replace(group, name, replace(statement, plain=plain, counted=counted))


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


def _never_compare() -> None:
    async def compare_all(_: Follower) -> None:
        return

    _replace(Follower, "_compare_all", compare_all)


def _go_the_long_way() -> None:
    """Have every change made in a transaction, under the lock of its task's row."""
    _replace(committer, "decide_from_memory", lambda *_: group.Decided({}, {}, {}))


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
    )
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
