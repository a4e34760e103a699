"""What is in the wheel, and that a server which was installed from it serves its pages."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import httpx

from tests.docs.pages import TOP, WAIT_S, serving, surroundings

PACKAGES: Final = {"graphql_api", "storage", "terminal", "worker"}
# What builds a wheel, as docker/Dockerfile copies it, and the file that tells hatch what is not committed.
SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", *sorted(PACKAGES))


def source(folder: Path) -> Path:
    """The project without anything that was built."""
    folder.mkdir()
    for name in SOURCES:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "web"))
        else:
            shutil.copy(TOP / name, folder / name)
    return folder


def wheel(source: Path, folder: Path) -> Path:
    """A wheel, built from these sources."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=WAIT_S)
    (found,) = folder.glob("*.whl")
    return found


def test_an_installed_wheel_serves_the_pages_that_were_built(empty_database: str, tmp_path: Path) -> None:
    built = source(tmp_path / "source") / "graphql_api" / "web" / "assets"
    built.mkdir(parents=True)
    (built.parent / "index.html").write_text("<title>From the wheel</title>")
    (built / "index-Bx1.js").write_text("1")
    (built / "index-Bx1.js.gz").write_bytes(b"smaller")
    package = wheel(tmp_path / "source", tmp_path)

    names = zipfile.ZipFile(package).namelist()
    assert {name.partition("/")[0] for name in names if name.endswith(".py")} >= PACKAGES
    assert {name for name in names if name.startswith("graphql_api/web/")} == {
        f"graphql_api/web/{name}" for name in ("index.html", "assets/index-Bx1.js", "assets/index-Bx1.js.gz")
    }

    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(package)], check=True, capture_output=True, timeout=WAIT_S)
    environment = surroundings(SPECTRAL_DATABASE_URL=empty_database, PYTHONPATH=str(site))
    with serving(environment, program=(sys.executable, "-P", "-m", "graphql_api")) as served:
        page = httpx.get(f"{served.origin}/", trust_env=False)
        assert (page.status_code, page.text) == (200, "<title>From the wheel</title>")


def test_a_wheel_without_pages_can_be_built(tmp_path: Path) -> None:
    package = wheel(source(tmp_path / "source"), tmp_path)
    assert not [name for name in zipfile.ZipFile(package).namelist() if "/web/" in name]


def committed(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=TOP, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_nothing_that_is_built_is_committed() -> None:
    assert committed("graphql_api/web", "web/dist", "*/node_modules/*") == []


def test_no_lock_file_of_npm_says_where_a_package_was_fetched() -> None:
    found = committed("*package-lock.json")
    assert found
    for path in found:
        packages = json.loads((TOP / path).read_text(encoding="utf-8"))["packages"]
        # What is a link to a folder of this project says where it leads.
        fetched = [name for name, package in packages.items() if "resolved" in package and not package.get("link")]
        assert fetched == [], path
