import json
import queue
import re
import subprocess
import threading
from pathlib import Path
from typing import Any, Final, Self

import httpx
from graphql import build_schema, parse, validate

from graphql_api.schema import sdl
from storage.errors import Refusal
from tests.docs.pages import BIN, PAGES, TOP, WAIT_S, Served, blocks

README: Final = TOP / "README.md"
ORIGIN: Final = "http://127.0.0.1:8000"
DATA_DIR: Final = "~/.local/share/spectral-notify"


def shell(served: Served, commands: str) -> list[str]:
    """How to run commands of the README against this server: their text, with its address, folder and programs."""
    here = commands.replace(ORIGIN, served.origin)
    here = here.replace(DATA_DIR, served.environment["SPECTRAL_DATA_DIR"]).replace(".venv/bin", str(BIN))
    return ["bash", "-euo", "pipefail", "-c", here]


def run(served: Served, commands: str) -> str:
    finished = subprocess.run(
        shell(served, commands), env=dict(served.environment), capture_output=True, text=True, timeout=WAIT_S
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


class Stream:
    """A command that goes on while others run, and what it says."""

    def __init__(self, served: Served, commands: str) -> None:
        self._process = subprocess.Popen(
            shell(served, commands),
            env=dict(served.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="stream")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def following(self) -> dict[str, Any] | None:
        """The data of the next event; None at the end."""
        while (line := self._lines.get(timeout=WAIT_S)) is not None:
            if line.startswith("data: {"):
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))["data"]["taskUpdates"]
                return found
        return None

    def status(self) -> int:
        """Its exit status; it must end by itself."""
        return self._process.wait(WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def answers(said: str) -> list[Any]:
    """JSON texts that follow each other without anything between, as curl prints them."""
    found, decoder, position = [], json.JSONDecoder(), 0
    while position < len(said):
        value, position = decoder.raw_decode(said, position)
        found.append(value)
    return found


def test_the_commands_take_a_task_from_start_to_end(served: Served) -> None:
    of_task = [block for block in blocks(README, "sh") if "curl" in block or block.startswith("KEY=")]
    key, create, watch, report, complete, look_and_delete, _ = of_task

    (created,) = answers(run(served, key + create))
    assert created["data"]["create"] == {"taskId": "report-5f0c9a41", "status": "PENDING", "seq": 1}

    with Stream(served, watch) as stream:
        snapshot = stream.following()
        assert snapshot == {"type": "SNAPSHOT", "task": {"status": "PENDING", "progress": 0}, "events": []}

        (reported,) = answers(run(served, report))
        assert reported["data"]["updateProgress"] == {"status": "IN_PROGRESS", "progress": 50, "seq": 2}
        update = stream.following()
        assert update is not None
        assert update["type"] == "PROGRESS"
        assert update["events"] == [{"seq": 2, "message": "Progress updated to 50%"}]

        (completed,) = answers(run(served, complete))
        assert completed["data"]["complete"]["status"] == "SUCCESS"
        update = stream.following()
        assert update is not None
        assert (update["type"], update["task"]) == ("COMPLETE", {"status": "SUCCESS", "progress": 100})
        assert stream.following() is None
        assert stream.status() == 0

    # The same subscription, as the document that is to be pasted into GraphiQL.
    (document,) = blocks(README, "graphql")
    updates = streamed(served, document)
    assert [update["type"] for update in updates] == ["SNAPSHOT"]
    assert [event["seq"] for event in updates[0]["events"]] == [1, 2, 3]

    looked, deleted = answers(run(served, key + look_and_delete))
    assert [event["eventType"] for event in looked["data"]["task"]["history"]] == ["LOG", "PROGRESS", "SUCCESS"]
    assert deleted == {"data": {"delete": "report-5f0c9a41"}}


def test_the_commands_for_the_terminal_do_the_same(served: Served) -> None:
    (commands,) = [block for block in blocks(README, "sh") if "spectral-notify watch" in block]
    lines = run(served, commands).splitlines()
    assert [line.split()[1:3] for line in lines[:3]] == [["PENDING", "0"], ["IN_PROGRESS", "40"], ["IN_PROGRESS", "40"]]
    assert any(line.startswith("film-7 ") and line.endswith("Joining the sound") for line in lines)
    assert lines[-1].split() == ["✓", "SUCCESS", "100", "%", "film-7"]


def test_the_worker_in_ten_lines_does_what_it_is_given(served: Served, tmp_path: Path) -> None:
    key, *_, create = [block for block in blocks(README, "sh") if "curl" in block or block.startswith("KEY=")]
    (script,) = blocks(README, "python")
    assert len([line for line in script.splitlines() if line]) == 10
    (tmp_path / "video.py").write_text(script.replace(ORIGIN, served.origin))
    secret = run(served, key + "echo $KEY").strip()
    working = subprocess.Popen(
        [BIN / "python", tmp_path / "video.py"], env={**served.environment, "KEY": secret}, stderr=subprocess.PIPE
    )
    with working:
        try:
            (created,) = answers(run(served, key + create))
            assert created["data"]["create"] == {"status": "PENDING"}
            (done, *_) = reversed(
                streamed(served, 'subscription { taskUpdates(taskId: "film-12") { task { status progress } } }')
            )
            assert done["task"] == {"status": "SUCCESS", "progress": 100}
        finally:
            working.terminate()
        assert working.wait(WAIT_S) == 0
        assert working.stderr is not None
        assert working.stderr.read() == b""


def streamed(served: Served, document: str) -> list[Any]:
    accept = {"Accept": "text/event-stream"}
    body = {"query": document}
    answer = httpx.post(f"{served.origin}/graphql", json=body, headers=accept, timeout=WAIT_S, trust_env=False)
    assert answer.text.endswith("event: complete\ndata: \n\n")
    return [
        json.loads(line.removeprefix("data: "))["data"]["taskUpdates"]
        for line in answer.text.splitlines()
        if line.startswith("data: {")
    ]


def test_the_commands_make_list_and_revoke_a_key_beside_the_server(served: Served) -> None:
    (commands,) = [block for block in blocks(README, "sh") if "keys create" in block]

    key, *listed = run(served, commands).splitlines()

    assert key.startswith("spn_")
    assert any(re.match(r"worker +REPORT CREATE +\d{4}-\d\d-\d\d", line) for line in listed)
    # Looked up only now, so it is not believed from before.
    body = {"query": "{ viewer { name } }"}
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{served.origin}/graphql", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 401


def test_the_two_commands_are_targets_of_make() -> None:
    block = next(block for block in blocks(README, "sh") if "make run" in block)
    targets = re.findall(r"^make (\w+)", block, re.MULTILINE)
    assert targets == ["run", "test"]
    subprocess.run(["make", "--dry-run", *targets], cwd=TOP, check=True, capture_output=True)


def test_the_documents_fit_the_schema() -> None:
    schema = build_schema(sdl())
    for page in PAGES:
        for document in blocks(page, "graphql"):
            assert not validate(schema, parse(document))
        for script in blocks(page, "js"):
            for document in re.findall(r"query: `(.*?)`", script, re.DOTALL):
                assert not validate(schema, parse(document))


def test_the_table_of_the_api_names_every_operation_with_its_arguments() -> None:
    schema = build_schema(sdl())
    rows = re.findall(r"^\| (query|mutation|subscription) `(\w+)` \| (.*?) \|", README.read_text(), re.MULTILINE)
    written = {(kind, name): set(re.findall(r"`(\w+)", arguments)) for kind, name, arguments in rows}
    roots = {"query": schema.query_type, "mutation": schema.mutation_type, "subscription": schema.subscription_type}
    actual = {
        (kind, name): set(field.args) for kind, root in roots.items() if root for name, field in root.fields.items()
    }
    assert written == actual


def test_the_table_of_errors_names_every_code() -> None:
    text = README.read_text()
    assert refusals(Refusal)
    for code in refusals(Refusal) | {"INTERNAL_SERVER_ERROR"}:
        assert f"`{code}`" in text


def refusals(root: type[Refusal]) -> set[str]:
    return {code for child in root.__subclasses__() for code in {child.code, *refusals(child)}}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
            found = (page.parent / target) if target else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
                assert anchor in [heading.lower().replace(" ", "-") for heading in headings], f"{page.name}: #{anchor}"
