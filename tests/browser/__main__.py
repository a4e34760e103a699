"""Take the pictures of the docs, or measure the dashboard: ``python -m tests.browser screenshots | bench``.

Either is done on a server of its own, with the embedded PostgreSQL in a folder that is thrown away.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.browser.world import missing, run, world

PICTURES: Final = Path(__file__).parent.parent.parent / "docs" / "screenshots"
MINUTES_MAX: Final = 15


def main() -> None:
    """Do what the first argument names."""
    if sys.argv[1:] not in (["screenshots"], ["bench"]):
        sys.exit(__doc__)
    if (absent := missing()) is not None:
        sys.exit(f"This needs a browser and the pages: {absent}.")
    (what,) = sys.argv[1:]
    # Not in a folder of a user's own: as root, PostgreSQL runs as an account that cannot get there.
    with tempfile.TemporaryDirectory(prefix="spectral-browser-") as parent:
        folder = Path(parent) / "data"
        with world(SPECTRAL_DATA_DIR=str(folder)) as served:
            key = (folder / "admin.key").read_text(encoding="utf-8").strip()
            given = {"key": key, "pictures": str(PICTURES)}
            found = run(f"{what}.mjs", what, served, given, timeout_s=60 * MINUTES_MAX)
    for line in found:
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
