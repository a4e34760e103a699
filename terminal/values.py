"""What people write at a prompt, as the API has it: times, durations, metadata."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import typer

METADATA_BYTES_MAX: Final = 1024 * 1024
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")


def seconds(text: str) -> int:
    """A duration in seconds: `90`, `90s`, `15m`, `2h`, `7d`, `1h30m`."""
    if re.fullmatch("[0-9]{1,12}", text):
        return int(text)
    if _DURATION.fullmatch(text) is None:
        raise typer.BadParameter(f'"{text}" is no duration; write seconds, or 90s, 15m, 2h, 7d, 1h30m.')
    return sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def instant(text: str) -> str:
    """A time to come, for the API: as `moment` has it, or `+15m` for that long from now."""
    return _from_now(text[1:], 1) if text.startswith("+") else _absolute(text, "+15m")


def moment(text: str) -> str:
    """A time that was, for the API: as ISO 8601, local when it names no offset, or `-2h` for that long ago."""
    return _from_now(text[1:], -1) if text.startswith("-") else _absolute(text, "-2h")


def _from_now(duration: str, sign: int) -> str:
    try:
        return (datetime.now(UTC) + sign * timedelta(seconds=seconds(duration))).isoformat()
    except OverflowError:
        raise typer.BadParameter(f'"{duration}" from now is beyond all calendars.') from None


def _absolute(text: str, relative: str) -> str:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f'"{text}" is no time; write 2026-11-20T09:30, with an offset like +01:00 or in local time, or {relative}.'
        ) from None


def metadata(text: str) -> Any:
    """JSON, as it is written, from a file as `@name`, or from stdin as `-`."""
    source, said = _read(text)
    try:
        return json.loads(said, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{source} is no JSON: {error}.") from None


def _read(text: str) -> tuple[str, str]:
    """Where it is from, and what it is."""
    if text != "-" and not text.startswith("@"):
        return f"'{text}'" if len(text) <= 60 else "The text", text
    source, name = ("Stdin", sys.stdin.fileno()) if text == "-" else (text[1:], Path(text[1:]))
    try:
        with open(name, "rb", closefd=text != "-") as file:
            found = file.read(METADATA_BYTES_MAX + 1)
    except OSError as error:
        raise typer.BadParameter(f"{source} cannot be read: {error.strerror}.") from None
    if len(found) > METADATA_BYTES_MAX:
        raise typer.BadParameter(f"{source} is longer than {METADATA_BYTES_MAX:,} bytes; no task takes that much.")
    try:
        return source, found.decode()
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{source} is no UTF-8, and so no JSON.") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")
