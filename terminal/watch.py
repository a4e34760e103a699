"""``watch``: one task, drawn as it goes on where a person looks, told line by line where not."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from terminal import look
from terminal.documents import TASK
from terminal.exits import OF_STATUS, Exit, Failure
from terminal.follow import News, follow, is_gone
from terminal.session import Session, not_found
from worker.errors import Refused

EVENTS_SHOWN: Final = 8
FRAMES_PER_S: Final = 8
BAR_WIDTH_MAX: Final = 48
_BAR_WIDTH_MIN: Final = 8
# What stands beside the ID and the bar.
_BESIDE: Final = 37


class View(Protocol):
    """Whatever shows a task that is watched."""

    def show(self, news: News) -> None:
        """There is news."""

    def lost(self, why: str) -> None:
        """The connection is gone, and is made again."""


async def watch(session: Session, task_id: str, *, as_json: bool, timeout_s: float | None) -> Exit:
    """Watch a task to its end; return its outcome as the code of the command."""
    out = look.console()
    view: View
    drawing: AbstractContextManager[Any] = nullcontext()
    if as_json:
        view = JsonLines()
    elif out.is_terminal:
        picture = Picture(out)
        view, drawing = picture, picture.live
    else:
        view = Lines(out)
    with drawing:
        try:
            async with asyncio.timeout(timeout_s):
                return await _to_its_end(session, task_id, view)
        except TimeoutError:
            pass
    raise Failure(Exit.TIMEOUT, f'Task "{task_id}" had not ended after {timeout_s:g} s.')


async def _to_its_end(session: Session, task_id: str, view: View) -> Exit:
    after_seq = await first_seen(session, task_id, EVENTS_SHOWN)
    async with aclosing(news_of(session, task_id, after_seq, view.lost)) as all_news:
        last = None
        async for last in all_news:
            view.show(last)
    if last is None or last.type == "DELETE":
        return Exit.DELETED
    return OF_STATUS.get(last.task["status"], Exit.DELETED)


async def first_seen(session: Session, task_id: str, events: int) -> int:
    """After which number the newest events of a task begin."""
    task = await session.ask(TASK, taskId=task_id)
    if task is None:
        raise not_found(task_id)
    return max(0, int(task["seq"]) - events)


async def news_of(
    session: Session, task_id: str, after_seq: int, lost: Callable[[str], None]
) -> AsyncGenerator[News, None]:
    """The news of a task that was there a moment ago; when it is gone without a word, that is the last."""
    last = None
    following = follow(session.client, task_id, after_seq, patience_s=session.patience_s, lost=lost)
    try:
        async with aclosing(following) as all_news:
            async for last in all_news:
                yield last
    except Refused as refused:
        if not is_gone(refused):
            raise
        if last is not None:
            yield News("DELETE", last.task, [])


class JsonLines:
    """Each message of the subscription as a line of JSON."""

    def show(self, news: News) -> None:
        """Print it."""
        look.dump({"type": news.type, "task": news.task, "events": news.events})

    def lost(self, why: str) -> None:
        """Say nothing: the lines go on where they stopped."""


class Lines:
    """Each event as a line."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._hints = look.console(stderr=True)

    def show(self, news: News) -> None:
        """Print its events, and what it came to."""
        if news.anew:
            self._out.print(_anew(news.task), soft_wrap=True)
        for event in news.events:
            self._out.print(look.event_line(event), soft_wrap=True)
        if news.type == "DELETE":
            self._out.print(_deleted(news.task), soft_wrap=True)
        elif news.task["status"] in look.FINAL and (not news.events or news.events[-1]["seq"] == news.task["seq"]):
            self._out.print(look.line(news.task), soft_wrap=True)

    def lost(self, why: str) -> None:
        """Tell a person, once for each connection that was lost."""
        if self._hints.is_terminal:
            self._hints.print(f"Connecting again: {look.plain(why)}", style="yellow", soft_wrap=True)


class Picture:
    """A bar with what is known and the latest events, drawn over again."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._news: News | None = None
        self._events: deque[Mapping[str, Any]] = deque(maxlen=EVENTS_SHOWN)
        self._trouble: str | None = None
        self.live = Live(
            console=out, get_renderable=self._draw, refresh_per_second=FRAMES_PER_S, vertical_overflow="crop"
        )

    def show(self, news: News) -> None:
        """Draw it with the next frame."""
        if news.anew:
            self._events.clear()
        self._events.extend(event for event in news.events if not look.says_only_progress(event))
        self._news, self._trouble = news, None

    def lost(self, why: str) -> None:
        """Draw that this is not live."""
        self._trouble = why

    def _draw(self) -> RenderableType:
        if self._news is None:
            return Text(self._trouble or "Connecting …", "yellow" if self._trouble else "dim", overflow="ellipsis")
        task = self._news.task
        room = self._out.size.height - 5
        events = list(self._events)[-max(1, min(EVENTS_SHOWN, room)) :]
        lines = [look.event_line(event) for event in events]
        for event in lines:
            event.no_wrap, event.overflow = True, "ellipsis"
        parts: list[RenderableType] = [self._head(task), self._facts(task)]
        if lines:
            parts.append(Padding(Group(*lines), (1, 0, 0, 2)))
        return Group(*parts)

    def _head(self, task: Mapping[str, Any]) -> RenderableType:
        width, name = self._out.width, Text(look.plain(task["taskId"]), "bold")
        # The bar has what the ID leaves, and the ID gives way to the smallest bar.
        drawn = max(_BAR_WIDTH_MIN, min(BAR_WIDTH_MAX, width // 2, width - name.cell_len - _BESIDE))
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, width - drawn - _BESIDE))
        head.add_column(no_wrap=True)
        head.add_column(width=drawn)
        head.add_column(no_wrap=True, width=5)
        head.add_column(no_wrap=True)
        head.add_row(
            name,
            look.status(task),
            look.bar(task, drawn),
            Text(f"{task['progress']:>3} %", "bold"),
            Text(_running(task), "dim"),
        )
        return head

    def _facts(self, task: Mapping[str, Any]) -> RenderableType:
        said = Text("  ", no_wrap=True, overflow="ellipsis")
        if self._news is not None and self._news.type == "DELETE":
            said.append("deleted", "magenta")
        elif task["status"] in look.FINAL:
            said.append("ended", "dim")
        elif self._trouble is not None:
            said.append(f"connecting again: {look.plain(self._trouble)}", "yellow")
        else:
            said.append("live", "green")
        for known in _known(task):
            said.append(f" · {look.plain(known)}", "dim")
        return said


def _known(task: Mapping[str, Any]) -> list[str]:
    found = []
    if task["queue"]:
        found.append(f"queue {task['queue']}")
    if task["maxAttempts"] > 1:
        found.append(f"attempt {task['attempt']} of {task['maxAttempts']}")
    if task["worker"]:
        found.append(f"worker {task['worker']}{', silent' if task['stale'] else ''}")
    if task["status"] == "PENDING" and task["blockedBy"]:
        found.append(f"waits for {', '.join(task['blockedBy'])}")
    elif task["status"] == "PENDING" and (due := task["nextAttemptAt"] or task["startAt"]):
        left_s = (look.local(due) - datetime.now(UTC)).total_seconds()
        found.append(f"due in {look.took(left_s + 1)}" if left_s > 0 else "due")
    return found


def _running(task: Mapping[str, Any]) -> str:
    if task["startedAt"] is None:
        return ""
    ended = task["completedAt"] or task["failedAt"] or task["canceledAt"]
    until = datetime.now(UTC) if ended is None else look.local(ended)
    return look.took((until - look.local(task["startedAt"])).total_seconds())


def _anew(task: Mapping[str, Any]) -> Text:
    return Text(f"{look.plain(task['taskId'])} was deleted and created anew.", "magenta")


def _deleted(task: Mapping[str, Any]) -> Text:
    return Text(f"{look.plain(task['taskId'])} was deleted.", "magenta")
