"""Task tokens and the keys that sign them: what is taken, what is not, and who learns when that a key is another."""

import asyncio
import base64
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from storage import BadInput, Keys, NotTrusted, Permission, Storage, TaskTokens, TokenScope, Unavailable, open_storage
from storage import keys as storage_keys
from storage.signing_keys import BELIEVED_S, READ_AGAIN_S, RETIRED_KEPT, TOKEN_LIFETIME_MAX_S, SigningKeys
from storage.task_tokens import LEEWAY_S, TOKEN_CHARACTERS_MAX
from tests.postgres import session
from tests.storage.helpers import spied

SECRETS = ("the first secret of at least 32 characters", "the second secret of at least 32 characters")


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def another_process(storage: Storage, clock: Clock, *configured: str | None) -> TaskTokens:
    """What a process on the same database has."""
    return TaskTokens(SigningKeys(storage.pool, configured, clock), Keys(storage.pool, clock), clock)


async def why_not(tokens: TaskTokens, text: str) -> str:
    with pytest.raises(NotTrusted) as refused:
        await tokens.verify(text)
    return str(refused.value)


async def test_a_token_says_what_it_was_made_for(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        tokens = another_process(storage, clock)
        text, expires_at = await tokens.sign("T-é\n", TokenScope.REPORT, 60, made_by="ann")
        assert text.startswith("spt_")
        assert expires_at == datetime.fromtimestamp(clock.now + 60, UTC)
        token = await tokens.verify(text)
        assert (token.task_id, token.scope, token.made_by, token.made_with) == ("T-é\n", "REPORT", "ann", None)
        assert token.good_until == clock.now + 60 + LEEWAY_S


@pytest.mark.parametrize("seconds", [0, -1, TOKEN_LIFETIME_MAX_S + 1])
async def test_a_lifetime_beyond_its_bounds_is_refused(database: str, seconds: int) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with pytest.raises(BadInput, match=f"expiresInSeconds must be 1 to 2592000, got {seconds}"):
            await storage.task_tokens.sign("T", TokenScope.READ, seconds)


@pytest.mark.parametrize("seconds", [1, TOKEN_LIFETIME_MAX_S])
async def test_a_token_is_good_until_it_expires_and_clocks_may_differ_a_little(database: str, seconds: int) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        tokens = another_process(storage, clock)
        text, _ = await tokens.sign("T", TokenScope.READ, seconds)
        began = clock.now
        clock.now = began - LEEWAY_S
        await tokens.verify(text)
        clock.now -= 0.1
        assert await why_not(tokens, text) == "The task token is not valid yet."
        clock.now = began + seconds + LEEWAY_S - 0.1
        await tokens.verify(text)
        clock.now += 0.1
        assert await why_not(tokens, text) == "The task token has expired."


async def test_the_longest_token_that_can_be_made_is_taken(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text, _ = await storage.task_tokens.sign(
            "\x01" * 255, TokenScope.REPORT, TOKEN_LIFETIME_MAX_S, made_by="\x01" * 255
        )
        assert len(text) < TOKEN_CHARACTERS_MAX
        assert (await storage.task_tokens.verify(text)).task_id == "\x01" * 255
        with pytest.raises(BadInput, match="taskId must have 1 to 255 characters"):
            await storage.task_tokens.sign("x" * 256, TokenScope.READ, 60)


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def wrong(text: str) -> Iterator[str]:
    """Texts that are like a token and are not it."""
    head, claims, signature = text.split(".")
    for other in ("T-8", "REPORT"):
        said = orjson.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        said[0 if other == "T-8" else 1] = other
        yield f"{head}.{base64url(orjson.dumps(said))}.{signature}"
    # The same bytes, written in another way: the last character has bits to spare.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    yield text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]
    for place in (5, len(head) + 3, len(text) - 10):
        yield text[:place] + ("b" if text[place] == "a" else "a") + text[place + 1 :]
    yield f"{head}.{claims}"
    yield f"{head}.{claims}."
    yield f"{head}..{signature}"
    yield f"{text}.{signature}"
    yield f"{text}="
    yield f"{text}\n"
    yield f"spt_{'0' * 16}.{claims}.{signature}"
    yield f"{head}.{claims}.{base64url(hmac.digest(b'', f'{head}.{claims}'.encode(), 'sha256'))}"
    yield f"{head}.{'x' * TOKEN_CHARACTERS_MAX}.{signature}"
    yield "spt_"
    yield "spt_é"
    yield ""


async def test_what_is_not_exactly_a_token_is_none(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        text, _ = await storage.task_tokens.sign("T-7", TokenScope.READ, 60)
        for not_it in wrong(text):
            assert await why_not(storage.task_tokens, not_it), not_it
        await storage.task_tokens.verify(text)


async def test_the_key_is_made_once_and_known_to_every_process(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        one, other = another_process(storage, clock), another_process(storage, clock)
        text, _ = await one.sign("T", TokenScope.READ, 60)
        await other.verify(text)
        again, _ = await other.sign("T", TokenScope.READ, 60)
        assert again.split(".")[0] == text.split(".")[0]
        assert len(await storage.signing_keys.list()) == 1


async def test_after_a_rotation_both_keys_verify_and_the_new_one_signs_everywhere(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        one, other = another_process(storage, clock), another_process(storage, clock)
        old, _ = await one.sign("T", TokenScope.READ, TOKEN_LIFETIME_MAX_S)
        key_id = await storage.signing_keys.rotate()
        # For some seconds a process does not know of it, and signs with the old one.
        late, _ = await one.sign("T", TokenScope.READ, 60)
        assert key_id not in late
        clock.now += BELIEVED_S + 0.1
        new, _ = await one.sign("T", TokenScope.READ, 60)
        assert new.startswith(f"spt_{key_id}.")
        for text in (old, late, new):
            await one.verify(text)
            await other.verify(text)
        clock.now += TOKEN_LIFETIME_MAX_S - 10
        await storage.signing_keys.rotate()
        await one.verify(old)


async def test_a_key_that_was_never_heard_of_is_looked_for_but_not_often(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        here, elsewhere = another_process(storage, clock), another_process(storage, clock)
        old, _ = await here.sign("T", TokenScope.READ, 60)
        await storage.signing_keys.rotate()
        new, _ = await elsewhere.sign("T", TokenScope.READ, 60)
        with spied(storage) as spy:
            assert "unknown" in await why_not(here, new)
            assert spy.statements == []
            clock.now += READ_AGAIN_S + 0.1
            await here.verify(new)
            assert len(spy.statements) == 1
            unknown = [f"spt_{n:016x}.{'x' * 50}.{'x' * 43}" for n in range(100)]
            assert await asyncio.gather(*(why_not(here, text) for text in unknown))
            await here.verify(old)
            assert len(spy.statements) == 1
            clock.now += READ_AGAIN_S + 0.1
            assert await asyncio.gather(*(why_not(here, text) for text in unknown))
            assert len(spy.statements) == 2


async def test_a_key_that_retired_is_kept_for_as_long_as_anything_that_it_signed(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        old, _ = await storage.task_tokens.sign("T", TokenScope.READ, TOKEN_LIFETIME_MAX_S)
        await storage.signing_keys.rotate()
        assert timedelta(seconds=TOKEN_LIFETIME_MAX_S + BELIEVED_S + LEEWAY_S) < RETIRED_KEPT
        for age, good in ((RETIRED_KEPT - timedelta(minutes=1), True), (RETIRED_KEPT, False)):
            async with session(database) as other:
                await other.execute(
                    "UPDATE signing_keys SET retired_at = $1 WHERE retired_at IS NOT NULL", datetime.now(UTC) - age
                )
            tokens = another_process(storage, Clock(datetime.now(UTC).timestamp()))
            if good:
                await tokens.verify(old)
            else:
                assert "unknown" in await why_not(tokens, old)
        # The next rotation forgets it.
        await storage.signing_keys.rotate()
        assert len(await storage.signing_keys.list()) == 2


async def test_a_key_that_is_removed_takes_along_what_it_signed_in_every_process_within_seconds(database: str) -> None:
    clock = Clock()
    assert BELIEVED_S < 10
    async with open_storage(database, upgrade=False) as storage:
        elsewhere = another_process(storage, clock)
        text, _ = await elsewhere.sign("T", TokenScope.READ, 60)
        (key,) = await storage.signing_keys.list()
        await storage.signing_keys.revoke(key.key_id)
        assert "revoked" in await why_not(storage.task_tokens, text)
        clock.now += BELIEVED_S
        await elsewhere.verify(text)
        clock.now += 0.1
        assert "revoked" in await why_not(elsewhere, text)
        # Another takes its place.
        again, _ = await elsewhere.sign("T", TokenScope.READ, 60)
        await elsewhere.verify(again)
        with pytest.raises(BadInput, match="There is no signing key"):
            await storage.signing_keys.revoke(key.key_id)


async def test_a_token_goes_with_the_api_key_that_made_it(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        elsewhere = another_process(storage, clock)
        key = await storage.keys.find(await storage.keys.create("ci", [Permission.CREATE]))
        assert key is not None
        text, _ = await elsewhere.sign("T", TokenScope.READ, 60, made_by="ci", made_with=key.key_id)
        await elsewhere.verify(text)
        await storage.keys.revoke("ci")
        clock.now += storage_keys.BELIEVED_S
        assert await why_not(elsewhere, text) == "The API key with which the task token was made was revoked."


async def test_secrets_of_the_settings_sign_and_verify_and_the_previous_one_verifies(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        before = another_process(storage, clock, SECRETS[0])
        after = another_process(storage, clock, SECRETS[1], SECRETS[0])
        without = another_process(storage, clock, None, SECRETS[1])
        old, _ = await before.sign("T", TokenScope.READ, 60)
        new, _ = await after.sign("T", TokenScope.READ, 60)
        assert await storage.signing_keys.list() == []
        await after.verify(old)
        await after.verify(new)
        assert "unknown" in await why_not(before, new)
        # Back to keys of the database; and what those signed is good beside a secret, too.
        made, _ = await without.sign("T", TokenScope.READ, 60)
        await without.verify(new)
        clock.now += READ_AGAIN_S + 0.1
        await after.verify(made)
        for secret in SECRETS:
            assert secret not in repr((old, new, await storage.signing_keys.list()))


async def test_without_its_database_a_process_says_that_it_cannot_know(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        tokens = another_process(storage, clock)
        text, _ = await tokens.sign("T", TokenScope.READ, 60)

        async def away(*_: Any) -> Any:
            raise Unavailable("away")

        monkeypatch.setattr(storage.pool, "read", away)
        clock.now += BELIEVED_S
        await tokens.verify(text)
        clock.now += 0.1
        with pytest.raises(Unavailable):
            await tokens.verify(text)


async def test_two_first_keys_that_are_made_at_once_are_both_good(database: str) -> None:
    clock = Clock()
    async with open_storage(database, upgrade=False) as storage:
        processes = [another_process(storage, clock) for _ in range(4)]
        signed = await asyncio.gather(*(process.sign("T", TokenScope.READ, 60) for process in processes))
        clock.now += BELIEVED_S + 0.1
        for text, _ in signed:
            for process in processes:
                await process.verify(text)


async def test_many_who_want_to_sign_at_once_make_one_key(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        made = await asyncio.gather(*(storage.task_tokens.sign("T", TokenScope.READ, 60) for _ in range(50)))
        assert len(await storage.signing_keys.list()) == 1
        assert len({text.split(".")[0] for text, _ in made}) == 1
