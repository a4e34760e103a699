"""The hook's package: its own tests, and what it sees of a real server that dies, stops and lets credentials end."""

import signal
from pathlib import Path
from typing import Final

import pytest

from tests.clients.conftest import Worlds
from tests.clients.nodejs import INSTALL_S, run
from tests.clients.world import Client, World

# All of npm may be at work before the first of them.
pytestmark = pytest.mark.timeout(INSTALL_S)
A_DAY_S: Final = "86400"


async def follow(world: World, node: str, hook: Path, token_s: str = A_DAY_S, renew_ms: str = "0") -> Client:
    """A client that follows T-7 with a task token."""
    return await world.client(node, hook / "build" / "tests" / "watch.js", "T-7", token_s, renew_ms, key=world.key)


def progress(count: int) -> list[str]:
    """What is printed of so many reports."""
    return [
        "event 1 Task created",
        *(f"event {number + 2} Progress updated to {number % 100}%" for number in range(count)),
        f"event {count + 2} Task completed successfully",
    ]


def test_its_own_tests_pass(node: str, hook: Path) -> None:
    run(hook, node, "--test", *(str(path) for path in sorted((hook / "build" / "tests").glob("*.test.js"))))


async def test_no_event_is_missed_or_seen_twice_while_the_server_is_killed_again_and_again(
    node: str, hook: Path, worlds: Worlds
) -> None:
    reports = 120
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await follow(world, node, hook)
        await watching.until("event 1 Task created")
        for number in range(reports):
            if number in (40, 80):
                # It is there again, so that it loses its connection twice.
                await watching.until(f"event {number + 1} Progress updated to {number - 1}%")
                await world.killed()
            await world.report("T-7", number % 100)
        await world.complete("T-7")
        await watching.until("connection ended")
        assert await watching.end() == 0
    assert watching.events == progress(reports)
    assert watching.lines.count("connection reconnecting") == 2
    assert watching.lines[-1] == "kept 10 there"


async def test_a_server_that_stops_in_order_is_waited_for(node: str, hook: Path, worlds: Worlds) -> None:
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await follow(world, node, hook)
        await watching.until("connection live")
        assert await world.server.stop() == 0
        await watching.until("connection reconnecting")
        await world.start()
        await world.report("T-7", 0)
        await watching.until("connection live")
        await world.complete("T-7")
        assert await watching.end() == 0
    assert watching.events == progress(1)


async def test_a_credential_that_ends_is_replaced(node: str, hook: Path, worlds: Worlds) -> None:
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await follow(world, node, hook, token_s="2")
        await watching.until("connection live")
        await watching.until("connection reconnecting")
        await watching.until("greeted")
        await world.report("T-7", 0)
        await watching.until("event 2 Progress updated to 0%")
        await world.complete("T-7")
        assert await watching.end() == 0
    assert watching.events == progress(1)


async def test_a_credential_that_is_renewed_in_time_ends_nothing(node: str, hook: Path, worlds: Worlds) -> None:
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await follow(world, node, hook, token_s="6", renew_ms="1000")
        # By the last of them the first token has ended, and whoever watches over credentials has looked.
        for _ in range(11):
            await watching.until("renewed accepted")
        await world.report("T-7", 0)
        await world.complete("T-7")
        assert await watching.end() == 0
    assert watching.events == progress(1)
    assert watching.lines.count("greeted") == 1


async def test_a_deletion_ends_it(node: str, hook: Path, worlds: Worlds) -> None:
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        watching = await follow(world, node, hook)
        await watching.until("connection live")
        await world.delete("T-7")
        await watching.until("connection ended")
        assert await watching.end() == 0
    assert watching.lines[-1] == "kept 1 deleted"


async def test_a_task_that_was_created_again_starts_over(node: str, hook: Path, worlds: Worlds) -> None:
    async with worlds(SPECTRAL_ACCESS="closed") as world:
        await world.create("T-7")
        await world.report("T-7", 0)
        watching = await follow(world, node, hook)
        await watching.until("event 2 Progress updated to 0%")
        # While it cannot hear of it.
        watching.process.send_signal(signal.SIGSTOP)
        await world.killed()
        await world.delete("T-7")
        await world.create("T-7")
        watching.process.send_signal(signal.SIGCONT)
        await watching.until("started over")
        await world.complete("T-7")
        assert await watching.end() == 0
    assert watching.events == [
        "event 1 Task created",
        "event 2 Progress updated to 0%",
        "event 1 Task created",
        "event 2 Task completed successfully",
    ]
