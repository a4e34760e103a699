"""The keys that sign task tokens: made when there are none, replaced in time, known to every process.

One of them signs. The others were it before: what they signed is good until it expires, so replacing a key logs nobody
out. A key that is revoked takes everything that it signed along.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final

from sqlalchemy import bindparam, delete, insert, select, update

from storage.errors import BadInput
from storage.pool import Pool, compiled, translated
from storage.tables import signing_keys

# The longest that a token may be good for.
TOKEN_LIFETIME_MAX_S: Final = 30 * 24 * 3600
# A key that signs no more verifies for so long: what it signed last, in a process that had not heard, has expired then.
RETIRED_KEPT: Final = timedelta(seconds=TOKEN_LIFETIME_MAX_S, hours=1)
# What a process has read of the keys it believes for so long; so a key that was revoked opens nothing after that.
BELIEVED_S: Final = 5.0
# A token that names an unknown key has the keys read again, but not more often than this.
READ_AGAIN_S: Final = 1.0
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs task tokens, or did so before."""

    key_id: str
    secret: bytes
    created_at: datetime
    # Since when it signs no more; None for the one that does, and for those of the settings.
    retired_at: datetime | None


class SigningKeys:
    """Finds, makes, replaces and revokes signing keys.

    Secrets that the settings name come before the keys of the database: the first signs, all verify. What keys of the
    database signed before stays good.
    """

    def __init__(
        self, pool: Pool, configured: Sequence[str | None] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._configured = [None if secret is None else _configured(secret) for secret in configured]
        # Newest first, as they were read last; and when that was.
        self._keys: list[SigningKey] = []
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        # The first key is made once, however many want to sign.
        self._making = asyncio.Lock()

    async def signing(self) -> SigningKey:
        """The key that signs; it is made when there is none."""
        if self._configured and self._configured[0] is not None:
            return self._configured[0]
        await self._believe(BELIEVED_S)
        key = self._signing_one()
        if key is None:
            async with self._making:
                # Made meanwhile by another who asked.
                if self._signing_one() is None:
                    # Two processes may do so at once: then both keys verify, and the newer one signs.
                    await self.rotate()
                key = self._signing_one()
            assert key is not None
        return key

    async def find(self, key_id: str) -> SigningKey | None:
        """The key with this ID; None when it is unknown, was revoked, or retired too long ago."""
        for configured in self._configured:
            if configured is not None and configured.key_id == key_id:
                return configured
        await self._believe(BELIEVED_S)
        found = self._known(key_id)
        if found is None:
            # Made a moment ago by another process, perhaps.
            await self._believe(READ_AGAIN_S)
            found = self._known(key_id)
        if found is None or (found.retired_at is not None and found.retired_at + RETIRED_KEPT < datetime.now(UTC)):
            return None
        return found

    async def list(self) -> Sequence[SigningKey]:
        """The keys of the database, newest first."""
        await self._read_anew()
        return self._keys

    async def rotate(self) -> str:
        """Make a key that signs from now on, and return its ID. What the one before signed stays good."""
        key_id, now = secrets.token_hex(8), datetime.now(UTC)
        with translated():
            await self._pool.run(_ROTATE, key_id, secrets.token_bytes(SECRET_BYTES), now, None, now - RETIRED_KEPT)
        await self._read_anew()
        return key_id

    async def revoke(self, key_id: str) -> None:
        """Forget a key: what it signed opens nothing any more, everywhere within ``BELIEVED_S`` seconds."""
        with translated():
            revoked = await self._pool.run(_REVOKE, key_id)
        await self._read_anew()
        if not revoked:
            raise BadInput(f'There is no signing key "{key_id}" in the database.')

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    def _signing_one(self) -> SigningKey | None:
        return next((key for key in self._keys if key.retired_at is None), None)

    def _known(self, key_id: str) -> SigningKey | None:
        return next((key for key in self._keys if key.key_id == key_id), None)

    async def _believe(self, for_s: float) -> None:
        """Have the keys read, unless that was begun so lately."""
        since = self._clock() - for_s
        while self._read_at < since:
            if self._reading is None:
                # In a task of its own: whoever goes away while waiting leaves the others their answer.
                self._reading = asyncio.create_task(self._read(), name="signing keys")
                self._reading.add_done_callback(lambda task: task.exception())
            await asyncio.shield(self._reading)

    async def _read_anew(self) -> None:
        self._read_at = float("-inf")
        await self._believe(0.0)

    async def _read(self) -> None:
        try:
            now = self._clock()
            self._keys = [SigningKey(*row) for row in await self._pool.read(_ALL)]
            self._read_at = now
        finally:
            self._reading = None


def _configured(secret: str) -> SigningKey:
    """The key that a secret of the settings is. Derived, so that the same text elsewhere is another key."""

    def derived(use: bytes, size: int) -> bytes:
        return blake2b(secret.encode(), digest_size=size, person=use).digest()

    return SigningKey(derived(b"spt id", 8).hex(), derived(b"spt secret", SECRET_BYTES), datetime.now(UTC), None)


_columns = (
    signing_keys.c.key_id,
    signing_keys.c.secret,
    signing_keys.c.created_at,
    signing_keys.c.retired_at,
)
_names = [column.name for column in _columns]
_ALL: Final = compiled(select(*_columns).order_by(signing_keys.c.created_at.desc(), signing_keys.c.key_id))
# One statement, so that there is no moment without a key that signs.
_ROTATE: Final = compiled(
    insert(signing_keys)
    .values({name: bindparam(name) for name in _names})
    .add_cte(
        update(signing_keys)
        .where(signing_keys.c.retired_at.is_(None))
        .values(retired_at=bindparam("created_at"))
        .cte("retired"),
        delete(signing_keys).where(signing_keys.c.retired_at < bindparam("kept_since")).cte("gone"),
    ),
    *_names,
    "kept_since",
)
_REVOKE: Final = compiled(
    delete(signing_keys).where(signing_keys.c.key_id == bindparam("key_id")).returning(signing_keys.c.key_id), "key_id"
)
