"""Where the server is, and with which credential it is asked.

1. `--url` or SPECTRAL_URL, with SPECTRAL_KEY if that is set.
2. The server of this user's data folder, if it runs. It says where it listens in `address`, a file that it holds locked
   for as long as it does; `admin.key` lies beside it. SPECTRAL_KEY goes before that key.
3. http://127.0.0.1:8000/graphql, with SPECTRAL_KEY if that is set.

The key of the folder is sent to nobody but the server that holds the folder: not to an address that was given
otherwise, not through a proxy, and not to an address that a server left behind, where by now somebody else may listen.
"""

import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from terminal.exits import Exit, Failure

URL: Final = "SPECTRAL_URL"
KEY: Final = "SPECTRAL_KEY"
DATA_DIR: Final = "SPECTRAL_DATA_DIR"
DEFAULT_URL: Final = "http://127.0.0.1:8000/graphql"
PATH: Final = "/graphql"
_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Place:
    """A server and the way to it."""

    url: str
    key: str | None
    # Of this user's own data folder: reached without a proxy.
    own: bool = False


def find_place(url: str | None) -> Place:
    """The server that is meant; `url` is what the command line says of it."""
    key = os.environ.get(KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise Failure(Exit.USAGE, f"{KEY} holds a space or another character that no key has.")
    if given := url or os.environ.get(URL):
        return Place(_whole(given), key)
    folder = data_dir()
    address = _read(folder / "address", held=True)
    if address is None:
        return Place(DEFAULT_URL, key)
    return Place(_whole(address), key or _read(folder / "admin.key"), own=True)


def data_dir() -> Path:
    """The data folder of this user's server."""
    if named := os.environ.get(DATA_DIR):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/spectral-notify")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "spectral-notify"


def _whole(url: str) -> str:
    """The address of the API, of which the path may be left out."""
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        raise Failure(Exit.USAGE, f'The address of the server must be like {DEFAULT_URL}, got "{url}".')
    if parts.username is not None:
        raise Failure(Exit.USAGE, f"The address of the server holds no credential; the key belongs into {KEY}.")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or PATH, parts.query, ""))


def _read(path: Path, *, held: bool = False) -> str | None:
    """What a file of ours says, if there is one; where it must be held, only while somebody has it locked."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
            raise Failure(Exit.USAGE, f"{path} is not a file of yours, so it is not believed; set {URL} and {KEY}.")
        if found.st_mode & 0o077:
            raise Failure(Exit.USAGE, f"Others may use {path}, so it is not believed; chmod 600 it, or set {KEY}.")
        if held and not _is_held(file):
            return None
        return os.read(file, _BYTES_MAX).decode(errors="replace").strip() or None
    finally:
        os.close(file)


def _is_held(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
