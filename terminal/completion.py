"""Task IDs for the shell, asked of the server while a person waits for the Tab key."""

import asyncio
from typing import Final

from terminal.documents import IDS
from terminal.exits import Failure
from terminal.place import find_place
from worker.client import Client
from worker.errors import WorkerError

ANSWER_WITHIN_S: Final = 1.0
OFFERED_MAX: Final = 50


def task_ids(begun: str) -> list[tuple[str, str]]:
    """The newest tasks whose IDs begin like that, with their statuses; none where they cannot be had at once."""
    try:
        return asyncio.run(_ask(begun))
    except (WorkerError, Failure, TimeoutError):
        return []


async def _ask(begun: str) -> list[tuple[str, str]]:
    place = find_place(None)
    client = Client(place.url, place.key, direct=place.own)
    tasks_filter = {"taskIdPrefix": begun} if begun else None
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            page = await client.ask(IDS, {"first": OFFERED_MAX, "filter": tasks_filter}, patience_s=0)
    finally:
        await client.close()
    # What a shell would read as more than a name is left for people to type.
    return [(task["taskId"], task["status"]) for task in page["nodes"] if task["taskId"].isprintable()]
