"""What comes again and again while something lasts: counted, for a line of the log once in a while."""

import time
from collections.abc import Callable
from typing import Final

APART_S: Final = 10.0


class Tally:
    """Says when a line is due: at the first that comes, and later not before so many seconds have passed."""

    def __init__(self, apart_s: float = APART_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._apart_s = apart_s
        self._clock = clock
        self._due_at = 0.0
        self._untold = 0

    def add(self, number: int) -> int:
        """Count more; return how many a line is to tell of now, 0 for no line."""
        self._untold += number
        now = self._clock()
        if now < self._due_at:
            return 0
        self._due_at = now + self._apart_s
        told, self._untold = self._untold, 0
        return told
