"""Values that are taken to be usual become what graphql-core makes of them, and no others are."""

import json
from typing import Any, Final

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLScalarType,
    Undefined,
    build_schema,
    is_input_type,
    is_list_type,
    is_non_null_type,
)
from graphql.utilities import coerce_input_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphql_api.execution.usual import usual
from graphql_api.schema import schema

OWN: Final = build_schema(
    """
    input Leaf { a: Int! = 7, b: [String!]!, c: [Int], d: Float, e: Kind = ONE, f: [[ID!]] }
    input Many { leaves: [Leaf!]!, one: Leaf }
    input Itself { again: Itself, a: Int }
    input One @oneOf { a: Int, b: Int }
    input Holds { one: One, a: Int }
    input ListByDefault { a: [Int] = [1] }
    enum Kind { ONE TWO }
    type Query { a: Int }
    """
)
TYPES: Final[list[GraphQLInputType]] = [
    found
    for types in (OWN.type_map, schema._schema.type_map)
    for name, found in types.items()
    if is_input_type(found) and not name.startswith("__")
]
OBJECTS: Final = [found for found in TYPES if isinstance(found, GraphQLInputObjectType)]
_SCALARS: Final = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from(["ONE", "PENDING"])
)
_ANYTHING: Final = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=2), st.dictionaries(st.text(max_size=2), _SCALARS))


def values_of(type_: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that mostly fit."""
    if is_non_null_type(type_):
        return values_of(type_.of_type, depth)
    fitting: st.SearchStrategy[Any]
    if is_list_type(type_):
        fitting = st.lists(values_of(type_.of_type, depth), max_size=3)
    elif isinstance(type_, GraphQLInputObjectType):
        if depth > 2:
            return st.none()
        members = {name: values_of(field.type, depth + 1) for name, field in type_.fields.items()}
        fitting = st.fixed_dictionaries({}, optional=members)
    elif isinstance(type_, GraphQLEnumType):
        fitting = st.sampled_from(sorted(type_.values))
    else:
        assert isinstance(type_, GraphQLScalarType)
        fitting = {
            "Int": st.integers(-(2**31) - 1, 2**31),
            "Float": st.floats() | st.integers(-2, 2),
            "Boolean": st.booleans(),
        }.get(type_.name, st.sampled_from(["T", "2026-11-21T18:00:00Z"]) | _ANYTHING)
    return st.one_of(fitting, fitting, fitting, fitting, _ANYTHING)


def shown(value: Any) -> str:
    """With its types, and the order of its names."""
    return repr(value)


# Input objects in input objects take their time to be made up.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_what_is_usual_becomes_what_graphql_core_makes_of_it(data: st.DataObject) -> None:
    type_ = data.draw(st.sampled_from(TYPES))
    value = data.draw(values_of(type_).filter(lambda value: value is not None))
    before = shown(value)
    found = usual(type_)(value)
    if found is not Undefined:
        assert shown(found) == shown(coerce_input_value(value, type_))
    assert shown(value) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Leaf", {"b": []}),
        ("Leaf", {"b": ["x"], "a": 1, "c": [None, 2], "d": 0.5, "e": "TWO", "f": [["x"], None]}),
        ("Many", {"leaves": [{"b": []}, {"b": ["x"], "e": None}], "one": None}),
        ("TaskReport", {"taskId": "T", "progress": 0}),
        ("TaskReport", {"taskId": "T", "event": {"eventType": "LOG", "message": "m", "metadata": {"a": [1]}}}),
        ("NewTask", {"taskId": "T", "options": {"queue": "q", "dependsOn": ["S"], "retry": {"maxAttempts": 3}}}),
    ],
)
def test_what_is_common_is_usual(name: str, value: Any) -> None:
    type_: Any = next(found for found in OBJECTS if found.name == name)
    found = usual(type_)(value)
    assert found is not Undefined
    assert shown(found) == shown(coerce_input_value(value, type_))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Leaf", {}),
        ("Leaf", {"b": None}),
        ("Leaf", {"b": [None]}),
        ("Leaf", {"b": "x"}),
        ("Leaf", {"b": [], "a": None}),
        ("Leaf", {"b": [], "a": True}),
        ("Leaf", {"b": [], "other": 1}),
        ("Leaf", []),
        ("Many", {"leaves": [{"b": []}, {}]}),
        ("Itself", {"again": {"a": 1}}),
        ("One", {"a": 1}),
        ("Holds", {"one": {"a": 1}}),
        ("ListByDefault", {}),
        ("TaskOptions", {"startAt": "tomorrow"}),
    ],
)
def test_what_is_not_is_left_to_graphql_core(name: str, value: Any) -> None:
    type_: Any = next(found for found in OBJECTS if found.name == name)
    assert usual(type_)(json.loads(json.dumps(value))) is Undefined
