"""Each example, run as its readers run it, while the server is killed and comes back."""

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.clients.conftest import Worlds
from tests.clients.nodejs import EXAMPLES, INSTALL_S, run

# All of npm may be at work before the first of them.
pytestmark = pytest.mark.timeout(INSTALL_S)
JAVASCRIPT: Final = ("graphql-ws", "graphql-sse", "apollo", "urql")


def test_what_is_written_in_typescript_is_clean(node: str, examples: Path) -> None:
    # Here rather than in `make check`: its types are generated when it is built.
    run(examples, "npm", "run", "check")


@pytest.mark.parametrize("name", JAVASCRIPT)
async def test_an_example_in_typescript_misses_no_event_and_prints_none_twice(
    name: str, node: str, examples: Path, worlds: Worlds
) -> None:
    # The hook is a link to a folder, which has packages of its own only to be tested with.
    lines = await _watch(worlds, node, "--preserve-symlinks", examples / "build" / name / "watch.js")
    if name in ("apollo", "urql"):
        # What a screen shows that reads the cache: the task as it is, with all its history.
        assert "task SUCCESS 100 5" in lines


async def test_the_example_with_curl_misses_no_event_and_prints_none_twice(worlds: Worlds) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    await _watch(worlds, EXAMPLES / "curl" / "watch.sh")


async def test_the_example_with_curl_shows_its_key_to_nobody_and_says_when_it_is_refused(worlds: Worlds) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await world.client(EXAMPLES / "curl" / "watch.sh", "T-7", key=world.key)
        await watching.until("event 1 Task created")
        running = _arguments_of_all()
        assert any(arguments.startswith(b"curl\0") and b"T-7" in arguments for arguments in running)
        assert not any(world.key.encode() in arguments for arguments in running)
        await world.complete("T-7")
        assert await watching.end() == 0
        refused = await world.client(EXAMPLES / "curl" / "watch.sh", "T-7", key="wrong")
        assert await refused.end() == 1


async def test_the_example_in_python_misses_no_event_and_prints_none_twice(worlds: Worlds) -> None:
    await _watch(worlds, sys.executable, EXAMPLES / "python-gql" / "watch.py")


def _arguments_of_all() -> list[bytes]:
    """What everybody on the machine can read of all programs that run."""
    found = []
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(arguments.read_bytes())
    return found


async def _watch(worlds: Worlds, *command: str | Path) -> list[str]:
    """Let a program watch a task to its end; what it printed."""
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await world.client(*command, "T-7", key=world.key)
        await watching.until("event 1 Task created")
        await world.report("T-7", 10)
        await watching.until("event 2 Progress updated to 10%")
        await world.server.kill()
        await world.start()
        for progress in (20, 30):
            await world.report("T-7", progress)
        await watching.until("event 4 Progress updated to 30%")
        await world.complete("T-7")
        assert await watching.end() == 0
    assert watching.events == [
        "event 1 Task created",
        *(f"event {number} Progress updated to {10 * number - 10}%" for number in (2, 3, 4)),
        "event 5 Task completed successfully",
    ]
    assert "ended" in watching.lines
    return watching.lines


async def test_the_screen_of_an_app_that_was_in_the_background_misses_no_event(
    node: str, examples: Path, worlds: Worlds
) -> None:
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        script = examples / "build" / "react-native" / "watch.js"
        watching = await world.client(node, "--preserve-symlinks", script, "T-7", key=world.key)
        await watching.until("event 1 Task created")
        await watching.say("background")
        await watching.until("connection paused")
        await world.report("T-7", 10)
        # A phone that wakes up finds another server, and much to catch up with.
        await world.server.kill()
        await world.start()
        await world.report("T-7", 20)
        await watching.say("active")
        await watching.until("event 3 Progress updated to 20%")
        # A call that comes in covers the app; it is not in the background.
        await watching.say("inactive")
        await world.complete("T-7")
        await watching.until("connection ended")
        # Nothing is left to wait for then but its input.
        watching.hang_up()
        assert await watching.end() == 0
        assert watching.events == [
            "event 1 Task created",
            "event 2 Progress updated to 10%",
            "event 3 Progress updated to 20%",
            "event 4 Task completed successfully",
        ]
