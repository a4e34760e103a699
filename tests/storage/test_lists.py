"""Lists that are watched across processes: what one commits, those who watch lists in another are told."""

import asyncio
from contextlib import aclosing

import pytest

from storage import Complete, Create, Delete, Filter, ListOutdated, ListWatch, Status, Update, UpdateProgress, UpdateType
from tests.storage.helpers import note, submit
from tests.storage.linked import WAIT_S, processes, until


async def following(updates: ListWatch) -> Update:
    """The next update."""
    return await asyncio.wait_for(anext(updates), WAIT_S)


async def test_what_one_process_commits_the_lists_of_another_are_told(database: str, feed_url: str) -> None:
    async with processes(database, feed_url) as (one, two), aclosing(two.lists.watch(Filter())) as updates:
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


async def test_a_deletion_of_a_task_that_was_never_heard_of_is_told(database: str, feed_url: str) -> None:
    async with processes(database, feed_url) as (one, two):
        await submit(one, Create(task_id="T", metadata={"a": 1}, created_by="ann"))
        async with aclosing(two.lists.watch(Filter(created_by="ann"))) as updates:
            await submit(one, Delete(task_id="T"))
            update = await following(updates)
            assert (update.type, update.task.task_id, update.task.metadata) == (UpdateType.DELETE, "T", None)
