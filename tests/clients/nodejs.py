"""Node.js and what is built with it: each folder installed once for a lock file, and skipped where that cannot be."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import TOP, surroundings

HOOK: Final = TOP / "clients" / "react"
EXAMPLES: Final = TOP / "examples"
OLDEST: Final = 20
INSTALL_S: Final = 600
# What npm says when it is not its fault.
_OFFLINE: Final = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ENOTCACHED|network"
)


def node() -> str:
    """The program; skips where there is none, or an old one."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not there")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST:
        pytest.skip(f"Node.js must be {OLDEST} or newer, this is {version}")
    return found


def build_hook() -> None:
    """Build the hook, and its tests, unless that was done."""
    install(HOOK)
    with _once(HOOK, HOOK) as needed:
        if needed:
            run(HOOK, "npm", "run", "build")
            run(HOOK, "npx", "tsc", "-p", "tsconfig.json")


def build_examples() -> None:
    """Build the examples, which takes the hook, unless that was done."""
    install(EXAMPLES)
    with _once(EXAMPLES, EXAMPLES, HOOK, TOP / "schema.graphql") as needed:
        if needed:
            run(EXAMPLES, "npm", "run", "build")


@contextmanager
def _once(folder: Path, *sources: Path) -> Iterator[bool]:
    """Whether something is to be made from sources; a folder remembers what it was made from."""
    made_from = hashlib.sha256()
    for path in sorted(path for source in sources for path in _files(source)):
        made_from.update(path.read_bytes())
    stamp = folder / "build" / ".made-from"
    needed = not stamp.exists() or stamp.read_text() != made_from.hexdigest()
    yield needed
    if needed:
        stamp.write_text(made_from.hexdigest())


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    for path in source.iterdir():
        if path.name not in ("build", "dist", "generated", "node_modules"):
            yield from _files(path)


def install(folder: Path) -> None:
    """Install what a lock file names, unless that was done; skips where the registry cannot be reached."""
    # npm writes it when it has installed everything; make goes by it, too.
    installed = folder / "node_modules" / ".package-lock.json"
    wanted = [folder / name for name in ("package.json", "package-lock.json")]
    if installed.exists() and installed.stat().st_mtime >= max(path.stat().st_mtime for path in wanted):
        return
    done = _process(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    if done.returncode and _OFFLINE.search(done.stdout):
        pytest.skip(f"npm cannot reach its registry: {done.stdout.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout


def run(folder: Path, *command: str) -> str:
    """Run a program to its good end; what it said."""
    done = _process(folder, *command)
    assert done.returncode == 0, done.stdout
    return done.stdout


def _process(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **surroundings(),
        "no_proxy": os.environ.get("no_proxy", ""),
        "NO_PROXY": os.environ.get("NO_PROXY", ""),
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
