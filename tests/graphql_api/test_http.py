"""HTTP as its clients use it: methods, what they accept, streams, other origins, and the health of the server."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import make_url
from websockets.exceptions import InvalidStatus

from graphql_api import app
from graphql_api.app import PATH
from graphql_api.execution import http
from storage import Storage
from tests.graphql_api.clients import WATCH, Answer, Api, code, error, numbers, until
from tests.graphql_api.conftest import Outage, Serving
from tests.postgres import execute

QUERY: Final = "{ viewer { authenticated } }"
ANSWER: Final = {"data": {"viewer": {"authenticated": False}}}
MUTATION: Final = 'mutation { cancel(taskId: "T-7") { status } }'

JSON: Final = "application/json"
GRAPHQL_JSON: Final = "application/graphql-response+json"
EVENT_STREAM: Final = "text/event-stream"
MULTIPART: Final = "multipart/mixed"
# As the clients send it, word for word.
URQL: Final = (
    "application/graphql-response+json, application/graphql+json, application/json, text/event-stream, multipart/mixed"
)
APOLLO: Final = "application/graphql-response+json,application/json;q=0.9"
APOLLO_STREAM: Final = (
    'multipart/mixed;boundary="graphql";subscriptionSpec=1.0,application/graphql-response+json,application/json;q=0.9'
)
BROWSER: Final = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def media_type(response: httpx.Response) -> str:
    return response.headers["content-type"].partition(";")[0]


async def test_a_query_may_be_sent_by_get(serving: Serving) -> None:
    async with serving() as api:
        await api.create("T-7")
        parameters = {
            "query": "query A($id: ID!) { task(taskId: $id) { id } } query B { viewer { name } }",
            "variables": '{"id": "T-7"}',
            "operationName": "A",
            "extensions": "{}",
        }
        response = await api.http.get(PATH, params=parameters)
        assert response.status_code == 200
        assert response.json() == {"data": {"task": {"id": "T-7"}}}


async def test_a_get_that_is_no_request_is_refused(serving: Serving, subtests: pytest.Subtests) -> None:
    cases = {
        "": "query",
        "query=": "query",
        "query={viewer{name}}&variables=[1]": "variables",
        "query={viewer{name}}&variables={": "variables",
        "query={viewer{name}}&extensions=null+null": "extensions",
        "query=%FF": "query string",
        "&".join(f"a{number}=1" for number in range(200)): "query string",
    }
    async with serving() as api:
        for query_string, says in cases.items():
            with subtests.test(query_string[:50]):
                response = await api.http.get(f"{PATH}?{query_string}")
                assert response.status_code == 400
                assert code(response.json()) == "BAD_USER_INPUT"
                assert says in error(response.json())["message"]


async def test_a_mutation_by_get_is_refused_and_does_nothing(serving: Serving) -> None:
    async with serving() as api:
        await api.create("T-7")
        before = await api.seen("T-7")
        for accept in ("*/*", JSON, EVENT_STREAM, URQL):
            response = await api.http.get(PATH, params={"query": MUTATION}, headers={"Accept": accept})
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
            assert code(response.json()) == "BAD_USER_INPUT"
        assert await api.seen("T-7") == before


async def test_other_methods_are_not_allowed(serving: Serving) -> None:
    async with serving() as api:
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
            response = await api.http.request(method, PATH)
            assert (response.status_code, response.headers["allow"]) == (405, "GET, POST"), method


async def test_browsers_get_the_explorer_and_programs_do_not(serving: Serving) -> None:
    async with serving() as api:
        page = await api.http.get(PATH, headers={"Accept": BROWSER})
        assert media_type(page) == "text/html"
        for accept in ("*/*", JSON, EVENT_STREAM, "application/json, text/html;q=0.9", "text/html;q=0"):
            assert media_type(await api.http.get(PATH, headers={"Accept": accept})) == JSON, accept
    async with serving(explorer="off") as api:
        response = await api.http.get(PATH, headers={"Accept": BROWSER})
        assert (response.status_code, media_type(response)) == (400, JSON)


# What a query and a mutation are answered with; None: with nothing, and nothing is done.
ACCEPTED: Final = {
    "*/*": JSON,
    "application/*": JSON,
    JSON: JSON,
    "Application/JSON; q=0.5": JSON,
    GRAPHQL_JSON: GRAPHQL_JSON,
    f"{JSON}, {GRAPHQL_JSON}": JSON,
    f"{JSON};q=0.5, {GRAPHQL_JSON}": GRAPHQL_JSON,
    f"{EVENT_STREAM}, {JSON};q=0.1": JSON,
    f"{EVENT_STREAM}, */*;q=0.1": JSON,
    f"{EVENT_STREAM};q=nonsense, {JSON}": JSON,
    URQL: GRAPHQL_JSON,
    APOLLO: GRAPHQL_JSON,
    APOLLO_STREAM: GRAPHQL_JSON,
    BROWSER: JSON,
    EVENT_STREAM: EVENT_STREAM,
    MULTIPART: MULTIPART,
    f"{MULTIPART};q=0.5, {EVENT_STREAM};q=0.4": MULTIPART,
    "text/html": None,
    f"{JSON};q=0, text/plain": None,
}


async def test_the_answer_is_of_a_type_that_the_client_accepts(serving: Serving, subtests: pytest.Subtests) -> None:
    done = {"data": {"cancel": {"status": "CANCELED"}}}
    async with serving() as api:
        for number, (accept, expected) in enumerate(ACCEPTED.items()):
            await api.create(f"T-{number}")
            for query, answer in ((QUERY, ANSWER), (MUTATION.replace("T-7", f"T-{number}"), done)):
                with subtests.test(accept=accept, query=query):
                    response = await api.post({"query": query}, headers={"Accept": accept})
                    if expected is None:
                        assert response.status_code == 406
                        assert code(response.json()) == "BAD_USER_INPUT"
                        continue
                    assert (response.status_code, media_type(response)) == (200, expected)
                    if expected in (JSON, GRAPHQL_JSON):
                        assert response.json() == answer
                    else:
                        assert json.dumps(answer, separators=(",", ":")) in response.text
            # A mutation whose answer could not have been read was not done.
            assert ((await api.seen(f"T-{number}"))["status"] == "PENDING") == (expected is None)


async def test_a_client_that_accepts_nothing_in_particular_is_answered_with_json(serving: Serving) -> None:
    async with serving() as api:
        del api.http.headers["accept"]
        response = await api.post({"query": QUERY})
    assert (media_type(response), response.json()) == (JSON, ANSWER)


async def test_the_status_follows_the_type_of_the_answer(serving: Serving, subtests: pytest.Subtests) -> None:
    cases: list[tuple[Any, int, int]] = [
        ({"query": QUERY}, 200, 200),
        ({"query": "{"}, 200, 400),
        ({"query": "{ nothing }"}, 200, 400),
        ({"query": QUERY, "operationName": "B"}, 200, 400),
        ({"query": "query($x: Int!) { tasks(first: $x) { totalCount } }"}, 200, 400),
        ({"query": 'mutation { cancel(taskId: "nobody") { id } }'}, 200, 200),
        ({"query": 1}, 400, 400),
        ([], 400, 400),
    ]
    async with serving() as api:
        for body, status, graphql_status in cases:
            with subtests.test(body=body):
                for accept, expected in ((JSON, status), (GRAPHQL_JSON, graphql_status)):
                    response = await api.post(body, headers={"Accept": accept})
                    assert (response.status_code, media_type(response)) == (expected, accept)


async def test_a_subscription_by_plain_post_is_refused_saying_what_it_needs(serving: Serving) -> None:
    async with serving() as api:
        await api.create("T-7")
        for accept in (JSON, GRAPHQL_JSON, APOLLO):
            body = {"query": WATCH, "variables": {"id": "T-7"}}
            response = await api.post(body, headers={"Accept": accept})
            assert response.status_code == 406
            message = error(response.json())["message"]
            assert all(word in message for word in (EVENT_STREAM, MULTIPART, "WebSocket"))


# How a stream that is over says so.
END: Final = ("complete", None)


@asynccontextmanager
async def streaming(
    api: Api, accept: str, *, method: str = "POST", task_id: str = "T-7"
) -> AsyncIterator[httpx.Response]:
    """A subscription over HTTP."""
    request: dict[str, Any] = {"json": {"query": WATCH, "variables": {"id": task_id, "afterSeq": 0}}}
    if method == "GET":
        request = {"params": {"query": WATCH, "variables": json.dumps({"id": task_id, "afterSeq": 0})}}
    async with api.http.stream(method, PATH, headers={"Accept": accept}, **request) as response:
        yield response


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Events as clients find them: between empty lines that end in LF alone."""
    buffer = ""
    async for text in response.aiter_text():
        assert "\r" not in text
        buffer += text
        *whole, buffer = buffer.split("\n\n")
        for event in whole:
            lines = dict(line.split(": ", 1) for line in event.split("\n") if not line.startswith(":"))
            if lines:
                yield lines["event"], json.loads(lines["data"]) if lines["data"] else None
    assert buffer == ""


async def parts(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Parts as Apollo Client finds them: it splits at CR LF and the boundary, and drops what holds nothing."""
    boundary, buffer = "\r\n--graphql", ""
    async for text in response.aiter_text():
        buffer += text
        while boundary in buffer:
            part, _, buffer = buffer.partition(boundary)
            head, _, body = part.partition("\r\n\r\n")
            assert "content-type: application/json" in head
            if found := json.loads(body):
                yield "next", found["payload"]
    if buffer:
        assert buffer == "--\r\n"
        yield END


async def following(answers: AsyncIterator[tuple[str, Any]]) -> Answer:
    kind, answer = await anext(answers)
    assert kind == "next"
    update = answer["data"]["taskUpdates"]
    assert isinstance(update, dict)
    return update


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_subscription_is_served_as_events(serving: Serving, method: str) -> None:
    async with serving() as api:
        await api.create("T-7")
        async with streaming(api, EVENT_STREAM, method=method) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-store, no-transform"
            assert response.headers["x-content-type-options"] == "nosniff"
            stream = events(response)
            assert (await following(stream))["type"] == "SNAPSHOT"
            await api.report("T-7", 50)
            assert numbers([await following(stream)]) == [2]
            await api.complete("T-7")
            assert numbers([await following(stream)]) == [3]
            assert [event async for event in stream] == [END]


@pytest.mark.parametrize("accept", [APOLLO_STREAM, MULTIPART])
async def test_a_subscription_is_served_in_parts(serving: Serving, accept: str) -> None:
    async with serving() as api:
        await api.create("T-7")
        async with streaming(api, accept) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == 'multipart/mixed; boundary="graphql"; subscriptionSpec="1.0"'
            stream = parts(response)
            assert (await following(stream))["type"] == "SNAPSHOT"
            await api.report("T-7", 50)
            assert numbers([await following(stream)]) == [2]
            await api.complete("T-7")
            assert numbers([await following(stream)]) == [3]
            assert [part async for part in stream] == [END]


async def test_urql_gets_its_subscriptions_as_events(serving: Serving) -> None:
    async with serving() as api:
        await api.create("T-7", status="SUCCESS")
        async with streaming(api, URQL) as response:
            assert media_type(response) == EVENT_STREAM
            assert [kind async for kind, _ in events(response)] == ["next", "complete"]


async def test_a_stream_that_cannot_begin_says_why_and_ends(serving: Serving) -> None:
    async with serving() as api:
        async with streaming(api, EVENT_STREAM, task_id="nobody") as response:
            (_, answer), (kind, _) = [event async for event in events(response)]
        assert (code(answer), error(answer)["path"], kind) == ("TASK_NOT_FOUND", ["taskUpdates"], "complete")
        async with streaming(api, MULTIPART, task_id="nobody") as response:
            (_, answer), end = [part async for part in parts(response)]
        assert (code(answer), end) == ("TASK_NOT_FOUND", END)


@pytest.mark.parametrize(("accept", "read"), [(EVENT_STREAM, events), (MULTIPART, parts)])
async def test_a_quiet_stream_is_kept_open_by_heartbeats_that_say_nothing(
    serving: Serving, accept: str, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEARTBEAT_S", 0.01)
    heartbeat = ":\n\n" if accept == EVENT_STREAM else "{}\r\n--graphql"
    async with serving() as api:
        await api.create("T-7")
        async with streaming(api, accept) as response, streaming(api, accept) as other:
            stream = read(response)
            await following(stream)
            received = ""
            async with texts_of(other) as texts:
                while heartbeat not in received.partition("SNAPSHOT")[2]:
                    received += await anext(texts)
            await api.complete("T-7")
            assert (await following(stream))["type"] == "COMPLETE"


@asynccontextmanager
async def texts_of(response: httpx.Response) -> AsyncIterator[AsyncIterator[str]]:
    """What arrives, as it arrives."""
    texts = response.aiter_text()
    assert isinstance(texts, AsyncGenerator)
    async with aclosing(texts):
        yield texts


@pytest.mark.parametrize("accept", [EVENT_STREAM, MULTIPART])
async def test_a_stream_ends_when_its_client_goes_away(serving: Serving, accept: str) -> None:
    async with serving() as api:
        await api.create("T-7")
        async with streaming(api, accept) as response, texts_of(response) as texts:
            await anext(texts)
            await until(lambda: api.storage.feed.subscribers == 1)
        await until(lambda: api.storage.feed.subscribers == 0)


@pytest.mark.parametrize(("accept", "read"), [(EVENT_STREAM, events), (MULTIPART, parts)])
async def test_a_stream_that_the_server_breaks_off_has_no_end_so_that_its_client_comes_back(
    serving: Serving, accept: str, read: Any
) -> None:
    async with serving() as api:
        await api.create("T-7")
        async with streaming(api, accept) as response:
            stream = read(response)
            await following(stream)
            api.stopping.set()
            assert [answer async for answer in stream] == []
        await until(lambda: api.storage.feed.subscribers == 0)


async def test_pages_of_other_origins_may_ask_only_where_it_is_allowed(serving: Serving) -> None:
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    ours, theirs = "https://app.example.com", "https://evil.example.com"
    async with serving(allowed_origins=(ours, "https://other.example.com")) as api:
        for origin, allowed in ((ours, ours), (theirs, None)):
            answer = await api.http.options(PATH, headers={"Origin": origin, **preflight})
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert (answer.status_code == 200) == (allowed is not None)
            response = await api.post({"query": QUERY}, headers={"Origin": origin})
            assert response.headers.get("access-control-allow-origin") == allowed
    async with serving() as api:
        response = await api.post({"query": QUERY}, headers={"Origin": ours})
        assert "access-control-allow-origin" not in response.headers


async def test_sockets_of_other_origins_are_opened_only_where_it_is_allowed(serving: Serving) -> None:
    ours, theirs = "https://app.example.com", "https://evil.example.com"
    async with serving(allowed_origins=(ours,)) as api:
        for origin in (ours, api.origin, None):
            async with api.socket(origin=origin) as socket:
                assert "errors" not in await socket.ask(QUERY)
        for origin in (theirs, "null", api.origin.replace("http", "https") + "0", "https://app.example.com.evil.com"):
            with pytest.raises(InvalidStatus) as refused:
                async with api.socket(origin=origin):
                    pass
            assert refused.value.response.status_code == 403
    async with serving(allowed_origins=("*",)) as api, api.socket(origin=theirs) as socket:
        assert "errors" not in await socket.ask(QUERY)


async def test_a_server_that_lives_and_is_ready_says_so(serving: Serving) -> None:
    async with serving() as api:
        alive, ready = await api.http.get("/healthz"), await api.http.get("/readyz")
        assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
        checks = {"database": True, "migrations": True, "writer": True, "running": True}
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "checks": checks, "feed": "alone"})


async def test_many_who_ask_at_once_whether_the_server_is_ready_cost_one_look(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = 0, Storage.check

    async def count(storage: Storage) -> dict[str, bool]:
        nonlocal looks
        looks += 1
        return await look(storage)

    monkeypatch.setattr(Storage, "check", count)
    monkeypatch.setattr(app, "CHECK_BELIEVED_S", 1_000.0)
    async with serving() as api:
        answers = await asyncio.gather(*(api.http.get("/readyz") for _ in range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert looks == 1


async def test_a_server_without_its_database_is_alive_and_not_ready(serving: Serving, outage: Outage) -> None:
    async with serving() as api, outage():
        alive, ready = await api.http.get("/healthz"), await api.http.get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    checks = {"database": False, "migrations": False, "writer": True, "running": True}
    assert (ready.status_code, ready.json()) == (503, {"status": "not ready", "checks": checks, "feed": "alone"})


async def test_a_server_whose_database_was_taken_away_is_not_ready(
    serving: Serving, database: str, server: str, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CHECK_BELIEVED_S", 0.0)
    name = make_url(database).database
    async with serving() as api, outage():
        await execute(server, f"ALTER DATABASE {name} RENAME TO {name}_away")
        try:
            # The first finds that its connection is dead, the others that there is nothing to connect to.
            for _ in range(3):
                ready = await api.http.get("/readyz")
                assert (ready.status_code, ready.json()["checks"]["database"]) == (503, False)
        finally:
            await execute(server, f"ALTER DATABASE {name}_away RENAME TO {name}")


async def test_a_server_on_another_schema_is_not_ready(serving: Serving, database: str) -> None:
    async with serving() as api:
        await execute(database, "UPDATE alembic_version SET version_num = 'zzzz'")
        ready = await api.http.get("/readyz")
        checks = {"database": True, "migrations": False, "writer": True, "running": True}
        assert (ready.status_code, ready.json()["checks"]) == (503, checks)


async def test_a_server_that_stops_is_not_ready(serving: Serving) -> None:
    async with serving() as api:
        api.stopping.set()
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["running"]) == (503, False)
