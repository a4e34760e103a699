"""No secret ever reaches the log, an answer or the title of a process, whoever sends it in whatever way."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from graphql_api.execution.websocket import PROTOCOL
from storage import Permission, TokenScope, open_storage
from tests.graphql_api.clients import WAIT_S, WATCH
from tests.graphql_api.test_access import SECRET, VIEWER, token
from tests.graphql_api.test_server import Program, program

TOKEN_SECRET: Final = "another secret, of task tokens, long enough"
PREVIOUS_SECRET: Final = "the secret of task tokens that was before it"


async def credentials(database: str) -> dict[str, str]:
    """One of each kind that is good, and of each kind that is not."""
    async with open_storage(database, upgrade=False, task_token_secrets=(TOKEN_SECRET,)) as storage:
        good = {
            "key": await storage.keys.create("worker", [Permission.ADMIN]),
            "revoked key": await storage.keys.create("gone", [Permission.ADMIN]),
            "task token": (await storage.task_tokens.sign("T-7", TokenScope.REPORT, 60))[0],
            "bearer token": token(sub="ann", permissions=["READ"]),
        }
        await storage.keys.revoke("gone")
    wrong = {f"wrong {name}": text[:-12] + "QqQqQqQqQqQq" for name, text in good.items()}
    return {**good, **wrong, "expired": token(exp=1), "garbage": "hunter2hunter2hunter2", "long": "hunter2" * 2_000}


def parts(credential: str) -> Iterator[str]:
    """What of a credential must be seen nowhere: the whole, and its secret part."""
    yield credential
    yield re.split(r"[._]", credential.removeprefix("spn_"), maxsplit=1)[-1] if "_" in credential else credential[-20:]


async def over_http(url: str, authorization: str, credential: str) -> str:
    """All that is answered to a credential in a header and in the address."""
    said = []
    mutation = 'mutation { addEvent(taskId: "T-7", event: { eventType: LOG, message: "m" }) { seq } }'
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
        headers = {"Authorization": authorization, "X-Api-Key": credential}
        for query in (VIEWER, mutation, "{ nothing }", "{"):
            said.append(await http.post(url, json={"query": query}, headers=headers))
        said.append(await http.get(url, params={"query": VIEWER, "access_token": credential}))
        said.append(await http.get(url, params={"query": VIEWER, "variables": credential, "authorization": credential}))
        for path in ("/", "/nothing", "/healthz", "/readyz"):
            said.append(await http.get(url.removesuffix("/graphql") + path, params={"token": credential}))
        said.append(await http.put(url, headers=headers, params={"token": credential}))
        stream = {**headers, "Accept": "text/event-stream"}
        said.append(await http.post(url, json={"query": WATCH, "variables": {"id": "nothing"}}, headers=stream))
    return "".join(f"{answer.status_code} {answer.headers} {answer.text}" for answer in said)


async def over_socket(url: str, authorization: str, credential: str) -> str:
    """All that is answered to a credential in the address, the handshake, the greeting and a renewal."""
    said = []
    address = url.replace("http", "ws") + f"?access_token={quote(credential)}"
    for where in ("handshake", "greeting", "renewal"):
        headers = {"Authorization": authorization} if where == "handshake" else {}
        try:
            async with connect(
                address, subprotocols=[Subprotocol(PROTOCOL)], additional_headers=headers, proxy=None
            ) as wire:
                with_it: dict[str, Any] = {"authorization": authorization}
                await wire.send(
                    json.dumps({"type": "connection_init", "payload": with_it if where == "greeting" else None})
                )
                said.append(await wire.recv())
                await wire.send(json.dumps({"type": "ping", "payload": with_it if where == "renewal" else None}))
                said.append(await wire.recv())
                await wire.send(json.dumps({"type": "subscribe", "id": "1", "payload": {"query": VIEWER}}))
                said.append(await wire.recv())
        except (ConnectionClosed, InvalidStatus) as error:
            said.append(str(error))
    return "".join(map(str, said))


async def test_no_secret_reaches_the_log_an_answer_or_the_title_of_a_process(database: str) -> None:
    found = await credentials(database)
    settings = {
        "SPECTRAL_DATABASE_URL": database,
        "SPECTRAL_ACCESS": "keyed",
        "SPECTRAL_LOG_LEVEL": "debug",
        "SPECTRAL_JWT_SECRET": SECRET,
        "SPECTRAL_TASK_TOKEN_SECRET": TOKEN_SECRET,
        "SPECTRAL_TASK_TOKEN_SECRET_PREVIOUS": PREVIOUS_SECRET,
    }
    answers = {}
    async with program("serve", **settings) as server:
        url = await server.url()
        for name, credential in found.items():
            for scheme in ("Bearer", "Basic"):
                authorization = f"{scheme} {credential}"
                answers[name, scheme] = await over_http(url, authorization, credential)
                answers[name, scheme] += await over_socket(url, authorization, credential)
        shown = title(server)
        server.terminate()
        assert await server.ended() == 0
    log = "".join(server.log) + server.printed
    # It did say something, of those who were let in and of those who were not.
    assert "A socket was closed: 'Forbidden' code=4403" in log
    assert '"authenticated":true' in answers["key", "Bearer"]
    assert "accepted" in answers["task token", "Bearer"]
    secrets = {SECRET, TOKEN_SECRET, PREVIOUS_SECRET, *(part for text in found.values() for part in parts(text))}
    for secret in secrets:
        assert secret not in log
        assert secret not in shown
        for answer in answers.values():
            assert secret not in answer


def title(server: Program) -> str:
    """What others on the machine see of the process."""
    process = Path("/proc", str(server.process.pid), "cmdline")
    if process.exists():
        return process.read_text()
    return subprocess.run(
        ["/bin/ps", "-o", "args=", "-p", str(server.process.pid)], capture_output=True, text=True, check=True
    ).stdout
