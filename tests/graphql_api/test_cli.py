"""The command line: what it prints where, and the one sentence with which it ends when it cannot go on."""

import asyncio
import logging
import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest
from sqlalchemy import make_url

from graphql_api import program
from graphql_api.audit import person
from graphql_api.schema import sdl
from storage import Permission, open_storage
from storage.migrate import head
from tests.postgres import execute


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run: TypeAlias = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command as the console script does, in this process; settings by name."""

    def run(*arguments: str, **environ: str) -> Ended:
        with monkeypatch.context() as patched:
            # A command that forgot which database is meant must not find a person's own.
            for name, value in {"SPECTRAL_DATA_DIR": str(tmp_path / "data"), **environ}.items():
                patched.setenv(name, value)
            patched.setattr(sys, "argv", ["spectral-notify", *arguments])
            with pytest.raises(SystemExit) as ended:
                program.main()
                raise SystemExit(0)
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, out, err)

    return run


def test_schema_prints_the_schema_and_nothing_else(run: Run) -> None:
    assert run("schema") == (0, sdl(), "")


def test_version_and_help_are_printed(run: Run) -> None:
    assert run("--version").out[0].isdigit()
    assert all(word in run("--help").out for word in ("serve", "migrate", "schema", "keys"))


def test_migrate_brings_a_database_up_to_date_and_says_so(run: Run, empty_database: str) -> None:
    first, second = (run("migrate", SPECTRAL_DATABASE_URL=empty_database) for _ in range(2))
    assert first == (0, f"The schema went from none to {head()}.\n", "")
    assert second == (0, f"The schema is at {head()}.\n", "")


def test_keys_are_created_listed_and_revoked(run: Run, database: str) -> None:
    def keys(*arguments: str) -> Ended:
        return run("keys", *arguments, SPECTRAL_DATABASE_URL=database)

    code, key, err = keys("create", "nightly import", "--permission", "CREATE", "-p", "REPORT")
    assert (code, err) == (0, "")
    assert key.startswith("spn_")
    assert key == key.strip() + "\n"
    assert asyncio.run(permissions(database, key.strip())) == {Permission.CREATE, Permission.REPORT}

    code, listed, err = keys("list")
    assert (code, err) == (0, "")
    header, row = listed.splitlines()
    assert [word for word in header.split() if word != "(UTC)"] == ["NAME", "PERMISSIONS", "CREATED", "REVOKED"]
    assert row.startswith("nightly import")
    assert "REPORT CREATE" in row
    assert key.strip() not in listed
    assert key.strip().rpartition("_")[2] not in listed

    again = keys("create", "nightly import", "--permission", "ADMIN")
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith('spectral-notify: There is a key named "nightly import" already')

    assert keys("revoke", "nightly import") == (0, "", "")
    assert asyncio.run(permissions(database, key.strip())) is None
    assert len(keys("list").out.splitlines()[1].split()) > len(row.split())
    missing = keys("revoke", "nightly import")
    assert (missing.code, missing.out) == (1, "")
    assert '"nightly import"' in missing.err


async def permissions(database: str, key: str) -> set[Permission] | None:
    async with open_storage(database) as storage:
        found = await storage.keys.find(key)
        return None if found is None else set(found.permissions)


@pytest.mark.parametrize("arguments", [("keys", "create", "x"), ("keys", "create", "x", "-p", "FLY"), ("fly",)])
def test_a_command_that_is_no_command_is_a_question_of_usage(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (64, "")
    assert "Usage" in err


def assert_one_sentence(ended: Ended, *says: str) -> None:
    """The program stopped with one line for a person, and no traceback."""
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("spectral-notify: ")
    assert ended.err.endswith(".\n")
    assert ended.err.count("\n") == 1
    assert all(word in ended.err for word in says), ended.err
    assert "hunter2" not in ended.err


def test_recount_says_what_it_has_counted(run: Run, database: str) -> None:
    insertion = "INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at) "
    asyncio.run(execute(database, insertion + "VALUES ('by hand', 'PENDING', 0, 1, now(), now())"))
    said = "pending: 1, in_progress: 0, success: 0, failed: 0, canceled: 0, total: 1\n"
    assert run("recount", SPECTRAL_DATABASE_URL=database).out == said


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://ann:hunter2@127.0.0.1:1/none", "cannot be used"),
        ("postgresql://ann:hunter2@host.invalid/none", "cannot be used"),
        ("mysql://ann:hunter2@localhost/none", "postgresql://"),
        ("hunter2", "not a URL"),
        ("", "empty"),
        ("postgresql://ann:hunter2@127.0.0.1:port/none", "not a URL"),
        ("postgresql://ann:hunter2@127.0.0.1:1/none?colour=blue", "colour"),
    ],
)
def test_a_database_url_that_leads_nowhere_is_one_sentence(run: Run, command: str, url: str, says: str) -> None:
    assert_one_sentence(run(command, SPECTRAL_DATABASE_URL=url, SPECTRAL_PORT="0"), "SPECTRAL_DATABASE_URL", says)


def test_a_wrong_password_is_one_sentence(run: Run, database: str) -> None:
    url = make_url(database).set(password="hunter2").render_as_string(hide_password=False)
    assert_one_sentence(run("migrate", SPECTRAL_DATABASE_URL=url), "password", "SPECTRAL_DATABASE_URL")


@pytest.mark.parametrize("arguments", [("serve",), ("migrate",), ("keys", "list")])
def test_a_database_that_is_newer_than_the_program_is_one_sentence(
    run: Run, database: str, arguments: tuple[str, ...]
) -> None:
    asyncio.run(execute(database, "UPDATE alembic_version SET version_num = 'zzzz'"))
    ended = run(*arguments, SPECTRAL_DATABASE_URL=database, SPECTRAL_PORT="0")
    assert_one_sentence(ended, "zzzz", "newer", head())


def test_a_database_without_the_schema_is_one_sentence_where_migrating_is_a_step_of_its_own(
    run: Run, empty_database: str
) -> None:
    ended = run("serve", SPECTRAL_DATABASE_URL=empty_database, SPECTRAL_PORT="0", SPECTRAL_MIGRATE_ON_START="false")
    assert_one_sentence(ended, "nothing", "spectral-notify migrate")


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"SPECTRAL_PROT": "1"}, "SPECTRAL_PROT"),
        ({"SPECTRAL_PORT": "x"}, "SPECTRAL_PORT"),
        ({"SPECTRAL_HOST": "host.invalid"}, "SPECTRAL_HOST"),
        ({"SPECTRAL_JWT_PUBLIC_KEY_FILE": "/nowhere/key.pem"}, "SPECTRAL_JWT_PUBLIC_KEY_FILE"),
        ({"SPECTRAL_JWT_PUBLIC_KEY_FILE": __file__}, "SPECTRAL_JWT_PUBLIC_KEY_FILE"),
    ],
)
def test_a_wrong_setting_is_one_sentence(run: Run, database: str, environ: dict[str, str], says: str) -> None:
    assert_one_sentence(run("serve", **{"SPECTRAL_DATABASE_URL": database, "SPECTRAL_PORT": "0", **environ}), says)


@pytest.mark.parametrize(
    "arguments", [("serve",), ("migrate",), ("distribute",), ("recount",), ("keys", "list"), ("signing-keys", "list")]
)
def test_a_setting_that_does_not_exist_is_one_sentence_of_each_command(run: Run, arguments: tuple[str, ...]) -> None:
    assert_one_sentence(run(*arguments, SPECTRAL_PROT="1"), "SPECTRAL_PROT")


def test_signing_keys_are_listed_replaced_and_revoked(run: Run, database: str) -> None:
    def signing_keys(*arguments: str, **environ: str) -> Ended:
        return run("signing-keys", *arguments, SPECTRAL_DATABASE_URL=database, **environ)

    assert signing_keys("list").out.split() == ["KEY", "CREATED", "(UTC)", "RETIRED", "(UTC)"]
    first, second = signing_keys("rotate").out.strip(), signing_keys("rotate").out.strip()
    _, *rows = signing_keys("list").out.splitlines()
    assert [row.split()[0] for row in rows] == [second, first]
    # The one that signs has not retired.
    assert [len(row.split()) for row in rows] == [3, 5]
    assert signing_keys("revoke", first).code == 0
    assert len(signing_keys("list").out.splitlines()) == 2
    missing = signing_keys("revoke", first)
    assert_one_sentence(missing, f'There is no signing key "{first}" in the database.')
    configured = signing_keys("rotate", SPECTRAL_TASK_TOKEN_SECRET="x" * 32)
    assert_one_sentence(configured, "SPECTRAL_TASK_TOKEN_SECRET_PREVIOUS")


def audited(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "spectral.audit"]


def test_what_is_done_to_keys_at_the_command_line_is_recorded(
    run: Run, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever sets it is not believed.
    monkeypatch.setenv("LOGNAME", "somebody-else")
    account = pwd.getpwuid(os.getuid()).pw_name

    def done(*arguments: str) -> str:
        ended = run(*arguments, SPECTRAL_DATABASE_URL=database)
        assert ended.code == 0, ended.err
        return ended.out.strip()

    key = done("keys", "create", "ci", "-p", "REPORT", "-p", "CREATE")
    done("keys", "revoke", "ci")
    rotated = done("signing-keys", "rotate")
    done("signing-keys", "revoke", rotated)
    done("keys", "list")
    done("signing-keys", "list")
    found = audited(caplog)
    assert [record.getMessage() for record in found] == [
        "api_key.create",
        "api_key.revoke",
        "signing_key.rotate",
        "signing_key.revoke",
    ]
    told = [vars(record) for record in found]
    assert {(fields["actor"], fields["outcome"]) for fields in told} == {(f"command line ({account})", "done")}
    assert [fields["key"] for fields in told] == ["ci", "ci", rotated, rotated]
    assert told[0]["permissions"] == "CREATE REPORT"
    assert key not in str(told)


def test_an_account_without_a_name_is_recorded_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1_234_567)
    assert person() == "command line (1234567)"


def test_what_a_command_was_refused_is_a_sentence_and_no_record(
    run: Run, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("keys", "revoke", "nobody", SPECTRAL_DATABASE_URL=database).code == 1
    assert audited(caplog) == []
