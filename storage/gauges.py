"""What happened, in numbers: plain attributes that are raised in passing, for whoever looks at them now and then.

Nothing here is sent or printed anywhere. Each part of the storage has the gauges of what it does itself; a bump costs a
fraction of a microsecond.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# Upper bounds of what is timed, in seconds: from what costs nothing to what a caller gives up on.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COMMANDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Histogram:
    """How many values were at most so large, for some bounds; and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Iterable[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        # One for each bound: what is above the bound before it, and not above this. The last is above all of them.
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_all(self, values: Iterable[float]) -> None:
        """Count some values."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            self.sum += value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)


@dataclass(slots=True)
class WriterGauges:
    """Groups of changes."""

    # From the moment that a command came to the one in which its group was begun.
    queue_wait_s: Histogram = field(default_factory=Histogram)
    # Commands in a group.
    group_commands: Histogram = field(default_factory=lambda: Histogram(COMMANDS))
    # From the first statement of a group to its commit: of those decided from memory, and of all others.
    remembered_s: Histogram = field(default_factory=Histogram)
    locked_s: Histogram = field(default_factory=Histogram)
    # Groups that did not simply succeed. The database would not have one, and each command was tried alone.
    taken_apart: int = 0
    # Nobody could say whether one was committed.
    unknown: int = 0
    # The database could not be had, or took too long.
    unavailable: int = 0
    # Commands that found the queue full.
    turned_away: int = 0


@dataclass(slots=True)
class FeedGauges:
    """Updates on their way to subscribers, each counted once for each subscriber."""

    # From the commit to the last subscriber who took it as it was published.
    direct_s: Histogram = field(default_factory=Histogram)
    # The same for what another process committed, from the time of the event: that is just before its commit, by the
    # clock of whoever wrote it.
    followed_s: Histogram = field(default_factory=Histogram)
    # The same for what waited in a buffer or was read from the log, and for whatever goes out as a stream over HTTP.
    buffered_s: Histogram = field(default_factory=Histogram)
    # Buffers that were dropped because their subscriber was too far behind.
    overruns: int = 0
    # Updates that came before an earlier one, so that the log was read.
    holes: int = 0
    # Pages of the log that were read for one subscriber alone.
    catch_ups: int = 0


@dataclass(slots=True)
class ListGauges:
    """Subscribers of lists."""

    # Updates that were given to a subscriber.
    told: int = 0
    # Those that a later one of the same task has replaced before.
    coalesced: int = 0
    # Subscribers that were told to read the list anew.
    outdated: int = 0


@dataclass(slots=True)
class PoolGauges:
    """Connections to the database."""

    # How long somebody waited because all were in use; who waited for none is not counted.
    wait_s: Histogram = field(default_factory=Histogram)
    # Connections that were made, and attempts to get one that came to nothing.
    made: int = 0
    failed: int = 0
