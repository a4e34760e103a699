"""A task as it changes, followed over connections that break: each event once, in order, none left out."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from terminal.documents import TASK_UPDATES, TASKS, TASKS_UPDATED
from worker.backoff import pauses
from worker.client import Client
from worker.errors import Refused, Unreachable
from worker.subscription import Begun, subscribe

# Somebody looks, so the way back is tried often.
PAUSE_MAX_S: Final = 3.0
# Of many tasks: how many are read after a connection that broke, and remembered to tell nothing twice.
PAGE: Final = 200
KNOWN_MAX: Final = 10_000
_EPOCH: Final = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True, slots=True)
class News:
    """What has become of a task, and the events that led there."""

    type: str
    task: Mapping[str, Any]
    events: list[Mapping[str, Any]]
    # The task was deleted and created anew while nobody could look: the events begin at 1 again.
    anew: bool = False


async def follow(
    client: Client,
    task_id: str,
    after_seq: int | None,
    *,
    patience_s: float,
    lost: Callable[[str], None] = lambda why: None,
) -> AsyncGenerator[News, None]:
    """The task as it is, then each change of it, until it ends or is deleted.

    The first connection must come about within the patience. After that there is no end to trying; `lost` is told why
    there is none each time. What is deleted meanwhile ends with TASK_NOT_FOUND.
    """
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + patience_s
    seen, created_at, anew = after_seq, None, False
    waits = pauses(PAUSE_MAX_S)
    while True:
        variables = {"taskId": task_id, "afterSeq": seen}
        try:
            async with aclosing(subscribe(client, TASK_UPDATES, variables)) as updates:
                async for update in updates:
                    waits = pauses(PAUSE_MAX_S)
                    task = update["task"]
                    if created_at not in (None, task["createdAt"]):
                        # What was asked for were events after one of another task.
                        seen, created_at, anew = 0, None, True
                        break
                    created_at = task["createdAt"]
                    events = [event for event in update["events"] if event["seq"] > (seen or 0)]
                    seen = events[-1]["seq"] if events else task["seq"] if seen is None else seen
                    yield News(update["type"], task, events, anew)
                    anew = False
                else:
                    return
        except Unreachable as error:
            wait_s = next(waits)
            if created_at is None and not anew and clock() + wait_s > give_up_at:
                raise
            lost(_briefly(error, client))
            await asyncio.sleep(wait_s)


async def follow_all(
    client: Client,
    tasks_filter: Mapping[str, Any],
    *,
    patience_s: float,
    lost: Callable[[str], None] = lambda why: None,
) -> AsyncGenerator[News, None]:
    """The tasks of a filter as they change, from now on and without an end, each with its latest event.

    After a connection that broke comes what has changed meanwhile, as it is by then; what was deleted meanwhile is not
    told, and of more than a page of tasks the newest are.
    """
    clock = asyncio.get_running_loop().time
    give_up_at: float | None = clock() + patience_s
    known: dict[str, int] = {}
    since: str | None = None
    waits = pauses(PAUSE_MAX_S)
    while True:
        missed = {**tasks_filter, **({} if since is None else {"updatedAfter": since})}
        # Once the subscription has begun, what came before is read. The other order loses what comes in between.
        then = (TASKS, {"first": 1 if since is None else PAGE, "after": None, "filter": missed or None})
        try:
            async with aclosing(
                subscribe(client, TASKS_UPDATED, {"filter": tasks_filter or None}, then=then)
            ) as updates:
                async for update in updates:
                    waits, give_up_at = pauses(PAUSE_MAX_S), None
                    if not isinstance(update, Begun):
                        told = [News(update["type"], update["task"], update["events"])]
                    elif since is None:
                        told = []
                        since = max((task["updatedAt"] for task in update.answer["nodes"]), default=_EPOCH)
                    else:
                        told = [_as_told(task) for task in reversed(update.answer["nodes"])]
                    for news in told:
                        task = news.task
                        since = max(since or _EPOCH, task["updatedAt"])
                        if news.type == "DELETE" or known.get(task["taskId"], 0) != task["seq"]:
                            known.pop(task["taskId"], None)
                            known[task["taskId"]] = task["seq"]
                            if len(known) > KNOWN_MAX:
                                del known[next(iter(known))]
                            yield news
        except Unreachable as error:
            # Also when more has changed than the server could keep for who is slow.
            wait_s = next(waits)
            if give_up_at is not None and clock() + wait_s > give_up_at:
                raise
            lost(_briefly(error, client))
            await asyncio.sleep(wait_s)


def _briefly(error: Exception, client: Client) -> str:
    """What a line has room for: which server it is, is known."""
    return str(error).replace(client.url, "the server")


def _as_told(task: Mapping[str, Any]) -> News:
    """A task that was read, as a message would have had it."""
    state = dict(task)
    return News("SNAPSHOT", state, [state.pop("lastEvent")])


def is_gone(error: Refused) -> bool:
    """Whether a refusal says that there is no task any more."""
    return error.code == "TASK_NOT_FOUND"
