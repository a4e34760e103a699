"""What goes wrong is a sentence on stderr and a code of its own, never a traceback."""

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import pytest

from storage.errors import Refusal
from terminal.exits import OF_CODE, Exit
from tests.docs.test_readme import refusals
from tests.terminal.shell import Ended, Server, Shell
from tests.worker.world import free_port


def assert_one_sentence(ended: Ended, code: Exit, *says: str) -> None:
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.err.startswith("spectral-notify: ")
    assert ended.err.endswith(".\n")
    assert ended.err.count("\n") == 1
    assert all(word in ended.err for word in says), ended.err


def test_every_code_of_the_server_has_a_code_of_its_own() -> None:
    # Those of documents are the program's own fault: NO_API.
    documents = {"GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED", "LIST_OUTDATED", "PERSISTED_QUERY_NOT_FOUND"}
    assert refusals(Refusal) - documents <= set(OF_CODE)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "T"), ("event", "T", "m"), ("progress", "T", "1"), ("complete", "T"), ("fail", "T", "e"),
        ("cancel", "T"), ("delete", "T"), ("watch", "T"), ("tail", "T"), ("tail", "T", "--no-follow"),
    ],
)  # fmt: skip
def test_a_task_that_is_not_there(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert_one_sentence(shell(*arguments), Exit.NOT_FOUND, '"T"')


def test_a_task_that_is_there_already(shell: Shell, task: str) -> None:
    assert_one_sentence(shell("create", task), Exit.EXISTS, task)


def test_a_task_that_has_ended(shell: Shell, task: str) -> None:
    shell("cancel", task, code=0)
    for arguments in (("progress", task, "1"), ("event", task, "m"), ("complete", task), ("fail", task, "e")):
        assert_one_sentence(shell(*arguments), Exit.FINISHED, task, "CANCELED")


def test_a_server_that_is_not_there(shell: Shell) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = shell("list", "--url", url, "--patience", "0")
    assert_one_sentence(ended, Exit.UNREACHABLE, f"{url}/graphql", "spectral-notify serve", "SPECTRAL_URL")
    for arguments in (("watch", "T"), ("tail",), ("create",)):
        assert shell(*arguments, "--url", url, "--patience", "0.5").code == Exit.UNREACHABLE


def test_a_server_that_comes_back_within_the_patience_is_waited_for(server: Server) -> None:
    server.stop()
    # Its address is gone with it, so it is named.
    shell = server.shell.with_(SPECTRAL_URL=server.url, SPECTRAL_KEY=server.key)
    with shell.type("create", "--patience", "60") as typed:
        typed.until("cannot be reached: All connection attempts failed; trying again for 60 s")
        server.start()
        code, text = typed.ended()
    assert code == 0
    assert text.splitlines()[-1].startswith("○ PENDING")


@pytest.mark.parametrize("arguments", [("create",), ("list",), ("watch", "T"), ("tail",), ("delete", "T")])
def test_a_wrong_key(shell: Shell, arguments: tuple[str, ...]) -> None:
    ended = shell.with_(SPECTRAL_KEY="spn_0192ca5781b55e52_" + "x" * 43)(*arguments)
    assert_one_sentence(ended, Exit.NO_PERMISSION, "SPECTRAL_KEY")


def test_no_key_and_one_that_may_not(server: Server, task: str) -> None:
    anonymous = server.shell.with_(SPECTRAL_URL=server.url)
    assert_one_sentence(anonymous("list"), Exit.NO_PERMISSION, "SPECTRAL_KEY", "keys create")
    assert_one_sentence(anonymous("tail"), Exit.NO_PERMISSION, "SPECTRAL_KEY")
    # What the policy leaves open needs none.
    assert anonymous("progress", task, "3").code == 0
    key = server.shell("keys", "create", f"reader {task}", "-p", "READ", code=0).out.strip()
    assert_one_sentence(anonymous.with_(SPECTRAL_KEY=key)("create"), Exit.NO_PERMISSION, "CREATE", "SPECTRAL_KEY")


def test_what_the_server_refuses(shell: Shell, task: str) -> None:
    assert_one_sentence(shell("event", task, "x" * 100_000), Exit.REFUSED)
    assert_one_sentence(shell("create", "x" * 300), Exit.REFUSED)
    assert_one_sentence(shell("create", "-t", ""), Exit.REFUSED, "tag")


def test_what_an_error_quotes_is_shown_and_not_obeyed(shell: Shell) -> None:
    obeyed, shown = "T\x1b]0;pwn\x07\x9b2J\u202e", "T\\x1b]0;pwn\\x07\\x9b2J\\x202e"
    assert_one_sentence(shell("show", obeyed), Exit.NOT_FOUND, shown)
    assert_one_sentence(shell("complete", obeyed), Exit.NOT_FOUND, shown)
    assert shown in shell("create", "--start-at", obeyed, code=Exit.USAGE).err
    with answering(200, b'{"errors": [{"message": "\\u001b[2J\\u202e", "extensions": {"code": "FORBIDDEN"}}]}') as url:
        assert_one_sentence(shell("list", "--url", url), Exit.NO_PERMISSION, r"\x1b[2J\x202e.")
    retryable = b'{"errors": [{"message": "\\u001b[2J", "extensions": {"code": "UNAVAILABLE", "retryable": true}}]}'
    with answering(200, retryable) as url, shell.type("list", "--url", url, "--patience", "1") as typed:
        assert r"\x1b[2J" in typed.until("trying again for 1 s")


def test_what_is_no_text_is_refused_before_it_is_sent(shell: Shell) -> None:
    assert_one_sentence(shell("create", "-m", '"\\ud800"'), Exit.REFUSED, "valid Unicode")
    # As it comes from a shell with another encoding.
    assert_one_sentence(shell("show", "\udcff"), Exit.REFUSED, "valid Unicode")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show",), "TASK_ID"),
        (("progress", "T", "101"), "100"),
        (("progress", "T", "half"), "PERCENT"),
        (("event", "T", "m", "--type", "SHOUT"), "SHOUT"),
        (("create", "-m", "{"), "no JSON"),
        (("create", "-m", "NaN"), "NaN"),
        (("create", "-m", "@/nowhere/m.json"), "/nowhere/m.json cannot be read"),
        (("create", "--start-at", "soon"), '"soon" is no time'),
        (("create", "--start-at", "+9999999w"), "calendars"),
        (("create", "--keep-for", "long"), '"long" is no duration'),
        (("create", "--retry-delay", "1s"), "--attempts"),
        (("list", "--status", "DONE"), "DONE"),
        (("tail", "T", "--queue", "q"), "Give a task"),
        (("tail", "--no-follow"), "Without a task"),
        (("list", "--url", "ftp://a"), "ftp://a"),
        (("list", "--url", "http://a:port"), "http://a:port"),
        (("list", "--url", "http://ann:secret@a"), "SPECTRAL_KEY"),
        (("fly",), "fly"),
        (("shwo",), "show"),
    ],
)
def test_a_command_line_that_is_wrong(shell: Shell, arguments: tuple[str, ...], says: str) -> None:
    ended = shell(*arguments)
    assert (ended.code, ended.out) == (Exit.USAGE, "")
    assert says in ended.err
    assert ended.err.splitlines()[-1].startswith("spectral-notify: ")


def test_no_command_at_all_is_the_help(shell: Shell) -> None:
    ended = shell()
    assert ended.code == Exit.USAGE
    assert ended.out == shell("--help", code=0).out


@contextmanager
def answering(
    status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({}), heard: list[str] | None = None
) -> Iterator[str]:
    """A server of something else, and what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            if heard is not None:
                heard.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            # One connection after the other is served.
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/graphql"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, b"<html>", Exit.NO_API),
        (404, b"{}", Exit.NO_API),
        (200, b"[]", Exit.NO_API),
        (200, b'{"data": "\xff"}', Exit.NO_API),
        (200, b"[" * 100_000, Exit.NO_API),
        (502, b"Bad Gateway", Exit.UNREACHABLE),
        (
            200,
            b'{"errors": [{"message": "m.", "extensions": {"code": "INTERNAL_SERVER_ERROR", "id": "7"}}]}',
            Exit.FAULT,
        ),
        (200, b'{"errors": [{"message": "m.", "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}]}', Exit.NO_API),
        (200, b'{"errors": [{"message": "m.", "extensions": {"code": "OPERATION_NOT_ALLOWED"}}]}', Exit.NO_PERMISSION),
    ],
)
def test_a_server_of_something_else(shell: Shell, status: int, body: bytes, code: Exit) -> None:
    with answering(status, body) as url:
        assert_one_sentence(shell("list", "--url", url, "--patience", "0"), code)


@pytest.mark.parametrize("arguments", [("list",), ("watch", "T"), ("tail",)])
def test_a_credential_does_not_follow_a_redirect(shell: Shell, arguments: tuple[str, ...]) -> None:
    elsewhere: list[str] = []
    with answering(404, b"", heard=elsewhere) as other:
        moved = other if arguments == ("list",) else other.replace("http", "ws")
        with answering(302, b"", {"Location": moved}) as url:
            ended = shell.with_(SPECTRAL_KEY="secret")(*arguments, "--url", url, "--patience", "0")
    assert_one_sentence(ended, Exit.NO_API, "302")
    assert elsewhere == []


def test_a_server_whose_database_is_away_is_not_to_be_started(shell: Shell) -> None:
    body = b'{"errors": [{"message": "Away.", "extensions": {"code": "UNAVAILABLE", "retryable": true}}]}'
    with answering(503, body) as url:
        ended = shell("list", "--url", url, "--patience", "0")
    assert_one_sentence(ended, Exit.UNREACHABLE, f"{url} cannot serve now: Away. Its log may say why.")


def test_nobody_reads(shell: Shell, task: str) -> None:
    with shell.start("tail", task) as running:
        running.until("Task created")
        assert running.process.stdout is not None
        running.process.stdout.close()
        running.process.stdout = None
        shell("progress", task, "1", code=0)
        assert running.process.wait(60) == Exit.UNREAD
        assert running.process.stderr is not None
        assert running.process.stderr.read() == b""
