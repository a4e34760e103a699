"""Logs: one line on stderr for each thing that happened, for people or for programs.

What a client has sent may be part of a line, and begins no new one: control characters are written as escapes, and
the lines of a traceback are indented. What is bound (the ID of a request, the task that it is about) goes onto every
line that is made while it is served.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

Format = Literal["text", "json"]

REQUEST_ID_HEADER: Final = "x-request-id"
REQUEST_ID_CHARACTERS_MAX: Final = 128
_REQUEST_ID: Final = re.compile(rf"[\w.:/+=@~-]{{1,{REQUEST_ID_CHARACTERS_MAX}}}", re.ASCII)
# What every record has; the rest was given by whoever made it.
_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Whatever a terminal or a reader of lines could take for something else than text.
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PLAIN: Final = re.compile(r"[^\s\"'=\[\]{}]+")
_NOTHING: Final[Mapping[str, Any]] = {}
_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=_NOTHING)
_task_id: ContextVar[str | None] = ContextVar("task_id", default=None)
# What stands for the tasks of an operation that changes more than one.
SEVERAL: Final = "(several)"


def set_up_logs(level: str, *, format: Format = "text", worker: int | None = None) -> None:  # noqa: A002 - its name
    """Write lines of this level and above; those of a worker say which process they are of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if format == "json" else TextFormatter(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # A line for each socket, and how a migration is run, say nothing that an operator wants to know.
    for name in ("uvicorn", "websockets", "alembic"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def bind(**fields: Any) -> None:
    """Put these onto every line that the task which runs now makes from here on."""
    _bound.set({**_bound.get(), **fields})


def bind_task(task_id: str) -> None:
    """Say on those lines which task they are about, as long as it is one."""
    _task_id.set(task_id if _task_id.get() in (None, task_id) else SEVERAL)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The ID that a client or a proxy has given a request; None for none, or for one that is none."""
    given = headers.get(REQUEST_ID_HEADER)
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


class TextFormatter(logging.Formatter):
    """Lines for people, with their fields at the end."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._prefix = "" if worker is None else f"[{os.getpid()}] "

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines that are indented."""
        at = f"{self.formatTime(record)} {record.levelname:<7} {self._prefix}{record.name}: "
        fields = "".join(f" {_escaped(name)}={_readable(value)}" for name, value in _fields(record).items())
        trouble = _trouble(record)
        lines = "".join(f"\n  {_escaped(line)}" for line in trouble.split("\n")) if trouble else ""
        return f"{at}{_escaped(record.getMessage())}{fields}{lines}"


class JsonFormatter(logging.Formatter):
    """Lines for programs: an object each."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._process: dict[str, int] = {"pid": os.getpid(), **({} if worker is None else {"worker": worker})}

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
        }
        trouble = _trouble(record)
        if trouble:
            line["exception"] = trouble
        for name, value in _fields(record).items():
            # What every line has keeps its meaning.
            line[f"{name}_" if name in line else name] = value
        return _json(line)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    given = {name: value for name, value in record.__dict__.items() if name not in _OWN}
    task_id = _task_id.get()
    return {**_bound.get(), **({} if task_id is None else {"task_id": task_id}), **given}


def _trouble(record: logging.LogRecord) -> str:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _readable(value: Any) -> str:
    if isinstance(value, bool | int | float | None):
        return json.dumps(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and not _CONTROL.search(value) else _json(value)
    return _json(value)


def _json(value: Any) -> str:
    try:
        text = orjson.dumps(value, default=str).decode()
    except (TypeError, RecursionError):
        # A lone surrogate, a key that is no text, something without an end.
        text = json.dumps(_plain(value))
    # JSON lets some pass that end a line for somebody.
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(name): each if isinstance(each, str | int | float | None) else repr(each)
            for name, each in value.items()
        }
    return value if isinstance(value, str) else repr(value)
