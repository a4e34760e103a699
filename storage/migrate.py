"""Bring a database's schema up to the program's: Alembic, under an advisory lock, so that many processes may start at
once.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from storage.database import explain
from storage.errors import StartupError
from storage.pool import Pool

log = logging.getLogger(__name__)

# Any number will do, so long as every version of the program takes the same.
MIGRATION_LOCK: Final = 7_305_806_316
# The first process may have a large table to rebuild while the others wait for it.
MIGRATION_WAIT_MS: Final = 600_000
# How long a migration itself waits for a table: whoever wants it, too, stands in line behind the migration, be it only
# to read. While somebody else has it, the migration gives up its place and comes again.
TABLE_WAIT_MS: Final = 1_000
TABLE_PAUSE_S: Final = 2.0
_LOCK_NOT_AVAILABLE: Final = "55P03"
# As Alembic keeps it.
_REVISION: Final = "SELECT version_num FROM alembic_version"


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    result = Config()
    result.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    result.set_main_option("path_separator", "os")
    result.attributes["connection"] = connection
    return result


@cache
def head() -> str:
    """The revision that this program works with."""
    revision = ScriptDirectory.from_config(config()).get_current_head()
    assert revision is not None
    return revision


async def migrate(engine: AsyncEngine) -> tuple[str | None, str]:
    """Upgrade the schema; return the revision before (None: an empty database) and after.

    Both a migration and the wait for another process's may take as long as the engine lets them.
    """
    give_up_at = time.monotonic() + MIGRATION_WAIT_MS / 1000
    with explained():
        while True:
            try:
                async with engine.connect() as connection:
                    return await connection.run_sync(_migrate)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or time.monotonic() > give_up_at:
                    raise
            log.warning("The migration waits for a table that somebody else has.")
            await asyncio.sleep(TABLE_PAUSE_S)


async def require(pool: Pool) -> None:
    """Refuse to start on another schema than the program's own."""
    with explained():
        found = await current(pool)
    _check_known(found)
    if found != head():
        raise StartupError(
            f"The database's schema is at {found or 'nothing'}, and this program works with {head()}. "
            "Run `spectral-notify migrate` of this version first."
        )


async def current(pool: Pool) -> str | None:
    """The revision that the database is at; None when it has no schema."""
    try:
        return next((str(row[0]) for row in await pool.run(_REVISION)), None)
    except asyncpg.UndefinedTableError:
        return None


def _check_known(found: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if found is not None and found not in known:
        raise StartupError(
            f"The database's schema ({found}) is newer than this program (which knows {head()} as the latest). "
            "Install the newer spectral-notify, or name another database."
        )


@contextmanager
def explained() -> Iterator[None]:
    """Turn why a database cannot be used into a sentence for the person who runs the program."""
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        raise StartupError(f"The database cannot be used: {reason}. Check SPECTRAL_DATABASE_URL.") from error


def _migrate(connection: Connection) -> tuple[str | None, str]:
    with connection.begin():
        # Held until the transaction ends, so it is given back whatever happens to this process.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        before = MigrationContext.configure(connection).get_current_revision()
        _check_known(before)
        if before != head():
            connection.execute(text(f"SET LOCAL lock_timeout = {TABLE_WAIT_MS}"))
            command.upgrade(config(connection), "head")
        return before, head()
