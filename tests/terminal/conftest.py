import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminal.shell import Server, Shell, serving


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """A server in a folder of its own."""
    # Not in pytest's own folder: each session that starts closes that to the account which runs PostgreSQL as root.
    with tempfile.TemporaryDirectory(prefix="spectral-test-") as parent, serving(Path(parent) / "data") as server:
        yield server


@pytest.fixture
def shell(server: Server) -> Shell:
    """A shell of the user whose server runs, where nothing else is set."""
    return server.shell


@pytest.fixture
def task(shell: Shell) -> str:
    """The ID of a new task."""
    task_id = f"task {uuid.uuid4().hex[:8]}"
    shell("create", task_id, code=0)
    return task_id
