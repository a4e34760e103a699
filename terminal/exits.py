"""How a command ends: its code, and the sentence on stderr when it could not do what it was asked.

Codes from 64 on are those of `sysexits.h`, where they have one for the case; those below say what became of a task.
"""

from enum import IntEnum
from typing import Final, Self

import typer


class Exit(IntEnum):
    """The code of a command's end, and what it means."""

    def __new__(cls, code: int, meaning: str) -> Self:
        """A code that knows its meaning."""
        made = int.__new__(cls, code)
        made._value_ = code
        made.meaning = meaning
        return made

    meaning: str

    DONE = 0, "done; of `watch`: the task succeeded"
    FAILED = 1, "of `watch`: the task failed; of commands of the server: it could not be done"
    CANCELED = 2, "of `watch`: the task was canceled"
    DELETED = 3, "of `watch` and `tail`: the task was deleted while it was looked at"
    FINISHED = 4, "the task has ended and takes no more reports"
    USAGE = 64, "the command line is wrong; nothing was sent"
    REFUSED = 65, "the server refused what it was given"
    NOT_FOUND = 66, "there is no such task"
    UNREACHABLE = 69, "the server cannot be reached, or cannot serve"
    FAULT = 70, "a fault of the server"
    EXISTS = 73, "a task with this ID exists"
    TIMEOUT = 75, "what was waited for did not come within `--timeout`"
    NO_API = 76, "what answered is not this API, or of another version"
    NO_PERMISSION = 77, "the credential is missing, wrong, or does not allow it"
    INTERRUPTED = 130, "interrupted by Ctrl-C"
    UNREAD = 141, "whoever read the output went away"


OF_STATUS: Final = {"SUCCESS": Exit.DONE, "FAILED": Exit.FAILED, "CANCELED": Exit.CANCELED}
OF_CODE: Final = {
    "BAD_USER_INPUT": Exit.REFUSED,
    "TOO_LARGE": Exit.REFUSED,
    "IDEMPOTENCY_CONFLICT": Exit.REFUSED,
    "TASK_NOT_FOUND": Exit.NOT_FOUND,
    "TASK_ALREADY_EXISTS": Exit.EXISTS,
    "TASK_FINISHED": Exit.FINISHED,
    "LEASE_LOST": Exit.FINISHED,
    "UNAUTHENTICATED": Exit.NO_PERMISSION,
    "FORBIDDEN": Exit.NO_PERMISSION,
    "OPERATION_NOT_ALLOWED": Exit.NO_PERMISSION,
    "UNAVAILABLE": Exit.UNREACHABLE,
    "RATE_LIMITED": Exit.UNREACHABLE,
    "INTERNAL_SERVER_ERROR": Exit.FAULT,
}


class Failure(typer.TyperException):
    """A command that ends without having done what it was asked; the message is a sentence for stderr."""

    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
