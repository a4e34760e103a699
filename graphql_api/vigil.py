"""Open streams end with their credential, also when nothing is said on them.

There is no timer for a stream. Streams stand under their credential, and one timer for all has each credential looked
at when it is due: ten thousand streams of one key cost one look every few seconds.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Final, Protocol, TypeVar

from storage import Refusal, Unavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

# What is due within this is looked at together.
LOOKS_APART_S: Final = 0.5
# One that could not be looked at, or whose streams were ended, is looked at again after this.
AGAIN_S: Final = 4.0
# And so is one of which nothing was heard for so long.
ANSWER_WITHIN_S: Final = 20.0
# Credentials that are looked at, and streams that are ended, before others have a turn.
TURN_MAX: Final = 100


class Guest(Protocol):
    """Whoever has open streams under a credential."""

    def expelled(self, error: Refusal) -> None:
        """End them: the credential is good no more. Who stays is told so again at the next look."""


class _Stay:
    """A credential, and who is there by it."""

    __slots__ = ("due_at", "guests")

    def __init__(self) -> None:
        self.guests: set[Guest] = set()
        # It was looked at to get in, but not for how long it is good.
        self.due_at = 0.0


class Vigil:
    """Looks at the credentials of open streams now and then, and ends the streams of those that are good no more."""

    def __init__(self, look: Callable[[str], Awaitable[float]]) -> None:
        # Looks at a credential: Unauthenticated, or for how many seconds it may be believed.
        self._look = look
        self._stays: dict[str, _Stay] = {}
        self._timer: asyncio.TimerHandle | None = None
        # Looks under way. The next round waits for none of them.
        self._rounds: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._stays)

    def admit(self, authorization: str, guest: Guest) -> None:
        """Watch over the streams of a guest, who came by this credential."""
        stay = self._stays.get(authorization)
        if stay is None:
            stay = self._stays[authorization] = _Stay()
            self._wake_in(0.0)
        stay.guests.add(guest)

    def dismiss(self, authorization: str, guest: Guest) -> None:
        """Watch over them no more."""
        stay = self._stays.get(authorization)
        if stay is None:
            return
        stay.guests.discard(guest)
        if not stay.guests:
            del self._stays[authorization]
            if not self._stays:
                self._rest()

    @contextmanager
    def keeping(self, authorization: str | None) -> Iterator[asyncio.Future[Refusal]]:
        """Watch over one stream while the block lasts; the future is done when its credential is good no more."""
        future: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        if authorization is None:
            yield future
            return
        guest = _Expulsion(future)
        self.admit(authorization, guest)
        try:
            yield future
        finally:
            self.dismiss(authorization, guest)

    def _wake_in(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        wait_s = max(wait_s, LOOKS_APART_S)
        if self._timer is not None:
            if self._timer.when() <= loop.time() + wait_s:
                # Or those who come one after the other would put it off for ever.
                return
            self._timer.cancel()
        # It serves many, so nothing that is bound to whoever comes first goes with it.
        self._timer = loop.call_later(wait_s, self._begin_round, context=Context())

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for round_ in self._rounds:
            if round_ is not asyncio.current_task():
                round_.cancel()

    def _begin_round(self) -> None:
        self._timer = None
        now = time.monotonic()
        due = [authorization for authorization, stay in self._stays.items() if stay.due_at <= now]
        for authorization in due:
            self._stays[authorization].due_at = now + ANSWER_WITHIN_S
        if self._stays:
            self._wake_in(min(stay.due_at for stay in self._stays.values()) - now)
        task = asyncio.create_task(self._make_round(due), name="vigil")
        self._rounds.add(task)
        task.add_done_callback(self._rounds.discard)

    async def _make_round(self, due: list[str]) -> None:
        looks: list[asyncio.Task[bool]] = []
        # Together, so that what the database must say of them is few questions, and one that takes long to answer
        # keeps nobody else waiting.
        async with asyncio.TaskGroup() as group:
            for some in _turns(due):
                looks += [group.create_task(self._look_at(authorization)) for authorization in some]
                await asyncio.sleep(0)
        unknown = sum(not look.result() for look in looks)
        if unknown:
            log.warning("%d credentials of open streams could not be checked.", unknown)

    async def _look_at(self, authorization: str) -> bool:
        """Look at a credential, and end its streams if it is good no more; False when nobody could say."""
        known = True
        error: Refusal | None = None
        believed_s = AGAIN_S
        try:
            believed_s = await self._look(authorization)
        except Unavailable:
            # What was good so far stays so.
            known = False
        except Refusal as refusal:
            error = refusal
        except Exception:
            # A fault of ours ends no stream, and keeps nobody else from being looked at.
            log.exception("The credential of open streams could not be looked at.")
        stay = self._stays.get(authorization)
        if stay is None:
            return known
        stay.due_at = time.monotonic() + believed_s
        self._wake_in(believed_s)
        if error is not None:
            for some in _turns(list(stay.guests)):
                for guest in some:
                    # Or it is gone meanwhile, or here by another credential.
                    if guest in stay.guests:
                        guest.expelled(error)
                await asyncio.sleep(0)
        return known


def _turns(items: list[T]) -> Iterable[list[T]]:
    for start in range(0, len(items), TURN_MAX):
        yield items[start : start + TURN_MAX]


class _Expulsion:
    """A guest that is told so by a future."""

    def __init__(self, future: asyncio.Future[Refusal]) -> None:
        self._future = future

    def expelled(self, error: Refusal) -> None:
        """Tell whoever waits."""
        if not self._future.done():
            self._future.set_result(error)
