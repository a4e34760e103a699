from collections.abc import Iterator

import pytest

from tests.docs.pages import Served, serving, surroundings


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A first start in an empty folder."""
    folder = tmp_path_factory.mktemp("docs") / "data"
    with serving(surroundings(SPECTRAL_DATA_DIR=str(folder))) as served:
        yield served
