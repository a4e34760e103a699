"""What can be done: each mutation here is one command; those of `batches` are many, and `leases` has the workers'."""

from typing import Annotated

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

import storage
from graphql_api.audit import Action, recorded
from graphql_api.batches import create_many, delete_many, report
from graphql_api.context import Info
from graphql_api.leases import LeaseToken, claim, heartbeat, release
from graphql_api.logs import bind_task
from graphql_api.options import TaskOptions, options_of
from graphql_api.queries import TaskId
from graphql_api.types import EventInput, IssuedTaskToken, Task, given
from storage import (
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    Fail,
    Permission,
    Status,
    TokenScope,
    UpdateProgress,
)

TASK_TOKEN_LIFETIME_DEFAULT_S = 3_600

IdempotencyKey = Annotated[
    str | None,
    strawberry.argument(
        description="A word of the caller's own, 1 to 255 characters. The same key on the same task with the same "
        "operation and arguments adds no second event; with others it is refused."
    ),
]
Metadata = Annotated[JSON | None, strawberry.argument(description="Anything to attach; at most 256 KB as JSON.")]
Progress = Annotated[int, strawberry.argument(description="How far the work has come, 0 to 100. It may fall.")]


async def _change(info: Info, command: Command) -> storage.Task:
    bind_task(command.task_id)
    task = await info.context.storage.writer.submit(command)
    assert task is not None
    return task


async def _create(
    info: Info,
    task_id: Annotated[
        strawberry.ID,
        strawberry.argument(
            description="An ID that nobody can guess, 1 to 255 characters: whoever knows it may be allowed to read "
            "and report."
        ),
    ],
    status: Annotated[
        Status | None, strawberry.argument(description="Where it is in its life; an import may bring ended tasks.")
    ] = Status.PENDING,
    progress: Annotated[
        int | None, strawberry.argument(description="How far it has come, 0 to 100. A SUCCESS has 100.")
    ] = 0,
    metadata: Metadata = UNSET,
    options: Annotated[
        TaskOptions | None, strawberry.argument(description="What it is asked for beside being reported on.")
    ] = UNSET,
) -> storage.Task:
    """Create a task."""
    viewer = info.context.viewer
    with recorded(Action.TASK_CREATE, viewer, task_id=task_id):
        viewer.require(Permission.CREATE)
        return await _change(
            info,
            Create(
                task_id=task_id,
                status=status or Status.PENDING,
                progress=progress or 0,
                metadata=given(metadata),
                created_by=viewer.name,
                options=options_of(options or None),
            ),
        )


async def _add_event(
    info: Info,
    task_id: TaskId,
    event: Annotated[EventInput, strawberry.argument(description="The event.")],
    idempotency_key: IdempotencyKey = UNSET,
    token: LeaseToken = UNSET,
) -> storage.Task:
    """Write an event."""
    viewer = info.context.viewer
    viewer.require(Permission.REPORT, task_id)
    return await _change(
        info,
        AddEvent(
            task_id=task_id,
            event_type=event.event_type,
            message=event.message,
            progress=given(event.progress),
            metadata=given(event.metadata),
            idempotency_key=given(idempotency_key),
            actor=viewer.name,
            token=given(token),
        ),
    )


async def _update_progress(
    info: Info, task_id: TaskId, progress: Progress, idempotency_key: IdempotencyKey = UNSET, token: LeaseToken = UNSET
) -> storage.Task:
    viewer = info.context.viewer
    viewer.require(Permission.REPORT, task_id)
    return await _change(
        info,
        UpdateProgress(
            task_id=task_id,
            progress=progress,
            idempotency_key=given(idempotency_key),
            actor=viewer.name,
            token=given(token),
        ),
    )


async def _complete(
    info: Info,
    task_id: TaskId,
    metadata: Metadata = UNSET,
    idempotency_key: IdempotencyKey = UNSET,
    token: LeaseToken = UNSET,
) -> storage.Task:
    viewer = info.context.viewer
    viewer.require(Permission.REPORT, task_id)
    return await _change(
        info,
        Complete(
            task_id=task_id,
            metadata=given(metadata),
            idempotency_key=given(idempotency_key),
            actor=viewer.name,
            token=given(token),
        ),
    )


async def _fail(
    info: Info,
    task_id: TaskId,
    error: Annotated[str, strawberry.argument(description="What went wrong, in words; at most 64 KB.")],
    metadata: Metadata = UNSET,
    idempotency_key: IdempotencyKey = UNSET,
    token: LeaseToken = UNSET,
    retry: Annotated[
        bool | None,
        strawberry.argument(
            description="Whether another attempt may be of use. When it is false, the failure is final whatever "
            "attempts are left."
        ),
    ] = True,
) -> storage.Task:
    """End a task in FAILED."""
    viewer = info.context.viewer
    viewer.require(Permission.REPORT, task_id)
    return await _change(
        info,
        Fail(
            task_id=task_id,
            error=error,
            retry=retry is not False,
            metadata=given(metadata),
            idempotency_key=given(idempotency_key),
            actor=viewer.name,
            token=given(token),
        ),
    )


async def _cancel(
    info: Info,
    task_id: TaskId,
    metadata: Metadata = UNSET,
    idempotency_key: IdempotencyKey = UNSET,
    token: LeaseToken = UNSET,
) -> storage.Task:
    viewer = info.context.viewer
    with recorded(Action.TASK_CANCEL, viewer, task_id=task_id):
        viewer.require(Permission.REPORT, task_id)
        return await _change(
            info,
            Cancel(
                task_id=task_id,
                metadata=given(metadata),
                idempotency_key=given(idempotency_key),
                actor=viewer.name,
                token=given(token),
            ),
        )


async def _delete(info: Info, task_id: TaskId) -> strawberry.ID:
    viewer = info.context.viewer
    bind_task(task_id)
    with recorded(Action.TASK_DELETE, viewer, task_id=task_id):
        viewer.require(Permission.DELETE)
        await info.context.storage.writer.submit(Delete(task_id=task_id))
    return task_id


async def _create_task_token(
    info: Info,
    task_id: Annotated[
        strawberry.ID, strawberry.argument(description="The one task that it opens; it need not exist yet.")
    ],
    scope: Annotated[TokenScope, strawberry.argument(description="What it opens the task for.")],
    expires_in_seconds: Annotated[
        int | None, strawberry.argument(description="For how long it is good: 1 to 2,592,000, which are 30 days.")
    ] = TASK_TOKEN_LIFETIME_DEFAULT_S,
) -> IssuedTaskToken:
    """Make a token."""
    viewer = info.context.viewer
    with recorded(Action.TASK_TOKEN_CREATE, viewer, task_id=task_id, scope=scope):
        viewer.require(Permission.CREATE)
        token, expires_at = await info.context.storage.task_tokens.sign(
            task_id,
            scope,
            TASK_TOKEN_LIFETIME_DEFAULT_S if expires_in_seconds is None else expires_in_seconds,
            made_by=viewer.name,
            made_with=viewer.key_id,
        )
    return IssuedTaskToken(token=token, expires_at=expires_at)


@strawberry.type(description="What can be done. What is answered is on disk.")
class Mutation:
    """The root of mutations."""

    create = strawberry.mutation(resolver=_create, description="Create a task. Needs CREATE.", graphql_type=Task)
    add_event = strawberry.mutation(
        resolver=_add_event, description="Write an event into a task's log. Needs REPORT.", graphql_type=Task
    )
    update_progress = strawberry.mutation(
        resolver=_update_progress,
        description="Report how far a task has come; a pending one starts. Needs REPORT.",
        graphql_type=Task,
    )
    complete = strawberry.mutation(
        resolver=_complete, description="Report that a task succeeded. It is final. Needs REPORT.", graphql_type=Task
    )
    fail = strawberry.mutation(
        resolver=_fail,
        description="Report that a task failed. With attempts left it is PENDING again, and not claimed before "
        "`nextAttemptAt`; without, or when no retry is wanted, it is final. Needs REPORT.",
        graphql_type=Task,
    )
    cancel = strawberry.mutation(
        resolver=_cancel,
        description="Report that nobody wants a task any more. It is final. Needs REPORT.",
        graphql_type=Task,
    )
    delete = strawberry.mutation(
        resolver=_delete, description="Remove a task with its history; returns its ID. Needs DELETE."
    )
    create_many = create_many
    report = report
    delete_many = delete_many
    claim = claim
    heartbeat = heartbeat
    release = release
    create_task_token = strawberry.mutation(
        resolver=_create_task_token,
        description="Make a credential for one task alone, for a viewer or a worker who has no other. Needs CREATE.",
    )
