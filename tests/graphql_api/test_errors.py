"""What clients hear of failures: refusals with their facts, and of faults of ours a number and nothing else."""

import logging
import re
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

import pytest

from storage import BadInput, Task, Update, UpdateType
from storage import keys as storage_keys
from tests.graphql_api.clients import TRANSPORTS, Transport, code, data, error
from tests.graphql_api.conftest import Outage, Serving

both = pytest.mark.parametrize("transport", TRANSPORTS)

FIND: Final = '{ found: task(taskId: "T-7") { id } viewer { name } }'
CANCEL: Final = 'mutation { cancel(taskId: "T-7") { id } }'
MASKED: Final = re.compile(r"Internal server error \(([0-9a-f]{16})\)")


async def fail(*_: Any) -> NoReturn:
    raise RuntimeError("secret")


def assert_masked(shown: dict[str, Any], caplog: pytest.LogCaptureFixture, **place: Any) -> None:
    """The client has a number, and the log has the same number with everything else."""
    assert "secret" not in str(shown)
    masked = MASKED.fullmatch(shown["message"])
    assert masked is not None
    expected = {"message": shown["message"], **place}
    assert shown == {**expected, "extensions": {"code": "INTERNAL_SERVER_ERROR", "id": masked[1]}}
    (record,) = (record for record in caplog.records if masked[1] in record.getMessage())
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "RuntimeError('secret')"
    assert record.exc_info[2] is not None
    caplog.clear()


@both
async def test_a_fault_of_ours_is_a_number_outside_and_a_traceback_inside(
    serving: Serving, transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api, api.over(transport) as ask:
        monkeypatch.setattr(api.storage.reader, "task", fail)
        answer = await ask(FIND)
        assert answer["data"] == {"found": None, "viewer": {"name": "admin"}}
        assert_masked(error(answer), caplog, path=["found"], locations=[{"line": 1, "column": 3}])
        # The number is another each time.
        assert error(await ask(FIND))["message"] != error(answer)["message"]


async def test_a_fault_before_an_operation_runs_is_masked_too(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        monkeypatch.setattr(api.storage.keys, "find", fail)
        response = await api.post({"query": FIND}, key=api.admin_key)
        assert (response.status_code, response.headers["content-type"]) == (500, "application/json; charset=utf-8")
        assert_masked(error(response.json()), caplog)
        assert_masked(error(await socket.ask(FIND)), caplog)
        monkeypatch.undo()
        assert "errors" not in await socket.ask(FIND)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_fault_in_a_subscription_is_masked_and_ends_it_alone(
    serving: Serving, begun: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        other = await socket.watch("T-7")
        await socket.update(other)

        async def broken(*_: Any) -> AsyncIterator[Any]:
            if begun:
                task = await api.storage.reader.task("T-7")
                assert isinstance(task, Task)
                yield Update(UpdateType.SNAPSHOT, task, ())
            raise RuntimeError("secret")

        monkeypatch.setattr(type(api.storage), "watch", broken)
        watch = await socket.subscribe('subscription { live: taskUpdates(taskId: "T-7") { type } }')
        if begun:
            assert data(await socket.following(watch)) == {"live": {"type": "SNAPSHOT"}}
        message = await socket.take()
        assert message == {"type": "error", "id": watch, "payload": message["payload"]}
        shown = error({"errors": message["payload"]})
        assert_masked(shown, caplog, path=["live"], locations=[{"line": 1, "column": 16}])
        await api.complete("T-7")
        assert len(await socket.updates(other)) == 1


@both
async def test_a_field_that_fails_leaves_the_others(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        await api.create("T-7")
        answer = await ask(
            '{ a: task(taskId: "T-7") { seq } b: task(taskId: "T-7") { c: history(last: 0) { seq } }'
            ' d: task(taskId: "") { id } }'
        )
        assert answer["data"] == {"a": {"seq": 1}, "b": None, "d": None}
        assert sorted((each["path"], each["extensions"]["code"]) for each in answer["errors"]) == [
            (["b", "c"], BadInput.code),
            (["d"], BadInput.code),
        ]


@both
async def test_without_its_database_the_server_is_unavailable_and_says_that_a_retry_may_help(
    serving: Serving, transport: Transport, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_keys, "BELIEVED_S", 1_000_000)
    async with serving() as api, api.over(transport) as ask, api.socket() as socket:
        await api.create("T-7")
        watch = await socket.watch("T-7")
        await socket.update(watch)
        assert "errors" not in await ask(FIND)
        async with outage():
            for document, path in ((FIND, ["found"]), (CANCEL, ["cancel"]), ("{ tasks { totalCount } }", ["tasks"])):
                shown = error(await ask(document))
                assert (shown["path"], shown["extensions"]) == (path, {"code": "UNAVAILABLE", "retryable": True})
                # The driver's words are nobody's business.
                assert "connection" not in shown["message"]
                assert "test_" not in shown["message"]
            await socket.watch("T-7")
            assert code({"errors": (await socket.take())["payload"]}) == "UNAVAILABLE"
        assert "errors" not in await ask(CANCEL)
        # Whoever watched has missed nothing.
        assert [update["type"] for update in await socket.updates(watch)] == ["CANCEL"]


async def test_a_key_that_cannot_be_looked_up_is_no_wrong_key(serving: Serving, outage: Outage) -> None:
    async with serving() as api, outage():
        response = await api.post({"query": FIND}, key=api.admin_key)
        assert (response.status_code, code(response.json())) == (503, "UNAVAILABLE")
        async with api.socket(init=False) as socket:
            await socket.say({"type": "connection_init", "payload": {"authorization": f"Bearer {api.admin_key}"}})
            # Try again later: not 4403, at which clients give up.
            assert (await socket.closed())[0] == 1013
