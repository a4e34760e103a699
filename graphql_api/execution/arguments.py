"""How the arguments of a resolver are written: from literals, variables and defaults, as they are coerced."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any, Final

from graphql import (
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLString,
    NonNullTypeNode,
    Undefined,
    VariableDefinitionNode,
    VariableNode,
    is_leaf_type,
    is_non_null_type,
)
from graphql.execution.values import get_argument_values
from graphql.utilities.coerce_input_value import coerce_default_value, coerce_input_literal
from strawberry import UNSET
from strawberry.relay import GlobalID
from strawberry.scalars import is_scalar
from strawberry.types.arguments import StrawberryArgument, convert_argument, convert_arguments
from strawberry.types.base import StrawberryList, StrawberryMaybe, StrawberryOptional, has_object_definition
from strawberry.types.enum import StrawberryEnumDefinition, has_enum_definition
from strawberry.types.lazy_type import LazyType

from graphql_api.execution.selection import Selected

_BUILT_IN: Final[tuple[Any, ...]] = (GraphQLString, GraphQLID, GraphQLInt, GraphQLFloat, GraphQLBoolean)


class Arguments:
    """How the arguments of a resolver are made from literals, variables and defaults.

    Variables are coerced already. A literal of a built-in scalar or an enum is a constant. A literal of anything else
    is made anew each time, because it may be changed by who gets it.
    """

    def __init__(
        self,
        selected: Selected,
        local: str,
        *,
        constant: Callable[[str, Any], str],
        strawberry: Any,
        definitions: Mapping[str, VariableDefinitionNode],
    ) -> None:
        self.lines: list[str] = []
        self.passed: list[str] = []
        # Whether some are known only when it runs; they are in the dictionary `more`.
        self.more = False
        self.need_info = False
        # Takes a name and a value for the namespace of what is written.
        self._constant = constant
        self._strawberry = strawberry
        self._definitions = definitions
        self._selected = selected
        self._local = local
        if not selected.strawberry.arguments:
            return
        if any(not self._argument(argument) for argument in selected.strawberry.arguments):
            self._all_by_graphql_core()
        elif self.more:
            self.lines.insert(0, "more = {}")

    def _argument(self, argument: StrawberryArgument) -> bool:
        """Write one; False when it takes graphql-core to do it."""
        definition = self._selected.definition
        assert definition is not None
        graphql_name = self._strawberry.config.name_converter.from_argument(argument)
        arg = definition.args.get(graphql_name)
        if arg is None or arg.out_name is not None:
            return False
        name = argument.python_name
        constant = f"argument_{name}_of_{self._local}"
        node = next((n.value for n in self._selected.nodes[0].arguments or () if n.name.value == graphql_name), None)
        required = is_non_null_type(arg.type)
        converted = self._conversion(argument, graphql_name, arg.type)
        try:
            default = coerce_default_value(arg)
        except TypeError:
            return False
        if node is None:
            if default is not Undefined:
                self.passed.append(f"{name}={converted(self._constant(constant, default))}")
            return default is not Undefined or not required
        if not isinstance(node, VariableNode):
            type_ = arg.type.of_type if is_non_null_type(arg.type) else arg.type
            literal = (
                coerce_input_literal(node, arg.type)
                if (type_ in _BUILT_IN or isinstance(type_, GraphQLEnumType))
                else Undefined
            )
            if literal is Undefined:
                return False
            self.passed.append(f"{name}={converted(self._constant(constant, literal))}")
            return True
        variable = node.name.value
        variable_definition = self._definitions[variable]
        local = f"argument_{name}_{self._local}"
        if isinstance(variable_definition.type, NonNullTypeNode) or variable_definition.default_value is not None:
            value = f"run.variables[{variable!r}]"
        elif default is not Undefined:
            value = f"run.variables.get({variable!r}, {self._constant(constant, default)})"
        elif required:
            return False
        else:
            self.more = True
            self.lines.append(f"{local} = run.variables.get({variable!r}, Undefined)")
            self.lines.append(f"if {local} is not Undefined: more[{name!r}] = {converted(local)}")
            return True
        if required and not isinstance(variable_definition.type, NonNullTypeNode):
            self.lines.append(f"{local} = {value}")
            self.lines.append(f"if {local} is None: irregular()")
            value = local
        if converted(value) != value:
            # Before the resolver is tried, as above.
            self.lines.append(f"{local} = {converted(value)}")
            value = local
        self.passed.append(f"{name}={value}")
        return True

    def _conversion(self, argument: StrawberryArgument, graphql_name: str, type_: Any) -> Callable[[str], str]:
        """What Strawberry makes of a value that graphql-core has coerced: mostly just this value."""
        python_type = argument.type
        optional = isinstance(python_type, StrawberryOptional) and not isinstance(python_type, StrawberryMaybe)
        inner = python_type.of_type if optional else python_type  # type: ignore[union-attr]
        leaf = is_leaf_type(type_.of_type if is_non_null_type(type_) else type_)
        if leaf and inner is not GlobalID and not isinstance(python_type, StrawberryMaybe):
            return lambda value: value
        converter = self._strawberry.schema_converter

        known = _conversion_of(python_type, converter, ())

        def convert(value: Any, info: Any) -> Any:
            if known is not None:
                return known(value)
            return convert_argument(
                value, python_type, converter.scalar_registry, converter.config, info, path=(graphql_name,)
            )

        self.need_info = True
        name = f"convert_{argument.python_name}_of_{self._local}"
        self._constant(name, convert)
        return lambda value: f"{name}({value}, info)"

    def _all_by_graphql_core(self) -> None:
        definition, node = self._selected.definition, self._selected.nodes[0]
        arguments = self._selected.strawberry.arguments
        converter = self._strawberry.schema_converter
        assert definition is not None

        def every(run: Any, info: Any) -> dict[str, Any]:
            values = get_argument_values(definition, node, run.variable_values)
            return convert_arguments(values, arguments, converter.scalar_registry, converter.config, info)

        name = f"arguments_of_{self._local}"
        self._constant(name, every)
        self.lines, self.passed = [f"more = {name}(run, info)"], []
        self.more = self.need_info = True


def _conversion_of(type_: Any, converter: Any, within: tuple[Any, ...]) -> Callable[[Any], Any] | None:
    """What ``convert_argument`` does for a type, found out beforehand; None for the types that have their own ways."""
    if isinstance(type_, StrawberryOptional) and not isinstance(type_, StrawberryMaybe):
        return _conversion_of(type_.of_type, converter, within)
    if isinstance(type_, StrawberryList):
        item = _conversion_of(type_.of_type, converter, within)
        if item is None:
            return None
        # A list is copied, because defaults are shared.
        return lambda value: value if value is None or value is UNSET else [item(part) for part in value]
    if isinstance(type_, StrawberryMaybe | LazyType) or type_ is GlobalID or type_ in within:
        return None
    if is_scalar(type_, converter.scalar_registry) or isinstance(type_, StrawberryEnumDefinition):
        return _unchanged
    if has_enum_definition(type_):
        return _unchanged
    if not has_object_definition(type_) or not type_.__strawberry_definition__.is_input:
        return None
    definition = type_.__strawberry_definition__
    members = {}
    for member in definition.fields:
        conversion = _conversion_of(member.resolve_type(type_definition=definition), converter, (*within, type_))
        if conversion is None:
            return None
        members[converter.config.name_converter.from_field(member)] = (member.python_name, conversion)
    if definition.from_input is not None:
        return None
    empty = {
        member.python_name: None
        for member in definition.fields
        if member.default_value is MISSING and member.default_factory is MISSING
    }

    def build(value: Any) -> Any:
        if value is None or value is UNSET:
            return value
        given = empty.copy()
        for graphql_name, part in value.items():
            name, conversion = members[graphql_name]
            given[name] = part if conversion is _unchanged else conversion(part)
        return type_(**given)

    return build


def _unchanged(value: Any) -> Any:
    return value
