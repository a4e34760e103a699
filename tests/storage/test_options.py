"""Bad options: each is refused when it is made, just beyond its bound and not just before it."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from storage import BadInput, Create, CreateMany, Options, Retry, TooLarge

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"tags": [f"{n}" for n in range(20)]},
        # Once each.
        {"tags": ["same"] * 21},
        {"tags": ["t" * 64]},
        {"queue": "q" * 64},
        {"priority": 1_000},
        {"priority": -1_000},
        {"depends_on": [f"T{n}" for n in range(100)]},
        {"depends_on": ["i" * 255]},
        {"start_at": NOW, "expires_at": NOW},
        {"start_at": NOW.replace(year=9000)},
        {"keep_for_s": 0},
        {"keep_for_s": 10 * 366 * 24 * 3600},
    ],
)
def test_options_at_their_bounds_are_taken(good: dict[str, Any]) -> None:
    Options(**good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"tags": [f"{n}" for n in range(21)]}, "tags must have at most 20 items, got 21."),
        ({"tags": ["t" * 65]}, "tag must have 1 to 64 characters, got 65."),
        ({"tags": [""]}, "tag must have 1 to 64 characters, got 0."),
        ({"tags": ["\0"]}, "tag must not hold NUL characters"),
        ({"queue": ""}, "queue must have 1 to 64 characters, got 0."),
        ({"queue": "q" * 65}, "queue must have 1 to 64 characters, got 65."),
        ({"queue": "\ud800"}, "queue must be valid Unicode"),
        ({"priority": 1_001}, "priority must be -1000 to 1000, got 1001."),
        ({"priority": -1_001}, "priority must be -1000 to 1000, got -1001."),
        ({"depends_on": [f"T{n}" for n in range(101)]}, "dependsOn must have at most 100 items, got 101."),
        ({"depends_on": ["i" * 256]}, "dependsOn must have 1 to 255 characters, got 256."),
        ({"start_at": NOW, "expires_at": NOW - timedelta(seconds=1)}, "expiresAt must not be before startAt"),
        ({"start_at": NOW.replace(tzinfo=None)}, "startAt must be a time with an offset"),
        ({"expires_at": NOW.replace(year=9001)}, "expiresAt must be a time with an offset, at most in the year 9000"),
        ({"keep_for_s": -1}, "keepForSeconds must be 0 to 316224000, got -1."),
        ({"keep_for_s": 316_224_001}, "keepForSeconds must be 0 to 316224000, got 316224001."),
    ],
)
def test_options_beyond_their_bounds_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        Options(**bad)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "good",
    [
        {"max_attempts": 1},
        {"max_attempts": 100, "initial_s": 0, "max_s": 0, "factor": 1},
        {"max_attempts": 2, "initial_s": 2_592_000, "max_s": 2_592_000, "factor": 100},
    ],
)
def test_retries_at_their_bounds_are_taken(good: dict[str, Any]) -> None:
    Retry(**good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_attempts": 0}, "maxAttempts must be 1 to 100, got 0."),
        ({"max_attempts": 101}, "maxAttempts must be 1 to 100, got 101."),
        ({"initial_s": -1}, "initialDelaySeconds must be 0 to 2592000, got -1."),
        ({"initial_s": 2_592_001}, "initialDelaySeconds must be 0 to 2592000, got 2592001."),
        ({"max_s": -1}, "maxDelaySeconds must be 0 to 2592000, got -1."),
        ({"max_s": 2_592_001}, "maxDelaySeconds must be 0 to 2592000, got 2592001."),
        ({"factor": 0.99}, "factor must be 1 to 100, got 0.99."),
        ({"factor": 100.1}, "factor must be 1 to 100, got 100.1."),
        ({"factor": float("nan")}, "factor must be 1 to 100, got nan."),
        ({"factor": float("inf")}, "factor must be 1 to 100, got inf."),
    ],
)
def test_retries_beyond_their_bounds_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        Retry(**{"max_attempts": 2, **bad})
    assert str(refused.value) == message


def test_what_is_given_twice_counts_once_and_stays_in_order() -> None:
    options = Options(tags=["b", "a", "b"], depends_on=["y", "x", "y"])
    assert (options.tags, options.depends_on) == (("b", "a"), ("y", "x"))


def test_many_tasks_have_a_bound_on_their_number_and_on_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    CreateMany(tasks=tuple(Create(task_id=f"T{n}") for n in range(1_000)))
    monkeypatch.setattr("storage.commands.CREATE_MANY_BYTES_MAX", 3 * 256)
    CreateMany(tasks=tuple(Create(task_id=f"T{n}") for n in range(3)))
    with pytest.raises(TooLarge, match="tasks must have at most 768 bytes together, got 769"):
        CreateMany(tasks=(*(Create(task_id=f"T{n}") for n in range(2)), Create(task_id="T3", metadata=1)))
