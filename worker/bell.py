"""Hears when tasks of a queue may be claimed: the subscription `queueReady`, on a socket that is opened again.

What it hears is a hint, which may be lost and may be late; whoever waits for it asks every few seconds anyway.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from worker.backoff import pauses
from worker.client import Client
from worker.documents import QUEUE_READY
from worker.errors import WorkerError
from worker.subscription import subscribe

log: Final = logging.getLogger("spectral.worker")


async def listen(client: Client, queue: str, ring: Callable[[], None]) -> None:
    """Call `ring` whenever tasks may have become ready, until canceled."""
    waits = pauses()
    while True:
        listening = False
        try:
            async with aclosing(subscribe(client, QUEUE_READY, {"queue": queue})) as answers:
                # The first says what became ready while nobody listened.
                async for answer in answers:
                    if not listening:
                        listening, waits = True, pauses()
                        log.debug("Listening for tasks of queue %s", queue)
                    if answer["ready"]:
                        ring()
        except (WorkerError, LookupError, TypeError) as error:
            # Among them what a server says that is none of ours.
            log.debug("Nothing can be heard of queue %s, so it is asked for tasks every few seconds: %s", queue, error)
        await asyncio.sleep(next(waits))
