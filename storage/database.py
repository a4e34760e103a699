"""The pool of connections, and what the driver's errors mean. Clients never see the driver's words."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage.errors import StartupError, Unavailable

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 5
# How much longer than the server the driver waits for the end of a statement.
DRIVER_GRACE_S: Final = 5
# What may follow the question mark of a URL: what the driver takes.
_URL_OPTIONS: Final = inspect.signature(asyncpg.connect).parameters.keys() | {"prepared_statement_cache_size"}
# PostgreSQL's own words for "not now": connection failures (08), resources (53), limits of time and locks (55, 57), and
# what a restart or a failover does to a transaction (40, and 25006: the server became read-only).
_PASSING_STATES: Final = ("08", "40", "53", "55", "57", "25006")
_CONNECTION_STATES: Final = ("08", "57P", "25006")


def open_engine(
    url: str, *, connections_max: int, pool_wait_s: float, statement_timeout_ms: int, lock_timeout_ms: int
) -> AsyncEngine:
    """A pool for a PostgreSQL URL. Connections are made when first needed."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StartupError(
            "SPECTRAL_DATABASE_URL is not a URL; expected postgresql://user:password@host/name."
        ) from None
    if parsed.get_backend_name() not in ("postgres", "postgresql"):
        raise StartupError("SPECTRAL_DATABASE_URL must begin with postgresql://.")
    query = dict(parsed.query)
    if "sslmode" in query:
        # What libpq's URLs call sslmode, asyncpg calls ssl.
        query["ssl"] = query.pop("sslmode")
    if unknown := sorted(query.keys() - _URL_OPTIONS):
        raise StartupError(f"SPECTRAL_DATABASE_URL has an option that is not known here: {unknown[0]!r}.")
    engine = create_async_engine(
        parsed.set(drivername="postgresql+asyncpg", query=query),
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=pool_wait_s,
        # What clients sent stays out of errors, and so out of the log.
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            # The server ends a statement by itself; this is for a server that no longer answers.
            "command_timeout": statement_timeout_ms / 1000 + DRIVER_GRACE_S,
            "server_settings": {
                "application_name": "spectral-notify",
                # An acknowledged change is on disk, whatever the server's default is.
                "synchronous_commit": "on",
                # Whoever waited for a row or for the migrations sees what the other did, whatever the server's default.
                "default_transaction_isolation": "read committed",
                "statement_timeout": str(statement_timeout_ms),
                "lock_timeout": str(lock_timeout_ms),
                "idle_in_transaction_session_timeout": "60000",
                "timezone": "UTC",
                # Statements here take microseconds; compiling one takes milliseconds.
                "jit": "off",
                # A plan that was kept while the tables were small would scan them when they are large, until
                # somebody analyzes them: a hundred times slower at 100,000 tasks.
                "plan_cache_mode": "force_custom_plan",
            },
        },
    )
    event.listen(engine.sync_engine, "handle_error", _forget_detail)
    return engine


def _forget_detail(context: ExceptionContext) -> None:
    # It quotes whole rows, with what clients sent.
    error = context.original_exception.__cause__
    if isinstance(error, asyncpg.PostgresError):
        error.detail = None


def sqlstate(error: BaseException) -> str:
    """The five characters with which PostgreSQL names an error; empty for what did not come from it."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(original, "sqlstate", None) or "")


def is_connection_failure(error: BaseException) -> bool:
    """Whether the connection, and with it any open transaction, is gone or never was."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if sqlstate(error):
        return sqlstate(error).startswith(_CONNECTION_STATES)
    return isinstance(error, OSError | PoolTimeoutError | InterfaceError | asyncpg.InterfaceError)


def is_passing(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    return is_connection_failure(error) or sqlstate(error).startswith(_PASSING_STATES)


@contextmanager
def translated() -> Iterator[None]:
    """Turn a failure that may pass into Unavailable; let every other error through."""
    try:
        yield
    except Exception as error:
        if is_passing(error):
            raise Unavailable("The database did not answer in time; try again.") from error
        raise


async def patiently(read: Callable[[], Awaitable[T]]) -> T:
    """Read, and once more when the pooled connection turns out to have died while it lay idle."""
    with translated():
        try:
            return await read()
        except DBAPIError as error:
            if not is_connection_failure(error):
                raise
            return await read()


def explain(error: BaseException) -> str | None:
    """Why a database cannot be used at start, in words for the person who starts the program; None when unknown."""
    if isinstance(error, TimeoutError):
        return f"it did not answer within {CONNECT_TIMEOUT_S} s"
    if isinstance(error, OSError | DBAPIError | asyncpg.PostgresError):
        original = error.orig if isinstance(error, DBAPIError) else error
        return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
    return None
