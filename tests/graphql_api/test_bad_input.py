"""Whatever a client sends: a clear error, nothing changed, and the connection can still be used."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed

from graphql_api.app import PATH
from graphql_api.auth import Viewer
from graphql_api.context import Context
from graphql_api.settings import Settings
from graphql_api.wire import http as wire
from storage import Permission, TooLarge, UpdateProgress
from tests.graphql_api.clients import TRANSPORTS, Answer, Api, Socket, Transport, code, data, error, numbers
from tests.graphql_api.conftest import Serving

both = pytest.mark.parametrize("transport", TRANSPORTS)

KILOBYTE: Final = 1024


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Bad(NamedTuple):
    """An operation that must be refused."""

    code: str
    # A word of the message: it names what is wrong.
    says: str
    # A selection of the mutation or the query; `$id` is the task, `$x` the value.
    field: str
    # The type of `$x`.
    kind: str = ""
    value: Any = None


CREATE: Final = "create(taskId: $x) { id }"
METADATA: Final = "complete(taskId: $id, metadata: $x) { id }"
PROGRESS: Final = "updateProgress(taskId: $id, progress: $x) { id }"
EVENT: Final = "addEvent(taskId: $id, event: $x) { id }"
HISTORY: Final = "task(taskId: $id) {{ history({}) {{ seq }} }}"
LIST: Final = "tasks({}) {{ nodes {{ id }} }}"
LONG: Final = "m" * (64 * KILOBYTE + 1)
LARGE: Final = ["m" * (256 * KILOBYTE - 3)]

MUTATIONS: Final = {
    "an empty taskId": Bad("BAD_USER_INPUT", "taskId", CREATE, "ID!", ""),
    "a taskId of 256 characters": Bad("BAD_USER_INPUT", "255", CREATE, "ID!", "x" * 256),
    "a taskId over the bound of an index": Bad("BAD_USER_INPUT", "255", CREATE, "ID!", "☃" * 20_000),
    "a taskId with NUL": Bad("BAD_USER_INPUT", "NUL", CREATE, "ID!", "a\0b"),
    "a taskId with a lone surrogate": Bad("BAD_USER_INPUT", "surrogate", CREATE, "ID!", "a\ud800b"),
    "a taskId that is null": Bad("BAD_USER_INPUT", "$x", CREATE, "ID!", None),
    "a taskId that is a number with a fraction": Bad("BAD_USER_INPUT", "$x", CREATE, "ID!", 1.5),
    "a taskId that is a boolean": Bad("BAD_USER_INPUT", "$x", CREATE, "ID!", True),
    "a taskId that is a list": Bad("BAD_USER_INPUT", "$x", CREATE, "ID!", ["T-7"]),
    "a taskId that is left out": Bad("GRAPHQL_VALIDATION_FAILED", "taskId", "create { id }"),
    "a duplicate create": Bad("TASK_ALREADY_EXISTS", "T-7", "create(taskId: $id) { id }"),
    "a status of no kind": Bad(
        "BAD_USER_INPUT", "DONE", "create(taskId: $id, status: $x) { id }", "TaskStatus", "DONE"
    ),
    "a creation beyond 100 %": Bad("BAD_USER_INPUT", "101", 'create(taskId: "T-8", progress: 101) { id }'),
    "progress below 0": Bad("BAD_USER_INPUT", "0 to 100, got -1", PROGRESS, "Int!", -1),
    "progress above 100": Bad("BAD_USER_INPUT", "0 to 100, got 101", PROGRESS, "Int!", 101),
    "progress with a fraction": Bad("BAD_USER_INPUT", "1.5", PROGRESS, "Int!", 1.5),
    "progress as text": Bad("BAD_USER_INPUT", "x", PROGRESS, "Int!", "x"),
    "progress that is true": Bad("BAD_USER_INPUT", "$x", PROGRESS, "Int!", True),
    "progress that is null": Bad("BAD_USER_INPUT", "$x", PROGRESS, "Int!", None),
    "progress that is NaN": Bad("BAD_USER_INPUT", "$x", PROGRESS, "Int!", float("nan")),
    "progress beyond 32 bits": Bad("BAD_USER_INPUT", "32-bit", PROGRESS, "Int!", 2**31),
    "progress beyond 64 bits": Bad("BAD_USER_INPUT", "32-bit", PROGRESS, "Int!", 2**70),
    "progress with a fraction in the document": Bad(
        "GRAPHQL_VALIDATION_FAILED", "1.5", "updateProgress(taskId: $id, progress: 1.5) { id }"
    ),
    "an event's progress above 100": Bad(
        "BAD_USER_INPUT", "101", EVENT, "EventInput!", {"eventType": "LOG", "message": "m", "progress": 101}
    ),
    "an event without a message": Bad("BAD_USER_INPUT", "message", EVENT, "EventInput!", {"eventType": "LOG"}),
    "an event with an unknown field": Bad(
        "BAD_USER_INPUT", "wat", EVENT, "EventInput!", {"eventType": "LOG", "message": "m", "wat": 1}
    ),
    "an event of no kind": Bad("BAD_USER_INPUT", "WARN", EVENT, "EventInput!", {"eventType": "WARN", "message": "m"}),
    "a message over 64 KB": Bad("TOO_LARGE", "65536", EVENT, "EventInput!", {"eventType": "LOG", "message": LONG}),
    "a message with NUL": Bad("BAD_USER_INPUT", "NUL", EVENT, "EventInput!", {"eventType": "LOG", "message": "\0"}),
    "an error over 64 KB": Bad("TOO_LARGE", "65536", "fail(taskId: $id, error: $x) { id }", "String!", LONG),
    "an error with a lone surrogate": Bad(
        "BAD_USER_INPUT", "surrogate", "fail(taskId: $id, error: $x) { id }", "String!", "\udfff"
    ),
    "metadata over 256 KB": Bad("TOO_LARGE", "262144", METADATA, "JSON", LARGE),
    "metadata nested 200 deep": Bad("BAD_USER_INPUT", "64 levels", METADATA, "JSON", nested(200)),
    "metadata with NUL": Bad("BAD_USER_INPUT", "NUL", METADATA, "JSON", {"a": ["b", {"c": "\0"}]}),
    "metadata with NUL in a name": Bad("BAD_USER_INPUT", "NUL", METADATA, "JSON", {"a": {"\0": 1}}),
    "metadata with a lone surrogate": Bad("BAD_USER_INPUT", "surrogate", METADATA, "JSON", ["\ud800"]),
    "metadata that is NaN": Bad("BAD_USER_INPUT", "nan", METADATA, "JSON", float("nan")),
    "metadata with Infinity": Bad("BAD_USER_INPUT", "inf", METADATA, "JSON", {"a": float("inf")}),
    "metadata with an integer beyond 64 bits": Bad("BAD_USER_INPUT", "64 bits", METADATA, "JSON", [2**63]),
    "metadata with an integer that a float could hold": Bad("BAD_USER_INPUT", "64 bits", METADATA, "JSON", [10**20]),
    "metadata with a far longer integer": Bad("BAD_USER_INPUT", "64 bits", METADATA, "JSON", -(10**4000)),
    "metadata in the document with an integer beyond 64 bits": Bad(
        "BAD_USER_INPUT", "64 bits", f"complete(taskId: $id, metadata: [{2**63}]) {{ id }}"
    ),
    "metadata in the document with a number beyond all bounds": Bad(
        "BAD_USER_INPUT", "finite", "complete(taskId: $id, metadata: [1e999]) { id }"
    ),
    "metadata in the document, nested 100 deep": Bad(
        "BAD_USER_INPUT", "64 levels", f"complete(taskId: $id, metadata: {'[' * 100}{']' * 100}) {{ id }}"
    ),
    "an empty idempotencyKey": Bad(
        "BAD_USER_INPUT", "idempotencyKey", 'cancel(taskId: $id, idempotencyKey: "") { id }'
    ),
    "a long idempotencyKey": Bad(
        "BAD_USER_INPUT", "255", "cancel(taskId: $id, idempotencyKey: $x) { id }", "String", "k" * 256
    ),
    "an idempotencyKey with NUL": Bad(
        "BAD_USER_INPUT", "NUL", "cancel(taskId: $id, idempotencyKey: $x) { id }", "String", "\0"
    ),
    **{
        f"{report} of an unknown task": Bad("TASK_NOT_FOUND", '"nobody"', f'{report}(taskId: "nobody"{rest}')
        for report, rest in {
            "addEvent": ', event: { eventType: LOG, message: "m" }) { id }',
            "updateProgress": ", progress: 1) { id }",
            "complete": ") { id }",
            "fail": ', error: "no") { id }',
            "cancel": ") { id }",
            "delete": ")",
        }.items()
    },
}

QUERIES: Final = {
    "an empty taskId": Bad("BAD_USER_INPUT", "taskId", 'task(taskId: "") { id }'),
    "a taskId of 256 characters": Bad("BAD_USER_INPUT", "255", "task(taskId: $x) { id }", "ID!", "x" * 256),
    "a taskId with NUL": Bad("BAD_USER_INPUT", "NUL", "task(taskId: $x) { id }", "ID!", "\0"),
    "a taskId with a lone surrogate": Bad("BAD_USER_INPUT", "surrogate", "task(taskId: $x) { id }", "ID!", "\ud800"),
    "the last 0 events": Bad("BAD_USER_INPUT", "last must be 1 to 1000, got 0", HISTORY.format("last: 0")),
    "the last 5000 events": Bad("BAD_USER_INPUT", "last must be 1 to 1000, got 5000", HISTORY.format("last: 5000")),
    "the first 0 events": Bad("BAD_USER_INPUT", "first must be 1 to 1000, got 0", HISTORY.format("first: 0")),
    "the first -1 events": Bad("BAD_USER_INPUT", "first must be 1 to 1000, got -1", HISTORY.format("first: -1")),
    "the first and the last events": Bad("BAD_USER_INPUT", "both", HISTORY.format("first: 1, last: 1")),
    "events after a number below 0": Bad("BAD_USER_INPUT", "after", HISTORY.format("after: -1")),
    "events before a number below 0": Bad("BAD_USER_INPUT", "before", HISTORY.format("before: -1")),
    "the first -1 tasks": Bad("BAD_USER_INPUT", "first must be 1 to 1000, got -1", LIST.format("first: -1")),
    "the first 0 tasks": Bad("BAD_USER_INPUT", "first must be 1 to 1000, got 0", LIST.format("first: 0")),
    "the first 1001 tasks": Bad("BAD_USER_INPUT", "first must be 1 to 1000, got 1001", LIST.format("first: 1001")),
    **{
        f"a cursor that is {name}": Bad("BAD_USER_INPUT", "cursor", LIST.format("after: $x"), "String", value)
        for name, value in {
            "empty": "",
            "text": "page 2",
            "of another version": "MjoxNzYzNjgzMjAwMDAwMDAwOlQtNw",
            "a time beyond all time": "MTo5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk6VC03",
            "a place with NUL": "MTowOmEAYg",
            "very long": "x" * 100_000,
            "not ASCII": "☃",
            "a lone surrogate": "\ud800",
        }.items()
    },
    "a filter of no status": Bad("BAD_USER_INPUT", "DONE", LIST.format("filter: $x"), "TaskFilter", {"status": "DONE"}),
    **{
        f"a filter by {name}": Bad("BAD_USER_INPUT", said, LIST.format("filter: $x"), "TaskFilter", value)
        for name, said, value in (
            ("metadata that is no object", "metadata must be an object", {"metadata": [1]}),
            ("metadata of many values", "at most 64 values", {"metadata": {"a": list(range(64))}}),
            ("metadata of many objects in lists", "at most 8 objects", {"metadata": {"a": [{}] * 9}}),
            ("metadata with NUL", "metadata", {"metadata": {"a": "\0"}}),
            ("21 tags", "at most 20", {"tags": [f"t{number}" for number in range(21)]}),
            ("an empty tag", "tag", {"tags": [""]}),
            ("a tag of 65 characters", "tag", {"tags": ["x" * 65]}),
            ("a queue of 65 characters", "queue", {"queue": "x" * 65}),
            ("an empty prefix", "taskIdPrefix", {"taskIdPrefix": ""}),
            ("a prefix with NUL", "taskIdPrefix", {"taskIdPrefix": "\0"}),
            ("nobody", "createdBy", {"createdBy": ""}),
            ("a time without an offset", "offset", {"createdAfter": "2026-01-01T00:00:00"}),
            ("a time that is a number", "DateTime", {"updatedAfter": 1}),
            ("what is neither stale nor not", "stale", {"stale": "yes"}),
        )
    },
    "a filter by nothing known": Bad("BAD_USER_INPUT", "wat", LIST.format("filter: $x"), "TaskFilter", {"wat": 1}),
}

DOCUMENTS: Final = {
    "an unknown field": ("{ nothing }", None, "GRAPHQL_VALIDATION_FAILED", "nothing"),
    "an unknown argument": ("{ viewer(a: 1) { name } }", None, "GRAPHQL_VALIDATION_FAILED", "a"),
    "a fragment that spreads itself": (
        "{ viewer { ...A } } fragment A on Viewer { ...A }",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "itself",
    ),
    "a syntax error": ("{ viewer {", None, "GRAPHQL_PARSE_FAILED", "Syntax Error"),
    "a long syntax error": ('{ viewer(x: "' + "☃" * 5_000, None, "GRAPHQL_PARSE_FAILED", "Unterminated"),
    "a lone surrogate": ("{ viewer { \ud800 } }", None, "GRAPHQL_PARSE_FAILED", "Syntax Error"),
    "nothing but spaces": (" ", None, "GRAPHQL_PARSE_FAILED", "Syntax Error"),
    "nothing at all": ("", None, "BAD_USER_INPUT", "query"),
    "no operation": ("fragment A on Viewer { name }", None, "GRAPHQL_VALIDATION_FAILED", "A"),
    "an unknown operation name": ("query A { viewer { name } }", "B", "BAD_USER_INPUT", '"B"'),
    "no operation name where it is needed": (
        "query A { viewer { name } } query B { viewer { name } }",
        None,
        "BAD_USER_INPUT",
        "A, B",
    ),
    "an operation that is fine beside one that is not": (
        "query A { viewer { name } } query B { nothing }",
        "A",
        "GRAPHQL_VALIDATION_FAILED",
        "nothing",
    ),
    "too many tokens": ("{" + " a" * 2_000 + "}", None, "GRAPHQL_PARSE_FAILED", "1000 tokens"),
    "too many root fields": (
        "{" + " ".join(f"v{n}: viewer {{ name }}" for n in range(60)) + "}",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "50 root fields",
    ),
    "too many levels": (
        "{ __schema { types " + "{ ofType " * 20 + "{ name }" + "}" * 20 + "} }",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "16 levels",
    ),
    "brackets nested too deep": ("{" * 900, None, "GRAPHQL_PARSE_FAILED", ""),
    "fragments that double": (
        "{ viewer { ...F0 } }"
        + "".join(f"fragment F{n} on Viewer {{ ...F{n + 1} ...F{n + 1} }}" for n in range(30))
        + "fragment F30 on Viewer { name }",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "500 fields",
    ),
    "too many operations": (
        " ".join(f"query Q{n} {{ viewer {{ name }} }}" for n in range(21)),
        "Q1",
        "GRAPHQL_VALIDATION_FAILED",
        "20 operations",
    ),
    "too many directives": (
        "{ viewer { name " + "@skip(if: false) " * 60 + "} }",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "50 directives",
    ),
    "a document of more than 100,000 characters": (
        "{ viewer { name } }" + " " * 100_000,
        None,
        "TOO_LARGE",
        "100000 characters",
    ),
    "a name of 256 characters": ("{ " + "n" * 256 + " }", None, "GRAPHQL_VALIDATION_FAILED", "255 characters"),
    "a number of 5,000 digits": (
        f'mutation {{ complete(taskId: "T-7", metadata: {"9" * 5_000}) {{ id }} }}',
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "400 characters",
    ),
    "one field again and again": (
        "{ viewer {" + " name" * 11 + " } }",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "10 selections of one name",
    ),
    "the schema again and again": (
        "{" + " ".join(f"s{n}: __schema {{ queryType {{ name }} }}" for n in range(4)) + "}",
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "3 introspections",
    ),
    "two fields in a subscription": (
        'subscription { a: taskUpdates(taskId: "T-7") { type } b: taskUpdates(taskId: "T-7") { type } }',
        None,
        "GRAPHQL_VALIDATION_FAILED",
        "one",
    ),
}


class Refusing:
    """A client of one transport that sends requests as they are, and sees that it can go on afterwards."""

    def __init__(self, api: Api, socket: Socket | None) -> None:
        self._api = api
        self._socket = socket

    async def send(self, request: Answer) -> Answer:
        """The answer to a request: what a client makes of it, whatever the transport."""
        if self._socket is None:
            # Not httpx's encoder: it refuses NaN.
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._api.admin_key}"}
            response = await self._api.http.post(PATH, content=json.dumps(request), headers=headers)
            assert response.headers["content-type"] == "application/json; charset=utf-8"
            answer = response.json()
            assert isinstance(answer, dict)
            return answer
        await self._socket.say({"type": "subscribe", "id": "bad", "payload": request})
        message = await self._socket.take()
        if message["type"] == "error":
            assert message == {"type": "error", "id": "bad", "payload": message["payload"]}
            return {"errors": message["payload"]}
        assert (message["type"], message["id"]) == ("next", "bad")
        assert await self._socket.take() == {"type": "complete", "id": "bad"}
        payload = message["payload"]
        assert isinstance(payload, dict)
        return payload


@both
@pytest.mark.parametrize("kind", ["mutation", "query"])
async def test_a_bad_value_is_refused_by_name_and_changes_nothing(
    serving: Serving, transport: Transport, kind: str, subtests: pytest.Subtests
) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        client = Refusing(api, socket if transport == "socket" else None)
        await api.create("T-7", metadata={"a": 1})
        await api.report("T-7", 50)
        before = await api.seen("T-7")
        for name, bad in {"mutation": MUTATIONS, "query": QUERIES}[kind].items():
            with subtests.test(name):
                declared = [f"${letter}: {of}" for letter, of in (("id", "ID!"), ("x", bad.kind)) if of]
                used = [each for each in declared if each.split(":")[0] in bad.field]
                head = f"{kind}({', '.join(used)})" if used else kind
                request = {"query": f"{head} {{ {bad.field} }}", "variables": {"id": "T-7", "x": bad.value}}
                answer = await client.send(request)
                assert code(answer) == bad.code
                assert bad.says in error(answer)["message"]
                assert answer.get("data") in (None, {"task": None})
                # Refused where it happened: in a field, or before anything was run.
                assert ("path" in error(answer)) == ("data" in answer)
                assert await api.seen("T-7") == before
        assert data(await api.ask("{ tasks { totalCount } }"))["tasks"] == {"totalCount": 1}


@both
async def test_a_document_that_cannot_be_run_is_refused_and_others_go_on(
    serving: Serving, transport: Transport, subtests: pytest.Subtests
) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        client = Refusing(api, socket if transport == "socket" else None)
        await api.create("T-7")
        # The subscription beside it must outlive everything that goes wrong on its socket.
        watch = await socket.watch("T-7")
        await socket.update(watch)
        for name, (query, operation_name, expected, says) in DOCUMENTS.items():
            with subtests.test(name):
                answer = await client.send({"query": query, "operationName": operation_name})
                assert {each["extensions"]["code"] for each in answer["errors"]} == {expected}
                assert says in answer["errors"][0]["message"]
                assert "data" not in answer
        await api.complete("T-7")
        assert numbers(await socket.updates(watch)) == [2]


@both
async def test_a_request_of_wrong_types_is_refused_by_the_name_of_what_is_wrong(
    serving: Serving, transport: Transport, subtests: pytest.Subtests
) -> None:
    query = "{ viewer { name } }"
    cases: dict[str, tuple[Answer, str]] = {
        "an empty object": ({}, "query"),
        "a null query": ({"query": None}, "query"),
        "a query that is a number": ({"query": 1}, "query"),
        "a query that is an object": ({"query": {"a": 1}}, "query"),
        "variables that are a list": ({"query": query, "variables": []}, "variables"),
        "variables that are text": ({"query": query, "variables": "{}"}, "variables"),
        "variables that are a number": ({"query": query, "variables": 5}, "variables"),
        "an operationName that is a number": ({"query": query, "operationName": 1}, "operationName"),
        "an operationName that is a list": ({"query": query, "operationName": ["A"]}, "operationName"),
        "extensions that are text": ({"query": query, "extensions": "x"}, "extensions"),
    }
    async with serving() as api, api.socket() as socket:
        client = Refusing(api, socket if transport == "socket" else None)
        for name, (request, member) in cases.items():
            with subtests.test(name):
                answer = await client.send(request)
                assert code(answer) == "BAD_USER_INPUT"
                assert error(answer)["message"].startswith(member)
        assert "errors" not in await client.send({"query": query, "variables": None, "extensions": None})


@both
async def test_no_report_is_taken_after_a_final_status(
    serving: Serving, transport: Transport, subtests: pytest.Subtests
) -> None:
    reports = {
        'addEvent(taskId: $id, event: { eventType: LOG, message: "m" }) { id }': "take events",
        'addEvent(taskId: $id, event: { eventType: LOG, message: "m", progress: 1 }) { id }': "report progress",
        "updateProgress(taskId: $id, progress: 100) { id }": "report progress",
        "complete(taskId: $id) { id }": "be completed",
        'fail(taskId: $id, error: "no") { id }': "be failed",
        "cancel(taskId: $id) { id }": "be canceled",
    }
    async with serving() as api, api.over(transport) as ask:
        for status in ("SUCCESS", "FAILED", "CANCELED"):
            await api.create(status, status=status)
            before = await api.seen(status)
            for report, wanted in reports.items():
                with subtests.test(status=status, report=report):
                    answer = await ask(f"mutation($id: ID!) {{ {report} }}", {"id": status})
                    assert error(answer) == {
                        "message": f'Task "{status}" is {status} and can no longer {wanted}.',
                        "locations": [{"line": 1, "column": 22}],
                        "path": [report.split("(")[0]],
                        "extensions": {"code": "TASK_FINISHED", "status": status},
                    }
                    assert await api.seen(status) == before


async def test_a_subscription_that_cannot_begin_is_an_error_for_it_alone(
    serving: Serving, subtests: pytest.Subtests
) -> None:
    cases: dict[str, tuple[Any, Any, str]] = {
        "an unknown task": ("nobody", None, "TASK_NOT_FOUND"),
        "a negative afterSeq": ("T-7", -1, "BAD_USER_INPUT"),
        "an afterSeq beyond 32 bits": ("T-7", 2**31, "BAD_USER_INPUT"),
        "an afterSeq as text": ("T-7", "1", "BAD_USER_INPUT"),
        "an empty taskId": ("", None, "BAD_USER_INPUT"),
        "a taskId with NUL": ("\0", 0, "BAD_USER_INPUT"),
        "a taskId with a lone surrogate": ("\ud800", 0, "BAD_USER_INPUT"),
        "a taskId of 256 characters": ("x" * 256, 0, "BAD_USER_INPUT"),
    }
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        watch = await socket.watch("T-7")
        await socket.update(watch)
        for name, (task_id, after_seq, expected) in cases.items():
            with subtests.test(name):
                bad = await socket.watch(task_id, after_seq)
                message = await socket.take()
                assert message == {"type": "error", "id": bad, "payload": message["payload"]}
                assert code({"errors": message["payload"]}) == expected
        await api.complete("T-7")
        assert numbers(await socket.updates(watch)) == [2]


BODIES: Final[dict[str, tuple[bytes, str]]] = {
    "nothing": (b"", "JSON"),
    "null": (b"null", "null"),
    "a number": (b"1", "a number"),
    "text": (b'"x"', "a string"),
    "a boolean": (b"true", "a boolean"),
    "an empty list": (b"[]", "Batches"),
    "a batch": (b'[{"query": "{ viewer { name } }"}]', "Batches"),
    "broken JSON": (b'{"query": "{ viewer', "JSON"),
    "two values": (b'{"query": "{ viewer { name } }"} {}', "JSON"),
    "a form": (b"query=%7B+viewer+%7D", "JSON"),
    "invalid UTF-8": (b'{"query": "\xff\xfe"}', "UTF-8"),
    "UTF-16": ('{"query": "{ viewer { name } }"}'.encode("utf-16"), "UTF-8"),
    "lists nested 100,000 deep": (b"[" * 100_000, "JSON"),
    "objects nested 100,000 deep": (b'{"a":' * 100_000, "JSON"),
    "an integer of 5,000 digits": (
        b'{"query": "{ viewer { name } }", "variables": {"a": ' + b"9" * 5_000 + b"}}",
        "integer",
    ),
    "gzip": (gzip.compress(b'{"query": "{ viewer { name } }"}'), "JSON"),
}


async def test_a_body_that_is_no_request_is_refused_and_the_connection_lives_on(
    serving: Serving, subtests: pytest.Subtests
) -> None:
    async with serving() as api:
        for name, (body, says) in BODIES.items():
            with subtests.test(name):
                response = await api.http.post(PATH, content=body, headers={"Content-Type": "application/json"})
                assert response.status_code == 400
                assert code(response.json()) == "BAD_USER_INPUT"
                assert says in error(response.json())["message"]
                assert len(api.server.server_state.connections) == 1
        assert data(await api.ask("{ viewer { name } }")) == {"viewer": {"name": "admin"}}
        # All of it came over one connection.
        assert len(api.server.server_state.connections) == 1


async def test_a_body_that_is_not_plain_json_is_an_unsupported_media_type(
    serving: Serving, subtests: pytest.Subtests
) -> None:
    body = b'{"query": "{ viewer { name } }"}'
    cases = {
        "text": {"Content-Type": "text/plain"},
        "no type": {},
        "a GraphQL document": {"Content-Type": "application/graphql"},
        "a form": {"Content-Type": "application/x-www-form-urlencoded"},
        "an upload": {"Content-Type": "multipart/form-data; boundary=x"},
        "another charset": {"Content-Type": "application/json; charset=latin-1"},
        "gzip": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    }
    async with serving() as api:
        for name, headers in cases.items():
            with subtests.test(name):
                content = gzip.compress(body) if name == "gzip" else body
                response = await api.http.post(PATH, content=content, headers=headers)
                assert response.status_code == 415
                assert code(response.json()) == "BAD_USER_INPUT"
        for content_type in ("application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"'):
            response = await api.http.post(PATH, content=body, headers={"Content-Type": content_type})
            assert response.status_code == 200, content_type


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_its_bound_is_refused(serving: Serving, chunked: bool) -> None:
    def body(size: int) -> bytes:
        start = b'{"query": "{ viewer { name } }", "variables": {"a": "'
        return start + b"x" * (size - len(start) - 3) + b'"}}'

    async def in_chunks(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    bound = 1_048_576
    async with serving() as api:
        statuses = []
        for size in (bound, bound + 1):
            content = in_chunks(body(size)) if chunked else body(size)
            response = await api.http.post(PATH, content=content, headers={"Content-Type": "application/json"})
            statuses.append(response.status_code)
        assert statuses == [200, 413]
        assert code(response.json()) == "TOO_LARGE"
        assert str(bound) in error(response.json())["message"]
        assert data(await api.ask("{ viewer { name } }")) == {"viewer": {"name": "admin"}}


async def test_a_body_that_does_not_arrive_is_given_up(serving: Serving) -> None:
    async with serving(body_timeout_ms=100) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
        try:
            writer.write(
                b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            answer = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"within 0.1 s" in answer


NO_IDS: Final[dict[str, Any]] = {
    "empty": "",
    "null": None,
    "a number": 1,
    "a list": [],
    "an object": {},
    "a boolean": True,
    "very long": "x" * 256,
    "a lone surrogate": "\ud800",
}
NO_PAYLOADS: Final[dict[str, Any]] = {"null": None, "text": "x", "a list": [], "a number": 1}
# What breaks the protocol: the frames to send after the greeting, and the code with which the socket is closed.
FRAMES: Final[dict[str, tuple[list[Any], int]]] = {
    "binary": ([b"\x00\x01"], 4400),
    "a message as binary": ([b'{"type": "ping"}'], 4400),
    "garbage": (["garbage"], 4400),
    "an empty frame": ([""], 4400),
    "null": (["null"], 4400),
    "a list": (["[]"], 4400),
    "a number": (["1"], 4400),
    "text": (['"x"'], 4400),
    "an empty object": (["{}"], 4400),
    "a type that is null": (['{"type": null}'], 4400),
    "a type that is a list": (['{"type": ["subscribe"]}'], 4400),
    "a type that nobody knows": (['{"type": "start"}'], 4400),
    "a very long type": ([json.dumps({"type": "☃" * 1_000})], 4400),
    "lists nested 100,000 deep": (["[" * 100_000], 4400),
    "an integer of 5,000 digits": (['{"type": ' + "9" * 5_000 + "}"], 4400),
    "an id that is left out": (['{"type": "subscribe", "payload": {"query": "{ viewer { name } }"}}'], 4400),
    **{
        f"an id that is {name}, in {kind}": (
            [json.dumps({"type": kind, "id": value, "payload": {"query": "{ viewer { name } }"}})],
            4400,
        )
        for kind in ("subscribe", "complete")
        for name, value in NO_IDS.items()
    },
    **{
        f"a payload that is {name}": ([json.dumps({"type": "subscribe", "id": "bad", "payload": value})], 4400)
        for name, value in NO_PAYLOADS.items()
    },
    "a second greeting": (['{"type": "connection_init"}'], 4429),
    "a message over 1 MB": (["x" * (1_048_576 + 1)], 1009),
}


async def test_a_socket_that_breaks_the_protocol_is_closed_with_the_code_that_says_how(
    serving: Serving, subtests: pytest.Subtests, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        await api.create("T-7")
        for name, (frames, expected) in FRAMES.items():
            with subtests.test(name):
                async with api.socket() as socket:
                    await socket.update(await socket.watch("T-7"))
                    for frame in frames:
                        await socket.send(frame)
                    found, reason = await socket.closed()
                    assert found == expected
                    assert len((reason or "").encode()) <= 123
        assert "Traceback" not in caplog.text


async def test_text_that_is_not_utf8_closes_the_socket(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        await socket.wire.send(b"\xff\xfe", text=True)
        assert (await socket.closed())[0] == 1007


@pytest.mark.parametrize("operation_id", ["one", "☃" * 200])
async def test_an_id_that_is_in_use_closes_the_socket(serving: Serving, operation_id: str) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        watch = await socket.watch("T-7")
        await socket.subscribe("{ viewer { name } }", operation_id="other")
        await socket.subscribe('subscription { taskUpdates(taskId: "T-7") { type } }', operation_id=operation_id)
        spoken: set[str] = set()
        while not {watch, operation_id, "other"} <= spoken:
            message = await socket.take()
            # Of the one that ends, the end.
            if message["type"] == "complete" or message["id"] != "other":
                spoken.add(message["id"])
        await socket.subscribe("{ viewer { name } }", operation_id=operation_id)
        found, reason = await socket.closed()
    assert found == 4409
    assert reason is not None
    assert reason.startswith("Subscriber for ")
    assert len(reason.encode()) <= 123


async def test_operations_before_the_greeting_close_the_socket(serving: Serving) -> None:
    async with serving() as api, api.socket(init=False) as socket:
        await socket.subscribe("{ viewer { name } }")
        assert await socket.closed() == (4401, "Unauthorized")


async def test_pings_may_come_before_the_greeting(serving: Serving) -> None:
    async with serving() as api, api.socket(init=False) as socket:
        await socket.say({"type": "ping", "payload": {"a": 1}})
        assert (await socket.take())["type"] == "pong"
        await socket.say({"type": "pong"})
        await socket.init()


@pytest.mark.parametrize("says_ping", [False, True])
async def test_a_socket_that_does_not_greet_in_time_is_closed(serving: Serving, says_ping: bool) -> None:
    async with serving(connection_init_timeout_ms=100) as api, api.socket(init=False) as socket:
        if says_ping:
            await socket.say({"type": "ping"})
            await socket.take()
        assert await socket.closed() == (4408, "Connection initialisation timeout")


async def test_a_socket_that_greeted_may_be_silent_for_longer(serving: Serving) -> None:
    async with serving(connection_init_timeout_ms=100) as api, api.socket() as greeted:
        async with api.socket(init=False) as silent:
            assert (await silent.closed())[0] == 4408
        # Another one that came later was closed for it by now.
        assert "errors" not in await greeted.ask("{ viewer { name } }")


def test_a_socket_has_five_seconds_to_greet_unless_it_is_set() -> None:
    assert Settings().connection_init_timeout_ms == 5_000


@pytest.mark.parametrize("payload", [[], "x", 1, True, {"Authorization": 1}, {"authorization": ["Bearer x"]}])
async def test_a_greeting_with_a_payload_of_no_use_closes_the_socket(serving: Serving, payload: Any) -> None:
    async with serving() as api, api.socket(init=False) as socket:
        await socket.say({"type": "connection_init", "payload": payload})
        assert (await socket.closed())[0] == 4400


@pytest.mark.parametrize(
    "message", [{}, {"payload": None}, {"payload": {}}, {"payload": {"authorization": None, "x": 1}}]
)
async def test_a_greeting_needs_no_payload(serving: Serving, message: Answer) -> None:
    async with serving() as api, api.socket(init=False) as socket:
        await socket.say({"type": "connection_init", **message})
        assert await socket.take() == {"type": "connection_ack"}


@pytest.mark.parametrize("protocols", [["graphql-ws"], ["soap", "wamp"], []])
async def test_a_client_that_does_not_offer_the_protocol_is_told_so(serving: Serving, protocols: list[str]) -> None:
    async with serving() as api, api.socket(init=False, protocols=protocols) as socket:
        found, reason = await socket.closed()
    assert found == 4406
    assert reason is not None
    assert "graphql-transport-ws" in reason


async def test_the_protocol_is_chosen_wherever_the_client_names_it(serving: Serving) -> None:
    async with serving() as api, api.socket(protocols=["graphql-ws", "graphql-transport-ws"]) as socket:
        assert socket.wire.subprotocol == "graphql-transport-ws"


async def test_a_socket_has_a_bound_on_open_operations(serving: Serving) -> None:
    async with serving(operations_per_socket_max=2) as api, api.socket() as socket:
        await api.create("T-7")
        watches = [await socket.watch("T-7") for _ in range(3)]
        messages = [await socket.take() for _ in range(3)]
        refused = [message for message in messages if message["type"] == "error"]
        assert [message["id"] for message in refused] == [watches[2]]
        assert "at most 2" in refused[0]["payload"][0]["message"]
        await socket.say({"type": "complete", "id": watches[0]})
        assert (await socket.update(await socket.watch("T-7")))["type"] == "SNAPSHOT"


async def test_the_open_operations_of_a_socket_have_a_bound_in_bytes(serving: Serving) -> None:
    query, padding = 'subscription { taskUpdates(taskId: "T-7") { type } }', {"padding": "x" * 900_000}
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        for _ in range(2):
            assert data(await socket.following(await socket.subscribe(query, padding)))
        refused = await socket.subscribe(query, padding)
        message = await socket.take()
        assert (message["type"], message["id"]) == ("error", refused)
        assert code({"errors": message["payload"]}) == "TOO_LARGE"
        # A small one still fits.
        assert (await socket.update(await socket.watch("T-7")))["type"] == "SNAPSHOT"


async def test_a_message_in_too_many_fragments_closes_the_socket(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        with suppress(ConnectionClosed):
            await socket.wire.send(" " for _ in range(1_000))
        assert (await socket.closed())[0] == 1008


async def test_headers_have_a_bound_in_bytes(serving: Serving) -> None:
    async with serving() as api:
        assert (await api.http.get("/healthz", headers={"X": "x" * 60_000})).status_code == 200
        assert (await api.http.get("/healthz", headers={"X": "x" * 70_000})).status_code == 431


async def test_headers_that_do_not_arrive_are_given_up(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEADERS_TIMEOUT_S", 0.05)
    async with serving() as api:
        for beginning in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
            writer.write(beginning)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


async def test_an_operation_has_a_bound_on_the_events_it_reads(serving: Serving) -> None:
    fields = " ".join(f"h{number}: history(last: 1000) {{ seq }}" for number in range(10))
    async with serving() as api:
        await api.create("T-7")
        for _ in range(4):
            commands = [UpdateProgress(task_id="T-7", progress=number % 100) for number in range(250)]
            await asyncio.gather(*map(api.storage.writer.submit, commands))
        assert "errors" not in await api.ask(f'{{ task(taskId: "T-7") {{ {fields} }} }}')
        answer = await api.ask(f'{{ task(taskId: "T-7") {{ {fields} one: history(last: 1) {{ seq }} }} }}')
    assert code(answer) == "TOO_LARGE"
    assert "10000 events" in error(answer)["message"]


async def test_an_operation_has_a_bound_on_the_bytes_of_the_events_it_reads(serving: Serving) -> None:
    viewer = Viewer(None, authenticated=False, permissions=frozenset({Permission.READ}))
    async with serving() as api:
        await api.create("T-7")
        await api.ask(
            'mutation { addEvent(taskId: "T-7", event: { eventType: LOG, message: "12345", metadata: "123" }) { id } }'
        )
        (event,) = await Context(api.storage, viewer, bytes_left=10).events("T-7", 2, 2)
        assert (event.message, event.metadata) == ("12345", '"123"')
        with pytest.raises(TooLarge, match="bytes of events"):
            await Context(api.storage, viewer, bytes_left=9).events("T-7", 2, 2)


async def test_a_flood_of_operations_by_a_client_that_does_not_read_costs_a_bounded_number_of_tasks(
    serving: Serving,
) -> None:
    count, tasks_max = 10_000, 500
    async with serving() as api, api.narrow_socket() as socket:
        answered, peak = 0, 0
        socket.wire.transport.pause_reading()
        flood = asyncio.create_task(_flood(socket, count))
        # A part of the answers fills every buffer on the way; the rest has to wait for the client to read.
        for _ in range(2_000):
            await asyncio.sleep(0)
            peak = max(peak, len(asyncio.all_tasks()))
        socket.wire.transport.resume_reading()
        while answered < count and peak < tasks_max:
            assert (await socket.take())["type"] == "error"
            answered += 1
            peak = max(peak, len(asyncio.all_tasks()))
        await flood
    assert peak < tasks_max


async def _flood(socket: Socket, count: int) -> None:
    for number in range(count):
        await socket.subscribe("{", operation_id=f"{number}{'-' * 200}")
