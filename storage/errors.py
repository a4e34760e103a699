"""What can go wrong with a task, as one tree; each refusal has a stable code.

::

    Refusal
    ├── BadInput              BAD_USER_INPUT        a value that no task could take
    ├── TooLarge              TOO_LARGE             a value over a named bound
    ├── TaskNotFound          TASK_NOT_FOUND
    ├── TaskAlreadyExists     TASK_ALREADY_EXISTS
    ├── TaskFinished          TASK_FINISHED         with the status it has
    ├── IdempotencyConflict   IDEMPOTENCY_CONFLICT
    ├── LeaseLost             LEASE_LOST            the task is no longer the worker's
    ├── ListOutdated          LIST_OUTDATED         changes of a list were missed; it is to be read anew
    └── Unavailable           UNAVAILABLE           something that is needed could not be had in time; a retry may help
        ├── NotConnected                            no connection to the database
        └── OutcomeUnknown                          the connection died during a commit
    StartupError              the program cannot start, and says why

A refusal concerns one command or one lookup and changes nothing; OutcomeUnknown alone cannot say whether it did. A
message says what was expected and what was got; the facts are attributes, and ``extensions`` are those that a client
may read.
"""

from typing import Any, ClassVar, Self


class Refusal(Exception):
    """The request was understood and not done; nothing was changed by it, unless it is an OutcomeUnknown."""

    code: ClassVar[str]
    # Of several things that were asked together, which one it concerns.
    index: int | None = None

    @property
    def extensions(self) -> dict[str, Any]:
        """The facts a client can act on, beside the code."""
        return {}

    def at(self, index: int) -> Self:
        """The same, and which of several things it concerns."""
        self.index = index
        self.args = (f"{index}: {self}",)
        return self


class BadInput(Refusal):
    """A value that no task could take."""

    code = "BAD_USER_INPUT"


class TooLarge(Refusal):
    """A value over a named bound."""

    code = "TOO_LARGE"


class TaskNotFound(Refusal):
    """There is no task with this ID: it was never created, or it was deleted."""

    code = "TASK_NOT_FOUND"

    def __init__(self, task_id: str) -> None:
        super().__init__(f'There is no task "{task_id}".')
        self.task_id = task_id


class TaskAlreadyExists(Refusal):
    """A task with this ID exists, so it cannot be created."""

    code = "TASK_ALREADY_EXISTS"

    def __init__(self, task_id: str) -> None:
        super().__init__(f'Task "{task_id}" exists already.')
        self.task_id = task_id


class TaskFinished(Refusal):
    """The task has a final status, which nothing but a deletion leaves."""

    code = "TASK_FINISHED"

    def __init__(self, task_id: str, status: str, wanted: str) -> None:
        super().__init__(f'Task "{task_id}" is {status} and can no longer {wanted}.')
        self.task_id = task_id
        self.status = status

    @property
    def extensions(self) -> dict[str, Any]:
        """The status that the task has."""
        return {"status": self.status}


class IdempotencyConflict(Refusal):
    """The idempotency key was used on this task before, with another operation or other arguments."""

    code = "IDEMPOTENCY_CONFLICT"

    def __init__(self, task_id: str, idempotency_key: str) -> None:
        super().__init__(
            f'The idempotency key "{idempotency_key}" was used on task "{task_id}" before, '
            "with another operation or other arguments."
        )
        self.task_id = task_id
        self.idempotency_key = idempotency_key


class LeaseLost(Refusal):
    """The token is not that of the task's lease: the lease ran out or was given back, or is another task's."""

    code = "LEASE_LOST"

    def __init__(self, task_id: str) -> None:
        super().__init__(f'Task "{task_id}" has no lease with this token; it may be another worker\'s by now.')
        self.task_id = task_id


class ListOutdated(Refusal):
    """A live list could not be told of all that has changed. Subscribe again, and then read the list anew."""

    code = "LIST_OUTDATED"

    def __init__(self) -> None:
        super().__init__("The list could not be told of all that has changed; subscribe again, and then read it anew.")

    @property
    def extensions(self) -> dict[str, Any]:
        """That the same request may succeed at once."""
        return {"retryable": True}


class Unavailable(Refusal):
    """Something that the request needs could not be had in time: the database, a place in a queue, an issuer's keys."""

    code = "UNAVAILABLE"

    @property
    def extensions(self) -> dict[str, Any]:
        """That the same request may succeed later."""
        return {"retryable": True}


class NotConnected(Unavailable):
    """No connection to the database could be had; nothing was tried."""


class OutcomeUnknown(Unavailable):
    """The connection broke while something was put on disk, so nobody here can know whether it was."""

    def __init__(self) -> None:
        super().__init__(
            "The connection to the database broke during the commit: the change may or may not have been made. "
            "Try again with the same idempotencyKey, or read the task."
        )


class StartupError(Exception):
    """The program cannot start; the message says why and what to do, and is all that a person sees of it."""
