"""Which database, with which settings, and what the driver's errors mean. Clients never see the driver's words."""

import inspect
import logging
import socket
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import orjson
from sqlalchemy import NullPool, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage.errors import NotConnected, StartupError

log = logging.getLogger(__name__)

# By all hosts together, where the URL names several.
CONNECT_TIMEOUT_S: Final = 5
# What was sent must be acknowledged by the server's machine within this, or the kernel ends the connection: a network
# that swallows everything is found out long before a statement would have had its time.
ACKNOWLEDGED_WITHIN_S: Final = 3
# How much longer than the server the driver waits for the end of a statement.
DRIVER_GRACE_S: Final = 5
# The arrays that statements take and bring, by PostgreSQL's numbers for them and for what they hold. The driver would
# ask for each, in the middle of a transaction, by a query that goes through all composite types. On Citus, which has
# hundreds, that takes half a second.
_ARRAYS: Final = {
    "bytea": (1001, 17),
    "int4": (1007, 23),
    "int8": (1016, 20),
    "text": (1009, 25),
    "timestamptz": (1185, 1184),
}
# What the URL may say to SQLAlchemy and not to the driver.
_OF_SQLALCHEMY: Final = "prepared_statement_cache_size"
# What may follow the question mark of a URL: what the driver takes.
_URL_OPTIONS: Final = inspect.signature(asyncpg.connect).parameters.keys() | {_OF_SQLALCHEMY}
# What PostgreSQL says of a statement that it stopped.
_STATEMENT_CANCELED: Final = "57014"
# What PgBouncer says to settings that it does not know.
_OF_A_POOLER: Final = "unsupported startup parameter"
# PostgreSQL's own words for "not now": connection failures (08), resources (53), limits of time and locks (55, 57), and
# what a restart or a failover does to a transaction (40, and 25006: the server became read-only).
_PASSING_STATES: Final = ("08", "40", "53", "55", "57", "25006")
# What ends a session, and what shows that it is of no more use.
_ENDING_STATES: Final = ("08", "57P")
_CONNECTION_STATES: Final = (*_ENDING_STATES, "25006")


def open_engine(url: str, *, statement_timeout_ms: int, lock_timeout_ms: int) -> AsyncEngine:
    """SQLAlchemy's way to a database, for migrations; at run time there is the pool. A connection lives as long as it
    is used.
    """
    connector = Connector(driver_arguments(url, statement_timeout_ms, lock_timeout_ms, {}))

    async def connect(**_: Any) -> Any:
        driver, _own = await connector.connect()
        return driver

    engine = create_async_engine(
        _parsed(url, "SPECTRAL_DATABASE_URL"),
        poolclass=NullPool,
        hide_parameters=True,
        # Statements without names, because behind a pooler others may have prepared something under the same.
        connect_args={
            "async_creator_fn": connect,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        },
    )

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql(connector.settings_of_transaction)

    return engine


def driver_arguments(
    url: str,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
    session_settings: Mapping[str, str],
    *,
    named: str = "SPECTRAL_DATABASE_URL",
) -> dict[str, Any]:
    """What the driver is called with to connect; StartupError says what is wrong with the setting of that name."""
    parsed = _parsed(url, named)
    try:
        _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    except (ArgumentError, ValueError) as error:
        raise StartupError(f"{named} cannot be used: {error}.") from None
    arguments.pop(_OF_SQLALCHEMY, None)
    return {**arguments, **_settings(statement_timeout_ms, lock_timeout_ms, session_settings)}


def _parsed(url: str, named: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StartupError(f"{named} is not a URL; expected postgresql://user:password@host/name.") from None
    if parsed.get_backend_name() not in ("postgres", "postgresql"):
        raise StartupError(f"{named} must begin with postgresql://.")
    query = dict(parsed.query)
    if "sslmode" in query:
        # What libpq's URLs call sslmode, asyncpg calls ssl.
        query["ssl"] = query.pop("sslmode")
    if unknown := sorted(query.keys() - _URL_OPTIONS):
        raise StartupError(f"{named} has an option that is not known here: {unknown[0]!r}.")
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def _settings(statement_timeout_ms: int, lock_timeout_ms: int, session_settings: Mapping[str, str]) -> dict[str, Any]:
    return {
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
            **session_settings,
        },
    }


class Connector:
    """Makes sessions: directly or through a pooler, on whichever of several hosts will have them."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        settings = dict(arguments["server_settings"])
        self._arguments = arguments
        self._through_pooler = {
            **arguments,
            "server_settings": {"application_name": settings.pop("application_name")},
            # The driver's own statements have names otherwise, too.
            "statement_cache_size": 0,
        }
        self._pooled = False
        # The one that served last is tried first.
        self._hosts = _hosts(arguments)
        self.settings_of_transaction = "SELECT " + ", ".join(
            f"set_config('{name}', '{value}', true)" for name, value in settings.items()
        )
        """A statement that gives a transaction the settings that a session of our own begins with."""

    async def connect(self) -> tuple[Any, bool]:
        """The driver's connection, and whether it is a session of our own.

        It is not behind a pooler, where each transaction may run in another session than the last: nothing that a
        session is told or has prepared is there in the next. PgBouncer refuses a connection that comes with settings,
        or swallows them (`ignore_startup_parameters`); so do others.
        """
        if not self._pooled:
            try:
                driver = await self._connect(self._arguments)
            except asyncpg.PostgresError as error:
                if _OF_A_POOLER not in str(error):
                    raise
            else:
                if await _is_own(driver):
                    return driver, True
                driver.terminate()
            log.info("The database is reached through a pooler; settings go along with each transaction.")
            self._pooled = True
        return await self._connect(self._through_pooler), False

    async def _connect(self, arguments: Mapping[str, Any]) -> Any:
        """Connect to one host after the other: the driver gives all the time that there is to the first."""
        timeout_s = CONNECT_TIMEOUT_S / len(self._hosts)
        for place, host in enumerate(hosts := self._hosts):
            try:
                driver = await asyncpg.connect(**{**arguments, **host, "timeout": timeout_s})
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if place == len(hosts) - 1:
                    raise
            else:
                if place:
                    self._hosts = [host, *hosts[:place], *hosts[place + 1 :]]
                _bound_silence(driver)
                _introduce_arrays(driver)
                return driver
        raise AssertionError("there is no host")


def _hosts(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    hosts, ports = arguments.get("host"), arguments.get("port")
    if not isinstance(hosts, list):
        return [{}]
    if not isinstance(ports, list):
        ports = [ports] * len(hosts)
    return [{"host": host, "port": port} for host, port in zip(hosts, ports, strict=True)]


def _bound_silence(driver: Any) -> None:
    """Have the kernel end a connection over which nothing arrives any more. The driver has no setting for it."""
    connection = driver._transport.get_extra_info("socket")
    if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * ACKNOWLEDGED_WITHIN_S)


def _introduce_arrays(driver: Any) -> None:
    """Tell the driver what arrays hold."""
    driver._protocol.get_settings().register_data_types(
        {
            "oid": array,
            "name": name,
            "ns": "pg_catalog",
            "kind": b"b",
            "basetype": None,
            "elemtype": element,
            "elemtype_name": name,
            "elemdelim": ",",
            "range_subtype": None,
            "attrtypoids": None,
            "attrnames": None,
        }
        for name, (array, element) in _ARRAYS.items()
    )


async def _is_own(driver: Any) -> bool:
    """Whether the process that serves a connection is the one that took it."""
    try:
        # In one round trip, which the driver's ways to get an answer are not.
        await driver.execute(f"SELECT 1 / (pg_backend_pid() = {driver.get_server_pid()})::integer")
    except asyncpg.DivisionByZeroError:
        return False
    except BaseException:
        driver.terminate()
        raise
    return True


def sqlstate(error: BaseException) -> str:
    """The five characters with which PostgreSQL names an error; empty for what did not come from it."""
    return str(getattr(error, "sqlstate", None) or "")


def is_unsendable(error: BaseException) -> bool:
    """Whether the driver refused a value, which it calls a misuse of itself, or it is no JSON; nothing was sent."""
    if isinstance(error, orjson.JSONEncodeError):
        return True
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)


def is_connection_failure(error: BaseException) -> bool:
    """Whether the connection, and with it any open transaction, is gone or never was, or is of no more use."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        # Somebody changed the tables; what was prepared for them before does not fit.
        return True
    if state := sqlstate(error):
        return state.startswith(_CONNECTION_STATES)
    if isinstance(error, asyncpg.InternalClientError):
        # The driver had not taken in yet that the server is going; seen when it stops while a statement begins.
        return True
    return isinstance(error, OSError | asyncpg.InterfaceError) and not is_unsendable(error)


def is_dead_connection(error: BaseException) -> bool:
    """Whether a fresh connection may do what this one could not; most often it died while it lay idle."""
    # Who has waited for an answer as long as one may does not wait again.
    return is_connection_failure(error) and not isinstance(error, TimeoutError)


def is_undone(error: BaseException) -> bool:
    """Whether a statement that commits by itself was certainly not done: PostgreSQL said no, or was never asked."""
    if isinstance(error, asyncpg.PostgresError):
        return not sqlstate(error).startswith(_ENDING_STATES)
    return is_unsendable(error) or isinstance(error, NotConnected)


def is_out_of_time(error: BaseException) -> bool:
    """Whether a statement was stopped, most often because it had its time."""
    return sqlstate(error) == _STATEMENT_CANCELED


def is_passing(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    return is_connection_failure(error) or sqlstate(error).startswith(_PASSING_STATES)


def explain(error: BaseException) -> str | None:
    """Why a database cannot be used, in words for the person who runs the program; None when unknown."""
    if isinstance(error, NotConnected) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "none of the hosts is as target_session_attrs wants it"
    if isinstance(error, OSError | DBAPIError | asyncpg.PostgresError):
        original = error.orig if isinstance(error, DBAPIError) else error
        return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
    return None
