"""Bad values: each is refused when the command is made, just beyond its bound and not just before it."""

import reprlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any, Final

import pytest

from storage import (
    AddEvent,
    BadInput,
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    EventType,
    Fail,
    Heartbeat,
    Refusal,
    Release,
    Report,
    TooLarge,
    UpdateProgress,
)

KIB: Final = 1024


def nested(depth: int) -> Any:
    """Lists in lists, so many levels deep."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


# Every command, with the least that it needs.
LEAST: Final[dict[type[Command], dict[str, Any]]] = {
    Create: {},
    Delete: {},
    AddEvent: {"event_type": EventType.LOG, "message": ""},
    UpdateProgress: {"progress": 1},
    Complete: {},
    Fail: {"error": ""},
    Cancel: {},
    Heartbeat: {"token": "t", "lease_s": 1},
    Release: {"token": "t"},
}


def every_command_with(argument: str, value: Any) -> Iterator[Callable[[], Command]]:
    """What makes each of the commands that take an argument."""
    for kind, least in LEAST.items():
        if argument in {field.name for field in fields(kind) if field.init}:
            yield partial(kind, **{"task_id": "T", **least, argument: value})


@pytest.mark.parametrize(
    ("argument", "good"),
    [
        ("task_id", "i"),
        ("task_id", "i" * 255),
        ("task_id", "\U0001f600" * 255),
        ("task_id", " \n'\";--\\%_"),
        ("idempotency_key", "k"),
        ("idempotency_key", "k" * 255),
        ("created_by", "c"),
        ("created_by", "c" * 255),
        ("actor", "a"),
        ("actor", "a" * 300),
        ("token", "t"),
        ("token", "t" * 255),
        ("lease_s", 1),
        ("lease_s", 24 * 3600),
        ("message", ""),
        ("message", "m" * 64 * KIB),
        ("message", "é" * 32 * KIB),
        ("error", "é" * 32 * KIB),
        ("progress", 0),
        ("progress", 100),
        ("metadata", None),
        ("metadata", False),
        ("metadata", "x" * (256 * KIB - 2)),
        ("metadata", nested(64)),
        ("metadata", [0] * 19_999),
        ("metadata", [[]] * (20_000 - 1)),
        ("metadata", {f"{n}": [n] for n in range(20_000 // 2 - 1)}),
        ("metadata", 2**63 - 1),
        ("metadata", -(2**63)),
        ("metadata", [1.5, 1e308, 5e-324, {"": None, "k": True}]),
    ],
    ids=reprlib.repr,
)
def test_a_value_at_its_bound_is_taken_by_every_command_that_has_it(argument: str, good: Any) -> None:
    for make in every_command_with(argument, good):
        assert getattr(make(), argument) == good


@pytest.mark.parametrize(
    ("argument", "bad", "refusal", "message"),
    [
        ("task_id", "", BadInput, "taskId must have 1 to 255 characters, got 0."),
        ("task_id", "i" * 256, BadInput, "taskId must have 1 to 255 characters, got 256."),
        ("task_id", "a\0b", BadInput, "taskId must not hold NUL characters, got one at character 1."),
        ("task_id", "ab\ud800", BadInput, "taskId must be valid Unicode, got a lone surrogate at character 2."),
        ("idempotency_key", "", BadInput, "idempotencyKey must have 1 to 255 characters, got 0."),
        ("idempotency_key", "k" * 256, BadInput, "idempotencyKey must have 1 to 255 characters, got 256."),
        ("idempotency_key", "\0", BadInput, "idempotencyKey must not hold NUL characters, got one at character 0."),
        (
            "idempotency_key",
            "\udfff",
            BadInput,
            "idempotencyKey must be valid Unicode, got a lone surrogate at character 0.",
        ),
        ("actor", "a" * 301, BadInput, "actor must have 1 to 300 characters, got 301."),
        ("actor", "\ud800", BadInput, "actor must be valid Unicode, got a lone surrogate at character 0."),
        ("created_by", "c" * 256, BadInput, "createdBy must have 1 to 255 characters, got 256."),
        ("created_by", "a\0", BadInput, "createdBy must not hold NUL characters, got one at character 1."),
        ("created_by", "\ud800", BadInput, "createdBy must be valid Unicode, got a lone surrogate at character 0."),
        ("token", "", BadInput, "token must have 1 to 255 characters, got 0."),
        ("token", "t" * 256, BadInput, "token must have 1 to 255 characters, got 256."),
        ("lease_s", 0, BadInput, "leaseSeconds must be 1 to 86400, got 0."),
        ("lease_s", 86_401, BadInput, "leaseSeconds must be 1 to 86400, got 86401."),
        ("message", "m" * (64 * KIB + 1), TooLarge, "message must have at most 65536 bytes, got 65537."),
        ("message", "é" * 32 * KIB + "m", TooLarge, "message must have at most 65536 bytes, got 65537."),
        ("error", "m" * (64 * KIB + 1), TooLarge, "error must have at most 65536 bytes, got 65537."),
        ("error", "\0", BadInput, "error must not hold NUL characters, got one at character 0."),
        ("message", "\0", BadInput, "message must not hold NUL characters, got one at character 0."),
        ("message", "\ud800", BadInput, "message must be valid Unicode, got a lone surrogate at character 0."),
        ("progress", -1, BadInput, "progress must be 0 to 100, got -1."),
        ("progress", 101, BadInput, "progress must be 0 to 100, got 101."),
        ("progress", 2**70, BadInput, f"progress must be 0 to 100, got {2**70}."),
        ("metadata", "x" * (256 * KIB - 1), TooLarge, "metadata must have at most 262144 bytes as JSON, got 262145."),
        ("metadata", [0] * 20_000, TooLarge, "metadata must hold at most 20000 values."),
        # Small to send, large to read: the same list again and again.
        ("metadata", [[0] * 300_000] * 400, TooLarge, "metadata must hold at most 20000 values."),
        ("metadata", nested(65), BadInput, "metadata must be nested at most 64 levels deep."),
        ("metadata", nested(200), BadInput, "metadata must be nested at most 64 levels deep."),
        ("metadata", nested(100_000), BadInput, "metadata must be nested at most 64 levels deep."),
        ("metadata", [0] * 20_000, TooLarge, "metadata must hold at most 20000 values."),
        ("metadata", [[{}] * 10_000] * 2, TooLarge, "metadata must hold at most 20000 values."),
        ("metadata", {"a": ["\0"]}, BadInput, "metadata must not hold NUL characters, got one at character 0."),
        ("metadata", [{"\0": 1}], BadInput, "metadata must not hold NUL characters, got one at character 0."),
        ("metadata", ["\ud800"], BadInput, "metadata must be valid Unicode, got a lone surrogate at character 0."),
        ("metadata", {"\ud800": 1}, BadInput, "metadata must be valid Unicode, got a lone surrogate at character 0."),
        ("metadata", [float("nan")], BadInput, "metadata must hold finite numbers, got nan."),
        ("metadata", float("inf"), BadInput, "metadata must hold finite numbers, got inf."),
        ("metadata", {"n": -float("inf")}, BadInput, "metadata must hold finite numbers, got -inf."),
        ("metadata", 2**63, BadInput, "metadata must hold integers of at most 64 bits"),
        ("metadata", [-(2**63) - 1], BadInput, "metadata must hold integers of at most 64 bits"),
        ("metadata", 10**4000, BadInput, "metadata must hold integers of at most 64 bits"),
        ("metadata", {1, 2}, BadInput, "metadata must be JSON, got a set."),
        ("metadata", [b"x"], BadInput, "metadata must be JSON, got a bytes."),
    ],
    ids=reprlib.repr,
)
def test_a_value_beyond_its_bound_is_refused_by_every_command_that_has_it(
    argument: str, bad: Any, refusal: type[Refusal], message: str
) -> None:
    makers = list(every_command_with(argument, bad))
    assert makers
    for make in makers:
        with pytest.raises(refusal) as refused:
            make()
        assert str(refused.value).startswith(message)


def test_a_fingerprint_is_the_same_for_the_same_arguments_in_any_order_and_for_no_others() -> None:
    reports: list[Report] = [
        Complete(task_id="T", metadata={"a": 1, "b": 2}),
        Complete(task_id="T", metadata={"a": 1, "b": 3}),
        Complete(task_id="T"),
        Cancel(task_id="T", metadata={"a": 1, "b": 2}),
        Fail(task_id="T", error="a"),
        Fail(task_id="T", error="b"),
        Fail(task_id="T", error="a", metadata=1),
        UpdateProgress(task_id="T", progress=1),
        UpdateProgress(task_id="T", progress=2),
        AddEvent(task_id="T", event_type=EventType.LOG, message="a"),
        AddEvent(task_id="T", event_type=EventType.LOG, message="a", progress=0),
        AddEvent(task_id="T", event_type=EventType.LOG, message="a", metadata=0),
        AddEvent(task_id="T", event_type=EventType.ERROR, message="a"),
        AddEvent(task_id="T", event_type=EventType.LOG, message="b"),
    ]
    assert len({report.fingerprint() for report in reports}) == len(reports)
    # The key says which report it is; the fingerprint only says what the report asks.
    again = Complete(task_id="T", metadata={"b": 2, "a": 1}, idempotency_key="k", actor="somebody else")
    assert again.fingerprint() == reports[0].fingerprint()
