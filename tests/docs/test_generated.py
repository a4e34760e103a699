import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from graphql_api.settings import OF_CLIENTS, PREFIX, Settings
from tests.docs.pages import TOP

DOCS: Final = TOP / "docs"


def generate(docs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, docs / "generate.py", *arguments], cwd=TOP, capture_output=True, text=True, timeout=60
    )


def test_the_pages_are_current() -> None:
    checked = generate(DOCS, "--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_stale_page_is_named_and_mended(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    page = docs / "operations.md"
    current = page.read_text()
    stale = current.replace("| 0 to 65535 | `8000` |", "| 0 to 65535 | `8080` |")
    assert stale != current
    page.write_text(stale)

    checked = generate(docs, "--check")

    assert checked.returncode == 1
    assert checked.stderr.startswith("docs/operations.md no longer say")
    assert page.read_text() == stale
    assert generate(docs).returncode == 0
    assert page.read_text() == current


def test_a_page_without_its_marks_is_refused(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    page = docs / "lifecycle.md"
    page.write_text(page.read_text().replace("<!-- end: diagram -->", ""))

    checked = generate(docs, "--check")

    assert checked.returncode == 1
    assert "<!-- end: diagram -->" in checked.stderr


def test_every_setting_is_described_and_no_other() -> None:
    text = (DOCS / "operations.md").read_text()
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    described = set(re.findall(r"^\| `(SPECTRAL_[A-Z_]+)` \| [^|]+ \| [^|]+ \| \S.*\|$", text, re.MULTILINE))
    assert described == known


def test_no_page_names_a_setting_that_does_not_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    # One is the example of a misspelled name.
    known.add("SPECTRAL_PROT")
    known |= OF_CLIENTS
    for page in [TOP / "README.md", *DOCS.glob("*.md")]:
        named = set(re.findall(r"SPECTRAL_[A-Z_]*[A-Z]", page.read_text().replace("SPECTRAL_JWT_…", "")))
        assert named <= known, page.name


def test_the_map_names_every_module() -> None:
    text = (DOCS / "design.md").read_text()
    for package in ("storage", "graphql_api", "worker"):
        for module in (TOP / package).rglob("*.py"):
            if "versions" not in module.parts and module.name not in ("__init__.py", "env.py"):
                assert module.name in text, module
