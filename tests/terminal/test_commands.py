"""What each command does, with the server found by itself and the key in its folder."""

import json
import re
import uuid
from pathlib import Path

import pytest

from tests.terminal.shell import Shell

FIELDS = {
    "taskId", "status", "progress", "metadata", "seq", "createdBy", "createdAt", "updatedAt", "startedAt",
    "completedAt", "failedAt", "canceledAt", "tags", "queue", "priority", "startAt", "dependsOn", "blockedBy",
    "attempt", "maxAttempts", "nextAttemptAt", "worker", "leaseExpiresAt", "stale", "expiresAt", "deleteAt",
    "lastEvent",
}  # fmt: skip


def test_a_task_is_taken_from_start_to_end(shell: Shell, task: str) -> None:
    assert shell("event", task, "Began", "-p", "5", "-m", '{"host": "a"}').out == f"● IN_PROGRESS   5 %  {task}\n"
    assert shell("progress", task, "40").out == f"● IN_PROGRESS  40 %  {task}\n"
    assert shell("complete", task, "--metadata", '{"url": "/1"}').out == f"✓ SUCCESS     100 %  {task}\n"
    shown = shell("show", task, "--json").json
    assert [(event["eventType"], event["message"]) for event in shown["history"]] == [
        ("LOG", "Task created"),
        ("LOG", "Began"),
        ("PROGRESS", "Progress updated to 40%"),
        ("SUCCESS", "Task completed successfully"),
    ]
    assert shown["history"][1]["metadata"] == {"host": "a"}
    assert shown["createdBy"] == "admin"
    assert shell("delete", task).out == f"Deleted {task}.\n"
    assert shell("show", task).code == 66


def test_every_command_prints_json(shell: Shell) -> None:
    task_id = uuid.uuid4().hex
    for arguments in (
        ("create", task_id),
        ("event", task_id, "a"),
        ("progress", task_id, "1"),
        ("fail", task_id, "broke"),
        ("show", task_id),
    ):
        found = shell(*arguments, "--json").json
        assert found.keys() >= FIELDS
        assert found["taskId"] == task_id
    assert found["lastEvent"]["message"] == "broke"
    other = shell("create", "--json").json["taskId"]
    assert shell("cancel", other, "--json").json["status"] == "CANCELED"
    (listed, *_) = shell("list", "--json", "--limit", "1").lines
    assert listed.keys() == FIELDS
    assert shell("delete", other, "--json").json == {"taskId": other, "deleted": True}


def test_a_task_is_created_with_what_can_be_asked_for(shell: Shell, task: str) -> None:
    created = shell(
        "create", "--tag", "a", "-t", "b", "--queue", "video", "--priority", "7", "--start-at", "+1h",
        "--depends-on", task, "--ignore-failed-dependencies", "--attempts", "3", "--retry-delay", "5s",
        "--retry-delay-max", "1m", "--retry-factor", "1.5", "--expires-at", "2100-01-01T00:00Z", "--keep-for", "1d",
        "--metadata", '{"frames": 30}', "--json",
    ).json  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{32}", created["taskId"])
    assert (created["tags"], created["queue"], created["priority"]) == (["a", "b"], "video", 7)
    assert (created["dependsOn"], created["blockedBy"], created["maxAttempts"]) == ([task], [task], 3)
    assert created["expiresAt"].startswith("2100-01-01T00:00")
    assert created["metadata"] == {"frames": 30}
    assert created["startAt"] > created["createdAt"]
    shown = shell("show", created["taskId"]).out
    for said in (
        "video, priority 7",
        "a, b",
        f"depends on  {task}",
        f"waits for   {task}",
        "2100-01-01",
        '"frames": 30',
    ):
        assert said in shown


def test_quiet_prints_the_id_alone(shell: Shell) -> None:
    ended = shell("create", "-q")
    assert re.fullmatch(r"[0-9a-f]{32}\n", ended.out)
    assert shell("show", ended.out.strip()).code == 0


def test_metadata_comes_from_text_a_file_and_stdin(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text('{"from": "file"}')
    assert shell("create", "-m", '"text"', "--json").json["metadata"] == "text"
    assert shell("create", "-m", f"@{file}", "--json").json["metadata"] == {"from": "file"}
    assert shell("create", "-m", "-", "--json", stdin='["stdin"]').json["metadata"] == ["stdin"]


def test_the_same_key_writes_once(shell: Shell, task: str) -> None:
    for _ in range(2):
        shell("event", task, "once", "--idempotency-key", "k", code=0)
    shell("event", task, "twice", code=0)
    shell("event", task, "twice", code=0)
    messages = [event["message"] for event in shell("show", task, "--json").json["history"]]
    assert messages == ["Task created", "once", "twice", "twice"]
    assert shell("event", task, "other", "--idempotency-key", "k").code == 65


def test_the_list_is_a_table_without_an_end_to_its_lines_where_nobody_looks(shell: Shell) -> None:
    task_id = "x" * 200
    shell("create", task_id, code=0)
    shell("event", task_id, "y" * 300, code=0)
    head, row, *_ = shell("list", "--limit", "1").out.splitlines()
    assert head.split() == ["TASK", "STATUS", "PROGRESS", "AGE", "QUEUE,", "TAGS", "LAST", "EVENT"]
    assert task_id in row
    assert "y" * 300 in row
    assert "\x1b" not in row


def test_all_pages_of_a_list_are_read(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = uuid.uuid4().hex
    tasks = [f"{prefix}-{number}" for number in range(3)]
    for task_id in tasks:
        shell("create", task_id, code=0)
    listed = [task["taskId"] for task in shell("list", "--all", "--json").lines]
    assert [task_id for task_id in listed if task_id.startswith(prefix)] == tasks[::-1]
    assert [task["taskId"] for task in shell("list", "-n", "2", "--json").lines] == tasks[:0:-1]


def test_the_list_is_filtered_by_status(shell: Shell, task: str) -> None:
    shell("cancel", task, code=0)
    found = shell("list", "--status", "canceled", "-s", "FAILED", "--json", "-n", "1000").lines
    assert task in [found["taskId"] for found in found]
    assert {found["status"] for found in found} <= {"CANCELED", "FAILED"}


def test_the_list_is_filtered_by_all_that_is_given(shell: Shell) -> None:
    mark = uuid.uuid4().hex
    old, new = f"{mark}-old", f"{mark}-new"
    shell("create", old, "-t", mark, "-t", "a", "--queue", mark, "-m", json.dumps({"mark": mark, "n": 1}), code=0)
    between = shell("show", old, "--json").json["createdAt"]
    shell("create", new, "-t", mark, code=0)

    def listed(*arguments: str) -> list[str]:
        return [task["taskId"] for task in shell("list", *arguments, "--json").lines]

    assert listed("--tag", mark) == [new, old]
    assert listed("--tag", mark, "--tag", "a") == [old]
    assert listed("--queue", mark) == [old]
    assert listed("--prefix", f"{mark}-n") == [new]
    assert listed("--metadata", json.dumps({"mark": mark})) == [old]
    assert listed("--tag", mark, "--created-by", "admin") == [new, old]
    assert listed("--tag", mark, "--created-by", "nobody") == []
    assert listed("--tag", mark, "--created-before", between) == []
    assert listed("--tag", mark, "--created-after", "-1h", "--updated-after", "-1h") == [new, old]
    assert listed("--tag", mark, "--stale") == []


def test_what_others_wrote_is_shown_and_not_obeyed(shell: Shell) -> None:
    task_id = f"evil\x1b]0;title\x07-{uuid.uuid4().hex}"
    shell("create", task_id, code=0)
    shell("fail", task_id, "two\nlines \x1b[31m\x9b31m\u202e", code=0)
    for arguments in (("list", "-n", "1"), ("show", task_id), ("tail", task_id), ("list", "-n", "1", "--json")):
        out = shell(*arguments).out
        assert not re.search("[\x1b\x07\x9b\u202e]", out), arguments
    assert json.loads(shell("show", task_id, "--json").out)["taskId"] == task_id


def test_a_terminal_has_colours_and_bars_and_no_color_takes_the_colours(shell: Shell, task: str) -> None:
    shell("progress", task, "50", code=0)
    with shell.type("list", "-n", "1", columns=80) as typed:
        code, text = typed.ended()
        assert code == 0
        assert b"\x1b[36m" in typed.said
        assert "━" in text
        assert max(map(len, text.splitlines())) <= 80
    with shell.with_(NO_COLOR="1").type("list", "-n", "1") as typed:
        assert typed.ended()[0] == 0
        assert b"\x1b[36m" not in typed.said


def test_a_narrow_terminal_still_shows_each_task_in_a_line(shell: Shell, task: str) -> None:
    with shell.type("list", "-n", "2", columns=60) as typed:
        code, text = typed.ended()
    lines = text.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 60
    assert len([line for line in lines if line.strip()]) <= 4
