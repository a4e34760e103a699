"""What can be asked."""

from typing import Annotated

import strawberry
from strawberry import UNSET

import storage
from graphql_api.auth import Viewer
from graphql_api.context import Info
from graphql_api.filters import TaskFilter, filter_of
from graphql_api.types import Page, Task, TaskConnection, TaskStats, ViewerType, given
from storage import Counts, Permission
from storage.limits import TASKS_PAGE_DEFAULT

TaskId = Annotated[strawberry.ID, strawberry.argument(description="The ID of the task.")]


async def _task(info: Info, task_id: TaskId) -> storage.Task | None:
    info.context.viewer.require(Permission.READ, task_id)
    return await info.context.storage.reader.task(task_id)


async def _tasks(
    info: Info,
    first: Annotated[int | None, strawberry.argument(description="How many: 1 to 1,000.")] = TASKS_PAGE_DEFAULT,
    after: Annotated[
        str | None, strawberry.argument(description="The `endCursor` of the page before; none for the first page.")
    ] = UNSET,
    filter: Annotated[  # noqa: A002 - the contract's word
        TaskFilter | None, strawberry.argument(description="Which tasks.")
    ] = UNSET,
) -> Page:
    """Read a page of the list."""
    info.context.viewer.require(Permission.LIST)
    wanted = filter_of(given(filter))
    found = await info.context.storage.reader.page(TASKS_PAGE_DEFAULT if first is None else first, given(after), wanted)
    return Page(found, wanted)


async def _stats(
    info: Info,
    filter: Annotated[  # noqa: A002 - the contract's word
        TaskFilter | None, strawberry.argument(description="Which tasks; all of them when nothing is said.")
    ] = UNSET,
) -> Counts:
    """Count tasks by status."""
    info.context.viewer.require(Permission.LIST)
    return await info.context.storage.reader.counts(filter_of(given(filter)))


def _viewer(info: Info) -> Viewer:
    return info.context.viewer


@strawberry.type(description="What can be asked.")
class Query:
    """The root of queries."""

    task = strawberry.field(
        resolver=_task,
        description="The task with this ID, or null when there is none. Needs READ.",
        graphql_type=Task | None,
    )
    tasks = strawberry.field(
        resolver=_tasks,
        description="Tasks, newest first, page by page: all, or those that a filter means. Needs LIST.",
        graphql_type=TaskConnection,
    )
    stats = strawberry.field(
        resolver=_stats,
        description="How many tasks there are in each status. Of all tasks, or by `status` alone, that is known at "
        "once, however many there are; with any other filter they are counted. Needs LIST.",
        graphql_type=TaskStats,
    )
    viewer = strawberry.field(resolver=_viewer, description="Who am I, and what may I do?", graphql_type=ViewerType)
