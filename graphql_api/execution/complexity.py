"""What an operation costs, by what it asks for: a field costs 1, times the page sizes of the lists that it is in.

    { tasks(first: 100) { nodes { taskId history(first: 10) { seq } } } }

costs 1 for `tasks`, 1 for `nodes`, and for each of 100 tasks 2 fields and 10 events of 1 field: 1 + 1 + 100 · (2 + 10).
A list that is handed over is a page of that size: what is made of its items comes back as a list. What may have to
count costs 100.
`@skip` and `@include` change nothing about it, and a page that is asked for twice is paid twice.

The cost is worked out when the plan is made. Only page sizes that are variables are left for later; an operation that
has none, as nearly all, is never asked again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_input_object_type,
    is_list_type,
)
from graphql.utilities.coerce_input_value import coerce_default_value

from storage import TooLarge
from storage.limits import HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX, TASKS_PAGE_DEFAULT, TASKS_PAGE_MAX

# Pages are at most so large; a larger one is refused by who would read it, with a better message.
PAGE_MAX: Final = max(HISTORY_PAGE_MAX, TASKS_PAGE_MAX)
# What a page has when nobody says how large it is to be, neither the document nor the schema.
PAGE_DEFAULT: Final = max(HISTORY_PAGE_DEFAULT, TASKS_PAGE_DEFAULT)
_SIZES: Final = ("first", "last", "limit")
# Fields for which the tasks of a filter are counted, and what each costs: it brings one number, and reads many rows.
_COUNTING: Final = frozenset({"stats", "totalCount"})
COUNTING_COST: Final = 100


@dataclass(slots=True)
class _Cost:
    """A sum: what is known, and pages whose size is not."""

    known: int = 0
    pages: list["_Page"] = field(default_factory=list)

    def add(self, other: "_Cost", times: int = 1) -> None:
        self.known += other.known * times
        self.pages += [_Page(page.size, page.each.scaled(times)) for page in other.pages]

    def scaled(self, times: int) -> "_Cost":
        made = _Cost()
        made.add(self, times)
        return made

    def given(self, variables: Mapping[str, Any]) -> int:
        return self.known + sum(page.size.given(variables) * page.each.given(variables) for page in self.pages)


@dataclass(frozen=True, slots=True)
class _Size:
    """How many items a page has: a number of the document, or what some of its variables say."""

    number: int | None
    variables: tuple[str, ...] = ()
    # What the schema says where they say nothing.
    usual: int = PAGE_DEFAULT

    def given(self, variables: Mapping[str, Any]) -> int:
        values = (variables.get(name) for name in self.variables)
        numbers = [_bounded(_count(value)) for value in values if isinstance(value, int | list)]
        if self.number is not None:
            numbers.append(self.number)
        return max(numbers, default=self.usual)


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of a size that variables say, and what each item on it costs."""

    size: _Size
    each: _Cost


_ONE: Final = _Size(1)


class Complexity:
    """The cost of one operation, and the bound that it must keep."""

    def __init__(
        self,
        schema: GraphQLSchema,
        operation: OperationDefinitionNode,
        fragments: Mapping[str, FragmentDefinitionNode],
        complexity_max: int,
    ) -> None:
        """TooLarge when it costs too much whatever its variables are. The document is valid, and short."""
        self._schema = schema
        self._fragments = fragments
        self._max = complexity_max
        root = schema.get_root_type(operation.operation)
        assert root is not None
        self._cost = self._of(operation.selection_set, root, _ONE)
        self._check(self._cost.known)
        self.depends: Final = bool(self._cost.pages)
        """Whether it depends on variables, and so must be checked each time."""

    def check(self, variables: Mapping[str, Any]) -> None:
        """Refuse an operation that costs too much with these variables, which were coerced."""
        self._check(self._cost.given(variables))

    def _check(self, cost: int) -> None:
        if cost > self._max:
            raise TooLarge(
                f"An operation may cost at most {self._max}, and this one costs {cost}: each field, times the page "
                "sizes of the lists that it is in. Ask for fewer at a time."
            )

    def _of(self, selections: SelectionSetNode, parent: Any, size: _Size) -> _Cost:
        """The cost of selections on a type whose lists are of that size."""
        total = _Cost()
        for node in selections.selections:
            if isinstance(node, FieldNode):
                total.add(self._field(node, parent, size))
                continue
            if isinstance(node, FragmentSpreadNode):
                fragment: FragmentDefinitionNode | InlineFragmentNode = self._fragments[node.name.value]
            else:
                assert isinstance(node, InlineFragmentNode)
                fragment = node
            condition = fragment.type_condition
            type_ = self._schema.type_map[condition.name.value] if condition else parent
            total.add(self._of(fragment.selection_set, type_, size))
        return total

    def _field(self, node: FieldNode, parent: Any, size: _Size) -> _Cost:
        cost = _Cost(COUNTING_COST if node.name.value in _COUNTING else 1)
        definition = getattr(parent, "fields", {}).get(node.name.value)
        if node.selection_set is None or definition is None:
            # A leaf, or introspection, which has a bound of its own.
            return cost
        sizing = _sizing(definition)
        if sizing:
            size = _size(node, definition, sizing)
        named = get_named_type(definition.type)
        if not is_list_type(get_nullable_type(definition.type)):
            # The lists of a connection are of the size that was asked of it.
            cost.add(self._of(node.selection_set, named, size if sizing else _ONE))
            return cost
        each = self._of(node.selection_set, named, _ONE)
        if size.variables:
            cost.pages.append(_Page(size, each))
        else:
            cost.add(each, size.given({}))
        return cost


def _sizing(field: GraphQLField) -> list[str]:
    """The arguments that say how many items a field has: numbers, or lists of what is to be done."""
    return [
        name
        for name, argument in field.args.items()
        if name in _SIZES
        or (is_list_type(get_nullable_type(argument.type)) and is_input_object_type(get_named_type(argument.type)))
    ]


def _size(node: FieldNode, field: GraphQLField, sizing: Sequence[str]) -> _Size:
    values = [argument.value for argument in node.arguments or () if argument.name.value in sizing]
    numbers = [_bounded(int(value.value)) for value in values if isinstance(value, IntValueNode)]
    numbers += [_bounded(len(value.values)) for value in values if isinstance(value, ListValueNode)]
    variables = tuple(value.name.value for value in values if isinstance(value, VariableNode))
    defaults = [value for name in sizing if isinstance(value := coerce_default_value(field.args[name]), int)]
    return _Size(max(numbers, default=None), variables, max(defaults, default=PAGE_DEFAULT))


def _count(value: int | list[Any]) -> int:
    return len(value) if isinstance(value, list) else value


def _bounded(size: int) -> int:
    return min(max(size, 0), PAGE_MAX)
