"""What people write at a prompt."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import typer

from terminal import look, values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7_200),
        ("7d", 604_800),
        ("1w", 604_800),
        ("1h30m", 5_400),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert values.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5h", "1 h", "1y", "h1", "\u0663s", "9" * 13])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        values.seconds(text)


def test_times() -> None:
    assert values.instant("2026-11-20T09:30+01:00") == "2026-11-20T08:30:00+00:00"
    assert values.instant("2026-11-20") == datetime(2026, 11, 20).astimezone(UTC).isoformat()
    soon = datetime.fromisoformat(values.instant("+15m")) - datetime.now(UTC)
    assert timedelta(minutes=14, seconds=50) < soon <= timedelta(minutes=15)
    then = datetime.fromisoformat(values.moment("-2h"))
    ago = datetime.now(UTC) - then
    assert timedelta(hours=2) <= ago < timedelta(hours=2, seconds=10)


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "+", "+9999999w", "0001-01-01T00:00+23:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        values.instant(text)


def test_metadata(tmp_path: Path) -> None:
    assert values.metadata('{"a": [1, null]}') == {"a": [1, None]}
    file = tmp_path / "m"
    file.write_bytes(b" " * (values.METADATA_BYTES_MAX - 1) + b"1")
    assert values.metadata(f"@{file}") == 1
    file.write_bytes(b" " * values.METADATA_BYTES_MAX + b"1")
    with pytest.raises(typer.BadParameter, match="longer than"):
        values.metadata(f"@{file}")
    for broken in (b"\xff", b"[" * 100_000, b"Infinity", b"{'a': 1}"):
        file.write_bytes(broken)
        with pytest.raises(typer.BadParameter):
            values.metadata(f"@{file}")


def test_ages_and_durations() -> None:
    now = datetime.now(UTC)
    for seconds, shown in (
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3_601, "1 h"),
        (86_401, "1 d"),
        (864_001, "10 d"),
    ):
        assert look.age((now - timedelta(seconds=seconds)).isoformat()) == shown
    assert (look.took(-1), look.took(59.9), look.took(3_661)) == ("0:00:00", "0:00:59", "1:01:01")
    assert look.local("2026-11-20T09:30:00.5Z") == datetime(2026, 11, 20, 9, 30, 0, 500_000, timezone.utc)  # noqa: UP017


def test_text_of_others_is_one_line_that_a_terminal_only_shows() -> None:
    assert look.plain("a\r\n b\tc\x1b[31m\x9b\u202ed\u2028") == "a ⏎ b c\\x1b[31m\\x9b\\x202ed"
    assert look.plain("ünïcödé 日本") == "ünïcödé 日本"
