"""The program: what is loaded for which command, its help, and what the shell completes."""

import os
import subprocess
import sys
import textwrap

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from graphql_api import cli, program
from terminal import documents
from tests.docs.pages import BIN, TOP
from tests.terminal.shell import Shell


def test_what_is_said_of_the_commands_of_the_server_is_what_they_say() -> None:
    group = get_command(cli.app)
    assert isinstance(group, TyperGroup)
    found = {
        name: (command.help or "").partition("\n\n")[0].replace("\n", " ") for name, command in group.commands.items()
    }
    assert found == dict(program.COMMANDS)


def loaded(code: str) -> set[str]:
    """The packages that are loaded after this."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True, timeout=60)
    return set(ran.stdout.splitlines()[-1].split())


def test_a_command_for_tasks_loads_nothing_of_the_server() -> None:
    everything = "import graphql_api.program, terminal.tail, terminal.demo, terminal.completion, terminal.session"
    server = {"storage", "strawberry", "graphql", "sqlalchemy", "asyncpg", "uvicorn", "starlette", "uvloop"}
    assert not loaded(everything) & server


def test_the_help_and_the_commands_of_the_server_load_nothing_of_the_client() -> None:
    assert not loaded("import graphql_api.program") & {"httpx", "websockets", "rich", "asyncio", "storage"}
    assert "httpx" not in loaded("import graphql_api.program, graphql_api.cli")


def test_the_help_names_all_commands_by_whose_they_are(shell: Shell) -> None:
    out = shell("--help", code=0).out
    sections = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections == ["Options:", "Tasks:", "Reports:", "Server:"]
    for command in get_command(program.app).commands:  # type: ignore[attr-defined]
        assert f"\n  {command} " in out
        assert shell(command, "--help", code=0).out.startswith(f"Usage: spectral-notify {command} ")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_each_shell(shell: Shell, name: str) -> None:
    # Which shell it is, is found out by looking at who started it.
    script = f'"{BIN}/spectral-notify" --show-completion {name}; true'
    environment = {**shell.environment, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert "_SPECTRAL_NOTIFY_COMPLETE" in ran.stdout


def complete(shell: Shell, words: str) -> list[str]:
    """What bash is offered for the last word."""
    typed = words.split(" ")
    environment = {
        **shell.environment,
        "_SPECTRAL_NOTIFY_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(typed) - 1),
    }
    ran = subprocess.run([BIN / "spectral-notify"], env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout.split("\n")[:-1] if ran.stdout.strip() else []


def test_commands_options_and_tasks_are_completed(shell: Shell) -> None:
    task_id = f"complete-me-{os.getpid()}"
    shell("create", task_id, code=0)
    assert complete(shell, "spectral-notify wat") == ["watch"]
    assert complete(shell, "spectral-notify keys cr") == ["create"]
    assert "--json" in complete(shell, "spectral-notify list --j")
    assert complete(shell, "spectral-notify list --status fai") == ["FAILED"]
    assert task_id in complete(shell, "spectral-notify watch complete-me-")
    nowhere = shell.with_(SPECTRAL_URL="http://127.0.0.1:1")
    assert complete(nowhere, "spectral-notify watch complete-me-") == []


def test_no_task_is_offered_to_a_shell_that_would_read_more_in_it_than_a_word(shell: Shell) -> None:
    begun = f"tab-{os.getpid()}"
    plain = [f"{begun}-a.b,c:d@e%f+g/h=i_1", f"{begun}-čeština"]
    # zsh evaluates what it is offered: a backslash undoes how typer quotes the rest.
    hostile = [
        ";id", "$(id)", "`id`", r"\$(id)", r"\`id`", "'id'", '"id"', "|id", "&id", "<id", ">id", "(id)", "*", "?",
        "[a]", "{a,b}", "!id", "#id", " id", "~", "^", "\x1b[2J", "\u202eid", "\u00a0id",
    ]  # fmt: skip
    for task_id in plain:
        shell("create", task_id, code=0)
    script = f"""
        import asyncio
        from terminal.documents import CREATE
        from terminal.place import find_place
        from terminal.session import Session
        async def main():
            session = Session(find_place(None), 10)
            for task_id in {[*(begun + end for end in hostile), f"--url=http://{begun}", f"={begun}"]!r}:
                await session.ask(CREATE, taskId=task_id)
            await session.close()
        asyncio.run(main())
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=dict(shell.environment), cwd=TOP, check=True, timeout=60
    )
    assert sorted(complete(shell, f"spectral-notify watch {begun}")) == sorted(plain)
    assert not any(begun in task_id for task_id in complete(shell, "spectral-notify watch -"))


def test_every_document_is_valid() -> None:
    from graphql import build_schema, parse, validate

    schema = build_schema((TOP / "schema.graphql").read_text())
    texts = [value for name, value in vars(documents).items() if name.isupper() and not name.startswith("_")]
    assert len(texts) > 10
    for text in texts:
        assert validate(schema, parse(text)) == []
