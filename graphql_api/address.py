"""Where a server with the embedded PostgreSQL listens, told to the programs of the same user by a file.

The file `address` lies in the data folder, beside the key. It is this server's for as long as the server holds it
locked; the kernel ends that however the process dies, so nobody is led to an address that it has left. It is made under
another name first, so that it is locked whenever it can be seen.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

NAME: Final = "address"
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - nothing is bound to it


@contextmanager
def telling(data_dir: Path, url: str) -> Iterator[Callable[[], None]]:
    """Tell where this server is, until the block ends or what is yielded is called."""
    for anywhere, here in _ANYWHERE.items():
        # Who listens everywhere is here, too.
        url = url.replace(f"//{anywhere}:", f"//{here}:")
    path = data_dir / NAME
    try:
        file = _write(path, url)
    except OSError as error:
        log.warning("%s cannot be written, so clients on this machine must be given SPECTRAL_URL: %s", path, error)
        yield lambda: None
        return
    told = True

    def withdraw() -> None:
        nonlocal told
        if told:
            told = False
            with suppress(OSError):
                path.unlink()

    try:
        yield withdraw
    finally:
        withdraw()
        os.close(file)


def _write(path: Path, url: str) -> int:
    """Make the file; what is returned holds the lock."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, f"{url}\n".encode())
        new.rename(path)
    except OSError:
        os.close(file)
        raise
    return file
