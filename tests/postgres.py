"""Sessions of the tests' own, beside the program's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy import make_url


@asynccontextmanager
async def session(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that knows nothing of the program; each statement is a transaction of its own."""
    parsed = make_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    connection = await asyncpg.connect(**arguments)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    """Run one statement."""
    async with session(url) as connection:
        await connection.execute(statement)


async def set_for_database(url: str, setting: str) -> None:
    """Change what a setting is for those who connect from now on."""
    await execute(url, f"ALTER DATABASE {make_url(url).database} SET {setting}")
