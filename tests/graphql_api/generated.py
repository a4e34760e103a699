"""Operations made up at random over any schema: valid documents, with variables that fit and variables that do not."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLObjectType,
    GraphQLSchema,
    OperationType,
    Undefined,
    get_named_type,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_required_argument,
    is_required_input_field,
)

FIELDS_MAX = 30
DEPTH_MAX = 5

# What a built-in scalar takes, as literals; JSON has the same ones.
LITERALS = {
    "Int": ["0", "1", "-7", "13", "2147483647"],
    "Float": ["0.5", "2", "-1e3"],
    "String": ['"plain"', '""', '"na\\u00efve"'],
    "Boolean": ["true", "false"],
    "ID": ['"id-1"', "12"],
    "Odd": ["1", "3", "5"],
    "Free": ['"x"', "1", '[1, {a: "b"}]', "{a: null}"],
    "JSON": ['"x"', "1", '[1, {a: "b"}]', "{a: null}", "true"],
    "DateTime": ['"2026-11-20T09:30:00Z"'],
}
VALUES: dict[str, list[Any]] = {
    "Int": [0, 1, -7, 13, 2**31 - 1, 2.0],
    "Float": [0.5, 2, -1e3],
    "String": ["plain", "", "naïve"],
    "Boolean": [True, False],
    "ID": ["id-1", 12],
    "Odd": [1, 3, 5],
    "Free": ["x", 1, [1, {"a": "b"}], {"a": None}],
    "JSON": ["x", 1, [1, {"a": "b"}], {"a": None}, True],
    "DateTime": ["2026-11-20T09:30:00Z"],
}
BAD = [None, "bad", -(2**40), 1.5, True, [], {}, [[None]], {"n": "bad"}, "RED", 2]


@dataclass
class Generated:
    """An operation, and the variables that are sent with it."""

    text: str
    variables: dict[str, Any]


@dataclass
class Documents:
    """Makes documents."""

    schema: GraphQLSchema
    random: Random
    # How likely a variable does not fit.
    bad: float = 0.05
    # How likely an interface, a union or introspection is selected.
    declined: float = 0.04
    _fields: int = 0
    _keys: dict[str, str] = field(default_factory=dict)
    _fragments: dict[str, tuple[str, str]] = field(default_factory=dict)
    _definitions: list[str] = field(default_factory=list)
    _values: dict[str, Any] = field(default_factory=dict)
    _flags: list[str] = field(default_factory=list)

    def operation(self, kind: OperationType) -> Generated:
        root_type = self.schema.get_root_type(kind)
        assert root_type
        if kind is OperationType.SUBSCRIPTION:
            selected = "{ " + self._field(root_type, self._choose_field(root_type), 0) + " }"
            if self._chance(0.2):
                selected = "{ ..." + self._fragment(root_type, selected) + " }"
        else:
            selected = self._selection(root_type, 0)
        declared = f"({', '.join(self._definitions)})" if self._definitions else ""
        fragments = "".join(f"\nfragment {name} on {on} {text}" for name, (on, text) in self._fragments.items())
        return Generated(f"{kind.value} Made{declared} {selected}{fragments}", self._values)

    def _chance(self, of: float) -> bool:
        return self.random.random() < of

    def _choose_field(self, parent: Any) -> str:
        names = [
            name
            for name, made in parent.fields.items()
            if self._chance(self.declined) or not _is_declined(get_named_type(made.type))
        ]
        return str(self.random.choice(names))

    def _selection(self, parent: Any, depth: int) -> str:
        parts = [self._part(parent, depth) for _ in range(self.random.randint(1, 5 if depth < 2 else 3))]
        return "{ " + " ".join(parts) + " }"

    def _part(self, parent: Any, depth: int) -> str:
        kind = self.random.random()
        if kind < 0.08:
            return self._key("__typename", "__typename") + self._directives()
        if kind < 0.16 and depth < DEPTH_MAX:
            condition = self.random.choice(["", f" on {parent.name}"])
            return f"...{condition}{self._directives()} {self._selection(parent, depth + 1)}"
        if kind < 0.26 and depth < DEPTH_MAX:
            known = [name for name, (on, _) in self._fragments.items() if on == parent.name]
            if known and self._chance(0.5):
                name = self.random.choice(known)
            else:
                name = self._fragment(parent, self._selection(parent, depth + 1))
            return f"...{name}{self._directives()}"
        if depth == 0 and self._chance(self.declined):
            return "__schema { queryType { name } }" if parent is self.schema.query_type else "__typename"
        leaves = [name for name, made in parent.fields.items() if is_leaf_type(get_named_type(made.type))]
        if (depth >= DEPTH_MAX or self._fields > FIELDS_MAX) and leaves:
            return self._field(parent, self.random.choice(leaves), depth)
        return self._field(parent, self._choose_field(parent), depth)

    def _fragment(self, parent: Any, text: str) -> str:
        name = f"F{len(self._fragments)}"
        # Made after those that it spreads, so none spreads itself.
        self._fragments[name] = (parent.name, text)
        return name

    def _field(self, parent: Any, name: str, depth: int) -> str:
        self._fields += 1
        made = parent.fields[name]
        arguments = self._arguments(made.args)
        key = self._key(name, f"{name}{arguments}")
        text = f"{key}{arguments}{self._directives() if depth or parent is not self.schema.subscription_type else ''}"
        named = get_named_type(made.type)
        if isinstance(named, GraphQLObjectType):
            return f"{text} {self._selection(named, depth + 1)}"
        if is_abstract_type(named):
            return text + " { __typename ... on Someone { title age } }"
        return text

    def _key(self, name: str, signature: str) -> str:
        """The name of a field in the answer: one that means the same wherever it stands, so that fields merge."""
        for key in self.random.sample([name, "a", "b", "type", "class"], 3):
            if self._keys.setdefault(key, signature) == signature:
                return name if key == name else f"{key}: {name}"
        key = f"k{len(self._keys)}"
        self._keys[key] = signature
        return f"{key}: {name}"

    def _directives(self) -> str:
        if not self._chance(0.12):
            return ""
        texts = []
        for directive in self.random.choice([["skip"], ["include"], ["skip", "include"]]):
            texts.append(
                f" @{directive}(if: {self._flag() if self._chance(0.7) else self.random.choice(LITERALS['Boolean'])})"
            )
        return "".join(texts)

    def _flag(self) -> str:
        if self._flags and (len(self._flags) > 5 or self._chance(0.5)):
            return self.random.choice(self._flags)
        name = f"$flag{len(self._flags)}"
        self._flags.append(name)
        self._definitions.append(f"{name}: {self.random.choice(['Boolean!', 'Boolean = true', 'Boolean! = false'])}")
        self._values[name[1:]] = self.random.choice([True, False])
        if self._chance(self.bad):
            self._values[name[1:]] = deepcopy(self.random.choice(BAD))
        elif self._chance(self.bad):
            del self._values[name[1:]]
        return name

    def _arguments(self, arguments: dict[str, GraphQLArgument]) -> str:
        texts = [
            f"{name}: {self._literal(argument.type, has_default=_has_default(argument))}"
            for name, argument in arguments.items()
            if is_required_argument(argument) or self._chance(0.6)
        ]
        self.random.shuffle(texts)
        return f"({', '.join(texts)})" if texts else ""

    def _literal(self, type_: Any, *, has_default: bool = False, depth: int = 0) -> str:
        if self._chance(0.45 if depth == 0 else 0.2):
            return self._variable(type_, has_default=has_default)
        if is_non_null_type(type_):
            type_ = type_.of_type
        elif self._chance(0.15):
            return "null"
        if is_list_type(type_):
            if self._chance(0.15):
                return self._literal_of_one(type_)
            items = [self._literal(type_.of_type, depth=depth + 1) for _ in range(self.random.randrange(3))]
            return f"[{', '.join(items)}]"
        if isinstance(type_, GraphQLInputObjectType):
            members = [
                f"{name}: {self._literal(member.type, has_default=_has_default(member), depth=depth + 1)}"
                for name, member in type_.fields.items()
                if (is_required_input_field(member) or self._chance(0.5)) and name != "maybe"
            ]
            return "{" + ", ".join(members) + "}"
        if isinstance(type_, GraphQLEnumType):
            return str(self.random.choice(list(type_.values)))
        return self.random.choice(LITERALS[type_.name])

    def _literal_of_one(self, type_: Any) -> str:
        named = get_named_type(type_)
        if isinstance(named, GraphQLInputObjectType):
            return "[]"
        if isinstance(named, GraphQLEnumType):
            return str(self.random.choice(list(named.values)))
        return self.random.choice(LITERALS[named.name])

    def _variable(self, type_: Any, *, has_default: bool) -> str:
        name = f"v{len(self._definitions)}"
        declared, default = str(type_), ""
        if is_non_null_type(type_):
            if has_default and self._chance(0.5):
                # A nullable variable may stand where there is a default for null.
                declared = declared[:-1]
        elif self._chance(0.3):
            declared += "!"
        if self._chance(0.25):
            value = self._constant(type_)
            default = f" = {value}"
            if self._chance(0.4):
                declared = declared.rstrip("!")
        self._definitions.append(f"${name}: {declared}{default}")
        value_of: Any = self._value(type_)
        if self._chance(self.bad):
            value_of = deepcopy(self.random.choice(BAD))
        elif not declared.endswith("!") and self._chance(0.2):
            value_of = None
        if not ((not declared.endswith("!") or default) and self._chance(0.3)) and not self._chance(self.bad / 4):
            self._values[name] = value_of
        return f"${name}"

    def _constant(self, type_: Any) -> str:
        """A literal that is not null and names no variable."""
        type_ = type_.of_type if is_non_null_type(type_) else type_
        if is_list_type(type_):
            return f"[{', '.join(self._constant(type_.of_type) for _ in range(self.random.randrange(3)))}]"
        if isinstance(type_, GraphQLInputObjectType):
            members = [
                f"{name}: {self._constant(member.type)}"
                for name, member in type_.fields.items()
                if is_required_input_field(member) or self._chance(0.4)
            ]
            return "{" + ", ".join(members) + "}"
        if isinstance(type_, GraphQLEnumType):
            return str(self.random.choice(list(type_.values)))
        return self.random.choice(LITERALS[type_.name])

    def _value(self, type_: Any) -> Any:
        if self._chance(self.bad / 3):
            return deepcopy(self.random.choice(BAD))
        if is_non_null_type(type_):
            type_ = type_.of_type
        elif self._chance(0.15):
            return None
        if is_list_type(type_):
            return [self._value(type_.of_type) for _ in range(self.random.randrange(3))]
        if isinstance(type_, GraphQLInputObjectType):
            return {
                name: self._value(member.type)
                for name, member in type_.fields.items()
                if is_required_input_field(member) or self._chance(0.5)
            }
        if isinstance(type_, GraphQLEnumType):
            return str(self.random.choice(list(type_.values)))
        return deepcopy(self.random.choice(VALUES[type_.name]))


def _has_default(place: Any) -> bool:
    return place.default is not None or place.default_value is not Undefined


def _is_declined(type_: Any) -> bool:
    return is_abstract_type(type_)


def described(made: Generated) -> str:
    """For a failure's message."""
    return f"{made.text}\n{json.dumps(made.variables, default=repr)}"
