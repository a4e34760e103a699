"""Tables that are spread over machines by ``task_id``, with Citus: how they come to be so, and how one speaks to them.

All that is of one task lies in one shard. A transaction that changes tasks of several machines is committed on all of
them or on none (two phases). What Citus has no equal of is a lock on rows of several shards in a certain order, so a
group locks shard by shard; see ``group``.
"""

from typing import Final

import asyncpg

from storage import dependencies, group, reader
from storage.database import explain
from storage.errors import StartupError
from storage.migrate import MIGRATION_LOCK, MIGRATION_WAIT_MS, explained, require
from storage.pool import PLANNING, Connection, Dialect, Pool, open_pool

# Rows are copied to their shards, however many they are.
DISTRIBUTION_WAIT_MS: Final = 24 * 3_600_000
# A group of changes takes longer the more shards it concerns.
SHARDS: Final = 8
SHARDS_MAX: Final = 1_024

CITUS: Final = Dialect(
    settings={
        **PLANNING,
        # It finds the shards by the values of parameters, which a plan for any values does not have.
        "plan_cache_mode": "auto",
        # One connection to each machine, and so one transaction there for each of ours.
        "citus.multi_shard_modify_mode": "sequential",
        # Otherwise who changes rows of several shards locks those shards, in the order of his statements. The rows are
        # locked already, in one order for all.
        "citus.enable_deadlock_prevention": "off",
    },
    # Settings of a session do not reach the workers; what is SET LOCAL can.
    repeated=("lock_timeout", "synchronous_commit"),
    passing_on="SET LOCAL citus.propagate_set_commands = 'local'",
    instead={**group.ON_CITUS, **dependencies.ON_CITUS, **reader.ON_CITUS},
    distributed=True,
)

_HAS_CITUS: Final = "SELECT FROM pg_extension WHERE extname = 'citus'"
_MAY_HAVE_CITUS: Final = "SELECT FROM pg_available_extensions WHERE name = 'citus'"
_IS_DISTRIBUTED: Final = "SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass('tasks') AND partmethod = 'h'"
_OTHERS: Final = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'spectral-notify'"
    " AND pid <> pg_backend_pid()"
)
_STATEMENTS: Final = (
    "SELECT create_distributed_table('tasks', 'task_id', shard_count := {shards})",
    "SELECT create_distributed_table('task_events', 'task_id', colocate_with := 'tasks')",
    # Links lie with the task that is waited for.
    "SELECT create_distributed_table('task_dependencies', 'task_id', colocate_with := 'tasks')",
    # The rows that were copied.
    "SELECT truncate_local_data_after_distributing_table('tasks')",
    "SELECT truncate_local_data_after_distributing_table('task_events')",
    "SELECT truncate_local_data_after_distributing_table('task_dependencies')",
)


async def is_distributed(pool: Pool) -> bool:
    """Whether tasks are spread over machines."""
    with explained():
        async with pool.connection() as connection:
            return await _is_distributed(connection)


async def distribute(url: str, shards: int) -> bool:
    """Spread tasks and their events over the machines of a Citus cluster; False when they are so already."""
    pool = open_pool(
        url,
        CITUS,
        connections_max=1,
        pool_wait_s=0,
        statement_timeout_ms=DISTRIBUTION_WAIT_MS,
        lock_timeout_ms=MIGRATION_WAIT_MS,
    )
    try:
        await require(pool)
        with explained():
            async with pool.connection() as connection:
                await _create_extension(connection)
                await connection.begin()
                # A server that starts meanwhile waits as it does for a migration.
                await connection.run(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
                if await _is_distributed(connection):
                    await connection.roll_back()
                    return False
                await _distribute(connection, shards)
                await connection.commit()
        return True
    finally:
        await pool.close()


async def _is_distributed(connection: Connection) -> bool:
    return bool(await connection.run(_HAS_CITUS) and await connection.run(_IS_DISTRIBUTED))


async def _create_extension(connection: Connection) -> None:
    if await connection.run(_HAS_CITUS):
        return
    if not await connection.run(_MAY_HAVE_CITUS):
        raise StartupError("This PostgreSQL has no Citus; name the coordinator of a Citus cluster.")
    try:
        await connection.run("CREATE EXTENSION citus")
    except asyncpg.PostgresError as error:
        raise StartupError(
            f"Citus cannot be set up in this database: {explain(error)}. "
            "A superuser must say CREATE EXTENSION citus in it, on the coordinator and on every worker."
        ) from error


async def _distribute(connection: Connection, shards: int) -> None:
    if others := await connection.run(_OTHERS):
        raise StartupError(f"Servers have {len(others)} connections to this database; stop them first.")
    try:
        for statement in _STATEMENTS:
            await connection.run(statement.format(shards=shards))
    except asyncpg.PostgresError as error:
        raise StartupError(f"The tables cannot be distributed: {explain(error)}.") from error
