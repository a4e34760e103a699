"""Who did what that somebody may have to answer for: a record for each, in the log, under a name of its own.

A record has its facts as fields (``extra``), for logs that are searched, and says the same in words. Reports are not
among them: a task's own log says who made those, as the ``actor`` of each event.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from getpass import getuser
from typing import Final

from graphql_api.auth import Viewer
from storage import TASK_ID_CHARACTERS_MAX, Refusal

log = logging.getLogger("spectral.audit")

DONE: Final = "done"
FAILED: Final = "INTERNAL_SERVER_ERROR"


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
    """Write one record. Its fields: action, actor, outcome, task_id, and the facts; None where there is none."""
    if not log.isEnabledFor(logging.INFO):
        return
    told = {name: str(value) for name, value in facts.items()}
    # Quoted: names and IDs are the callers' own, and may hold line ends.
    about = "" if task_id is None else f" task {task_id!r}"
    more = "".join(f" {name}={value!r}" for name, value in told.items())
    log.info(
        "%s%s by %s: %s%s",
        *(action, about, "anyone" if actor is None else repr(actor), outcome, more),
        extra={"action": str(action), "actor": actor, "outcome": outcome, "task_id": task_id, **told},
    )


@contextmanager
def recorded(
    action: Action, viewer: Viewer, *, task_id: str | None = None, **facts: object
) -> Iterator[dict[str, object]]:
    """Record what comes of the block: done, or the code with which it is refused; it may add facts.

    What somebody without a credential is refused is not recorded: anyone could fill the log with it.
    """
    outcome = DONE
    try:
        yield facts
    except Refusal as refusal:
        outcome = refusal.code
        raise
    except BaseException:
        outcome = FAILED
        raise
    finally:
        if outcome == DONE or viewer.authenticated:
            # An ID that is refused for its length is no ID.
            named = None if task_id is None else task_id[:TASK_ID_CHARACTERS_MAX]
            record(action, actor=viewer.name, outcome=outcome, task_id=named, **facts)


def person() -> str:
    """The actor of what is done at the command line."""
    return f"command line ({getuser()})"
