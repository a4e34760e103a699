"""Workers over the API: who may claim, what a lease is worth, and who is wakened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import pytest

from graphql_api.app import PATH
from storage import Create, CreateMany, Options, Permission, Retry, open_storage
from storage.commands import Tick
from tests.graphql_api.clients import TRANSPORTS, WAIT_S, Answer, Api, Socket, Transport, code, data, error
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_options import instant
from tests.graphql_api.test_server import program
from tests.graphql_api.test_task_tokens import CREATE_TOKEN
from tests.postgres import execute

CLAIM: Final = """
    mutation($queue: String, $worker: String!, $limit: Int, $lease: Int) {
      claim(queue: $queue, worker: $worker, limit: $limit, leaseSeconds: $lease) {
        token attempt expiresAt task { taskId status worker attempt leaseExpiresAt stale lastEvent { actor } }
      }
    }
"""
HEARTBEAT: Final = """
    mutation($id: ID!, $token: String!, $lease: Int) {
      heartbeat(taskId: $id, token: $token, leaseSeconds: $lease) { token attempt expiresAt task { status seq stale } }
    }
"""
RELEASE: Final = """
    mutation($id: ID!, $token: String!) { release(taskId: $id, token: $token) { status attempt worker progress } }
"""
READY: Final = "subscription($queue: String) { queueReady(queue: $queue) { queue ready } }"
REPORTS: Final = {
    "addEvent": 'addEvent(taskId: $id, event: { eventType: LOG, message: "m" }, token: $token) { status }',
    "updateProgress": "updateProgress(taskId: $id, progress: 5, token: $token) { status }",
    "complete": "complete(taskId: $id, token: $token) { status }",
    "fail": 'fail(taskId: $id, error: "e", token: $token) { status }',
    "cancel": "cancel(taskId: $id, token: $token) { status }",
}


def report(name: str) -> str:
    return f"mutation($id: ID!, $token: String) {{ {REPORTS[name]} }}"


async def queued(api: Api, *task_ids: str, queue: str = "default", **options: Any) -> None:
    for task_id in task_ids:
        await api.storage.writer.submit(Create(task_id=task_id, options=Options(queue=queue, **options)))


async def claimed(api: Api, **variables: Any) -> list[Answer]:
    found: list[Answer] = data(await api.ask(CLAIM, {"worker": "w", **variables}))["claim"]
    return found


async def lapse(api: Api, database: str, task_id: str) -> None:
    """Let a lease have run out, as if its time had come, but not that anything was made of it."""
    past = "now() - interval '1 second'"
    words = f"UPDATE tasks SET lease_expires_at = {past}, due_at = {past} WHERE task_id = '{task_id}'"
    await execute(database, words)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_worker_claims_reports_and_completes(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        await queued(api, "T")
        before = datetime.now(UTC)
        (claim,) = data(await ask(CLAIM, {"worker": "host 7", "lease": 100}))["claim"]
        task = claim["task"]
        assert (task["taskId"], task["status"], task["worker"]) == ("T", "IN_PROGRESS", "host 7")
        assert (claim["attempt"], task["attempt"], task["stale"]) == (1, 1, False)
        assert task["lastEvent"] == {"actor": "admin"}
        assert claim["expiresAt"] == task["leaseExpiresAt"]
        ends = datetime.fromisoformat(claim["expiresAt"])
        assert before + timedelta(seconds=100) <= ends <= datetime.now(UTC) + timedelta(seconds=100)
        assert data(await ask(CLAIM, {"worker": "w"})) == {"claim": []}
        variables = {"id": "T", "token": claim["token"]}
        for name in ("addEvent", "updateProgress"):
            assert data(await ask(report(name), variables)) == {name: {"status": "IN_PROGRESS"}}
        beat = data(await ask(HEARTBEAT, {**variables, "lease": 1000}))["heartbeat"]
        assert (beat["token"], beat["attempt"]) == (claim["token"], 1)
        # A heartbeat is no event.
        assert beat["task"] == {"status": "IN_PROGRESS", "seq": 4, "stale": False}
        assert datetime.fromisoformat(beat["expiresAt"]) > ends
        assert data(await ask(report("complete"), variables)) == {"complete": {"status": "SUCCESS"}}
        beat = data(await ask(HEARTBEAT, variables))["heartbeat"]
        assert (beat["task"]["status"], beat["task"]["stale"]) == ("SUCCESS", False)


async def test_the_default_queue_is_called_default(serving: Serving) -> None:
    async with serving() as api:
        await queued(api, "A")
        await queued(api, "B", queue="other")
        assert [claim["task"]["taskId"] for claim in await claimed(api, limit=9)] == ["A"]
        nothing = {"queue": None, "limit": None, "lease": None}
        await queued(api, "C", "D")
        assert [claim["task"]["taskId"] for claim in await claimed(api, **nothing)] == ["C"]


async def test_a_cancel_reaches_the_worker(serving: Serving) -> None:
    async with serving() as api:
        await queued(api, "T")
        (claim,) = await claimed(api)
        variables = {"id": "T", "token": claim["token"]}
        data(await api.ask('mutation { cancel(taskId: "T") { id } }'))
        assert data(await api.ask(HEARTBEAT, variables))["heartbeat"]["task"]["status"] == "CANCELED"
        answer = await api.ask(report("complete"), variables)
        assert code(answer) == "TASK_FINISHED"
        assert error(answer)["extensions"]["status"] == "CANCELED"


@pytest.mark.parametrize(
    ("end", "status"), [("complete", "SUCCESS"), ("fail", "FAILED"), ("cancel", "CANCELED"), ("expire", "FAILED")]
)
@pytest.mark.parametrize("mine", [True, False])
async def test_after_the_end_a_heartbeat_shows_it_and_brings_nothing_back(
    serving: Serving, database: str, end: str, status: str, mine: bool
) -> None:
    async with serving() as api:
        await queued(api, "T")
        (claim,) = await claimed(api)
        variables = {"id": "T", "token": claim["token"]}
        if end == "expire":
            await execute(database, "UPDATE tasks SET expires_at = now()")
            await api.storage.writer.submit(Tick(task_id="T"))
        else:
            data(await api.ask(report(end), variables if mine else {"id": "T"}))
        ended = await api.seen("T")
        beat = data(await api.ask(HEARTBEAT, {**variables, "lease": 86_400}))["heartbeat"]
        assert beat["task"]["status"] == status
        assert instant(beat["expiresAt"]) <= datetime.now(UTC)
        assert await api.seen("T") == ended
        refused = await api.ask(RELEASE, variables)
        assert code(refused) == "TASK_FINISHED"
        assert error(refused)["extensions"]["status"] == status
        assert await claimed(api) == []


async def test_a_heartbeat_that_asks_for_less_than_is_left_changes_nothing(serving: Serving) -> None:
    async with serving() as api:
        await queued(api, "T")
        (claim,) = await claimed(api, lease=100)
        variables = {"id": "T", "token": claim["token"]}
        less = data(await api.ask(HEARTBEAT, {**variables, "lease": 1}))["heartbeat"]
        assert less["expiresAt"] == claim["expiresAt"]
        more = data(await api.ask(HEARTBEAT, {**variables, "lease": 200}))["heartbeat"]
        assert instant(more["expiresAt"]) > instant(claim["expiresAt"])


@pytest.mark.parametrize("options", [None, Options(), Options(queue="q")])
async def test_nobody_holds_what_nobody_has_claimed(serving: Serving, options: Options | None) -> None:
    async with serving() as api:
        await api.storage.writer.submit(Create(task_id="T", options=options))
        for document in (HEARTBEAT, RELEASE, *map(report, REPORTS)):
            assert code(await api.ask(document, {"id": "T", "token": "t"})) == "LEASE_LOST", document
        assert data(await api.ask('{ task(taskId: "T") { seq status } }')) == {"task": {"seq": 1, "status": "PENDING"}}


async def test_what_is_given_back_did_not_count(serving: Serving) -> None:
    async with serving() as api:
        await queued(api, "T")
        (claim,) = await claimed(api)
        variables = {"id": "T", "token": claim["token"]}
        await api.report("T", 50)
        released = data(await api.ask(RELEASE, variables))["release"]
        assert released == {"status": "PENDING", "attempt": 0, "worker": None, "progress": 0}
        assert code(await api.ask(RELEASE, variables)) == "LEASE_LOST"
        assert [claim["attempt"] for claim in await claimed(api)] == [1]


async def test_a_lease_that_ran_out_is_stale_and_then_another_worker_s(serving: Serving, database: str) -> None:
    show = "query($id: ID!) { task(taskId: $id) { status stale worker attempt } }"
    async with serving() as api:
        await queued(api, "T", retry=Retry(max_attempts=2, initial_s=0))
        (first,) = await claimed(api, worker="first")
        await lapse(api, database, "T")
        stale = {"status": "IN_PROGRESS", "stale": True, "worker": "first", "attempt": 1}
        assert data(await api.ask(show, {"id": "T"}))["task"] == stale
        await api.storage.writer.submit(Tick(task_id="T"))
        (second,) = await claimed(api, worker="second")
        assert second["attempt"] == 2
        seen = await api.seen("T")
        for name in REPORTS:
            answer = await api.ask(report(name), {"id": "T", "token": first["token"]})
            assert code(answer) == "LEASE_LOST", name
        for document in (HEARTBEAT, RELEASE):
            assert code(await api.ask(document, {"id": "T", "token": first["token"]})) == "LEASE_LOST"
        assert await api.seen("T") == seen
        assert data(await api.ask(report("complete"), {"id": "T", "token": second["token"]}))


@pytest.mark.parametrize("token", ["stale", "of another task", ""])
async def test_a_token_is_good_for_its_lease_alone(serving: Serving, token: str) -> None:
    async with serving() as api:
        await queued(api, "T", "U")
        mine, other = await claimed(api, limit=2)
        shown = other["token"] if token == "of another task" else token
        expected = "LEASE_LOST" if token else "BAD_USER_INPUT"
        for document in (*map(report, REPORTS), HEARTBEAT, RELEASE):
            answer = await api.ask(document, {"id": mine["task"]["taskId"], "token": shown})
            assert code(answer) == expected, document
        # Nobody is kept from reporting without one.
        assert data(await api.ask(report("updateProgress"), {"id": "T", "token": None}))


async def test_what_is_out_of_bounds_is_refused(serving: Serving) -> None:
    async with serving() as api:
        await queued(api, "T")
        for variables, words in (
            ({"limit": 0}, "limit must be 1 to 100, got 0."),
            ({"limit": 101}, "limit must be 1 to 100, got 101."),
            ({"limit": 10_000}, "limit must be 1 to 100, got 10000."),
            ({"lease": 0}, "leaseSeconds must be 1 to 86400, got 0."),
            ({"lease": 86_401}, "leaseSeconds must be 1 to 86400, got 86401."),
            ({"queue": ""}, "queue must have 1 to 64 characters, got 0."),
            ({"queue": "q" * 65}, "queue must have 1 to 64 characters, got 65."),
            ({"worker": ""}, "worker must have 1 to 255 characters, got 0."),
            ({"worker": "w\0"}, "worker must not hold NUL"),
        ):
            answer = await api.ask(CLAIM, {"worker": "w", **variables})
            assert code(answer) == "BAD_USER_INPUT", variables
            assert words in error(answer)["message"]
        assert len(await claimed(api, limit=100, lease=86_400, worker="w" * 255)) == 1
        for lease_s in (0, 86_401):
            answer = await api.ask(HEARTBEAT, {"id": "T", "token": "t", "lease": lease_s})
            assert error(answer)["message"] == f"leaseSeconds must be 1 to 86400, got {lease_s}."
        assert code(await api.ask(HEARTBEAT, {"id": "nobody", "token": "t"})) == "TASK_NOT_FOUND"


async def test_who_claims_needs_a_credential_that_allows_reports(serving: Serving) -> None:
    async with serving() as api:
        await queued(api, "T")
        for permission, allowed in ((Permission.READ, False), (Permission.REPORT, True)):
            key = await api.storage.keys.create(str(permission), [permission])
            answer = await api.ask(CLAIM, {"worker": "w"}, key=key)
            assert ("errors" not in answer) == allowed
            assert allowed or code(answer) == "FORBIDDEN"
        # Everybody may report under this policy, on a task whose ID he knows; a claim would tell him one.
        anybody = (await api.post({"query": CLAIM, "variables": {"worker": "w"}})).json()
        assert code(anybody) == "UNAUTHENTICATED"
        made = data(await api.ask(CREATE_TOKEN, {"id": "T", "scope": "REPORT"}))["createTaskToken"]["token"]
        assert code(await api.ask(CLAIM, {"worker": "w"}, key=made)) == "FORBIDDEN"
        for credential in (None, made):
            async with api.socket(key=credential) as socket:
                operation = await socket.subscribe(READY)
                refused = await socket.take()
                assert (refused["id"], refused["type"]) == (operation, "error")
                assert refused["payload"][0]["extensions"]["code"] == ("FORBIDDEN" if credential else "UNAUTHENTICATED")


async def test_a_task_token_may_keep_its_lease_alive(serving: Serving) -> None:
    async with serving(access="closed") as api:
        await queued(api, "T", "U")
        claims = await claimed(api, limit=2)
        made = data(await api.ask(CREATE_TOKEN, {"id": "T", "scope": "REPORT"}))["createTaskToken"]["token"]
        tokens = {claim["task"]["taskId"]: claim["token"] for claim in claims}
        for document in (HEARTBEAT, report("updateProgress"), RELEASE):
            answer = await api.ask(document, {"id": "U", "token": tokens["U"]}, key=made)
            assert code(answer) == "FORBIDDEN"
            assert data(await api.ask(document, {"id": "T", "token": tokens["T"]}, key=made))


async def ready(socket: Socket, operation: str) -> int:
    answer = data(await socket.following(operation))["queueReady"]
    assert isinstance(answer["ready"], int)
    return answer["ready"]


async def test_who_waits_is_wakened(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphql_api.leases.COUNT_EVERY_S", WAIT_S * 2)
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        operation = await socket.subscribe(READY, {"queue": "q"})
        assert await ready(socket, operation) == 0
        await queued(api, "elsewhere")
        await queued(api, "A", queue="q")
        assert await ready(socket, operation) == 1
        await queued(api, "B", queue="q")
        assert await ready(socket, operation) == 2
        (claim,) = await claimed(api, queue="q")
        await api.ask(RELEASE, {"id": "A", "token": claim["token"]})
        assert await ready(socket, operation) == 2
        await socket.say({"type": "complete", "id": operation})
        assert code(await socket.ask("query { nothing }")) == "GRAPHQL_VALIDATION_FAILED"
        assert api.storage.queues._ears == {}


async def test_who_heard_nothing_finds_out(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphql_api.leases.COUNT_EVERY_S", 0.05)
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        operation = await socket.subscribe(READY)
        assert await ready(socket, operation) == 0
        monkeypatch.setattr(api.storage.queues, "wake", lambda queues: None)
        await queued(api, "T")
        assert await ready(socket, operation) == 1


async def test_a_queue_of_a_bad_name_is_refused_at_once(serving: Serving) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        await socket.subscribe(READY, {"queue": ""})
        refused = await socket.take()
        assert refused["type"] == "error"
        assert refused["payload"][0]["message"] == "queue must have 1 to 64 characters, got 0."


# Two servers, as processes.


@asynccontextmanager
async def servers(database: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of two servers, who may report."""
    async with open_storage(database) as storage:
        key = await storage.keys.create("worker", [Permission.REPORT])
        many = (Create(task_id=f"T{n:03}", options=Options(queue="many")) for n in range(200))
        await storage.writer.create_many(CreateMany(tasks=tuple(many)))
    async with AsyncExitStack() as stack:
        urls = []
        for _ in range(2):
            server = await stack.enter_async_context(program("serve", SPECTRAL_DATABASE_URL=database))
            urls.append(await server.url())
        headers = {"Authorization": f"Bearer {key}"}
        clients = [
            httpx.AsyncClient(base_url=url.removesuffix(PATH), headers=headers, timeout=WAIT_S, trust_env=False)
            for url in urls
        ]
        yield [await stack.enter_async_context(client) for client in clients]


async def ask(client: httpx.AsyncClient, query: str, **variables: Any) -> Answer:
    return data((await client.post(PATH, json={"query": query, "variables": variables})).json())


async def test_workers_of_two_servers_share_a_queue_and_are_wakened_by_each(database: str) -> None:
    async with servers(database) as clients:
        done: list[str] = []

        async def work(client: httpx.AsyncClient, name: str) -> None:
            while found := (await ask(client, CLAIM, queue="many", worker=name, limit=7))["claim"]:
                for claim in found:
                    task_id = claim["task"]["taskId"]
                    await ask(client, report("updateProgress"), id=task_id, token=claim["token"])
                    await ask(client, report("complete"), id=task_id, token=claim["token"])
                    done.append(task_id)

        await asyncio.gather(*(work(client, f"{n}") for n in range(3) for client in clients))
        assert sorted(done) == [f"T{n:03}" for n in range(200)]

        first, second = clients
        body = {"query": READY, "variables": {"queue": "q"}}
        async with first.stream("POST", PATH, json=body, headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.aiter_lines()

            async def until_ready(count: int) -> None:
                async with asyncio.timeout(WAIT_S):
                    async for line in lines:
                        if f'"ready":{count}' in line:
                            return

            await until_ready(0)
            async with open_storage(database) as storage:
                creator = await storage.keys.create("maker", [Permission.CREATE])
            response = await second.post(
                PATH,
                json={"query": 'mutation { create(taskId: "new", options: { queue: "q" }) { id } }'},
                headers={"Authorization": f"Bearer {creator}"},
            )
            data(response.json())
            await until_ready(1)
        assert len((await ask(first, CLAIM, queue="q", worker="w"))["claim"]) == 1


async def test_a_task_whose_worker_is_gone_is_given_to_another_in_time(database: str) -> None:
    async with servers(database) as (first, second):
        async with open_storage(database) as storage:
            retry = Retry(max_attempts=2, initial_s=0)
            await storage.writer.submit(Create(task_id="T", options=Options(queue="q", retry=retry)))
        (lost,) = (await ask(first, CLAIM, queue="q", worker="gone", lease=1))["claim"]
        ends = datetime.fromisoformat(lost["expiresAt"])
        body = {"query": READY, "variables": {"queue": "q"}}
        async with second.stream("POST", PATH, json=body, headers={"Accept": "text/event-stream"}) as stream:
            async with asyncio.timeout(WAIT_S):
                async for line in stream.aiter_lines():
                    if '"ready":1' in line:
                        break
        assert ends < datetime.now(UTC) < ends + timedelta(seconds=5)
        found = (await ask(second, CLAIM, queue="q", worker="next"))["claim"]
        assert found[0]["attempt"] == 2
        answer = (
            await first.post(PATH, json={"query": report("complete"), "variables": {"id": "T", "token": lost["token"]}})
        ).json()
        assert code(answer) == "LEASE_LOST"
