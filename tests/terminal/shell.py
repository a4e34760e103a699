"""A shell for tests: a server of this user's own, and commands beside it as processes of their own."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from tests.docs.pages import BIN, WAIT_S, surroundings

PROGRAM: Final = str(BIN / "spectral-notify")
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document that it printed."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The lines of JSON that it printed."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Shell:
    """An environment in which commands run."""

    environment: Mapping[str, str]

    def with_(self, **environment: str | None) -> "Shell":
        """The same with other variables; None takes one away."""
        merged = {**self.environment, **environment}
        return Shell({name: value for name, value in merged.items() if value is not None})

    def __call__(self, *arguments: str, stdin: str = "", code: int | None = None) -> Ended:
        """Run a command to its end."""
        ran = subprocess.run(
            [PROGRAM, *arguments], env=dict(self.environment), input=stdin, capture_output=True, text=True,
            timeout=WAIT_S,
        )  # fmt: skip
        assert "Traceback" not in ran.stderr, ran.stderr
        if code is not None:
            assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    def start(self, *arguments: str) -> "Running":
        """Start a command whose output is a pipe."""
        return Running(arguments, self.environment)

    def type(self, *arguments: str, columns: int = 100, rows: int = 30) -> "Typed":
        """Start a command in a terminal."""
        return Typed(arguments, self.environment, columns, rows)


class Running:
    """A command while it runs, and what it prints line by line."""

    def __init__(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.said = b""

    def until(self, mark: str) -> str:
        """Read until it has printed this."""
        assert self.process.stdout is not None
        return _read_until(self, self.process.stdout.fileno(), mark)

    def ended(self) -> Ended:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=WAIT_S)
        self.said += out
        assert "Traceback" not in err.decode(), err.decode()
        return Ended(self.process.returncode, self.said.decode(), err.decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Typed:
    """A command in a terminal, and all that was drawn there."""

    def __init__(self, arguments: tuple[str, ...], environment: Mapping[str, str], columns: int, rows: int) -> None:
        outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        without = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env={**without, "TERM": "xterm-256color", **{k: v for k, v in environment.items() if k == "NO_COLOR"}},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inner)
        self._terminal = outer
        self.said = b""

    def until(self, mark: str) -> str:
        """Read until this was drawn."""
        return _read_until(self, self._terminal, mark)

    def press_ctrl_c(self) -> None:
        """Type the interrupt."""
        os.write(self._terminal, b"\x03")

    def ended(self) -> tuple[int, str]:
        """Wait for its end; the code, and all that was drawn, without what moves and colours."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    found = os.read(self._terminal, 65536)
                except OSError:
                    break
                self.said += found
            elif self.process.poll() is not None:
                break
        return self.process.wait(WAIT_S), self.text

    @property
    def text(self) -> str:
        return _CONTROL.sub("", self.said.decode(errors="replace"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


def _read_until(what: Running | Typed, file: int, mark: str) -> str:
    deadline = time.monotonic() + WAIT_S
    while mark not in _CONTROL.sub("", what.said.decode(errors="replace")):
        assert time.monotonic() < deadline, what.said
        if select.select([file], [], [], 0.2)[0]:
            found = os.read(file, 65536)
            assert found, what.said
            what.said += found
    return what.said.decode(errors="replace")


@dataclass
class Server:
    """A server on the embedded PostgreSQL of a folder, which can be ended and started again on its port."""

    data_dir: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Serve; return when it does."""
        environment = surroundings(SPECTRAL_DATA_DIR=str(self.data_dir), SPECTRAL_PORT=str(self.port))
        with (self.data_dir.parent / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "serve"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        deadline = time.monotonic() + WAIT_S
        log_file = self.data_dir.parent / "server.log"
        already = 0 if self.port == 0 else log_file.read_text().count(" serves http")
        while log_file.read_text().count(" serves http") <= already:
            assert self.process.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline, log_file.read_text()
            time.sleep(0.02)
        (self.port,) = {int(port) for port in re.findall(r" serves http://[^:]+:(\d+)/", log_file.read_text())}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and see it ended."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=WAIT_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def shell(self) -> Shell:
        """Where commands find this server without being told."""
        return Shell(surroundings(SPECTRAL_DATA_DIR=str(self.data_dir)))


@contextmanager
def serving(data_dir: Path) -> Iterator[Server]:
    """A server, until the block ends."""
    server = Server(data_dir)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
