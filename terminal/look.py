"""How tasks and events look: colours, bars, ages, lines, JSON. What others wrote is shown, never obeyed."""

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

STYLES: Final = {
    "PENDING": "bright_black",
    "IN_PROGRESS": "cyan",
    "SUCCESS": "green",
    "FAILED": "red",
    "CANCELED": "magenta",
}
_SIGNS: Final = {"PENDING": "○", "IN_PROGRESS": "●", "SUCCESS": "✓", "FAILED": "✗", "CANCELED": "-"}
_EVENT_STYLES: Final = {"LOG": "", "PROGRESS": "cyan", "ERROR": "red", "SUCCESS": "green"}
_STATUS_WIDTH: Final = len("● IN_PROGRESS")
FINAL: Final = frozenset({"SUCCESS", "FAILED", "CANCELED"})
# What a terminal would obey: the two sets of control characters, and what turns the direction of a line.
_OBEYED: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_OBEYED_IN_JSON: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What `updateProgress` writes.
_ONLY_PROGRESS: Final = re.compile(r"Progress updated to \d+%")
_LINES: Final = re.compile(r"\s*[\r\n]+\s*")
# No table is wider where nobody looks at it; nothing is cut off there.
_UNBOUNDED: Final = 100_000


class Output(Console):
    """A console that leaves it to others what it means that nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Go on with the exception."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """Where people read, or programs: then nothing is cut, coloured or drawn."""
    made = Output(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _UNBOUNDED
    return made


def plain(text: str) -> str:
    """A text by others as one line that a terminal only shows."""
    return _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", _LINES.sub(" ⏎ ", text.strip()).replace("\t", " "))


def dump(value: Any) -> None:
    """One JSON document, in one line, on stdout at once."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # As escapes they mean the same to a program, and nothing to a terminal.
    sys.stdout.write(_OBEYED_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    sys.stdout.flush()


def pretty(value: Any) -> str:
    """JSON for people, whose characters a terminal only shows."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return _OBEYED_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def status(task: Mapping[str, Any]) -> Text:
    """What a task has come to, with a sign and in its colour."""
    name = task["status"]
    return Text(f"{_SIGNS.get(name, '?')} {name}", STYLES.get(name, ""), no_wrap=True)


def bar(task: Mapping[str, Any], width: int | None = None) -> ProgressBar:
    """How far a task has come, as a bar."""
    style = STYLES.get(task["status"], "")
    return ProgressBar(
        total=100, completed=task["progress"], width=width, complete_style=style, finished_style=style, style="grey23"
    )


def line(task: Mapping[str, Any]) -> Text:
    """A task in one line."""
    known = status(task)
    known.pad_right(max(0, _STATUS_WIDTH - len(known)))
    return Text.assemble(known, f" {task['progress']:>3} %  ", (plain(task["taskId"]), "bold"))


def event_line(event: Mapping[str, Any], *, dated: bool = False) -> Text:
    """An event in one line."""
    kind = event["eventType"]
    style = _EVENT_STYLES.get(kind, "")
    at = local(event["timestamp"])
    shown = f"{at:%Y-%m-%d %H:%M:%S}" if dated else f"{at:%H:%M:%S}"
    text = Text.assemble((shown, "dim"), (f"  #{event['seq']:<4}", "dim"), (f" {kind:<8} ", style))
    if event["progress"] is not None:
        text.append(f" {event['progress']:>3} % ", "bold")
    text.append(f" {plain(event['message'])}", "red" if kind == "ERROR" else "")
    if event["metadata"] is not None:
        said = plain(json.dumps(event["metadata"], ensure_ascii=False))
        text.append(f"  {said if len(said) <= 200 else said[:199] + '…'}", "dim")
    return text


def says_only_progress(event: Mapping[str, Any]) -> bool:
    """Whether an event tells no more than a bar does."""
    return event["eventType"] == "PROGRESS" and _ONLY_PROGRESS.fullmatch(event["message"]) is not None


def local(time: str) -> datetime:
    """A time of the API, here."""
    return datetime.fromisoformat(time).astimezone()


def when(time: str | None) -> str:
    """A time in full."""
    return "" if time is None else f"{local(time):%Y-%m-%d %H:%M:%S}"


def age(time: str) -> str:
    """How long ago, as long as a person cares."""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def took(seconds: float) -> str:
    """A duration as clocks show it."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
