"""What may be asked for when a task is created, as frozen values. Options that exist are well-formed: to make them is
to check their bounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from storage.errors import BadInput
from storage.limits import TASK_ID_CHARACTERS_MAX, check_name, check_range
from storage.task import OnDependencyFailure

TAGS_MAX: Final = 20
TAG_CHARACTERS_MAX: Final = 64
QUEUE_CHARACTERS_MAX: Final = 64
PRIORITY_MAX: Final = 1_000
DEPENDENCIES_MAX: Final = 100
ATTEMPTS_MAX: Final = 100
RETRY_DELAY_MAX_S: Final = 30 * 24 * 3600
RETRY_FACTOR_MAX: Final = 100.0
KEEP_FOR_MAX_S: Final = 10 * 366 * 24 * 3600
# Python and PostgreSQL know times up to 9999, and seconds are added to these.
YEAR_MAX: Final = 9_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a task is tried, and how long after each failure."""

    max_attempts: int
    initial_s: int = 10
    max_s: int = 3600
    factor: float = 2.0

    def __post_init__(self) -> None:
        check_range("maxAttempts", self.max_attempts, 1, ATTEMPTS_MAX)
        check_range("initialDelaySeconds", self.initial_s, 0, RETRY_DELAY_MAX_S)
        check_range("maxDelaySeconds", self.max_s, 0, RETRY_DELAY_MAX_S)
        if not (math.isfinite(self.factor) and 1 <= self.factor <= RETRY_FACTOR_MAX):
            raise BadInput(f"factor must be 1 to {RETRY_FACTOR_MAX:g}, got {self.factor}.")


# Without options of its own, the first failure is the end.
ONCE: Final = Retry(max_attempts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a task is asked for beside being reported on."""

    tags: Sequence[str] = ()
    # The queue from which workers may claim it; None: nobody may.
    queue: str | None = None
    # Higher ones are claimed first.
    priority: int = 0
    # Not claimed before; a time in the past means now.
    start_at: datetime | None = None
    # Tasks that must succeed before it is claimed.
    depends_on: Sequence[str] = ()
    on_dependency_failure: OnDependencyFailure = OnDependencyFailure.CANCEL
    retry: Retry = ONCE
    # When it fails if it has not ended.
    expires_at: datetime | None = None
    # How long after its end it is removed; None: as the server has it for all.
    keep_for_s: int | None = None

    def __post_init__(self) -> None:
        # Once each, in the order in which they were given.
        object.__setattr__(self, "tags", tuple(dict.fromkeys(self.tags)))
        object.__setattr__(self, "depends_on", tuple(dict.fromkeys(self.depends_on)))
        _check_count("tags", self.tags, TAGS_MAX)
        for tag in self.tags:
            check_name("tag", tag, TAG_CHARACTERS_MAX)
        if self.queue is not None:
            check_name("queue", self.queue, QUEUE_CHARACTERS_MAX)
        check_range("priority", self.priority, -PRIORITY_MAX, PRIORITY_MAX)
        _check_count("dependsOn", self.depends_on, DEPENDENCIES_MAX)
        for task_id in self.depends_on:
            check_name("dependsOn", task_id, TASK_ID_CHARACTERS_MAX)
        _check_time("startAt", self.start_at)
        _check_time("expiresAt", self.expires_at)
        if self.start_at is not None and self.expires_at is not None and self.expires_at < self.start_at:
            raise BadInput(f"expiresAt must not be before startAt, got {self.expires_at} and {self.start_at}.")
        if self.keep_for_s is not None:
            check_range("keepForSeconds", self.keep_for_s, 0, KEEP_FOR_MAX_S)


def _check_count(name: str, values: Sequence[str], count_max: int) -> None:
    if len(values) > count_max:
        raise BadInput(f"{name} must have at most {count_max} items, got {len(values)}.")


def _check_time(name: str, value: datetime | None) -> None:
    if value is not None and (value.tzinfo is None or value.year > YEAR_MAX):
        raise BadInput(f"{name} must be a time with an offset, at most in the year {YEAR_MAX}, got {value}.")
