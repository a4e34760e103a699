"""How often something may be done: a bucket of tokens for each name, as one number each.

A bucket that fills at a rate and holds a burst is known by the time at which it will be full again. Taking a token
moves that time on; when it lies further ahead than the burst lasts, there is none to take. So there is nothing to fill,
no timer, and a bucket that is full is one that need not be kept.
"""

import time
from collections.abc import Callable
from typing import Final

# Names that are remembered. Whoever has more addresses than this has a burst more for each that was forgotten.
NAMES_MAX: Final = 100_000
# What sums of fractions of a second are off by, at most.
_ROUNDING_S: Final = 1e-9


class Buckets:
    """A bucket for each name. What is remembered is bounded; the names that took least lately are forgotten first."""

    def __init__(
        self,
        per_second: float,
        burst_s: float,
        *,
        names_max: int = NAMES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """So many tokens a second, and at most what comes in `burst_s`, but one at least, at once."""
        self._interval_s = 1 / per_second
        self._burst_s = max(burst_s, self._interval_s)
        self._clock = clock
        # When each bucket will be full. Those that took since the generation began, and those of the one before.
        self._young: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._generation_max = names_max // 2

    def take(self, name: str) -> float:
        """Take a token. The answer is 0.0, or in how many seconds there will be one: then none was taken."""
        now = self._clock()
        full_at = self._young.get(name)
        if full_at is None:
            full_at = self._remember(name)
        if full_at < now:
            full_at = now
        full_at += self._interval_s
        wait_s = full_at - now - self._burst_s
        if wait_s > _ROUNDING_S:
            return wait_s
        self._young[name] = full_at
        return 0.0

    def take_more(self, name: str, tokens: int) -> float:
        """Take some tokens beside the one that was taken for the same thing. The answer is 0.0, or in how many seconds
        there will be so many: then no more were taken.

        What would not fit into a bucket is given by a full one, which then owes the rest.
        """
        now = self._clock()
        full_at = self._young.get(name)
        if full_at is None:
            full_at = self._remember(name)
        # Without its own token, which a full bucket lacks by now.
        full_at = max(full_at - self._interval_s, now)
        taken_s = (tokens + 1) * self._interval_s
        wait_s = full_at - now + min(taken_s, self._burst_s) - self._burst_s
        if wait_s > _ROUNDING_S:
            return wait_s
        self._young[name] = full_at + taken_s
        return 0.0

    def charge(self, name: str) -> None:
        """Take a token for what was done already, though there be none. At most another burst is owed."""
        now = self._clock()
        full_at = self._young.get(name)
        if full_at is None:
            full_at = self._remember(name)
        self._young[name] = min(max(full_at, now) + self._interval_s, now + 2 * self._burst_s)

    def give_back(self, name: str, tokens: int = 1) -> None:
        """Give back what was taken."""
        if name in self._young:
            self._young[name] -= tokens * self._interval_s

    def wait_s(self, name: str) -> float:
        """In how many seconds there will be a token; 0.0 when there is one. None is taken."""
        full_at = self._young.get(name) or self._old.get(name, 0.0)
        now = self._clock()
        wait_s = max(full_at, now) + self._interval_s - now - self._burst_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    @property
    def names(self) -> int:
        """How many names are remembered."""
        return len(self._young) + len(self._old)

    def _remember(self, name: str) -> float:
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
        full_at = self._old.pop(name, 0.0)
        self._young[name] = full_at
        return full_at
