"""Who may do what: policies, API keys, tokens, and what those hear who may not."""

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import SecretStr

from graphql_api import tokens
from graphql_api.settings import Access, Settings
from storage import Create, Delete, Permission
from tests.graphql_api.clients import TRANSPORTS, WAIT_S, Answer, Api, code, data, error, until
from tests.graphql_api.conftest import Serving

# An operation for each permission, on a task that is there.
OPERATIONS: Final = {
    'task(taskId: "T-7") { id }': Permission.READ,
    "tasks { totalCount }": Permission.LIST,
    "stats { total }": Permission.LIST,
    'addEvent(taskId: "T-7", event: { eventType: LOG, message: "m" }) { id }': Permission.REPORT,
    'updateProgress(taskId: "T-7", progress: 1) { id }': Permission.REPORT,
    'complete(taskId: "T-7") { id }': Permission.REPORT,
    'fail(taskId: "T-7", error: "no") { id }': Permission.REPORT,
    'cancel(taskId: "T-7") { id }': Permission.REPORT,
    'create(taskId: "T-8") { id }': Permission.CREATE,
    'delete(taskId: "T-7")': Permission.DELETE,
}
# What needs no credential.
ANYONE: Final = {
    Access.OPEN: {Permission.READ, Permission.REPORT},
    Access.KEYED: {Permission.READ},
    Access.CLOSED: set[Permission](),
}
VIEWER: Final = "{ viewer { name authenticated permissions } }"
SECRET: Final = "a secret of at least 32 characters"


def document(field: str) -> str:
    return f"{'query' if field.startswith('task') else 'mutation'} {{ told: {field} }}"


@pytest.mark.parametrize("access", Access)
async def test_a_policy_and_a_key_say_together_what_may_be_done(
    serving: Serving, access: Access, subtests: pytest.Subtests
) -> None:
    async with serving(access=access) as api:
        keys: dict[Permission | None, str | None] = {None: None}
        for permission in Permission:
            keys[permission] = await api.storage.keys.create(f"may {permission}", [permission])
        for held, key in keys.items():
            allowed = ANYONE[access] | (set(Permission) if held is Permission.ADMIN else {held})
            async with api.socket(key=key) as socket:
                for operation, needed in OPERATIONS.items():
                    query = document(operation)
                    for over in TRANSPORTS:
                        with subtests.test(held=held, operation=operation, over=over):
                            await start_over(api)
                            if over == "http":
                                answer = (await api.post({"query": query}, key=key)).json()
                            else:
                                answer = await socket.ask(query)
                            if needed in allowed:
                                data(answer)
                            else:
                                assert code(answer) == ("UNAUTHENTICATED" if held is None else "FORBIDDEN")
                                await assert_refused(api, answer, needed)
                with subtests.test(held=held, operation="taskUpdates"):
                    await start_over(api)
                    watch = await socket.watch("T-7")
                    if Permission.READ in allowed:
                        assert (await socket.update(watch))["type"] == "SNAPSHOT"
                    else:
                        message = await socket.take()
                        assert (message["type"], message["id"]) == ("error", watch)
                        expected = "UNAUTHENTICATED" if held is None else "FORBIDDEN"
                        assert code({"errors": message["payload"]}) == expected
                with subtests.test(held=held, operation="viewer"):
                    viewer = data((await api.post({"query": VIEWER}, key=key)).json())["viewer"]
                    assert viewer == {
                        "name": None if held is None else f"may {held}",
                        "authenticated": held is not None,
                        "permissions": [permission for permission in Permission if permission in allowed],
                    }


async def start_over(api: Api) -> None:
    """A PENDING T-7 with one event, and no T-8."""
    commands = [Delete(task_id="T-7"), Delete(task_id="T-8"), Create(task_id="T-7")]
    await asyncio.gather(*map(api.storage.writer.submit, commands), return_exceptions=True)


async def assert_refused(api: Api, answer: Answer, needed: Permission) -> None:
    """The answer names what is missing, and nothing was done."""
    assert needed in error(answer)["message"]
    assert error(answer)["path"] == ["told"]
    task = await api.storage.reader.task("T-7")
    assert task is not None
    assert task.seq == 1
    assert await api.storage.reader.task("T-8") is None


def wrong_credentials(revoked: str) -> dict[str, str]:
    last = "A" if revoked[-1] != "A" else "B"
    return {
        "a revoked key": f"Bearer {revoked}",
        "a key with a wrong end": f"Bearer {revoked[:-1]}{last}",
        "a key that nobody has": f"Bearer spn_{'0' * 16}_{'x' * 43}",
        "half a key": f"Bearer {revoked[:30]}",
        "a key and more": f"Bearer {revoked} x",
        "a key with NUL": f"Bearer {revoked[:-1]}%00",
        "the beginning of a key": "Bearer spn_",
        "garbage": "Bearer garbage",
        "dots": "Bearer ..",
        "a long token": "Bearer " + "x" * 9_000,
        "no credential": "Bearer",
        "another scheme": "Basic dXNlcjpwYXNz",
        "no scheme": revoked,
        "nothing": "",
        "an unsigned token": "Bearer " + token(None, "none", permissions=["ADMIN"]),
        "a token where none is accepted": "Bearer " + jwt.encode({"exp": 9e9}, SECRET),
    }


@pytest.mark.parametrize("access", Access)
async def test_a_wrong_credential_is_refused_even_where_none_is_needed(
    serving: Serving, access: Access, subtests: pytest.Subtests
) -> None:
    async with serving(access=access) as api:
        revoked = await api.storage.keys.create("revoked", [Permission.ADMIN])
        await api.storage.keys.revoke("revoked")
        for name, authorization in wrong_credentials(revoked).items():
            with subtests.test(name):
                response = await api.post({"query": VIEWER}, headers={"Authorization": authorization})
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert code(response.json()) == "UNAUTHENTICATED"
                assert revoked not in response.text
                async with api.socket(init=False) as socket:
                    await socket.say({"type": "connection_init", "payload": {"Authorization": authorization}})
                    assert await socket.closed() == (4403, "Forbidden")


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION", "aUTHORIZATIOn"])
async def test_the_greeting_may_write_authorization_in_any_case(serving: Serving, name: str) -> None:
    async with serving() as api, api.socket({name: f"bearer {api.admin_key}"}) as socket:
        assert data(await socket.ask(VIEWER))["viewer"]["name"] == "admin"


async def test_a_socket_may_bring_its_credential_with_the_handshake(serving: Serving) -> None:
    async with serving(access="closed") as api:
        headers = {"Authorization": f"Bearer {api.admin_key}"}
        async with api.socket(additional_headers=headers) as socket:
            assert data(await socket.ask(VIEWER))["viewer"]["name"] == "admin"
        # What the greeting says takes its place.
        other = await api.storage.keys.create("other", [Permission.READ])
        async with api.socket(key=other, additional_headers=headers) as socket:
            assert data(await socket.ask(VIEWER))["viewer"]["name"] == "other"


async def test_a_revoked_key_stops_working_for_requests_and_open_sockets_when_it_is_no_longer_believed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(access="closed") as api:
        now = 1_000.0
        monkeypatch.setattr(api.storage.keys, "_clock", lambda: now)
        key = await api.storage.keys.create("short-lived", [Permission.READ])
        async with api.socket(key=key) as socket:
            assert "errors" not in await socket.ask(VIEWER)
            assert (await api.post({"query": VIEWER}, key=key)).status_code == 200
            await api.storage.keys.revoke("short-lived")
            now += 10
            response = await api.post({"query": VIEWER}, key=key)
            assert (response.status_code, code(response.json())) == (401, "UNAUTHENTICATED")
            assert code(await socket.ask(VIEWER)) == "UNAUTHENTICATED"


async def test_what_a_mutation_lets_one_read_of_the_log_needs_the_permission_to_read(serving: Serving) -> None:
    async with serving(access="closed") as api:
        key = await api.storage.keys.create("reporter", [Permission.REPORT])
        await api.create("T-7")
        report = 'mutation { updateProgress(taskId: "T-7", progress: 1) { seq history { message } } }'
        answer = await api.ask(report, key=key)
        assert (code(answer), error(answer)["path"]) == ("FORBIDDEN", ["updateProgress", "history"])
        assert "errors" not in await api.ask(report.replace("history { message }", ""), key=key)


async def test_created_by_is_the_name_of_the_key_or_the_subject_of_the_token(serving: Serving) -> None:
    create = "mutation($id: ID!) { create(taskId: $id) { createdBy } }"
    async with serving(jwt_secret=SECRET) as api:
        key = await api.storage.keys.create("importer", [Permission.CREATE])
        for task_id, credential, expected in (
            ("a", key, "importer"),
            ("b", token(sub="user|42", permissions=["CREATE"]), "user|42"),
            ("c", token(permissions=["CREATE"]), None),
        ):
            answer = await api.ask(create, {"id": task_id}, key=credential)
            assert data(answer) == {"create": {"createdBy": expected}}


def token(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that is good for a minute, unless told otherwise."""
    claims.setdefault("exp", datetime.now(UTC) + timedelta(minutes=1))
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm, headers)


async def viewer_by(api: Api, credential: str) -> Answer:
    """Who a token stands for."""
    viewer = data(await api.ask(VIEWER, key=credential))["viewer"]
    assert isinstance(viewer, dict)
    return viewer


async def refused(api: Api, credential: str, status: int = 401) -> str:
    """Why a token is refused, over HTTP; the socket is closed for it too."""
    response = await api.post({"query": VIEWER}, key=credential)
    assert response.status_code == status, response.text
    async with api.socket(init=False) as socket:
        await socket.say({"type": "connection_init", "payload": {"authorization": f"Bearer {credential}"}})
        assert (await socket.closed())[0] == {401: 4403, 503: 1013}[status]
    return str(error(response.json())["message"])


PRIVATE_KEYS: Final[dict[str, Any]] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER_KEYS: Final[dict[str, Any]] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(private_key: Any) -> bytes:
    encoded = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(encoded, bytes)
    return encoded


async def test_a_token_with_the_shared_secret_is_accepted(serving: Serving) -> None:
    async with serving(jwt_secret=SECRET, access="closed") as api:
        viewer = await viewer_by(api, token(sub="user|42", permissions=["READ", "LIST", "FLY", 7]))
        assert viewer == {"name": "user|42", "authenticated": True, "permissions": ["READ", "LIST"]}
        # As the claim `scope` has it elsewhere.
        assert (await viewer_by(api, token(permissions="READ DELETE")))["permissions"] == ["READ", "DELETE"]
        assert (await viewer_by(api, token(permissions={"READ": 1})))["permissions"] == []
        assert len((await viewer_by(api, token(permissions=["ADMIN"])))["permissions"]) == 6


async def test_a_token_may_end_when_nobody_can_say_any_more_in_seconds() -> None:
    claims = await tokens.Tokens(Settings(jwt_secret=SecretStr(SECRET))).verify(token(exp=10**400))
    assert claims.good_until - time.time() > 10**9


async def test_a_token_is_refused_for_whatever_is_wrong_with_it(serving: Serving, subtests: pytest.Subtests) -> None:
    now = datetime.now(UTC)
    minute = timedelta(minutes=1)
    good: dict[str, Any] = {"aud": "spectral", "iss": "https://issuer.example.com"}
    head, body, signature = token(**good).split(".")
    wrong = {
        "expired": token(exp=now - minute, **good),
        "not valid yet": token(nbf=now + minute, **good),
        "without an end": token(exp=None, **good),
        "for nobody": token(iss=good["iss"]),
        "for another server": token(aud="other", iss=good["iss"]),
        "from nobody": token(aud=good["aud"]),
        "from another issuer": token(aud=good["aud"], iss="https://evil.example.com"),
        "with another secret": token("another secret of 32 characters!!", **good),
        "unsigned": token(None, "none", **good),
        "with a longer hash": token(SECRET * 2, "HS512", **good),
        "cut off": f"{head}.{body}.",
        "changed": f"{head}.{body[:-4]}AAAA.{signature}",
        "without a head": f".{body}.{signature}",
        "of four parts": f"{head}.{body}.{signature}.x",
        "with a subject that is no text": token(sub=7, **good),
        "too long": token(sub="x" * 9_000, **good),
        "not ASCII": "é.é.é",
    }
    says = {"expired": "expired", "not valid yet": "not valid yet", "too long": "8192", "without an end": "exp"}
    async with serving(jwt_secret=SECRET, jwt_audience=good["aud"], jwt_issuer=good["iss"]) as api:
        assert (await viewer_by(api, token(**good)))["authenticated"]
        assert (await viewer_by(api, token(iss=good["iss"], aud=["other", "spectral"])))["authenticated"]
        for name, credential in wrong.items():
            with subtests.test(name):
                if name == "not ASCII":
                    async with api.socket(init=False) as socket:
                        payload = {"Authorization": f"Bearer {credential}"}
                        await socket.say({"type": "connection_init", "payload": payload})
                        assert (await socket.closed())[0] == 4403
                else:
                    assert says.get(name, "") in await refused(api, credential)


async def test_a_token_that_expires_is_refused_on_a_socket_that_it_opened(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It ended already, by less than clocks may differ; then the difference is no longer forgiven.
    end = datetime.now(UTC) - timedelta(seconds=1)
    monkeypatch.setattr(tokens, "LEEWAY_S", 1_000)
    async with serving(jwt_secret=SECRET) as api, api.socket(key=token(exp=end)) as socket:
        assert data(await socket.ask(VIEWER))["viewer"]["authenticated"]
        monkeypatch.setattr(tokens, "LEEWAY_S", 0)
        answer = await socket.ask(VIEWER)
    assert code(answer) == "UNAUTHENTICATED"
    assert "expired" in error(answer)["message"]


@pytest.mark.parametrize("algorithm", PRIVATE_KEYS)
async def test_a_token_is_verified_by_the_public_key_in_a_file(
    serving: Serving, algorithm: str, tmp_path: Path
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(PRIVATE_KEYS[algorithm]))
    async with serving(jwt_public_key_file=file, jwt_secret=SECRET) as api:
        assert (await viewer_by(api, token(PRIVATE_KEYS[algorithm], algorithm, sub="ann")))["name"] == "ann"
        assert (await viewer_by(api, token(sub="bob")))["name"] == "bob"
        for other, key in OTHER_KEYS.items():
            await refused(api, token(key, other))
    # The public key is no secret: whoever takes it for one may not be believed.
    async with serving(jwt_public_key_file=file) as api:
        for secret in (pem(PRIVATE_KEYS[algorithm]), pem(PRIVATE_KEYS[algorithm]).rstrip()):
            await refused(api, confused(secret))
        await refused(api, token())


def confused(secret: bytes) -> str:
    """HS256 with a public key's text for a secret, which the library itself would not sign."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "eve", "exp": time.time() + 60, "permissions": ["ADMIN"]})
    signed = ".".join(base64url(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{base64url(hmac.digest(secret, signed.encode(), 'sha256'))}"


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


@dataclass
class Issuer:
    """A key set on the loopback interface, which counts how often it is fetched."""

    url: str = ""
    keys: list[Any] = field(default_factory=list)
    status: int = 200
    fetches: int = 0

    def publish(self, **private_keys: Any) -> None:
        self.keys = [published(key_id, key) for key_id, key in private_keys.items()]


def published(key_id: str, private_key: Any) -> dict[str, Any]:
    public_key = private_key.public_key()
    kinds: dict[type, Callable[[Any], str]] = {
        rsa.RSAPrivateKey: RSAAlgorithm.to_jwk,
        ec.EllipticCurvePrivateKey: ECAlgorithm.to_jwk,
        ed25519.Ed25519PrivateKey: OKPAlgorithm.to_jwk,
    }
    to_jwk = next(to_jwk for kind, to_jwk in kinds.items() if isinstance(private_key, kind))
    return {**json.loads(to_jwk(public_key)), "kid": key_id, "use": "sig"}


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.fetches += 1
            self.send_response(found.status)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": found.keys}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="issuer")
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@dataclass
class Clock:
    now: float = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tokens, "time", clock)
    return clock


def signed(key_id: str, algorithm: str, keys: dict[str, Any] = PRIVATE_KEYS, **claims: Any) -> str:
    return token(keys[algorithm], algorithm, {"kid": key_id}, **claims)


async def test_a_token_is_verified_by_the_published_key_that_it_names(serving: Serving, issuer: Issuer) -> None:
    issuer.publish(**PRIVATE_KEYS)
    # Keys that are of no use are passed over.
    issuer.keys += [None, 7, {}, {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"}, {"kty": "RSA", "kid": "broken"}]
    issuer.keys.append({**published("encryption", OTHER_KEYS["RS256"]), "use": "enc"})
    async with serving(jwt_jwks_url=issuer.url) as api:
        assert issuer.fetches == 0
        for algorithm in PRIVATE_KEYS:
            assert (await viewer_by(api, signed(algorithm, algorithm, sub=algorithm)))["name"] == algorithm
        await refused(api, signed("RS256", "RS256", OTHER_KEYS))
        # A key verifies the one algorithm of its kind.
        await refused(api, signed("RS256", "ES256"))
        await refused(api, signed("encryption", "RS256", OTHER_KEYS))
        await refused(api, token("secret" * 6, "HS256", {"kid": "oct"}))
        await refused(api, token(PRIVATE_KEYS["RS256"], "RS256"))
        assert issuer.fetches == 1


async def test_an_unknown_key_asks_the_issuer_again_but_not_often(
    serving: Serving, issuer: Issuer, clock: Clock
) -> None:
    issuer.publish(old=PRIVATE_KEYS["ES256"])
    async with serving(jwt_jwks_url=issuer.url) as api:
        assert (await viewer_by(api, signed("old", "ES256")))["authenticated"]
        issuer.publish(old=PRIVATE_KEYS["ES256"], new=OTHER_KEYS["ES256"])
        new = signed("new", "ES256", OTHER_KEYS)
        clock.now += tokens.JWKS_REFETCH_S
        for _ in range(5):
            await refused(api, new)
        assert issuer.fetches == 1
        clock.now += 0.1
        told = await asyncio.gather(*(viewer_by(api, new) for _ in range(10)))
        assert all(viewer["authenticated"] for viewer in told)
        assert issuer.fetches == 2
        # A key that is no longer published is forgotten in time.
        issuer.publish(new=OTHER_KEYS["ES256"])
        clock.now += tokens.JWKS_FRESH_S
        assert (await viewer_by(api, signed("old", "ES256")))["authenticated"]
        assert issuer.fetches == 2
        clock.now += 0.1
        async with asyncio.timeout(WAIT_S):
            # Good until the issuer has answered.
            while (await api.post({"query": VIEWER}, key=signed("old", "ES256"))).status_code == 200:
                pass
        await refused(api, signed("old", "ES256"))
        assert (await viewer_by(api, new))["authenticated"]
        assert issuer.fetches == 3


async def test_an_issuer_that_is_down_is_asked_seldom_and_the_last_keys_go_on(
    serving: Serving, issuer: Issuer, clock: Clock
) -> None:
    issuer.publish(**PRIVATE_KEYS)
    good = signed("ES256", "ES256")
    async with serving(jwt_jwks_url=issuer.url) as api:
        issuer.status = 500
        for _ in range(5):
            response = await api.post({"query": VIEWER}, key=good)
            assert (response.status_code, code(response.json())) == (503, "UNAVAILABLE")
            assert error(response.json())["extensions"]["retryable"] is True
        await refused(api, good, 503)
        assert issuer.fetches == 1
        issuer.status = 200
        clock.now += tokens.JWKS_REFETCH_S + 0.1
        assert (await viewer_by(api, good))["authenticated"]
        issuer.status = 500
        clock.now += tokens.JWKS_FRESH_S + 0.1
        for _ in range(3):
            assert (await viewer_by(api, good))["authenticated"]
            await until(lambda: issuer.fetches == 3)
