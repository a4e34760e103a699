"""What one client can do to a server: each bound is met, and one below it passes."""

import asyncio
import json
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, cast

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

from graphql_api.admission import Admission, Places
from graphql_api.app import PATH
from graphql_api.auth import Viewer
from graphql_api.context import Context
from graphql_api.errors import RateLimited, Unauthenticated
from graphql_api.execution.deadlines import IN_A_ROW, Deadlines
from graphql_api.execution.operations import read_operations
from graphql_api.settings import Settings
from graphql_api.wire.websocket import WebSocket
from storage import Create, Filter, Permission, StartupError, Storage, Unavailable
from tests.graphql_api.clients import TRANSPORTS, WAIT_S, Answer, Api, Transport, code, data, error
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_access import SECRET
from tests.graphql_api.test_access import token as bearer_token
from tests.graphql_api.test_over_http import GRAPHQL_JSON, JSON, exchange
from tests.graphql_api.test_task_tokens import task_token
from tests.graphql_api.test_vigil import renew
from tests.graphql_api.test_wire import raw_socket
from tests.postgres import session

both = pytest.mark.parametrize("transport", TRANSPORTS)
QUERY: Final = "{ viewer { name } }"
NOBODY: Final = Viewer(None, authenticated=False, permissions=frozenset())
BODY: Final = json.dumps({"query": QUERY}).encode()


# Complexity.


@both
@pytest.mark.parametrize("execution", ["compiled", "interpreted"])
async def test_an_operation_has_a_bound_on_what_it_costs(
    serving: Serving, transport: Transport, execution: str, subtests: pytest.Subtests
) -> None:
    by_number = '{{ task(taskId: "T") {{ history(first: {0}) {{ seq }} }} }}'
    cases: dict[str, tuple[str, dict[str, Any], bool]] = {
        # task, history, and 98 times seq.
        "the bound": (by_number.format(98), {}, True),
        "beyond": (by_number.format(99), {}, False),
        "last": (by_number.format(99).replace("first", "last"), {}, False),
        "a page of the usual size": ('{ task(taskId: "T") { history { seq } } }', {}, True),
        "two fields of it": ('{ task(taskId: "T") { history { seq id } } }', {}, False),
        # tasks, nodes, and 14 times taskId, history and five times seq.
        "a list in a list": ("{ tasks(first: 14) { nodes { id history(first: 5) { seq } } } }", {}, True),
        "a larger list in a list": ("{ tasks(first: 15) { nodes { id history(first: 5) { seq } } } }", {}, False),
        "edges": ("{ tasks(first: 15) { edges { node { history(first: 5) { seq } } } } }", {}, False),
        "fragments": (
            (
                "{ tasks(first: 15) { ...A } } fragment A on TaskConnection { nodes { ... on Task { id ...B } } }"
                " fragment B on Task { history(first: 5) { seq } }"
            ),
            {},
            False,
        ),
        "a variable": ("query($n: Int) { tasks(first: $n) { nodes { id } } }", {"n": 98}, True),
        "a larger variable": ("query($n: Int) { tasks(first: $n) { nodes { id } } }", {"n": 99}, False),
        "a variable that has a default": ("query($n: Int = 99) { tasks(first: $n) { nodes { id } } }", {}, False),
        "a variable that is left out": ("query($n: Int) { tasks(first: $n) { nodes { id } } }", {}, True),
        "a variable within": (
            "query($n: Int) { tasks(first: 14) { nodes { id history(last: $n) { seq } } } }",
            {"n": 5},
            True,
        ),
        "a larger variable within": (
            "query($n: Int, $m: Int) { tasks(first: $m) { nodes { id history(last: $n) { seq } } } }",
            {"n": 6, "m": 14},
            False,
        ),
        "the schema": ('{ __type(name: "Task") { fields { name } } }', {}, True),
    }
    async with serving(complexity_max=100, execution=execution) as api, api.over(transport) as ask:
        await api.create("T")
        for name, (query, variables, passes) in cases.items():
            with subtests.test(name):
                answer = await ask(query, variables)
                if passes:
                    assert answer.keys() == {"data"}
                else:
                    assert code(answer) == "TOO_LARGE"
                    assert "at most 100" in error(answer)["message"]
                    assert "data" not in answer
        # A page of no size is for who reads it to refuse.
        for size in (-5, 5_000):
            answer = await ask(
                f'{{ viewer {{ name }} task(taskId: "T") {{ history(first: {size}) {{ __typename }} }} }}'
            )
            assert code(answer) == ("BAD_USER_INPUT" if size < 0 else "TOO_LARGE")


async def test_the_usual_bound_lets_pages_through_and_not_pages_of_pages(serving: Serving) -> None:
    every = "id taskId status progress metadata seq createdBy createdAt updatedAt startedAt completedAt failedAt"
    async with serving() as api:
        whole = f"{{ tasks(first: 1000) {{ nodes {{ {every} lastEvent {{ id seq eventType message timestamp }} }} }} }}"
        assert data(await api.ask(whole))
        assert data(await api.ask("{ tasks(first: 48) { nodes { history(first: 1000) { seq } } } }"))
        answer = await api.ask("{ tasks(first: 100) { nodes { history(first: 1000) { seq } } } }")
        assert error(answer)["message"].startswith("An operation may cost at most 50000, and this one costs 100102:")


# Rates.


async def statuses_until_refused(api: Api, *, pieces: int = 1, **headers: str) -> tuple[int, Any]:
    """How many requests were answered before one was refused, and that one."""
    sent: dict[str, str | None] = {"Content-Type": JSON, "Accept": GRAPHQL_JSON, **headers}
    for number in range(1_000):
        answer = await exchange(api, "POST", sent, BODY, pieces=pieces)
        if answer.status != 200:
            return number, answer
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("pieces", [1, 2])
async def test_one_address_sends_so_many_operations_and_no_more(serving: Serving, pieces: int) -> None:
    async with serving(unlimited_addresses=(), operations_per_second_per_address_max=1) as api:
        passed, answer = await statuses_until_refused(api, pieces=pieces)
        assert passed >= 5
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        refused = json.loads(answer.body)
        assert code(refused) == "RATE_LIMITED"
        assert 0 < error(refused)["extensions"]["retryAfterMs"] <= 1_000
        assert "1 operations a second" in error(refused)["message"]
        # Nothing of it was read.
        answer = await exchange(api, "POST", {"Content-Type": "text/plain"}, b"{", pieces=pieces)
        assert answer.status == 429
        assert (await api.http.get("/healthz")).status_code == 200


async def test_one_credential_sends_so_many_operations_and_no_more(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), operations_per_second_per_credential_max=1) as api:
        passed, answer = await statuses_until_refused(api, Authorization=f"Bearer {api.admin_key}")
        assert passed >= 5
        assert code(json.loads(answer.body)) == "RATE_LIMITED"
        assert "One credential" in error(json.loads(answer.body))["message"]
        # Whoever has none is not that one.
        assert (await api.post({"query": QUERY})).status_code == 200


@pytest.mark.parametrize("kind", ["task token", "bearer token"])
async def test_a_credential_is_one_however_it_is_written(serving: Serving, kind: str) -> None:
    async with serving(unlimited_addresses=(), operations_per_second_per_credential_max=1, jwt_secret=SECRET) as api:
        credential = await task_token(api) if kind == "task token" else bearer_token()
        for number in range(1_000):
            scheme = ("Bearer", "bearer", "BEARER")[number % 3] + " " * (1 + number % 50)
            response = await api.post({"query": QUERY}, headers={"Authorization": scheme + credential})
            if response.status_code == 429:
                break
        # Long before the ways to write it come to an end, which are 150.
        assert 5 <= number < 100


async def test_nobody_uses_up_what_another_of_the_same_name_may(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), operations_per_second_per_credential_max=1, jwt_secret=SECRET) as api:
        await statuses_until_refused(api, Authorization=f"Bearer {bearer_token(sub='admin')}")
        assert (await api.post({"query": QUERY}, key=api.admin_key)).status_code == 200


async def test_the_operations_of_sockets_are_counted_with_all_others(serving: Serving) -> None:
    async with (
        serving(unlimited_addresses=(), operations_per_second_per_address_max=1) as api,
        api.socket() as one,
        api.socket() as other,
    ):
        for _ in range(1_000):
            answer = await one.ask(QUERY)
            if "errors" in answer:
                break
        assert code(answer) == "RATE_LIMITED"
        assert error(answer)["extensions"]["retryAfterMs"] > 0
        # The socket stays open, and what costs nothing is answered.
        for socket in (one, other):
            await socket.say({"type": "ping"})
            assert await socket.take() == {"type": "pong"}
        assert (await exchange(api, "POST", {"Content-Type": JSON}, BODY)).status in (200, 429)


async def test_a_stream_counts_once_whichever_way_it_comes(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), operations_per_second_per_address_max=1) as api:
        headers: dict[str, str | None] = {"Content-Type": JSON, "Accept": "text/event-stream"}
        body = b'{"query":"subscription { taskUpdates(taskId: \\"nobody\\") { type } }"}'
        for _ in range(5):
            assert (await exchange(api, "POST", headers, body)).status == 200


async def test_whoever_is_not_limited_is_not_counted(serving: Serving) -> None:
    async with serving(operations_per_second_per_address_max=1, operations_per_second_per_credential_max=1) as api:
        for _ in range(30):
            assert data(await api.ask(QUERY))
    async with serving(
        unlimited_addresses=(), operations_per_second_per_address_max=0, operations_per_second_per_credential_max=0
    ) as api:
        for _ in range(30):
            assert data(await api.ask(QUERY))


CREATE_MANY: Final = "mutation ($tasks: [NewTask!]!) { createMany(tasks: $tasks) { taskId } }"
REPORTS: Final = "mutation ($reports: [TaskReport!]!) { report(reports: $reports) { error { code } } }"
DELETE_MANY: Final = "mutation { deleteMany(filter: {status: [PENDING]}) }"


@both
@pytest.mark.parametrize("execution", ["compiled", "interpreted"])
@pytest.mark.parametrize("kind", ["address", "credential"])
async def test_a_batch_counts_as_its_items(
    serving: Serving, transport: Transport, execution: str, kind: Literal["address", "credential"]
) -> None:
    rate: dict[str, Any] = {f"operations_per_second_per_{kind}_max": 2}
    async with (
        serving(unlimited_addresses=(), execution=execution, **rate) as api,
        api.over(transport) as ask,
    ):
        # More than the ten that may be done at once: when nothing was done before, the rest is owed.
        tasks = [{"taskId": f"{number}"} for number in range(100)]
        assert len(data(await ask(CREATE_MANY, {"tasks": tasks}))["createMany"]) == 100
        refused = await api.post({"query": QUERY}, key=api.admin_key)
        assert (refused.status_code, code(refused.json())) == (429, "RATE_LIMITED")
        assert 30_000 < error(refused.json())["extensions"]["retryAfterMs"] <= 45_500


@both
@pytest.mark.parametrize("execution", ["compiled", "interpreted"])
async def test_a_batch_that_is_too_much_is_refused_before_anything_is_done(
    serving: Serving, transport: Transport, execution: str
) -> None:
    async with (
        serving(unlimited_addresses=(), execution=execution, operations_per_second_per_credential_max=20) as api,
        api.over(transport) as ask,
    ):
        for number in range(120):
            await api.storage.writer.submit(Create(task_id=f"{number}"))
        # A hundred may be done at once, and most of that was.
        reports = [{"taskId": f"{number}", "progress": 5} for number in range(95)]
        assert len(data(await ask(REPORTS, {"reports": reports}))["report"]) == 95
        batches: list[tuple[str, dict[str, Any]]] = [
            (CREATE_MANY, {"tasks": [{"taskId": f"new {number}"} for number in range(1_000)]}),
            (REPORTS, {"reports": [{"taskId": f"{number}", "progress": 5} for number in range(1_000)]}),
            (DELETE_MANY, {}),
        ]
        for query, variables in batches:
            answer = await ask(query, variables)
            assert code(answer) == "RATE_LIMITED"
            assert 0 < error(answer)["extensions"]["retryAfterMs"] <= 5_000
            assert "Each item of a batch is one." in error(answer)["message"]
        page = await api.storage.reader.page(1_000, None, Filter())
        assert sorted(task.seq for task in page.tasks) == [1] * 25 + [2] * 95
        # What is left is for who asks for less.
        assert len(data(await ask(REPORTS, {"reports": reports[:2]}))["report"]) == 2


async def test_a_large_deletion_ends_where_the_rate_does(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphql_api.batches.DELETED_TOGETHER", 10)
    async with serving(unlimited_addresses=(), operations_per_second_per_credential_max=3) as api:
        for number in range(100):
            await api.storage.writer.submit(Create(task_id=f"{number}"))
        # Fifteen at once: there was room for the first page.
        assert data(await api.ask(DELETE_MANY))["deleteMany"] == 10
        assert len((await api.storage.reader.page(1_000, None, Filter())).tasks) == 90


def test_several_batches_in_one_operation_cost_as_much_as_each_in_its_own() -> None:
    counted: list[int] = []
    context = Context(cast("Storage", None), NOBODY, count_more=counted.append)
    for items in (0, 1, 3, 0, 1):
        context.count(items)
    # The first was counted when it came.
    assert counted == [3, 1]


def test_what_the_credential_may_not_is_not_counted_for_the_address() -> None:
    now = 0.0
    settings = Settings(
        unlimited_addresses=(), operations_per_second_per_address_max=4, operations_per_second_per_credential_max=2
    )
    admission = Admission(settings, cast("Any", None), clock=lambda: now)
    known = Viewer("K", authenticated=True, permissions=frozenset(), key_id="K")
    # Each may do one thing in a moment, beside what is asked for here: 20 in all, and 10 with the key.
    admission.begin("203.0.113.7")
    admission.count_more(known, "Bearer spn_K", "203.0.113.7", 9)
    for _ in range(10):
        with pytest.raises(RateLimited, match="One credential"):
            admission.count_more(known, "Bearer spn_K", "203.0.113.7", 2)
    admission.count_more(NOBODY, None, "203.0.113.7", 10)
    with pytest.raises(RateLimited, match="One address"):
        admission.count_more(NOBODY, None, "203.0.113.7", 1)


async def test_clients_behind_a_trusted_proxy_are_counted_each(serving: Serving) -> None:
    async with serving(trusted_proxies=("127.0.0.1",), operations_per_second_per_address_max=1) as api:
        # What it writes to the left of what the proxy knows makes it nobody else.
        passed = 0
        for number in range(1_000):
            headers = {"X-Forwarded-For": f"203.0.113.{number % 200}, 192.0.2.1"}
            if (await api.post({"query": QUERY}, headers=headers)).status_code == 429:
                break
            passed += 1
        assert 5 <= passed < 1_000
        assert (await api.post({"query": QUERY}, headers={"X-Forwarded-For": "192.0.2.2"})).status_code == 200
        assert (await api.post({"query": QUERY})).status_code == 200


# Sign-ins.


async def test_wrong_credentials_from_one_address_are_looked_at_so_often_and_no_more(serving: Serving) -> None:
    async def status(credential: str) -> int:
        return (await api.post({"query": QUERY}, key=credential)).status_code

    async with serving(unlimited_addresses=(), failed_sign_ins_per_minute_per_address_max=3) as api:
        fresh = await api.storage.keys.create("fresh", [Permission.READ])
        assert await status(api.admin_key) == 200
        # The same wrong one is one guess, however often it comes.
        assert [await status("spn_old") for _ in range(10)] == [401] * 10
        assert [await status(f"spn_{number}") for number in range(2)] == [401] * 2
        response = await api.post({"query": QUERY}, key="spn_2")
        assert (response.status_code, code(response.json())) == (429, "RATE_LIMITED")
        assert int(response.headers["retry-after"]) <= 20
        assert "3 wrong credentials" in error(response.json())["message"]
        # Who was good lately, or brings no credential, is served; who could be a guess is not.
        assert await status(api.admin_key) == 200
        assert (await api.post({"query": QUERY})).status_code == 200
        assert await status(fresh) == 429
        async with api.socket(init=False) as socket:
            await socket.say({"type": "connection_init", "payload": {"Authorization": "Bearer spn_3"}})
            assert (await socket.closed())[0] == 1013
        async with api.socket(key=api.admin_key) as socket:
            assert data(await socket.ask(QUERY))["viewer"] == {"name": "admin"}


async def test_a_good_credential_that_ends_is_a_guess_like_others(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.keys.BELIEVED_S", 0.0)
    async with serving(unlimited_addresses=(), failed_sign_ins_per_minute_per_address_max=1) as api:
        key = await api.storage.keys.create("ends", [Permission.READ])
        assert (await api.post({"query": QUERY}, key=key)).status_code == 200
        await api.storage.keys.revoke("ends")
        assert (await api.post({"query": QUERY}, key=key)).status_code == 401
        assert (await api.post({"query": QUERY}, key=key)).status_code == 429


class SlowDoor:
    """Takes its time to find that each credential is wrong."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def viewer(self, _: str | None) -> Any:
        await self.open.wait()
        raise Unauthenticated("wrong")


async def test_wrong_credentials_that_come_at_once_all_count() -> None:
    door: Any = SlowDoor()
    admission = Admission(Settings(failed_sign_ins_per_minute_per_address_max=60), door, clock=lambda: 1_000.0)
    looks = [asyncio.create_task(admission.sign_in(f"Bearer spn_{number}", "192.0.2.1")) for number in range(90)]
    await asyncio.sleep(0)
    door.open.set()
    for outcome in await asyncio.gather(*looks, return_exceptions=True):
        assert isinstance(outcome, Unauthenticated)
    with pytest.raises(RateLimited) as refused:
        await admission.sign_in("Bearer spn_late", "192.0.2.1")
    # One a second, and there were 30 too many.
    assert refused.value.retry_after_s == pytest.approx(31)


@pytest.mark.parametrize("kind", ["task token", "bearer token"])
async def test_a_token_that_has_expired_is_no_guess(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async with serving(unlimited_addresses=(), failed_sign_ins_per_minute_per_address_max=1, jwt_secret=SECRET) as api:
        tokens = [
            await task_token(api, task_id=f"T-{number}")
            if kind == "task token"
            else bearer_token(sub=str(number), exp=time.time() - 60)
            for number in range(5)
        ]
        monkeypatch.setattr(api.storage.task_tokens, "_clock", lambda: time.time() + 4_000)
        for token in tokens:
            response = await api.post({"query": QUERY}, key=token)
            assert (response.status_code, "expired" in error(response.json())["message"]) == (401, True)
        assert (await api.post({"query": QUERY}, key=api.admin_key)).status_code == 200


# Sockets.


async def test_one_address_has_so_many_sockets_and_no_more(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), sockets_per_address_max=2) as api, AsyncExitStack() as stack:
        first = await stack.enter_async_context(api.socket(init=False))
        await stack.enter_async_context(api.socket())
        with pytest.raises(InvalidStatus) as refused:
            await stack.enter_async_context(api.socket())
        assert (refused.value.response.status_code, refused.value.response.headers["retry-after"]) == (429, "10")
        await first.wire.close()
        await first_that_is_let_in(stack, api)
        with pytest.raises(InvalidStatus):
            await stack.enter_async_context(api.socket())


async def test_one_credential_has_so_many_sockets_and_no_more(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), sockets_per_credential_max=2) as api, AsyncExitStack() as stack:
        first = await stack.enter_async_context(api.socket(key=api.admin_key))
        await stack.enter_async_context(api.socket(key=api.admin_key))
        # Whoever has none is not that one.
        await stack.enter_async_context(api.socket())
        async with api.socket(init=False) as socket:
            await socket.say({"type": "connection_init", "payload": {"Authorization": f"Bearer {api.admin_key}"}})
            assert await socket.closed() == (1013, "One credential may have 2 sockets and streams open.")
        await first.wire.close()
        await first_that_is_let_in(stack, api, key=api.admin_key)


async def test_a_socket_that_renews_is_counted_by_the_credential_that_it_has_then(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), sockets_per_credential_max=1) as api, AsyncExitStack() as stack:
        first = await stack.enter_async_context(api.socket())
        second = await stack.enter_async_context(api.socket())
        assert (await renew(first, api.admin_key))["authorization"] == "accepted"
        assert (await renew(first, api.admin_key))["authorization"] == "accepted"
        refused = await renew(second, api.admin_key)
        assert (refused["authorization"], refused["error"]["extensions"]["code"]) == ("refused", "RATE_LIMITED")
        assert data(await second.ask(QUERY))["viewer"] == {"name": None}
        # By another one it has another's place.
        assert (await renew(first, await task_token(api)))["authorization"] == "accepted"
        assert (await renew(second, api.admin_key))["authorization"] == "accepted"


async def test_a_renewal_is_counted_as_an_operation(serving: Serving) -> None:
    async with serving(unlimited_addresses=(), operations_per_second_per_address_max=1) as api, api.socket() as socket:
        answers = [await renew(socket, api.admin_key) for _ in range(50)]
        assert [answer["authorization"] for answer in answers[:5]] == ["accepted"] * 5
        assert answers[-1]["error"]["extensions"]["code"] == "RATE_LIMITED"


@pytest.mark.parametrize("kind", ["address", "credential"])
async def test_event_streams_are_counted_like_sockets(serving: Serving, kind: str) -> None:
    settings: dict[str, Any] = {"unlimited_addresses": (), f"sockets_per_{kind}_max": 1}
    async with serving(**settings) as api:
        await api.create("T")
        headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {api.admin_key}"}
        body = {"query": 'subscription { taskUpdates(taskId: "T") { type } }'}
        async with api.http.stream("POST", PATH, json=body, headers=headers) as stream:
            assert stream.status_code == 200
            refused = await api.http.post(PATH, json=body, headers=headers)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
            assert f"One {kind} may have 1 sockets and streams open" in error(refused.json())["message"]
            async with AsyncExitStack() as stack:
                if kind == "address":
                    with pytest.raises(InvalidStatus):
                        await stack.enter_async_context(api.socket())
            await api.complete("T")
            assert "event: complete" in (await stream.aread()).decode()
        async with asyncio.timeout(WAIT_S):
            # The server may be a step behind in giving the place back.
            while (await api.http.post(PATH, json=body, headers=headers)).status_code != 200:
                pass


async def first_that_is_let_in(stack: AsyncExitStack, api: Api, **options: Any) -> None:
    """Try until the place that was given back is free."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(InvalidStatus, ConnectionClosed):
                await stack.enter_async_context(api.socket(**options))
                return


async def test_a_socket_that_breaks_off_in_its_handshake_gives_back_nobody_elses_place(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked for when it is chosen, and when it is opened; of a connection that is gone nobody knows the address.
    peers = iter([None, None, "192.0.2.1", None, None, None])
    monkeypatch.setattr(WebSocket, "peer", property(lambda _: next(peers)))
    async with serving(unlimited_addresses=(), sockets_per_address_max=1) as api, api.socket():
        async with api.socket():
            pass
        with pytest.raises(InvalidStatus, match="429"):
            await api.socket().__aenter__()


def test_places_that_are_given_back_leave_nothing_behind() -> None:
    places = Places("address", 2)
    for name in ("a", "a", "b"):
        places.take(name)
    with pytest.raises(RateLimited, match="One address may have 2 sockets"):
        places.take("a")
    for name in ("a", "b", "a"):
        places.give_back(name)
    assert places.names == 0
    places.take("a")


def test_places_without_a_bound_are_not_counted() -> None:
    for places, name in ((Places("address", 0), "a"), (Places("address", 1), None)):
        places.take(name)
        places.take(name)
        places.give_back(name)
        assert places.names == 0


async def test_a_socket_that_is_not_used_is_closed_and_one_that_is_used_is_not(serving: Serving) -> None:
    async with serving(socket_idle_timeout_ms=100) as api:
        await api.create("T")
        async with api.socket() as busy, api.socket() as idle, api.socket() as done:
            watch = await busy.watch("T")
            await busy.update(watch)
            assert data(await done.ask(QUERY))
            assert await idle.closed() == (4410, "No operation for 0.1 s")
            assert await done.closed() == (4410, "No operation for 0.1 s")
            # The one that watches has been open for longer.
            await api.complete("T")
            assert [update["type"] for update in await busy.updates(watch)] == ["COMPLETE"]
            assert (await busy.closed())[0] == 4410
    async with serving(socket_idle_timeout_ms=0) as api, api.socket() as socket:
        assert data(await socket.ask(QUERY))


async def test_many_who_are_late_are_told_so_with_turns_for_others_and_without_anybodys_context() -> None:
    turn = 0
    bound: ContextVar[str | None] = ContextVar("bound", default=None)
    told: list[tuple[int, str | None]] = []
    deadlines = Deadlines[int](0.01, lambda _: told.append((turn, bound.get())))
    bound.set("the first")
    for number in range(2 * IN_A_ROW + 1):
        deadlines.begin(number)
    while len(told) <= 2 * IN_A_ROW:
        turn += 1
        await asyncio.sleep(0)
    assert max(Counter(told).values()) == IN_A_ROW
    assert {name for _, name in told} == {None}


async def test_a_socket_that_is_closed_while_its_credential_is_looked_at_is_closed_once(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    looked, gone = asyncio.Event(), asyncio.Event()

    async def sign_in(*_: Any) -> Viewer:
        await gone.wait()
        looked.set()
        raise Unavailable("away")

    monkeypatch.setattr(Admission, "sign_in", sign_in)
    async with serving(connection_init_timeout_ms=100) as api, api.socket(init=False) as socket:
        await socket.say({"type": "connection_init", "payload": {"authorization": "Bearer x"}})
        assert (await socket.closed())[0] == 4408
        gone.set()
        await looked.wait()
        await asyncio.sleep(0)
        assert caplog.text.count("A socket was closed") == 1


@pytest.mark.parametrize("kind", ["messages", "pings"])
async def test_a_socket_that_says_more_than_it_may_is_read_more_slowly(serving: Serving, kind: str) -> None:
    sent = (Opcode.PING, b"") if kind == "pings" else (Opcode.TEXT, b'{"type":"ping"}')
    answer = (Opcode.PONG, b"") if kind == "pings" else (Opcode.TEXT, b'{"type":"pong"}')
    settings: dict[str, Any] = {"unlimited_addresses": (), "messages_per_second_per_socket_max": 200}
    async with serving(**settings) as api, raw_socket(api) as socket, api.socket() as other:
        # With the greeting these are as many as may come at once; the rest takes a second.
        begun = time.monotonic()
        for _ in range(999 + 200):
            socket.send(*sent)
        socket.say({"type": "ping"})
        assert data(await other.ask(QUERY))
        for _ in range(999 + 200):
            assert await socket.take() == answer
        assert await socket.take() == (Opcode.TEXT, b'{"type":"pong"}')
        assert time.monotonic() - begun > 0.9


# Time.


async def test_a_query_has_a_time_and_a_change_has_its_own(serving: Serving, database: str) -> None:
    mutation = 'mutation { updateProgress(taskId: "T", progress: 5) { progress } }'
    query = '{ task(taskId: "T") { progress } }'
    async with serving(query_timeout_ms=200, lock_timeout_ms=20_000) as api, api.socket() as socket:
        await api.create("T")
        async with session(database) as other, other.transaction():
            await other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            change = asyncio.create_task(api.ask(mutation))
            responses = await asyncio.gather(
                *(api.post({"query": query}, headers={"Accept": accept}) for accept in (JSON, GRAPHQL_JSON))
            )
            answer = await socket.ask(query)
            # It has waited for longer than a query may, and goes on.
            assert not change.done()
        for response in responses:
            assert (response.status_code, code(response.json())) == (503, "UNAVAILABLE")
            assert "within 0.2 s" in error(response.json())["message"]
        assert code(answer) == "UNAVAILABLE"
        assert data(await change) == {"updateProgress": {"progress": 5}}
        assert data(await api.ask(query)) == {"task": {"progress": 5}}


# What is told of the schema.


@both
@pytest.mark.parametrize("execution", ["compiled", "interpreted"])
async def test_without_introspection_nobody_learns_a_name_that_he_does_not_know(
    serving: Serving, transport: Transport, execution: str
) -> None:
    misspelled: list[tuple[str, Answer]] = [
        ("{ viewr { name } }", {}),
        ("{ viewer { nam } }", {}),
        ('{ task(taskid: "T") { id } }', {}),
        ("{ tasks(filter: {statu: PENDING}) { totalCount } }", {}),
        ("{ tasks(filter: {status: PENDIN}) { totalCount } }", {}),
        ("query($x: TaskFilte) { tasks(filter: $x) { totalCount } }", {}),
        ("query($x: TaskFilter) { tasks(filter: $x) { totalCount } }", {"x": {"statu": "PENDING"}}),
        ("query($x: TaskStatus!) { tasks(filter: {status: [$x]}) { totalCount } }", {"x": "PENDIN"}),
        ("query($x: [TaskStatus!]) { tasks(filter: {status: $x}) { totalCount } }", {"x": ["PENDIN"]}),
        ('mutation($x: EventInput!) { addEvent(taskId: "T", event: $x) { id } }', {"x": {"messag": "m"}}),
    ]
    introspections = ("{ __schema { queryType { name } } }", '{ __type(name: "Task") { name } }')
    async with serving(execution=execution) as api, api.over(transport) as ask:
        for query, variables in misspelled:
            assert "Did you mean" in json.dumps(await ask(query, variables)), query
        for query in introspections:
            assert data(await ask(query))
    async with serving(execution=execution, introspection="off") as api, api.over(transport) as ask:
        for query, variables in misspelled:
            answer = await ask(query, variables)
            assert answer["errors"]
            assert "Did you mean" not in json.dumps(answer), query
        for query in introspections:
            answer = await ask(query)
            assert code(answer) == "GRAPHQL_VALIDATION_FAILED"
            assert "introspection is switched off" in error(answer)["message"]
        assert data(await ask("{ __typename viewer { __typename } }"))
        assert (await api.http.get("/readyz")).status_code == 200


# Only certain operations.

KNOWN: Final = "query Who { viewer { name } }"


@both
async def test_where_operations_are_given_no_others_are_run(
    serving: Serving, transport: Transport, tmp_path: Path
) -> None:
    file = tmp_path / "operations.json"
    file.write_text(json.dumps({"who": KNOWN, "odd": "{ viewer { authenticated } }"}))
    digest = sha256(KNOWN.encode()).hexdigest()
    requests: list[tuple[Answer, bool]] = [
        ({"query": KNOWN}, True),
        ({"documentId": "who"}, True),
        ({"documentId": digest}, True),
        ({"documentId": f"sha256:{digest}"}, True),
        ({"extensions": {"persistedQuery": {"version": 1, "sha256Hash": digest}}}, True),
        ({"query": KNOWN, "extensions": {"persistedQuery": {"version": 1, "sha256Hash": digest}}}, True),
        ({"query": KNOWN + " "}, False),
        ({"query": "{ __typename }"}, False),
        ({"query": "{"}, False),
        ({"documentId": "nobody"}, False),
        ({"documentId": 1}, False),
        ({"extensions": {"persistedQuery": []}}, False),
        ({"extensions": {"persistedQuery": {"sha256Hash": "0" * 64}}}, False),
        ({}, False),
    ]
    async with serving(operations=file) as api, api.socket() as socket:
        for number, (body, passes) in enumerate(requests):
            if transport == "http":
                response = await api.post(body)
                assert response.status_code == (200 if passes else 403)
                answer = response.json()
            else:
                await socket.say({"type": "subscribe", "id": str(number), "payload": body})
                message = await socket.take()
                answer = message["payload"] if passes else {"errors": message["payload"]}
                if passes:
                    assert (await socket.take())["type"] == "complete"
            assert (data(answer) if passes else code(answer)) == (
                {"viewer": {"name": None}} if passes else "OPERATION_NOT_ALLOWED"
            ), body
        assert (await api.http.get("/graphql", params={"documentId": "who"})).status_code == 200


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "JSON"),
        ("1", "a list or an object of documents"),
        ('{"a": 1}', "no string"),
        ("[null]", "no string"),
        (json.dumps({"0" * 64: KNOWN}), "not the SHA-256"),
    ],
)
def test_a_file_that_is_none_of_operations_stops_the_start(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "operations.json"
    with pytest.raises(StartupError, match="cannot be read"):
        read_operations(file)
    file.write_text(content)
    with pytest.raises(StartupError, match=says):
        read_operations(file)


def test_a_list_of_operations_is_known_by_their_hashes(tmp_path: Path) -> None:
    file = tmp_path / "operations.json"
    file.write_text(json.dumps([KNOWN]))
    operations = read_operations(file)
    assert operations.find({"documentId": sha256(KNOWN.encode()).hexdigest()}) == KNOWN
