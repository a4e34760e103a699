"""Values as they mostly come: of the Python types that a type of the schema is made of.

What is found out about a type beforehand need not be asked again for each of a thousand items. Everything else (a
single item for a list, a number for an ID, a name that is not known) is for graphql-core to judge.
"""

from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, Final, TypeAlias

from graphql import (
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLFloat,
    GraphQLID,
    GraphQLInputObjectType,
    GraphQLInt,
    GraphQLScalarType,
    GraphQLString,
    Undefined,
    is_list_type,
    is_non_null_type,
    is_required_input_field,
)
from graphql.utilities.coerce_input_value import coerce_default_value

Usual: TypeAlias = Callable[[Any], Any]
"""Coerces a value that is not null; Undefined when it is not of the usual kind."""


def usual(type_: Any, within: tuple[Any, ...] = ()) -> Usual:
    """What coerces the usual values of a type; it is of no matter whether it may be null."""
    named = type_.of_type if is_non_null_type(type_) else type_
    if named in _BUILT_IN:
        return _BUILT_IN[named]
    if isinstance(named, GraphQLEnumType):
        # A member that cannot be made is not usual; graphql-core says so when it is given.
        with suppress(Exception):
            members = {name: named.coerce_input_value(name) for name in named.values}
            return lambda value: members.get(value, Undefined) if type(value) is str else Undefined
    if isinstance(named, GraphQLScalarType):
        return _scalar(named)
    if is_list_type(named):
        return _list(named, within)
    # One that holds itself may be nested too deeply.
    if isinstance(named, GraphQLInputObjectType) and not named.is_one_of and named not in within:
        return _object(named, (*within, named))
    return lambda _: Undefined


def _scalar(type_: GraphQLScalarType) -> Usual:
    def coerce(value: Any) -> Any:
        with suppress(Exception):
            return type_.coerce_input_value(value)
        return Undefined

    return coerce


def _list(type_: Any, within: tuple[Any, ...]) -> Usual:
    coerce_item = usual(type_.of_type, within)
    nullable = not is_non_null_type(type_.of_type)

    def coerce(value: Any) -> Any:
        if type(value) is not list:
            return Undefined
        items = []
        for given in value:
            item = coerce_item(given) if given is not None else None if nullable else Undefined
            if item is Undefined:
                return Undefined
            items.append(item)
        return items

    return coerce


def _object(type_: GraphQLInputObjectType, within: tuple[Any, ...]) -> Usual:
    fields = type_.fields
    defaults = {name: coerce_default_value(field) for name, field in fields.items()}
    if (
        type_.out_type is not GraphQLInputObjectType.out_type
        or any(field.out_name is not None for field in fields.values())
        # Of what can be changed by who gets it, each gets his own.
        or not all(default is Undefined or isinstance(default, _UNCHANGING) for default in defaults.values())
    ):
        return lambda _: Undefined
    members = [
        (
            name,
            usual(field.type, within),
            not is_non_null_type(field.type),
            defaults[name],
            is_required_input_field(field),
        )
        for name, field in fields.items()
    ]

    def coerce(value: Any) -> Any:
        if type(value) is not dict:
            return Undefined
        # In the order of the type, as graphql-core has them.
        coerced = {}
        known = 0
        for name, coerce_member, nullable, default, required in members:
            if name not in value:
                if required:
                    return Undefined
                if default is not Undefined:
                    coerced[name] = default
                continue
            known += 1
            given = value[name]
            member = coerce_member(given) if given is not None else None if nullable else Undefined
            if member is Undefined:
                return Undefined
            coerced[name] = member
        return coerced if known == len(value) else Undefined

    return coerce


_UNCHANGING: Final = (type(None), int, float, str, Enum)
_BUILT_IN: Final[dict[Any, Usual]] = {
    GraphQLID: lambda value: value if type(value) is str else Undefined,
    GraphQLString: lambda value: value if type(value) is str else Undefined,
    GraphQLInt: lambda value: value if type(value) is int and -(2**31) <= value < 2**31 else Undefined,
    GraphQLFloat: lambda value: value if type(value) is float and float("-inf") < value < float("inf") else Undefined,
    GraphQLBoolean: lambda value: value if value is True or value is False else Undefined,
}
