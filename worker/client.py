"""GraphQL over HTTP, asked again until there is an answer that counts.

What is asked again must be something that may be done twice: a report carries an idempotency key, the same one at each
attempt, and is written once.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx

from worker.backoff import pauses
from worker.errors import Refused, Unreachable, refusal

TIMEOUT_S: Final = 20.0
# Statuses of servers that stop or are overrun, and of proxies that reach none.
PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_INTERNAL: Final = "INTERNAL_SERVER_ERROR"
# A fault of the server may be one that passes, but seldom is.
_FAULTS_MAX: Final = 3


class Again(Exception):
    """No answer that counts; another attempt may bring one."""

    def __init__(
        self, why: str, after_s: float = 0.0, refused: Refused | None = None, *, answered: bool = False
    ) -> None:
        super().__init__(why)
        self.after_s = after_s
        # Whether these are the words of the server.
        self.answered = answered
        # What the server said, if it is to be believed in the end.
        self.refused = refused


class Client:
    """One server, and the credential with which it is asked.

    `direct` goes past any proxy that the surroundings name. `unanswered` is told why an attempt brought nothing, before
    the next one.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        direct: bool = False,
        unanswered: Callable[[str], None] = lambda why: None,
    ) -> None:
        if httpx.URL(url).scheme not in ("http", "https"):
            raise ValueError(f'The URL must begin with "http://" or "https://", got "{url}".')
        self.url = url
        self.key = key
        self.direct = direct
        self._unanswered = unanswered
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # To read all that this machine trusts takes 40 ms, for nothing where there is no TLS.
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http:") and direct else True
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout_s, verify=trust, trust_env=not direct)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def ask(self, document: str, variables: Mapping[str, Any], *, patience_s: float) -> Any:
        """What the one field of the document answers. It is asked again for so long, with pauses that grow."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + patience_s
        faults = 0
        for pause_s in pauses():
            try:
                return await self._ask_once(document, variables)
            except Again as again:
                wait_s = max(pause_s, again.after_s)
                if again.refused is not None:
                    faults += 1
                    if faults == _FAULTS_MAX:
                        raise again.refused from None
                if clock() + wait_s > give_up_at:
                    raise again.refused or unreachable(self.url, again) from None
                self._unanswered(str(unreachable(self.url, again)))
            await asyncio.sleep(wait_s)
        raise AssertionError("pauses have no end")

    async def _ask_once(self, document: str, variables: Mapping[str, Any]) -> Any:
        try:
            response = await self._http.post(self.url, json={"query": document, "variables": variables})
        except httpx.RequestError as error:
            raise Again(_in_words(error)) from error
        except UnicodeEncodeError as error:
            raise refusal("BAD_USER_INPUT", f"What is sent must be valid Unicode: {error.reason}.", {}) from error
        body = _read(response)
        if body is None:
            why = f"answered with HTTP status {response.status_code} and no GraphQL"
            if response.status_code in PASSING:
                raise Again(why)
            raise Refused(f"HTTP_{response.status_code}", f"{self.url} {why}.")
        if errors := body.get("errors"):
            raise verdict(errors[0])
        (answer,) = body["data"].values()
        return answer


def _read(response: httpx.Response) -> Any:
    """The answer as GraphQL has it: with errors, or with the one field that was asked for. None when it is something
    else, as what a proxy says by itself.
    """
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None
    match body:
        case {"errors": [dict(), *_]}:
            return body
        case {"data": dict(data)} if len(data) == 1 and not body.get("errors"):
            return body
        case _:
            return None


def verdict(error: Mapping[str, Any]) -> Again | Refused:
    """What an error means to whoever asked."""
    extensions = error.get("extensions") or {}
    code, message = str(extensions.get("code", _INTERNAL)), str(error.get("message", ""))
    if extensions.get("retryable"):
        return Again(message, after_s=extensions.get("retryAfterMs", 0) / 1000, answered=True)
    refused = refusal(code, message, extensions)
    return Again(message, refused=refused, answered=True) if code == _INTERNAL else refused


def unreachable(url: str, again: Again) -> Unreachable:
    """What it is when there was no other attempt."""
    why = f"{url} cannot serve now: {again}" if again.answered else f"{url} {again}"
    return Unreachable(why, answered=again.answered)


def _in_words(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"cannot be reached: {str(error) or 'no connection was made in time'}"
    if isinstance(error, httpx.TimeoutException):
        return "did not answer in time"
    return f"broke off: {str(error) or type(error).__name__}"
