"""The pages for browsers, over a folder that looks like a build; what is in a real one is for tests/browser."""

import gzip
import re
from pathlib import Path
from typing import Final

import httpx
import pytest

from graphql_api import pages
from graphql_api.app import PATH
from tests.graphql_api.clients import Api
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_over_http import exchange

BROWSER: Final = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SCRIPT: Final = b"console.log('dashboard');\n" * 100


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "web"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>Dashboard</title>")
    (folder / "explorer.html").write_text("<title>Explorer</title>")
    (folder / "assets" / "index-Bx1.js").write_bytes(SCRIPT)
    (folder / "assets" / "index-Bx1.js.gz").write_bytes(gzip.compress(SCRIPT))
    (folder / "assets" / "index-Bx1.js.br").write_bytes(b"as brotli has it")
    (folder / "assets" / "icons.ttf").write_bytes(b"\0")
    (folder / "icon.svg").write_text("<svg/>")
    (tmp_path / "secret.txt").write_text("not in the folder")
    monkeypatch.setattr(pages, "BUILT", folder)
    return folder


async def get(api: Api, path: str, **headers: str) -> httpx.Response:
    return await api.http.get(path, headers={"Accept-Encoding": "", **headers})


async def test_the_dashboard_has_its_own_addresses_and_the_explorer_that_of_the_api(
    serving: Serving, built: Path
) -> None:
    async with serving() as api:
        for path in ("/", "/?status=FAILED", "/tasks/T-7", "/tasks/a%2Fb", "/tasks/..%2f..%2fsecret.txt"):
            page = await get(api, path, **BROWSER)
            assert (page.status_code, page.text) == (200, "<title>Dashboard</title>"), path
            assert page.headers["content-type"] == "text/html; charset=utf-8"
        explorer = await get(api, PATH, **BROWSER)
        assert (explorer.status_code, explorer.text) == (200, "<title>Explorer</title>")
        assert "Accept" in re.split(", *", explorer.headers["vary"])


async def test_files_have_their_types(serving: Serving, built: Path) -> None:
    async with serving() as api:
        found = {
            path: (await get(api, path)).headers["content-type"]
            for path in ("/assets/index-Bx1.js", "/assets/icons.ttf", "/icon.svg")
        }
    assert found == {
        "/assets/index-Bx1.js": "text/javascript; charset=utf-8",
        "/assets/icons.ttf": "font/ttf",
        "/icon.svg": "image/svg+xml",
    }


async def test_nothing_else_is_found(serving: Serving, built: Path) -> None:
    async with serving() as api:
        for target in (
            *(
                "/tasks",
                "/nothing",
                "/index.html",
                "/explorer.html",
                "/assets",
                "/assets/",
                "//",
                "/assets/index-Bx1.js.gz",
            ),
            *(
                "/../secret.txt",
                "/assets/../../secret.txt",
                "/%2e%2e/secret.txt",
                "/..%2fsecret.txt",
                "/..\\secret.txt",
            ),
            *("/%00", "/assets/index-Bx1.js%00.css", f"//{built}/index.html", "/file:/etc/passwd"),
        ):
            answer = await exchange(api, "GET", {}, b"", target=target)
            assert answer.status == 404, target
            assert answer.body == b"Not Found"


async def test_files_named_by_their_contents_are_kept_for_good_and_others_asked_for_anew(
    serving: Serving, built: Path
) -> None:
    async with serving() as api:
        kept = {
            path: (await get(api, path, **BROWSER)).headers["cache-control"]
            for path in ("/assets/index-Bx1.js", "/", "/tasks/T-7", PATH, "/icon.svg")
        }
    assert kept.pop("/assets/index-Bx1.js") == "public, max-age=31536000, immutable"
    assert set(kept.values()) == {"no-cache"}


async def test_who_has_it_already_is_told_so(serving: Serving, built: Path) -> None:
    async with serving() as api:
        for path in ("/", PATH, "/assets/index-Bx1.js"):
            tag = (await get(api, path, **BROWSER)).headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                again = await get(api, path, **BROWSER, **{"If-None-Match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert (await get(api, path, **BROWSER, **{"If-None-Match": '"other"'})).status_code == 200


async def test_a_file_is_sent_as_its_reader_likes_it(serving: Serving, built: Path) -> None:
    path = "/assets/index-Bx1.js"
    async with serving() as api:
        tags = set()
        for accepted, encoding, body in (
            ("", None, SCRIPT),
            ("identity", None, SCRIPT),
            ("gzip", "gzip", None),
            ("gzip, deflate, br, zstd", "br", b"as brotli has it"),
            ("br;q=0, gzip;q=0.5", "gzip", None),
            ("br;q=0.0, gzip;q=0", None, SCRIPT),
            ("GZIP", "gzip", None),
            ("*", "br", b"as brotli has it"),
        ):
            answer = await exchange(api, "GET", {"Accept-Encoding": accepted}, b"", target=path)
            assert answer.headers.get("content-encoding") == encoding, accepted
            assert (gzip.decompress(answer.body) if body is None else answer.body) == (body or SCRIPT)
            assert answer.headers["vary"] == "Accept-Encoding"
            tags.add(answer.headers["etag"])
        # Encodings are different things to a cache.
        assert len(tags) == 3


async def test_a_head_has_the_headers_of_the_page_and_nothing_else(serving: Serving, built: Path) -> None:
    async with serving() as api:
        for path in ("/", "/tasks/T-7", "/assets/index-Bx1.js", "/nothing"):
            page, head = await get(api, path), await api.http.head(path, headers={"Accept-Encoding": ""})
            page.headers.pop("date"), head.headers.pop("date")
            assert (head.status_code, head.content, head.headers) == (page.status_code, b"", page.headers)


async def test_pages_are_read_and_nothing_more(serving: Serving, built: Path) -> None:
    async with serving() as api:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            for path in ("/", "/tasks/T-7", "/assets/index-Bx1.js"):
                response = await api.http.request(method, path)
                assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


async def test_a_page_may_load_nothing_from_outside_and_be_in_no_frame(serving: Serving, built: Path) -> None:
    async with serving() as api:
        host = api.origin.removeprefix("http://")
        for path in ("/", "/tasks/T-7", PATH):
            headers = (await get(api, path, **BROWSER)).headers
            policy = {
                name: set(sources) for name, *sources in map(str.split, headers["content-security-policy"].split(";"))
            }
            assert policy.pop("connect-src") == {"'self'", f"ws://{host}", f"wss://{host}"}
            assert policy.pop("style-src") - {"'unsafe-inline'"} == {"'self'"}
            for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
                assert policy.pop(name) == {"'none'"}
            assert policy.pop("script-src") == policy.pop("worker-src") == {"'self'"}
            assert all(sources <= {"'self'", "data:"} for sources in policy.values())
            assert headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer"
            assert "set-cookie" not in headers
        # Only the editor of the explorer needs styles that it makes.
        assert "unsafe" not in (await get(api, "/")).headers["content-security-policy"]
        for path in ("/", PATH, "/assets/index-Bx1.js", "/nothing"):
            assert (await get(api, path, **BROWSER)).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil; script-src *", "a b", "a,b", "*", "x" * 300, "[::1", "host:123456", "é"])
async def test_a_host_that_is_none_is_not_repeated(serving: Serving, built: Path, host: str) -> None:
    async with serving() as api:
        answer = await exchange(api, "GET", {"Host": host}, b"", target="/")
        assert answer.status == 200
        assert "connect-src 'self'; " in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["tasks.example", "tasks.example:8443", "[::1]:8000", "127.0.0.1"])
async def test_sockets_to_the_own_host_are_allowed_by_name(serving: Serving, built: Path, host: str) -> None:
    async with serving() as api:
        answer = await exchange(api, "GET", {"Host": host}, b"", target="/")
        assert f"connect-src 'self' ws://{host} wss://{host};" in answer.headers["content-security-policy"]


async def test_each_page_can_be_off(serving: Serving, built: Path) -> None:
    asset = "/assets/index-Bx1.js"
    async with serving(dashboard="off") as api:
        assert [(await get(api, path, **BROWSER)).status_code for path in ("/", "/tasks/T-7", PATH, asset)] == [
            *(404, 404, 200, 200)
        ]
    async with serving(explorer="off") as api:
        assert [(await get(api, path, **BROWSER)).status_code for path in ("/", "/tasks/T-7", PATH, asset)] == [
            *(200, 200, 400, 200)
        ]
    async with serving(dashboard="off", explorer="off") as api:
        assert [(await get(api, path, **BROWSER)).status_code for path in ("/", asset)] == [404, 404]


async def test_a_build_while_the_server_runs_changes_nothing_before_the_next_start(
    serving: Serving, built: Path
) -> None:
    async with serving() as api:
        (built / "index.html").write_text("<title>Newer</title>")
        (built / "assets" / "index-Bx1.js").unlink()
        assert (await get(api, "/")).text == "<title>Dashboard</title>"
        assert (await get(api, "/assets/index-Bx1.js")).content == SCRIPT
    async with serving() as api:
        assert (await get(api, "/")).text == "<title>Newer</title>"


async def test_where_nothing_was_built_a_page_says_what_to_do(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "BUILT", tmp_path / "nothing")
    async with serving() as api:
        for path, title in (("/", "The dashboard"), ("/tasks/T-7", "The dashboard"), (PATH, "The explorer")):
            page = await get(api, path, **BROWSER)
            assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
            assert f"<h1>{title} is not built</h1>" in page.text
            assert "make web" in page.text
            # It is not to be kept: the next start may have the real one.
            assert page.headers["cache-control"] == "no-store"
            assert "default-src 'none'; style-src 'sha256-" in page.headers["content-security-policy"]
        assert (await api.post({"query": "{ viewer { name } }"})).status_code == 200


async def test_other_origins_that_may_connect_change_nothing_about_pages(serving: Serving, built: Path) -> None:
    async with serving(allowed_origins=("https://app.example.com",)) as api:
        page = await get(api, "/", Origin="https://app.example.com", **BROWSER)
        assert page.text == "<title>Dashboard</title>"
        assert (await get(api, "/", **BROWSER)).headers["content-security-policy"]
