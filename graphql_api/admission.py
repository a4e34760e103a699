"""Who is let in, how often, and with how many sockets.

Clients are counted by the address from which they come, and by their credential once it is known to be good; a
credential that nobody has looked at says nothing, because anyone can make up a new one for each request. What is asked
first costs least: the rate of an address is known before anything of a request is read.

A client whose address is not counted (`SPECTRAL_UNLIMITED_ADDRESSES`) is not counted by its credential either: its
source is None. All counts are this process's own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from graphql_api.auth import Doorkeeper, Viewer, credential_of
from graphql_api.errors import Expired, RateLimited, Unauthenticated
from graphql_api.rates import NAMES_MAX, Buckets
from graphql_api.settings import Settings
from graphql_api.wire.addresses import Addresses
from graphql_api.wire.headers import Headers

# What an address or a credential may do at once, as so many seconds of what it may do for ever: a page that opens, a
# fleet that comes back.
BURST_S: Final = 5.0
MINUTE_S: Final = 60.0
# Who has too many sockets or streams is asked to wait so long.
RETRY_PLACE_S: Final = 10.0
# Credentials that are remembered as good, or as wrong.
CREDENTIALS_MAX: Final = 10_000


class Admission:
    """The door of one process."""

    def __init__(self, settings: Settings, doorkeeper: Doorkeeper, clock: Callable[[], float] = time.monotonic) -> None:
        self._doorkeeper = doorkeeper
        self._addresses = Addresses(settings.trusted_proxies, settings.unlimited_addresses)
        self._operations_of_sources = _Rate("address", settings.operations_per_second_per_address_max, clock)
        self._operations_of_credentials = _Rate("credential", settings.operations_per_second_per_credential_max, clock)
        self._failures = _buckets(settings.failed_sign_ins_per_minute_per_address_max / MINUTE_S, MINUTE_S, clock)
        self._failures_max = settings.failed_sign_ins_per_minute_per_address_max
        self._good = _Remembered(CREDENTIALS_MAX)
        self._wrong = _Remembered(CREDENTIALS_MAX)
        self.sockets_of_sources = Places("address", settings.sockets_per_address_max)
        self.sockets_of_credentials = Places("credential", settings.sockets_per_credential_max)

    def source(self, peer: str | None, headers: Headers) -> str | None:
        """By which name a client is counted; None for one that is not."""
        return self._addresses.counted_as(peer, headers)

    def client(self, peer: str | None, headers: Headers) -> str:
        """The address of a client."""
        return self._addresses.client(peer, headers)

    def begin(self, source: str | None) -> None:
        """Count an operation of an address; RateLimited when there were too many."""
        self._operations_of_sources.take(source)

    async def viewer(self, authorization: str | None, source: str | None) -> Viewer:
        """Whoever sends an operation, which is counted for them."""
        if source is None:
            return await self._doorkeeper.viewer(authorization)
        viewer = await self.sign_in(authorization, source)
        self._operations_of_credentials.take(counted_as(viewer, authorization, source))
        return viewer

    @contextmanager
    def stream(self, viewer: Viewer, authorization: str | None, source: str | None) -> Iterator[None]:
        """Count a stream over HTTP for as long as it lasts, like a socket; RateLimited when there are too many."""
        credential = counted_as(viewer, authorization, source)
        with self.sockets_of_sources.place(source), self.sockets_of_credentials.place(credential):
            yield

    def take_back(self, viewer: Viewer, authorization: str | None, source: str | None) -> None:
        """Count an operation no more: it will be counted when it comes another way."""
        self._operations_of_sources.give_back(source)
        self._operations_of_credentials.give_back(counted_as(viewer, authorization, source))

    def count_more(self, viewer: Viewer, authorization: str | None, source: str | None, operations: int) -> None:
        """Count so many operations beside the one that was counted; RateLimited, and none of them, if too many."""
        self._operations_of_sources.take_more(source, operations)
        try:
            self._operations_of_credentials.take_more(counted_as(viewer, authorization, source), operations)
        except RateLimited:
            self._operations_of_sources.give_back(source, operations)
            raise

    async def sign_in(self, authorization: str | None, source: str | None) -> Viewer:
        """Whoever a credential stands for. An address from which many wrong ones came is not told about further ones.

        It is told about those that were good lately, because others may share it; and the same wrong credential, sent
        again, is no further guess.
        """
        if authorization is None or source is None or self._failures is None:
            return await self._doorkeeper.viewer(authorization)
        credential = credential_of(authorization)
        if credential not in self._good:
            wait_s = self._failures.wait_s(source)
            if wait_s:
                raise RateLimited(
                    f"From one address {self._failures_max} wrong credentials are looked at in a minute, no more.",
                    wait_s,
                )
        try:
            viewer = await self._doorkeeper.viewer(authorization)
        except Expired:
            # Nobody guesses what was good once. A whole office may come with such ones in the morning.
            self._good.forget(credential)
            raise
        except Unauthenticated:
            self._good.forget(credential)
            if credential not in self._wrong:
                self._wrong.add(credential)
                # Of those that are sent at once, each was let through, and each counts.
                self._failures.charge(source)
            raise
        self._good.add(credential)
        return viewer


class Places:
    """So many sockets and streams for each name, each given back. A name that is None is not counted."""

    def __init__(self, kind: str, places_max: int) -> None:
        """The kind is what the names are of; zero is no limit."""
        self._kind = kind
        self._places_max = places_max
        self._taken: dict[str, int] = {}

    def free(self, name: str | None) -> bool:
        """Whether there is one to take."""
        return name is None or not self._places_max or self._taken.get(name, 0) < self._places_max

    def take(self, name: str | None) -> None:
        """Take one; RateLimited when all of them are taken."""
        if not self.free(name):
            raise RateLimited(f"One {self._kind} may have {self._places_max} sockets and streams open.", RETRY_PLACE_S)
        if name is not None and self._places_max:
            self._taken[name] = self._taken.get(name, 0) + 1

    def give_back(self, name: str | None) -> None:
        """Give back one that was taken."""
        if name is None or not self._places_max:
            return
        taken = self._taken.pop(name)
        if taken > 1:
            self._taken[name] = taken - 1

    @contextmanager
    def place(self, name: str | None) -> Iterator[None]:
        """Have one for a while."""
        self.take(name)
        try:
            yield
        finally:
            self.give_back(name)

    @property
    def names(self) -> int:
        """How many names have taken some."""
        return len(self._taken)


class _Rate:
    """So many operations a second for each name, and more at once. A name that is None is not counted."""

    def __init__(self, kind: str, per_second_max: int, clock: Callable[[], float]) -> None:
        """The kind is what the names are of; zero is no limit."""
        self._buckets = _buckets(per_second_max, BURST_S, clock)
        self._refusal = (
            f"One {kind} may send {per_second_max} operations a second, and {BURST_S:.0f} times as many at once."
        )
        self._refusal_of_items = f"{self._refusal} Each item of a batch is one."

    def take(self, name: str | None) -> None:
        """Count an operation; RateLimited when there were too many."""
        if name is not None and self._buckets is not None:
            wait_s = self._buckets.take(name)
            if wait_s:
                raise RateLimited(self._refusal, wait_s)

    def take_more(self, name: str | None, operations: int) -> None:
        """Count more than the operation that was counted; RateLimited when those were too many."""
        if name is not None and self._buckets is not None:
            wait_s = self._buckets.take_more(name, operations)
            if wait_s:
                raise RateLimited(self._refusal_of_items, wait_s)

    def give_back(self, name: str | None, operations: int = 1) -> None:
        """Count so many less."""
        if name is not None and self._buckets is not None:
            self._buckets.give_back(name, operations)


class _Remembered:
    """Texts that came lately, by their hash: they are secrets. Those that came first are forgotten first.

    Two of one hash, of which nobody outside can make any, are one look-up more or one failure less.
    """

    def __init__(self, texts_max: int) -> None:
        self._texts_max = texts_max
        self._hashes: dict[int, None] = {}

    def __contains__(self, text: str) -> bool:
        return hash(text) in self._hashes

    def add(self, text: str) -> None:
        if text not in self:
            if len(self._hashes) >= self._texts_max:
                del self._hashes[next(iter(self._hashes))]
            self._hashes[hash(text)] = None

    def forget(self, text: str) -> None:
        self._hashes.pop(hash(text), None)


def counted_as(viewer: Viewer, authorization: str | None, source: str | None) -> str | None:
    """By which name a credential is counted, however it is written; None for one that is not.

    A bearer token that is renewed is the same client, a task token one of its own. Nobody is counted as another who has
    the same name elsewhere.
    """
    if source is None or not viewer.authenticated:
        return None
    if viewer.key_id is not None:
        return f"key {viewer.key_id}"
    if viewer.name is not None and viewer.task_id is None:
        return f"sub {viewer.name}"
    # What was signed: the last character of a signature has bits that say nothing.
    return f"#{hash(credential_of(authorization or '').rpartition('.')[0])}"


def _buckets(per_second: float, burst_s: float, clock: Callable[[], float]) -> Buckets | None:
    return Buckets(per_second, burst_s, names_max=NAMES_MAX, clock=clock) if per_second else None
