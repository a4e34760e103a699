"""A PostgreSQL of our own, for whoever names no database.

One process at a time owns it: the one that holds ``lock`` in the data folder. A server owns it while it serves, and
commands started beside it are its guests. A command that finds nobody owns it for the moment.

=========  ======================  =====================  ==================
who comes  a server holds it       a command holds it     nobody holds it
=========  ======================  =====================  ==================
server     refused                 waits                  starts, stops it
command    is a guest              waits                  starts, stops it
=========  ======================  =====================  ==================

A known gap: a PostgreSQL that dies while it is owned is not started again before the program is.
"""

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final, Literal

from storage.embedded_cluster import Cluster
from storage.embedded_programs import open_private
from storage.errors import StartupError

Role = Literal["server", "command"]

# How long one waits for a command to end, or a command for a server to be up.
OWNER_WAIT_S: Final = 60
_POLL_S: Final = 0.02
_HOLDER_BYTES_MAX: Final = 1024


@asynccontextmanager
async def embedded_postgres(data_dir: Path, *, role: Role) -> AsyncIterator[str]:
    """Yield the URL of the database ``spectral_notify``; PostgreSQL runs at least that long.

    If its owner ends while a command is a guest, the guest's connections end.
    """
    with _explained(data_dir):
        data_dir = _make_folder(data_dir)
        cluster = Cluster(data_dir)
        lock = _Lock(data_dir)
    with closing(lock):
        with _explained(data_dir):
            url = await _take(lock, cluster, role)
        if url is not None:
            yield url
            return
        try:
            with _explained(data_dir):
                url = await cluster.start()
            yield url
        finally:
            await cluster.stop()


class _Lock:
    """Who owns the PostgreSQL of a data folder. The kernel gives it back when its holder dies, however that happens."""

    def __init__(self, data_dir: Path) -> None:
        self._file = open_private(data_dir / "lock", os.O_RDWR)
        self._taken = False

    def take(self, role: Role) -> bool:
        """Take it if it is free."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._taken = True
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps({"pid": os.getpid(), "role": role}).encode(), 0)
        return True

    def holder(self) -> tuple[int, str] | None:
        """The process that holds it, and its role; None when it has only just taken it or given it back."""
        try:
            written = json.loads(os.pread(self._file, _HOLDER_BYTES_MAX, 0))
            return written["pid"], written["role"]
        except (ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        """Give it back."""
        if self._taken:
            os.ftruncate(self._file, 0)
        os.close(self._file)


async def _take(lock: _Lock, cluster: Cluster, role: Role) -> str | None:
    """Take the lock, and return None; or return the URL of the PostgreSQL of the server that holds it."""
    deadline = time.monotonic() + OWNER_WAIT_S
    while not lock.take(role):
        pid, holder_role = lock.holder() or (None, None)
        if holder_role == "server":
            if role == "server":
                raise StartupError(
                    f"spectral-notify already runs in {cluster.data_dir} as process {pid}; "
                    "stop it, or choose another SPECTRAL_DATA_DIR."
                )
            if url := cluster.url():
                return url
        if time.monotonic() > deadline:
            raise StartupError(
                f"Process {pid} holds {cluster.data_dir} as a {holder_role}, and PostgreSQL could not be had "
                f"within {OWNER_WAIT_S} s; try again when it is done."
            )
        await asyncio.sleep(_POLL_S)
    return None


def _make_folder(data_dir: Path) -> Path:
    # As root, another account runs PostgreSQL and has to walk through; what is inside is closed to others by itself.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    data_dir.mkdir(mode=mode, exist_ok=True)
    found, parent = data_dir.stat(), data_dir.parent.stat()
    if found.st_uid not in (os.geteuid(), 0) and parent.st_mode & stat.S_IWOTH:
        # Somebody was here first, where everybody may make folders, and has the key to whatever is put into this one.
        raise StartupError(f"{data_dir} belongs to another user; name a folder of your own.")
    if found.st_mode & stat.S_IWOTH:
        # Anybody could put a cluster of theirs where ours will be looked for.
        raise StartupError(f"Everybody may write to {data_dir}; name a folder within it, and it will be made.")
    return data_dir.resolve()


@contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turn what the system refuses into a sentence about the folder."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise StartupError(
            f"The embedded PostgreSQL cannot run in {data_dir}: {error}. Run this as the account that owns the folder, "
            "choose another SPECTRAL_DATA_DIR, or set SPECTRAL_DATABASE_URL."
        ) from error
