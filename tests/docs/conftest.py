import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import Served, serving, surroundings


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """A first start in an empty folder."""
    # Not in pytest's own folder: each session that starts closes that to the account which runs PostgreSQL as root.
    with (
        tempfile.TemporaryDirectory(prefix="spectral-test-") as parent,
        serving(surroundings(SPECTRAL_DATA_DIR=str(Path(parent) / "data"))) as served,
    ):
        yield served
