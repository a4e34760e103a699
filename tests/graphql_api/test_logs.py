"""Lines of the log: whole, whatever is in them, and with whose they are."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import Context
from typing import Any

import pytest

from graphql_api.logs import (
    REQUEST_ID_CHARACTERS_MAX,
    JsonFormatter,
    TextFormatter,
    bind,
    bind_task,
    request_id_of,
    set_up_logs,
)
from tests.graphql_api.clients import WAIT_S, Api, code, data, until
from tests.graphql_api.conftest import Serving

# Whatever ends a line for anybody who splits text, and what a terminal obeys.
BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
# Then what has a reader see the rest in another order.
EVIL = f"a{BREAKS}\u202e\u2066\u200f2026-01-01 00:00:00,000 ERROR   root: forged\x1b[2J\x00\x7f\x9b\ud800"


def record(message: str, *arguments: Any, exc_info: Any = None, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("test").makeRecord(
        "test", logging.WARNING, __file__, 1, message, arguments, exc_info, extra=extra
    )


def failed(words: str) -> Any:
    try:
        raise ValueError(words)
    except ValueError:
        return sys.exc_info()


def test_a_readable_line_has_its_fields_behind_it() -> None:
    line = TextFormatter().format(
        record("It went %s.", "wrong", code=4400, who="worker", why="it is so", none=None, ids=["a", "b"], empty="")
    )
    assert line.endswith(
        ' WARNING test: It went wrong. code=4400 who=worker why="it is so" none=null ids=["a","b"] empty=""'
    )


def test_a_json_line_is_an_object_with_its_fields() -> None:
    line = json.loads(JsonFormatter().format(record("It went %s.", "wrong", code=4400, when={"a": [1, None]})))
    assert line.pop("time").endswith("Z")
    assert isinstance(line.pop("pid"), int)
    assert line == {
        "level": "warning",
        "logger": "test",
        "message": "It went wrong.",
        "code": 4400,
        "when": {"a": [1, None]},
    }


def test_a_json_line_has_the_exception_as_text_and_its_worker() -> None:
    line = json.loads(JsonFormatter(worker=3).format(record("No.", exc_info=failed("boom"))))
    assert line["worker"] == 3
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: boom")


def test_what_every_line_has_cannot_be_taken_by_a_field() -> None:
    line = json.loads(JsonFormatter().format(record("m", time="never", level="none", logger="l")))
    assert (line["level"], line["level_"], line["time_"], line["logger_"]) == ("warning", "none", "never", "l")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_no_value_breaks_a_line(formatter: logging.Formatter) -> None:
    for made in (
        record("%s", EVIL),
        record(EVIL),
        record("m", field=EVIL),
        record("m", field={EVIL: [EVIL]}),
        record("m", field={1: EVIL}),
        record("m", field=Exception(EVIL)),
        record("m", **{EVIL: 1}),
    ):
        line = formatter.format(made)
        assert len(line.splitlines()) == 1, line
        assert not set(line) & set(EVIL) - set("a2026-01-01 00:00:00,000 ERROR   root: forged[J"), line
        line.encode()


def test_a_traceback_forges_no_line() -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        first, *others = formatter.format(record("m", exc_info=failed(EVIL))).splitlines()
        assert first.endswith(("m", "}"))
        assert all(line.startswith("  ") for line in others)


def test_whatever_a_field_is_there_is_a_line() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, object(), float("nan"), {("a", 1): 2}, b"\xff", 10**400, {EVIL}):
        for formatter in (TextFormatter(), JsonFormatter()):
            line = formatter.format(record("m", field=value))
            assert "m" in line
            if isinstance(formatter, JsonFormatter):
                assert "field" in json.loads(line)


def test_what_is_bound_is_on_every_line_of_that_task_and_of_no_other() -> None:
    def line() -> dict[str, Any]:
        found = json.loads(JsonFormatter().format(record("m")))
        return {name: found[name] for name in ("request_id", "task_id") if name in found}

    def serve(request_id: str, *task_ids: str) -> dict[str, Any]:
        bind(request_id=request_id)
        for task_id in task_ids:
            bind_task(task_id)
        return line()

    assert Context().run(serve, "r1") == {"request_id": "r1"}
    assert Context().run(serve, "r2", "T", "T") == {"request_id": "r2", "task_id": "T"}
    # Which of them a line is about is not known.
    assert Context().run(serve, "r3", "T", "U") == {"request_id": "r3", "task_id": "(several)"}
    assert line() == {}


def test_request_ids_are_bounded_and_plain() -> None:
    assert request_id_of({}) is None
    for good in ("a", "b5f1-4c.d_e:f/g+h=@~", "x" * REQUEST_ID_CHARACTERS_MAX):
        assert request_id_of({"x-request-id": good}) == good
    for bad in ("", " ", "a b", 'a"b', "a\x1bb", "é", "x" * (REQUEST_ID_CHARACTERS_MAX + 1), "a\n"):
        assert request_id_of({"x-request-id": bad}) is None


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger without handlers, as a program finds it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers.clear()
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_format_is_a_setting(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    # Those of pytest: a program that has a handler already keeps it.
    root.handlers.clear()
    set_up_logs("info", format="json")
    logging.getLogger("some").info("Hello", extra={"a": 1})
    logging.getLogger("some").debug("Not this")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["a"] == 1


@pytest.fixture
def lines(root: logging.Logger) -> list[dict[str, Any]]:
    """What is logged, as JSON reads it."""
    written: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, made: logging.LogRecord) -> None:
            written.append(json.loads(self.format(made)))

    handler = Handler()
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return written


CREATE = 'mutation { create(taskId: "T") { seq } }'


async def both_ways(api: Api, body: Any, request_id: str) -> list[Any]:
    """The answers to a POST in one piece, and to one whose body comes after its head."""
    headers = {"X-Request-Id": request_id, "Content-Type": "application/json"}

    async def pieces() -> Any:
        yield json.dumps(body).encode()

    return [
        await api.post(body, headers=headers),
        await api.http.post("/graphql", content=pieces(), headers=headers),
        await api.http.get("/graphql", params=body, headers=headers),
    ]


async def test_a_request_id_is_returned_if_it_is_one(serving: Serving) -> None:
    async with serving() as api:
        body = {"query": "{ viewer { name } }"}
        for answer in await both_ways(api, body, "req-1"):
            assert answer.headers.get_list("x-request-id") == ["req-1"]
        for answer in await both_ways(api, body, "no good"):
            assert "x-request-id" not in answer.headers
        # Of what was refused, too.
        for answer in await both_ways(api, {"query": "{"}, "req-2"):
            assert answer.headers["x-request-id"] == "req-2"
        assert "x-request-id" not in (await api.post(body)).headers


async def test_a_stream_has_its_request_id(serving: Serving) -> None:
    async with serving() as api:
        await api.create("T")
        headers = {"X-Request-Id": "req-1", "Accept": "text/event-stream"}
        body = {"query": 'subscription { taskUpdates(taskId: "T") { type } }'}
        async with api.http.stream("POST", "/graphql", json=body, headers=headers) as stream:
            assert stream.headers["x-request-id"] == "req-1"


async def test_a_fault_is_logged_with_the_request_and_the_task(
    serving: Serving, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api:

        async def broken(_: Any) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(type(api.storage.writer), "submit", lambda _, command: broken(command))
        for answer in [
            await api.post({"query": CREATE}, key=api.admin_key, headers={"X-Request-Id": "req-1"}),
            await api.post(
                {"query": CREATE}, key=api.admin_key, headers={"X-Request-Id": "req-1", "Origin": api.origin}
            ),
        ]:
            assert code(answer.json()) == "INTERNAL_SERVER_ERROR"
        faults = [line for line in lines if line["logger"] == "graphql_api.errors"]
        assert [(line["request_id"], line["task_id"]) for line in faults] == [("req-1", "T")] * 2
        assert all("RuntimeError: broken" in line["exception"] for line in faults)


async def test_lines_of_the_writer_name_tasks_and_no_request(
    serving: Serving, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api:
        data(await api.ask(CREATE))
        from storage import committer

        async def broken(*_: Any) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(committer, "write_decided", broken)
        monkeypatch.setattr(committer, "write", broken)
        note = 'mutation { updateProgress(taskId: "T", progress: 1) { seq } }'
        await api.post({"query": note}, headers={"X-Request-Id": "req-1"})
        groups = [line for line in lines if line["logger"] == "storage.committer"]
        assert groups
        for line in groups:
            assert line["task_ids"] == ["T"]
            assert "request_id" not in line


async def test_a_socket_that_is_closed_is_one_line_with_its_code(serving: Serving, lines: list[dict[str, Any]]) -> None:
    async with serving() as api, api.socket(additional_headers={"X-Request-Id": "req-1"}) as socket:
        await socket.send("\x00\n2026 forged")
        await socket.closed()
        async with asyncio.timeout(WAIT_S):
            await until(lambda: any(line.get("code") == 4400 for line in lines))
        (line,) = [line for line in lines if line.get("code") == 4400]
        assert line["request_id"] == "req-1"
        assert line["message"] == "A socket was closed: 'Messages must be JSON'"
