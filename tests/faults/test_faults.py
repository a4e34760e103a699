"""What is promised holds whatever breaks: the short run of ``make torture``, and bugs that it must find."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest

from tests.faults.run import Options, report, run
from tests.faults.world import FEEDS, Feed, missing

# Each run takes as long again as some seconds for its start, its recoveries and its end.
SECONDS: Final = 30.0
PLANTED_SECONDS: Final = 5.0
# Few, so that reports meet.
PLANTED_TASKS: Final = 8
PLANTED_TAIL_S: Final = 5.0
PLANTED_DRAIN_S: Final = 6.0
TIMEOUT_S: Final = 150
# For bugs that have nothing to do with them.
NO_PLANS: Final[Mapping[str, Any]] = {"planners": 0, "workers": 0, "watchers": 0, "belled": 0}


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
def test_it_is_found_that_servers_do_not_hear_of_each_other() -> None:
    faults = ["cut clients"]
    violations = torture(Options(seed=1, seconds=0, feed=None, faults=faults, **NO_PLANS, tail_s=PLANTED_TAIL_S))
    assert any(" missed " in violation for violation in violations)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(
    ("planted", "fault", "words"),
    [
        ("publish_before_commit", "restart PostgreSQL immediate", ["and the log has", "which is not in the log"]),
        ("lost_announcements_without_resync", "delay clients", [" missed "]),
        ("no_reread_after_reconnect", "cut feed", ["when the last fault was over"]),
        ("number_outside_the_lock", "delay database", ["INTERNAL_SERVER_ERROR"]),
        ("number_outside_the_lock_unguarded", "delay database", ["and is not in the log"]),
        ("no_idempotency_keys", "pause a server", ["is in the log 2 times"]),
    ],
)
def test_a_planted_bug_is_found(planted: str, fault: str, words: Sequence[str]) -> None:
    options = Options(
        seed=1,
        seconds=PLANTED_SECONDS,
        feed="postgres",
        # What is published too early by one is looked for in vain by the other, which then waits for better times.
        servers=1 if planted == "publish_before_commit" else 2,
        planted=planted,
        faults=[fault],
        tasks=PLANTED_TASKS,
        **NO_PLANS,
        tail_s=PLANTED_TAIL_S,
    )
    violations = torture(options)
    assert any(word in violation for violation in violations for word in words), violations


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(
    "words",
    [
        {
            "stale_tokens": "was reported by",
            "fast_clock": "before the time that it was told",
            "failures_do_not_count": "is of attempt 1, after attempt 1",
            "create_many_by_parts": "were to be created all or none",
            "lists_end_for_nothing": "was ended with LIST_OUTDATED",
        },
        {
            "claims_without_locks": "was given it by event",
            "messages_are_lost": "was brought by nobody",
            "links_without_locks": "which is over, and will not be told",
            "timers_forget": "a timer is lost",
            "slow_timers": " s late, at ",
        },
    ],
)
def test_planted_bugs_of_plans_are_all_found(words: Mapping[str, str]) -> None:
    options = Options(
        seed=1,
        seconds=PLANTED_SECONDS,
        feed="postgres",
        planted=",".join(words),
        faults=["delay database"],
        tasks=2,
        reporters=1,
        subscribers=1,
        planners=6,
        workers=10,
        watchers=2 if "lists_end_for_nothing" in words else 0,
        belled=0,
        tail_s=PLANTED_TAIL_S,
        drain_s=PLANTED_DRAIN_S,
    )
    all_found(torture(options), words)


@pytest.mark.timeout(TIMEOUT_S)
def test_planted_bugs_of_lists_and_wakes_are_all_found() -> None:
    words = {
        "lists_hear_half": "did not hear in time that",
        "older_states_stay": ", which is ",
        "deletions_are_not_told": " was deleted: it was not told",
        "lists_run_backwards": " after that of ",
        "filters_forget_tags": ", for which it did not ask",
        "wakes_are_lost": "nobody was told for",
    }
    options = Options(
        seed=1,
        seconds=0,
        feed="postgres",
        planted=",".join(words),
        faults=["delay clients"],
        tasks=PLANTED_TASKS,
        reporters=4,
        subscribers=1,
        planners=2,
        workers=3,
        belled=1,
        # Those who wait for a queue count again after five seconds.
        calm_s=4,
        tail_s=PLANTED_TAIL_S,
        drain_s=PLANTED_DRAIN_S,
    )
    all_found(torture(options), words)


def all_found(violations: Sequence[str], words: Mapping[str, str]) -> None:
    """Each of these bugs is told by its words."""
    for planted, said in words.items():
        assert any(said in violation for violation in violations), planted
