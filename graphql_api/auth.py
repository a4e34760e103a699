"""Who calls, and what they may do.

The policy says what needs no credential; a credential adds to that, and never takes away. A credential that is wrong
is an error even where none is needed: whoever sends one believes that it works.
"""

import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final, TypeVar

from graphql_api.errors import Forbidden, Unauthenticated
from graphql_api.settings import Access
from graphql_api.tokens import TOKEN_CHARACTERS_MAX, Tokens
from storage import Keys, Permission, Unavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

# How long an open stream believes in its credential; with what the keys believe it is less than ten seconds.
STREAMS_BELIEVE_S: Final = 4.0
# Credentials of open streams that are remembered; one that is forgotten is looked at again.
BELIEVED_CREDENTIALS_MAX: Final = 2_000
# A token, the word before it, and whatever else is not looked at.
AUTHORIZATION_CHARACTERS_MAX: Final = 2 * TOKEN_CHARACTERS_MAX
_ANYONE: Final = {
    Access.OPEN: frozenset({Permission.READ, Permission.REPORT}),
    Access.KEYED: frozenset({Permission.READ}),
    Access.CLOSED: frozenset[Permission](),
}


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whoever sent an operation."""

    # The API key's name or the token's `sub`; None for somebody without a credential.
    name: str | None
    authenticated: bool
    permissions: frozenset[Permission]

    def require(self, permission: Permission) -> None:
        """Refuse what the viewer may not do."""
        if permission in self.permissions:
            return
        if self.authenticated:
            raise Forbidden(f"{self.name or 'This token'} may not do this: it needs the permission {permission}.")
        raise Unauthenticated(
            f"This needs a credential with the permission {permission}: "
            'an API key or a token, as "Authorization: Bearer …".'
        )


class Doorkeeper:
    """Turns a credential into a viewer."""

    def __init__(self, access: Access, keys: Keys, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens
        self._anyone = _ANYONE[access]
        self._anonymous = Viewer(None, authenticated=False, permissions=self._anyone)
        # Until when open streams believe in a credential; oldest first. Streams of one credential share it.
        self._believed: dict[str, float] = {}

    async def viewer(self, authorization: str | None) -> Viewer:
        """Whoever an `Authorization` value stands for; Unauthenticated when it stands for nobody."""
        if authorization is None:
            return self._anonymous
        if len(authorization) > AUTHORIZATION_CHARACTERS_MAX:
            raise Unauthenticated(f"The Authorization must have at most {AUTHORIZATION_CHARACTERS_MAX} characters.")
        scheme, _, credential = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not credential.strip():
            raise Unauthenticated('The Authorization must be "Bearer" and an API key or a token.')
        credential = credential.strip()
        if credential.startswith("spn_"):
            key = await self._keys.find(credential)
            if key is None:
                raise Unauthenticated("The API key is unknown or was revoked.")
            return Viewer(key.name, authenticated=True, permissions=self._with(key.permissions))
        claims = await self._tokens.verify(credential)
        known = {Permission(word) for word in claims.permissions if word in Permission.__members__}
        return Viewer(claims.subject, authenticated=True, permissions=self._with(frozenset(known)))

    def believes(self, authorization: str | None) -> bool:
        """Whether a credential was looked at so lately that an open stream need not wait for another look."""
        return authorization is None or time.monotonic() < self._believed.get(authorization, 0.0)

    async def check_again(self, authorization: str | None) -> None:
        """Look at the credential of an open stream; Unauthenticated when it is good no more."""
        if self.believes(authorization):
            return
        assert authorization is not None
        try:
            await self.viewer(authorization)
        except Unavailable:
            # Nobody can say at the moment; what was good so far stays so.
            log.warning("The credential of an open stream could not be checked.")
        self._believed.pop(authorization, None)
        while len(self._believed) >= BELIEVED_CREDENTIALS_MAX:
            del self._believed[next(iter(self._believed))]
        self._believed[authorization] = time.monotonic() + STREAMS_BELIEVE_S

    async def guard(self, authorization: str | None, answers: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The answers for as long as the credential is good; Unauthenticated before the first that would come later."""
        async for answer in answers:
            await self.check_again(authorization)
            yield answer

    def _with(self, permissions: frozenset[Permission]) -> frozenset[Permission]:
        if Permission.ADMIN in permissions:
            return frozenset(Permission)
        return permissions | self._anyone
