"""``demo`` leaves tasks of every outcome, whoever looks, and nothing that goes on when it is interrupted."""

import json
import signal
from collections import Counter
from typing import Any

from terminal.exits import Exit
from tests.terminal.shell import Shell


def of_the_demo(shell: Shell, since: str) -> list[Any]:
    tasks = shell("list", "--all", "--json").lines
    return [task for task in tasks if "demo" in task["tags"] and task["createdAt"] > since]


def test_it_shows_every_outcome(shell: Shell, task: str) -> None:
    since = shell("show", task, "--json").json["createdAt"]
    ended = shell("demo", "--seconds", "6", "--json", code=0)
    events = ended.lines
    tasks = {task["taskId"]: task for task in of_the_demo(shell, since)}
    assert Counter(task["status"] for task in tasks.values()) == {"SUCCESS": 10, "FAILED": 1, "CANCELED": 1}
    assert {task["queue"] for task in tasks.values()} == {"demo-video", "demo-reports", "demo-models"}
    assert max(task["attempt"] for task in tasks.values()) == 3
    assert [task["blockedBy"] for task in tasks.values() if task["dependsOn"]] == [[], []]
    # All that was written was told: as many events as there are.
    assert {event["taskId"] for event in events} == tasks.keys()
    told = Counter(event["taskId"] for event in events)
    assert told == {task_id: task["seq"] for task_id, task in tasks.items()}


def test_interrupted_it_cancels_what_has_not_ended(shell: Shell, task: str) -> None:
    since = shell("show", task, "--json").json["createdAt"]
    with shell.start("demo", "--seconds", "600", "--tasks", "5", "--json") as running:
        running.until("Claimed by")
        running.process.send_signal(signal.SIGINT)
        ended = running.ended()
    assert (ended.code, ended.err) == (Exit.INTERRUPTED, "")
    tasks = of_the_demo(shell, since)
    assert [task["status"] for task in tasks] == ["CANCELED"] * 5
    assert {json.dumps(task["lastEvent"]["metadata"]) for task in tasks} == {'{"reason": "The demo was over."}'}


def test_a_terminal_shows_all_of_them_at_once(shell: Shell) -> None:
    with shell.type("demo", "--seconds", "2", "--tasks", "4", columns=120, rows=20) as typed:
        code, text = typed.ended()
    assert code == 0
    last = text.rpartition("TASK ")[2]
    assert last.count("SUCCESS") + last.count("FAILED") == 4
    assert max(map(len, text.splitlines())) <= 120
