"""One command's conversation with the server, and what its failures mean to whoever typed the command."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import typer

from terminal.exits import OF_CODE, Exit, Failure
from terminal.look import plain
from terminal.place import KEY, URL, Place, find_place
from worker.client import Client
from worker.errors import Refused, Unreachable, WorkerError


class Session:
    """The server, and how long it is asked again while it gives no answer."""

    def __init__(self, place: Place, patience_s: float) -> None:
        self.place = place
        self.patience_s = patience_s
        # Attempts that brought no answer; what they asked for may have been done.
        self.unanswered = 0
        self.client = Client(place.url, place.key, direct=place.own, unanswered=self.no_answer)

    async def ask(self, document: str, **variables: Any) -> Any:
        """What the one field of the document answers."""
        return await self.client.ask(document, variables, patience_s=self.patience_s)

    async def close(self) -> None:
        """Close its connections."""
        await self.client.close()

    def no_answer(self, why: str) -> None:
        """Tell a person who waits."""
        self.unanswered += 1
        if self.unanswered == 1 and sys.stderr.isatty():
            sys.stderr.write(f"{plain(why).rstrip('.')}; trying again for {self.patience_s:g} s.\n")


def converse(url: str | None, patience_s: float, work: Callable[[Session], Awaitable[Exit | None]]) -> None:
    """Do a command's work; end with its code, or as what went wrong demands."""
    place = find_place(url)

    async def run() -> Exit | None:
        session = Session(place, patience_s)
        try:
            return await work(session)
        finally:
            await session.close()

    try:
        code = asyncio.run(run())
    except WorkerError as error:
        raise failure(error, place) from error
    except BrokenPipeError:
        # What is still to be written at the end of the program has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.UNREAD) from None
    if code:
        raise typer.Exit(code)


def failure(error: WorkerError, place: Place) -> Failure:
    """An error of the library as the end of a command."""
    if isinstance(error, Unreachable):
        return Failure(Exit.UNREACHABLE, f"{_sentence(str(error))} {_how_to_reach(place, error)}")
    assert isinstance(error, Refused)
    code = OF_CODE.get(error.code, Exit.NO_API)
    message = _sentence(str(error))
    if error.code == "UNAUTHENTICATED":
        message += f" {_how_to_sign_in(place)}"
    if error.code == "FORBIDDEN":
        message += f" Set {KEY} to a key that may."
    if error.code == "INTERNAL_SERVER_ERROR" and (known_as := error.extensions.get("id")):
        message += f" The server's log has it under {known_as}."
    if error.code == "GRAPHQL_VALIDATION_FAILED":
        message += f" Perhaps {place.url} is of another version than this program."
    return Failure(code, message)


def not_found(task_id: str) -> Failure:
    """There is no such task."""
    return Failure(Exit.NOT_FOUND, f'There is no task "{task_id}".')


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _how_to_reach(place: Place, error: Unreachable) -> str:
    if error.answered:
        return "Its log may say why."
    if place.own:
        return "It runs, and does not answer; its log may say why."
    return f"Start a server with `spectral-notify serve`, or set {URL} to the address of one."


def _how_to_sign_in(place: Place) -> str:
    if place.key is None:
        return f"Set {KEY} to a key; `spectral-notify keys create` makes one beside the server."
    if os.environ.get(KEY):
        return f"Set {KEY} to one that is good."
    return f"It is that of admin.key; set {KEY} to one that `spectral-notify keys create` makes."
