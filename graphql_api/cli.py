"""The command line: ``spectral-notify serve | migrate | schema | keys``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from graphql_api.logs import set_up_logs
from graphql_api.schema import sdl
from graphql_api.server import open_configured_storage, open_database, serve
from graphql_api.settings import Settings, read_settings
from storage import Permission, Refusal, StartupError, Storage, upgrade_database

T = TypeVar("T")

app = typer.Typer(
    name="spectral-notify",
    help="A self-hosted GraphQL API with live subscriptions for long-running tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys_app = typer.Typer(help="Make, list and revoke API keys; also beside a running server.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Run the command line; what stops a start is one sentence on stderr, never a traceback."""
    try:
        app()
    except (StartupError, Refusal) as error:
        sys.stderr.write(f"spectral-notify: {error}\n")
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("spectral-notify"))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A self-hosted GraphQL API with live subscriptions for long-running tasks."""


@app.command("serve")
def serve_command(
    workers: Annotated[
        int | None, typer.Option(help="How many processes serve the port; SPECTRAL_WORKERS says it, too.")
    ] = None,
) -> None:
    """Serve the API. Everything is set by SPECTRAL_… in the environment; docs/operations.md lists the settings."""
    settings = read_settings({} if workers is None else {"workers": workers})
    set_up_logs(settings.log_level, format=settings.log_format)
    _run(serve(settings))


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database's schema up to date, and exit."""
    settings = read_settings()
    set_up_logs(settings.log_level, format=settings.log_format)

    async def upgrade() -> tuple[str | None, str]:
        async with open_database(settings, role="command") as url:
            return await upgrade_database(url)

    before, after = _run(upgrade())
    typer.echo(
        f"The schema is at {after}." if before == after else f"The schema went from {before or 'none'} to {after}."
    )


@app.command("schema")
def schema_command() -> None:
    """Print the GraphQL schema."""
    sys.stdout.write(sdl())


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is: what `createdBy` of the tasks will say.")],
    permission: Annotated[
        list[Permission], typer.Option("--permission", "-p", help="What it may do; repeat it for several.")
    ],
) -> None:
    """Create a key and print it, alone, on stdout. It is shown this once and kept as a hash."""
    settings = read_settings()
    set_up_logs("warning", format=settings.log_format)
    typer.echo(_with_storage(settings, lambda storage: storage.keys.create(name, permission)))


@keys_app.command("list")
def list_keys() -> None:
    """List the keys, the revoked ones too."""
    settings = read_settings()
    set_up_logs("warning", format=settings.log_format)
    table = Table("NAME", "PERMISSIONS", "CREATED (UTC)", "REVOKED (UTC)", box=None, pad_edge=False)
    for key in _with_storage(settings, lambda storage: storage.keys.list()):
        permissions = " ".join(permission for permission in Permission if permission in key.permissions)
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M:%S}" if key.revoked_at else ""
        table.add_row(key.name, permissions, f"{key.created_at:%Y-%m-%d %H:%M:%S}", revoked)
    Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False).print(table)


@keys_app.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="The name of the key.")]) -> None:
    """Make a key open nothing any more. Running servers notice within ten seconds."""
    settings = read_settings()
    set_up_logs("warning", format=settings.log_format)
    _with_storage(settings, lambda storage: storage.keys.revoke(name))


def _with_storage(settings: Settings, use: Callable[[Storage], Awaitable[T]]) -> T:
    async def run() -> T:
        async with (
            open_database(settings, role="command") as url,
            open_configured_storage(settings, url) as storage,
        ):
            return await use(storage)

    return _run(run())


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
