"""While some ask for too much, everybody else is served as before. No limit on addresses helps: all are on loopback."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.hostile.floods import FLOODS
from tests.hostile.target import JSON, TASK_IDS, Target, serving

# Of a client that asks for one thing at a time, in several measures: what else the machine does is in some of them,
# what the server does to the client is in all.
REQUESTS: Final = 150
MEASURES: Final = 5
PAUSE_S: Final = 0.002
TIMES_MAX: Final = 3.0
# On two cores, server, database, client and flood take turns of some milliseconds, whatever the server does.
ANYWAY_S: Final = 0.1
BODY: Final = json.dumps({"query": f'{{ task(taskId: "{TASK_IDS[0]}") {{ seq }} }}'}).encode()


def p99_s(target: Target) -> float:
    """The 99th percentile of the time that the client waits for an answer, the median of several measures."""
    measured = []
    for _ in range(MEASURES):
        waits = []
        for _ in range(REQUESTS):
            start = time.perf_counter()
            target.ask("POST", "/graphql", JSON, BODY)
            waits.append(time.perf_counter() - start)
            time.sleep(PAUSE_S)
        measured.append(statistics.quantiles(waits, n=100)[98])
    return statistics.median(measured)


@contextmanager
def flooded(target: Target, flood: str) -> Iterator[None]:
    """While it lasts, somebody floods the server."""
    arguments = [sys.executable, "-m", "tests.hostile.floods", flood, str(target.port), target.key, TASK_IDS[1]]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"begun\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_costs_others_little(database: str, flood: str) -> None:
    with serving(database) as target:
        quiet_s = p99_s(target)
        with flooded(target, flood):
            flooded_s = p99_s(target)
    sys.stdout.write(f"p99 {1e3 * quiet_s:.1f} ms when it is quiet, {1e3 * flooded_s:.1f} ms under {flood}\n")
    assert flooded_s < max(TIMES_MAX * quiet_s, ANYWAY_S)
