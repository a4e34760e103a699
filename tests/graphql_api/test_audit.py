"""The audit: a record for each thing that somebody may have to answer for, with its facts, and none for reports."""

import logging
from typing import Any, Final

import pytest

from storage import Permission
from tests.graphql_api.clients import TRANSPORTS, Api, Transport
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_access import SECRET, token
from tests.graphql_api.test_task_tokens import CREATE_TOKEN, task_token

FIELDS: Final = ("action", "actor", "outcome", "task_id")


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spectral.audit")


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    found = [record for record in caplog.records if record.name == "spectral.audit"]
    caplog.clear()
    return found


def facts(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """What the records say in fields."""
    return [tuple(getattr(record, name) for name in FIELDS) for record in records(caplog)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_created_canceled_and_deleted_is_recorded_and_reports_are_not(
    serving: Serving, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api, api.over(transport) as ask:
        assert facts(caplog) == []
        for operation in (
            'create(taskId: "T-7") { id }',
            'updateProgress(taskId: "T-7", progress: 5) { id }',
            'addEvent(taskId: "T-7", event: { eventType: LOG, message: "m" }) { id }',
            'cancel(taskId: "T-7") { id }',
            'delete(taskId: "T-7")',
            'delete(taskId: "T-7")',
        ):
            await ask(f"mutation {{ {operation} }}")
        assert facts(caplog) == [
            ("task.create", "admin", "done", "T-7"),
            ("task.cancel", "admin", "done", "T-7"),
            ("task.delete", "admin", "done", "T-7"),
            ("task.delete", "admin", "TASK_NOT_FOUND", "T-7"),
        ]


async def test_who_made_a_task_token_is_recorded_and_the_token_is_not(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        answer = await api.ask(CREATE_TOKEN, {"id": "T\n7", "scope": "REPORT"})
        (record,) = records(caplog)
        assert (
            record.getMessage() == "task_token.create task 'T\\n7' by 'admin': done scope='REPORT' credential='API key'"
        )
        assert (vars(record)["scope"], vars(record)["task_id"]) == ("REPORT", "T\n7")
        assert answer["data"]["createTaskToken"]["token"] not in str(vars(record))


async def test_a_record_tells_credentials_of_one_name_and_of_none_apart(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(jwt_secret=SECRET) as api:
        await api.create("T-7")
        for credential, actor, kind in (
            (api.admin_key, "admin", "API key"),
            (token(sub="admin"), "admin", "bearer token"),
            (token(), None, "bearer token"),
            (await task_token(api), "task-token:admin", "task token"),
            (token(sub="task-token:admin"), "task-token:admin", "bearer token"),
        ):
            caplog.clear()
            await api.ask('mutation { cancel(taskId: "nobody") { id } }', key=credential)
            (record,) = records(caplog)
            assert (vars(record)["actor"], vars(record)["credential"]) == (actor, kind)
            assert "anyone" not in record.getMessage()


async def test_what_is_refused_is_recorded_of_those_who_have_a_name(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        key = await api.storage.keys.create("reader", [Permission.READ])
        await refuse_all(api, key)
        assert facts(caplog) == [
            ("task.create", "reader", "FORBIDDEN", "T-7"),
            ("task.delete", "reader", "FORBIDDEN", "T-7"),
            ("task.cancel", "reader", "TASK_NOT_FOUND", "T-7"),
            # As much of it as an ID may have.
            ("task.cancel", "reader", "BAD_USER_INPUT", "x" * 255),
        ]
        await refuse_all(api, None)
        assert facts(caplog) == []
        await api.create("T-7")
        caplog.clear()
        await api.post({"query": 'mutation { cancel(taskId: "T-7") { id } }'})
        (record,) = records(caplog)
        assert record.getMessage() == "task.cancel task 'T-7' by anyone: done"


async def refuse_all(api: Api, key: str | None) -> None:
    for operation in ('create(taskId: "T-7") { id }', 'delete(taskId: "T-7")', 'cancel(taskId: "T-7") { id }'):
        assert (await api.post({"query": f"mutation {{ {operation} }}"}, key=key)).json()["errors"]
    long = f'mutation {{ cancel(taskId: "{"x" * 1000}") {{ id }} }}'
    assert (await api.post({"query": long}, key=key)).json()["errors"]


async def test_a_fault_of_ours_is_recorded_as_one(
    serving: Serving, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api:

        async def fail(*_: Any) -> None:
            raise RuntimeError("a fault")

        monkeypatch.setattr(api.storage.writer, "submit", fail)
        await api.ask('mutation { delete(taskId: "T-7") }')
        assert facts(caplog) == [("task.delete", "admin", "INTERNAL_SERVER_ERROR", "T-7")]
