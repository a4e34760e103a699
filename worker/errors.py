"""What can go wrong between a worker and the server, as one tree; and what a worker raises to say more than that.

::

    WorkerError
    ├── Unreachable     no answer that counts, in the time that there was
    └── Refused         the server understood, and said no; its code says why
        └── Unwanted    the task has ended or is gone: nobody wants the work any more
            └── LeaseLost   the task is no longer this worker's
"""

from collections.abc import Mapping
from typing import Any, Final


class NoRetry(Exception):
    """Raised by the work itself: it failed, and another attempt would, too. The task is not tried again."""


class WorkerError(Exception):
    """Something that kept this library from doing what was asked."""


class Unreachable(WorkerError):
    """The server gave no answer that counts, in the time that there was; or `answered` that it cannot serve."""

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class Refused(WorkerError):
    """The server understood and said no. `code` is one of its stable codes, `extensions` are its facts."""

    def __init__(self, code: str, message: str, extensions: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.extensions = dict(extensions or {})


class Unwanted(Refused):
    """The task has ended, by somebody else's word or by time, or was deleted: nobody wants the work any more."""


class LeaseLost(Unwanted):
    """The task is no longer this worker's; it may be another's by now."""

    def __init__(self, message: str, extensions: Mapping[str, Any] | None = None) -> None:
        super().__init__(LEASE_LOST, message, extensions)


LEASE_LOST: Final = "LEASE_LOST"
TASK_FINISHED: Final = "TASK_FINISHED"
_UNWANTED: Final = frozenset({TASK_FINISHED, "TASK_NOT_FOUND"})


def refusal(code: str, message: str, extensions: Mapping[str, Any]) -> Refused:
    """The error for a code of the server."""
    if code == LEASE_LOST:
        return LeaseLost(message, extensions)
    return (Unwanted if code in _UNWANTED else Refused)(code, message, extensions)
