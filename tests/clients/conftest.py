from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.clients import nodejs
from tests.clients.world import World, world

Worlds: TypeAlias = Callable[..., AbstractAsyncContextManager[World]]
"""Takes settings, by their whole names, and serves with them."""


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js."""
    return nodejs.node()


@pytest.fixture(scope="session")
def hook(node: str) -> Path:
    """The hook, built, with its tests."""
    nodejs.build_hook()
    return nodejs.HOOK


@pytest.fixture(scope="session")
def examples(hook: Path) -> Path:
    """The examples, built."""
    nodejs.build_examples()
    return nodejs.EXAMPLES


@pytest.fixture
def worlds(database: str, tmp_path: Path) -> Worlds:
    def serve(**settings: str) -> AbstractAsyncContextManager[World]:
        return world(database, tmp_path / "server.log", list(settings.items()))

    return serve
