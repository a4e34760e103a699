"""``tail``: the events of a task as lines, the newest first few and then each as it comes."""

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from rich.text import Text

from terminal import look
from terminal.documents import SHOW
from terminal.exits import Exit
from terminal.follow import News, follow_all
from terminal.session import Session, not_found
from terminal.watch import Lines, View, first_seen, news_of


async def tail(session: Session, task_id: str, events: int, *, follow: bool, as_json: bool) -> Exit | None:
    """Print the newest events, and those that come until the task ends."""
    if not follow:
        await _once(session, task_id, events, as_json)
        return None
    view: View = EventLines() if as_json else Lines(look.console())
    after_seq = await first_seen(session, task_id, events)
    last = None
    async with aclosing(news_of(session, task_id, after_seq, view.lost)) as all_news:
        async for last in all_news:
            view.show(last)
    return Exit.DELETED if last is None or last.type == "DELETE" else None


async def tail_all(session: Session, tasks_filter: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what becomes of all tasks that a filter means, until interrupted."""
    out = look.console()
    lost = Lines(out).lost
    following = follow_all(session.client, tasks_filter, patience_s=session.patience_s, lost=lost)
    async with aclosing(following) as all_news:
        async for news in all_news:
            if as_json:
                look.dump({"type": news.type, "task": news.task, "events": news.events})
            else:
                out.print(_line(news), soft_wrap=True)


def _line(news: News) -> Text:
    """A task and what happened to it last, in one line."""
    deleted = news.type == "DELETE"
    text = Text.assemble((f"{look.local(news.task['updatedAt']):%H:%M:%S}", "dim"), "  ", look.line(news.task))
    if deleted:
        text.append("  deleted", "magenta")
    for event in news.events[-1:]:
        if not look.says_only_progress(event):
            text.append(f"  {look.plain(event['message'])}", "red" if event["eventType"] == "ERROR" else "dim")
    return text


async def _once(session: Session, task_id: str, events: int, as_json: bool) -> None:
    task = await session.ask(SHOW, taskId=task_id, last=events)
    if task is None:
        raise not_found(task_id)
    if as_json:
        EventLines().show(News("SNAPSHOT", task, task["history"]))
        return
    out = look.console()
    for event in task["history"]:
        out.print(look.event_line(event, dated=True), soft_wrap=True)


class EventLines:
    """Each event as a line of JSON, with the task that it belongs to."""

    def show(self, news: News) -> None:
        """Print its events."""
        for event in news.events:
            look.dump({"taskId": news.task["taskId"], **event})

    def lost(self, why: str) -> None:
        """Say nothing: the lines go on where they stopped."""
