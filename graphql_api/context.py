"""What a resolver is given beside its arguments, and how much one operation may read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

import strawberry

from graphql_api.auth import Viewer
from storage import Event, Permission, Storage, TooLarge

# Events that one operation may read, over all its fields.
OPERATION_EVENTS_MAX: Final = 10_000
OPERATION_BYTES_MAX: Final = 32 * 1024 * 1024


_message: Final = attrgetter("message")
_metadata: Final = attrgetter("metadata")


def _uncounted(_operations: int) -> None:
    """Only a mutation can be a batch."""


@dataclass(slots=True)
class Context:
    """What a resolver is given beside its arguments."""

    storage: Storage
    viewer: Viewer
    events_left: int = OPERATION_EVENTS_MAX
    bytes_left: int = OPERATION_BYTES_MAX
    # Counts so many operations of the client more; RateLimited when they are too many.
    count_more: Callable[[int], None] = _uncounted
    # Operations that were counted and stand for no item of a batch yet.
    counted: int = 1

    def count(self, items: int) -> None:
        """Count a batch as so many operations, before anything of it is done; RateLimited when they are too many."""
        if items > self.counted:
            self.count_more(items - self.counted)
        self.counted = max(0, self.counted - items)

    async def events(self, task_id: str, first_seq: int, last_seq: int) -> Sequence[Event]:
        """Events of a task's log, as many as the operation may still read."""
        self.viewer.require(Permission.READ, task_id)
        self.events_left -= max(0, last_seq - first_seq + 1)
        if self.events_left < 0:
            raise TooLarge(f"One operation may read at most {OPERATION_EVENTS_MAX} events; ask for fewer.")
        events = await self.storage.reader.events(task_id, first_seq, last_seq)
        self.bytes_left -= sum(map(len, map(_message, events)))
        self.bytes_left -= sum(map(len, filter(None, map(_metadata, events))))
        if self.bytes_left < 0:
            raise TooLarge(f"One operation may read at most {OPERATION_BYTES_MAX} bytes of events; ask for fewer.")
        return events


Info: TypeAlias = strawberry.Info[Context, None]
