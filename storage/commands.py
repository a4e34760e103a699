"""What one can ask of a task, as frozen values. A command that exists is well-formed: making it checks its bounds.

Whether the task allows it is for ``lifecycle`` to say; doing it is for ``writer``.
"""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Final

import orjson

from storage.limits import (
    ACTOR_CHARACTERS_MAX,
    CREATED_BY_CHARACTERS_MAX,
    IDEMPOTENCY_KEY_CHARACTERS_MAX,
    TASK_ID_CHARACTERS_MAX,
    check_message,
    check_name,
    check_progress,
    metadata_json,
)
from storage.task import EventType, Json, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something asked of the one task that it names."""

    # The name of the mutation; part of what an idempotency key stands for.
    operation: ClassVar[str]

    task_id: str

    def __post_init__(self) -> None:
        check_name("taskId", self.task_id, TASK_ID_CHARACTERS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(Command):
    """Make a task. It may be born in any status: an import may bring finished ones."""

    operation = "create"

    status: Status = Status.PENDING
    progress: int = 0
    metadata: Any = None
    created_by: str | None = None
    # The text that the database keeps, made once.
    metadata_json: Json | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        check_progress(self.progress)
        if self.created_by is not None:
            check_name("createdBy", self.created_by, CREATED_BY_CHARACTERS_MAX)
        object.__setattr__(self, "metadata_json", metadata_json(self.metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Command):
    """Remove a task with its history."""

    operation = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Command):
    """Something that happened to a task; it becomes exactly one event."""

    metadata: Any = None
    idempotency_key: str | None = None
    # Who reports; None for somebody without a credential. Not part of the fingerprint: a repetition may come with
    # another credential, and is one nevertheless.
    actor: str | None = None
    metadata_json: Json | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        if self.actor is not None:
            check_name("actor", self.actor, ACTOR_CHARACTERS_MAX)
        if self.idempotency_key is not None:
            check_name("idempotencyKey", self.idempotency_key, IDEMPOTENCY_KEY_CHARACTERS_MAX)
        object.__setattr__(self, "metadata_json", metadata_json(self.metadata))

    def arguments(self) -> list[Any]:
        """What a repetition under the same idempotency key must repeat."""
        return [self.metadata]

    def fingerprint(self) -> bytes:
        """Sixteen bytes that are the same for the same operation with the same arguments."""
        text = orjson.dumps([self.operation, *self.arguments()], option=orjson.OPT_SORT_KEYS)
        return blake2b(text, digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddEvent(Report):
    """Write an event of the caller's own into the log, with or without progress."""

    operation = "addEvent"

    event_type: EventType
    message: str
    progress: int | None = None

    def __post_init__(self) -> None:
        Report.__post_init__(self)
        check_message("message", self.message)
        if self.progress is not None:
            check_progress(self.progress)

    def arguments(self) -> list[Any]:
        """What a repetition under the same idempotency key must repeat."""
        return [self.event_type, self.message, self.progress, self.metadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateProgress(Report):
    """Say how far the work has come. It may fall: a retry starts over."""

    operation = "updateProgress"

    progress: int

    def __post_init__(self) -> None:
        Report.__post_init__(self)
        check_progress(self.progress)

    def arguments(self) -> list[Any]:
        """What a repetition under the same idempotency key must repeat."""
        return [self.progress]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete(Report):
    """Say that the work succeeded."""

    operation = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Report):
    """Say that the work failed, and why."""

    operation = "fail"

    error: str

    def __post_init__(self) -> None:
        Report.__post_init__(self)
        check_message("error", self.error)

    def arguments(self) -> list[Any]:
        """What a repetition under the same idempotency key must repeat."""
        return [self.error, self.metadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Report):
    """Say that nobody wants the work any more."""

    operation = "cancel"


COMMAND_BYTES: Final = 256


def size_of(command: Command) -> int:
    """Roughly how many bytes a command keeps in memory; groups and queues are bounded by it."""
    size = COMMAND_BYTES
    if isinstance(command, Create | Report):
        size += len(command.metadata_json or "")
    match command:
        case AddEvent(message=words) | Fail(error=words):
            size += len(words)
    return size
