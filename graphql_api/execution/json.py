"""JSON from the wire, strictly: what clients may mean differently than we read it is found out, not guessed.

The fast decoder turns integers beyond 64 bits into floats and refuses lone surrogates as if the text were broken.
Where that could matter the exact decoder reads the text, and the values' own checks say what is wrong with them.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import orjson

from storage import BadInput

# What the fast decoder takes; for the exact one it depends on the version of Python.
LEVELS_MAX: Final = 1_024
# An integer that may not fit into 64 bits.
_LONG_INTEGER: Final = re.compile(rb"\d{19}")


def decode(text: bytes) -> Any:
    """The value that a JSON text is; BadInput when it is none."""
    try:
        if _LONG_INTEGER.search(text) is None:
            return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError:
        raise BadInput("JSON must be UTF-8.") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"This is not JSON: {error}.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        # An integer of thousands of digits.
        raise BadInput("JSON must not hold integers so large.") from None
    if _levels_exceed(value, LEVELS_MAX):
        raise _too_deep()
    return value


def encode(value: Any) -> bytes:
    """The JSON text of a value. What clients sent was checked before, so it has no lone surrogates.

    An instant is in UTC, and is written as `2026-11-20T09:30:00.123456Z`.
    """
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)


def _too_deep() -> BadInput:
    return BadInput(f"JSON must be nested at most {LEVELS_MAX} levels deep.")


def _levels_exceed(value: Any, levels_max: int) -> bool:
    level = [value]
    for _ in range(levels_max):
        level = [inner for one in level for inner in _items(one)]
    return any(isinstance(one, dict | list) for one in level)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
