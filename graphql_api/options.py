"""What may be asked for when a task is created, as clients send it."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graphql_api.types import given
from storage import OnDependencyFailure, Options, Retry

# What `RetryInput` says where nothing is said, or null.
INITIAL_DELAY_DEFAULT_S = 10
MAX_DELAY_DEFAULT_S = 3_600
FACTOR_DEFAULT = 2.0


@strawberry.input(
    description="How often a task is tried. Between attempts it is PENDING, and not claimed before `nextAttemptAt`."
)
class RetryInput:
    """Attempts, and the pauses between them."""

    max_attempts: int = strawberry.field(
        description="Attempts in all, 1 to 100. Without `retry` there is one, and the first failure is the end."
    )
    initial_delay_seconds: int | None = strawberry.field(
        default=INITIAL_DELAY_DEFAULT_S,
        description="The pause after the first failure, 0 to 2,592,000. Chance changes each pause by up to a fifth.",
    )
    max_delay_seconds: int | None = strawberry.field(
        default=MAX_DELAY_DEFAULT_S, description="No pause is longer than this: 0 to 2,592,000."
    )
    factor: float | None = strawberry.field(
        default=FACTOR_DEFAULT, description="Each pause is so many times as long as the one before: 1 to 100."
    )


@strawberry.input(description="What a task is asked for beside being reported on.")
class TaskOptions:
    """The options of a new task."""

    tags: list[str] | None = strawberry.field(
        default=UNSET, description="Words to find it by: at most 20, of 1 to 64 characters."
    )
    queue: str | None = strawberry.field(
        default=UNSET,
        description="The queue from which workers may claim it, 1 to 64 characters. Without one nobody can claim it; "
        "a queue exists by being named.",
    )
    priority: int | None = strawberry.field(
        default=UNSET, description="Higher ones are claimed first: -1,000 to 1,000, and 0 when nothing is said."
    )
    start_at: datetime | None = strawberry.field(
        default=UNSET, description="It cannot be claimed before. A time that has passed means now."
    )
    depends_on: list[strawberry.ID] | None = strawberry.field(
        default=UNSET,
        description="At most 100 tasks that must succeed before it can be claimed. They must exist; in `createMany` "
        "they may be created with it.",
    )
    on_dependency_failure: OnDependencyFailure | None = strawberry.field(
        default=OnDependencyFailure.CANCEL,
        description="What becomes of it when one of those fails, is canceled or is deleted.",
    )
    retry: RetryInput | None = strawberry.field(default=UNSET, description="How often it is tried.")
    expires_at: datetime | None = strawberry.field(
        default=UNSET, description="It fails if it has not ended by then. Not before `startAt`."
    )
    keep_for_seconds: int | None = strawberry.field(
        default=UNSET,
        description="So long after its end it is deleted with its history, 0 to 316,224,000. Without it the server's "
        "own rule holds, if it has one.",
    )


def options_of(asked: TaskOptions | None) -> Options | None:
    """The options as the storage takes them; what is out of bounds is refused."""
    if not asked:
        return None
    return Options(
        tags=given(asked.tags) or (),
        queue=given(asked.queue),
        priority=given(asked.priority) or 0,
        start_at=given(asked.start_at),
        depends_on=given(asked.depends_on) or (),
        on_dependency_failure=asked.on_dependency_failure or OnDependencyFailure.CANCEL,
        retry=_retry(asked.retry) if asked.retry else Retry(max_attempts=1),
        expires_at=given(asked.expires_at),
        keep_for_s=given(asked.keep_for_seconds),
    )


def _retry(asked: RetryInput) -> Retry:
    initial_s, max_s, factor = asked.initial_delay_seconds, asked.max_delay_seconds, asked.factor
    return Retry(
        max_attempts=asked.max_attempts,
        initial_s=INITIAL_DELAY_DEFAULT_S if initial_s is None else initial_s,
        max_s=MAX_DELAY_DEFAULT_S if max_s is None else max_s,
        factor=FACTOR_DEFAULT if factor is None else factor,
    )
