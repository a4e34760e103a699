"""Tasks that are asked for more than reports: their options over the API, and what shows of them."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from storage import UpdateType
from tests.graphql_api.clients import TRANSPORTS, Answer, Transport, code, data, error
from tests.graphql_api.conftest import Serving

PLANNED: Final = """
    status progress tags queue priority startAt dependsOn blockedBy attempt maxAttempts nextAttemptAt worker
    leaseExpiresAt stale expiresAt deleteAt
"""
CREATE: Final = f"""
    mutation($id: ID!, $options: TaskOptions) {{ create(taskId: $id, options: $options) {{ {PLANNED} }} }}
"""
SHOW: Final = f"query($id: ID!) {{ task(taskId: $id) {{ {PLANNED} lastEvent {{ message }} }} }}"
FAIL: Final = f'mutation($id: ID!) {{ fail(taskId: $id, error: "e") {{ {PLANNED} lastEvent {{ eventType }} }} }}'
COMPLETE: Final = f"mutation($id: ID!) {{ complete(taskId: $id) {{ {PLANNED} }} }}"
PLAIN: Final = {
    "status": "PENDING",
    "progress": 0,
    "tags": [],
    "queue": None,
    "priority": 0,
    "startAt": None,
    "dependsOn": [],
    "blockedBy": [],
    "attempt": 0,
    "maxAttempts": 1,
    "nextAttemptAt": None,
    "worker": None,
    "leaseExpiresAt": None,
    "stale": False,
    "expiresAt": None,
    "deleteAt": None,
}


def at(moment: datetime) -> str:
    """As the API writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("options", [None, {}, {"tags": None, "queue": None, "priority": None, "retry": None}])
async def test_a_task_that_asks_for_nothing_shows_so(serving: Serving, options: Answer | None) -> None:
    async with serving() as api:
        assert data(await api.ask(CREATE, {"id": "T", "options": options})) == {"create": PLAIN}
        shown = data(await api.ask(SHOW, {"id": "T"}))["task"]
        assert shown == {**PLAIN, "lastEvent": {"message": "Task created"}}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_was_asked_for_is_shown(serving: Serving, transport: Transport) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    options = {
        "tags": ["a", 'b"c', "ü"],
        "queue": "q",
        "priority": -5,
        "startAt": later.astimezone().isoformat(),
        "dependsOn": ["A", "B"],
        "onDependencyFailure": "IGNORE",
        "retry": {"maxAttempts": 3, "initialDelaySeconds": 1, "maxDelaySeconds": 9, "factor": 1.5},
        "expiresAt": at(later + timedelta(hours=1)),
        "keepForSeconds": 60,
    }
    expected = {
        **PLAIN,
        **{name: options[name] for name in ("tags", "queue", "priority", "dependsOn")},
        "blockedBy": ["B"],
        "startAt": at(later),
        "maxAttempts": 3,
        "expiresAt": at(later + timedelta(hours=1)),
    }
    async with serving() as api, api.over(transport) as ask:
        await api.create("A")
        await api.complete("A")
        await api.create("B")
        assert data(await ask(CREATE, {"id": "T", "options": options}))["create"] == expected
        assert data(await ask(SHOW, {"id": "T"}))["task"].items() >= expected.items()
        # Written into the document, too.
        document = f'mutation {{ create(taskId: "U", options: {{ startAt: "{at(later)}" }}) {{ startAt }} }}'
        assert data(await ask(document)) == {"create": {"startAt": at(later)}}


async def test_a_start_that_has_passed_means_now(serving: Serving) -> None:
    async with serving() as api:
        before = datetime.now(UTC)
        for start in ("2001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"):
            made = data(await api.ask(CREATE, {"id": start, "options": {"queue": "q", "startAt": start}}))["create"]
            assert instant(made["startAt"]) >= before
        assert await api.storage.reader.ready("q") == 2


async def test_a_failure_with_attempts_left_is_not_the_end(serving: Serving) -> None:
    async with serving() as api:
        retry = {"maxAttempts": 2, "initialDelaySeconds": 100}
        await api.ask(CREATE, {"id": "T", "options": {"queue": "q", "retry": retry, "keepForSeconds": 60}})
        await api.report("T", 50)
        failed = data(await api.ask(FAIL, {"id": "T"}))["fail"]
        assert failed["lastEvent"] == {"eventType": "ERROR"}
        assert (failed["status"], failed["progress"], failed["attempt"], failed["deleteAt"]) == ("PENDING", 0, 1, None)
        pause_s = (instant(failed["nextAttemptAt"]) - datetime.now(UTC)).total_seconds()
        assert 75 < pause_s <= 120
        await api.report("T", 10)
        failed = data(await api.ask(FAIL, {"id": "T"}))["fail"]
        assert (failed["status"], failed["attempt"], failed["nextAttemptAt"]) == ("FAILED", 2, None)
        assert failed["deleteAt"] is not None


@pytest.mark.parametrize(("retry", "status"), [("false", "FAILED"), ("true", "PENDING"), ("null", "PENDING")])
async def test_whether_another_attempt_may_be_of_use_is_for_the_reporter_to_say(
    serving: Serving, retry: str, status: str
) -> None:
    async with serving() as api:
        for task_id in ("alone", "among others"):
            await api.ask(CREATE, {"id": task_id, "options": {"queue": "q", "retry": {"maxAttempts": 2}}})
        fail = f'mutation {{ fail(taskId: "alone", error: "e", retry: {retry}) {{ status }} }}'
        assert data(await api.ask(fail))["fail"] == {"status": status}
        report = f'{{taskId: "among others", fail: "e", retry: {retry}}}'
        reported = data(await api.ask(f"mutation {{ report(reports: [{report}]) {{ task {{ status }} }} }}"))
        assert reported["report"] == [{"task": {"status": status}}]


async def test_a_task_that_waits_is_canceled_with_the_one_it_waits_for_and_says_so(serving: Serving) -> None:
    async with serving() as api:
        await api.create("A")
        for task_id, policy in (("cancels", "CANCEL"), ("null", None), ("ignores", "IGNORE")):
            options = {"queue": "q", "dependsOn": ["A"], "onDependencyFailure": policy}
            assert data(await api.ask(CREATE, {"id": task_id, "options": options}))["create"]["blockedBy"] == ["A"]
        assert data(await api.ask(FAIL, {"id": "A"}))
        await api.storage.writer.messenger.brought()
        for task_id in ("cancels", "null"):
            task = data(await api.ask(SHOW, {"id": task_id}))["task"]
            assert (task["status"], task["blockedBy"]) == ("CANCELED", ["A"])
            assert task["lastEvent"]["message"] == 'Task canceled: "A", on which this task depends, has failed'
        task = data(await api.ask(SHOW, {"id": "ignores"}))["task"]
        assert (task["status"], task["blockedBy"]) == ("PENDING", [])
        assert await api.storage.reader.ready("q") == 1


async def test_time_starts_fails_and_deletes(serving: Serving) -> None:
    async with serving(timers=True) as api:
        soon = at(datetime.now(UTC) + timedelta(seconds=0.5))
        await api.ask(CREATE, {"id": "expires", "options": {"expiresAt": soon}})
        await api.ask(CREATE, {"id": "goes", "options": {"keepForSeconds": 0}})
        await api.ask(CREATE, {"id": "starts", "options": {"startAt": soon, "queue": "q"}})
        async with api.socket(key=api.admin_key) as socket:
            watched = await socket.watch("expires")
            assert [update["type"] for update in await socket.updates(watched)][-1] == "FAIL"
            waiting = await socket.subscribe('subscription { queueReady(queue: "q") { ready } }')
            ready = 0
            while not ready:
                ready = (await socket.following(waiting))["data"]["queueReady"]["ready"]
        with api.storage.feed.subscribe("goes") as subscriber:
            await api.complete("goes")
            seen: list[UpdateType] = []
            while UpdateType.DELETE not in seen:
                seen += [update.type for update in await subscriber.take() or ()]
        assert data(await api.ask(SHOW, {"id": "goes"})) == {"task": None}


async def test_finished_tasks_are_kept_as_long_as_the_setting_says(serving: Serving) -> None:
    async with serving(keep_finished_days=1) as api:
        assert api.storage.timers is None
    async with serving(keep_finished_days=1, timers=True) as api:
        assert api.storage.timers is not None
        assert api.storage.timers._keep_finished_s == 24 * 3600


NOW: Final = "2030-01-01T00:00:00Z"
REFUSED: Final[dict[str, tuple[Answer, str]]] = {
    "21 tags": ({"tags": [str(n) for n in range(21)]}, "tags must have at most 20 items, got 21."),
    "an empty tag": ({"tags": [""]}, "tag must have 1 to 64 characters, got 0."),
    "a long tag": ({"tags": ["t" * 65]}, "tag must have 1 to 64 characters, got 65."),
    "a queue without a name": ({"queue": ""}, "queue must have 1 to 64 characters, got 0."),
    "a queue with NUL": ({"queue": "q\0"}, "queue must not hold NUL"),
    "a priority": ({"priority": 1001}, "priority must be -1000 to 1000, got 1001."),
    "101 dependencies": ({"dependsOn": [str(n) for n in range(101)]}, "dependsOn must have at most 100 items, got 101"),
    "a dependency on itself": ({"dependsOn": ["T"]}, 'Task "T" cannot depend on itself.'),
    "an unknown task": ({"dependsOn": ["nobody"]}, 'there is no task "nobody".'),
    "no attempts": ({"retry": {"maxAttempts": 0}}, "maxAttempts must be 1 to 100, got 0."),
    "attempts": ({"retry": {"maxAttempts": 101}}, "maxAttempts must be 1 to 100, got 101."),
    "a negative pause": ({"retry": {"maxAttempts": 2, "initialDelaySeconds": -1}}, "initialDelaySeconds must be 0 to"),
    "a negative bound": ({"retry": {"maxAttempts": 2, "maxDelaySeconds": -1}}, "maxDelaySeconds must be 0 to"),
    "a factor": ({"retry": {"maxAttempts": 2, "factor": 0.5}}, "factor must be 1 to 100, got 0.5."),
    "an end before the start": ({"startAt": NOW, "expiresAt": "2029-12-31T23:59:59Z"}, "expiresAt must not be before"),
    "a negative time to keep": ({"keepForSeconds": -1}, "keepForSeconds must be 0 to"),
    "a far year": ({"expiresAt": "9999-12-31T23:59:59Z"}, "expiresAt must be a time with an offset"),
    "a time without offset": ({"startAt": "2030-01-01T00:00:00"}, "must be ISO 8601 with an offset"),
    "a time before all time": ({"startAt": "0001-01-01T00:00:00+14:00"}, "must be ISO 8601 with an offset"),
    "no time": ({"startAt": "soon"}, "must be ISO 8601 with an offset, like 2026-11-20T09:30:00Z, got 'soon'."),
    "a number": ({"startAt": 5}, "must be ISO 8601 with an offset"),
    "a long time": ({"startAt": "9" * 5000}, "got something else."),
}
TAKEN: Final[list[Answer]] = [
    {"tags": [str(n) * 64 for n in range(10)] + [str(n) for n in range(10)]},
    {"queue": "q" * 64, "priority": 1000},
    {"priority": -1000, "dependsOn": [str(n) for n in range(100)]},
    {"retry": {"maxAttempts": 1, "initialDelaySeconds": 0, "maxDelaySeconds": 0, "factor": 1}},
    {"retry": {"maxAttempts": 100, "initialDelaySeconds": None, "maxDelaySeconds": 2_592_000, "factor": 100}},
    {"startAt": NOW, "expiresAt": NOW, "keepForSeconds": 316_224_000},
    {"expiresAt": "9000-12-31T23:59:59+00:00"},
]


async def test_options_out_of_bounds_are_refused_and_nothing_is_created(serving: Serving) -> None:
    async with serving() as api:
        for name, (options, words) in REFUSED.items():
            answer = await api.ask(CREATE, {"id": "T", "options": options})
            assert code(answer) == "BAD_USER_INPUT", name
            assert words in error(answer)["message"], (name, answer)
        assert data(await api.ask(SHOW, {"id": "T"})) == {"task": None}


async def test_options_at_their_bounds_are_taken(serving: Serving) -> None:
    async with serving() as api:
        for number in range(100):
            await api.create(str(number))
        for number, options in enumerate(TAKEN):
            data(await api.ask(CREATE, {"id": f"T{number}", "options": options}))


async def test_a_wrong_time_in_a_document_is_told_where_it_stands(serving: Serving) -> None:
    async with serving() as api:
        answer: Any = (
            await api.post({"query": 'mutation { create(taskId: "T", options: { startAt: "soon" }) { id } }'})
        ).json()
        assert code(answer) == "BAD_USER_INPUT"
        assert "ISO 8601" in error(answer)["message"]
