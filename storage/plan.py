"""The arithmetic of plans: what follows from their times, and what is left of them after each step of a task.

What may be done when is for ``lifecycle`` to say. Two fields of a plan say nothing new and are made from the others by
``timed``, so that the database can find tasks by them: ``ready`` and ``due_at``.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from storage.task import Plan, Status, Task

# How much chance shortens or lengthens the pause before another attempt, so that those that failed together do not come
# back together.
JITTER: Final = 0.2
# Beyond it the pause is at its bound for any factor worth the name, and powers stay numbers.
EXPONENT_MAX: Final = 64


def timed(plan: Plan, status: Status, now: datetime) -> Plan:
    """The plan with what follows from the rest of it: whether it is ready, and when it is due."""
    due = [plan.lease_expires_at]
    ready = False
    if status.final:
        due.append(plan.delete_at)
    else:
        due.append(plan.expires_at)
        if status is Status.PENDING and plan.queue is not None and not plan.blocked_by:
            begins_at = max(plan.start_at or now, plan.next_attempt_at or now)
            ready = begins_at <= now
            if not ready:
                due.append(begins_at)
    return plan._replace(ready=ready, due_at=min((time for time in due if time is not None), default=None))


def ready_since(task: Task) -> datetime:
    """Since when a task that is ready has been so, roughly: what is noted on it meanwhile counts as the beginning."""
    assert task.plan is not None
    begins = (task.updated_at, task.plan.start_at, task.plan.next_attempt_at)
    return max(time for time in begins if time is not None)


def begun(plan: Plan) -> Plan:
    """The plan when an attempt begins."""
    return plan._replace(attempt=plan.attempt + 1, next_attempt_at=None)


def unclaimed(plan: Plan) -> Plan:
    """The plan without the lease and the right to report under it."""
    return plan._replace(worker=None, lease_expires_at=None, lease_token=None)


def ended(plan: Plan, now: datetime) -> Plan:
    """The plan of a task that ends now."""
    delete_at = None if plan.keep_for_s is None else now + timedelta(seconds=plan.keep_for_s)
    return plan._replace(worker=None, lease_expires_at=None, next_attempt_at=None, delete_at=delete_at)


def pause_s(plan: Plan, chance: float) -> float:
    """How long after the attempt that failed just now the next one may be made. The chance is a number from 0 to 1."""
    grown = plan.retry_initial_s * plan.retry_factor ** min(max(plan.attempt - 1, 0), EXPONENT_MAX)
    return min(float(plan.retry_max_s), grown * (1 - JITTER + 2 * JITTER * chance))


def without(names: Sequence[str], name: str) -> tuple[str, ...]:
    """The names but for one."""
    return tuple(other for other in names if other != name)
