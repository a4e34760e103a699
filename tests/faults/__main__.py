"""``python -m tests.faults``: the long run, for ``make torture``."""

import argparse
import asyncio
import sys
import time

from tests.faults.run import Options, run, summary
from tests.faults.world import FEEDS, missing


def main() -> int:
    """Run, and say by the status whether everything that is promised was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long faults come")
    parser.add_argument("--seed", type=int, default=None, help="what decides about everything that is random")
    parser.add_argument("--feed", choices=[*FEEDS, "none"], default="postgres", help="how servers hear of each other")
    parser.add_argument("--servers", type=int, default=2, help="how many there are")
    parser.add_argument("--fault", action="append", help="only this fault, by its name; may be repeated")
    parser.add_argument("--planted", help="a bug that the servers are to have; see planted.py")
    chosen = parser.parse_args()
    feed = None if chosen.feed == "none" else chosen.feed
    if feed is not None and (why := missing(feed)):
        sys.stderr.write(f"A run with the feed {feed} is not possible: {why}.\n")
        return 2
    options = Options(
        seed=int(time.time()) if chosen.seed is None else chosen.seed,
        seconds=chosen.seconds,
        feed=feed,
        servers=chosen.servers,
        faults=chosen.fault,
        planted=chosen.planted,
        echo=True,
    )
    journal = asyncio.run(run(options))
    sys.stdout.write(f"{summary(journal, options)}\n")
    return 1 if journal.violations else 0


if __name__ == "__main__":
    sys.exit(main())
