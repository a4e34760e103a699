"""Run the program: the database, the storage, the server, and their end in the opposite order."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import uvicorn
import uvloop

from graphql_api import audit
from graphql_api.app import PATH, App, build_app
from graphql_api.audit import Action
from graphql_api.logs import set_up_logs
from graphql_api.settings import Settings
from graphql_api.wire import http, websocket
from graphql_api.workers import Workers, on_loss_of_parent
from storage import BadInput, Permission, StartupError, Storage, open_storage
from storage.embedded import embedded_postgres

log = logging.getLogger(__name__)

# Longer than proxies keep an idle connection, so that the proxy is the one that closes it.
KEEP_ALIVE_S: Final = 75
# What was sent must be acknowledged by the client's machine within this, or the kernel ends the connection. Longer than
# it takes to find a socket whose client does not read, which is told so.
ACKNOWLEDGED_WITHIN_S: Final = 50
BACKLOG: Final = 2_048
# Objects that may have come to live, net, before the collector looks for garbage among them.
GARBAGE_OBJECTS_MAX: Final = 20_000
# From the signal to the end of the process, whatever does not answer.
EXIT_WITHIN_S: Final = 9.5


@asynccontextmanager
async def open_database(settings: Settings, *, role: Literal["server", "command"]) -> AsyncIterator[str]:
    """The URL of the database that the settings name, or of the embedded one."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
    else:
        async with embedded_postgres(settings.data_dir, role=role) as url:
            yield url


@asynccontextmanager
async def open_configured_storage(
    settings: Settings, url: str, *, feed_url: str | None = None
) -> AsyncIterator[Storage]:
    """The storage with the bounds that the settings name."""
    async with open_storage(
        url,
        upgrade=settings.migrate_on_start,
        feed_url=feed_url,
        connections_max=settings.database_connections_max,
        group_commands_max=settings.group_commands_max,
        waiting_commands_max=settings.waiting_commands_max,
        pool_wait_s=settings.database_wait_ms / 1000,
        statement_timeout_ms=settings.statement_timeout_ms,
        lock_timeout_ms=settings.lock_timeout_ms,
        token_secrets=[
            None if secret is None else secret.get_secret_value()
            for secret in (settings.token_secret, settings.token_secret_previous)
        ],
    ) as storage:
        yield storage


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is finished."""
    if settings.workers > 1 and settings.feed_url is not None and settings.feed_url.get_secret_value() == "alone":
        raise StartupError("SPECTRAL_FEED_URL is alone, and there are several workers: they would not hear each other.")
    with _listening(settings.host, settings.port) as listener, _signals() as stop:
        async with open_database(settings, role="server") as url:
            if settings.workers > 1:
                await _serve_with_workers(settings, url, listener, stop)
            else:
                async with open_configured_storage(settings, url, feed_url=_feed_url(settings, url)) as storage:
                    await _serve(settings, storage, listener, stop)
    log.info("Stopped")


async def _serve(settings: Settings, storage: Storage, listener: socket.socket, stop: "_Stop") -> None:
    server = Server(_uvicorn_config(settings, build_app(settings, storage, stop.begun)))
    stop.when_asked(server.stop)
    # From here on connections wait for us rather than being refused; who reads the welcome may connect.
    listener.listen(BACKLOG)
    await _welcome(settings, storage, listener)
    _settle_memory()
    await server.serve(sockets=[listener])


async def _serve_with_workers(settings: Settings, url: str, listener: socket.socket, stop: "_Stop") -> None:
    workers = Workers(_work, settings, url, listener, count=settings.workers, end_within_s=EXIT_WITHIN_S - 1)
    # They come to a database that is ready, and the first key is made once.
    listener.listen(BACKLOG)
    async with AsyncExitStack() as stack:
        async with open_configured_storage(settings, url) as storage:
            await stack.enter_async_context(workers.running())
            await _welcome(settings, storage, listener)
        stop.when_asked(lambda: None)
        await stop.begun.wait()
        # Or the kernel would take connections that nobody serves any more.
        listener.close()


def _work(says: Connection, settings: Settings, url: str, listener: socket.socket) -> None:
    """Be one of several processes."""
    set_up_logs(settings.log_level, f"[{os.getpid()}] ")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_work_until_asked(says, settings, url, listener))
        except StartupError as error:
            log.error("%s", error)
            sys.exit(1)


async def _work_until_asked(says: Connection, settings: Settings, url: str, listener: socket.socket) -> None:
    with _signals() as stop:
        on_loss_of_parent(stop.ask)
        migrated = settings.model_copy(update={"migrate_on_start": False})
        async with open_configured_storage(migrated, url, feed_url=_feed_url(settings, url)) as storage:
            server = Server(_uvicorn_config(settings, build_app(settings, storage, stop.begun)))
            stop.when_asked(server.stop)
            _settle_memory()
            says.send_bytes(b"ready")
            says.close()
            await server.serve(sockets=[listener])


def _feed_url(settings: Settings, url: str) -> str | None:
    """How this process hears of others; None when there are none."""
    if settings.feed_url is not None:
        feed_url = settings.feed_url.get_secret_value()
        return None if feed_url == "alone" else feed_url
    if settings.listen_url is not None:
        return settings.listen_url.get_secret_value()
    return None if settings.database_url is None and settings.workers == 1 else url


def _uvicorn_config(settings: Settings, app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        http=http.protocol_of(app.http, PATH),
        # The rest of the time is for those that are told last.
        ws=websocket.protocol_of(app.websocket, drain_s=0.6 * settings.shutdown_timeout_ms / 1000),
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        # Whole seconds, rounded up.
        timeout_graceful_shutdown=-(-settings.shutdown_timeout_ms // 1000),
    )


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us: it would end the process by the signal instead of with status 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def stop(self) -> None:
        """Stop accepting, close the sockets with 1012, and return from `serve` when the requests under way are done."""
        self.should_exit = True


class _Stop:
    """The wish that the process stop, from the first moment of its start."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.begun = asyncio.Event()
        self._act: Callable[[], object] = task.cancel

    def when_asked(self, act: Callable[[], object]) -> None:
        """Do this when asked to stop; until then the start itself is given up."""
        self._act = act

    def ask(self) -> None:
        """Stop."""
        if not self.begun.is_set():
            log.info("Asked to stop")
            self.begun.set()
            asyncio.get_running_loop().call_later(EXIT_WITHIN_S, _give_up)
            self._act()


def _give_up() -> None:
    """End the process as it is. What was acknowledged is on disk; a PostgreSQL of our own ends or is adopted."""
    log.error("Not everything could be ended in order within %.1f s; leaving it.", EXIT_WITHIN_S)
    logging.shutdown()
    os._exit(0)


def _settle_memory() -> None:
    """Take what the start has made out of the garbage collector's rounds, and let them be rarer.

    What requests leave behind is freed at once, by counting; the collector finds next to nothing, and with ten thousand
    sockets each of its rounds looks at all that they hold.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS_MAX, 10, 10)


@contextmanager
def _signals() -> Iterator[_Stop]:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    stop = _Stop(task)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    try:
        yield stop
    except asyncio.CancelledError:
        # Asked to stop before it had started.
        if not stop.begun.is_set():
            raise
        log.info("Stopped before the start was complete")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            if stop.begun.is_set():
                # Asked again while the process ends: that changes nothing.
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound before anything else is started: a port that is taken is the commonest mistake."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartupError(f"SPECTRAL_HOST {host!r} is not an address of this machine: {error.strerror}.") from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A client that acknowledges and never reads: closing waits for it to read, so the kernel must end it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * ACKNOWLEDGED_WITHIN_S)
        try:
            listener.bind(address)
        except OSError as error:
            raise StartupError(
                f"Port {port} on {host} cannot be taken: {error.strerror}. "
                "Stop the program that has it, or set SPECTRAL_PORT to another."
            ) from None
        listener.setblocking(False)
        yield listener


async def _welcome(settings: Settings, storage: Storage, listener: socket.socket) -> None:
    """Say where the server is and, on the first start of an embedded database, the key to it."""
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
    key_file = settings.data_dir / "admin.key"
    key = await _first_key(storage, key_file) if settings.database_url is None else None
    log.info("spectral-notify %s serves %s with access %s", version("spectral-notify"), url, settings.access)
    if key is not None:
        _show_key(url, key, key_file)


async def _first_key(storage: Storage, path: Path) -> str | None:
    """Create the admin key of a new embedded database and keep it in a file that only its owner may read."""
    if path.exists():  # noqa: ASYNC240 - nobody is being served yet
        return None
    try:
        key = await storage.keys.create("admin", [Permission.ADMIN])
    except BadInput:
        log.warning("%s is gone; make another key with `spectral-notify keys create NAME --permission ADMIN`.", path)
        return None
    audit.record(Action.API_KEY_CREATE, actor="first start", key="admin", permissions=Permission.ADMIN)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    return key


def _show_key(url: str, key: str, path: Path) -> None:
    # For a person at a terminal, once; it is no log line, because logs are kept and copied.
    query = '{"query": "mutation { create(taskId: \\"first\\") { taskId status createdAt } }"}'
    sys.stdout.write(
        f"\nThe admin key of this new database (kept in {path}):\n\n"
        f"  {key}\n\n"
        "Create a first task:\n\n"
        f"  curl {url} -H 'Authorization: Bearer {key}' \\\n"
        "    -H 'Content-Type: application/json' \\\n"
        f"    -d '{query}'\n\n"
    )
    sys.stdout.flush()
