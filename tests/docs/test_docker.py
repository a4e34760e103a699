"""What can be said about the container files without a container engine."""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from graphql_api.server import EXIT_WITHIN_S
from graphql_api.settings import PREFIX, Settings
from tests.docs.pages import BIN, TOP, WAIT_S, serving, surroundings

DOCKERFILE: Final = TOP / "docker" / "Dockerfile"
COMPOSE: Final = TOP / "docker" / "compose.yaml"
INSTRUCTIONS: Final = {
    *("FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}
BUILD_TOOLS: Final = ("pip", "apt", "apk", "gcc", "make", "uv", "hatch", "curl", "wget")
PASSWORD: Final = "abc123"


@dataclass(slots=True)
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str | None
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.instructions if found == name]

    def one(self, name: str) -> str:
        (value,) = self.all(name)
        return value


def stages() -> list[Stage]:
    """The Dockerfile, read: lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, value = line.partition(" ")
        assert name in INSTRUCTIONS, name
        value = value.strip()
        if name == "FROM":
            match = re.fullmatch(r"(\S+)(?: AS (\w+))?", value)
            assert match is not None, value
            found.append(Stage(match[1], match[2]))
        else:
            assert found, "an instruction before the first FROM"
            found[-1].instructions.append((name, value))
    return found


def image_environment() -> dict[str, str]:
    """What ENV of the last stage sets."""
    return dict(pair.split("=", 1) for value in stages()[-1].all("ENV") for pair in shlex.split(value))


def compose(**variables: str) -> dict[str, Any]:
    """The Compose file with its variables filled in; KeyError when one is needed and not there."""

    def fill(match: re.Match[str]) -> str:
        return variables[match[1]]

    text = "\n".join(line for line in COMPOSE.read_text().splitlines() if not line.lstrip().startswith("#"))
    filled: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]+\}", fill, text))
    return filled


def set_in(service: dict[str, Any]) -> dict[str, str]:
    """What a service has in its environment; what has no value comes from outside, where it is not set."""
    return {name: value for name, value in service["environment"].items() if value is not None}


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last line that fits it or a folder above it decides."""
    verdict = False
    for line in (TOP / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        short = pattern.removeprefix("**/")
        if any(fnmatch.fnmatch(each if short == pattern else Path(each).name, short) for each in above):
            verdict = not line.startswith("!")
    return verdict


# The image


def test_every_copied_file_exists_and_reaches_the_build() -> None:
    names: list[str | None] = []
    copied = set()
    for stage in stages():
        for value in stage.all("COPY"):
            *sources, _ = [word for word in value.split() if not word.startswith("--")]
            origin = re.search(r"--from=(\w+)", value)
            if origin is not None:
                assert origin[1] in names
                continue
            for source in sources:
                assert (TOP / source).exists(), source
                assert not ignored(source), source
                copied.add(source)
        names.append(stage.name)
    assert {"graphql_api", "storage", "pyproject.toml"} <= copied
    # What the build of the wheel reads beside the packages.
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        "data",
        ".venv",
        "tests",
        "docs",
        ".env",
        "admin.key",
        "storage/__pycache__",
        "docker/compose.yaml",
        "docker/Caddyfile",
    ],
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(path)
    assert not ignored("storage/writer.py")


def test_everything_installed_is_pinned_by_hash() -> None:
    for stage in stages():
        for command in [part for value in stage.all("RUN") for part in value.split(" && ")]:
            words = shlex.split(command)
            if "pip" not in [Path(word).name for word in words[:1]]:
                continue
            verb, *rest = words[1:]
            known = subprocess.run(
                [sys.executable, "-m", "pip", verb, "--help"], capture_output=True, text=True, check=True
            ).stdout
            for word in rest:
                if word.startswith("--"):
                    assert word in known, f"pip {verb} {word}"
            if verb == "install" and "-r" in rest:
                assert "--require-hashes" in rest
                lock = rest[rest.index("-r") + 1]
                assert lock in " ".join(stage.all("COPY"))
                assert "--hash=sha256:" in (TOP / lock).read_text()
            elif verb in ("install", "wheel"):
                assert "--no-deps" in rest
                assert "--no-index" in rest or "--no-build-isolation" in rest


def test_what_builds_the_wheel_is_in_the_lock_of_the_tools() -> None:
    required = tomllib.loads((TOP / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = (TOP / "requirements-dev.lock").read_text()
    for name in required:
        assert re.search(rf"^{name}==", locked, re.MULTILINE), name


def test_the_last_stage_runs_as_an_ordinary_user_and_holds_no_build_tools() -> None:
    *others, last = stages()
    assert others
    assert last.base.endswith("-slim")
    user = last.one("USER")
    assert user not in ("root", "0")
    made = " ".join(last.all("RUN"))
    assert "useradd --system --user-group --uid 10001" in made
    assert shlex.split(made.split(" && ")[0])[-1] == user
    # What runs after USER, runs as that user.
    names = [name for name, _ in last.instructions]
    assert names.index("RUN") < names.index("USER") < names.index("ENTRYPOINT")
    for command in made.split(" && "):
        assert shlex.split(command)[0] not in BUILD_TOOLS
    # The environment that is taken over has no pip either.
    build = next(stage for stage in others if stage.name == "build")
    assert "pip uninstall --yes --disable-pip-version-check pip" in build.all("RUN")[-1]


def test_the_user_owns_the_data_folder() -> None:
    last = stages()[-1]
    folder = image_environment()["SPECTRAL_DATA_DIR"]
    assert last.one("VOLUME") == folder
    assert f"--owner={last.one('USER')} --group={last.one('USER')} --mode=0700 {folder}" in " ".join(last.all("RUN"))


def test_the_image_starts_a_program_that_exists() -> None:
    last = stages()[-1]
    (program,) = json.loads(last.one("ENTRYPOINT"))
    scripts = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]
    assert program in scripts
    for arguments in (
        json.loads(last.one("CMD")),
        compose(POSTGRES_PASSWORD=PASSWORD)["services"]["migrate"]["command"],
    ):
        subprocess.run([BIN / program, *arguments, "--help"], check=True, capture_output=True, env=surroundings())
    assert last.one("EXPOSE") == str(Settings.model_fields["port"].default)


def test_every_setting_in_the_files_is_one() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for file in (DOCKERFILE, COMPOSE):
        named = set(re.findall(r"SPECTRAL_[A-Z_]+", file.read_text()))
        assert named
        assert named <= known


# Compose


def test_nothing_starts_without_a_password() -> None:
    with pytest.raises(KeyError):
        compose()
    text = COMPOSE.read_text()
    # Every variable is one that has no default.
    assert len(re.findall(r"\$\{", text)) == len(re.findall(r"\$\{POSTGRES_PASSWORD:\?", text)) == 2


def test_the_server_waits_for_the_migration_and_that_for_the_database() -> None:
    filled = compose(POSTGRES_PASSWORD=PASSWORD)
    services = filled["services"]
    assert set(services) == {"postgres", "migrate", "api", "balancer", "nats"}
    assert services["postgres"]["image"] == "postgres:18"
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    (volume,) = services["postgres"]["volumes"]
    assert volume.split(":")[0] in filled["volumes"]
    assert services["api"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert services["balancer"]["depends_on"] == {"api": {"condition": "service_healthy"}}
    for name in ("migrate", "api"):
        build = services[name]["build"]
        assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE


def test_the_database_of_the_url_is_the_one_that_is_made() -> None:
    services = compose(POSTGRES_PASSWORD=PASSWORD)["services"]
    made = services["postgres"]["environment"]
    expected = f"postgresql://{made['POSTGRES_USER']}:{PASSWORD}@postgres:5432/{made['POSTGRES_DB']}"
    for name in ("migrate", "api"):
        assert services[name]["environment"]["SPECTRAL_DATABASE_URL"] == expected


def test_what_is_fetched_is_pinned_and_only_the_balancer_is_reached_from_outside() -> None:
    services = compose(POSTGRES_PASSWORD=PASSWORD)["services"]
    for name, service in services.items():
        assert service.get("build") or re.fullmatch(r"[a-z]+:\d+(\.\d+)?", service["image"]), name
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "balancer": ["127.0.0.1:8000:8000"]
    }


def test_there_is_time_to_stop_in_order() -> None:
    services = compose(POSTGRES_PASSWORD=PASSWORD)["services"]
    for name in ("api", "balancer"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > EXIT_WITHIN_S + 2


def test_the_balancer_finds_the_servers() -> None:
    services = compose(POSTGRES_PASSWORD=PASSWORD)["services"]
    (mounted,) = services["balancer"]["volumes"]
    source, _, target = mounted.partition(":")
    assert target == "/etc/nginx/nginx.conf:ro"
    found = (COMPOSE.parent / source).read_text()
    assert re.findall(r"^ +server (\S+) resolve", found, re.MULTILINE) == [f"api:{stages()[-1].one('EXPOSE')}"]
    assert services["balancer"]["ports"][0].endswith(f":{re.findall(r'listen ([0-9]+);', found)[0]}")
    assert services["api"]["deploy"]["replicas"] > 1
    assert "ports" not in services["api"]


def test_the_feed_by_nats_is_there_when_it_is_asked_for() -> None:
    services = compose(POSTGRES_PASSWORD=PASSWORD)["services"]
    assert services["nats"]["profiles"] == ["nats"]
    # Without a value: the one that Compose finds in its own surroundings, or none at all.
    assert services["api"]["environment"]["SPECTRAL_FEED_URL"] is None
    assert all("nats" not in service.get("depends_on", {}) for service in services.values())
    (url,) = re.findall(r"^# +export SPECTRAL_FEED_URL=(\S+)$", COMPOSE.read_text(), re.MULTILINE)
    assert url == "nats://nats:4222"


def test_the_services_do_their_work(empty_database: str, tmp_path: Path) -> None:
    services = compose(POSTGRES_PASSWORD=PASSWORD)["services"]
    last = stages()[-1]
    (program,) = json.loads(last.one("ENTRYPOINT"))
    image = {name: value for name, value in image_environment().items() if name.startswith(PREFIX)}
    here = {"SPECTRAL_DATABASE_URL": empty_database, "SPECTRAL_DATA_DIR": str(tmp_path)}
    of_job = surroundings(**{**image, **services["migrate"]["environment"], **here})
    of_server = surroundings(**{**image, **set_in(services["api"]), **here})

    # Why it waits for the job.
    refused = subprocess.run([BIN / program, "serve"], env=of_server, capture_output=True, text=True, timeout=WAIT_S)
    assert refused.returncode == 1
    assert "Run `spectral-notify migrate` of this version first." in refused.stderr

    job = [BIN / program, *services["migrate"]["command"]]
    done = subprocess.run(job, env=of_job, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout.split(" to ")[0]) == (0, "The schema went from none")

    key_command = [BIN / program, "keys", "create", "admin", "--permission", "ADMIN"]
    key = subprocess.run(key_command, env=of_server, capture_output=True, text=True, timeout=WAIT_S).stdout.strip()
    with serving(of_server) as served:

        def ask(query: str, **headers: str) -> Any:
            url = f"{served.origin}/graphql"
            return httpx.post(url, json={"query": query}, headers=headers, trust_env=False).json()

        assert "errors" not in ask('mutation { create(taskId: "T-7") { id } }', Authorization=f"Bearer {key}")
        assert ask('{ task(taskId: "T-7") { status } }') == {"data": {"task": {"status": "PENDING"}}}
        reported = ask('mutation { updateProgress(taskId: "T-7", progress: 5) { id } }')
        assert reported["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"

        ready = services["api"]["healthcheck"]["test"]
        assert (health(served.port), health(served.port, ready)) == (0, 0)
    assert health(served.port) != 0
    assert health(served.port, ready) != 0


def health(port: int, test: list[str] | None = None) -> int:
    """The exit status of the image's health check, or of a service's, in surroundings that name a proxy nobody can
    reach.
    """
    if test is None:
        check = stages()[-1].one("HEALTHCHECK")
        test = ["CMD", *json.loads(check[check.index("CMD [") + len("CMD ") :])]
    kind, program, *arguments = (word.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for word in test)
    assert (kind, program) == ("CMD", "python")
    proxied = surroundings(SPECTRAL_PORT=str(port), http_proxy="http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        del proxied[name]
    return subprocess.run([sys.executable, *arguments], env=proxied, capture_output=True, timeout=WAIT_S).returncode
