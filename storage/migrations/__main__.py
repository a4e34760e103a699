"""``make migration m="what it does"``: write a migration from what the tables say and the migrations do not yet do.

The difference is found on a PostgreSQL of its own, in a folder that is removed again.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from storage.database import open_engine
from storage.embedded import embedded_postgres
from storage.migrate import config, migrate


async def write_migration(message: str) -> None:
    """Bring an empty database to the newest revision, compare it with the tables, and write what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_postgres(Path(folder) / "data", role="command") as url:
            engine = open_engine(url, statement_timeout_ms=60_000, lock_timeout_ms=60_000)
            try:
                await migrate(engine)
                async with engine.connect() as connection:
                    await connection.run_sync(_revision, message)
            finally:
                await engine.dispose()


def _revision(connection: Connection, message: str) -> None:
    with connection.begin():
        settings = config(connection)
        number = len(list(ScriptDirectory.from_config(settings).walk_revisions())) + 1
        command.revision(settings, message, autogenerate=True, rev_id=f"{number:04d}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit('Say what the migration does: make migration m="what it does"')
    asyncio.run(write_migration(sys.argv[1]))
