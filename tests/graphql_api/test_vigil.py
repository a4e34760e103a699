"""Open streams end with their credential, also when nothing happens; and a client renews it inside an open socket."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from graphql_api import auth, tokens, vigil
from graphql_api.app import PATH
from graphql_api.errors import Unauthenticated
from graphql_api.vigil import Vigil
from storage import Permission, Refusal, Unavailable, keys, signing_keys, task_tokens
from tests.graphql_api.clients import WATCH, Answer, Api, code, data, until
from tests.graphql_api.conftest import Outage, Serving
from tests.graphql_api.test_access import SECRET, VIEWER, token
from tests.graphql_api.test_task_tokens import task_token


def test_a_stream_ends_within_ten_seconds_of_its_credential() -> None:
    for believed_s in (keys.BELIEVED_S, signing_keys.BELIEVED_S):
        assert believed_s + auth.STREAMS_BELIEVE_S + vigil.LOOKS_APART_S < 10
    for leeway_s in (tokens.LEEWAY_S, task_tokens.LEEWAY_S):
        assert leeway_s + vigil.LOOKS_APART_S < 10


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become as good as none."""
    monkeypatch.setattr(vigil, "LOOKS_APART_S", 0.01)
    monkeypatch.setattr(vigil, "AGAIN_S", 0.01)
    monkeypatch.setattr(auth, "STREAMS_BELIEVE_S", 0.01)
    monkeypatch.setattr(keys, "BELIEVED_S", 0.0)
    monkeypatch.setattr(signing_keys, "BELIEVED_S", 0.0)


Ending = Callable[[Api], Awaitable[tuple[str, Callable[[], Awaitable[None]]]]]
"""Makes a credential, and what ends it."""


async def a_key(api: Api) -> tuple[str, Callable[[], Awaitable[None]]]:
    key = await api.storage.keys.create("short-lived", [Permission.READ])
    return key, lambda: api.storage.keys.revoke("short-lived")


async def a_task_token_of_a_key(api: Api) -> tuple[str, Callable[[], Awaitable[None]]]:
    key = await api.storage.keys.create("short-lived", [Permission.CREATE])
    return await task_token(api, "READ", key=key), lambda: api.storage.keys.revoke("short-lived")


async def a_task_token_of_a_signing_key(api: Api) -> tuple[str, Callable[[], Awaitable[None]]]:
    made = await task_token(api, "READ")
    return made, lambda: api.storage.signing_keys.revoke(made.split(".")[0].removeprefix("spt_"))


async def a_task_token_that_expires(api: Api) -> tuple[str, Callable[[], Awaitable[None]]]:
    clock = api.storage.task_tokens._clock
    made = await task_token(api, "READ")

    async def expire() -> None:
        api.storage.task_tokens._clock = lambda: clock() + 3_610

    return made, expire


async def a_bearer_token_that_expires(api: Api) -> tuple[str, Callable[[], Awaitable[None]]]:
    # Good for as long as clocks may differ, and a moment more.
    end = datetime.now(UTC) - timedelta(seconds=tokens.LEEWAY_S - 2)

    async def expire() -> None:
        pass

    return token(exp=end, permissions=["READ"]), expire


ENDINGS: Final[list[Ending]] = [
    a_key,
    a_task_token_of_a_key,
    a_task_token_of_a_signing_key,
    a_task_token_that_expires,
    a_bearer_token_that_expires,
]


@asynccontextmanager
async def http_stream(api: Api, key: str, accept: str) -> AsyncIterator[AsyncIterator[Answer]]:
    """The answers of a stream over HTTP, which must end by itself after the last."""
    headers = {"Authorization": f"Bearer {key}", "Accept": accept}
    body = {"query": WATCH, "variables": {"id": "T-7"}}
    start = "data: " if accept == "text/event-stream" else '{"payload":'
    async with api.http.stream("POST", PATH, json=body, headers=headers) as response:

        async def answers() -> AsyncIterator[Answer]:
            async for line in response.aiter_lines():
                if line.startswith(start) and line != "data: ":
                    said = json.loads(line.removeprefix("data: "))
                    yield said.get("payload", said)

        yield answers()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("over", ["socket", "text/event-stream", "multipart/mixed"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_stream_ends_with_its_credential_though_nothing_happens(
    serving: Serving, ending: Ending, over: str
) -> None:
    async with serving(access="closed", jwt_secret=SECRET) as api, api.socket(key=api.admin_key) as other:
        await api.create("T-7")
        others = await other.watch("T-7")
        await other.update(others)
        credential, end = await ending(api)
        if over == "socket":
            async with api.socket(key=credential) as socket:
                watches = [await socket.watch("T-7") for _ in range(2)]
                for watch in watches:
                    await socket.update(watch)
                await end()
                told = [await socket.take() for _ in watches]
                assert [(message["type"], message["id"]) for message in told] == [("error", id_) for id_ in watches]
                answers = [{"errors": message["payload"]} for message in told]
                # The socket is open, and the ID is free; but there is no way in.
                assert code(await socket.ask(VIEWER)) == "UNAUTHENTICATED"
        else:
            async with http_stream(api, credential, over) as stream:
                assert data(await anext(stream))["taskUpdates"]["type"] == "SNAPSHOT"
                await end()
                answers = [await anext(stream)]
                assert [answer async for answer in stream] == []
        assert {code(answer) for answer in answers} == {"UNAUTHENTICATED"}
        # Whose credential is good goes on.
        await api.report("T-7", 5)
        assert (await other.update(others))["type"] == "PROGRESS"


async def renew(socket: Any, credential: str | None, name: str = "authorization") -> Answer:
    """Send a ping with a credential; what the pong says."""
    await socket.say({"type": "ping", "payload": {name: credential and f"Bearer {credential}"}})
    message = await socket.take()
    assert message["type"] == "pong"
    return dict(message.get("payload", {}))


ACCEPTED: Final = {"authorization": "accepted"}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", ["authorization", "Authorization"])
async def test_a_subscription_outlives_its_credential_when_the_client_renews_it(serving: Serving, name: str) -> None:
    async with serving(access="closed") as api:
        await api.create("T-7")
        old, new = [await api.storage.keys.create(each, [Permission.READ]) for each in ("old", "new")]
        async with api.socket(key=old) as socket, api.socket(key=old) as lazy:
            watch, forgotten = await socket.watch("T-7"), await lazy.watch("T-7")
            await socket.update(watch)
            await lazy.update(forgotten)
            assert await renew(socket, new, name) == ACCEPTED
            await api.storage.keys.revoke("old")
            # Who did not renew it is told so; by then the other would have been.
            assert (await lazy.take())["type"] == "error"
            await api.report("T-7", 5)
            assert (await socket.update(watch))["type"] == "PROGRESS"
            assert data(await socket.ask(VIEWER))["viewer"]["name"] == "new"
            await api.storage.keys.revoke("new")
            assert (await socket.take())["type"] == "error"


@pytest.mark.usefixtures("hurried")
async def test_a_client_that_renews_too_late_subscribes_again_on_the_same_socket(serving: Serving) -> None:
    async with serving(access="closed") as api:
        await api.create("T-7")
        old, new = [await api.storage.keys.create(each, [Permission.READ]) for each in ("old", "new")]
        async with api.socket(key=old) as socket:
            watch = await socket.watch("T-7", 0)
            await socket.update(watch)
            await api.storage.keys.revoke("old")
            assert (await socket.take())["type"] == "error"
            await api.report("T-7", 5)
            assert await renew(socket, new) == ACCEPTED
            watch = await socket.watch("T-7", 1)
            assert [event["seq"] for event in (await socket.update(watch))["events"]] == [2]


async def test_a_wrong_renewal_opens_nothing_and_closes_nothing(serving: Serving) -> None:
    async with serving(access="closed") as api:
        await api.create("T-7")
        await api.create("T-8")
        reader = await api.storage.keys.create("reader", [Permission.READ])
        reporter = await api.storage.keys.create("reporter", [Permission.REPORT])
        async with api.socket(key=reader) as socket:
            watch = await socket.watch("T-7")
            await socket.update(watch)
            wrong = {
                reader[:-1] + ("A" if reader[-1] != "A" else "B"): "UNAUTHENTICATED",
                "garbage": "UNAUTHENTICATED",
                # Good, but not for what is open.
                reporter: "FORBIDDEN",
                await task_token(api, "REPORT", "T-8"): "FORBIDDEN",
            }
            for credential, expected in wrong.items():
                payload = await renew(socket, credential)
                assert payload["authorization"] == "refused"
                assert payload["error"]["extensions"]["code"] == expected
                assert credential not in json.dumps(payload)
                assert data(await socket.ask(VIEWER))["viewer"]["name"] == "reader"
            await api.report("T-7", 5)
            assert (await socket.update(watch))["type"] == "PROGRESS"
            # With nothing open, anyone who is let in is taken.
            await socket.say({"type": "complete", "id": watch})
            assert await renew(socket, reporter) == ACCEPTED
            assert data(await socket.ask(VIEWER))["viewer"]["name"] == "reporter"
            await socket.watch("T-7")
            assert (await socket.take())["type"] == "error"


async def test_a_task_token_is_renewed_by_another_for_the_same_task(serving: Serving) -> None:
    async with serving(access="closed") as api:
        await api.create("T-7")
        async with api.socket(key=await task_token(api, "READ")) as socket:
            await socket.update(await socket.watch("T-7"))
            assert await renew(socket, await task_token(api, "READ")) == ACCEPTED
            assert await renew(socket, await task_token(api, "REPORT")) == ACCEPTED
            assert await renew(socket, api.admin_key) == ACCEPTED


async def test_a_socket_that_came_without_a_credential_may_bring_one_later(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        watch = await socket.watch("T-7")
        await socket.update(watch)
        assert await renew(socket, None) == {}
        assert await renew(socket, api.admin_key) == ACCEPTED
        assert data(await socket.ask(VIEWER))["viewer"]["name"] == "admin"
        await api.complete("T-7")
        assert len(await socket.updates(watch)) == 1


@pytest.mark.parametrize("payload", [None, {}, {"since": 1}, [], "x", 7])
async def test_a_ping_that_brings_no_credential_is_a_ping(serving: Serving, payload: Any) -> None:
    async with serving() as api, api.socket() as socket:
        await socket.say({"type": "ping", "payload": payload})
        assert await socket.take() == {"type": "pong"}


async def test_a_ping_renews_nothing_before_the_greeting_nor_what_is_no_text(serving: Serving) -> None:
    async with serving() as api:
        async with api.socket(init=False) as socket:
            await socket.say({"type": "ping", "payload": {"authorization": f"Bearer {api.admin_key}"}})
            assert await socket.closed() == (4401, "Unauthorized")
        async with api.socket() as socket:
            await socket.say({"type": "ping", "payload": {"authorization": 7}})
            assert await socket.closed() == (4400, "The Authorization of ping must be a string")


async def test_a_renewal_that_nobody_can_check_may_be_tried_again(serving: Serving, outage: Outage) -> None:
    async with serving() as api, api.socket() as socket:
        key = await api.storage.keys.create("reader", [Permission.READ])
        async with outage():
            payload = await renew(socket, key)
            assert payload["error"]["extensions"] == {"code": "UNAVAILABLE", "retryable": True}
        assert await renew(socket, key) == ACCEPTED


@pytest.mark.usefixtures("hurried")
async def test_while_the_database_is_away_streams_stay(
    serving: Serving, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(access="closed") as api:
        await api.create("T-7")
        key = await api.storage.keys.create("reader", [Permission.READ])
        async with api.socket(key=key) as socket:
            watch = await socket.watch("T-7")
            await socket.update(watch)
            async with outage():
                await until(lambda: "1 credentials of open streams could not be checked." in caplog.text)
            await api.report("T-7", 5)
            assert (await socket.update(watch))["type"] == "PROGRESS"


@dataclass(eq=False)
class Guests:
    """A guest, or many."""

    expulsions: list[Refusal] = field(default_factory=list)

    def expelled(self, error: Refusal) -> None:
        self.expulsions.append(error)


@dataclass
class Door:
    """What credentials are good for, and how often each was looked at."""

    believed_s: float = 4.0
    errors: dict[str, Exception] = field(default_factory=dict)
    looks: Counter[str] = field(default_factory=Counter)

    async def look(self, authorization: str) -> float:
        self.looks[authorization] += 1
        await asyncio.sleep(0)
        if authorization in self.errors:
            raise self.errors[authorization]
        return self.believed_s


@dataclass
class Clock:
    now: float = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(vigil, "time", clock)
    return clock


async def make_round(watch: Vigil) -> None:
    """What the timer does, now."""
    await begin_round(watch)


def begin_round(watch: Vigil) -> asyncio.Task[None]:
    """As the timer does, at this moment."""
    assert watch._timer is not None
    watch._timer.cancel()
    before = set(watch._rounds)
    watch._begin_round()
    (begun,) = watch._rounds - before
    return begun


async def test_ten_thousand_streams_of_a_credential_cost_one_look_when_it_is_due(clock: Clock) -> None:
    door = Door()
    watch = Vigil(door.look)
    guests = [Guests() for _ in range(10_000)]
    for guest in guests:
        watch.admit("one", guest)
    last = Guests()
    watch.admit("other", last)
    await make_round(watch)
    assert door.looks == {"one": 1, "other": 1}
    clock.now += 3.9
    await make_round(watch)
    assert door.looks == {"one": 1, "other": 1}
    clock.now += 0.1
    door.errors["one"] = Unauthenticated("revoked")
    # Who leaves meanwhile is told nothing.
    watch.dismiss("one", guests[0])
    await make_round(watch)
    assert door.looks == {"one": 2, "other": 2}
    assert [len(guest.expulsions) for guest in guests] == [0] + [1] * 9_999
    assert last.expulsions == []
    for guest in guests:
        watch.dismiss("one", guest)
    watch.dismiss("other", last)
    assert len(watch) == 0
    assert watch._timer is None


async def test_a_look_that_fails_ends_nothing_and_not_the_vigil(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(errors={"a": Unavailable("away"), "b": RuntimeError("a fault")})
    watch = Vigil(door.look)
    guest = Guests()
    for credential in "abc":
        watch.admit(credential, guest)
    await make_round(watch)
    clock.now += vigil.AGAIN_S
    door.errors = {"a": Unauthenticated("revoked")}
    await make_round(watch)
    assert len(guest.expulsions) == 1
    assert "could not be" in caplog.text
    for credential in "abc":
        watch.dismiss(credential, guest)


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_round_that_nobody_needs_any_more_ends(clock: Clock, turns: int) -> None:
    door = Door()
    watch = Vigil(door.look)
    guest = Guests()
    watch.admit("a", guest)
    round_ = begin_round(watch)
    for _ in range(turns):
        await asyncio.sleep(0)
    watch.dismiss("a", guest)
    # And one who comes at that moment is watched over.
    watch.admit("b", guest)
    with pytest.raises(asyncio.CancelledError):
        await round_
    await make_round(watch)
    assert door.looks["b"] == 1
    watch.dismiss("b", guest)


async def test_those_who_come_one_after_the_other_do_not_put_off_the_next_round() -> None:
    watch = Vigil(Door().look)
    guest = Guests()
    watch.admit("a", guest)
    assert watch._timer is not None
    due_at = watch._timer.when()
    await asyncio.sleep(0)
    watch.admit("b", guest)
    assert watch._timer.when() == due_at
    # But one who comes long before the next is looked at soon.
    await make_round(watch)
    late = watch._timer.when()
    watch.admit("c", guest)
    assert watch._timer.when() < late
    for credential in "abc":
        watch.dismiss(credential, guest)


async def test_a_look_that_takes_long_holds_up_no_other(clock: Clock) -> None:
    door, answer = Door(), asyncio.Event()

    async def look(authorization: str) -> float:
        believed_s = await door.look(authorization)
        if authorization == "slow":
            await answer.wait()
        return believed_s

    watch = Vigil(look)
    guest = Guests()
    watch.admit("slow", guest)
    watch.admit("key", guest)
    hanging = [begin_round(watch)]
    await until(lambda: door.looks["key"] == 1)
    clock.now += 4.0
    door.errors["key"] = Unauthenticated("revoked")
    await make_round(watch)
    assert door.looks == {"slow": 1, "key": 2}
    assert len(guest.expulsions) == 1
    # What nobody answers is asked again after a while.
    clock.now += vigil.ANSWER_WITHIN_S
    hanging.append(begin_round(watch))
    await until(lambda: door.looks["slow"] == 2)
    answer.set()
    await asyncio.gather(*hanging)
    for credential in ("slow", "key"):
        watch.dismiss(credential, guest)


async def test_what_is_bound_to_whoever_comes_first_is_not_bound_to_the_looks() -> None:
    bound: ContextVar[str | None] = ContextVar("bound", default=None)
    found: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def look(_: str) -> float:
        found.set_result(bound.get())
        return 4.0

    watch = Vigil(look)
    guest = Guests()
    bound.set("the first")
    watch.admit("a", guest)
    assert await found is None
    watch.dismiss("a", guest)
