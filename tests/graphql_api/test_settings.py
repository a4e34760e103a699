"""The environment is read once and strictly: what is wrong with it stops the start with a sentence that names it."""

import pytest

from graphql_api.settings import Settings, read_settings
from storage import StartupError


def read_with(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Settings:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return read_settings()


def test_without_any_setting_the_server_is_local_and_open() -> None:
    settings = read_settings()
    assert (settings.host, settings.port, settings.access, settings.explorer) == ("127.0.0.1", 8000, "open", "on")
    assert (settings.database_url, settings.jwt_secret, settings.allowed_origins) == (None, None, ())
    assert settings.body_bytes_max == 1024 * 1024


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_with(
        monkeypatch,
        SPECTRAL_PORT="0",
        SPECTRAL_ACCESS="keyed",
        SPECTRAL_ALLOWED_ORIGINS=" https://a.example.com, ,https://b.example.com",
        SPECTRAL_DATABASE_URL="postgresql://u:p@h/n",
        SPECTRAL_MIGRATE_ON_START="false",
    )
    assert (settings.port, settings.access, settings.migrate_on_start) == (0, "keyed", False)
    assert settings.allowed_origins == ("https://a.example.com", "https://b.example.com")
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:p@h/n"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SPECTRAL_PORT", "http", "integer"),
        ("SPECTRAL_PORT", "65536", "65535"),
        ("SPECTRAL_PORT", "-1", "0"),
        ("SPECTRAL_PORT", "", "integer"),
        ("SPECTRAL_ACCESS", "public", "'open', 'keyed' or 'closed'"),
        ("SPECTRAL_EXPLORER", "yes", "'on' or 'off'"),
        ("SPECTRAL_LOG_LEVEL", "LOUD", "'debug'"),
        ("SPECTRAL_MIGRATE_ON_START", "maybe", "boolean"),
        ("SPECTRAL_BODY_BYTES_MAX", "1.5", "integer"),
        ("SPECTRAL_BODY_BYTES_MAX", "10", "1024"),
        ("SPECTRAL_CONNECTION_INIT_TIMEOUT_MS", "0", "100"),
        ("SPECTRAL_DATABASE_CONNECTIONS_MAX", "1", "2"),
        ("SPECTRAL_JWT_SECRET", "short-hunter2", "32"),
        ("SPECTRAL_JWT_JWKS_URL", "file:///hunter2", "http"),
        ("SPECTRAL_JWT_JWKS_URL", "hunter2", "URL"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_setting_and_keeps_the_value_to_itself(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    with pytest.raises(StartupError) as stopped:
        read_with(monkeypatch, **{name: value})
    sentence = str(stopped.value)
    assert sentence.startswith(f"{name} is wrong: ")
    assert says in sentence
    assert "hunter2" not in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_each_wrong_value_has_its_own_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError) as stopped:
        read_with(monkeypatch, SPECTRAL_PORT="x", SPECTRAL_ACCESS="y")
    assert sorted(line.split()[0] for line in str(stopped.value).splitlines()) == ["SPECTRAL_ACCESS", "SPECTRAL_PORT"]


@pytest.mark.parametrize("name", ["SPECTRAL_PROT", "SPECTRAL_", "SPECTRAL_DATABASE", "SPECTRAL_port"])
def test_a_name_that_is_no_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(StartupError) as stopped:
        read_with(monkeypatch, **{name: "hunter2"})
    assert name in str(stopped.value)
    assert "hunter2" not in str(stopped.value)


def test_secrets_are_not_shown_by_whoever_prints_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_with(
        monkeypatch,
        SPECTRAL_DATABASE_URL="postgresql://ann:hunter2@h/n",
        SPECTRAL_JWT_SECRET="hunter2 " * 5,
    )
    assert "hunter2" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings().port = 1


def test_every_setting_is_described_and_has_its_unit_in_its_name() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation is int and name not in ("port", "workers"):
            assert name.endswith(("_ms", "_max")), name
