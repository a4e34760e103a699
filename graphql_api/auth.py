"""Who calls, and what they may do.

The policy says what needs no credential; a credential adds to that, and never takes away. A credential that is wrong
is an error even where none is needed: whoever sends one believes that it works.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import strawberry

from graphql_api.errors import Forbidden, Unauthenticated
from graphql_api.settings import Access
from graphql_api.tokens import Tokens
from storage import Keys, Permission, Storage

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


@dataclass(frozen=True, slots=True)
class Context:
    """What a resolver is given beside its arguments."""

    storage: Storage
    viewer: Viewer


Info: TypeAlias = strawberry.Info[Context, None]


class Doorkeeper:
    """Turns a credential into a viewer."""

    def __init__(self, access: Access, keys: Keys, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens
        self._anyone = _ANYONE[access]
        self._anonymous = Viewer(None, authenticated=False, permissions=self._anyone)

    async def viewer(self, authorization: str | None) -> Viewer:
        """Whoever an `Authorization` value stands for; Unauthenticated when it stands for nobody."""
        if authorization is None:
            return self._anonymous
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

    def _with(self, permissions: frozenset[Permission]) -> frozenset[Permission]:
        if Permission.ADMIN in permissions:
            return frozenset(Permission)
        return permissions | self._anyone
