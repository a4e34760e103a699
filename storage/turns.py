"""What becomes of plans, in words that can be counted: attempts that are over, leases that ran out, times that came."""

from enum import StrEnum

from storage.commands import Command, Fail, Heartbeat, Release, Settle, Tick
from storage.task import Status, Task


class Turn(StrEnum):
    """Something that happened to a task that has a plan."""

    # A worker has said that it is alive.
    HEARTBEAT = "heartbeat"
    # It has given the task back.
    RELEASED = "released"
    # It said nothing for too long.
    LEASE_RAN_OUT = "lease_ran_out"
    # An attempt is over without success, and there will be another.
    RETRIED = "retried"
    # The same, and it was the last.
    SPENT = "spent"
    # The time has come at which it may be claimed.
    STARTED = "started"
    # It had not ended by the time at which it had to.
    EXPIRED = "expired"
    # What became of a task for which it waited has been brought to it.
    SETTLED = "settled"
    # It had been kept for long enough.
    REMOVED = "removed"


def turns_of(before: Task, command: Command, after: Task | None) -> tuple[Turn, ...]:
    """What happened when a command made one of the other (None: it is deleted), and changed its plan."""
    if after is None:
        return (Turn.REMOVED,) if isinstance(command, Tick) else ()
    match command:
        case Heartbeat():
            return (Turn.HEARTBEAT,)
        case Release():
            return (Turn.RELEASED,)
        case Settle():
            return (Turn.SETTLED,)
        case Fail():
            return (Turn.SPENT if after.status.final else Turn.RETRIED,)
        case Tick():
            return _ticked(before, after)
        case _:
            return ()


def _ticked(before: Task, after: Task) -> tuple[Turn, ...]:
    assert before.plan is not None
    assert after.plan is not None
    if after.status is Status.FAILED:
        expires_at = before.plan.expires_at
        if expires_at is not None and expires_at <= after.updated_at:
            return (Turn.EXPIRED,)
        return Turn.LEASE_RAN_OUT, Turn.SPENT
    if after.status is not before.status:
        return Turn.LEASE_RAN_OUT, Turn.RETRIED
    return (Turn.STARTED,) if after.plan.ready and not before.plan.ready else ()
