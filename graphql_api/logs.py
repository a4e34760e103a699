"""Logs: lines on stderr."""

import logging
import sys


def set_up_logs(level: str, prefix: str = "") -> None:
    """Write lines of this level and above, each with a prefix that tells several processes apart."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format=f"%(asctime)s %(levelname)-7s {prefix}%(name)s: %(message)s"
    )
    # A line for each socket, and how a migration is run, say nothing that an operator wants to know.
    for name in ("uvicorn", "websockets", "alembic"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
