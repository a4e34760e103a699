"""The audit: a record for each thing that somebody may have to answer for, with its facts, and none for reports."""

import asyncio
import logging
import sys
from typing import Any, Final

import pytest

from graphql_api import audit
from graphql_api.logs import TextFormatter
from storage import Permission
from storage.committer import Committer, Entry
from tests.graphql_api.clients import TRANSPORTS, Api, Transport, code, until
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_access import SECRET, token
from tests.graphql_api.test_task_tokens import CREATE_TOKEN, task_token

FIELDS: Final = ("actor", "outcome", "task_id")


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spectral.audit")


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    found = [record for record in caplog.records if record.name == "spectral.audit"]
    caplog.clear()
    return found


def facts(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """What the records say: the action, and its fields."""
    return [(record.getMessage(), *(getattr(record, name) for name in FIELDS)) for record in records(caplog)]


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


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_record_has_the_address_of_the_client(
    serving: Serving, transport: Transport, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(TextFormatter())
    audit.log.addHandler(handler)
    try:
        async with serving() as api, api.over(transport) as ask:
            await ask('mutation { create(taskId: "T-7") { id } }')
    finally:
        audit.log.removeHandler(handler)
    assert " address=127.0.0.1" in capsys.readouterr().out


async def test_who_made_a_task_token_is_recorded_and_the_token_is_not(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        answer = await api.ask(CREATE_TOKEN, {"id": "T\n7", "scope": "REPORT"})
        (record,) = records(caplog)
        line = TextFormatter().format(record)
        assert line.endswith(
            r': task_token.create actor=admin outcome=done task_id="T\n7" scope=REPORT credential="API key"'
        ), line
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
        assert facts(caplog) == [("task.cancel", None, "done", "T-7")]


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


async def test_what_nobody_waited_for_is_not_recorded_as_failed(
    serving: Serving, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    work_off = Committer.work_off

    async def slowly(committer: Committer, group: list[Entry]) -> None:
        begun.set()
        await go_on.wait()
        await work_off(committer, group)

    async with serving() as api:
        await api.create("T-7")
        caplog.clear()
        monkeypatch.setattr(Committer, "work_off", slowly)
        async with api.socket(key=api.admin_key) as socket:
            operation = await socket.subscribe('mutation { delete(taskId: "T-7") }')
            await begun.wait()
            await socket.say({"type": "complete", "id": operation})
            await until(lambda: "task.delete" in caplog.text)
        go_on.set()
        assert facts(caplog) == [("task.delete", "admin", "abandoned", "T-7")]
        # It was done, before whatever comes after it.
        assert code(await api.ask('mutation { complete(taskId: "T-7") { id } }')) == "TASK_NOT_FOUND"
