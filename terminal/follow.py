"""A task as it changes, followed over connections that break: each event once, in order, none left out."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from terminal.documents import TASK_UPDATES
from worker.backoff import pauses
from worker.client import Client
from worker.errors import Refused, Unreachable
from worker.subscription import subscribe

# Somebody looks, so the way back is tried often.
PAUSE_MAX_S: Final = 3.0


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
            lost(str(error))
            await asyncio.sleep(wait_s)


def is_gone(error: Refused) -> bool:
    """Whether a refusal says that there is no task any more."""
    return error.code == "TASK_NOT_FOUND"
