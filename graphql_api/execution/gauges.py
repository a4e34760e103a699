"""What is counted of operations, plans and sockets.

Clients choose the names of operations, so only so many are told apart; what more there is counts as one.
"""

import time
from dataclasses import dataclass, field
from typing import Final

from storage.gauges import OTHER, Histogram, Tally

# Names that are told apart, over all kinds of operations: those that came first since the start.
NAMES_MAX: Final = 50
# More than there are codes; what an operation came to is one of them, or OK.
OUTCOMES_MAX: Final = 64
CODES_MAX: Final = 64
OK: Final = "ok"
# What stands for the name of an operation that has none; it can be no name.
UNNAMED: Final = "(unnamed)"


class OperationGauges:
    """Operations of one name: how long they took, and what came of them."""

    __slots__ = ("duration_s", "ok", "outcomes")

    def __init__(self) -> None:
        self.duration_s = Histogram()
        self.ok = 0
        # The codes of those that failed.
        self.outcomes = Tally(OUTCOMES_MAX)

    def ended(self, began: float, code: str | None) -> None:
        """Count one that began then, by `time.perf_counter`, and failed with a code, or succeeded."""
        self.duration_s.observe(time.perf_counter() - began)
        if code is None:
            self.ok += 1
        else:
            self.outcomes.bump(code)


@dataclass(slots=True)
class PlanGauges:
    """Operations by kind and name, and the plans for them."""

    operations: dict[tuple[str, str], OperationGauges] = field(default_factory=dict)
    # From a document to its plan, or to why there is none.
    made_s: Histogram = field(default_factory=Histogram)
    compiled: int = 0
    declined: int = 0

    def operation(self, kind: str, name: str | None) -> OperationGauges:
        """What counts the operations of a kind and name."""
        key = (kind, UNNAMED if name is None else name)
        found = self.operations.get(key)
        if found is None:
            if len(self.operations) >= NAMES_MAX:
                # One for each kind, beside the names.
                key = (kind, OTHER)
            found = self.operations.setdefault(key, OperationGauges())
        return found


@dataclass(slots=True)
class SocketGauges:
    """WebSockets."""

    open: int = 0
    # Handshakes of pages of other origins.
    refused: int = 0
    # Sockets that were closed for breaking the protocol, or a bound, by code.
    closed: Tally = field(default_factory=lambda: Tally(CODES_MAX))
