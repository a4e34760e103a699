"""What is promised holds whatever breaks: the short run of ``make torture``, and bugs that it must find."""

import asyncio
from collections.abc import Sequence
from typing import Final

import pytest

from graphql_api.settings import Settings
from tests.faults.run import Options, report, run
from tests.faults.world import FEEDS, Feed, missing

# Each run takes as long again as some seconds for its start, its recoveries and its end.
SECONDS: Final = 45.0
PLANTED_SECONDS: Final = 8.0
# Few, so that reports meet.
PLANTED_TASKS: Final = 8
PLANTED_TAIL_S: Final = 5.0
TIMEOUT_S: Final = 150
BETWEEN_PROCESSES: Final = "listen_url" in Settings.model_fields


def torture(options: Options) -> list[str]:
    """The violations; they come with everything that was done, for whoever reads why a test failed."""
    journal = asyncio.run(run(options))
    print(report(journal, options))  # noqa: T201 - pytest shows it when the test fails
    return journal.violations


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("feed", FEEDS)
def test_nothing_is_lost_repeated_or_left_whatever_breaks(feed: Feed) -> None:
    if why := missing(feed):
        pytest.skip(why)
    assert torture(Options(seed=1, seconds=SECONDS, feed=feed)) == []


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.skipif(BETWEEN_PROCESSES, reason="servers hear of each other, so two are tested")
def test_nothing_is_lost_repeated_or_left_with_one_server() -> None:
    assert torture(Options(seed=1, seconds=SECONDS, feed=None, servers=1)) == []


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.skipif(BETWEEN_PROCESSES, reason="servers hear of each other")
def test_it_is_found_that_servers_do_not_hear_of_each_other() -> None:
    violations = torture(Options(seed=1, seconds=3, feed=None, faults=["cut clients"], tail_s=PLANTED_TAIL_S))
    assert any(" missed " in violation for violation in violations)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(
    ("planted", "faults", "words"),
    [
        ("publish_before_commit", ["restart PostgreSQL immediate"], ["and the log has", "which is not in the log"]),
        ("number_outside_the_lock", ["cut clients"], ["INTERNAL_SERVER_ERROR"]),
        ("number_outside_the_lock_unguarded", ["cut clients"], ["and is not in the log"]),
        ("no_idempotency_keys", ["stall clients"], ["is in the log 2 times"]),
    ],
)
def test_a_planted_bug_is_found(planted: str, faults: Sequence[str], words: Sequence[str]) -> None:
    feed: Feed | None = "postgres" if BETWEEN_PROCESSES else None
    options = Options(
        seed=1,
        seconds=PLANTED_SECONDS,
        feed=feed,
        planted=planted,
        faults=faults,
        tasks=PLANTED_TASKS,
        tail_s=PLANTED_TAIL_S,
    )
    violations = torture(options)
    assert any(word in violation for violation in violations for word in words), violations
