"""Bearer tokens (JWT): which keys verify them, and what they claim.

The algorithm is never the token's to choose: a shared secret verifies HS256 only, and a public key verifies the one
algorithm of its kind, so that no token can have a public key taken for a secret.
"""

import asyncio
import json
import logging
import math
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from graphql_api.errors import Expired, Unauthenticated
from graphql_api.settings import Settings
from storage import BadInput, StartupError, Unavailable, check_name

log = logging.getLogger(__name__)

# Clocks of issuers and servers may differ by so much. Streams end so much later than their token does, too.
LEEWAY_S: Final = 5
# A token is read before anybody is known, so its size is bounded.
TOKEN_CHARACTERS_MAX: Final = 8_192
# An end beyond this is none that anybody meets; a token may name one that is no number of seconds any more.
FOR_EVER: Final = 2**53
SUBJECT_CHARACTERS_MAX: Final = 255
JWKS_FETCH_TIMEOUT_S: Final = 5
JWKS_BYTES_MAX: Final = 262_144
JWKS_FRESH_S: Final = 300.0
# A token with an unknown key asks for the set anew, but not more often than this.
JWKS_REFETCH_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that was found good says."""

    subject: str | None
    permissions: tuple[str, ...]
    # Until when it is taken, in seconds since 1970.
    good_until: float


class Tokens:
    """Verifies bearer tokens against the keys that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self._public_key = _read_public_key(settings.jwt_public_key_file) if settings.jwt_public_key_file else None
        self._jwks = KeySet(str(settings.jwt_jwks_url)) if settings.jwt_jwks_url else None
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer

    async def verify(self, token: str) -> Claims:
        """What a good token claims; Unauthenticated says why it is none."""
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise Unauthenticated(f"A token must have at most {TOKEN_CHARACTERS_MAX} characters, got {len(token)}.")
        try:
            header = jwt.get_unverified_header(token)
            key, algorithm = await self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp"], "verify_aud": self._audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise Expired("The token has expired.") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("The token is not valid yet.") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f'The token must have the claim "{error.claim}".') from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError) as error:
            raise Unauthenticated(f"The token is not for this server: {error}.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("The credential is neither an API key nor a token accepted here.") from None
        return Claims(
            _subject(claims.get("sub")),
            _permissions(claims.get("permissions")),
            float(min(int(claims["exp"]), FOR_EVER) + LEEWAY_S),
        )

    async def _key(self, header: dict[str, Any]) -> tuple[Any, str]:
        algorithm = header.get("alg")
        if algorithm == "HS256" and self._secret is not None:
            return self._secret, "HS256"
        if algorithm != "HS256":
            if self._public_key is not None and self._public_key[1] == algorithm:
                return self._public_key
            if self._jwks is not None:
                found = await self._jwks.find(header.get("kid"))
                if found is not None and found[1] == algorithm:
                    return found
        raise jwt.InvalidKeyError("no key for this token")


class KeySet:
    """The published public keys of an issuer, fetched when needed and kept for a while."""

    def __init__(self, url: str) -> None:
        self._url = url
        # None until the set was had once.
        self._keys: dict[str | None, tuple[Any, str]] | None = None
        self._fetched_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None) -> tuple[Any, str] | None:
        """The key with this ID and its algorithm, or None."""
        age = time.monotonic() - self._fetched_at
        if self._keys is not None and key_id in self._keys:
            if age > JWKS_FRESH_S:
                # Good until the set says otherwise; nobody waits for an issuer that is slow.
                self._fetch_once()
            return self._keys[key_id]
        if self._fetching is not None or age > JWKS_REFETCH_S:
            # Whoever goes away while waiting leaves the others their answer.
            await asyncio.shield(self._fetch_once())
        if self._keys is None:
            raise Unavailable("The issuer of tokens cannot be reached to verify this one; try again.")
        return self._keys.get(key_id)

    def _fetch_once(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh(), name="key set")
        return self._fetching

    async def _refresh(self) -> None:
        try:
            document = await asyncio.to_thread(self._fetch)
            self._keys = {key_id: found for key_id, found in map(_published, document["keys"]) if found is not None}
        except Exception as error:
            log.warning("The key set at %s could not be fetched.", self._url, exc_info=error)
        finally:
            # After a failure too: an issuer that is down is not asked again for each token.
            self._fetched_at = time.monotonic()
            self._fetching = None

    def _fetch(self) -> Any:
        # The scheme was checked when the setting was read.
        with urllib.request.urlopen(self._url, timeout=JWKS_FETCH_TIMEOUT_S) as response:  # noqa: S310
            return json.loads(response.read(JWKS_BYTES_MAX))


def _published(entry: Any) -> tuple[str | None, tuple[Any, str] | None]:
    """A key of a set, with the one algorithm that it verifies; None for a key that is of no use here."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None, None
    try:
        key = jwt.PyJWK(entry).key
        return entry.get("kid"), (key, _algorithm(key))
    except (jwt.PyJWTError, ValueError):
        return None, None


def _read_public_key(path: Path) -> tuple[Any, str]:
    try:
        key = load_pem_public_key(path.read_bytes())
        return key, _algorithm(key)
    except OSError as error:
        raise StartupError(f"SPECTRAL_JWT_PUBLIC_KEY_FILE cannot be read: {error.strerror}: {path}.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(
            f"SPECTRAL_JWT_PUBLIC_KEY_FILE must hold a PEM public key (RSA, P-256 or Ed25519): {path}."
        ) from None


def _algorithm(key: Any) -> str:
    if isinstance(key, RSAPublicKey):
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise ValueError(f"no algorithm for a {type(key).__name__}")


def _subject(claim: Any) -> str | None:
    if claim is None:
        return None
    try:
        # It becomes the `createdBy` of tasks.
        check_name("The sub of a token", claim, SUBJECT_CHARACTERS_MAX)
    except BadInput as error:
        raise Unauthenticated(str(error)) from None
    return str(claim)


def _permissions(claim: Any) -> tuple[str, ...]:
    if isinstance(claim, str):
        return tuple(claim.split())
    if isinstance(claim, list):
        return tuple(word for word in claim if isinstance(word, str))
    return ()
