"""Which tasks of a list are meant, as clients say it."""

from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graphql_api.types import given
from storage import Filter, Status
from storage.limits import metadata_json


@strawberry.input(
    description="Which tasks of a list are meant: those of which all that is given is true. What is left out, or null, "
    "does not matter."
)
class TaskFilter:
    """A filter of the list."""

    status: list[Status] | None = strawberry.field(default=UNSET, description="Tasks in one of these.")
    created_by: str | None = strawberry.field(
        default=UNSET, description="Tasks that this caller created: the name of a key, or the subject of a token."
    )
    tags: list[str] | None = strawberry.field(
        default=UNSET, description="Tasks with all of these tags: at most 20, of 1 to 64 characters."
    )
    queue: str | None = strawberry.field(default=UNSET, description="Tasks of this queue, 1 to 64 characters.")
    task_id_prefix: str | None = strawberry.field(
        default=UNSET, description="Tasks whose IDs begin so, upper and lower case told apart: 1 to 255 characters."
    )
    metadata: JSON | None = strawberry.field(
        default=UNSET,
        description="An object, of at most 64 values, 8 of them objects and lists in lists. Tasks whose metadata "
        "contains it: each of its keys, with a value that is the same, or contains it in turn; a list contains another "
        "that has each of its items somewhere.",
    )
    created_after: datetime | None = strawberry.field(
        default=UNSET, description="Tasks that were created at this time or later."
    )
    created_before: datetime | None = strawberry.field(
        default=UNSET, description="Tasks that were created before this time."
    )
    updated_after: datetime | None = strawberry.field(
        default=UNSET, description="Tasks whose latest event is of this time or later."
    )
    stale: bool | None = strawberry.field(
        default=UNSET, description="Tasks of which `stale` is this: whether a worker has let its lease run out."
    )


def filter_of(asked: TaskFilter | None) -> Filter:
    """The filter as the storage takes it; what is out of bounds is refused."""
    if not asked:
        return Filter()
    return Filter(
        statuses=given(asked.status),
        created_by=given(asked.created_by),
        tags=given(asked.tags),
        queue=given(asked.queue),
        task_id_prefix=given(asked.task_id_prefix),
        metadata=metadata_json(given(asked.metadata)),
        created_after=given(asked.created_after),
        created_before=given(asked.created_before),
        updated_after=given(asked.updated_after),
        stale=given(asked.stale),
    )
