"""Input made up at random: valid requests with something wrong in them, and what no client would send."""

import json
import re
from random import Random
from typing import Any, Final

from graphql import GraphQLSchema, OperationType
from hypothesis import strategies as st

from graphql_api.schema import schema
from tests.graphql_api.generated import Documents, Generated

SCHEMA: Final[GraphQLSchema] = schema._schema
_TOKENS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\.\.\.|[A-Za-z_0-9.]+|\S')
# What a document may meet between two of its tokens.
_NASTY: Final = (
    *(
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "...",
        ":",
        "!",
        "$",
        "@",
        "#",
        "\0",
        "\ufeff",
        "\u2028",
        "é",
        '"',
        '"""',
        "\\",
        ",",
    ),
    *(
        "__schema { types { name } }",
        "__typename",
        "@skip(if: true)",
        "@include(if: $flag0)",
        "@unknown",
        "$v0",
        "$none",
    ),
    *("...F0", "fragment F0 on Task { ...F0 }", "fragment A on Task { ...B } fragment B on Task { ...A }"),
    *(
        "query",
        "mutation",
        "subscription",
        "on",
        "null",
        "9" * 400,
        "-0",
        "1e999",
        '"\\ud800"',
        '"\\u0000"',
        "a" * 5_000,
    ),
    *("task", "nope", "taskId", "history(first: -1)", "history(first: 2147483648)", "tasks(first: 1000000)"),
)
_BAD_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, -1, 2**31, 2**63, 2**70, 1e308, -0.0, "", "\0", "\ud800", "x" * 300, [], {}, [[[]]], {"a": None}),
    *("99999999-99-99", "id-1", 0, 101, "LOG", {"eventType": "LOG", "message": "\0"}, {"": ""}),
)

json_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(_BAD_VALUES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def text_of(value: Any) -> str:
    """A value as JSON, with whatever JSON does not have."""
    return json.dumps(value, ensure_ascii=bool(len(repr(value)) % 2))


def document(random: Random) -> Generated:
    """A document over our schema, and its variables; three of four have something wrong in them."""
    kind = random.choice([OperationType.QUERY, OperationType.MUTATION, OperationType.SUBSCRIPTION])
    made = Documents(SCHEMA, random, bad=0.1).operation(kind)
    tokens = _TOKENS.findall(made.text)
    for _ in range(random.choice([0, 1, 1, 2, 5])):
        place = random.randrange(len(tokens) + 1)
        match random.randrange(5):
            case 0:
                del tokens[place : place + random.choice([1, 1, 3, 50])]
            case 1:
                tokens[place:place] = tokens[place : place + random.randrange(1, 20)] * random.choice([1, 1, 3, 300])
            case 2:
                tokens.insert(place, random.choice(_NASTY))
            case 3:
                tokens[place : place + 1] = [random.choice(_NASTY)]
            case _:
                random.shuffle(tokens[place : place + 6])
    for name in list(made.variables):
        if random.random() < 0.1:
            made.variables[name] = random.choice(_BAD_VALUES)
    return Generated(" ".join(tokens), made.variables)


def scratched(body: bytes, random: Random) -> bytes:
    """The bytes with some of them lost, doubled, changed or new."""
    scratched = bytearray(body)
    for _ in range(random.choice([1, 1, 2, 8])):
        place = random.randrange(len(scratched) + 1)
        match random.randrange(4):
            case 0:
                del scratched[place : place + random.choice([1, 5, 1_000])]
            case 1:
                scratched[place:place] = scratched[place : place + 40] * random.choice([1, 2, 100])
            case 2:
                scratched[place : place + 1] = random.randbytes(1)
            case _:
                scratched[place:place] = random.choice(
                    [b"\0", b"\xff", b"[" * 2_000, b'{"a":' * 500, b"1" * 5_000, b"NaN"]
                )
    return bytes(scratched)
