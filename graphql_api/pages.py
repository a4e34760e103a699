"""The pages for people: the dashboard, and the explorer, as files that were built from ``web/``.

All files are read at the start, so a request is a look into a dictionary, with no path that could lead elsewhere, and
a build that replaces the files meanwhile does not mix with what is served. The files are public: whatever a page shows
it asks the API for, with the credential of whoever looks at it.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final, Self

from starlette.types import Receive, Scope, Send

from graphql_api.wire.headers import Headers, read_headers
from graphql_api.wire.http import Answer

BUILT: Final = Path(__file__).parent / "web"
"""Where ``make web`` writes, and where a wheel has the files."""

DASHBOARD: Final = "index.html"
EXPLORER: Final = "explorer.html"
# Under it, a file's name has the hash of what is in it.
_HASHED: Final = "assets/"
# The dashboard's own addresses beside its first one; what follows is for its script to read.
_TASKS: Final = "/tasks/"
# As they are preferred; files that are smaller this way lie beside the others under these endings.
_ENCODINGS: Final = {"br": ".br", "gzip": ".gz"}
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
# What a client calls the server, if it is safe to say so in a header of the answer.
_HOST: Final = re.compile(r"[\w.-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?", re.ASCII)
_FILE_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
_PAGE_HEADERS: Final = {
    **_FILE_HEADERS,
    # No other page may show this one in a frame and have its buttons pressed; the policy says it to newer browsers.
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Addresses hold the IDs of tasks, which may be secrets.
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A built file: what it is, and its bytes as each encoding has them."""

    content_type: str
    cache: str
    digest: str
    bodies: Mapping[str, bytes]

    @classmethod
    def read(cls, name: str, path: Path) -> Self:
        """The file, and what was compressed of it."""
        plain = path.read_bytes()
        bodies = {
            encoding: smaller.read_bytes()
            for encoding, ending in _ENCODINGS.items()
            if (smaller := path.with_name(path.name + ending)).is_file()
        }
        return cls(
            _TYPES.get(path.suffix, "application/octet-stream"),
            "public, max-age=31536000, immutable" if name.startswith(_HASHED) else "no-cache",
            hashlib.sha256(plain).hexdigest()[:24],
            {**bodies, "identity": plain},
        )


class Pages:
    """What browsers are served beside the API."""

    def __init__(self, folder: Path, *, dashboard: bool, explorer: bool) -> None:
        self._files = _read(folder) if dashboard or explorer else {}
        self._dashboard = dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a page or a file; all others are not found."""
        answer = self._answer(scope["path"], scope["method"], read_headers(scope["headers"]))
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": body})

    def explorer(self, headers: Headers) -> Answer:
        """The explorer. Programs ask for something else at its address."""
        return self._page(EXPLORER, headers, vary="Accept, Accept-Encoding")

    def _answer(self, path: str, method: str, headers: Headers) -> Answer:
        is_page = self._dashboard and (path == "/" or path.startswith(_TASKS))
        file = self._files.get(path[1:])
        if not is_page and (file is None or path.endswith(".html")):
            return _text(404, "Not Found")
        if method not in ("GET", "HEAD"):
            return _text(405, "Method Not Allowed", {"Allow": "GET, HEAD"})
        if is_page or file is None:
            return self._page(DASHBOARD, headers)
        return _as_asked(file, headers, {**_FILE_HEADERS, "Vary": "Accept-Encoding"})

    def _page(self, name: str, headers: Headers, vary: str = "Accept-Encoding") -> Answer:
        file = self._files.get(name)
        if file is None:
            return _missing(name)
        policy = _policy(headers.get("host", ""), editor=name == EXPLORER)
        return _as_asked(file, headers, {**_PAGE_HEADERS, "Content-Security-Policy": policy, "Vary": vary})


def is_built(folder: Path) -> bool:
    """Whether there are pages to serve."""
    return (folder / DASHBOARD).is_file()


def _read(folder: Path) -> dict[str, _File]:
    """All files by their paths in the folder; none when nothing was built."""
    compressed = tuple(_ENCODINGS.values())
    names = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(compressed)
    }
    return {name: _File.read(name, path) for name, path in names.items()}


def _policy(host: str, *, editor: bool) -> str:
    """What the page may load and do: nothing from anywhere else."""
    # Browsers before 2022 do not count sockets as of the page's own origin, so it is also named.
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    # The editor of the explorer makes styles as it goes, and has fonts in its styles; the dashboard has only files.
    styles, fonts = (" 'unsafe-inline'", " data:") if editor else ("", "")
    return (
        f"default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'{styles}; img-src 'self' data:; "
        f"font-src 'self'{fonts}; connect-src 'self'{sockets}; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _as_asked(file: _File, headers: Headers, own: Mapping[str, str]) -> Answer:
    """The file in the encoding that the client likes, or the news that it has it already."""
    encoding = _encoding(headers.get("accept-encoding", ""), file.bodies)
    tag = f'"{file.digest}-{encoding}"'
    told = {"ETag": tag, "Cache-Control": file.cache, **own}
    if _has(headers.get("if-none-match", ""), tag):
        return Answer(304, _pairs(told), b"")
    if encoding != "identity":
        told["Content-Encoding"] = encoding
    body = file.bodies[encoding]
    return Answer(200, _pairs({"Content-Type": file.content_type, "Content-Length": str(len(body)), **told}), body)


def _encoding(accepted: str, bodies: Mapping[str, bytes]) -> str:
    """The first of those there are that the client takes."""
    taken = set()
    for entry in accepted.lower().split(","):
        name, _, parameter = entry.partition(";")
        weight = parameter.partition("=")[2].strip()
        if not weight or weight.strip("0."):
            taken.add(name.strip())
    return next((encoding for encoding in bodies if encoding in taken or "*" in taken), "identity")


def _has(if_none_match: str, tag: str) -> bool:
    known = {entry.strip().removeprefix("W/") for entry in if_none_match.split(",")}
    return tag in known or "*" in known


def _pairs(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    own = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text)), **_FILE_HEADERS}
    return Answer(status, _pairs({**own, **(headers or {})}), text.encode())


_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.6 system-ui, sans-serif; }
body { margin: 0; display: grid; min-height: 100vh; place-items: center; background: Canvas; color: CanvasText; }
main { box-sizing: border-box; max-width: 38rem; padding: 2rem 1.25rem; }
h1 { font-size: 1.375rem; line-height: 1.3; margin: 0 0 1rem; }
p { margin: 0 0 1rem; }
code { font: .9375em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { margin: 0 0 1rem; padding: .75rem 1rem; border: 1px solid GrayText; border-radius: 8px; overflow-x: auto; }
"""
_MISSING: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} is not built - spectral-notify</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title} is not built</h1>
<p>The server runs, and its API at <code>/graphql</code> is served. Its pages are made from <code>web/</code>, which
needs Node.js 20.19 or newer, and that was not done here.</p>
<p>With Node.js installed, in the folder of spectral-notify:</p>
<pre><code>make web</code></pre>
<p>Then start the server again. A release, as a wheel or as a container image, has the pages in it.</p>
</main>
</body>
</html>
"""


def _missing(name: str) -> Answer:
    """What stands in the place of a page that was not built."""
    title = "The explorer" if name == EXPLORER else "The dashboard"
    body = _MISSING.format(title=escape(title), style=_STYLE).encode()
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    own = {
        "Content-Type": _TYPES[".html"],
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{style}'; frame-ancestors 'none'",
    }
    return Answer(404, _pairs({**own, **_PAGE_HEADERS, "Vary": "Accept"}), body)
