"""Task tokens as clients meet them: what each opens, what it does not, and what is refused of those that are wrong."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import jwt
import pytest

from graphql_api.app import PATH
from graphql_api.settings import Access
from storage import Permission, TokenScope
from storage.signing_keys import TOKEN_LIFETIME_MAX_S
from tests.graphql_api.clients import TRANSPORTS, WATCH, Answer, Api, code, data, error
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_access import ANYONE, OPERATIONS, SECRET, VIEWER, document, token

CREATE_TOKEN: Final = """
    mutation($id: ID!, $scope: TokenScope!, $seconds: Int) {
      createTaskToken(taskId: $id, scope: $scope, expiresInSeconds: $seconds) { token expiresAt }
    }
"""
SCOPES: Final = {
    TokenScope.READ: {Permission.READ},
    TokenScope.REPORT: {Permission.READ, Permission.REPORT},
}


async def task_token(api: Api, scope: str = "REPORT", task_id: str = "T-7", *, key: str | None = None) -> str:
    """A token that is good for an hour."""
    answer = await api.ask(CREATE_TOKEN, {"id": task_id, "scope": scope, "seconds": 3600}, key=key)
    return str(data(answer)["createTaskToken"]["token"])


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("scope", TokenScope)
async def test_a_token_opens_its_task_for_its_scope_and_nothing_else(
    serving: Serving, access: Access, scope: TokenScope, subtests: pytest.Subtests
) -> None:
    operations = {**OPERATIONS, 'createTaskToken(taskId: "T-7", scope: READ) { token }': Permission.CREATE}
    async with serving(access=access) as api:
        own, others = await task_token(api, scope), await task_token(api, scope, "other")
        for credential, granted in ((own, SCOPES[scope]), (others, set[Permission]())):
            allowed = ANYONE[access] | granted
            async with api.socket(key=credential) as socket:
                for operation, needed in operations.items():
                    for over in TRANSPORTS:
                        with subtests.test(operation=operation, over=over, own=credential is own):
                            await api.ask('mutation { delete(taskId: "T-7") }')
                            await api.ask('mutation { delete(taskId: "T-8") }')
                            await api.create("T-7")
                            if over == "http":
                                answer = (await api.post({"query": document(operation)}, key=credential)).json()
                            else:
                                answer = await socket.ask(document(operation))
                            if needed in allowed:
                                data(answer)
                            else:
                                assert code(answer) == "FORBIDDEN"
                                expected = "T-7" if credential is own else "other"
                                assert f'for the task "{expected}"' in error(answer)["message"]
                                assert (await api.seen("T-7"))["seq"] == 1
                with subtests.test(operation="taskUpdates", own=credential is own):
                    watch = await socket.watch("T-7")
                    message = await socket.take()
                    if Permission.READ in allowed:
                        assert (message["type"], message["id"]) == ("next", watch)
                    else:
                        assert code({"errors": message["payload"]}) == "FORBIDDEN"
            with subtests.test(operation="event stream", own=credential is own):
                headers = {"Authorization": f"Bearer {credential}", "Accept": "text/event-stream"}
                body = {"query": WATCH, "variables": {"id": "T-7"}}
                async with api.http.stream("POST", PATH, json=body, headers=headers) as response:
                    lines = (line async for line in response.aiter_lines() if line.startswith("data: {"))
                    answer = json.loads((await anext(lines)).removeprefix("data: "))
                if Permission.READ in allowed:
                    assert data(answer)["taskUpdates"]["type"] == "SNAPSHOT"
                else:
                    assert code(answer) == "FORBIDDEN"


async def test_what_a_token_for_reporting_reads_of_the_log_is_that_of_its_task(serving: Serving) -> None:
    async with serving(access="keyed") as api:
        await api.create("T-7")
        credential = await task_token(api)
        query = '{ task(taskId: "T-7") { seq lastEvent { seq } history { message } } }'
        assert data(await api.ask(query, key=credential))["task"]["history"] == [{"message": "Task created"}]
    async with serving(access="closed") as api:
        assert data(await api.ask(query, key=credential))["task"]["lastEvent"] == {"seq": 1}


async def test_a_token_says_whose_it_is_and_for_which_task(serving: Serving) -> None:
    viewer = "{ viewer { name authenticated permissions taskId } }"
    async with serving(access="closed", jwt_secret=SECRET) as api:
        key = await api.storage.keys.create("backend", [Permission.CREATE])
        for maker, name in ((key, "task-token:backend"), (token(permissions=["CREATE"]), "task-token")):
            credential = await task_token(api, "READ", key=maker)
            assert data(await api.ask(viewer, key=credential))["viewer"] == {
                "name": name,
                "authenticated": True,
                "permissions": ["READ"],
                "taskId": "T-7",
            }
        assert data(await api.ask(viewer))["viewer"]["taskId"] is None


@pytest.mark.parametrize("held", [None, *Permission])
async def test_who_may_create_may_make_tokens_and_nobody_else(serving: Serving, held: Permission | None) -> None:
    async with serving() as api:
        key = None if held is None else await api.storage.keys.create("maker", [held])
        answer = (
            await api.post({"query": document('createTaskToken(taskId: "T", scope: READ) { token }')}, key=key)
        ).json()
        if held in (Permission.CREATE, Permission.ADMIN):
            assert data(answer)["told"]["token"].startswith("spt_")
        else:
            assert code(answer) == ("UNAUTHENTICATED" if held is None else "FORBIDDEN")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1, 1), (None, 3600), (TOKEN_LIFETIME_MAX_S, TOKEN_LIFETIME_MAX_S), (0, None), (-5, None)]
)
async def test_a_token_lasts_as_long_as_was_asked_for(
    serving: Serving, seconds: int | None, expected: int | None
) -> None:
    async with serving() as api:
        before = datetime.now(UTC).replace(microsecond=0)
        # The task need not be there.
        answer = await api.ask(CREATE_TOKEN, {"id": "later", "scope": "READ", "seconds": seconds})
        if expected is None:
            assert code(answer) == "BAD_USER_INPUT"
            assert "1 to 2592000" in error(answer)["message"]
        else:
            expires_at = datetime.fromisoformat(data(answer)["createTaskToken"]["expiresAt"])
            assert timedelta() <= expires_at - before - timedelta(seconds=expected) < timedelta(seconds=20)
        assert code(await api.ask(CREATE_TOKEN, {"id": "T", "scope": "READ", "seconds": 2592001})) == "BAD_USER_INPUT"
        assert code(await api.ask(CREATE_TOKEN, {"id": "", "scope": "READ"})) == "BAD_USER_INPUT"


async def refused(api: Api, credential: str) -> str:
    """Why a credential is refused, wherever it comes."""
    response = await api.post({"query": VIEWER}, key=credential)
    assert (response.status_code, code(response.json())) == (401, "UNAUTHENTICATED")
    async with api.socket(init=False) as socket:
        await socket.say({"type": "connection_init", "payload": {"authorization": f"Bearer {credential}"}})
        assert await socket.closed() == (4403, "Forbidden")
    headers = {"Authorization": f"Bearer {credential}", "Accept": "text/event-stream"}
    response = await api.http.post(PATH, json={"query": WATCH, "variables": {"id": "T-7"}}, headers=headers)
    assert response.status_code == 401
    return str(error(response.json())["message"])


async def test_a_token_that_is_wrong_is_refused_wherever_it_comes(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api:
        good = await task_token(api)
        assert data(await api.ask(VIEWER, key=good))["viewer"]["authenticated"]
        head, claims, signature = good.split(".")
        assert "changed" in await refused(api, f"{head}.{claims[:-2]}AA.{signature}")
        assert "unknown" in await refused(api, f"spt_{'0' * 16}.{claims}.{signature}")
        assert "whole" in await refused(api, good[:-1])
        now = time.time()
        for moment, why in ((now + 3606, "expired"), (now - 10, "not valid yet")):
            monkeypatch.setattr(api.storage.task_tokens, "_clock", lambda moment=moment: moment)
            assert why in await refused(api, good)


async def test_a_task_token_is_no_bearer_token_and_none_of_those_is_a_task_token(serving: Serving) -> None:
    async with serving(jwt_secret=SECRET, task_token_secret=SECRET) as api:
        good = await task_token(api)
        head, claims, signature = good.split(".")
        # Its parts in the place of a JWT's; and whatever a JWT says, in the place of its claims.
        for credential in (f"{claims}.{claims}.{signature}", good.removeprefix("spt_"), f"x{good}"):
            await refused(api, credential)
        unsigned = token(None, "none", task="T-7")
        for forged in (unsigned, token(permissions=["ADMIN"], aud="T-7"), f"{head}.{token(permissions=['ADMIN'])}"):
            await refused(api, "spt_" + forged.removeprefix("spt_"))
        # With the secret as it is configured, which is not the key that is made of it.
        mine = jwt.encode({"sub": "T-7", "exp": 9e9}, SECRET, "HS256").split(".")
        await refused(api, f"{head}.{mine[1]}.{mine[2]}")


async def test_revoking_either_key_ends_what_was_made_with_it(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.keys.BELIEVED_S", 0.0)
    async with serving(access="closed") as api:
        await api.create("T-7")
        key = await api.storage.keys.create("backend", [Permission.CREATE])
        by_backend, by_admin = await task_token(api, key=key), await task_token(api)
        await api.storage.signing_keys.rotate()
        after = await task_token(api)
        for credential in (by_backend, by_admin, after):
            assert data(await api.ask('{ task(taskId: "T-7") { id } }', key=credential))["task"]
        await api.storage.keys.revoke("backend")
        assert "API key" in await refused(api, by_backend)
        await api.storage.signing_keys.revoke(by_admin.split(".")[0].removeprefix("spt_"))
        assert "revoked" in await refused(api, by_admin)
        assert data(await api.ask(VIEWER, key=after))["viewer"]["authenticated"]


EVENTS: Final = "events { seq actor }"


async def test_each_event_says_who_reported_it_live_and_later(serving: Serving) -> None:
    async with serving(jwt_secret=SECRET) as api, api.socket() as socket:
        await api.create("T-7")
        key = await api.storage.keys.create("worker", [Permission.REPORT])
        watch = await socket.subscribe(f'subscription {{ taskUpdates(taskId: "T-7", afterSeq: 0) {{ {EVENTS} }} }}')
        seen = data(await socket.following(watch))["taskUpdates"]["events"]
        credentials: dict[str, str | None] = {
            "worker": key,
            "user|42": token(sub="user|42", permissions=[]),
            "task-token:admin": await task_token(api),
            "": None,
        }
        for progress, credential in enumerate(credentials.values()):
            query = f'mutation {{ updateProgress(taskId: "T-7", progress: {progress}) {{ lastEvent {{ actor }} }} }}'
            answer = data((await api.post({"query": query}, key=credential)).json())
            seen += data(await socket.following(watch))["taskUpdates"]["events"]
            assert answer["updateProgress"]["lastEvent"]["actor"] == seen[-1]["actor"]
        assert [event["actor"] for event in seen] == ["admin", *list(credentials)[:3], None]
        history = data(await api.ask('{ task(taskId: "T-7") { history { seq actor } lastEvent { actor } } }'))["task"]
        assert (history["history"], history["lastEvent"]) == (seen, {"actor": None})


OTHERS: Final = (
    'addEvent(taskId: "T-7", event: { eventType: LOG, message: "m" }, idempotencyKey: "k")',
    'complete(taskId: "T-7")',
    'fail(taskId: "T-7", error: "no")',
    'cancel(taskId: "T-7")',
)


@pytest.mark.parametrize("operation", OTHERS)
async def test_every_report_has_an_actor(serving: Serving, operation: str) -> None:
    async with serving() as api:
        await api.create("T-7")
        answer = data(await api.ask(f"mutation {{ told: {operation} {{ lastEvent {{ actor }} }} }}"))
        assert answer["told"]["lastEvent"] == {"actor": "admin"}


async def test_a_repetition_under_another_credential_is_a_repetition(serving: Serving) -> None:
    query = 'mutation { updateProgress(taskId: "T-7", progress: 5, idempotencyKey: "k") { seq } }'
    async with serving() as api:
        await api.create("T-7")
        told: list[Answer] = [
            (await api.post({"query": query}, key=credential)).json()
            for credential in (api.admin_key, None, await task_token(api))
        ]
        assert [data(answer)["updateProgress"]["seq"] for answer in told] == [2, 2, 2]
        query = '{ task(taskId: "T-7") { lastEvent { actor } } }'
        assert data(await api.ask(query))["task"]["lastEvent"] == {"actor": "admin"}
