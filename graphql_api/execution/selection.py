"""What an operation selects, once fragments, @skip and @include are gone and fields of one name are merged.

It is collected as the specification says and as graphql-core does it, but once, and as a tree. Each field in it knows
how it is answered: read from the value by name, or by a resolver, called as Strawberry would call it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from inspect import isasyncgenfunction
from keyword import iskeyword
from typing import Any, Final

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLObjectType,
    InlineFragmentNode,
    OperationType,
    SelectionSetNode,
    VariableNode,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
    type_from_ast,
)
from graphql.execution.executor import Executor as CoreExecutor
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver

# Compiling takes time in which nothing else runs, and it is resolvers that take it: so many some 10 ms.
CALLS_MAX: Final = 40

Flags = Mapping[str, bool]
"""The values of the variables that @skip and @include name."""


class Declined(Exception):
    """The operation is left to graphql-core; the message says why."""


class Kind(Enum):
    """How a field is answered."""

    TYPENAME = auto()
    # The root field of a subscription's event is the event itself.
    EVENT = auto()
    # Read from the value by name.
    PLAIN = auto()
    # Calculated from the value alone, so it does no harm to calculate it again.
    PURE = auto()
    # A resolver that is called once, whatever happens: the function behind it, or Strawberry's wrapper around that.
    DIRECT = auto()
    WRAPPED = auto()


@dataclass(slots=True)
class Selected:
    """A field in one place of the answer, with all of the document's nodes that select it there."""

    key: str
    parent: GraphQLObjectType
    nodes: list[FieldNode]
    kind: Kind
    definition: GraphQLField | None = None
    children: list["Selected"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name in the schema."""
        return self.nodes[0].name.value

    @property
    def called(self) -> bool:
        """Whether it has a resolver that must be called once only."""
        return self.kind in (Kind.DIRECT, Kind.WRAPPED)

    @property
    def live(self) -> bool:
        """Whether something below is called, and so has a path and may have to be awaited."""
        return any(child.called or child.live for child in self.children)

    @property
    def strawberry(self) -> StrawberryField:
        """What Strawberry knows of it; wrapped fields may have none."""
        assert self.definition is not None
        found = self.definition.extensions["strawberry-definition"]
        assert isinstance(found, StrawberryField)
        return found

    @property
    def is_async(self) -> bool:
        """Whether what it returns is always to be awaited."""
        assert self.definition is not None
        found = self.definition.extensions.get("strawberry-definition")
        return isinstance(found, StrawberryField) and bool(found.is_async)


class Selection:
    """What is selected, merged as the specification says; the document's fragments are gone."""

    def __init__(self, template: CoreExecutor[Any], strawberry: Any, flags: Flags | None) -> None:
        self._template = template
        self._strawberry = strawberry
        self._flags = flags
        self._calls = 0

    def fields(self, parent: GraphQLObjectType, sets: list[SelectionSetNode], *, root: bool = False) -> list[Selected]:
        """The fields that these selection sets make of a type, in the order of the answer."""
        grouped: dict[str, list[FieldNode]] = {}
        spread: set[str] = set()
        for selection_set in sets:
            self._collect(parent, selection_set, grouped, spread)
        return [self._field(parent, key, nodes, root) for key, nodes in grouped.items()]

    def _collect(
        self, parent: GraphQLObjectType, sets: SelectionSetNode, grouped: dict[str, list[FieldNode]], spread: set[str]
    ) -> None:
        for node in sets.selections:
            if not self._included(node):
                continue
            if isinstance(node, FieldNode):
                grouped.setdefault((node.alias or node.name).value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                if self._applies(node, parent):
                    self._collect(parent, node.selection_set, grouped, spread)
            else:
                assert isinstance(node, FragmentSpreadNode)
                name = node.name.value
                fragment = self._template.fragment_definitions[name]
                if name not in spread and self._applies(fragment, parent):
                    spread.add(name)
                    self._collect(parent, fragment.selection_set, grouped, spread)

    def _included(self, node: Any) -> bool:
        included = True
        for directive in node.directives or ():
            name = directive.name.value
            if name not in ("skip", "include"):
                raise Declined(f"The directive @{name}.")
            if self._flags is not None:
                value = directive.arguments[0].value
                flag = self._flags[value.name.value] if isinstance(value, VariableNode) else value.value
                included = included and flag is (name == "include")
        return included

    def _applies(self, node: InlineFragmentNode | FragmentDefinitionNode, parent: GraphQLObjectType) -> bool:
        if not node.type_condition:
            return True
        condition = type_from_ast(self._template.schema, node.type_condition)
        return condition is parent or (
            is_abstract_type(condition) and self._template.schema.is_sub_type(condition, parent)
        )

    def _field(self, parent: GraphQLObjectType, key: str, nodes: list[FieldNode], root: bool) -> Selected:
        name = nodes[0].name.value
        if name == "__typename":
            return Selected(key, parent, nodes, Kind.TYPENAME)
        definition = parent.fields.get(name)
        if definition is None:
            raise Declined("Introspection.")
        selected = Selected(key, parent, nodes, self._kind(definition, root), definition)
        self._calls += selected.called
        if self._calls > CALLS_MAX:
            raise Declined(f"More than {CALLS_MAX} resolvers.")
        named: Any = definition.type
        while is_non_null_type(named) or is_list_type(named):
            named = named.of_type
        if is_object_type(named):
            if named.is_type_of:
                raise Declined(f"{named} implements an interface, or says itself what is one.")
            selected.children = self.fields(named, [node.selection_set for node in nodes if node.selection_set])
        elif not is_leaf_type(named):
            raise Declined(f"{named} is an interface or a union.")
        return selected

    def _kind(self, definition: GraphQLField, root: bool) -> Kind:
        if root and self._template.operation.operation is OperationType.SUBSCRIPTION:
            return Kind.EVENT
        if definition.resolve is None:
            raise Declined("A field without a resolver.")
        found = definition.extensions.get("strawberry-definition")
        if not isinstance(found, StrawberryField) or not self._ordinary(found, definition.resolve):
            return Kind.WRAPPED
        resolver = found.base_resolver
        if resolver is None:
            return Kind.PLAIN if found.default_resolver is getattr and _is_name(found.python_name) else Kind.WRAPPED
        if isasyncgenfunction(resolver.wrapped_func):
            raise Declined("A list that is an asynchronous generator.")
        names = [parameter.name for parameter in resolver.signature.parameters.values()]
        if not callable(resolver.wrapped_func) or not all(map(_is_name, names)):
            return Kind.WRAPPED
        if root or found.is_async or found.arguments or resolver.info_parameter:
            return Kind.DIRECT
        return Kind.PURE

    def begins_directly(self, definition: GraphQLField) -> bool:
        """Whether the resolver of a subscription can be called without Strawberry's wrapper."""
        found = definition.extensions.get("strawberry-definition")
        return (
            isinstance(found, StrawberryField)
            and found.base_resolver is not None
            and definition.subscribe is not None
            and self._ordinary(found, definition.subscribe)
            and all(_is_name(parameter.name) for parameter in found.base_resolver.signature.parameters.values())
        )

    def _ordinary(self, found: StrawberryField, resolve: Callable[..., Any]) -> bool:
        """Whether Strawberry's wrapper does nothing but call the resolver, so that this can be done without it."""
        return (
            self._strawberry is not None
            and not self._strawberry.schema_converter.exception_handlers
            and not found.extensions
            and type(found).get_result is StrawberryField.get_result
            and (found.base_resolver is None or type(found.base_resolver).__call__ is StrawberryResolver.__call__)
            # Nobody has put another in its place.
            and getattr(resolve, "__qualname__", "").startswith("GraphQLCoreConverter.from_resolver.")
        )


def _is_name(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name)
