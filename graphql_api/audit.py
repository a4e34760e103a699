"""Who did what that somebody may have to answer for: a record for each, in the log, under a name of its own.

A record is an action and its facts, which are fields (``extra``) for logs that are searched. Reports are not among
them: a task's own log says who made those, as the ``actor`` of each event.
"""

import asyncio
import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from graphql_api.auth import Viewer
from graphql_api.errors import INTERNAL
from storage import TASK_ID_CHARACTERS_MAX, Refusal

log = logging.getLogger("spectral.audit")

DONE: Final = "done"
# Who asked has not waited for the answer. What was asked for is done nevertheless, if nothing speaks against it.
ABANDONED: Final = "abandoned"


class Action(StrEnum):
    """What is recorded."""

    TASK_CREATE = "task.create"
    TASK_CANCEL = "task.cancel"
    TASK_DELETE = "task.delete"
    TASK_CREATE_MANY = "task.create_many"
    TASK_DELETE_MANY = "task.delete_many"
    TASK_TOKEN_CREATE = "task_token.create"  # noqa: S105 - the name of an action
    API_KEY_CREATE = "api_key.create"
    API_KEY_REVOKE = "api_key.revoke"
    SIGNING_KEY_ROTATE = "signing_key.rotate"
    SIGNING_KEY_REVOKE = "signing_key.revoke"


def record(
    action: Action, *, actor: str | None, outcome: str = DONE, task_id: str | None = None, **facts: object
) -> None:
    """Write one record: the action, by whom, what came of it, the task if it is about one, and the facts."""
    if log.isEnabledFor(logging.INFO):
        about = {} if task_id is None else {"task_id": task_id}
        told = {name: str(value) for name, value in facts.items()}
        log.info("%s", action, extra={"actor": actor, "outcome": outcome, **about, **told})


@contextmanager
def recorded(
    action: Action, viewer: Viewer, *, task_id: str | None = None, **facts: object
) -> Iterator[dict[str, object]]:
    """Record what comes of the block: done, abandoned, or the code with which it is refused; it may add facts.

    What somebody without a credential is refused is not recorded: anyone could fill the log with it.
    """
    outcome = DONE
    try:
        yield facts
    except Refusal as refusal:
        outcome = refusal.code
        raise
    except asyncio.CancelledError:
        outcome = ABANDONED
        raise
    except BaseException:
        outcome = INTERNAL
        raise
    finally:
        if outcome == DONE or viewer.authenticated:
            # An ID that is refused for its length is no ID.
            named = None if task_id is None else task_id[:TASK_ID_CHARACTERS_MAX]
            if viewer.credential is not None:
                facts["credential"] = viewer.credential
            record(action, actor=viewer.name, outcome=outcome, task_id=named, **facts)


def person() -> str:
    """The actor of what is done at the command line: the account, whatever the environment calls it."""
    account = os.getuid()
    try:
        return f"command line ({pwd.getpwuid(account).pw_name})"
    except KeyError:
        # As in a container that is run as a number.
        return f"command line ({account})"
