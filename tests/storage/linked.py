"""Several processes that hear of each other, for the tests of how they do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from storage import Health, Storage, Update, open_storage
from storage import follower as follower_module

WAIT_S: Final = 10


@asynccontextmanager
async def processes(database: str, feed_url: str, count: int = 2) -> AsyncIterator[list[Storage]]:
    """So many storages that hear of each other."""
    if count == 0:
        yield []
        return
    async with (
        open_storage(database, upgrade=False, feed_url=feed_url) as storage,
        processes(database, feed_url, count - 1) as rest,
    ):
        yield [storage, *rest]


async def until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Wait until something is so that another process does."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.005)


async def until_all(health: Health, *storages: Storage) -> None:
    """Wait until the feed of each of them is so."""
    await until(lambda: all(storage.feed_health is health for storage in storages))


async def following(updates: Any) -> Update:
    """The next update."""
    update = await asyncio.wait_for(anext(updates), WAIT_S)
    assert isinstance(update, Update)
    return update


def never_resync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is watched compared only when somebody asks for it."""
    monkeypatch.setattr(follower_module, "RESYNC_S", 600.0)
    monkeypatch.setattr(follower_module, "RESYNC_ALONE_S", 600.0)
