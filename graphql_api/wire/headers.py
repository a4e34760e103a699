"""Headers as endpoints read them."""

from collections.abc import Iterable

Headers = dict[str, str]
"""Headers by their names in lower case; of those that come several times, the values joined by commas."""


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers that a connection brought; their names are in lower case already."""
    headers: Headers = {}
    for name, value in pairs:
        key, text = name.decode("latin-1"), value.decode("latin-1").strip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers
