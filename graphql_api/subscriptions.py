"""What can be watched."""

from typing import Annotated

import strawberry
from strawberry import UNSET

import storage
from graphql_api.context import Info
from graphql_api.filters import TaskFilter, filter_of
from graphql_api.leases import queue_ready
from graphql_api.logs import bind_task
from graphql_api.queries import TaskId
from graphql_api.types import TaskUpdate, given
from storage import Permission


def _task_updates(
    info: Info,
    task_id: TaskId,
    after_seq: Annotated[
        int | None,
        strawberry.argument(
            description="The number of the last event seen: the snapshot brings every event after it, in messages "
            "of at most 500. 0 for all; without it the snapshot brings none."
        ),
    ] = UNSET,
) -> storage.Watch:
    """Watch a task."""
    info.context.viewer.require(Permission.READ, task_id)
    bind_task(task_id)
    return info.context.storage.watch(task_id, given(after_seq))


async def _tasks_updated(
    info: Info,
    filter: Annotated[  # noqa: A002 - the contract's word
        TaskFilter | None, strawberry.argument(description="Which tasks; all, without it.")
    ] = UNSET,
) -> storage.ListWatch:
    """Watch a list."""
    info.context.viewer.require(Permission.LIST)
    return await info.context.storage.live.watch(filter_of(given(filter)))


@strawberry.type(description="What can be watched.")
class Subscription:
    """The root of subscriptions."""

    task_updates = strawberry.subscription(
        resolver=_task_updates,
        description="A task, live: first a SNAPSHOT, then a message for each commit that touched it. It ends by itself "
        "when the task ends or is deleted. Needs READ.",
        graphql_type=TaskUpdate,
    )
    tasks_updated = strawberry.subscription(
        resolver=_tasks_updated,
        description="A list, live: the latest state of each task that changes from now on, if the filter means it as "
        "it is, or may have meant it before; so a task that is told and not meant has left the list. Changes of one "
        "task that come faster than they are taken, or within a tenth of a second, are one message, whose `events` has "
        "the latest one only; a DELETE has none. Subscribe first, then read `tasks`. Ends with LIST_OUTDATED when more "
        "tasks have changed than can wait, or changes may have been missed: then do both again. Needs LIST.",
        graphql_type=TaskUpdate,
    )
    queue_ready = queue_ready
