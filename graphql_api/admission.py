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
        self._of_source = _buckets(settings.address_operations_per_second_max, BURST_S, clock)
        self._of_credential = _buckets(settings.credential_operations_per_second_max, BURST_S, clock)
        self._operations_max = settings.address_operations_per_second_max
        self._credential_operations_max = settings.credential_operations_per_second_max
        self._failures = _buckets(settings.failed_sign_ins_per_minute_max / MINUTE_S, MINUTE_S, clock)
        self._failures_max = settings.failed_sign_ins_per_minute_max
        self._good = _Remembered(CREDENTIALS_MAX)
        self._wrong = _Remembered(CREDENTIALS_MAX)
        self.sockets_of_sources = Places(settings.sockets_per_address_max)
        self.sockets_of_credentials = Places(settings.sockets_per_credential_max)

    def source(self, peer: str | None, headers: Headers) -> str | None:
        """By which name a client is counted; None for one that is not."""
        return self._addresses.counted_as(peer, headers)

    def client(self, peer: str | None, headers: Headers) -> str:
        """The address of a client."""
        return self._addresses.client(peer, headers)

    def begin(self, source: str | None) -> None:
        """Count an operation of an address; RateLimited when there were too many."""
        if source is not None and self._of_source is not None:
            wait_s = self._of_source.take(source)
            if wait_s:
                raise RateLimited(
                    f"One address may send {self._operations_max} operations a second, "
                    f"and {BURST_S:.0f} times as many at once.",
                    wait_s,
                )

    async def viewer(self, authorization: str | None, source: str | None) -> Viewer:
        """Whoever sends an operation, which is counted for them."""
        if source is None:
            return await self._doorkeeper.viewer(authorization)
        viewer = await self.sign_in(authorization, source)
        if viewer.authenticated and self._of_credential is not None:
            wait_s = self._of_credential.take(name_of(viewer, authorization))
            if wait_s:
                raise RateLimited(
                    f"One credential may send {self._credential_operations_max} operations a second, "
                    f"and {BURST_S:.0f} times as many at once.",
                    wait_s,
                )
        return viewer

    @contextmanager
    def stream(self, viewer: Viewer, authorization: str | None, source: str | None) -> Iterator[None]:
        """Count a stream over HTTP for as long as it lasts, like a socket; RateLimited when there are too many."""
        credential = name_of(viewer, authorization) if source is not None and viewer.authenticated else None
        with (
            self.sockets_of_sources.place(source, "address"),
            self.sockets_of_credentials.place(credential, "credential"),
        ):
            yield

    def take_back(self, viewer: Viewer, authorization: str | None, source: str | None) -> None:
        """Count an operation no more: it will be counted when it comes another way."""
        if source is not None:
            if self._of_source is not None:
                self._of_source.give_back(source)
            if self._of_credential is not None and viewer.authenticated:
                self._of_credential.give_back(name_of(viewer, authorization))

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
    """So many for each name, each given back."""

    def __init__(self, places_max: int) -> None:
        """Zero is no limit."""
        self.places_max = places_max
        self._taken: dict[str, int] = {}

    def free(self, name: str | None) -> bool:
        """Whether there is one to take."""
        return name is None or not self.places_max or self._taken.get(name, 0) < self.places_max

    def take(self, name: str | None) -> bool:
        """Take one; False when all of them are taken."""
        if not self.free(name):
            return False
        if name is not None and self.places_max:
            self._taken[name] = self._taken.get(name, 0) + 1
        return True

    @contextmanager
    def place(self, name: str | None, kind: str) -> Iterator[None]:
        """Have one for a while; RateLimited when all are taken."""
        if not self.take(name):
            raise RateLimited(f"One {kind} may have {self.places_max} sockets and streams open.", RETRY_PLACE_S)
        try:
            yield
        finally:
            self.give_back(name)

    def give_back(self, name: str | None) -> None:
        """Give back one that was taken."""
        if name is None or not self.places_max:
            return
        taken = self._taken.pop(name)
        if taken > 1:
            self._taken[name] = taken - 1

    @property
    def names(self) -> int:
        """How many names have taken some."""
        return len(self._taken)


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


def name_of(viewer: Viewer, authorization: str | None) -> str:
    """By which name a credential is counted, however it is written: a bearer token that is renewed is the same client,
    a task token one of its own. Nobody is counted as another who has the same name elsewhere.
    """
    if viewer.key_id is not None:
        return f"key {viewer.key_id}"
    if viewer.name is not None and viewer.task_id is None:
        return f"sub {viewer.name}"
    # What was signed: the last character of a signature has bits that say nothing.
    return f"#{hash(credential_of(authorization or '').rpartition('.')[0])}"


def _buckets(per_second: float, burst_s: float, clock: Callable[[], float]) -> Buckets | None:
    return Buckets(per_second, burst_s, names_max=NAMES_MAX, clock=clock) if per_second else None
