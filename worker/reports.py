"""The reports on one task, each of them written once, however often it is sent."""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

from worker.client import Client
from worker.documents import ADD_EVENT, COMPLETE, FAIL, HEARTBEAT, RELEASE, UPDATE_PROGRESS
from worker.errors import TASK_FINISHED, NoRetry, Refused, Unwanted

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What metadata may be."""

EventType: TypeAlias = Literal["LOG", "PROGRESS", "ERROR", "SUCCESS"]
"""What an event is to those who read it."""

# How long a report is sent again for which no lease sets a time.
PATIENCE_S: Final = 60.0
ERROR_CHARACTERS_MAX: Final = 2_000
# What is raised when metadata is not JSON, or not such as the server takes.
WRONG_RESULT: Final = (Refused, TypeError, ValueError, RecursionError)
_MORE: Final = " […]"
_HIDDEN: Final = "[hidden]"
_CREDENTIALS_IN_URL: Final = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_CREDENTIALS: Final = re.compile(r"\bsp[nt]_[\w.-]+|\bBearer\s+\S+", re.IGNORECASE)
_ERRORS_MAX: Final = 3


class Reports:
    """What may be said of one task, under its lease if there is one."""

    def __init__(
        self, client: Client, task_id: str, token: str | None = None, *, patience_s: float | None = None
    ) -> None:
        self._client = client
        self.task_id = task_id
        self._token = token
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        # Said once of this task, it stays true.
        self.unwanted: Unwanted | None = None

    async def update_progress(self, progress: int) -> None:
        """Say how far the work has come, in percent."""
        await self._report(UPDATE_PROGRESS, progress=progress)

    async def add_event(self, event: Mapping[str, Json]) -> None:
        """Write an event into the log."""
        await self._report(ADD_EVENT, event=event)

    async def complete(self, metadata: Json) -> None:
        """Say that the work succeeded."""
        await self._report(COMPLETE, metadata=metadata)

    async def fail(self, error: BaseException) -> None:
        """Say that the work failed, and why; the server tries it again if attempts are left, and that may be of use."""
        await self._report(FAIL, error=self.words_of(error), retry=not isinstance(error, NoRetry))

    async def heartbeat(self, lease_s: int) -> None:
        """Keep the lease for so long from now; refused as `Unwanted` when the task has ended meanwhile."""
        claim = await self._client.ask(
            HEARTBEAT,
            {"taskId": self.task_id, "token": self._token, "leaseSeconds": lease_s},
            patience_s=self._patience_s,
        )
        if (status := claim["task"]["status"]) != "IN_PROGRESS":
            raise Unwanted(TASK_FINISHED, f'Task "{self.task_id}" is {status}.', {"status": status})

    async def release(self, patience_s: float) -> None:
        """Give the task back. The attempt does not count."""
        # Refused, it is as it was to be: by an earlier attempt whose answer was lost, by time, or by its end.
        with suppress(Unwanted):
            await self._client.ask(RELEASE, {"taskId": self.task_id, "token": self._token}, patience_s=patience_s)

    async def _report(self, document: str, **variables: Any) -> None:
        known = {"taskId": self.task_id, "token": self._token, "idempotencyKey": uuid.uuid4().hex}
        try:
            await self._client.ask(document, {**known, **variables}, patience_s=self._patience_s)
        except Unwanted as unwanted:
            self.unwanted = unwanted
            raise

    def words_of(self, error: BaseException) -> str:
        """The words of an exception as everybody may read them who may read the task."""
        leaves = list(_leaves(error))
        words = "; ".join(f"{type(leaf).__name__}: {leaf}".rstrip(": ") for leaf in leaves[:_ERRORS_MAX])
        if len(leaves) > _ERRORS_MAX:
            words += f"; and {len(leaves) - _ERRORS_MAX} more"
        for secret in (self._client.key, self._token):
            if secret:
                words = words.replace(secret, _HIDDEN)
        words = _CREDENTIALS.sub(_HIDDEN, _CREDENTIALS_IN_URL.sub(_HIDDEN, words))
        # What no database takes, and no JSON.
        words = words.replace("\0", "").encode(errors="replace").decode()
        if len(words) > ERROR_CHARACTERS_MAX:
            words = words[: ERROR_CHARACTERS_MAX - len(_MORE)] + _MORE
        return words


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
