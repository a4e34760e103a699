"""Commands that ask once: what is created, reported, deleted, listed and shown."""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from terminal import look
from terminal.documents import CREATE, DELETE, ROWS, SHOW, TASK, TASKS
from terminal.exits import Exit, Failure
from terminal.session import Session, not_found
from worker.errors import Refused

PAGE: Final = 200
_EXISTS: Final = "TASK_ALREADY_EXISTS"
# From here on a table has room for tags and queues.
_WIDE: Final = 110
_LABELS_MAX: Final = 28
# What the other columns need, with room for some words of the last event.
_BESIDE: Final = 56
_BESIDE_WIDE: Final = 96


async def create(
    session: Session, task_id: str | None, metadata: Any, options: Mapping[str, Any], *, as_json: bool, quiet: bool
) -> None:
    """Create a task, under an ID that nobody can guess if none is given."""
    wanted = task_id or uuid.uuid4().hex
    try:
        task = await session.ask(CREATE, taskId=wanted, metadata=metadata, options=options or None)
    except Refused as refused:
        if refused.code != _EXISTS or not session.unanswered:
            raise
        if task_id is not None:
            raise Failure(
                Exit.EXISTS, f"{refused} An attempt before got no answer, so it may have been made by this command."
            ) from refused
        # Nobody else has this ID, so it was made by an attempt whose answer was lost.
        task = await session.ask(TASK, taskId=wanted)
    if quiet and not as_json:
        print(task["taskId"])  # noqa: T201
    else:
        _say(task, as_json)


async def report(
    session: Session, document: str, task_id: str, key: str | None, *, as_json: bool, **variables: Any
) -> None:
    """Make a report; sent again without an answer, it is written once."""
    task = await session.ask(document, taskId=task_id, idempotencyKey=key or uuid.uuid4().hex, **variables)
    _say(task, as_json)


async def delete(session: Session, task_id: str, *, as_json: bool) -> None:
    """Delete a task."""
    try:
        await session.ask(DELETE, taskId=task_id)
    except Refused as refused:
        # An attempt whose answer was lost has done it.
        if refused.code != "TASK_NOT_FOUND" or not session.unanswered:
            raise
    if as_json:
        look.dump({"taskId": task_id, "deleted": True})
    else:
        look.console().print(Text.assemble("Deleted ", (look.plain(task_id), "bold"), "."), soft_wrap=True)


def _say(task: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        look.dump(task)
    else:
        look.console().print(look.line(task), soft_wrap=True)


async def pages(
    session: Session, document: str, tasks_filter: Mapping[str, Any], limit: int | None
) -> AsyncIterator[tuple[Sequence[Mapping[str, Any]], bool]]:
    """The pages of a list, newest first, with whether there is more after each."""
    left, after = limit, None
    while left is None or left > 0:
        first = PAGE if left is None else min(PAGE, left)
        page = await session.ask(document, first=first, after=after, filter=tasks_filter or None)
        left = None if left is None else left - first
        yield page["nodes"], page["pageInfo"]["hasNextPage"]
        if not page["pageInfo"]["hasNextPage"]:
            return
        after = page["pageInfo"]["endCursor"]


async def list_tasks(session: Session, tasks_filter: Mapping[str, Any], limit: int | None, *, as_json: bool) -> None:
    """List tasks, page by page as they come."""
    out, hints = look.console(), look.console(stderr=True)
    shown, is_more, widths = 0, False, None
    async for nodes, more in pages(session, TASKS if as_json else ROWS, tasks_filter, limit):
        is_more = more
        if as_json:
            for task in nodes:
                look.dump(task)
        elif nodes:
            widths = print_rows(out, nodes, widths)
        shown += len(nodes)
    if not as_json and hints.is_terminal:
        if not shown:
            hints.print("There are no such tasks." if tasks_filter else "There are no tasks yet.", style="dim")
        elif is_more:
            hints.print(f"These are the newest {shown}; --limit shows more, --all shows all.", style="dim")


def print_rows(out: Console, tasks: Sequence[Mapping[str, Any]], widths: Sequence[int] | None = None) -> Sequence[int]:
    """Print tasks as rows of a table, with its head unless it goes on from rows whose widths are given."""
    known = widths_of(out, tasks) if widths is None else widths
    table = rows(out, tasks, known, head=widths is None)
    with out.capture() as captured:
        out.print(table)
    # Only what people look at needs its right edge.
    shown = captured.get()
    out.file.write(shown if out.is_terminal else "".join(f"{row.rstrip()}\n" for row in shown.splitlines()))
    return known


def widths_of(out: Console, tasks: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """How wide the columns are whose width depends on the tasks."""
    name = max(4, *(len(look.plain(task["taskId"])) for task in tasks))
    label = max(11, *(len(_labels(task)) for task in tasks))
    if not out.is_terminal:
        return name, label
    return min(name, max(12, out.width - (_BESIDE_WIDE if out.width >= _WIDE else _BESIDE))), min(label, _LABELS_MAX)


def rows(out: Console, tasks: Sequence[Mapping[str, Any]], widths: Sequence[int], *, head: bool = True) -> Table:
    """Tasks as a table that fits where it is shown."""
    drawn, wide = out.is_terminal, out.width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=head, header_style="dim", expand=drawn)
    table.add_column("TASK", width=widths[0], no_wrap=True, overflow="ellipsis")
    table.add_column("STATUS", width=13, no_wrap=True)
    table.add_column("PROGRESS", width=14 if drawn else 8, no_wrap=True)
    table.add_column("AGE", width=6, no_wrap=True, justify="right")
    if wide:
        table.add_column("QUEUE, TAGS", width=widths[1], no_wrap=True, overflow="ellipsis")
    table.add_column("LAST EVENT", no_wrap=True, overflow="ellipsis", ratio=1 if drawn else None)
    for task in tasks:
        cells: list[RenderableType] = [Text(look.plain(task["taskId"]), "bold"), look.status(task)]
        cells += [_progress(task, drawn), Text(look.age(task["createdAt"]), "dim")]
        if wide:
            cells.append(Text(_labels(task), "blue"))
        event = task["lastEvent"]
        news = "" if look.says_only_progress(event) else look.plain(event["message"])
        said = Text(news, "red" if event["eventType"] == "ERROR" else "dim")
        table.add_row(*cells, Text.assemble(("its worker is silent  ", "yellow"), said) if task["stale"] else said)
    return table


def _progress(task: Mapping[str, Any], drawn: bool) -> RenderableType:
    percent = Text(f"{task['progress']:>3} %")
    if not drawn:
        return percent
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=8)
    grid.add_column(width=5)
    grid.add_row(look.bar(task, 8), percent)
    return grid


def _labels(task: Mapping[str, Any]) -> str:
    queue = [task["queue"]] if task["queue"] else []
    return look.plain(" ".join([*queue, *(f"#{tag}" for tag in task["tags"])]))


async def show(session: Session, task_id: str, events: int, *, as_json: bool) -> None:
    """Show all that is known of a task."""
    task = await session.ask(SHOW, taskId=task_id, last=events)
    if task is None:
        raise not_found(task_id)
    if as_json:
        look.dump(task)
        return
    out = look.console()
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row(Text(look.plain(task["taskId"]), "bold"), look.status(task), *_drawn(task, out.is_terminal))
    parts: list[RenderableType] = [head, Padding(facts(task), (1, 0, 0, 2))]
    if task["metadata"] is not None:
        parts += [Text("\nMetadata", "dim"), Padding(Text(look.pretty(task["metadata"])), (0, 0, 0, 2))]
    if task["history"]:
        first = task["history"][0]["seq"]
        title = "Events" if first == 1 else f"Events from #{first} of {task['seq']}"
        history = Group(*(look.event_line(event, dated=True) for event in task["history"]))
        parts += [Text(f"\n{title}", "dim"), Padding(history, (0, 0, 0, 2))]
    with out.capture() as captured:
        out.print(Group(*parts))
    out.file.write("".join(f"{row.rstrip()}\n" for row in captured.get().splitlines()))


def _drawn(task: Mapping[str, Any], drawn: bool) -> list[RenderableType]:
    percent = Text(f"{task['progress']} %")
    return [look.bar(task, 24), percent] if drawn else [percent]


def facts(task: Mapping[str, Any]) -> Table:
    """What is known of a task beside its events, without what does not apply."""
    attempts = f"{task['attempt']} of {task['maxAttempts']}" if task["maxAttempts"] > 1 else None
    known: list[tuple[str, str | None]] = [
        ("created", " by ".join(filter(None, [look.when(task["createdAt"]), task["createdBy"]]))),
        ("started", look.when(task["startedAt"])),
        ("succeeded", look.when(task["completedAt"])),
        ("failed", look.when(task["failedAt"])),
        ("canceled", look.when(task["canceledAt"])),
        ("queue", task["queue"] and f"{task['queue']}, priority {task['priority']}"),
        ("tags", ", ".join(task["tags"])),
        ("attempt", attempts),
        ("worker", task["worker"] and f"{task['worker']}{', silent' if task['stale'] else ''}"),
        ("not before", look.when(task["nextAttemptAt"] or task["startAt"])),
        ("depends on", ", ".join(task["dependsOn"])),
        ("waits for", ", ".join(task["blockedBy"])),
        ("expires", look.when(task["expiresAt"])),
        ("kept until", look.when(task["deleteAt"])),
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in known:
        if value:
            table.add_row(Text(name, "dim"), Text(look.plain(value)))
    return table
