"""API keys: made, found, believed for a while, and revoked."""

import asyncio
from collections.abc import Iterator
from hashlib import sha256

import pytest

from storage import BadInput, Keys, Permission, Storage, open_storage
from storage.keys import BELIEVED_S
from tests.postgres import execute, session
from tests.storage.helpers import kill_connections, spied


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def another_process(storage: Storage, clock: Clock) -> Keys:
    """What another process, which remembers nothing yet, knows of the keys."""
    return Keys(storage.pool, clock)


async def test_a_key_is_found_by_its_text_and_has_its_name_and_permissions(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.REPORT, Permission.CREATE])
        for keys in (storage.keys, another_process(storage, Clock())):
            key = await keys.find(text)
            assert key is not None
            assert key.name == "ci"
            assert key.permissions == {Permission.REPORT, Permission.CREATE}
            assert key.revoked_at is None
            assert await keys.list() == [key]


async def test_no_two_keys_are_alike(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        texts = [await storage.keys.create(f"{n}", [Permission.READ]) for n in range(5)]
        assert len({half for text in texts for half in text.split("_", 2)[1:]}) == 10
        assert [key.name for key in await storage.keys.list()] == ["0", "1", "2", "3", "4"]


async def test_nothing_that_would_open_a_door_is_stored(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        text = await storage.keys.create("ci", [Permission.ADMIN])
        secret = text.split("_", 2)[2]
        (row,) = await other.fetch("SELECT api_keys::text AS all, secret_hash FROM api_keys")
        assert secret not in row["all"]
        assert row["secret_hash"] == sha256(secret.encode()).digest()
        (key,) = await storage.keys.list()
        assert secret not in repr(key)


def wrong(text: str) -> Iterator[str]:
    """Texts that are like a key and are not it."""
    spn, key_id, secret = text.split("_", 2)
    yield f"{spn}_{key_id}_{secret[::-1]}"
    yield f"{spn}_{key_id}_{secret[:-1]}"
    yield f"{spn}_{key_id}_{secret}a"
    yield f"{spn}_{key_id}_"
    yield f"{spn}_{key_id[::-1]}_{secret}"
    yield f"{spn}_{'0' * 16}_{secret}"
    yield f"SPN_{key_id}_{secret}"
    yield f" {text}"
    yield f"{text}\n"
    yield secret
    yield key_id
    yield ""
    yield "\0"
    yield "\ud800"
    yield "spn_é"
    yield "x" * 1_000_000


async def test_what_is_not_exactly_a_key_is_none(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.ADMIN])
        for not_it in wrong(text):
            assert await storage.keys.find(not_it) is None, not_it[:80]
        assert await storage.keys.find(text) is not None


async def test_a_revoked_key_opens_nothing_any_more(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.ADMIN])
        await storage.keys.revoke("ci")
        assert await storage.keys.find(text) is None
        (key,) = await storage.keys.list()
        assert key.revoked_at is not None


async def test_a_revoked_key_is_believed_elsewhere_for_some_seconds_and_no_longer(database: str) -> None:
    clock = Clock()
    # What was promised is 10 s.
    assert BELIEVED_S < 10
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.ADMIN])
        elsewhere = another_process(storage, clock)
        assert await elsewhere.find(text) is not None
        await storage.keys.revoke("ci")
        clock.now += BELIEVED_S - 0.001
        with spied(storage) as spy:
            assert await elsewhere.find(text) is not None
        assert spy.statements == []
        clock.now += 0.001
        assert await elsewhere.find(text) is None


async def test_a_key_that_was_looked_for_too_early_is_found_some_seconds_later(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        elsewhere = another_process(storage, clock)
        text = await storage.keys.create("ci", [Permission.ADMIN])
        await execute(database, "UPDATE api_keys SET key_id = repeat('0', 16)")
        assert await elsewhere.find(text) is None
        await execute(database, f"UPDATE api_keys SET key_id = '{text.split('_')[1]}'")
        assert await elsewhere.find(text) is None
        clock.now += BELIEVED_S
        assert await elsewhere.find(text) is not None


async def test_a_name_is_taken_until_its_key_is_revoked(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        old = await storage.keys.create("ci", [Permission.READ])
        with pytest.raises(BadInput, match='There is a key named "ci" already'):
            await storage.keys.create("ci", [Permission.READ])
        await storage.keys.revoke("ci")
        new = await storage.keys.create("ci", [Permission.READ])
        assert await storage.keys.find(old) is None
        assert await storage.keys.find(new) is not None
        # It is the new one that goes.
        await storage.keys.revoke("ci")
        assert await another_process(storage, Clock()).find(new) is None
        with pytest.raises(BadInput, match='There is no key named "ci" that could be revoked'):
            await storage.keys.revoke("ci")


async def test_of_two_who_take_a_name_at_once_one_gets_it(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        outcomes = await asyncio.gather(
            *(storage.keys.create("ci", [Permission.READ]) for _ in range(5)), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["BadInput"] * 4 + ["str"]
        assert len(await storage.keys.list()) == 1


@pytest.mark.parametrize("name", ["", "n" * 101, "a\0", "\ud800", "a\nb", " a", "a "])
async def test_a_name_that_cannot_be_is_refused(database: str, name: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with pytest.raises(BadInput, match="The name of a key must"):
            await storage.keys.create(name, [Permission.READ])
        assert await storage.keys.list() == []


async def test_a_key_without_permissions_is_refused(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with pytest.raises(BadInput, match="at least one permission"):
            await storage.keys.create("ci", [])
        assert await storage.keys.list() == []


async def test_a_permission_of_a_later_version_is_none_here(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.READ])
        await execute(database, "UPDATE api_keys SET permissions = '{READ,FLY}'")
        key = await storage.keys.find(text)
        assert key is not None
        assert key.permissions == {Permission.READ}


async def test_a_flood_of_requests_costs_one_query_for_each_key_and_a_bounded_memory(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.keys.REMEMBERED_KEYS_MAX", 10)
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.READ])
        unknown = [f"spn_{n:016x}_{'x' * 43}" for n in range(30)]
        with spied(storage) as spy:
            found = await asyncio.gather(*(storage.keys.find(key) for key in [text, *unknown] * 10))
        assert sum(key is not None for key in found) == 10
        assert len(spy.statements) == 1
        assert len(storage.keys._remembered) == 10
        with spied(storage) as spy:
            for _ in range(10):
                assert await storage.keys.find(unknown[-1]) is None
        assert spy.statements == []


async def test_a_connection_that_died_while_it_lay_idle_closes_no_door(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text = await storage.keys.create("ci", [Permission.READ])
        assert await kill_connections(database) >= 1
        assert await storage.keys.find(text) is not None


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[31m", "\u202egnp", " ci", "ci ", "x" * 101])
async def test_the_name_of_a_key_is_short_and_printable(database: str, name: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with pytest.raises(BadInput, match="The name of a key must"):
            await storage.keys.create(name, [Permission.READ])
        assert await storage.keys.list() == []
