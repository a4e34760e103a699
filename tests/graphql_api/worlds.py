"""A schema with everything that an executor can meet, over values that are made up as they are read.

What a field is depends on the seed of its world, on its place and on nothing else. So two executors that run the same
operation, each in a world of its own with the same seed, see the same values, the same nulls and the same failures.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from random import Random
from typing import Any, Final, NewType

import strawberry
from graphql import GraphQLEnumType, GraphQLObjectType, is_abstract_type, is_list_type, is_non_null_type
from strawberry import UNSET
from strawberry.extensions import FieldExtension
from strawberry.permission import BasePermission
from strawberry.schema.config import StrawberryConfig
from strawberry.types.maybe import Maybe, Some


class Broken(Exception):
    """What a resolver raises."""


@dataclass
class World:
    """The context of one run."""

    seed: str
    # How likely it is that a field is not as it should be.
    faults: float = 0.0
    # How often a resolver that is awaited lets others run first.
    turns_max: int = 0
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def random(self, *place: Any) -> Random:
        return Random(f"{self.seed} {place}")

    def called(self, info: strawberry.Info, arguments: dict[str, Any]) -> Any:
        """Write the call down with all that the resolver was told, and give what it returns."""
        path = tuple(info.path.as_list())
        self.calls.append(
            (
                path,
                info.field_name,
                info.python_name,
                repr(arguments),
                repr(info.variable_values),
                repr(info.selected_fields),
                repr(info.root_value),
                [key.typename for key in _chain(info.path)],
                type(info.return_type).__name__,
                info.operation is info._raw_info.operation,
                sorted(info._raw_info.fragments),
                str(info._raw_info.parent_type),
                len(info._raw_info.field_nodes),
            )
        )
        return self.value(info._raw_info.return_type, *path)

    async def turns(self, *place: Any) -> None:
        for _ in range(self.random("turns", *place).randint(0, self.turns_max)):
            await asyncio.sleep(0)

    def value(self, type_: Any, *place: Any) -> Any:
        """The value of a type at a place; or nothing, a failure, something else."""
        random = self.random(*place)
        if is_non_null_type(type_):
            type_ = type_.of_type
        elif random.random() < 0.2:
            return None
        if random.random() < self.faults:
            return self._fault(random, type_, place)
        return self._good(random, type_, place)

    def _fault(self, random: Random, type_: Any, place: tuple[Any, ...]) -> Any:
        kind = random.randrange(8)
        if kind <= 2:
            raise Broken(f"broken at {place}")
        if kind == 3:
            return Broken(f"returned at {place}")
        if kind == 4:
            return None
        if kind == 5 and is_list_type(type_):
            return iter([self.value(type_.of_type, *place, 0)])
        if type_ is SCHEMA._schema.type_map["Odd"]:
            # Its serializer raises for the one, and gives nothing for the other.
            return random.choice([2, -1])
        return random.choice(
            ["text", 2**40, 1.5, float("nan"), float("inf"), True, b"bytes", [], {}, object, "", Text("t"), -1]
        )

    def _good(self, random: Random, type_: Any, place: tuple[Any, ...]) -> Any:
        if is_list_type(type_):
            items = [
                self.value(type_.of_type, *place, index)
                for index in range(random.randrange(4 if len(place) < 4 else 2))
            ]
            return random.choice([list, tuple])(items)
        if isinstance(type_, GraphQLObjectType) or is_abstract_type(type_):
            return (NamedNode if is_abstract_type(type_) or type_.name == "Someone" else Node)(self, place)
        if isinstance(type_, GraphQLEnumType):
            return random.choice(list(type_.wrapped_cls))  # type: ignore[attr-defined]
        makers: dict[str, Callable[[], Any]] = {
            "String": lambda: random.choice(["", "plain", "naïve", Text("a subclass")]),
            "ID": lambda: random.choice(["id-1", 7]),
            "Int": lambda: random.choice([0, 1, -5, 2**31 - 1, True, 3.0]),
            "Float": lambda: random.choice([0.5, 1, -2.25]),
            "Boolean": lambda: random.choice([True, False]),
            "Odd": lambda: random.choice([1, 3, 5]),
            "Free": lambda: random.choice([1, "x", [1], {"a": None}]),
        }
        return makers[type_.name]()


def _chain(path: Any) -> list[Any]:
    found = []
    while path:
        found.append(path)
        path = path.prev
    return found


class Text(str):
    """A string that is not of the exact type."""

    __slots__ = ()


class Node:
    """A value whose attributes are made up. Reading one twice gives the same."""

    type_name = "Thing"

    def __init__(self, world: World, place: tuple[Any, ...]) -> None:
        self._world = world
        self._place = place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        fields = SCHEMA._schema.type_map[self.type_name].fields  # type: ignore[attr-defined]
        graphql_name = SCHEMA.config.name_converter.apply_naming_config(name)
        if graphql_name not in fields:
            raise AttributeError(name)
        return self._world.value(fields[graphql_name].type, *self._place, "read", name)

    def __repr__(self) -> str:
        return f"Node{self._place}"


class Color(Enum):
    RED = "r"
    GREEN = 2


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Word(StrEnum):
    YES = "yes"
    NO = "no"


for enum in (Color, Level, Word):
    strawberry.enum(enum)

Odd = NewType("Odd", int)
Free = NewType("Free", object)


def _odd(value: Any) -> Any:
    if value % 2 == 0:
        raise ValueError(f"{value} is even")
    return None if value == -1 else value


@strawberry.input
class Inner:
    n: int = 3
    color: Color = Color.RED
    tags: list[str] = strawberry.field(default_factory=lambda: ["t"])

    def __post_init__(self) -> None:
        if self.n == 13:
            raise Broken("thirteen")


@strawberry.input
class Outer:
    inner: Inner
    inners: list[Inner] | None = UNSET
    odd: Odd | None = UNSET
    word: Word | None = Word.YES
    maybe: Maybe[int]
    free: Free | None = None


def _given(value: Any) -> Any:
    # Resolvers own what they are given: changing it must not be seen by the next.
    if isinstance(value, list):
        items = list(map(_given, value))
        value.append("changed")
        return items
    if isinstance(value, Inner):
        before = (value.n, value.color, _given(value.tags))
        value.n = -99
        return before
    if isinstance(value, Some):
        return ("some", value.value)
    if isinstance(value, Outer):
        return [_given(part) for part in (value.inner, value.inners, value.odd, value.word, value.maybe)] + [value.free]
    return value


def _call(info: strawberry.Info, **arguments: Any) -> Any:
    # What a scalar of one's own is made of belongs to all who are given it.
    return info.context.called(
        info, {name: value if name == "free" else _given(value) for name, value in arguments.items()}
    )


async def _await(info: strawberry.Info, **arguments: Any) -> Any:
    await info.context.turns(*info.path.as_list())
    return _call(info, **arguments)


class Allowed(BasePermission):
    message = "not allowed"

    def has_permission(self, source: Any, info: strawberry.Info, **kwargs: Any) -> bool:
        return bool(info.context.random("allowed", *info.path.as_list()).random() >= info.context.faults)


class AllowedSoon(Allowed):
    async def has_permission(self, source: Any, info: strawberry.Info, **kwargs: Any) -> bool:  # type: ignore[override]
        await info.context.turns("soon", *info.path.as_list())
        return super().has_permission(source, info, **kwargs)


class Doubled(FieldExtension):
    def resolve(self, next_: Callable[..., Any], source: Any, info: strawberry.Info, **kwargs: Any) -> Any:
        return f"{next_(source, info, **kwargs)}" * 2


@strawberry.interface
class Named:
    title: str


@strawberry.type
class Someone(Named):
    age: int


class NamedNode(Someone):
    """A value that an interface can be."""

    def __init__(self, world: World, place: tuple[Any, ...]) -> None:
        super().__init__(title=f"title of {place}", age=3)


@strawberry.type
class Lonely:
    age: int


def _thing(info: strawberry.Info, id: strawberry.ID) -> Any:  # noqa: A002
    return _call(info, id=id)


def _told(info: strawberry.Info) -> Any:
    return _call(info)


def _scaled(
    info: strawberry.Info,
    by: int = 2,
    ratio: float | None = UNSET,
    color: Color = Color.GREEN,
    free: Free | None = UNSET,
) -> Any:
    return _call(info, by=by, ratio=ratio, color=color, free=free)


def _rooted(root: Any, info: strawberry.Info, flag: bool | None = None) -> Any:
    return _call(info, root=root, flag=flag)


async def _slow(info: strawberry.Info, parent: strawberry.Parent[Any], word: Word | None = None) -> Any:
    return await _await(info, parent=parent, word=word)


async def _slows(info: strawberry.Info, first: int | None = 2) -> Any:
    return await _await(info, first=first)


async def _shaped(info: strawberry.Info, shape: Outer, more: list[Inner | None] | None = UNSET) -> Any:
    return await _await(info, shape=shape, more=more)


def _colored(
    info: strawberry.Info,
    colors: list[Color] = [Color.RED],  # noqa: B006 - the default is what is tested
    grid: list[list[int] | None] | None = UNSET,
    odd: Odd | None = None,
) -> Any:
    return _call(info, colors=colors, grid=grid, odd=odd)


def _soon(info: strawberry.Info, id: strawberry.ID = strawberry.ID("7")) -> Awaitable[Any]:  # noqa: A002, B008
    return _await(info, id=id)


def _pure(parent: strawberry.Parent[Any]) -> Any:
    return parent.count


def _pure_soon(parent: strawberry.Parent[Any]) -> Any:
    async def soon() -> Any:
        return parent.nick

    return soon()


async def _pure_slow(parent: strawberry.Parent[Any]) -> Any:
    return parent.nick


def _same(parent: strawberry.Parent[Any]) -> Any:
    return parent


def _field(resolver: Callable[..., Any], type_: Any, **options: Any) -> Any:
    return strawberry.field(resolver=resolver, graphql_type=type_, **options)


@strawberry.type
class Thing:
    name: str
    nick: str | None
    key: strawberry.ID
    count: int
    ratio: float | None
    flag: bool
    color: Color
    word: Word | None
    level: Level
    odd: Odd
    odd_or_not: Odd | None
    free: Free | None
    names: list[str]
    grid: list[list[int | None]] | None
    nicks: list[str | None] | None
    child: "Thing"
    other: "Thing | None"
    children: list["Thing"]
    others: list["Thing | None"] | None
    matrix: list[list["Thing"]] | None

    pure: int = _field(_pure, int)
    pure_soon: str | None = _field(_pure_soon, str | None)
    pure_slow: str | None = _field(_pure_slow, str | None)
    told: str = _field(_told, str)
    scaled: int | None = _field(_scaled, int | None)
    rooted: list[Color] = _field(_rooted, list[Color])
    slow_name: str = _field(_slow, str)
    colored: str | None = _field(_colored, str | None)
    shaped: Odd | None = _field(_shaped, Odd | None)
    allowed: str | None = _field(_told, str | None, permission_classes=[Allowed])
    allowed_slow: int | None = _field(_slows, int | None, permission_classes=[AllowedSoon])
    doubled: str | None = _field(_scaled, str | None, extensions=[Doubled()])

    @strawberry.field
    def method(self, info: strawberry.Info) -> str | None:
        return _call(info, of=repr(self))  # type: ignore[no-any-return]

    @strawberry.field(graphql_type=int)  # type: ignore[untyped-decorator]
    def bare(self) -> Any:
        return self.count


for name, resolver, type_ in (
    ("same", _same, Thing),
    ("slow", _slow, Thing | None),
    ("slows", _slows, list[Thing]),
    ("sooner", _soon, Thing | None),
    ("one_of_them", _thing, Thing),
):
    made = _field(resolver, type_)
    made.python_name = name
    Thing.__strawberry_definition__.fields.append(made)  # type: ignore[attr-defined]


@strawberry.type
class Query:
    rootless: int | None = strawberry.field(default=None)
    thing = _field(_thing, Thing | None)
    certain = _field(_thing, Thing)
    slow_thing = _field(_slow_root := _slows, Thing | None)
    slow_certain = _field(_slows, Thing)
    things = _field(_slows, list[Thing | None])
    soon = _field(_soon, Thing | None)
    told = _field(_told, str | None)
    scaled = _field(_scaled, int)
    colored = _field(_colored, list[str])
    shaped = _field(_shaped, str | None)
    allowed = _field(_told, Thing | None, permission_classes=[AllowedSoon])
    named = _field(_told, Named | None)
    either = _field(_told, Someone | Lonely | None)


@strawberry.type
class Mutation:
    change = _field(_shaped, Thing | None)
    change_surely = _field(_slows, Thing)
    bump = _field(_scaled, int | None)
    bump_surely = _field(_told, int)
    soon = _field(_soon, Thing | None)


async def _ticks(info: strawberry.Info, count: int = 2, color: Color | None = UNSET) -> AsyncGenerator[Any, None]:
    world = info.context
    world.calls.append((*info.path.as_list(), repr((count, color, info.variable_values))))
    for number in range(min(count, 3)):
        if world.random("tick", number).random() < world.faults / 2:
            raise Broken(f"tick {number}")
        yield Node(world, ("tick", number))


def _refused(info: strawberry.Info, shape: Outer | None = None) -> AsyncGenerator[Any, None]:
    if info.context.random("refused").random() < 0.5:
        raise Broken("refused")
    return _ticks(info)


@strawberry.type
class Subscription:
    ticks = strawberry.subscription(resolver=_ticks, graphql_type=Thing | None)
    certain_ticks = strawberry.subscription(resolver=_ticks, graphql_type=Thing)
    refused = strawberry.subscription(resolver=_refused, graphql_type=Thing)


SCHEMA: Final = strawberry.Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(
        scalar_map={
            Odd: strawberry.scalar(name="Odd", serialize=_odd, parse_value=_odd),
            Free: strawberry.scalar(name="Free", serialize=lambda value: value, parse_value=lambda value: value),
        }
    ),
)
