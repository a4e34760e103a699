"""While some ask for too much, everybody else is served as before."""

import json
import math
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

import pytest

from graphql_api.execution.documents import TOKENS_MAX
from tests.hostile.target import JSON, TASK_IDS, Target, serving

# Of one who asks for one thing at a time.
REQUESTS: Final = 300
PAUSE_S: Final = 0.004
TIMES_MAX: Final = 3.0
# What a quiet machine with other things to do takes anyway.
QUIET_S: Final = 0.005
IDLE_SOCKETS: Final = 2_000
MESSAGES: Final = 10_000
DOCUMENTS: Final = 200


def p99_s(target: Target, served: Callable[[], bool] = lambda: True) -> float:
    """The 99th percentile of the time that a well-behaved client waits for an answer."""
    body = json.dumps({"query": f'{{ task(taskId: "{TASK_IDS[0]}") {{ seq }} }}'}).encode()
    waits = []
    while len(waits) < REQUESTS and served():
        start = time.perf_counter()
        target.ask("POST", "/graphql", JSON, body)
        waits.append(time.perf_counter() - start)
        time.sleep(PAUSE_S)
    return statistics.quantiles(waits, n=100)[98]


@contextmanager
def idle_sockets(target: Target) -> Iterator[None]:
    """Two thousand sockets that never introduce themselves."""
    handshake = (
        "GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    ).encode()
    with ExitStack() as stack:

        def flood() -> None:
            for _ in range(IDLE_SOCKETS):
                with suppress(OSError):
                    one = stack.enter_context(socket.create_connection(("127.0.0.1", target.port)))
                    one.sendall(handshake)

        with running(flood):
            yield


@contextmanager
def many_messages(target: Target) -> Iterator[None]:
    """One socket with ten thousand messages."""

    def flood() -> None:
        with suppress(Exception), target.open_socket() as client:
            client.send('{"type":"connection_init"}')
            for number in range(MESSAGES):
                client.send('{"id":"%d","type":"subscribe","payload":{"query":"{viewer{name}}"}}' % number)

    with running(flood):
        yield


@contextmanager
def documents_at_every_limit(target: Target) -> Iterator[None]:
    """Two hundred documents, none like another, each as large as one may be."""
    other = Target(target.port, 0, target.key)

    def flood() -> None:
        for number in range(DOCUMENTS):
            fields = " ".join(f"a{number}_{place}: taskId" for place in range(TOKENS_MAX // 4))
            query = f'{{ task(taskId: "{TASK_IDS[0]}") {{ {fields} }} }}'
            other.ask("POST", "/graphql", JSON, json.dumps({"query": query}).encode())
        other.close()

    with running(flood):
        yield


@contextmanager
def running(flood: Callable[[], None]) -> Iterator[None]:
    """Run it beside."""
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("flood", [idle_sockets, many_messages, documents_at_every_limit])
def test_a_flood_costs_others_little(database: str, flood: Callable[[Target], object]) -> None:
    with serving(database) as target:
        quiet_s = max(p99_s(target), QUIET_S)
        with flood(target):  # type: ignore[attr-defined]
            flooded_s = p99_s(target)
        print("quiet %.1f ms, flooded %.1f ms" % (quiet_s*1e3, flooded_s*1e3))
        assert flooded_s < TIMES_MAX * quiet_s
