import os

import pytest

from graphql_api.settings import PREFIX


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's clients go where the environment says; here, straight to the server."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
