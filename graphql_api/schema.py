"""The schema: the types, and nothing else. ``schema.graphql`` is made from it."""

from typing import Final

import strawberry
from strawberry.schema.config import StrawberryConfig

from graphql_api.mutations import Mutation
from graphql_api.queries import Query
from graphql_api.subscriptions import Subscription
from graphql_api.types import SCALARS

schema: Final = strawberry.Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(scalar_map=SCALARS),
)


def sdl() -> str:
    """The schema in GraphQL's own language."""
    return schema.as_str().rstrip() + "\n"
