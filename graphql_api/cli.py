"""The commands of the server: ``serve | migrate | distribute | recount | schema | keys | signing-keys``."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from graphql_api import audit
from graphql_api.audit import Action
from graphql_api.logs import set_up_logs
from graphql_api.schema import sdl
from graphql_api.server import open_configured_storage, open_database, serve
from graphql_api.settings import Settings, read_settings
from storage import (
    SHARDS,
    SHARDS_MAX,
    Counts,
    Permission,
    Refusal,
    StartupError,
    Storage,
    distribute,
    recount_database,
    upgrade_database,
)

T = TypeVar("T")

app = typer.Typer(rich_markup_mode=None)
keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys", help="Make, list and revoke API keys; also beside a running server.")
signing_keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    signing_keys_app,
    name="signing-keys",
    help="List, replace and revoke the keys that sign task tokens; also beside a running server.",
)


@app.command("serve")
def serve_command(
    workers: Annotated[
        int | None, typer.Option(help="How many processes serve the port; SPECTRAL_WORKERS says it, too.")
    ] = None,
) -> None:
    """Serve the API. Everything is set by SPECTRAL_… in the environment; docs/operations.md lists the settings."""
    settings = _settings({} if workers is None else {"workers": workers})
    set_up_logs(settings.log_level, format=settings.log_format)
    _run(serve(settings))


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database's schema up to date, and exit."""
    settings = _settings()
    set_up_logs(settings.log_level, format=settings.log_format)

    async def upgrade() -> tuple[str | None, str]:
        async with open_database(settings, role="command") as url:
            return await upgrade_database(url)

    before, after = _run(upgrade())
    typer.echo(
        f"The schema is at {after}." if before == after else f"The schema went from {before or 'none'} to {after}."
    )


@app.command("distribute")
def distribute_command(
    shards: Annotated[
        int, typer.Option(min=1, max=SHARDS_MAX, help="Into how many parts: some for each worker there will be.")
    ] = SHARDS,
) -> None:
    """Spread tasks over the machines of a Citus cluster, and exit. Stop the servers first."""
    settings = _settings()
    set_up_logs(settings.log_level, format=settings.log_format)

    async def spread() -> bool:
        async with open_database(settings, role="command") as url:
            return await distribute(url, shards)

    typer.echo(
        "Tasks are distributed by task_id; start the servers." if _run(spread()) else "Tasks are distributed already."
    )


@app.command("recount")
def recount_command() -> None:
    """Count the tasks of each status anew, also beside running servers; after rows were changed by hand."""
    settings = _settings()
    set_up_logs(settings.log_level, format=settings.log_format)

    async def count() -> Counts:
        async with open_database(settings, role="command") as url:
            return await recount_database(url)

    counts = _run(count())
    typer.echo(", ".join(f"{name}: {number}" for name, number in (*counts._asdict().items(), ("total", counts.total))))


@app.command("schema")
def schema_command() -> None:
    """Print the GraphQL schema."""
    sys.stdout.write(sdl())


@keys_app.command("create")
def create_key(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose key it is: what `createdBy` of the tasks will say.")
    ],
    permission: Annotated[
        list[Permission], typer.Option("--permission", "-p", help="What it may do; repeat it for several.")
    ],
) -> None:
    """Create a key and print it, alone, on stdout. It is shown this once and kept as a hash."""
    key = _with_storage(lambda storage: storage.keys.create(name, permission))
    audit.record(Action.API_KEY_CREATE, actor=audit.person(), key=name, permissions=" ".join(sorted(permission)))
    typer.echo(key)


@keys_app.command("list")
def list_keys() -> None:
    """List the keys, the revoked ones too."""
    table = Table("NAME", "PERMISSIONS", "CREATED (UTC)", "REVOKED (UTC)", box=None, pad_edge=False)
    for key in _with_storage(lambda storage: storage.keys.list()):
        permissions = " ".join(permission for permission in Permission if permission in key.permissions)
        table.add_row(key.name, permissions, _instant(key.created_at), _instant(key.revoked_at))
    _print(table)


@keys_app.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the key.")]) -> None:
    """Make a key open nothing any more.

    Neither do the task tokens that were made with it. Running servers notice within ten seconds.
    """
    _with_storage(lambda storage: storage.keys.revoke(name))
    audit.record(Action.API_KEY_REVOKE, actor=audit.person(), key=name)


@signing_keys_app.command("list")
def list_signing_keys() -> None:
    """List the keys of the database. The one that is not retired signs; the others verify what they signed."""
    table = Table("KEY", "CREATED (UTC)", "RETIRED (UTC)", box=None, pad_edge=False)
    for key in _with_storage(lambda storage: storage.signing_keys.list()):
        table.add_row(key.key_id, _instant(key.created_at), _instant(key.retired_at))
    _print(table)


@signing_keys_app.command("rotate")
def rotate_signing_key() -> None:
    """Make a key that signs from now on, and print its ID. What was signed before stays good until it expires."""
    if _settings().task_token_secret is not None:
        raise typer.TyperException(
            "Task tokens are signed with SPECTRAL_TASK_TOKEN_SECRET: move its value to "
            "SPECTRAL_TASK_TOKEN_SECRET_PREVIOUS, give it a new one, and restart the servers."
        )
    key_id = _with_storage(lambda storage: storage.signing_keys.rotate())
    audit.record(Action.SIGNING_KEY_ROTATE, actor=audit.person(), key=key_id)
    typer.echo(key_id)


@signing_keys_app.command("revoke")
def revoke_signing_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The ID of the key, as it is listed.")],
) -> None:
    """Forget a key.

    No task token that it signed opens anything then. Running servers notice within ten seconds.
    """
    _with_storage(lambda storage: storage.signing_keys.revoke(key))
    audit.record(Action.SIGNING_KEY_REVOKE, actor=audit.person(), key=key)


def _instant(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def _print(table: Table) -> None:
    Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False).print(table)


def _with_storage(use: Callable[[Storage], Awaitable[T]]) -> T:
    """Use the storage for a command, whose log is what went wrong and what was done."""
    settings = _settings()
    set_up_logs("warning", format=settings.log_format)
    audit.log.setLevel(logging.INFO)

    async def run() -> T:
        async with (
            open_database(settings, role="command") as url,
            open_configured_storage(settings, url) as storage,
        ):
            return await use(storage)

    return _run(run())


def _settings(given: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    with _explained():
        return read_settings(given)


def _run(work: Coroutine[Any, Any, T]) -> T:
    with _explained(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextmanager
def _explained() -> Iterator[None]:
    """What stops a command is one sentence on stderr, never a traceback."""
    try:
        yield
    except (StartupError, Refusal) as error:
        raise typer.TyperException(str(error)) from error
