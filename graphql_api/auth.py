"""Who calls, and what they may do.

The policy says what needs no credential; a credential adds to that, and never takes away. A credential that is wrong
is an error even where none is needed: whoever sends one believes that it works.
"""

import time
from dataclasses import dataclass, replace
from typing import Final

from graphql_api.errors import Expired, Forbidden, Unauthenticated
from graphql_api.settings import Access
from graphql_api.tokens import TOKEN_CHARACTERS_MAX, Tokens
from graphql_api.vigil import Vigil
from storage import TASK_TOKEN_PREFIX, HasExpired, Keys, NotTrusted, Permission, TaskTokens, TokenScope

# How long an open stream believes in what can be revoked; with what keys are believed it is less than ten seconds.
STREAMS_BELIEVE_S: Final = 4.0
# And in a bearer token, which can only expire, or lose the published key that verifies it.
STREAMS_BELIEVE_TOKENS_S: Final = 60.0
# A token, the word before it, and whatever else is not looked at.
AUTHORIZATION_CHARACTERS_MAX: Final = 2 * TOKEN_CHARACTERS_MAX
_ANYONE: Final = {
    Access.OPEN: frozenset({Permission.READ, Permission.REPORT}),
    Access.KEYED: frozenset({Permission.READ}),
    Access.CLOSED: frozenset[Permission](),
}
_SCOPES: Final = {
    TokenScope.READ: frozenset({Permission.READ}),
    TokenScope.REPORT: frozenset({Permission.READ, Permission.REPORT}),
}


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whoever sent an operation."""

    # The API key's name or the token's `sub`, and what a task token says of itself; None for somebody without a
    # credential.
    name: str | None
    authenticated: bool
    # On every task, and beside tasks.
    permissions: frozenset[Permission]
    # The one task that a task token is for, and what may be done with it.
    task_id: str | None = None
    on_task: frozenset[Permission] = frozenset()
    # The public half of the API key.
    key_id: str | None = None
    # What the credential gives, without what everybody may.
    own: frozenset[Permission] = frozenset()

    def require(self, permission: Permission, task_id: str | None = None) -> None:
        """Refuse what the viewer may not do; name the task, where it is about one."""
        if permission in self.permissions:
            return
        if self.task_id is not None:
            if permission in self.on_task:
                if task_id == self.task_id:
                    return
                raise Forbidden(f'This token is for the task "{self.task_id}" alone.')
            raise Forbidden(
                f'This token is for the task "{self.task_id}" and may do no more than {" and ".join(self.may)}: '
                f"this needs the permission {permission}."
            )
        if self.authenticated:
            raise Forbidden(f"{self.name or 'This token'} may not do this: it needs the permission {permission}.")
        raise Unauthenticated(
            f"This needs a credential with the permission {permission}: "
            'an API key or a token, as "Authorization: Bearer …".'
        )

    def require_own(self, permission: Permission) -> None:
        """Refuse what the viewer's own credential does not give, on all tasks, whatever everybody may."""
        if permission not in self.own:
            replace(self, permissions=frozenset()).require(permission)

    @property
    def may(self) -> list[Permission]:
        """What the viewer may do; with a task token, on its task."""
        allowed = self.permissions | self.on_task
        return [permission for permission in Permission if permission in allowed]

    @property
    def credential(self) -> str | None:
        """Of which kind the credential was; None for none. Two of different kinds may have the same name."""
        if not self.authenticated:
            return None
        if self.key_id is not None:
            return "API key"
        return "bearer token" if self.task_id is None else "task token"

    def covers(self, other: "Viewer") -> bool:
        """Whether this viewer may do all that the other may."""
        if not other.permissions <= self.permissions:
            return False
        on_task = self.permissions | self.on_task if other.task_id == self.task_id else self.permissions
        return other.on_task <= on_task


def credential_of(authorization: str) -> str:
    """The credential in an `Authorization` value, whichever way that is written."""
    return authorization.strip().partition(" ")[2].strip()


class Doorkeeper:
    """Turns a credential into a viewer, and watches over the credentials of open streams."""

    def __init__(self, access: Access, keys: Keys, task_tokens: TaskTokens, tokens: Tokens) -> None:
        self._keys = keys
        self._task_tokens = task_tokens
        self._tokens = tokens
        self._anyone = _ANYONE[access]
        self._anonymous = Viewer(None, authenticated=False, permissions=self._anyone)
        self.vigil = Vigil(self._look_again)

    async def viewer(self, authorization: str | None) -> Viewer:
        """Whoever an `Authorization` value stands for; Unauthenticated when it stands for nobody."""
        if authorization is None:
            return self._anonymous
        viewer, _ = await self._look(authorization)
        return viewer

    async def _look_again(self, authorization: str) -> float:
        """For how many seconds an open stream may believe in its credential; Unauthenticated when not any more."""
        viewer, good_until = await self._look(authorization)
        # What was made with a key, or signed by one of ours, can be revoked.
        revocable = viewer.key_id is not None or viewer.task_id is not None
        believed_s = STREAMS_BELIEVE_S if revocable else STREAMS_BELIEVE_TOKENS_S
        return believed_s if good_until is None else min(believed_s, good_until - time.time())

    async def _look(self, authorization: str) -> tuple[Viewer, float | None]:
        """Whoever a value stands for, and when that ends by itself, in seconds since 1970."""
        if len(authorization) > AUTHORIZATION_CHARACTERS_MAX:
            raise Unauthenticated(f"The Authorization must have at most {AUTHORIZATION_CHARACTERS_MAX} characters.")
        scheme, _, _ = authorization.strip().partition(" ")
        credential = credential_of(authorization)
        if scheme.lower() != "bearer" or not credential:
            raise Unauthenticated('The Authorization must be "Bearer" and an API key or a token.')
        if credential.startswith("spn_"):
            return await self._holder_of_key(credential), None
        if credential.startswith(TASK_TOKEN_PREFIX):
            return await self._holder_of_task_token(credential)
        claims = await self._tokens.verify(credential)
        known = {Permission(word) for word in claims.permissions if word in Permission.__members__}
        own = _all_of(frozenset(known))
        viewer = Viewer(claims.subject, authenticated=True, permissions=own | self._anyone, own=own)
        return viewer, claims.good_until

    async def _holder_of_key(self, credential: str) -> Viewer:
        key = await self._keys.find(credential)
        if key is None:
            raise Unauthenticated("The API key is unknown or was revoked.")
        own = _all_of(key.permissions)
        return Viewer(key.name, authenticated=True, permissions=own | self._anyone, key_id=key.key_id, own=own)

    async def _holder_of_task_token(self, credential: str) -> tuple[Viewer, float]:
        try:
            token = await self._task_tokens.verify(credential)
        except HasExpired as error:
            raise Expired(str(error)) from None
        except NotTrusted as error:
            raise Unauthenticated(str(error)) from None
        viewer = Viewer(
            # So that the log of a task tells a token from the key that made it.
            "task-token" if token.made_by is None else f"task-token:{token.made_by}",
            authenticated=True,
            permissions=self._anyone,
            task_id=token.task_id,
            on_task=_SCOPES[token.scope],
        )
        return viewer, token.good_until


def _all_of(permissions: frozenset[Permission]) -> frozenset[Permission]:
    return frozenset(Permission) if Permission.ADMIN in permissions else permissions
