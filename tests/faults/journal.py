"""What was done, when, and what was found wrong: all that is left to debug with when a run has failed."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

# A run that goes wrong goes wrong often; the first violations say why.
VIOLATIONS_SHOWN_MAX: Final = 30


@dataclass
class Journal:
    """Lines with the time of day, as the servers' logs have it, counts, and violations."""

    echo: bool = False
    lines: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, words: str) -> None:
        """Write down what is being done."""
        now = time.time()
        line = f"{time.strftime('%H:%M:%S', time.localtime(now))},{int(now % 1 * 1000):03}  {words}"
        self.lines.append(line)
        if self.echo:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def violation(self, sentence: str) -> None:
        """Write down that a promise was broken."""
        self.violations.append(sentence)
        if len(self.violations) <= VIOLATIONS_SHOWN_MAX:
            self.note(f"VIOLATION: {sentence}")

    def counted(self) -> str:
        """All counts in one line."""
        return ", ".join(f"{name} {count:,}" for name, count in sorted(self.counts.items()))
