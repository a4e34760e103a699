"""Task IDs for the shell, asked of the server while a person waits for the Tab key."""

import asyncio
import re
from typing import Final

from terminal.documents import IDS
from terminal.exits import Failure
from terminal.place import find_place
from worker.client import Client
from worker.errors import WorkerError

ANSWER_WITHIN_S: Final = 1.0
OFFERED_MAX: Final = 50
# Letters and digits of all scripts, and beyond the first character also what no shell reads as more than itself.
_PLAIN: Final = re.compile(r"\w[\w.,:@%+/=-]*")


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
    return [(task["taskId"], task["status"]) for task in page["nodes"] if is_plain_word(task["taskId"])]


def is_plain_word(task_id: str) -> bool:
    """Whether an ID, which anybody may have chosen, is a word to every shell, and no option.

    Shells put what they are offered into the line as it is, and zsh's part of it evaluates it: one Tab would run what
    stands in it. All other IDs are left for people to quote.
    """
    return _PLAIN.fullmatch(task_id) is not None
