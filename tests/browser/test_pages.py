"""The pages in a real browser, on a real server: each function of scenarios/ is a test."""

import asyncio
import re
from collections.abc import Iterator
from typing import Final

import pytest

from storage import Permission
from tests.browser.world import HERE, missing, run, world

# What the server of a scenario is told beside where its database is.
SETTINGS: Final = {"explorer.says_why_nothing_is_explained": {"SPECTRAL_INTROSPECTION": "off"}}
_SCENARIO: Final = re.compile(r"^export async function (\w+)", re.MULTILINE)


def scenarios() -> Iterator[str]:
    """All of them, as FILE.FUNCTION."""
    for script in sorted((HERE / "scenarios").glob("*.mjs")):
        for name in _SCENARIO.findall(script.read_text(encoding="utf-8")):
            yield f"{script.stem}.{name}"


@pytest.mark.parametrize("scenario", list(scenarios()))
def test_in_a_browser(scenario: str, request: pytest.FixtureRequest) -> None:
    if (absent := missing()) is not None:
        pytest.skip(f"the pages are not tried in a browser: {absent}")
    database: str = request.getfixturevalue("database")
    script, _, name = scenario.partition(".")
    with world(SPECTRAL_DATABASE_URL=database, **SETTINGS.get(scenario, {})) as found:
        keys = asyncio.run(found.keys(key=Permission.ADMIN, reader=Permission.READ))
        run(f"scenarios/{script}.mjs", name, found, keys)
