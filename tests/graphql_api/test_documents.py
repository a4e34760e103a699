"""What a document and a JSON text may cost: each bound is kept by one, and met by one that is larger by one."""

from collections.abc import Callable

import pytest

from graphql_api.execution import documents
from graphql_api.execution.json import LEVELS_MAX, decode
from graphql_api.execution.plan import Plans, RequestRefused
from graphql_api.schema import schema
from storage import BadInput


def _aliases(count: int) -> str:
    return "".join(f" a{number}: name" for number in range(count))


def levels(count: int) -> str:
    return "{ __schema { types " + "{ ofType " * (count - 3) + "{ name }" + " }" * (count - 3) + " } }"


def fields(count: int) -> str:
    # Each spread is 21: a viewer and twenty names.
    spreads, rest = divmod(count, 21)
    roots = "".join(f" a{number}: viewer {{ ...F }}" for number in range(spreads))
    more = "".join(f" b{number}: __typename" for number in range(rest))
    return "{" + roots + more + " } fragment F on Viewer {" + _aliases(20) + " }"


def directives(count: int) -> str:
    both = "".join(f" a{number}: __typename @skip(if: true) @include(if: true)" for number in range(count // 2))
    return "{" + both + " __typename @skip(if: true)" * (count % 2) + " }"


BOUNDS: dict[str, tuple[int, Callable[[int], str], str]] = {
    "tokens": (documents.TOKENS_MAX, lambda n: "{" + " __typename" * (n - 2) + " }", "tokens"),
    "characters": (
        documents.DOCUMENT_CHARACTERS_MAX,
        lambda n: "{ __typename }" + " " * (n - 14),
        "characters",
    ),
    "levels": (documents.DEPTH_MAX, levels, "levels"),
    "fields": (documents.FIELDS_MAX, fields, "fields"),
    "root fields": (
        documents.ROOT_FIELDS_MAX,
        lambda n: "{" + "".join(f" a{number}: __typename" for number in range(n)) + " }",
        "root fields",
    ),
    "directives": (documents.DIRECTIVES_MAX, directives, "directives"),
    "operations": (
        documents.OPERATIONS_MAX,
        lambda n: " ".join(f"query Q{number} {{ __typename }}" for number in range(n)),
        "operations",
    ),
    "namesakes": (documents.NAMESAKES_MAX, lambda n: "{" + " __typename" * n + " }", "selections of one name"),
    "introspections": (
        documents.INTROSPECTIONS_MAX,
        lambda n: "{" + "".join(f" a{number}: __schema {{ __typename }}" for number in range(n)) + " }",
        "introspections",
    ),
    "a name": (documents.NAME_CHARACTERS_MAX, lambda n: f"{{ {'a' * n}: __typename }}", "characters"),
    "a number": (
        documents.NUMBER_CHARACTERS_MAX,
        lambda n: f'mutation {{ complete(taskId: "T", metadata: {"9" * n}) {{ id }} }}',
        "characters",
    ),
}


async def _refused(text: str) -> str:
    name = "Q0" if text.startswith("query Q0") else None
    try:
        await Plans(schema).plan(text, name)
    except RequestRefused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("name", BOUNDS)
async def test_a_document_keeps_each_bound_or_is_refused_by_its_name(name: str) -> None:
    bound, make, says = BOUNDS[name]
    # Others may refuse what keeps this one: a document of 1,000 tokens has many of a kind.
    assert f"{bound} {says}" not in await _refused(make(bound))
    beyond = await _refused(make(bound + 1))
    assert f"{bound} {says}" in beyond


async def test_documents_at_their_bounds_are_prepared() -> None:
    for name, (bound, make, _) in BOUNDS.items():
        if name not in ("tokens", "levels"):
            assert await _refused(make(bound)) == "", name


async def test_fragments_that_spread_fragments_are_counted_as_if_they_were_written_out() -> None:
    def doubled(times: int) -> str:
        spread = "".join(f" fragment F{n} on Viewer {{ ...F{n + 1} ...F{n + 1} }}" for n in range(times))
        return f"{{ viewer {{ ...F0 }} }}{spread} fragment F{times} on Viewer {{ name }}"

    # Two to the power of eight, and nine.
    assert await _refused(doubled(8)) == ""
    assert "500 fields" in await _refused(doubled(9))
    # As cheap to refuse as it is short.
    assert "500 fields" in await _refused(doubled(60))


async def test_fragments_that_spread_themselves_are_refused_by_validation() -> None:
    circle = "fragment A on Viewer { ...B } fragment B on Viewer { ...C } fragment C on Viewer { ...A }"
    assert "Cannot spread fragment 'A' within itself" in await _refused(f"{{ viewer {{ ...A }} }} {circle}")


@pytest.mark.parametrize("innermost", ["1", "[]", "1234567890123456789", '"\\ud800"'])
def test_json_has_a_bound_on_its_levels_whichever_decoder_reads_it(innermost: str) -> None:
    count = LEVELS_MAX - (innermost == "[]")
    if innermost in ("1", "[]"):
        decode(("[" * count + innermost + "]" * count).encode())
    with pytest.raises(BadInput, match="at most 1024 levels"):
        decode(("[" * (count + 1) + innermost + "]" * (count + 1)).encode())
