"""A server, a Chromium, and a script for it that runs in Node.js and asks for what it cannot do itself.

The script is `run.mjs`, which says what it asks for, and how it ended, in lines of JSON.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from graphql_api import pages
from storage import Permission, open_storage
from tests.docs.pages import serving, surroundings

HERE: Final = Path(__file__).parent
# How long a scenario may take, on the slowest machine.
SCENARIO_S: Final = 110.0
_CHROMIUMS: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def chromium() -> str | None:
    """A Chromium of this machine."""
    return next(filter(None, map(shutil.which, _CHROMIUMS)), None)


def missing() -> str | None:
    """What is not here that the tests need; None when all is."""
    if chromium() is None:
        return f"no browser is found ({', '.join(_CHROMIUMS)})"
    if shutil.which("node") is None:
        return "no Node.js is found"
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        return "npm ci was not run in tests/browser; `make test` does it"
    if not pages.is_built(pages.BUILT):
        return "the pages are not built; `make web` builds them"
    return None


class World:
    """A server on a database, which can be stopped and started on the same port, and keys to it."""

    def __init__(self, environment: Mapping[str, str], stack: ExitStack) -> None:
        self._environment = environment
        self._stack = stack
        self._running = ExitStack()
        self._port = 0

    def start(self) -> None:
        """Start the server."""
        self._stack.push(self._running)
        self._port = self._running.enter_context(serving(self._environment, self._port)).port

    def stop(self) -> None:
        """Stop it, in order."""
        self._running.close()

    @property
    def origin(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    async def keys(self, **permissions: Permission) -> dict[str, str]:
        """New API keys, each with one permission and under this name."""
        async with open_storage(self._environment["SPECTRAL_DATABASE_URL"], upgrade=False) as storage:
            return {name: await storage.keys.create(name, [permission]) for name, permission in permissions.items()}


@contextmanager
def world(**settings: str) -> Iterator[World]:
    """A server with these settings until the block ends."""
    with ExitStack() as stack:
        found = World(surroundings(**settings), stack)
        found.start()
        yield found


def run(script: str, name: str, world: World, given: Mapping[str, Any], *, timeout_s: float = SCENARIO_S) -> Any:
    """Run what a script exports under this name, and return what it returns; AssertionError says how it failed."""
    node = shutil.which("node")
    assert node is not None
    with tempfile.TemporaryDirectory(prefix="spectral-browser-") as profile:
        told = {"origin": world.origin, "chromium": chromium(), "profile": profile, **given}
        process = subprocess.Popen(
            [node, HERE / "run.mjs", HERE / script, name, json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HOME": profile},
        )
        with process:
            overdue = threading.Timer(timeout_s, process.kill)
            overdue.start()
            try:
                return _converse(process, world)
            finally:
                overdue.cancel()
                process.kill()


def _converse(process: "subprocess.Popen[str]", world: World) -> Any:
    __tracebackhide__ = True
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        if not line.startswith('{"scenario"'):
            said.append(line)
            continue
        match json.loads(line)["scenario"]:
            case {"ask": "stop"}:
                world.stop()
            case {"ask": "start"}:
                world.start()
            case {"ended": result}:
                return result
        process.stdin.write("done\n")
        process.stdin.flush()
    raise AssertionError("".join(said) or "The browser did not come to an end in time.")
