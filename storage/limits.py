"""What a value may be: the named bounds, and the checks that refuse what is beyond them.

Everything that a client sends and Postgres keeps passes through here, so that no bad value is first noticed by the
database.
"""

import math
from typing import Any, Final

import orjson

from storage.errors import BadInput, TooLarge
from storage.task import Json

TASK_ID_CHARACTERS_MAX: Final = 255
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 255
# The name of an API key, or the subject of a token, which another system may have chosen.
CREATED_BY_CHARACTERS_MAX: Final = 255
# Such a name, and before it what a task token says of itself.
ACTOR_CHARACTERS_MAX: Final = 300
MESSAGE_BYTES_MAX: Final = 64 * 1024
METADATA_BYTES_MAX: Final = 256 * 1024
# Deeper values are mistakes; parsers of clients give up at a few hundred levels.
METADATA_DEPTH_MAX: Final = 64
# Each is looked at, one after the other, while everybody else waits.
METADATA_VALUES_MAX: Final = 20_000
PROGRESS_MAX: Final = 100
WORKER_CHARACTERS_MAX: Final = 255
LEASE_TOKEN_CHARACTERS_MAX: Final = 255
LEASE_MAX_S: Final = 24 * 3600
# Tasks that one claim may take.
CLAIM_TASKS_MAX: Final = 100
# Tasks that are created together, all or none.
CREATE_MANY_TASKS_MAX: Final = 1_000
CREATE_MANY_BYTES_MAX: Final = 8 * 1024 * 1024
# Reports that are made together, each by itself.
REPORTS_MAX: Final = 1_000
# Events that one answer may hold.
HISTORY_PAGE_MAX: Final = 1_000
HISTORY_PAGE_DEFAULT: Final = 50
TASKS_PAGE_MAX: Final = 1_000
TASKS_PAGE_DEFAULT: Final = 50
# Numbers of events are GraphQL Ints.
SEQ_MAX: Final = 2**31 - 1


def check_text(name: str, value: str) -> bytes:
    """Refuse text that Postgres cannot hold; return it as UTF-8."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{name} must be valid Unicode, got a lone surrogate at character {error.start}.") from None
    if b"\0" in encoded:
        raise BadInput(f"{name} must not hold NUL characters, got one at character {value.index(chr(0))}.")
    return encoded


def check_name(name: str, value: str, characters_max: int) -> None:
    """Refuse an identifier that is empty, too long or not text."""
    if not 0 < len(value) <= characters_max:
        raise BadInput(f"{name} must have 1 to {characters_max} characters, got {len(value)}.")
    # Nearly every one is, and there is nothing to say about it.
    if not (value.isascii() and "\0" not in value):
        check_text(name, value)


def check_message(name: str, value: str) -> None:
    """Refuse a message over its bound."""
    size = len(check_text(name, value))
    if size > MESSAGE_BYTES_MAX:
        raise TooLarge(f"{name} must have at most {MESSAGE_BYTES_MAX} bytes, got {size}.")


def check_progress(value: int) -> None:
    """Refuse progress outside 0 to 100."""
    if not 0 <= value <= PROGRESS_MAX:
        raise BadInput(f"progress must be 0 to {PROGRESS_MAX}, got {value}.")


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Refuse a number outside its bounds."""
    if not least <= value <= most:
        raise BadInput(f"{name} must be {least} to {most}, got {value}.")


def metadata_json(value: Any) -> Json | None:
    """The JSON text of metadata, or None for none. Refuse what is too large or would come back changed."""
    if value is None:
        return None
    _check_json(value)
    text = orjson.dumps(value)
    if len(text) > METADATA_BYTES_MAX:
        raise TooLarge(f"metadata must have at most {METADATA_BYTES_MAX} bytes as JSON, got {len(text)}.")
    return Json(text.decode())


def _check_json(root: Any) -> None:
    # A stack of our own: the depth is the caller's, and Python's recursion is no bound to rely on.
    pending: list[tuple[Any, int]] = [(root, 1)]
    # Counted before they are looked at: a value that stands in a list hundreds of times is as large as it reads.
    values = 1
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            check_text("metadata", value)
        elif value is None or isinstance(value, bool):
            pass
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise BadInput("metadata must hold integers of at most 64 bits; send larger ones as strings.")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise BadInput(f"metadata must hold finite numbers, got {value}.")
        elif isinstance(value, dict | list):
            if depth > METADATA_DEPTH_MAX:
                raise BadInput(f"metadata must be nested at most {METADATA_DEPTH_MAX} levels deep.")
            if isinstance(value, dict):
                for key in value:
                    check_text("metadata", key)
            values += len(value)
            if values > METADATA_VALUES_MAX:
                raise TooLarge(f"metadata must hold at most {METADATA_VALUES_MAX} values.")
            children = value.values() if isinstance(value, dict) else value
            pending.extend((child, depth + 1) for child in children)
        else:
            raise BadInput(f"metadata must be JSON, got a {type(value).__name__}.")
