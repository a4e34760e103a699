"""Automatic persisted queries, as Apollo's clients and urql send them; these themselves run in tests/clients."""

import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import pytest

from graphql_api.app import PATH
from graphql_api.execution.documents import DOCUMENT_CHARACTERS_MAX
from graphql_api.execution.plan import PLANS_MAX, Plans
from graphql_api.schema import schema
from tests.graphql_api.clients import Answer, Api, code, data, error
from tests.graphql_api.conftest import Serving

WHO: Final = "query Who { viewer { name } }"
Way = Literal["post", "get", "socket"]
ways = pytest.mark.parametrize("way", ("post", "get", "socket"))
Send: TypeAlias = Callable[[Answer], Awaitable[Answer]]


def hash_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def named(name: Any, query: str | None = None, **more: Any) -> Answer:
    """A request with a hash, with or without its document."""
    brought = {} if query is None else {"query": query}
    return {**brought, "extensions": {"persistedQuery": {"version": 1, "sha256Hash": name}}, **more}


async def send(api: Api, way: Way, request: Answer) -> Answer:
    """The answer to a request, whatever the status."""
    if way == "post":
        return _answer((await api.post(request)).json())
    if way == "get":
        parameters = {name: value if isinstance(value, str) else json.dumps(value) for name, value in request.items()}
        return _answer((await api.http.get(PATH, params=parameters)).json())
    async with api.socket() as socket:
        await socket.say({"type": "subscribe", "id": "1", "payload": request})
        message = await socket.take()
    return {"errors": message["payload"]} if message["type"] == "error" else _answer(message["payload"])


def _answer(found: Any) -> Answer:
    assert isinstance(found, dict)
    return found


@ways
async def test_a_hash_stands_for_its_document_once_both_were_sent(serving: Serving, way: Way) -> None:
    async with serving() as api:
        unknown = error(await send(api, way, named(hash_of(WHO))))
        assert unknown == {
            "message": "PersistedQueryNotFound",
            "extensions": {"code": "PERSISTED_QUERY_NOT_FOUND"},
        }
        both = await send(api, way, named(hash_of(WHO), WHO))
        # Clients that pass an empty document on mean none.
        for request in (named(hash_of(WHO)), named(hash_of(WHO), ""), named(hash_of(WHO), operationName="Who")):
            assert await send(api, way, request) == both
        assert data(both) == {"viewer": {"name": None}}


@pytest.mark.parametrize("accept", ("application/json", "application/graphql-response+json"))
async def test_an_unknown_hash_is_answered_with_200(serving: Serving, accept: str) -> None:
    async with serving() as api:
        response = await api.post(named(hash_of(WHO)), headers={"Accept": accept})
        assert (response.status_code, code(response.json())) == (200, "PERSISTED_QUERY_NOT_FOUND")
        assert response.headers["content-type"].startswith(accept)
        assert response.headers["cache-control"] == "no-store"


@ways
async def test_a_document_is_not_kept_under_the_hash_of_another(serving: Serving, way: Way) -> None:
    other = "{ viewer { authenticated } }"
    async with serving() as api:
        # The true one is known already, or it is not.
        for _ in range(2):
            wrong = error(await send(api, way, named(hash_of(WHO), other)))
            assert wrong["message"] == "provided sha does not match query"
            assert wrong["extensions"] == {"code": "BAD_USER_INPUT"}
            assert "name" in data(await send(api, way, named(hash_of(WHO), WHO)))["viewer"]
        assert code(await send(api, way, named(hash_of(other)))) == "PERSISTED_QUERY_NOT_FOUND"
        # A lone surrogate has no UTF-8, and so no hash.
        if way == "socket":
            assert code(await send(api, way, named(hash_of(WHO), "\ud800"))) == "BAD_USER_INPUT"


@pytest.mark.parametrize(
    "persisted",
    (
        [],
        "x",
        {},
        {"version": 2, "sha256Hash": hash_of(WHO)},
        {"sha256Hash": hash_of(WHO)},
        {"version": 1},
        {"version": 1, "sha256Hash": 7},
        {"version": 1, "sha256Hash": hash_of(WHO).upper()},
        {"version": 1, "sha256Hash": hash_of(WHO)[1:]},
    ),
)
@ways
async def test_what_is_no_hash_is_refused(serving: Serving, way: Way, persisted: Any) -> None:
    async with serving() as api:
        for brought in ({}, {"query": WHO}):
            answer = await send(api, way, {**brought, "extensions": {"persistedQuery": persisted}})
            assert code(answer) == "BAD_USER_INPUT"
            assert "sha256Hash" in error(answer)["message"]
        # Other extensions are somebody else's.
        for extensions in ({"persistedQuery": None}, {"other": 1}, {}):
            assert "viewer" in data(await send(api, way, {"query": WHO, "extensions": extensions}))


async def test_a_document_that_is_refused_is_not_known(serving: Serving) -> None:
    async with serving() as api:
        for text in ("{ nothing }", "{", "{ __typename }" + " " * DOCUMENT_CHARACTERS_MAX):
            refused = code(await send(api, "post", named(hash_of(text), text)))
            assert refused in ("GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED", "TOO_LARGE")
            assert code(await send(api, "post", named(hash_of(text)))) == "PERSISTED_QUERY_NOT_FOUND"


async def test_a_mutation_goes_by_its_hash_but_not_by_get(serving: Serving) -> None:
    text = "mutation($id: ID!) { create(taskId: $id) { seq } }"
    async with serving() as api:
        first = await api.post(named(hash_of(text), text, variables={"id": "T-1"}), key=api.admin_key)
        again = await api.post(named(hash_of(text), variables={"id": "T-2"}), key=api.admin_key)
        assert data(first.json()) == data(again.json()) == {"create": {"seq": 1}}
        got = await api.http.get(PATH, params={"extensions": json.dumps(named(hash_of(text))["extensions"])})
        assert got.status_code == 405


async def test_a_subscription_goes_by_its_hash(serving: Serving) -> None:
    text = "subscription($id: ID!) { taskUpdates(taskId: $id) { type } }"
    async with serving() as api:
        await api.create("T-1", status="SUCCESS")
        request = named(hash_of(text), text, variables={"id": "T-1"})
        async with api.socket() as socket:
            for payload in (request, named(hash_of(text), variables={"id": "T-1"})):
                await socket.say({"type": "subscribe", "id": "1", "payload": payload})
                assert [update["type"] for update in await socket.updates("1")] == ["SNAPSHOT"]
        streamed = await api.post(
            named(hash_of(text), variables={"id": "T-1"}), headers={"Accept": "text/event-stream"}
        )
        assert streamed.text.count("SNAPSHOT") == 1


async def test_a_hash_is_known_as_long_as_the_plan_of_its_document_is_kept() -> None:
    plans = Plans(schema)

    async def bring(number: int) -> Answer:
        text = f"{{ n{number}: viewer {{ name }} }}"
        asked = plans.read(named(hash_of(text), text))
        await plans.plan(asked.query, asked.operation_name, asked.sha256)
        return named(hash_of(text))

    requests = [await bring(number) for number in range(PLANS_MAX)]
    assert all(plans.read(request) for request in requests)
    assert len(plans._by_hash) == PLANS_MAX
    await bring(PLANS_MAX)
    assert len(plans._by_hash) == PLANS_MAX == plans.kept
    with pytest.raises(Exception, match="PersistedQueryNotFound"):
        plans.read(requests[0])
    assert plans.read(requests[1]).query == "{ n1: viewer { name } }"


async def test_the_operations_of_one_document_share_its_hash() -> None:
    text = "query A { viewer { name } } query B { viewer { name } }"
    plans = Plans(schema)
    for name in ("A", "B"):
        asked = plans.read(named(hash_of(text), text, operationName=name))
        await plans.plan(asked.query, asked.operation_name, asked.sha256)
    assert plans._by_hash == {hash_of(text): text}


async def test_where_only_certain_operations_are_run_no_other_becomes_known(serving: Serving, tmp_path: Path) -> None:
    other = "{ viewer { authenticated } }"
    known = tmp_path / "operations.json"
    known.write_text(json.dumps([WHO]))
    async with serving(operations=known) as api:
        assert "viewer" in data(await send(api, "post", named(hash_of(WHO))))
        assert code(await send(api, "post", named(hash_of(other)))) == "OPERATION_NOT_ALLOWED"
        assert code(await send(api, "post", named(hash_of(other), other))) == "OPERATION_NOT_ALLOWED"
        assert code(await send(api, "post", named(hash_of(WHO), other))) == "OPERATION_NOT_ALLOWED"
