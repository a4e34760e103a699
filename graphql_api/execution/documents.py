"""What a document may cost: bounds that are checked before it is validated.

Validation compares fields with fields, so a small document can cost seconds there. One walk counts what the document
means when its fragments are spread; a fragment is counted once, however often it is spread, so the walk itself is as
cheap as the document is short.
"""

from dataclasses import dataclass
from typing import Final

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

from graphql_api.errors import ValidationFailed

# Counted by the parser; it stops there. A full introspection query has about 400.
TOKENS_MAX: Final = 1_000
OPERATIONS_MAX: Final = 20
DEPTH_MAX: Final = 16
# With every fragment spread.
FIELDS_MAX: Final = 500
ROOT_FIELDS_MAX: Final = 50
DIRECTIVES_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class _Cost:
    depth: int = 0
    fields: int = 0
    root_fields: int = 0
    directives: int = 0


def check_document(document: DocumentNode) -> None:
    """Refuse a document that is beyond a bound, by the name of the bound."""
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    _check("operations", len(operations), OPERATIONS_MAX)
    known: dict[str, _Cost] = {}
    total_fields = 0
    for operation in operations:
        cost = _cost(operation.selection_set, fragments, known, ())
        total_fields += cost.fields
        _check("levels", cost.depth, DEPTH_MAX)
        _check("root fields", cost.root_fields, ROOT_FIELDS_MAX)
        _check("directives", cost.directives + len(operation.directives or ()), DIRECTIVES_MAX)
    for name in fragments:
        # Unused ones are validated too.
        _check("fields", _fragment(name, fragments, known, ()).fields, FIELDS_MAX)
    _check("fields", total_fields, FIELDS_MAX)


def _check(name: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise ValidationFailed(f"A document must have at most {count_max} {name}, got {count}.")


def _cost(
    selections: SelectionSetNode,
    fragments: dict[str, FragmentDefinitionNode],
    known: dict[str, _Cost],
    spreading: tuple[str, ...],
) -> _Cost:
    depth = fields = root_fields = directives = 0
    for node in selections.selections:
        directives += len(node.directives or ())
        if isinstance(node, FieldNode):
            inner = _cost(node.selection_set, fragments, known, spreading) if node.selection_set else _Cost()
            depth = max(depth, 1 + inner.depth)
            fields += 1 + inner.fields
            root_fields += 1
        else:
            if isinstance(node, InlineFragmentNode):
                inner = _cost(node.selection_set, fragments, known, spreading)
            else:
                assert isinstance(node, FragmentSpreadNode)
                inner = _fragment(node.name.value, fragments, known, spreading)
            depth = max(depth, inner.depth)
            fields += inner.fields
            root_fields += inner.root_fields
        directives += inner.directives
    return _Cost(depth, fields, root_fields, directives)


def _fragment(
    name: str, fragments: dict[str, FragmentDefinitionNode], known: dict[str, _Cost], spreading: tuple[str, ...]
) -> _Cost:
    if name not in known:
        if name not in fragments or name in spreading:
            # Unknown fragments and cycles are for validation to name.
            return _Cost()
        known[name] = _cost(fragments[name].selection_set, fragments, known, (*spreading, name))
    return known[name]
