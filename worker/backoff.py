"""Pauses between attempts: they grow, up to a bound, and differ between those who wait for the same server."""

import random
from collections.abc import Iterator
from typing import Final

FIRST_PAUSE_S: Final = 0.2
PAUSE_MAX_S: Final = 15.0


def pauses(pause_max_s: float = PAUSE_MAX_S) -> Iterator[float]:
    """Pause after pause, without an end."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield jittered(pause_s)
        pause_s = min(2 * pause_s, pause_max_s)


def jittered(pause_s: float) -> float:
    """About so long; chance keeps apart those who began together."""
    return pause_s * random.uniform(0.75, 1.25)  # noqa: S311 - nothing is guarded by it
