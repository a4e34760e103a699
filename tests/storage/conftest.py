"""The ways between processes, as tests of the storage ask for them."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.nats import NatsServer


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """A NATS server for one test alone."""
    server = NatsServer()
    asyncio.run(server.start())
    yield server
    server.kill()


@pytest.fixture(params=["postgres", "nats"])
def feed_url(request: pytest.FixtureRequest, database: str) -> str:
    """Each of the ways by which processes hear of each other."""
    if request.param == "postgres":
        return database
    server = request.getfixturevalue("nats")
    assert isinstance(server, NatsServer)
    return server.url
