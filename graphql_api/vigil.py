"""Open streams end with their credential, also when nothing is said on them.

There is no timer for a stream. Streams stand under their credential, and one timer for all has each credential looked
at when it is due: ten thousand streams of one key cost one look every few seconds.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

from storage import Refusal, Unavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

# What is due within this is looked at together.
LOOKS_APART_S: Final = 0.5
# One that could not be looked at, or whose streams were ended, is looked at again after this.
AGAIN_S: Final = 4.0
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
        self._round: asyncio.Task[None] | None = None
        # Credentials of which nobody could say anything in this round.
        self._unknown = 0

    def __len__(self) -> int:
        return len(self._stays)

    def admit(self, authorization: str, guest: Guest) -> None:
        """Watch over the streams of a guest, who came by this credential."""
        stay = self._stays.get(authorization)
        if stay is None:
            stay = self._stays[authorization] = _Stay()
            if self._round is None:
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
        self._timer = loop.call_later(wait_s, self._begin_round)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._round is not None and self._round is not asyncio.current_task():
            self._round.cancel()

    def _begin_round(self) -> None:
        self._timer = None
        self._round = asyncio.create_task(self._make_round(), name="vigil")

    async def _make_round(self) -> None:
        self._unknown = 0
        try:
            now = time.monotonic()
            due = [credential for credential, stay in self._stays.items() if stay.due_at <= now]
            # Together, so that what the database must say of them is few questions, and one that takes long to answer
            # keeps nobody else waiting.
            async with asyncio.TaskGroup() as looks:
                for some in _turns(due):
                    for authorization in some:
                        looks.create_task(self._look_at(authorization))
                    await asyncio.sleep(0)
            if self._unknown:
                log.warning("%d credentials of open streams could not be checked.", self._unknown)
        finally:
            self._round = None
            if self._stays:
                self._wake_in(min(stay.due_at for stay in self._stays.values()) - time.monotonic())

    async def _look_at(self, authorization: str) -> None:
        error: Refusal | None = None
        believed_s = AGAIN_S
        try:
            believed_s = await self._look(authorization)
        except Unavailable:
            # Nobody can say at the moment; what was good so far stays so.
            self._unknown += 1
        except Refusal as refusal:
            error = refusal
        except Exception:
            # A fault of ours ends no stream, and keeps nobody else from being looked at.
            log.exception("The credential of open streams could not be looked at.")
        stay = self._stays.get(authorization)
        if stay is None:
            return
        stay.due_at = time.monotonic() + believed_s
        if error is None:
            return
        for some in _turns(list(stay.guests)):
            for guest in some:
                # Or it is gone meanwhile, or here by another credential.
                if guest in stay.guests:
                    guest.expelled(error)
            await asyncio.sleep(0)


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
