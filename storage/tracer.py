"""Who may follow a change through the storage: what a tracer is told, and when.

There is none unless somebody sets one; the storage asks for nothing but this.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from storage.commands import Command, CreateMany
from storage.task import Update


class Tracer(Protocol):
    """Is told of each command, of the group that it becomes part of, and of the update that it leads to."""

    def change(self, command: Command | CreateMany, outcome: asyncio.Future[Any]) -> Any:
        """A command was taken, in the context of whoever wants it; return what is to be known of it in `group`."""

    def group(self, changes: Sequence[tuple[str, Any]]) -> AbstractContextManager[None]:
        """While it lasts, a group is worked off and told: for each command its tasks, each with `change` returned."""

    def delivery(self, update: Update, subscribers: int) -> Callable[[], None]:
        """An update begins to be told to subscribers here; call what is returned when all have been told."""
