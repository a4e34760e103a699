"""Automatic persisted queries: a document is sent once, and from then on its SHA-256 instead.

The protocol is Apollo's. A request has `extensions.persistedQuery` with `version: 1` and `sha256Hash`. When it has no
document, and the hash is unknown, it is refused with words that clients know; they send it again with the document,
which is kept under its hash once it has a plan, and as long as that plan is kept. Another process does not know it, nor
does this one after a restart: then it is sent once more.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from graphql_api.errors import PersistedQueryNotFound
from graphql_api.execution.documents import check_size
from storage import BadInput

VERSION: Final = 1
_SHA256: Final = re.compile("[0-9a-f]{64}")


def find(query: str | None, extensions: Mapping[str, Any], known: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The document that a request means, and the hash under which to keep it; no hash, when there is nothing to keep.

    PersistedQueryNotFound, when only its hash was sent and is unknown; BadInput, when the hash is another document's.
    """
    persisted = extensions.get("persistedQuery")
    if persisted is None:
        return query, None
    name = _name(persisted)
    text = known.get(name)
    if not query:
        if text is None:
            raise PersistedQueryNotFound
        return text, None
    if text == query:
        return query, None
    check_size(query)
    if sha256(query.encode(errors="surrogatepass")).hexdigest() != name:
        raise BadInput("provided sha does not match query")
    return query, name


def _name(persisted: Any) -> str:
    if isinstance(persisted, dict) and persisted.get("version") == VERSION:
        name = persisted.get("sha256Hash")
        if isinstance(name, str) and _SHA256.fullmatch(name):
            return name
    raise BadInput(
        f"extensions.persistedQuery must have version {VERSION} and a sha256Hash of 64 lower-case hexadecimal digits."
    )
