"""The pages as tests see them: their blocks of code, and a server of its own to run them against."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parent.parent.parent
BIN: Final = Path(sys.executable).parent
PAGES: Final = sorted([TOP / "README.md", TOP / "CHANGELOG.md", *(TOP / "docs").glob("*.md")])
# How long a server may take to be up, on the slowest machine: it makes a database first.
WAIT_S: Final = 60
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SERVES: Final = re.compile(r" serves http://[^:]+:(\d+)/graphql ")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def surroundings(**settings: str) -> dict[str, str]:
    """The environment of this process with these settings and no others, and without proxies."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("SPECTRAL_")}
    return {**rest, "no_proxy": "*", "NO_PROXY": "*", **settings}


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs as a process of its own."""

    port: int
    environment: Mapping[str, str]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(
    environment: Mapping[str, str], port: int = 0, program: Sequence[str | Path] = (BIN / "spectral-notify",)
) -> Iterator[Served]:
    """``spectral-notify serve`` on this port or a free one, until the block ends; it must end well."""
    process = subprocess.Popen(
        [*program, "serve"],
        env={**environment, "SPECTRAL_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    up = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if _SERVES.search(line):
                up.set()
        up.set()

    listener = threading.Thread(target=listen, name="log of the server")
    listener.start()
    try:
        assert up.wait(WAIT_S), "".join(said)
        found_port = next((found[1] for line in said if (found := _SERVES.search(line))), None)
        assert found_port is not None, "".join(said)
        yield Served(int(found_port), environment)
    finally:
        process.terminate()
        try:
            status = process.wait(WAIT_S)
        finally:
            process.kill()
            listener.join()
            assert process.stderr is not None
            process.stderr.close()
    assert status == 0, "".join(said)
