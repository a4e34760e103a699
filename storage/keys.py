"""API keys: random, shown once, kept as a hash, found by their public half, compared in constant time.

A key reads ``spn_<id>_<secret>``. What a process knows of a key it believes for a few seconds; so a revoked key stops
working within ``BELIEVED_S`` everywhere, and a flood of requests costs one lookup per key.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final

import asyncpg
from sqlalchemy import ARRAY, Text, any_, bindparam, insert, select, update

from storage.batches import Batches
from storage.errors import BadInput
from storage.limits import check_name
from storage.pool import Pool, compiled, translated
from storage.tables import api_keys

BELIEVED_S: Final = 5.0
# Keys that a process remembers; beyond it the oldest is forgotten and looked up again.
REMEMBERED_KEYS_MAX: Final = 10_000
KEY_NAME_CHARACTERS_MAX: Final = 100
_KEY: Final = re.compile(r"spn_([0-9a-f]{16})_([0-9A-Za-z_-]{43})")


class Permission(StrEnum):
    """What a caller may do."""

    READ = "READ"
    REPORT = "REPORT"
    CREATE = "CREATE"
    LIST = "LIST"
    DELETE = "DELETE"
    # All of the others.
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without the secret that nobody has but its holder."""

    key_id: str
    name: str
    secret_hash: bytes
    permissions: frozenset[Permission]
    created_at: datetime
    # Since when the key opens nothing; None while it does.
    revoked_at: datetime | None


class Keys:
    """Makes, finds and revokes API keys."""

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._lookups = Batches(self._load)
        # In order of age, oldest first: what was looked up, and until when it is believed.
        self._remembered: dict[str, tuple[float, Key | None]] = {}

    async def create(self, name: str, permissions: Collection[Permission]) -> str:
        """Make a key and return it: this is the only time that anyone sees it."""
        check_name("The name of a key", name, KEY_NAME_CHARACTERS_MAX)
        if not name.isprintable() or name != name.strip():
            raise BadInput("The name of a key must be printable and have no space at its ends.")
        if not permissions:
            raise BadInput("A key must have at least one permission.")
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        secret_hash = sha256(secret.encode()).digest()
        with translated():
            try:
                await self._pool.run(_INSERT, key_id, name, secret_hash, sorted(permissions), datetime.now(UTC), None)
            except asyncpg.UniqueViolationError:
                raise BadInput(
                    f'There is a key named "{name}" already; revoke it first, or choose another name.'
                ) from None
        return f"spn_{key_id}_{secret}"

    async def list(self) -> Sequence[Key]:
        """All keys, the revoked ones too, oldest first."""
        with translated():
            return [_key(*row) for row in await self._pool.run(_ALL)]

    async def revoke(self, name: str) -> None:
        """Make a key open nothing any more; every process notices within ``BELIEVED_S`` seconds."""
        with translated():
            revoked = await self._pool.run(_REVOKE, name, datetime.now(UTC))
        if not revoked:
            raise BadInput(f'There is no key named "{name}" that could be revoked.')

    async def find(self, text: str) -> Key | None:
        """The key that this text is, or None when it is none or no longer one."""
        match = _KEY.fullmatch(text)
        if match is None:
            return None
        key_id, secret = match.groups()
        key = await self._recall(key_id)
        secret_hash = sha256(secret.encode()).digest()
        if key is None or not hmac.compare_digest(secret_hash, key.secret_hash) or key.revoked_at is not None:
            return None
        return key

    async def stands(self, key_id: str) -> bool:
        """Whether the key with this public half is there, and was not revoked."""
        key = await self._recall(key_id)
        return key is not None and key.revoked_at is None

    async def _recall(self, key_id: str) -> Key | None:
        now = self._clock()
        believed_until, key = self._remembered.get(key_id, (now, None))
        if now < believed_until:
            return key
        key = await self._lookups.get(key_id)
        self._remembered.pop(key_id, None)
        while len(self._remembered) >= REMEMBERED_KEYS_MAX:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key_id] = (now + BELIEVED_S, key)
        return key

    async def _load(self, key_ids: Sequence[str]) -> dict[str, Key]:
        return {row[0]: _key(*row) for row in await self._pool.read(_BY_ID, key_ids)}

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._lookups.close()


_columns = tuple(api_keys.c)
_keys = select(*_columns)
_BY_ID: Final = compiled(_keys.where(api_keys.c.key_id == any_(bindparam("key_ids", type_=ARRAY(Text)))), "key_ids")
_ALL: Final = compiled(_keys.order_by(api_keys.c.created_at, api_keys.c.key_id))
_INSERT: Final = compiled(insert(api_keys), *(column.name for column in _columns))
_REVOKE: Final = compiled(
    update(api_keys)
    .where(api_keys.c.name == bindparam("named"), api_keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("revoked_at"))
    .returning(api_keys.c.key_id),
    "named",
    "revoked_at",
)


def _key(
    key_id: str,
    name: str,
    secret_hash: bytes,
    permissions: Sequence[str],
    created_at: datetime,
    revoked_at: datetime | None,
) -> Key:
    # A permission that this version does not know yet is not a permission here.
    known = frozenset(Permission(word) for word in permissions if word in Permission.__members__)
    return Key(key_id, name, secret_hash, known, created_at, revoked_at)
