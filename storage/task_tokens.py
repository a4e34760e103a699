"""Task tokens: each opens one task, for reading or for reporting, and for a while.

A token reads ``spt_<key>.<claims>.<signature>``: the ID of the key that signed it, what it says as base64url, and an
HMAC-SHA256 over all that stands before. There is one way to sign and one to write it, so that a token has nothing to
choose: no algorithm, no issuer, no place to fetch a key from. Nothing of it is read before its signature is found good.
"""

import base64
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import orjson

from storage.errors import BadInput
from storage.keys import Keys
from storage.limits import TASK_ID_CHARACTERS_MAX, check_name
from storage.signing_keys import TOKEN_LIFETIME_MAX_S, SigningKeys

TASK_TOKEN_PREFIX: Final = "spt_"  # noqa: S105 - what is public of it
# More than the longest that is made: an ID and a name of 255 characters each, all of them escaped.
TOKEN_CHARACTERS_MAX: Final = 8_192
# Clocks of servers may differ by so much.
LEEWAY_S: Final = 5
_TOKEN: Final = re.compile(r"(spt_([0-9a-f]{16})\.([0-9A-Za-z_-]+))\.([0-9A-Za-z_-]{43})")


class TokenScope(StrEnum):
    """What a task token opens its task for."""

    READ = "READ"
    # Reading, too.
    REPORT = "REPORT"


class NotTrusted(Exception):
    """A text is no task token, or not one that is good now; the message says why."""


class HasExpired(NotTrusted):
    """A text is a task token that was good."""


@dataclass(frozen=True, slots=True)
class TaskToken:
    """What a task token says."""

    task_id: str
    scope: TokenScope
    # In seconds since 1970.
    issued_at: int
    expires_at: int
    # Who made it; None for somebody without a name.
    made_by: str | None
    # The API key with which it was made: when that is revoked, so is the token. None for other credentials.
    made_with: str | None

    @property
    def good_until(self) -> float:
        """Until when it is taken, in seconds since 1970."""
        return self.expires_at + LEEWAY_S


class TaskTokens:
    """Signs and verifies task tokens."""

    def __init__(self, signing_keys: SigningKeys, keys: Keys, clock: Callable[[], float] = time.time) -> None:
        self._signing_keys = signing_keys
        self._keys = keys
        self._clock = clock

    async def sign(
        self,
        task_id: str,
        scope: TokenScope,
        expires_in_s: int,
        *,
        made_by: str | None = None,
        made_with: str | None = None,
    ) -> tuple[str, datetime]:
        """Make a token, and say when it expires. Whether there is such a task is not asked: it may come later."""
        check_name("taskId", task_id, TASK_ID_CHARACTERS_MAX)
        if not 1 <= expires_in_s <= TOKEN_LIFETIME_MAX_S:
            raise BadInput(f"expiresInSeconds must be 1 to {TOKEN_LIFETIME_MAX_S}, got {expires_in_s}.")
        key = await self._signing_keys.signing()
        issued_at = int(self._clock())
        expires_at = issued_at + expires_in_s
        claims = orjson.dumps([task_id, scope, issued_at, expires_at, made_by, made_with])
        signed = f"{TASK_TOKEN_PREFIX}{key.key_id}.{_base64url(claims)}"
        return f"{signed}.{_signature(key.secret, signed)}", datetime.fromtimestamp(expires_at, UTC)

    async def verify(self, text: str) -> TaskToken:
        """What a good token says; NotTrusted says why it is none."""
        match = _TOKEN.fullmatch(text) if len(text) <= TOKEN_CHARACTERS_MAX else None
        if match is None:
            raise NotTrusted("The task token is not whole.")
        signed, key_id, claims, signature = match.groups()
        key = await self._signing_keys.find(key_id)
        if key is None:
            raise NotTrusted("The key that signed the task token is unknown, or was revoked.")
        # Compared as text: bits that base64 leaves unused cannot be changed either.
        if not hmac.compare_digest(_signature(key.secret, signed), signature):
            raise NotTrusted("The task token was changed, or is not signed by the key that it names.")
        task_id, scope, *rest = orjson.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        token = TaskToken(task_id, TokenScope(scope), *rest)
        now = self._clock()
        if token.good_until <= now:
            raise HasExpired("The task token has expired.")
        if token.issued_at - LEEWAY_S > now:
            raise NotTrusted("The task token is not valid yet.")
        if token.made_with is not None and not await self._keys.stands(token.made_with):
            raise NotTrusted("The API key with which the task token was made was revoked.")
        return token


def _signature(secret: bytes, signed: str) -> str:
    return _base64url(hmac.digest(secret, signed.encode(), "sha256"))


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
