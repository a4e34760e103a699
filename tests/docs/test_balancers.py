"""The load balancers that are written down here, run for real before two servers of one database."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.docs.pages import BIN, TOP, WAIT_S, Served, blocks, serving, surroundings

SEARCHED: Final = f"{os.environ.get('PATH', '')}:/usr/sbin"
OPERATIONS: Final = TOP / "docs" / "operations.md"
PROTOCOL: Final = Subprotocol("graphql-transport-ws")
SUBSCRIPTION: Final = 'subscription { taskUpdates(taskId: "%s") { type task { seq } } }'


def caddy(folder: Path, port: int, servers: list[str]) -> list[str]:
    """The block of docs/operations.md."""
    (text,) = blocks(OPERATIONS, "caddy")
    text = replaced(text, "tasks.example.com {", f"http://127.0.0.1:{port} {{")
    text = replaced(text, "10.0.0.11:8000 10.0.0.12:8000", " ".join(servers))
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{text}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def nginx(folder: Path, port: int, servers: list[str]) -> list[str]:
    """The block of docs/operations.md, in what surrounds it on a machine."""
    (text,) = blocks(OPERATIONS, "nginx")
    text = replaced(text, "listen 80;", f"listen 127.0.0.1:{port};")
    for name, server in zip(("10.0.0.11:8000", "10.0.0.12:8000"), servers, strict=True):
        text = replaced(text, name, server)
    return of_nginx(folder, f"events {{}}\nhttp {{\naccess_log off;\n{text}\n}}\n")


def nginx_of_compose(folder: Path, port: int, servers: list[str]) -> list[str]:
    """docker/nginx.conf, with addresses for the name that Docker would resolve."""
    text = (TOP / "docker" / "nginx.conf").read_text()
    text = replaced(text, "listen 8000;", f"listen 127.0.0.1:{port};")
    (line,) = re.findall(r"^ +server api:8000 .*$", text, re.MULTILINE)
    # Debian 12's nginx is older than `resolve`.
    lines = (line.replace("api:8000 resolve", server) for server in servers)
    return of_nginx(folder, text.replace(line, "\n".join(lines)))


def of_nginx(folder: Path, text: str) -> list[str]:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    kept = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(replaced(text, "http {", f"http {{\n{kept}"))
    user = "user root;" if os.geteuid() == 0 else ""
    log = f"{folder}/error.log"
    ours = f"daemon off; {user} pid {folder}/pid; error_log {log};"
    return ["nginx", "-p", str(folder), "-e", log, "-c", str(folder / "nginx.conf"), "-g", ours]


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@contextmanager
def running(configure: Callable[..., list[str]], servers: list[Served]) -> Iterator[str]:
    """The address of the balancer."""
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="spectral-test-") as parent:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        program, *arguments = configure(Path(parent), port, [f"127.0.0.1:{server.port}" for server in servers])
        found = shutil.which(program, path=SEARCHED)
        if found is None:
            pytest.skip(f"{program} is not installed")
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), parent)
        with (Path(parent) / "log").open("w") as log:
            process = subprocess.Popen([found, *arguments], env=surroundings(**homes), stdout=log, stderr=log)
        try:
            origin = f"127.0.0.1:{port}"
            until(lambda: answers(origin), lambda: (Path(parent) / "log").read_text())
            yield origin
        finally:
            process.terminate()
            process.wait(WAIT_S)


def until(condition: Callable[[], bool], explained: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, explained()
        time.sleep(0.05)


def answers(origin: str) -> bool:
    try:
        return httpx.get(f"http://{origin}/readyz", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def takes_posts(origin: str) -> bool:
    url = f"http://{origin}/graphql"
    return httpx.post(url, json={"query": "{ __typename }"}, trust_env=False, timeout=WAIT_S).status_code == 200


def ask(origin: str, query: str, key: str) -> dict[str, Any]:
    answer = httpx.post(
        f"http://{origin}/graphql",
        json={"query": query},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=WAIT_S,
    )
    result: dict[str, Any] = answer.json()
    assert "errors" not in result, result
    return result


def subscribe(ws: ClientConnection, task_id: str) -> None:
    ws.send(json.dumps({"type": "connection_init"}))
    assert json.loads(ws.recv(WAIT_S))["type"] == "connection_ack"
    ws.send(json.dumps({"id": "1", "type": "subscribe", "payload": {"query": SUBSCRIPTION % task_id}}))


def seq(message: Any) -> int:
    return int(message["data"]["taskUpdates"]["task"]["seq"])


@pytest.mark.parametrize("configure", [caddy, nginx, nginx_of_compose])
def test_requests_sockets_and_streams_pass_and_a_server_may_go(
    configure: Callable[..., list[str]], database: str
) -> None:
    environment = surroundings(SPECTRAL_DATABASE_URL=database)
    created = subprocess.run(
        [BIN / "spectral-notify", "keys", "create", "admin", "--permission", "ADMIN"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    key = created.stdout.strip()
    with ExitStack() as stack:
        first = ExitStack()
        servers = [stack.enter_context(serving(environment)), first.enter_context(serving(environment))]
        stack.push(first)
        origin = stack.enter_context(running(configure, servers))
        ask(origin, 'mutation { create(taskId: "T", status: IN_PROGRESS) { seq } }', key)
        report = 'mutation { updateProgress(taskId: "T", progress: 5) { seq } }'

        with connect(f"ws://{origin}/graphql", subprotocols=[PROTOCOL], proxy=None) as ws:
            subscribe(ws, "T")
            assert seq(json.loads(ws.recv(WAIT_S))["payload"]) == 1
            ask(origin, report, key)
            assert seq(json.loads(ws.recv(WAIT_S))["payload"]) == 2

        # An event comes while the answer goes on: nothing is held back until there is more.
        with httpx.stream(
            "POST",
            f"http://{origin}/graphql",
            json={"query": SUBSCRIPTION % "T"},
            headers={"Accept": "text/event-stream"},
            trust_env=False,
            timeout=WAIT_S,
        ) as answer:
            events = (json.loads(line[5:]) for line in answer.iter_lines() if re.match(r"data: ?\{", line))
            assert seq(next(events)) == 2
            ask(origin, report, key)
            assert seq(next(events)) == 3

        # What the browser sent as Host must reach the server: pages of the same origin are known by it.
        with connect(
            f"ws://{origin}/graphql",
            subprotocols=[PROTOCOL],
            origin=Origin(f"http://{origin}"),
            proxy=None,
        ) as ws:
            subscribe(ws, "T")
            ws.recv(WAIT_S)

        # A deploy: nobody who asks meanwhile notices.
        first.close()
        if configure is caddy:
            # It answers a POST with 502 for a moment, which the page says.
            until(lambda: all(takes_posts(origin) for _ in range(20)))
        for number in range(20):
            assert ask(origin, report, key)["data"]["updateProgress"]["seq"] == 4 + number
