"""Where the server is found, and to whom the key of its folder is sent: to the server that holds it alone."""

import fcntl
import http.server
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from terminal.exits import Failure
from terminal.place import DEFAULT_URL, Place, data_dir, find_place
from tests.terminal.shell import Server

SETTINGS = ("SPECTRAL_URL", "SPECTRAL_KEY", "SPECTRAL_DATA_DIR", "XDG_DATA_HOME")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The data folder of this user, with a key in it."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPECTRAL_DATA_DIR", str(tmp_path))
    write(tmp_path / "admin.key", "spn_admin\n")
    return tmp_path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


@contextmanager
def held(path: Path, text: str = "http://127.0.0.1:7777/graphql\n", mode: int = 0o600) -> Iterator[None]:
    """A server says where it is."""
    write(path, text, mode)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_the_server_of_the_folder_is_found_with_its_key(folder: Path) -> None:
    with held(folder / "address"):
        assert find_place(None) == Place("http://127.0.0.1:7777/graphql", "spn_admin", own=True)


def test_a_key_that_is_set_goes_before_that_of_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAL_KEY", "spn_mine")
    with held(folder / "address"):
        assert find_place(None).key == "spn_mine"


def test_the_key_of_the_folder_goes_to_no_address_that_was_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(folder / "address"):
        # Not even where it is the same.
        assert find_place("http://127.0.0.1:7777/graphql") == Place("http://127.0.0.1:7777/graphql", None)
        monkeypatch.setenv("SPECTRAL_URL", "https://tasks.example.com")
        assert find_place(None) == Place("https://tasks.example.com/graphql", None)


def test_an_address_that_nobody_holds_is_not_believed(folder: Path) -> None:
    write(folder / "address", "http://127.0.0.1:7777/graphql\n")
    assert find_place(None) == Place(DEFAULT_URL, None)


def test_without_a_server_the_default_is_asked_without_a_key(folder: Path) -> None:
    assert find_place(None) == Place(DEFAULT_URL, None)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o640, 0o604])
@pytest.mark.parametrize("name", ["address", "admin.key"])
def test_a_file_that_others_may_use_is_refused(folder: Path, name: str, mode: int) -> None:
    with held(folder / "address"):
        (folder / name).chmod(mode)
        with pytest.raises(Failure, match="Others may use"):
            find_place(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["address", "admin.key"])
def test_a_file_of_somebody_else_is_refused(folder: Path, name: str) -> None:
    with held(folder / "address"):
        os.chown(folder / name, 12_345, 12_345)
        with pytest.raises(Failure, match="not a file of yours"):
            find_place(None)


def test_links_and_pipes_are_not_followed_and_not_waited_for(folder: Path, tmp_path: Path) -> None:
    with held(folder / "elsewhere"):
        (folder / "address").symlink_to(folder / "elsewhere")
        assert find_place(None) == Place(DEFAULT_URL, None)
    (folder / "address").unlink()
    os.mkfifo(folder / "address", 0o600)
    with pytest.raises(Failure, match="not a file of yours"):
        find_place(None)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://a", "http://a/graphql"),
        ("http://a:1/", "http://a:1/graphql"),
        ("https://a/api/graphql", "https://a/api/graphql"),
        ("https://a/api/graphql/", "https://a/api/graphql"),
        ("http://[::1]:8000", "http://[::1]:8000/graphql"),
    ],
)
def test_the_path_may_be_left_out(folder: Path, given: str, meant: str) -> None:
    assert find_place(given).url == meant


@pytest.mark.parametrize("key", ["spn_a b", "spn_ä", "spn_\x01"])
def test_a_key_with_what_no_key_has_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SPECTRAL_KEY", key)
    with pytest.raises(Failure) as refused:
        find_place(None)
    assert key not in str(refused.value)


def test_the_folder_is_where_the_server_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphql_api.settings import Settings

    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert data_dir() == Settings().data_dir
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert data_dir() == Settings().data_dir
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert data_dir() == Settings().data_dir == Path("/elsewhere/spectral-notify")


def test_a_server_tells_its_address_while_it_serves(server: Server) -> None:
    path = server.data_dir / "address"
    assert path.read_text() == f"{server.url}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.stop()
    assert not path.exists()
    server.start()
    assert path.read_text() == f"{server.url}\n"


def test_a_proxy_never_sees_the_key_of_the_folder(server: Server, task: str) -> None:
    asked = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        do_CONNECT = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        here = f"http://127.0.0.1:{proxy.server_port}"
        shell = server.shell.with_(
            http_proxy=here, https_proxy=here, all_proxy=here, ws_proxy=here, no_proxy=None, NO_PROXY=None
        )
        try:
            shell("complete", task, code=0)
            shell("watch", task, code=0)
            assert asked == []
            shell.with_(SPECTRAL_URL="http://tasks.example.com")("list", "--patience", "0", code=69)
            assert asked
        finally:
            proxy.shutdown()
            thread.join()


def test_the_variables_of_clients_may_be_set_where_a_server_is_started(server: Server) -> None:
    ended = server.shell.with_(SPECTRAL_URL="http://elsewhere", SPECTRAL_KEY="spn_x")("keys", "list")
    assert (ended.code, ended.err) == (0, "")
