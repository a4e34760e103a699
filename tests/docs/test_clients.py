import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.pages import TOP, Served, blocks


def test_the_worker_reports_and_completes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    names: dict[str, Any] = {}
    script, *_ = blocks(TOP / "docs" / "clients.md", "python")
    exec(compile(script, "clients.md", "exec"), names)
    key = (Path(served.environment["SPECTRAL_DATA_DIR"]) / "admin.key").read_text().strip()

    def ask(query: str) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{served.origin}/graphql", json={"query": query}, headers=headers, trust_env=False)
        return answer.json()["data"]

    ask(
        'mutation { a: create(taskId: "good") { id } b: create(taskId: "bad") { id } c: create(taskId: "gone") { id } }'
    )
    names["work"](served.origin, "good", [lambda: None] * 3)
    with pytest.raises(ZeroDivisionError):
        names["work"](served.origin, "bad", [lambda: 1 // 0])
    ask('mutation { cancel(taskId: "gone") { id } }')
    names["work"](served.origin, "gone", [lambda: None] * 3)

    tasks = ask("{ tasks { nodes { taskId status progress metadata lastEvent { message metadata } } } }")["tasks"][
        "nodes"
    ]
    found = {task["taskId"]: task for task in tasks}
    assert (found["good"]["status"], found["good"]["lastEvent"]["metadata"]) == ("SUCCESS", {"pages": 3})
    assert found["bad"]["status"] == "FAILED"
    assert found["bad"]["lastEvent"]["message"].startswith("Page 1 could not be made: ")
    assert found["gone"]["status"] == "CANCELED"


def test_the_library_reports_and_handles(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    _, handled, reported = blocks(TOP / "docs" / "clients.md", "python")
    names: dict[str, Any] = {}
    for script in (handled, reported):
        exec(compile(script, "clients.md", "exec"), names)
    key = (Path(served.environment["SPECTRAL_DATA_DIR"]) / "admin.key").read_text().strip()
    url = f"{served.origin}/graphql"

    def ask(query: str) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(url, json={"query": query}, headers=headers, trust_env=False)
        return answer.json()["data"]

    ask(
        'mutation { a: create(taskId: "whole") { id } b: create(taskId: "part") { id } '
        'c: create(taskId: "claimed", metadata: {images: [1, 2]}, options: {queue: "images"}) { id } }'
    )
    names["render"](url, "whole", [lambda: None] * 3)
    names["count"](url, "part", [lambda: None] * 3)

    def shrink(image: int) -> None:
        if image == 2:
            signal.raise_signal(signal.SIGTERM)

    names["shrink"] = shrink
    asyncio.run(names["run"](url, key))

    tasks = ask("{ tasks { nodes { taskId status progress lastEvent { metadata } } } }")["tasks"]["nodes"]
    found = {task["taskId"]: (task["status"], task["progress"], task["lastEvent"]["metadata"]) for task in tasks}
    assert found["whole"] == ("SUCCESS", 100, {"pages": 3})
    assert found["part"] == ("IN_PROGRESS", 100, None)
    assert found["claimed"] == ("SUCCESS", 100, {"images": 2})
