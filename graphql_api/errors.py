"""How a failure looks to a client. This is the only place that knows both the refusals of the storage and GraphQL.

A refusal is shown with its code and its facts. Anything else is a fault of ours: the client gets an ID and no detail,
the log gets the ID and the traceback.
"""

import logging
import math
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from graphql import GraphQLError, GraphQLSyntaxError

from storage import BadInput, Refusal

log = logging.getLogger(__name__)

# How often clients were told each code.
told: Final[Counter[str]] = Counter()
# Of a fault of ours.
INTERNAL: Final = "INTERNAL_SERVER_ERROR"
# What graphql-core puts behind an error about a name; it names others, which the client may not know.
_SUGGESTION: Final = re.compile(r" Did you mean .*\Z", re.DOTALL)


class Unauthenticated(Refusal):
    """A credential is needed and none was given, or the one given is wrong or expired."""

    code = "UNAUTHENTICATED"


class Expired(Unauthenticated):
    """The credential was good, and its time is over."""


class Forbidden(Refusal):
    """The credential is good and does not allow this."""

    code = "FORBIDDEN"


class RateLimited(Refusal):
    """Too much was asked for in too short a time. Nothing was done; ask again after `retryAfterMs`."""

    code = "RATE_LIMITED"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def extensions(self) -> dict[str, Any]:
        """When to try again."""
        return {"retryAfterMs": math.ceil(1000 * self.retry_after_s), "retryable": True}


class OperationNotAllowed(Refusal):
    """The server runs the operations that it was given beforehand, and this is none of them."""

    code = "OPERATION_NOT_ALLOWED"


class PersistedQueryNotFound(Refusal):
    """Only the hash of a document was sent, and this process does not know it: send both, once."""

    code = "PERSISTED_QUERY_NOT_FOUND"

    def __init__(self) -> None:
        # Clients know it by these words.
        super().__init__("PersistedQueryNotFound")


class ParseFailed(Refusal):
    """The document is not GraphQL, or beyond the limits of what is parsed."""

    code = "GRAPHQL_PARSE_FAILED"


class ValidationFailed(Refusal):
    """The document does not fit the schema, or exceeds a limit on documents."""

    code = "GRAPHQL_VALIDATION_FAILED"


def present(error: GraphQLError, own_code: str = BadInput.code, *, suggestions: bool = True) -> dict[str, Any]:
    """A GraphQL error as the client sees it, with or without what a misspelled name may have meant; `own_code` is for
    GraphQL's own words, where nothing of ours failed.
    """
    message = error.message if suggestions else _SUGGESTION.sub("", error.message)
    shown: dict[str, Any] = {"message": _sendable(message)}
    if error.locations:
        shown["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path is not None:
        shown["path"] = error.path
    original = _original(error)
    if isinstance(original, Refusal):
        shown["extensions"] = _facts(original)
    elif original is None:
        shown["extensions"] = {"code": code_of(error, own_code)}
    else:
        shown.update(_mask(original, error.path))
    told[shown["extensions"]["code"]] += 1
    return shown


def code_of(error: GraphQLError, own_code: str = BadInput.code) -> str:
    """The code that the client is told."""
    if isinstance(error, GraphQLSyntaxError):
        return ParseFailed.code
    original = _original(error)
    if original is None:
        return own_code
    return original.code if isinstance(original, Refusal) else INTERNAL


def codes(root: type[Refusal] = Refusal) -> set[str]:
    """Every code that a client can be told."""
    known = {INTERNAL}
    for kind in root.__subclasses__():
        known |= {kind.code, *codes(kind)}
    return known


def _original(error: GraphQLError) -> Exception | None:
    original = error.original_error
    while isinstance(original, GraphQLError):
        # GraphQL's own error about a value, inside its error about the variable that holds it.
        original = original.original_error
    return original


def refusal(error: Exception) -> dict[str, Any]:
    """An error that has no place in a document, as the client sees it."""
    told[error.code if isinstance(error, Refusal) else INTERNAL] += 1
    if isinstance(error, Refusal):
        return {"message": _sendable(str(error)), "extensions": _facts(error)}
    return _mask(error, None)


def _facts(refused: Refusal) -> dict[str, Any]:
    """The code of a refusal and what a client can act on."""
    which = {} if refused.index is None else {"index": refused.index}
    return {"code": refused.code, **which, **refused.extensions}


def _sendable(message: str) -> str:
    # It may quote a lone surrogate that a client sent, which no encoder of JSON takes.
    return message.encode(errors="backslashreplace").decode()


def _mask(error: Exception, path: Sequence[str | int] | None) -> dict[str, Any]:
    error_id = secrets.token_hex(8)
    place = ".".join(map(str, path or ()))
    log.error("Internal server error %s%s", error_id, f" at {place}" if place else "", exc_info=error)
    return {
        "message": f"Internal server error ({error_id})",
        "extensions": {"code": INTERNAL, "id": error_id},
    }
