"""Which document a request means: the one that it brings, or one that the server was given beforehand.

With `SPECTRAL_OPERATIONS` nothing but the documents of a file is run. A request names one by its ID in the file
(`documentId`), by the SHA-256 of its text (`extensions.persistedQuery.sha256Hash`, as Apollo Client sends it, or
`documentId` with or without `sha256:`), or sends its text, character by character as it stands there.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from graphql_api.errors import OperationNotAllowed
from graphql_api.execution.json import decode
from storage import BadInput, StartupError

_SHA256: Final = re.compile("[0-9a-f]{64}")


class Operations:
    """The only documents that are run."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        """By their IDs; each is also known by its hash."""
        self._by_name = {**documents, **{_hash(text): text for text in documents.values()}}
        self._texts = frozenset(documents.values())

    def find(self, request: Mapping[str, Any]) -> str:
        """The document that a request means; OperationNotAllowed when it is none of these."""
        name = _named(request)
        text = request.get("query") or (None if name is None else self._by_name.get(name))
        if text in self._texts:
            return str(text)
        raise OperationNotAllowed(
            "This server runs the operations that it was given beforehand, and this is none of them."
        )


def read_operations(path: Path) -> Operations:
    """The documents of a file; StartupError says what is wrong with it."""
    try:
        found = decode(path.read_bytes())
    except OSError as error:
        raise StartupError(f"SPECTRAL_OPERATIONS cannot be read: {error.strerror}: {path}.") from None
    except BadInput as error:
        raise StartupError(f"SPECTRAL_OPERATIONS is wrong: {path}: {error}") from None
    if not isinstance(found, dict | list):
        raise StartupError(f"SPECTRAL_OPERATIONS is wrong: {path} must hold a list or an object of documents.")
    if not all(isinstance(text, str) for text in (found.values() if isinstance(found, dict) else found)):
        raise StartupError(f"SPECTRAL_OPERATIONS is wrong: a document in {path} is no string.")
    documents = found if isinstance(found, dict) else {_hash(text): text for text in found}
    for name, text in documents.items():
        if _SHA256.fullmatch(name) and name != _hash(text):
            raise StartupError(f"SPECTRAL_OPERATIONS is wrong: {name} in {path} is not the SHA-256 of its document.")
    return Operations(documents)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _named(request: Mapping[str, Any]) -> str | None:
    """The name of a document in a request that brings none."""
    extensions = request.get("extensions")
    persisted = extensions.get("persistedQuery") if isinstance(extensions, dict) else None
    name = request.get("documentId") or (persisted.get("sha256Hash") if isinstance(persisted, dict) else None)
    return name.removeprefix("sha256:") if isinstance(name, str) else None
