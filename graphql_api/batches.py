"""Many tasks by one mutation: created all or none, reported on each by itself, deleted by a filter."""

from typing import Annotated, Any, Final, NamedTuple

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

import storage
from graphql_api.audit import Action, recorded
from graphql_api.auth import Viewer
from graphql_api.context import Info
from graphql_api.errors import RateLimited, refusal
from graphql_api.filters import TaskFilter, filter_of
from graphql_api.options import TaskOptions, options_of
from graphql_api.types import EventInput, Task, given
from storage import (
    REPORTS_MAX,
    AddEvent,
    BadInput,
    Cancel,
    Complete,
    Create,
    CreateMany,
    Delete,
    Fail,
    Permission,
    Refusal,
    Report,
    Status,
    TaskNotFound,
    UpdateProgress,
    check_range,
)

# Tasks that are looked for, and deleted, together.
DELETED_TOGETHER: Final = 500
# Tasks that one `deleteMany` deletes; whoever wants more gone asks again.
DELETED_MAX: Final = 10_000


@strawberry.input(description="A task to create, with the arguments of `create`.")
class NewTask:
    """One of several new tasks."""

    task_id: strawberry.ID = strawberry.field(
        description="An ID that nobody can guess, 1 to 255 characters: whoever knows it may be allowed to read and "
        "report."
    )
    status: Status | None = strawberry.field(
        default=UNSET, description="Where it is in its life: PENDING when nothing is said."
    )
    progress: int | None = strawberry.field(default=UNSET, description="How far it has come, 0 to 100.")
    metadata: JSON | None = strawberry.field(default=UNSET, description="Anything to attach; at most 256 KB as JSON.")
    options: TaskOptions | None = strawberry.field(
        default=UNSET, description="What it is asked for beside being reported on."
    )


@strawberry.input(
    description="A report on a task: exactly one of `event`, `progress`, `complete`, `fail` and `cancel`."
)
class TaskReport:
    """One of several reports."""

    task_id: strawberry.ID = strawberry.field(description="The ID of the task.")
    event: EventInput | None = strawberry.field(default=UNSET, description="As `addEvent`: the event.")
    progress: int | None = strawberry.field(
        default=UNSET, description="As `updateProgress`: how far the work has come, 0 to 100."
    )
    complete: bool | None = strawberry.field(default=UNSET, description="As `complete`: that the task succeeded.")
    fail: str | None = strawberry.field(
        default=UNSET, description="As `fail`: what went wrong, in words; at most 64 KB."
    )
    retry: bool | None = strawberry.field(
        default=True, description="With `fail`: whether another attempt may be of use. With the others, nothing."
    )
    cancel: bool | None = strawberry.field(default=UNSET, description="As `cancel`: that nobody wants it any more.")
    metadata: JSON | None = strawberry.field(
        default=UNSET,
        description="Anything to attach to `complete`, `fail` or `cancel`; an event has its own. At most 256 KB as "
        "JSON.",
    )
    idempotency_key: str | None = strawberry.field(
        default=UNSET, description="As with the single reports: the same key adds no second event."
    )
    token: str | None = strawberry.field(
        default=UNSET, description="The token of the lease under which it is reported, from `claim`."
    )


@strawberry.type(description="Why a report was not taken.")
class ReportError:
    """A refusal of one of several reports."""

    code: str = strawberry.field(description="The code that the single mutation would answer with.")
    message: str = strawberry.field(description="What was expected and what was got, for people.")


@strawberry.type(description="What came of one of several reports: the task, or an error.")
class ReportResult:
    """The outcome of one of several reports."""

    task_id: strawberry.ID = strawberry.field(description="The ID of the task.")
    task: Task | None = strawberry.field(description="The task as the report left it.")
    error: ReportError | None = strawberry.field(description="Why the report was not taken; nothing was changed by it.")


class _Result(NamedTuple):
    """The value of a ``ReportResult``."""

    task_id: str
    task: storage.Task | None
    error: ReportError | None


async def _create_many(
    info: Info,
    tasks: Annotated[
        list[NewTask],
        strawberry.argument(
            description="At most 1,000. They may depend on each other, in any order but not in a circle."
        ),
    ],
) -> tuple[storage.Task, ...]:
    """Create several tasks."""
    viewer = info.context.viewer
    with recorded(Action.TASK_CREATE_MANY, viewer, tasks=len(tasks)):
        viewer.require(Permission.CREATE)
        info.context.count(len(tasks))
        commands = tuple(_creation(place, task, viewer) for place, task in enumerate(tasks))
        return await info.context.storage.writer.create_many(CreateMany(tasks=commands))


def _creation(place: int, task: NewTask, viewer: Viewer) -> Create:
    try:
        return Create(
            task_id=task.task_id,
            status=given(task.status) or Status.PENDING,
            progress=given(task.progress) or 0,
            metadata=given(task.metadata),
            created_by=viewer.name,
            options=options_of(task.options or None),
        )
    except Refusal as refused:
        raise refused.at(place) from None


async def _report(
    info: Info,
    reports: Annotated[
        list[TaskReport],
        strawberry.argument(description="At most 1,000. Those on one task are done in their order."),
    ],
) -> list[_Result]:
    """Make several reports."""
    check_range("the number of reports", len(reports), 0, REPORTS_MAX)
    info.context.count(len(reports))
    outcomes: list[Any] = [_command(report, info.context.viewer) for report in reports]
    commands = [command for command in outcomes if isinstance(command, Report)]
    done = iter(await info.context.storage.writer.submit_each(commands))
    return [
        _result(report, next(done) if isinstance(outcome, Report) else outcome)
        for report, outcome in zip(reports, outcomes, strict=True)
    ]


def _command(report: TaskReport, viewer: Viewer) -> Report | Refusal:
    """The command that a report is, or why there is none."""
    try:
        viewer.require(Permission.REPORT, report.task_id)
        return _meaning(report, viewer)
    except Refusal as refused:
        return refused


def _meaning(report: TaskReport, viewer: Viewer) -> Report:
    common: dict[str, Any] = {
        "task_id": report.task_id,
        "idempotency_key": given(report.idempotency_key),
        "actor": viewer.name,
        "token": given(report.token),
    }
    metadata = given(report.metadata)
    said = [kind for kind in _KINDS if _is_said(getattr(report, kind))]
    if len(said) != 1:
        got = " and ".join(said) or "none"
        raise BadInput(f"A report must hold exactly one of {', '.join(_KINDS)}, got {got}.")
    (kind,) = said
    value: Any = getattr(report, kind)
    if metadata is not None and kind in ("event", "progress"):
        raise BadInput("metadata goes with complete, fail or cancel; an event has its own.")
    match kind:
        case "progress":
            return UpdateProgress(progress=value, **common)
        case "event":
            return AddEvent(
                event_type=value.event_type,
                message=value.message,
                progress=given(value.progress),
                metadata=given(value.metadata),
                **common,
            )
        case "fail":
            return Fail(error=value, retry=report.retry is not False, metadata=metadata, **common)
        case "complete":
            return Complete(metadata=metadata, **common)
        case _:
            return Cancel(metadata=metadata, **common)


def _is_said(value: Any) -> bool:
    # Not by equality: a progress of 0 equals False.
    return value is not UNSET and value is not None and value is not False


_KINDS: Final = ("event", "progress", "complete", "fail", "cancel")


def _result(report: TaskReport, outcome: storage.Task | BaseException | None) -> _Result:
    if isinstance(outcome, storage.Task):
        return _Result(report.task_id, outcome, None)
    if not isinstance(outcome, Exception):
        assert outcome is not None
        raise outcome
    shown = refusal(outcome)
    return _Result(report.task_id, None, ReportError(code=shown["extensions"]["code"], message=shown["message"]))


async def _delete_many(
    info: Info,
    filter: Annotated[  # noqa: A002 - the contract's word
        TaskFilter, strawberry.argument(description="Which tasks. It must name something.")
    ],
) -> int:
    """Delete the tasks that a filter finds."""
    viewer = info.context.viewer
    opened = info.context.storage
    said = {name: value for name, value in vars(filter).items() if given(value) is not None}
    with recorded(Action.TASK_DELETE_MANY, viewer, filter=_words(said)) as facts:
        viewer.require(Permission.DELETE)
        wanted = filter_of(filter)
        if wanted.empty:
            raise BadInput("filter must name something: an empty one would delete every task.")
        deleted, after = 0, None
        facts["tasks"] = deleted
        while deleted < DELETED_MAX:
            page = await opened.reader.page(min(DELETED_TOGETHER, DELETED_MAX - deleted), after, wanted)
            try:
                info.context.count(len(page.tasks))
            except RateLimited:
                # Who has deleted some is told how many, and asks again.
                if not deleted:
                    raise
                break
            outcomes = await opened.writer.submit_each(
                [Delete(task_id=task.task_id, wanted=wanted) for task in page.tasks]
            )
            deleted += sum(outcome is None for outcome in outcomes)
            facts["tasks"] = deleted
            # One that somebody else has deleted meanwhile is gone, as was wanted; one that is no longer meant stays.
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, TaskNotFound):
                    raise outcome
            if not page.has_next:
                break
            after = storage.cursor(page.tasks[-1])
        return deleted


def _words(wanted: dict[str, Any]) -> str:
    """A filter in a record."""
    return ", ".join(
        f"{name}: {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in wanted.items()
    )


create_many = strawberry.mutation(
    resolver=_create_many,
    description="Create several tasks, all or none; an error names the place of the one that is to blame, from 0, as "
    "`index`. Needs CREATE.",
    graphql_type=list[Task],
)
report = strawberry.mutation(
    resolver=_report,
    description="Make several reports, each with its own outcome, in the order in which they are given. Needs REPORT.",
    graphql_type=list[ReportResult],
)
delete_many = strawberry.mutation(
    resolver=_delete_many,
    description="Remove the tasks that a filter finds, with their histories: at most 10,000, newest first, and no more "
    "than the caller's rate allows; returns how many. Ask again until it is 0. Needs DELETE.",
)
