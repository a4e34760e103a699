"""The program ``spectral-notify``: its commands, of which only what is asked for is loaded, and how it ends.

The commands for tasks are a client's (``terminal``), those of the server are in ``cli.py``. Whoever types one should
not wait for the other half, so of the server's commands only names and first sentences are known here.
"""

import io
import sys
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from terminal import commands
from terminal.exits import Exit

SERVER: Final = "Server"
# What `cli.py` says of them; a test compares the two.
COMMANDS: Final = {
    "serve": "Serve the API. "
    "Everything is set by SPECTRAL_… in the environment; docs/operations.md lists the settings.",
    "migrate": "Bring the database's schema up to date, and exit.",
    "distribute": "Spread tasks over the machines of a Citus cluster, and exit. Stop the servers first.",
    "recount": "Count the tasks of each status anew, also beside running servers; after rows were changed by hand.",
    "schema": "Print the GraphQL schema.",
    "keys": "Make, list and revoke API keys; also beside a running server.",
    "signing-keys": "List, replace and revoke the keys that sign task tokens; also beside a running server.",
}


class Commands(TyperGroup):
    """All commands; those of the server are loaded when one of them is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, help_text in COMMANDS.items():
            self.add_command(TyperCommand(name, help=help_text, rich_help_panel=SERVER))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what there is, by whose it is, in whole sentences."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            first = (command.help or "").partition("\n\n")[0].replace("\n", " ")
            sections.setdefault(getattr(command, "rich_help_panel", ""), []).append((name, first))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is to be run."""
        if args and args[0] in COMMANDS:
            from graphql_api.cli import app as server

            found = get_command(server)
            assert isinstance(found, TyperGroup)
            self.add_command(found.commands[args[0]])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="spectral-notify",
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
commands.add_to(app)


def main() -> None:
    """Run the command line; what ends a command early is one sentence on stderr, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is shown as a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False, prog_name="spectral-notify")
    except typer.TyperException as error:
        code = _explain(error)
    except typer.Abort:
        code = Exit.INTERRUPTED
    sys.exit(code if isinstance(code, int) else Exit.DONE)


def _explain(error: typer.TyperException) -> int:
    """Say what is wrong; return the code of the end."""
    context: typer.Context | None = getattr(error, "ctx", None)
    message = error.format_message()
    if not message.endswith((".", "?", "!")):
        message += "."
    # It may quote what others wrote, and a terminal is to show it, not to obey it.
    message = "".join(sign if sign.isprintable() or sign == "\n" else f"\\x{ord(sign):02x}" for sign in message)
    if context is None:
        sys.stderr.write(f"spectral-notify: {message}\n")
        return error.exit_code
    if type(error).__name__ != "NoArgsIsHelpError":
        sys.stderr.write(f"{context.get_usage()}\nspectral-notify: {message} Try {context.command_path} --help.\n")
    return Exit.USAGE


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("spectral-notify"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A self-hosted GraphQL API with live subscriptions for long-running tasks."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(Exit.USAGE)
