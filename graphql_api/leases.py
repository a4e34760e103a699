"""How workers come to tasks: they wait for a queue, claim its next tasks, keep them by heartbeats, give them back.

A claim may show tasks that nobody told the worker of, whose IDs let one report on them. So what is about a queue needs
REPORT by the caller's own credential: that everybody may report on a task whose ID he knows is not enough.
"""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Final

import strawberry

import storage
from graphql_api.context import Info
from graphql_api.logs import bind_task
from graphql_api.queries import TaskId
from graphql_api.types import Task
from storage import (
    QUEUE_CHARACTERS_MAX,
    Heartbeat,
    Permission,
    Release,
    Unavailable,
    check_name,
    claim_of,
)

QUEUE_DEFAULT: Final = "default"
LIMIT_DEFAULT: Final = 1
LEASE_DEFAULT_S: Final = 60
# How often a queue is counted although nothing was heard of it: what is heard is a hint, and may be lost.
COUNT_EVERY_S: Final = 5.0

LeaseToken = Annotated[
    str | None,
    strawberry.argument(
        description="The token of the lease under which it is reported, from `claim`. The report is refused with "
        "LEASE_LOST when the task has no such lease any more. Without it the lease does not matter."
    ),
]
_Token = Annotated[str, strawberry.argument(description="The token of the lease, from `claim`.")]
_LeaseSeconds = Annotated[
    int | None,
    strawberry.argument(
        description="How long the lease holds from now without a heartbeat: 1 to 86,400. Three times as long as the "
        "worker takes between two is a good choice. A heartbeat that asks for less than is left changes nothing."
    ),
]
_Queue = Annotated[str | None, strawberry.argument(description="The name of the queue, 1 to 64 characters.")]


@strawberry.type(name="Claim", description="A task that a worker has for some time.")
class ClaimType:
    """A claim; the value is a ``storage.Claim``."""

    task: Task = strawberry.field(
        description="The task as it is now. A worker whose task was canceled sees it by the status."
    )
    token: str = strawberry.field(description="What the worker shows with heartbeats and reports.")
    attempt: int = strawberry.field(description="The number of the attempt, from 1.")
    expires_at: datetime = strawberry.field(
        description="When the lease runs out if no heartbeat comes; of a task that has ended, the time of its end."
    )


@strawberry.type(description="How many tasks of a queue can be claimed.")
class QueueReady:
    """What waiting workers are told."""

    queue: str = strawberry.field(description="The name of the queue.")
    ready: int = strawberry.field(
        description="How many can be claimed now; more than 1,000 are shown as 1,000. Others may claim them first."
    )


async def _claim(
    info: Info,
    worker: Annotated[
        str, strawberry.argument(description="Who claims, for people to read: 1 to 255 characters, such as a host.")
    ],
    queue: _Queue = QUEUE_DEFAULT,
    limit: Annotated[int | None, strawberry.argument(description="How many at most: 1 to 100.")] = LIMIT_DEFAULT,
    lease_seconds: _LeaseSeconds = LEASE_DEFAULT_S,
) -> list[storage.Claim]:
    """Take the next tasks of a queue."""
    viewer = info.context.viewer
    viewer.require_own(Permission.REPORT)
    return await info.context.storage.claimer.claim(
        QUEUE_DEFAULT if queue is None else queue,
        worker,
        limit=LIMIT_DEFAULT if limit is None else limit,
        lease_s=LEASE_DEFAULT_S if lease_seconds is None else lease_seconds,
        actor=viewer.name,
    )


async def _heartbeat(
    info: Info, task_id: TaskId, token: _Token, lease_seconds: _LeaseSeconds = LEASE_DEFAULT_S
) -> storage.Claim:
    """Keep a lease."""
    info.context.viewer.require(Permission.REPORT, task_id)
    bind_task(task_id)
    lease_s = LEASE_DEFAULT_S if lease_seconds is None else lease_seconds
    task = await info.context.storage.writer.submit(Heartbeat(task_id=task_id, token=token, lease_s=lease_s))
    assert task is not None
    return claim_of(task, token)


async def _release(info: Info, task_id: TaskId, token: _Token) -> storage.Task:
    """Give a task back."""
    viewer = info.context.viewer
    viewer.require(Permission.REPORT, task_id)
    bind_task(task_id)
    task = await info.context.storage.writer.submit(Release(task_id=task_id, token=token, actor=viewer.name))
    assert task is not None
    return task


def _queue_ready(info: Info, queue: _Queue = QUEUE_DEFAULT) -> AsyncGenerator[QueueReady, None]:
    """Wait for a queue."""
    info.context.viewer.require_own(Permission.REPORT)
    name = QUEUE_DEFAULT if queue is None else queue
    check_name("queue", name, QUEUE_CHARACTERS_MAX)
    return _ready(info.context.storage, name)


async def _ready(opened: storage.Storage, queue: str) -> AsyncGenerator[QueueReady, None]:
    """First how many there are, then again whenever some have become ready."""
    with opened.queues.listen(queue) as ear:
        ready = await _counted(opened, queue)
        yield QueueReady(queue=queue, ready=ready or 0)
        while True:
            told = ready
            wakened = await ear.wait(COUNT_EVERY_S)
            ready = await _counted(opened, queue)
            # Somebody else may have them all already. Whoever heard nothing hears of a queue that has filled.
            if ready and (wakened or not told):
                yield QueueReady(queue=queue, ready=ready)


async def _counted(opened: storage.Storage, queue: str) -> int | None:
    """How many are ready; None while the database is away, which ends no subscription."""
    try:
        return await opened.reader.ready(queue)
    except Unavailable:
        return None


claim = strawberry.mutation(
    resolver=_claim,
    description="Take the next tasks of a queue, higher priority first, then the oldest; perhaps none. Each goes to "
    "one worker, who has it until the lease runs out, and is IN_PROGRESS. Needs REPORT by a credential of one's own.",
    graphql_type=list[ClaimType],
)
heartbeat = strawberry.mutation(
    resolver=_heartbeat,
    description="Say that the worker is alive, and keep the lease for so long from now. Refused with LEASE_LOST when "
    "the task is somebody else's by now. Needs REPORT.",
    graphql_type=ClaimType,
)
release = strawberry.mutation(
    resolver=_release,
    description="Give a claimed task back: it is PENDING again, and the attempt does not count. Needs REPORT.",
    graphql_type=Task,
)
queue_ready = strawberry.subscription(
    resolver=_queue_ready,
    description="Wakes those who wait for tasks of a queue: first how many can be claimed, then again whenever some "
    "have become ready. A hint: claim when it comes, and every few seconds anyway. Needs REPORT by a credential of "
    "one's own.",
    graphql_type=QueueReady,
)
