"""What the library says to the server fits the schema that the server has."""

import pytest
from graphql import build_schema, parse, validate

from graphql_api.schema import sdl
from worker import documents


@pytest.mark.parametrize("name", [name for name in vars(documents) if name.isupper()])
def test_each_document_fits_the_schema(name: str) -> None:
    assert not validate(build_schema(sdl()), parse(getattr(documents, name)))
