"""What one can ask of a task, as frozen values. A command that exists is well-formed: making it checks its bounds.

Whether the task allows it is for ``lifecycle`` to say; doing it is for ``writer``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from hashlib import blake2b
from typing import Any, ClassVar, Final

import orjson

from storage.errors import BadInput, TooLarge
from storage.filters import Filter
from storage.limits import (
    ACTOR_CHARACTERS_MAX,
    CREATE_MANY_BYTES_MAX,
    CREATE_MANY_TASKS_MAX,
    CREATED_BY_CHARACTERS_MAX,
    IDEMPOTENCY_KEY_CHARACTERS_MAX,
    LEASE_MAX_S,
    LEASE_TOKEN_CHARACTERS_MAX,
    TASK_ID_CHARACTERS_MAX,
    check_message,
    check_name,
    check_progress,
    check_range,
    metadata_json,
)
from storage.options import Options
from storage.task import EventType, Json, Outcome, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something asked of the one task that it names."""

    # The name of the mutation; part of what an idempotency key stands for.
    operation: ClassVar[str]

    task_id: str

    def __post_init__(self) -> None:
        check_name("taskId", self.task_id, TASK_ID_CHARACTERS_MAX)

    @property
    def task_ids(self) -> Sequence[str]:
        """The tasks that it is about: one, save for a command made of several."""
        return (self.task_id,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(Command):
    """Make a task. It may be born in any status: an import may bring finished ones."""

    operation = "create"

    status: Status = Status.PENDING
    progress: int = 0
    metadata: Any = None
    created_by: str | None = None
    options: Options | None = None
    # The text that the database keeps, made once.
    metadata_json: Json | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        check_progress(self.progress)
        if self.created_by is not None:
            check_name("createdBy", self.created_by, CREATED_BY_CHARACTERS_MAX)
        if self.task_id in self.depends_on:
            raise BadInput(f'Task "{self.task_id}" cannot depend on itself.')
        object.__setattr__(self, "metadata_json", metadata_json(self.metadata))

    @property
    def depends_on(self) -> Sequence[str]:
        """The tasks that it waits for."""
        return () if self.options is None else self.options.depends_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Command):
    """Remove a task with its history."""

    operation = "delete"
    # Only if it is one of those that are meant, when its row is locked; None: whatever it is.
    wanted: Filter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Command):
    """Something that happened to a task; it becomes exactly one event."""

    metadata: Any = None
    idempotency_key: str | None = None
    # Who reports; None for somebody without a credential. Not part of the fingerprint: a repetition may come with
    # another credential, and is one nevertheless.
    actor: str | None = None
    # Of the lease under which it is reported; None for somebody who reports without one. Not part of it either: what a
    # report did stays done when the lease is over.
    token: str | None = None
    metadata_json: Json | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        _check_actor(self.actor)
        if self.idempotency_key is not None:
            check_name("idempotencyKey", self.idempotency_key, IDEMPOTENCY_KEY_CHARACTERS_MAX)
        if self.token is not None:
            check_name("token", self.token, LEASE_TOKEN_CHARACTERS_MAX)
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
    """Say that the work failed, and why. A task with attempts left is tried again."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(Command):
    """Give a task that is ready to a worker, for some time. The claimer asks it, for whom it has found a task."""

    operation = "claim"

    worker: str
    token: str
    lease_s: int
    actor: str | None = None

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        _check_actor(self.actor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Command):
    """Say that a worker is alive, and keep its lease for so long from now. It leaves no event, being no history."""

    operation = "heartbeat"

    token: str
    lease_s: int

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        check_name("token", self.token, LEASE_TOKEN_CHARACTERS_MAX)
        check_range("leaseSeconds", self.lease_s, 1, LEASE_MAX_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Command):
    """Give a task back that was claimed. The attempt does not count."""

    operation = "release"

    token: str
    actor: str | None = None

    def __post_init__(self) -> None:
        Command.__post_init__(self)
        _check_actor(self.actor)
        check_name("token", self.token, LEASE_TOKEN_CHARACTERS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Command):
    """Do what time has made due: the timers ask it. A task of which nothing is due stays as it is."""

    operation = "tick"

    # How long finished tasks are kept that do not say so themselves; None: for good.
    keep_finished_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Tell a task what became of one that it depends on. It is true when the table of dependencies says so, too."""

    operation = "settle"

    on: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateMany:
    """Create several tasks, all or none. They may depend on each other, in any order but not in a circle."""

    operation = "createMany"

    tasks: tuple[Create, ...]
    task_ids: Sequence[str] = field(init=False, repr=False)
    # Their places in an order in which each comes after those among them on which it depends.
    order: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("the number of tasks", len(self.tasks), 0, CREATE_MANY_TASKS_MAX)
        if (size := size_of(self)) > CREATE_MANY_BYTES_MAX:
            raise TooLarge(f"tasks must have at most {CREATE_MANY_BYTES_MAX} bytes together, got {size}.")
        object.__setattr__(self, "task_ids", [task.task_id for task in self.tasks])
        places: dict[str, int] = {}
        for place, task in enumerate(self.tasks):
            if places.setdefault(task.task_id, place) != place:
                raise BadInput(f'Task "{task.task_id}" is named twice.').at(place)
        waits_for = {
            place: [places[on] for on in task.depends_on if on in places] for place, task in enumerate(self.tasks)
        }
        try:
            object.__setattr__(self, "order", tuple(TopologicalSorter(waits_for).static_order()))
        except CycleError as error:
            circle: list[int] = error.args[1]
            names = ", ".join(f'"{self.tasks[place].task_id}"' for place in circle[1:])
            raise BadInput(f"These tasks wait for each other in a circle: {names}.").at(circle[0]) from None


COMMAND_BYTES: Final = 256


def size_of(command: Command | CreateMany) -> int:
    """Roughly how many bytes a command keeps in memory; groups and queues are bounded by it."""
    if isinstance(command, CreateMany):
        return sum(map(size_of, command.tasks))
    size = COMMAND_BYTES
    if isinstance(command, Create | Report):
        size += len(command.metadata_json or "")
    if isinstance(command, Create) and command.options is not None:
        # Each task that is waited for is locked and linked, which is as much to do as for a command.
        size += sum(map(len, (*command.options.tags, *command.depends_on))) + COMMAND_BYTES * len(command.depends_on)
    match command:
        case AddEvent(message=words) | Fail(error=words):
            size += len(words)
    return size


def _check_actor(actor: str | None) -> None:
    if actor is not None:
        check_name("actor", actor, ACTOR_CHARACTERS_MAX)
