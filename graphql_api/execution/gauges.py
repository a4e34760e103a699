"""What is counted of operations, plans and sockets.

Clients choose the names of operations, so only so many are told apart; what more there is counts as one.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from storage.gauges import Histogram

# Names that are told apart, over all kinds of operations: those that came first since the start.
NAMES_MAX: Final = 50
# What an operation came to: this, or the code of its error.
OK: Final = "ok"
# What stands for the name of an operation that has none, and for those that are too many; neither can be a name.
UNNAMED: Final = "(unnamed)"
OTHER: Final = "(other)"


class OperationGauges:
    """Operations of one name: how long they took, and what came of them."""

    __slots__ = ("duration_s", "outcomes")

    def __init__(self) -> None:
        self.duration_s = Histogram()
        self.outcomes: Counter[str] = Counter()

    def ended(self, began: float, code: str | None) -> None:
        """Count one that began then, by `time.perf_counter`, and failed with a code, or succeeded."""
        self.duration_s.observe(time.perf_counter() - began)
        self.outcomes[code or OK] += 1


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
    closed: Counter[int] = field(default_factory=Counter)
