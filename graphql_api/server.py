"""Run the program: the database, the storage, the server, and their end in the opposite order."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import uvicorn
import uvloop
from starlette.types import ASGIApp

from graphql_api import audit, metrics, pages
from graphql_api.address import telling
from graphql_api.app import PATH, App, build_app
from graphql_api.audit import Action
from graphql_api.logs import set_up_logs
from graphql_api.settings import Settings
from graphql_api.wire import http, websocket
from graphql_api.workers import Workers, answering, on_loss_of_parent
from storage import BadInput, Permission, StartupError, Storage, open_storage
from storage.embedded import embedded_postgres

if TYPE_CHECKING:
    from graphql_api.traces import Traces

log = logging.getLogger(__name__)

# Longer than proxies keep an idle connection, so that the proxy is the one that closes it.
KEEP_ALIVE_S: Final = 75
# What was sent must be acknowledged by the client's machine within this, or the kernel ends the connection. Longer than
# it takes to find a socket whose client does not read, which is told so.
ACKNOWLEDGED_WITHIN_S: Final = 50
BACKLOG: Final = 2_048
# Objects that may have come to live, net, before the collector looks for garbage among them.
GARBAGE_OBJECTS_MAX: Final = 20_000
# How long the event loop waits for a thread that is at work, each time that it has waited for the network.
TURN_OF_A_THREAD_S: Final = 0.0002
DAY_S: Final = 24 * 3_600
# From the signal to the end of the process, whatever does not answer.
EXIT_WITHIN_S: Final = 9.5
# How long a scrape of the metrics waits for workers; who is later is left out, and counted as not there.
SCRAPE_WITHIN_S: Final = 1.0
# Connections to the metrics at a time; who comes beyond is told to come back.
SCRAPERS_MAX: Final = 16


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
    settings: Settings, url: str, *, feed_url: str | None = None, timers: bool = False
) -> AsyncIterator[Storage]:
    """The storage with the bounds that the settings name; with the timers, where it serves."""
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
        task_token_secrets=[
            None if secret is None else secret.get_secret_value()
            for secret in (settings.task_token_secret, settings.task_token_secret_previous)
        ],
        timers=timers,
        keep_finished_s=None if settings.keep_finished_days is None else settings.keep_finished_days * DAY_S,
    ) as storage:
        yield storage


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is finished."""
    if settings.workers > 1 and settings.feed_url is not None and settings.feed_url.get_secret_value() == "alone":
        raise StartupError("SPECTRAL_FEED_URL is alone, and there are several workers: they would not hear each other.")
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(settings.host, settings.port))
        metrics_listener = (
            None
            if settings.metrics_port is None
            else stack.enter_context(_listening(settings.metrics_host, settings.metrics_port, "METRICS_"))
        )
        stop = stack.enter_context(_signals())
        async with open_database(settings, role="server") as url:
            if settings.database_url is None:
                stop.first(stack.enter_context(telling(settings.data_dir, _url(listener, PATH))))
            if settings.workers > 1:
                await _serve_with_workers(settings, url, listener, metrics_listener, stop)
            else:
                async with (
                    _traces(settings) as traces,
                    open_configured_storage(settings, url, feed_url=_feed_url(settings, url), timers=True) as storage,
                ):
                    await _serve(settings, storage, traces, listener, metrics_listener, stop)
    log.info("Stopped")


async def _serve(
    settings: Settings,
    storage: Storage,
    traces: "Traces | None",
    listener: socket.socket,
    metrics_listener: socket.socket | None,
    stop: "_Stop",
) -> None:
    app = build_app(settings, storage, stop.begun, traces)
    server = Server(_uvicorn_config(settings, app))
    stop.when_asked(server.stop)
    serving = metrics.Serving(storage, app)

    async def scrape() -> metrics.Scrape:
        return metrics.Scrape({metrics.ALONE: serving.collect()})

    # From here on connections wait for us rather than being refused; who reads the welcome may connect.
    listener.listen(BACKLOG)
    await _welcome(settings, storage, listener)
    _settle()
    async with _serving_metrics(metrics_listener, scrape):
        await server.serve(sockets=[listener])


async def _serve_with_workers(
    settings: Settings, url: str, listener: socket.socket, metrics_listener: socket.socket | None, stop: "_Stop"
) -> None:
    workers = Workers(_work, settings, url, listener, count=settings.workers, end_within_s=EXIT_WITHIN_S - 1)
    # They come to a database that is ready, and the first key is made once.
    listener.listen(BACKLOG)
    async with AsyncExitStack() as stack:
        async with open_configured_storage(settings, url) as storage:
            await stack.enter_async_context(workers.running())
            await _welcome(settings, storage, listener)

        async def scrape() -> metrics.Scrape:
            answers = await workers.ask(SCRAPE_WITHIN_S)
            found = {str(number): metrics.unpacked(line) for number, line in answers.items() if line is not None}
            answered = {number: line is not None for number, line in answers.items()}
            own = chain(metrics.of_process(), metrics.of_workers(answered, workers.replaced))
            return metrics.Scrape({metrics.PARENT: own, **found})

        await stack.enter_async_context(_serving_metrics(metrics_listener, scrape))
        stop.when_asked(lambda: None)
        await stop.begun.wait()
        # Or the kernel would take connections that nobody serves any more.
        listener.close()


@asynccontextmanager
async def _serving_metrics(
    listener: socket.socket | None, scrape: Callable[[], Awaitable[metrics.Scrape]]
) -> AsyncIterator[None]:
    """Serve the metrics while the block lasts, if they are to be served."""
    if listener is None:
        yield
        return
    server = Server(
        _config(
            metrics.build_app(scrape),
            http="httptools",
            ws="none",
            limit_concurrency=SCRAPERS_MAX,
            timeout_graceful_shutdown=1,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="metrics")
    log.info("The metrics are at %s", _url(listener, metrics.PATH))
    try:
        yield
    finally:
        server.stop()
        await serving


@asynccontextmanager
async def _traces(settings: Settings) -> AsyncIterator["Traces | None"]:
    """What makes traces, if they are on."""
    if settings.traces == "off":
        yield None
        return
    try:
        from graphql_api.traces import open_traces
    except ModuleNotFoundError:
        raise StartupError(
            "SPECTRAL_TRACES is on, and OpenTelemetry is not installed: pip install 'spectral-notify[otel]'."
        ) from None
    async with open_traces() as traces:
        yield traces


def _work(number: int, line: socket.socket, settings: Settings, url: str, listener: socket.socket) -> None:
    """Be one of several processes."""
    set_up_logs(settings.log_level, format=settings.log_format, worker=number)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_work_until_asked(line, settings, url, listener))
        except StartupError as error:
            log.error("%s", error)
            sys.exit(1)


async def _work_until_asked(line: socket.socket, settings: Settings, url: str, listener: socket.socket) -> None:
    with _signals() as stop:
        on_loss_of_parent(stop.ask)
        migrated = settings.model_copy(update={"migrate_on_start": False})
        async with (
            _traces(settings) as traces,
            open_configured_storage(migrated, url, feed_url=_feed_url(settings, url), timers=True) as storage,
        ):
            app = build_app(settings, storage, stop.begun, traces)
            server = Server(_uvicorn_config(settings, app))
            stop.when_asked(server.stop)
            serving = metrics.Serving(storage, app)
            _settle()
            async with answering(line, lambda: metrics.packed(serving.collect())):
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
    return _config(
        app.asgi,
        http=http.protocol_of(app.http, PATH),
        # The rest of the time is for those that are told last.
        ws=websocket.protocol_of(app.websocket, drain_s=0.6 * settings.shutdown_timeout_ms / 1000),
        backlog=BACKLOG,
        # Whole seconds, rounded up.
        timeout_graceful_shutdown=-(-settings.shutdown_timeout_ms // 1000),
    )


def _config(app: ASGIApp, **own: Any) -> uvicorn.Config:
    """What our servers have in common, and what one has for its own."""
    return uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        **own,
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
        self._first: Callable[[], object] = lambda: None

    def first(self, act: Callable[[], object]) -> None:
        """Do this before anything else, when asked to stop."""
        self._first = act

    def when_asked(self, act: Callable[[], object]) -> None:
        """Do this when asked to stop; until then the start itself is given up."""
        self._act = act

    def ask(self) -> None:
        """Stop."""
        if not self.begun.is_set():
            log.info("Asked to stop")
            self.begun.set()
            self._first()
            asyncio.get_running_loop().call_later(EXIT_WITHIN_S, _give_up)
            self._act()


def _give_up() -> None:
    """End the process as it is. What was acknowledged is on disk; a PostgreSQL of our own ends or is adopted."""
    log.error("Not everything could be ended in order within %.1f s; leaving it.", EXIT_WITHIN_S)
    logging.shutdown()
    os._exit(0)


def _settle() -> None:
    """Take what the start has made out of the garbage collector's rounds, and let them be rarer.

    What requests leave behind is freed at once, by counting; the collector finds next to nothing, and with ten thousand
    sockets each of its rounds looks at all that they hold.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS_MAX, 10, 10)
    sys.setswitchinterval(TURN_OF_A_THREAD_S)


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
def _listening(host: str, port: int, which: str = "") -> Iterator[socket.socket]:
    """A socket bound before anything else is started: a port that is taken is the commonest mistake.

    The settings that name it begin with SPECTRAL_ and, when there are several, with which it is.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartupError(
            f"SPECTRAL_{which}HOST {host!r} is not an address of this machine: {error.strerror}."
        ) from None
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
                f"Stop the program that has it, or set SPECTRAL_{which}PORT to another."
            ) from None
        listener.setblocking(False)
        yield listener


async def _welcome(settings: Settings, storage: Storage, listener: socket.socket) -> None:
    """Say where the server is and, on the first start of an embedded database, the key to it."""
    url = _url(listener, PATH)
    key_file = settings.data_dir / "admin.key"
    key = await _first_key(storage, key_file) if settings.database_url is None else None
    log.info("spectral-notify %s serves %s with access %s", version("spectral-notify"), url, settings.access)
    built = pages.is_built(pages.BUILT)
    if built and settings.dashboard == "on":
        log.info("The dashboard is at %s", _url(listener, "/"))
    elif not built and "on" in (settings.dashboard, settings.explorer):
        log.warning("The dashboard and the explorer are not built, so there are no pages: `make web` builds them")
    if key is not None:
        _show_key(url, key, key_file)


def _url(listener: socket.socket, path: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


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
