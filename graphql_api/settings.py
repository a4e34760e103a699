"""Every setting of the program: read once from the environment, checked, and frozen.

A setting is an environment variable named ``SPECTRAL_`` and the field in capitals. A wrong value, or a ``SPECTRAL_``
name that is none of these, stops the start: a misspelled limit is worse than no start.
"""

import os
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, HttpUrl, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from storage import StartupError

PREFIX: Final = "SPECTRAL_"
# Of the command line for tasks, which may be set where a server is started.
OF_CLIENTS: Final = frozenset({"SPECTRAL_URL", "SPECTRAL_KEY"})
SECRET_CHARACTERS_MIN: Final = 32
_FEEDS: Final = ("nats://", "tls://")


class Access(StrEnum):
    """What may be done without a credential."""

    # Whoever knows a task's ID may read it and report on it.
    OPEN = "open"
    # Whoever knows a task's ID may read it.
    KEYED = "keyed"
    # Nothing.
    CLOSED = "closed"


def _words(value: Any) -> Any:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("it is set and empty")
    return value


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < SECRET_CHARACTERS_MIN:
        raise ValueError(f"it must have at least {SECRET_CHARACTERS_MIN} characters")
    return secret


def _feed(url: SecretStr) -> SecretStr:
    if url.get_secret_value() != "alone" and not url.get_secret_value().startswith(_FEEDS):
        raise ValueError(f"it must be `alone`, or begin with one of {', '.join(_FEEDS)}")
    return url


def _networks(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        try:
            ip_network(name, strict=False)
        except ValueError:
            raise ValueError(f"it must hold addresses and networks like 10.0.0.0/8, got {name!r}") from None
    return names


def _data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/spectral-notify")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "spectral-notify"


class Settings(BaseSettings):
    """All settings. The descriptions are the reference in ``docs/operations.md``; a test compares the two."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="The address to listen on; `0.0.0.0` for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port to listen on; 0 takes a free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many processes serve the port; one for each core that PostgreSQL does not need.",
    )

    database_url: Annotated[SecretStr, BeforeValidator(_not_empty)] | None = Field(
        default=None,
        description="The PostgreSQL to use, `postgresql://user:password@host:5432/name`. "
        "Without it an embedded PostgreSQL runs in the data folder.",
    )
    feed_url: Annotated[SecretStr, BeforeValidator(_not_empty), AfterValidator(_feed)] | None = Field(
        default=None,
        description="How processes on one database tell each other what changed: `nats://host:4222`, or `alone` when "
        "there is one process only. The default is LISTEN and NOTIFY in the database, and `alone` for one worker on "
        "the embedded PostgreSQL.",
    )
    listen_url: Annotated[SecretStr, BeforeValidator(_not_empty)] | None = Field(
        default=None,
        description="The database as LISTEN reaches it, when `SPECTRAL_DATABASE_URL` leads through PgBouncer.",
    )
    data_dir: Annotated[Path, BeforeValidator(_not_empty)] = Field(
        default_factory=_data_dir,
        description="The folder of the embedded PostgreSQL and its admin key. "
        "The default is `~/.local/share/spectral-notify`, or `/var/lib/spectral-notify` for root.",
    )
    migrate_on_start: bool = Field(
        default=True,
        description="Whether to bring the schema up to date at the start. Off when `spectral-notify migrate` is a step "
        "of its own; the program then refuses to start on another schema than its own.",
    )
    database_connections_max: int = Field(
        default=10, ge=2, le=1000, description="Connections to the database per process."
    )
    database_wait_ms: int = Field(
        default=5_000,
        ge=100,
        le=60_000,
        description="How long a request waits for a connection, or a change to be written, before it is UNAVAILABLE.",
    )
    statement_timeout_ms: int = Field(
        default=10_000, ge=100, le=600_000, description="How long one statement may take in the database."
    )
    lock_timeout_ms: int = Field(
        default=2_000, ge=10, le=600_000, description="How long a change waits for a row that another session holds."
    )
    group_commands_max: int = Field(default=512, ge=1, le=10_000, description="Changes that one transaction may hold.")
    waiting_commands_max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Changes that may wait to be written; more are refused with UNAVAILABLE.",
    )

    keep_finished_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="How many days tasks are kept after their end, unless their own `keepForSeconds` says otherwise; "
        "then they are deleted with their history. Without it they are kept for good.",
    )

    access: Access = Field(
        default=Access.OPEN,
        description="What needs no credential: `open` reading and reporting by task ID, `keyed` reading by task ID, "
        "`closed` nothing.",
    )
    jwt_secret: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None, description="The secret of HS256 bearer tokens, at least 32 characters."
    )
    jwt_public_key_file: Path | None = Field(
        default=None, description="A PEM file with the public key of RS256, ES256 or EdDSA bearer tokens."
    )
    jwt_jwks_url: HttpUrl | None = Field(
        default=None, description="Where the public keys of bearer tokens are published as a JWK set."
    )
    jwt_audience: str | None = Field(default=None, description="What `aud` of a bearer token must hold.")
    jwt_issuer: str | None = Field(default=None, description="What `iss` of a bearer token must be.")
    task_token_secret: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None,
        description="The secret that signs task tokens, at least 32 characters, the same for all servers of a "
        "database. Without it they share a key that the database keeps.",
    )
    task_token_secret_previous: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None,
        description="The secret that was `SPECTRAL_TASK_TOKEN_SECRET` before: what it signed is good until it expires.",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(),
        description="Other origins whose web pages may connect, separated by commas, such as "
        "`https://app.example.com`; `*` for all. Pages of the server's own origin always may.",
    )

    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_networks)] = Field(
        default=(),
        description="Proxies whose `X-Forwarded-For` or `Forwarded` says who the client is: addresses and networks "
        "such as `10.0.0.0/8`.",
    )
    unlimited_addresses: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_networks)] = (
        Field(
            default=("127.0.0.0/8", "::1"),
            description="Clients that are not counted: addresses and networks. The limits of rates, sockets and failed "
            "sign-ins do not concern them. Empty for none.",
        )
    )

    explorer: Literal["on", "off"] = Field(
        default="on", description="Whether GraphiQL is served to browsers at `/graphql`."
    )
    introspection: Literal["on", "off"] = Field(
        default="on",
        description="Whether clients may ask for the schema, and are told what they may have meant by a misspelled "
        "name. `__typename` is always answered.",
    )
    operations: Annotated[Path, BeforeValidator(_not_empty)] | None = Field(
        default=None,
        description="A JSON file with the only documents that are run: a list of them, or an object of them by their "
        "IDs. Others are refused with OPERATION_NOT_ALLOWED.",
    )
    execution: Literal["compiled", "interpreted"] = Field(
        default="compiled",
        description="How operations run: `compiled` to Python when they first come, or `interpreted` by graphql-core. "
        "The answers are the same; the latter is for finding out whether a fault lies with the compiler.",
    )
    body_bytes_max: int = Field(
        default=1_048_576, ge=1_024, le=67_108_864, description="The size of an HTTP body or socket message."
    )
    body_timeout_ms: int = Field(
        default=10_000, ge=100, le=600_000, description="How long an HTTP body may take to arrive."
    )
    connection_init_timeout_ms: int = Field(
        default=5_000, ge=100, le=600_000, description="How long a new socket may take to say `connection_init`."
    )
    operations_per_socket_max: int = Field(
        default=100, ge=1, le=100_000, description="Operations that one socket may have open."
    )
    complexity_max: int = Field(
        default=50_000,
        ge=100,
        le=10_000_000,
        description="What one operation may cost: a field costs 1, times the page sizes of the lists that it is in.",
    )
    query_timeout_ms: int = Field(
        default=30_000,
        ge=0,
        le=600_000,
        description="How long a query may take before it is given up with UNAVAILABLE; 0 for any time. A change is "
        "never given up, because nobody could say then whether it was made.",
    )
    operations_per_second_per_address_max: int = Field(
        default=2_000,
        ge=0,
        le=1_000_000,
        description="Operations a second from one address, and five times as many at once; 0 for any number.",
    )
    operations_per_second_per_credential_max: int = Field(
        default=1_000,
        ge=0,
        le=1_000_000,
        description="Operations a second with one credential, and five times as many at once; 0 for any number.",
    )
    failed_sign_ins_per_minute_per_address_max: int = Field(
        default=60,
        ge=0,
        le=1_000_000,
        description="Wrong credentials a minute from one address; then only those that were good lately are looked at "
        "there. 0 for any number.",
    )
    sockets_per_address_max: int = Field(
        default=2_000,
        ge=0,
        le=1_000_000,
        description="Sockets and event streams that one address may have open; 0 for any number.",
    )
    sockets_per_credential_max: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000,
        description="Sockets and event streams that one credential may have open; 0 for any number.",
    )
    messages_per_second_per_socket_max: int = Field(
        default=200,
        ge=0,
        le=1_000_000,
        description="Messages and pings a second that are taken from one socket, and five times as many at once; a "
        "client that sends more is read more slowly. 0 for any number.",
    )
    socket_idle_timeout_ms: int = Field(
        default=600_000,
        ge=0,
        le=86_400_000,
        description="How long a socket may have no operation open before it is closed; 0 for any time.",
    )
    shutdown_timeout_ms: int = Field(
        default=5_000, ge=100, le=8_000, description="How long requests under way may take to finish at a shutdown."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="How lines are written: `text` for people, `json` for programs, an object each."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="The port of `/metrics`, for Prometheus; 0 takes a free one, and without it there is none.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="The address of `/metrics`. Who reaches it may read it, without a credential: `0.0.0.0` is for "
        "containers whose port nobody else reaches.",
    )
    traces: Literal["on", "off"] = Field(
        default="off",
        description="Whether traces are sent by OpenTelemetry, as its own variables say "
        "(`OTEL_EXPORTER_OTLP_ENDPOINT` and so on); needs the extra `otel`.",
    )


def read_settings(given: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """The settings of the environment, and of the command line before it; StartupError names what is wrong."""
    known = OF_CLIENTS | {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise StartupError(f"There is no setting {', '.join(unknown)}; docs/operations.md lists them all.")
    try:
        return Settings(**given)
    except ValidationError as error:
        # The value is left out: it may be a secret.
        raise StartupError("\n".join(map(_sentence, error.errors(include_input=False, include_url=False)))) from None


def _sentence(problem: Any) -> str:
    name = PREFIX + str(problem["loc"][0]).upper() if problem["loc"] else "A setting"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{name} is wrong: {message[:1].lower()}{message[1:]}."
