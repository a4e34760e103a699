"""Bells: a worker that has one asks for tasks when it rings, and never otherwise."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.faults.journal import Journal
from tests.faults.wire import LEAVING, RECONNECT_WAITS_S, Gone, begin, connected, errors_of, messages, passing

_READY: Final = "subscription($queue: String!) { queueReady(queue: $queue) { ready } }"


@dataclass
class Bell:
    """A subscription to `queueReady`, made anew whenever it ends."""

    name: str
    queue: str
    ports: Sequence[int]
    key: str
    random: Random
    journal: Journal
    _rings: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except LEAVING as error:
                self.journal.counts[f"bells left by {type(error).__name__}"] += 1
            await asyncio.sleep(self.random.uniform(*RECONNECT_WAITS_S))

    async def rung(self, stop: asyncio.Event) -> None:
        """Wait until it rings, or it is time to stop."""
        waits = [asyncio.ensure_future(one.wait()) for one in (self._rings, stop)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        self._rings.clear()

    async def _listen(self) -> None:
        port = self.random.choice(self.ports)
        async with connected(port, self.key) as wire, aclosing(messages(wire)) as heard:
            async for message in heard:
                if message["type"] == "connection_ack":
                    await begin(wire, "bell", _READY, {"queue": self.queue})
                elif errors := errors_of(message):
                    if not passing(errors):
                        self.journal.violation(f"{self.name} was refused: {errors[0]}")
                    raise Gone
                elif message["type"] == "next":
                    self.journal.counts["rings of bells"] += 1
                    self._rings.set()
                else:
                    self.journal.violation(f"{self.name} was sent {message['type']}, for which there is no reason.")
                    raise Gone
