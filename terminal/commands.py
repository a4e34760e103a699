"""The commands for tasks: what can be typed, and what it says. What they do is loaded when they run."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from terminal import values
from terminal.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from terminal.session import Session


class Status(StrEnum):
    """What a task may have come to."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class EventType(StrEnum):
    """What an event is to those who read it."""

    LOG = "LOG"
    PROGRESS = "PROGRESS"
    ERROR = "ERROR"
    SUCCESS = "SUCCESS"


def _ids(incomplete: str) -> list[tuple[str, str]]:
    from terminal.completion import task_ids

    return task_ids(incomplete)


TaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help="The task.", autocompletion=_ids, show_default=False)]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="SPECTRAL_URL", metavar="URL", help="The server. The default is yours on this machine.",
        show_default=False,
    ),
]  # fmt: skip
Patience = Annotated[
    float,
    typer.Option("--patience", min=0, max=3600, metavar="SECONDS", help="How long to try again while no answer comes."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Metadata = Annotated[
    Any,
    typer.Option(
        "--metadata", "-m", parser=values.metadata, metavar="JSON",
        help="Any JSON to attach: as text, from a file as @FILE, from stdin as -.", show_default=False,
    ),
]  # fmt: skip
Key = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", metavar="KEY",
        help="The same key again writes nothing twice. Without one each command makes its own.", show_default=False,
    ),
]  # fmt: skip
Statuses = Annotated[
    list[Status] | None,
    typer.Option(
        "--status", "-s", metavar="STATUS", case_sensitive=False,
        help="Only PENDING, IN_PROGRESS, SUCCESS, FAILED or CANCELED; repeat it for several.",
    ),
]  # fmt: skip
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", "-t", metavar="TAG", help="Only with this tag; repeat it for those with all."),
]
Queue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Only of this queue.")]
Prefix = Annotated[str | None, typer.Option("--prefix", metavar="TEXT", help="Only with IDs that begin like this.")]
CreatedBy = Annotated[str | None, typer.Option("--created-by", metavar="NAME", help="Only created by this key.")]
PATIENCE_S: Final = 5.0


def add_to(app: typer.Typer) -> None:
    """Give the program these commands."""
    for panel, functions in PANELS.items():
        for function in functions:
            app.command(function.__name__.strip("_"), rich_help_panel=panel)(function)


def _converse(url: str | None, patience: float, work: "Callable[[Session], Awaitable[Exit | None]]") -> None:
    from terminal.session import converse

    converse(url, patience, work)


def create(
    task_id: Annotated[
        str | None,
        typer.Argument(metavar="TASK_ID", help="Its ID. Without one it gets a random one.", show_default=False),
    ] = None,
    metadata: Metadata = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="A tag; repeat it for several.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="The queue from which workers may claim it.")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(min=-1000, max=1000, metavar="N", help="Higher ones are claimed first; 0 if nothing is said."),
    ] = None,
    start_at: Annotated[
        str | None,
        typer.Option(parser=values.instant, metavar="TIME", help="Not claimed before: 2026-11-20T09:30, or +15m."),
    ] = None,
    depends_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK_ID", help="A task that must succeed first; repeat it for several.", autocompletion=_ids
        ),
    ] = None,
    ignore_failed_dependencies: Annotated[
        bool, typer.Option("--ignore-failed-dependencies", help="Go on when one of them fails, rather than cancel.")
    ] = False,
    attempts: Annotated[
        int | None, typer.Option(min=1, max=100, metavar="N", help="How often it is tried in all.")
    ] = None,
    retry_delay: Annotated[
        int | None,
        typer.Option(parser=values.seconds, metavar="DURATION", help="The pause after the first failure: 10s."),
    ] = None,
    retry_delay_max: Annotated[
        int | None, typer.Option(parser=values.seconds, metavar="DURATION", help="The longest pause: 1h.")
    ] = None,
    retry_factor: Annotated[
        float | None,
        typer.Option(min=1, max=100, metavar="N", help="How much longer each pause is than the one before: 2."),
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option(parser=values.instant, metavar="TIME", help="When it fails if it has not ended, likewise."),
    ] = None,
    keep_for: Annotated[
        int | None,
        typer.Option(parser=values.seconds, metavar="DURATION", help="How long after its end it is kept: 90s, 7d."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the ID alone.")] = False,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Create a task, and print it.

    With --queue it waits for a worker to claim it; without, it waits for reports.
    """
    retry = {
        "maxAttempts": attempts,
        "initialDelaySeconds": retry_delay,
        "maxDelaySeconds": retry_delay_max,
        "factor": retry_factor,
    }
    retry = {name: value for name, value in retry.items() if value is not None}
    if retry and attempts is None:
        raise typer.BadParameter("Pauses between attempts need --attempts, 2 or more.")
    options = {
        "tags": tag,
        "queue": queue,
        "priority": priority,
        "startAt": start_at,
        "dependsOn": depends_on,
        "onDependencyFailure": "IGNORE" if ignore_failed_dependencies else None,
        "retry": retry or None,
        "expiresAt": expires_at,
        "keepForSeconds": keep_for,
    }
    options = {name: value for name, value in options.items() if value is not None}

    async def work(session: "Session") -> None:
        from terminal import tasks

        await tasks.create(session, task_id, metadata, options, as_json=json, quiet=quiet)

    _converse(url, patience, work)


def show(
    task_id: TaskId,
    events: Annotated[
        int, typer.Option("--events", "-n", min=0, max=1000, metavar="N", help="How many of its newest events to show.")
    ] = 20,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Show all that is known of a task, with its newest events."""

    async def work(session: "Session") -> None:
        from terminal import tasks

        await tasks.show(session, task_id, events, as_json=json)

    _converse(url, patience, work)


def list_(
    status: Statuses = None,
    tag: Tags = None,
    queue: Queue = None,
    prefix: Prefix = None,
    created_by: CreatedBy = None,
    created_after: Annotated[
        str | None, typer.Option(parser=values.moment, metavar="TIME", help="Only created since: 2026-11-20, or -2h.")
    ] = None,
    created_before: Annotated[
        str | None, typer.Option(parser=values.moment, metavar="TIME", help="Only created before, likewise.")
    ] = None,
    updated_after: Annotated[
        str | None, typer.Option(parser=values.moment, metavar="TIME", help="Only changed since, likewise.")
    ] = None,
    metadata: Annotated[
        Any,
        typer.Option(
            "--metadata", "-m", parser=values.metadata, metavar="JSON", help="Only whose metadata contains this."
        ),
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only those whose worker is silent beyond its lease.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="How many, newest first.")] = 25,
    all_: Annotated[bool, typer.Option("--all", help="All of them, however many.")] = False,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """List tasks, newest first; with --json one line for each."""
    tasks_filter = _filter(
        status=[one.value for one in status or ()],
        tags=tag,
        queue=queue,
        taskIdPrefix=prefix,
        createdBy=created_by,
        createdAfter=created_after,
        createdBefore=created_before,
        updatedAfter=updated_after,
        metadata=metadata,
        stale=stale or None,
    )

    async def work(session: "Session") -> None:
        from terminal import tasks

        await tasks.list_tasks(session, tasks_filter, None if all_ else limit, as_json=json)

    _converse(url, patience, work)


def _filter(**wanted: Any) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if value not in (None, [])}


def watch(
    task_id: TaskId,
    timeout: Annotated[
        int | None,
        typer.Option(
            parser=values.seconds, metavar="DURATION", help="How long to wait for its end: 90s, 15m. No bound without.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:  # fmt: skip
    """Watch a task to its end, and exit with its outcome: 0 it succeeded, 1 it failed, 2 it was canceled.

    Connections that break are made again, and nothing is missed. Where nobody looks, each event is a line; with --json
    each message of the subscription is.
    """

    async def work(session: "Session") -> Exit:
        from terminal.watch import watch

        return await watch(session, task_id, as_json=json, timeout_s=timeout)

    _converse(url, patience, work)


def tail(
    task_id: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK_ID", help="The task. Without one, all that the options mean.", autocompletion=_ids,
            show_default=False,
        ),
    ] = None,
    events: Annotated[
        int, typer.Option("--events", "-n", min=0, max=1000, metavar="N", help="How many of its events to begin with.")
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Go on with those that come, until the task ends.")
    ] = True,
    status: Statuses = None,
    tag: Tags = None,
    queue: Queue = None,
    prefix: Prefix = None,
    created_by: CreatedBy = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:  # fmt: skip
    """Print the events of a task as lines, and those that come, until it ends. Without a task: what becomes of all.

    Of many tasks each change is a line with the task as it is then; changes of one task that come faster than ten a
    second may share one.
    """
    tasks_filter = _filter(
        status=[one.value for one in status or ()], tags=tag, queue=queue, taskIdPrefix=prefix, createdBy=created_by
    )
    if task_id is not None and tasks_filter:
        raise typer.BadParameter("Give a task, or options that say which tasks are meant.")
    if task_id is None and not follow:
        raise typer.BadParameter("Without a task there is nothing but what comes; `list` shows what is.")

    async def work(session: "Session") -> Exit | None:
        from terminal.tail import tail, tail_all

        if task_id is None:
            await tail_all(session, tasks_filter, as_json=json)
            return None
        return await tail(session, task_id, events, follow=follow, as_json=json)

    _converse(url, patience, work)


def delete(task_id: TaskId, json: Json = False, url: Url = None, patience: Patience = PATIENCE_S) -> None:
    """Delete a task with its history. There is no way back."""

    async def work(session: "Session") -> None:
        from terminal import tasks

        await tasks.delete(session, task_id, as_json=json)

    _converse(url, patience, work)


def demo(
    tasks: Annotated[int, typer.Option("--tasks", min=1, max=200, metavar="N", help="How many tasks.")] = 12,
    seconds: Annotated[
        Any, typer.Option(parser=values.seconds, metavar="DURATION", help="How long it takes: 30s, 2m.")
    ] = "60s",
    keep_for: Annotated[
        Any,
        typer.Option(parser=values.seconds, metavar="DURATION", help="How long its tasks are kept after their end."),
    ] = "1d",
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Fill the service with living example tasks: films, reports, models, some of which fail.

    Workers of this very program claim them from queues and work on them until all have ended, or Ctrl-C; what has not
    ended by then is canceled.
    """

    async def work(session: "Session") -> None:
        from terminal.demo import demo

        await demo(session, tasks, seconds, keep_for, as_json=json)

    _converse(url, patience, work)


def event(
    task_id: TaskId,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="What has happened.", show_default=False)],
    type_: Annotated[
        EventType,
        typer.Option(
            "--type",
            metavar="TYPE",
            case_sensitive=False,
            help="What it is to those who read it: LOG, PROGRESS, ERROR or SUCCESS.",
        ),
    ] = EventType.LOG,
    percent: Annotated[
        int | None, typer.Option("--progress", "-p", min=0, max=100, metavar="N", help="How far the work has come.")
    ] = None,
    metadata: Metadata = None,
    idempotency_key: Key = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Write an event into a task's log. It ends nothing, whatever its type."""
    from terminal.documents import ADD_EVENT

    said = {"eventType": type_.value, "message": message, "progress": percent, "metadata": metadata}
    _report(ADD_EVENT, task_id, idempotency_key, json, url, patience, event=said)


def progress(
    task_id: TaskId,
    percent: Annotated[int, typer.Argument(metavar="PERCENT", min=0, max=100, help="0 to 100.", show_default=False)],
    idempotency_key: Key = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Report how far a task has come. The first report starts it."""
    from terminal.documents import UPDATE_PROGRESS

    _report(UPDATE_PROGRESS, task_id, idempotency_key, json, url, patience, progress=percent)


def complete(
    task_id: TaskId,
    metadata: Metadata = None,
    idempotency_key: Key = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """End a task: it has succeeded."""
    from terminal.documents import COMPLETE

    _report(COMPLETE, task_id, idempotency_key, json, url, patience, metadata=metadata)


def fail(
    task_id: TaskId,
    error: Annotated[str, typer.Argument(metavar="ERROR", help="What went wrong, for people.", show_default=False)],
    metadata: Metadata = None,
    idempotency_key: Key = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Report that a task failed. With attempts left it is tried again; without, this is its end."""
    from terminal.documents import FAIL

    _report(FAIL, task_id, idempotency_key, json, url, patience, error=error, metadata=metadata)


def cancel(
    task_id: TaskId,
    metadata: Metadata = None,
    idempotency_key: Key = None,
    json: Json = False,
    url: Url = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """End a task that nobody wants any more. Who works on it is told."""
    from terminal.documents import CANCEL

    _report(CANCEL, task_id, idempotency_key, json, url, patience, metadata=metadata)


def _report(
    document: str,
    task_id: str,
    key: str | None,
    as_json: bool,
    url: str | None,
    patience: float,
    **variables: Any,
) -> None:
    async def work(session: "Session") -> None:
        from terminal import tasks

        await tasks.report(session, document, task_id, key, as_json=as_json, **variables)

    _converse(url, patience, work)


PANELS: "Final[Mapping[str, Sequence[Callable[..., None]]]]" = {
    "Tasks": (create, show, list_, watch, tail, delete, demo),
    "Reports": (event, progress, complete, fail, cancel),
}
