"""Those who ask for too much, as processes of their own: ``python -m tests.hostile.floods NAME PORT KEY TASK_ID``.

They say on stdout when they begin, and go on until their stdin ends.
"""

import itertools
import json
import os
import select
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

IDLE_SOCKETS: Final = 2_000
MESSAGES: Final = 10_000
# As large as a document may be.
FIELDS: Final = 240
HANDSHAKE: Final = (
    b"GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)
VIEWER: Final = "{viewer{name}}"


class Flooder:
    """Somebody with a port to flood."""

    def __init__(self, port: int, key: str, task_id: str) -> None:
        self._port = port
        self._key = key
        self._task_id = task_id

    def idle_sockets(self) -> Iterator[None]:
        """Two thousand sockets that never introduce themselves; those that are closed for it are opened again."""
        kept: deque[socket.socket] = deque()
        while True:
            kept.append(self._connect(HANDSHAKE))
            if len(kept) > IDLE_SOCKETS:
                kept.popleft().close()
            yield

    def messages(self) -> Iterator[None]:
        """Ten thousand operations over one socket, which reads no answer until all are sent; then another socket."""
        while True:
            one = self._connect(HANDSHAKE + self._frame({"type": "connection_init"}))
            one.setblocking(False)
            for number in range(MESSAGES):
                subscribe = {"id": str(number), "type": "subscribe", "payload": {"query": VIEWER}}
                self._push(one, self._frame(subscribe))
                yield

    def deaf_subscribers(self) -> Iterator[None]:
        """A client that subscribes a hundred times and never reads, while its task changes."""
        deaf = self._connect(HANDSHAKE + self._frame({"type": "connection_init"}))
        query = f'subscription {{ taskUpdates(taskId: "{self._task_id}") {{ events {{ message metadata }} }} }}'
        for number in range(100):
            deaf.sendall(self._frame({"id": str(number), "type": "subscribe", "payload": {"query": query}}))
        reporter = self._connect(b"")
        event = f'{{ eventType: LOG, message: "{"x" * 1_000}" }}'
        body = json.dumps({"query": f'mutation {{ addEvent(taskId: "{self._task_id}", event: {event}) {{ seq }} }}'})
        while True:
            self._ask(reporter, body)
            yield

    def documents(self) -> Iterator[None]:
        """Documents at every limit, none like another."""
        one = self._connect(b"")
        for number in itertools.count():
            fields = " ".join(f"a{number}_{place}: taskId" for place in range(FIELDS))
            self._ask(one, json.dumps({"query": f'{{ task(taskId: "{self._task_id}") {{ {fields} }} }}'}))
            yield

    def _connect(self, said: bytes) -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self._port))
        one.sendall(said)
        return one

    def _frame(self, message: Mapping[str, object]) -> bytes:
        text = json.dumps(message).encode()
        size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
        # The mask is nought, so it changes nothing.
        return b"\x81" + size + bytes(4) + text

    def _push(self, one: socket.socket, frame: bytes) -> None:
        """Send a frame; when the server takes no more, read what it says."""
        while frame:
            readable, writable, _ = select.select([one], [one], [])
            if writable:
                frame = frame[one.send(frame) :]
            elif readable:
                one.recv(1 << 20)

    def _ask(self, one: socket.socket, body: str) -> None:
        head = f"POST /graphql HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n"
        one.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        with one.makefile("rb") as file:
            length = 0
            while line := file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            file.read(length)


FLOODS: Final[Mapping[str, Callable[[Flooder], Iterator[None]]]] = {
    flood.__name__: flood
    for flood in (Flooder.idle_sockets, Flooder.messages, Flooder.deaf_subscribers, Flooder.documents)
}


def main() -> None:
    """Flood until nobody wants it any more."""
    # As if it were another machine, which takes no time from ours.
    os.nice(19)
    name, port, key, task_id = sys.argv[1:]
    flood = FLOODS[name](Flooder(int(port), key, task_id))
    # What comes first is there when it is said to have begun.
    for _ in itertools.islice(flood, IDLE_SOCKETS if name == "idle_sockets" else 1):
        pass
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        next(flood)


if __name__ == "__main__":
    main()
