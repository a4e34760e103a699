"""GraphQL over HTTP to the letter of its specification, over every combination, and however an operation is run.

What is asserted here are the words of the draft (https://graphql.github.io/graphql-over-http/draft/). Where another
answer is given, `docs/security.md` says so, and why.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from itertools import product
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import pytest

from graphql_api.app import PATH
from graphql_api.wire.http import HEADERS_BYTES_MAX
from tests.graphql_api.clients import WAIT_S, Api, code, error, until
from tests.graphql_api.conftest import Serving

JSON: Final = "application/json"
GRAPHQL_JSON: Final = "application/graphql-response+json"
EVENT_STREAM: Final = "text/event-stream"


class Answer(NamedTuple):
    """What came back, without the date."""

    status: int
    headers: dict[str, str]
    body: bytes


async def exchange(
    api: Api, method: str, headers: Mapping[str, str | None], body: bytes, *, target: str = PATH, pieces: int = 1
) -> Answer:
    """Send a request on a connection of its own; in one piece, which is answered without ASGI, or in two."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
    ours = writer.get_extra_info("sockname")[:2]
    sent = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body)) if body else None, **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items() if value is not None)]
    head = "\r\n".join([*lines, "", ""]).encode()

    answered: Any = reader

    def waits_for_body() -> bool:
        connections: Any = api.server.server_state.connections
        mine = [one.cycle for one in connections if getattr(one, "client", None) == ours and one.cycle is not None]
        return any(cycle.message_event._waiters for cycle in mine)

    try:
        if pieces == 2 and body:
            writer.write(head)
            # It may be refused by its head.
            await until(lambda: bool(answered._buffer) or waits_for_body())
            if not answered._buffer:
                writer.write(body)
        else:
            writer.write(head + body)
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
    finally:
        writer.close()
    top, _, content = answer.partition(b"\r\n\r\n")
    status, *fields = top.decode().split("\r\n")
    pairs = dict(field.split(": ", 1) for field in fields)
    pairs.pop("date", None)
    return Answer(int(status.split()[1]), pairs, content)


def request(query: Any, **others: Any) -> dict[str, Any]:
    return {"query": query, **others}


# What an operation comes to: its answer; a refusal of the request, by its document or by its variables; or a stream.
DOCUMENTS: Final = {
    "good": (request("{ viewer { authenticated } }"), "answer"),
    "a fault in a field": (request('{ task(taskId: "") { id } viewer { authenticated } }'), "answer"),
    "null data": (request("{ tasks { totalCount } }"), "answer"),
    "a syntax error": (request("{"), "refused"),
    "invalid": (request("{ nothing }"), "refused"),
    "an unknown operation": (request("query A { viewer { name } }", operationName="B"), "refused"),
    "bad variables": (request("query($id: ID!) { task(taskId: $id) { id } }", variables={"id": []}), "late"),
    "too costly": (request("{ a: tasks(first: 1000) { nodes { history(first: 1000) { seq } } } }"), "refused"),
    "no request": ({"query": 1}, "malformed"),
    "a mutation": (request('mutation { cancel(taskId: "nobody") { id } }'), "mutation"),
    "a subscription": (request('subscription { taskUpdates(taskId: "T") { type } }'), "stream"),
}
ACCEPTS: Final = {
    None: JSON,
    "": JSON,
    "*/*": JSON,
    "application/*": JSON,
    JSON: JSON,
    f"{JSON}; charset=utf-8": JSON,
    GRAPHQL_JSON: GRAPHQL_JSON,
    f"{GRAPHQL_JSON}, {JSON};q=0.9": GRAPHQL_JSON,
    f"{GRAPHQL_JSON};q=0.5, {JSON}": JSON,
    f"{GRAPHQL_JSON};q=0, */*;q=0.1": JSON,
    f"{JSON};q=0, */*;q=0.1": GRAPHQL_JSON,
    EVENT_STREAM: EVENT_STREAM,
    "image/png": None,
    f"{JSON};q=0": None,
}
# Of these, only some take a stream as well.
STREAMS: Final = {None, "", "*/*", EVENT_STREAM, f"{GRAPHQL_JSON};q=0, */*;q=0.1", f"{JSON};q=0, */*;q=0.1"}
CONTENT_TYPES: Final = {
    JSON: True,
    f"{JSON}; charset=utf-8": True,
    'Application/JSON;charset="UTF-8"': True,
    f"{JSON}; charset=latin-1": False,
    "text/plain": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=x": False,
    None: False,
}


def expected(method: str, content_type: str | None, accept: str | None, kind: str) -> tuple[int, str]:
    """The status and the type that the specification asks for."""
    json_type = ACCEPTS[accept]
    plain = json_type if json_type in (JSON, GRAPHQL_JSON) else JSON
    if method == "PUT":
        return 405, plain
    if method == "POST" and not CONTENT_TYPES[content_type]:
        return 415, plain
    if json_type is None:
        return 406, plain
    if kind == "malformed":
        return 400, plain
    if kind == "late" and json_type == EVENT_STREAM:
        # A stream that cannot begin says so in itself.
        return 200, EVENT_STREAM
    if kind in ("refused", "late"):
        return (400 if plain == GRAPHQL_JSON else 200), plain
    if kind == "mutation" and method == "GET":
        return 405, plain
    if kind == "stream":
        return (200, EVENT_STREAM) if accept in STREAMS else (406, plain)
    return 200, json_type


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
async def test_the_whole_matrix_is_answered_as_the_specification_says_and_alike_in_every_way(
    serving: Serving, method: str
) -> None:
    cases = [
        (name, accept, content_type)
        for name, accept, content_type in product(DOCUMENTS, ACCEPTS, CONTENT_TYPES)
        # Only a POST has a body, and a PUT is not even read.
        if method == "POST" or content_type == JSON
    ]
    ways: list[dict[tuple[str, str | None, str | None], Answer]] = []
    for execution in ("compiled", "interpreted"):
        async with serving(execution=execution, explorer="off") as api:
            if execution == "compiled":
                await api.create("T", status="SUCCESS")
            for pieces in (1, 2) if method == "POST" else (1,):
                turn = asyncio.Semaphore(16)

                async def ask(
                    case: tuple[str, str | None, str | None],
                    api: Api = api,
                    pieces: int = pieces,
                    turn: asyncio.Semaphore = turn,
                ) -> Answer:
                    name, accept, content_type = case
                    parameters = DOCUMENTS[name][0]
                    target, body = PATH, json.dumps(parameters).encode()
                    if method == "GET":
                        texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in parameters.items()}
                        target, body = f"{PATH}?{urlencode(texts)}", b""
                    headers = {"Accept": accept, "Content-Type": content_type}
                    async with turn:
                        return await exchange(api, method, headers, body, target=target, pieces=pieces)

                ways.append(dict(zip(cases, await asyncio.gather(*map(ask, cases)), strict=True)))
    for case in cases:
        name, accept, content_type = case
        answer = ways[0][case]
        kind = DOCUMENTS[name][1]
        if method == "GET" and kind == "malformed":
            # There everything is text: this is the document `1`.
            kind = "refused"
        wanted = expected(method, content_type, accept, kind)
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == wanted, case
        assert answer.headers["content-type"].endswith("charset=utf-8"), case
        for way in ways[1:]:
            assert way[case] == answer, case


async def test_what_is_refused_has_no_data_and_what_was_run_has(serving: Serving) -> None:
    async with serving() as api:
        for name, (body, kind) in DOCUMENTS.items():
            for accept in (JSON, GRAPHQL_JSON):
                answer = (await api.post(body, headers={"Accept": accept})).json()
                assert ("data" in answer) == (kind in ("answer", "mutation")), name


async def test_a_method_that_is_not_served_is_told_which_are(serving: Serving) -> None:
    async with serving() as api:
        answer = await exchange(api, "PUT", {}, b"")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
        mutation = urlencode({"query": 'mutation { cancel(taskId: "T") { id } }'})
        answer = await exchange(api, "GET", {"Accept": GRAPHQL_JSON}, b"", target=f"{PATH}?{mutation}")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_wrong_credential_is_a_status_and_a_challenge(serving: Serving, pieces: int) -> None:
    async with serving() as api:
        headers = {"Content-Type": JSON, "Authorization": "Bearer spn_no", "Accept": GRAPHQL_JSON}
        answer = await exchange(api, "POST", headers, b'{"query":"{ viewer { name } }"}', pieces=pieces)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert code(json.loads(answer.body)) == "UNAUTHENTICATED"


async def test_parameters_of_a_get_may_be_empty_and_others_are_ignored(serving: Serving) -> None:
    async with serving() as api:
        parameters = {"query": "{ viewer { authenticated } }", "operationName": "", "variables": "", "extensions": ""}
        for more in ({}, {"id": "7", "documentId": "x"}):
            response = await api.http.get(PATH, params={**parameters, **more})
            assert (response.status_code, response.json()) == (200, {"data": {"viewer": {"authenticated": False}}})
        # A name is a name, also this one.
        response = await api.http.get(PATH, params={**parameters, "operationName": "null"})
        assert '"null"' in error(response.json())["message"]


async def test_parameters_of_a_post_may_be_null_and_others_are_ignored(serving: Serving) -> None:
    async with serving() as api:
        body = {"query": "{ viewer { authenticated } }", "operationName": None, "variables": None, "extensions": None}
        for more in ({}, {"id": 7, "documentId": 1}, {"extensions": {"any": 1}}):
            response = await api.post({**body, **more})
            assert (response.status_code, response.json()) == (200, {"data": {"viewer": {"authenticated": False}}})


async def test_json_that_is_none_is_a_bad_request_of_both_types(serving: Serving) -> None:
    async with serving() as api:
        for accept, body in product((JSON, GRAPHQL_JSON), (b"", b"{", b'{"query":')):
            response = await api.http.post(PATH, content=body, headers={"Accept": accept, "Content-Type": JSON})
            assert response.status_code == 400


async def test_answers_are_not_kept_by_caches_nor_taken_for_another_type(serving: Serving) -> None:
    async with serving() as api:
        answers = [
            await api.post({"query": "{ viewer { name } }"}),
            await api.post({"query": "{"}),
            await api.post([]),
            await api.http.get(PATH, params={"query": "{ viewer { name } }"}),
            await api.http.get("/healthz"),
            await api.http.get("/readyz"),
        ]
        for answer in answers:
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in answer.headers


async def test_an_address_and_headers_that_are_too_long_have_statuses_of_their_own(serving: Serving) -> None:
    async with serving() as api:
        # What `exchange` sends beside, names and values.
        beside = len("HostlocalhostConnectionclose")
        room = HEADERS_BYTES_MAX - beside - len("/healthz?")
        # Beyond the bound by itself, the target is what is too long.
        for by_target, by_header, longer in ((200, 200, 0), (414, 431, 1)):
            target = f"/healthz?{'x' * (room + longer * (beside + 1))}"
            assert (await exchange(api, "GET", {}, b"", target=target)).status == by_target
            assert (
                await exchange(api, "GET", {"X": "x" * (room + longer)}, b"", target="/healthz")
            ).status == by_header


async def test_what_a_browser_sends_without_asking_is_never_run(serving: Serving) -> None:
    """The content types that a page may send to any server are refused; of the methods, GET changes nothing."""
    mutation = {"query": 'mutation { cancel(taskId: "T") { id } }'}
    async with serving() as api:
        await api.create("T")
        before = await api.seen("T")
        origin = {"Origin": "https://evil.example"}
        for content_type in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            None,
        ):
            headers = {**origin, **({} if content_type is None else {"Content-Type": content_type})}
            for body in (json.dumps(mutation), urlencode(mutation)):
                response = await api.http.post(PATH, content=body.encode(), headers=headers)
                assert response.status_code == 415
        response = await api.http.get(PATH, params=mutation, headers=origin)
        assert response.status_code == 405
        # And what it may have read, its page may not.
        response = await api.http.get(PATH, params={"query": "{ viewer { name } }"}, headers=origin)
        assert not [name for name in response.headers if re.match("access-control", name)]
        assert await api.seen("T") == before
