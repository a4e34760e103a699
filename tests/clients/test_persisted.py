"""Persisted queries as Apollo's link and urql's exchange send them."""

from pathlib import Path

import pytest

from tests.clients.conftest import Worlds
from tests.clients.nodejs import INSTALL_S

# All of npm may be at work before the first of them.
pytestmark = pytest.mark.timeout(INSTALL_S)


@pytest.mark.parametrize("execution", ("compiled", "interpreted"))
async def test_a_document_is_sent_once_and_then_its_hash(
    execution: str, node: str, examples: Path, worlds: Worlds
) -> None:
    async with worlds(SPECTRAL_EXECUTION=execution) as world:
        await world.create("T-7")
        asking = await world.client(node, "--preserve-symlinks", examples / "build" / "persisted.js", "T-7")
        assert await asking.end() == 0
    # They print a document each in their own way, so each is unknown once.
    known = ["sent hash", "apollo PENDING", "sent hash", "urql PENDING"]
    unknown = [word for line in known for word in ([line, "sent hash document"] if line == "sent hash" else [line])]
    assert asking.lines == unknown + known
