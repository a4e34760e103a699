"""What a document may cost: bounds that are checked before it is validated.

Validation compares fields with fields, so a small document can cost seconds there. One walk counts what the document
means when its fragments are spread; a fragment is counted once, however often it is spread, so the walk itself is as
cheap as the document is short.
"""

from collections import Counter
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
    TokenKind,
)

from graphql_api.errors import ValidationFailed
from storage import TooLarge

# Counted by the parser; it stops there. A full introspection query has about 400.
TOKENS_MAX: Final = 1_000
# Values of any size travel in variables.
DOCUMENT_CHARACTERS_MAX: Final = 100_000
NAME_CHARACTERS_MAX: Final = 255
NUMBER_CHARACTERS_MAX: Final = 400
OPERATIONS_MAX: Final = 20
DEPTH_MAX: Final = 16
# With every fragment spread.
FIELDS_MAX: Final = 500
ROOT_FIELDS_MAX: Final = 50
DIRECTIVES_MAX: Final = 50
# Selected under one name in one place; validation compares each with each.
NAMESAKES_MAX: Final = 10
# `__schema` and `__type`: each walks the whole schema.
INTROSPECTIONS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class _Cost:
    depth: int = 0
    fields: int = 0
    root_fields: int = 0
    directives: int = 0
    introspections: int = 0


def check_size(text: str) -> None:
    """Refuse a document that is too long to be parsed."""
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise TooLarge(
            f"A document must have at most {DOCUMENT_CHARACTERS_MAX} characters, got {len(text)}; "
            "send large values as variables."
        )


def check_document(document: DocumentNode, *, introspection: bool = True) -> None:
    """Refuse a document that is beyond a bound, by the name of the bound; or one that asks for the schema."""
    _check_words(document)
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
        _check("introspections", cost.introspections, INTROSPECTIONS_MAX)
        if cost.introspections and not introspection:
            raise ValidationFailed("The schema cannot be asked for here: introspection is switched off.")
        _check("directives", cost.directives + len(operation.directives or ()), DIRECTIVES_MAX)
    for name in fragments:
        # Unused ones are validated too.
        _check("fields", _fragment(name, fragments, known, ()).fields, FIELDS_MAX)
    _check("fields", total_fields, FIELDS_MAX)


def _check(name: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise ValidationFailed(f"A document must have at most {count_max} {name}, got {count}.")


def _check_words(document: DocumentNode) -> None:
    token = document.loc.start_token if document.loc else None
    while token is not None:
        size = token.end - token.start
        if token.kind is TokenKind.NAME and size > NAME_CHARACTERS_MAX:
            raise ValidationFailed(f"A name must have at most {NAME_CHARACTERS_MAX} characters, got {size}.")
        if token.kind in (TokenKind.INT, TokenKind.FLOAT) and size > NUMBER_CHARACTERS_MAX:
            raise ValidationFailed(f"A number must have at most {NUMBER_CHARACTERS_MAX} characters, got {size}.")
        token = token.next


def _cost(
    selections: SelectionSetNode,
    fragments: dict[str, FragmentDefinitionNode],
    known: dict[str, _Cost],
    spreading: tuple[str, ...],
) -> _Cost:
    if not selections.selections:
        raise ValidationFailed("A selection must name at least one field.")
    depth = fields = root_fields = directives = introspections = 0
    names = Counter((node.alias or node.name).value for node in selections.selections if isinstance(node, FieldNode))
    _check("selections of one name", max(names.values(), default=0), NAMESAKES_MAX)
    for node in selections.selections:
        directives += len(node.directives or ())
        if isinstance(node, FieldNode):
            introspections += node.name.value in ("__schema", "__type")
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
        introspections += inner.introspections
    return _Cost(depth, fields, root_fields, directives, introspections)


def _fragment(
    name: str, fragments: dict[str, FragmentDefinitionNode], known: dict[str, _Cost], spreading: tuple[str, ...]
) -> _Cost:
    if name not in known:
        if name not in fragments or name in spreading:
            # Unknown fragments and cycles are for validation to name.
            return _Cost()
        known[name] = _cost(fragments[name].selection_set, fragments, known, (*spreading, name))
    return known[name]
