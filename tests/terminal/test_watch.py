"""`watch` and `tail`: to the end, through a restart, in a terminal and without one."""

import json
import re
import signal
from typing import Any

import pytest

from terminal.exits import Exit
from tests.terminal.shell import Server, Shell


@pytest.mark.parametrize(
    ("report", "code"),
    [(("complete",), Exit.DONE), (("fail",), Exit.FAILED), (("cancel",), Exit.CANCELED), (("delete",), Exit.DELETED)],
)
def test_the_outcome_is_the_code(shell: Shell, task: str, report: tuple[str, ...], code: Exit) -> None:
    words = ["It broke."] if report == ("fail",) else []
    with shell.start("watch", task) as running, shell.type("watch", task) as typed:
        running.until("Task created")
        typed.until("live")
        shell(*report, task, *words, code=0)
        assert running.ended().code == code
        assert typed.ended()[0] == code
    if code is not Exit.DELETED:
        # It has ended, and is watched all the same.
        assert shell("watch", task).code == code


def test_a_terminal_shows_a_bar_that_moves_and_the_latest_events(shell: Shell, task: str) -> None:
    with shell.type("watch", task, columns=90) as typed:
        typed.until("PENDING")
        shell("event", task, "Probing the source", "-p", "10", code=0)
        typed.until(" 10 %")
        typed.until("Probing the source")
        shell("progress", task, "60", code=0)
        typed.until(" 60 %")
        shell("complete", task, code=0)
        code, text = typed.ended()
    assert code == 0
    assert "━" in text
    # The bar says it already.
    assert "Progress updated" not in text
    assert max(map(len, text.splitlines())) <= 90
    # The last picture stays, and the cursor is there again.
    assert text.rstrip().endswith("Task completed successfully")
    assert typed.said.rstrip().endswith(b"\x1b[?25h")


def test_without_a_terminal_each_event_is_a_line(shell: Shell, task: str) -> None:
    shell("progress", task, "30", code=0)
    shell("fail", task, "It broke.", code=0)
    out = shell("watch", task).out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert [re.sub(r"^\S+ +", "", line).split()[:2] for line in lines[:3]] == [
        ["#1", "LOG"],
        ["#2", "PROGRESS"],
        ["#3", "ERROR"],
    ]
    assert lines[3:] == [f"✗ FAILED       30 %  {task}"]


def test_json_has_each_message_of_the_subscription(shell: Shell, task: str) -> None:
    with shell.start("watch", task, "--json") as running:
        running.until("SNAPSHOT")
        shell("progress", task, "30", code=0)
        running.until('"PROGRESS"')
        shell("complete", task, code=0)
        ended = running.ended()
    messages = ended.lines
    assert [message["type"] for message in messages] == ["SNAPSHOT", "PROGRESS", "COMPLETE"]
    assert all(message.keys() == {"type", "task", "events"} for message in messages)
    assert messages[-1]["task"]["status"] == "SUCCESS"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_started_again_is_found_again_and_nothing_is_missed(
    server: Server, task: str, number: signal.Signals
) -> None:
    shell = server.shell
    with (
        shell.start("watch", task, "--json") as watching,
        shell.start("tail", task, "--json") as tailing,
        shell.type("watch", task) as typed,
    ):
        watching.until("SNAPSHOT")
        tailing.until("Task created")
        typed.until("live")
        for percent in (10, 20):
            shell("progress", task, str(percent), code=0)
        server.stop(number)
        typed.until("connecting again")
        server.start()
        # Perhaps before they are there again.
        for percent in (30, 40, 50):
            shell("progress", task, str(percent), code=0)
        typed.until(" 50 %")
        shell("complete", task, code=0)
        watched, tailed = watching.ended(), tailing.ended()
        assert typed.ended()[0] == Exit.DONE
    assert (watched.code, tailed.code) == (Exit.DONE, Exit.DONE)
    assert [event["seq"] for line in watched.lines for event in line["events"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [event["seq"] for event in tailed.lines] == [1, 2, 3, 4, 5, 6, 7]


def test_a_task_that_was_deleted_while_nobody_could_say_so(server: Server, task: str) -> None:
    shell = server.shell
    with shell.start("watch", task) as running:
        running.until("Task created")
        running.process.send_signal(signal.SIGSTOP)
        server.stop()
        server.start()
        shell("delete", task, code=0)
        running.process.send_signal(signal.SIGCONT)
        ended = running.ended()
    assert ended.code == Exit.DELETED
    assert ended.out.endswith(f"{task} was deleted.\n")


def test_a_task_that_was_created_anew_meanwhile_is_told_apart(server: Server, task: str) -> None:
    shell = server.shell
    with shell.start("watch", task) as running:
        running.until("Task created")
        running.process.send_signal(signal.SIGSTOP)
        server.stop()
        server.start()
        shell("delete", task, code=0)
        shell("create", task, code=0)
        shell("progress", task, "70", code=0)
        shell("complete", task, code=0)
        running.process.send_signal(signal.SIGCONT)
        ended = running.ended()
    assert ended.code == Exit.DONE
    before, _, after = ended.out.partition(f"{task} was deleted and created anew.\n")
    assert before.count("Task created") == after.count("Task created") == 1
    assert "70%" in after


def test_waiting_has_an_end_where_one_was_set(shell: Shell, task: str) -> None:
    ended = shell("watch", task, "--timeout", "1s")
    assert ended.code == Exit.TIMEOUT
    assert ended.err == f'spectral-notify: Task "{task}" had not ended after 1 s.\n'


@pytest.mark.parametrize("command", ["watch", "tail"])
def test_ctrl_c_is_quiet(shell: Shell, task: str, command: str) -> None:
    with shell.type(command, task) as typed:
        typed.until("Task created")
        typed.press_ctrl_c()
        code, text = typed.ended()
    assert code == Exit.INTERRUPTED
    assert "Traceback" not in text
    assert "Abort" not in text


def test_a_key_that_is_revoked_ends_it(server: Server, task: str) -> None:
    name = f"watcher {task}"
    key = server.shell("keys", "create", name, "-p", "READ", code=0).out.strip()
    with server.shell.with_(SPECTRAL_KEY=key).start("watch", task) as running:
        running.until("Task created")
        server.shell("keys", "revoke", name, code=0)
        ended = running.ended()
    assert ended.code == Exit.NO_PERMISSION
    assert ended.err.count("\n") == 1


def test_tail_begins_with_the_newest_events(shell: Shell, task: str) -> None:
    for percent in range(1, 6):
        shell("progress", task, str(percent), code=0)
    found = shell("tail", task, "-n", "2", "--no-follow", "--json").lines
    assert [event["seq"] for event in found] == [5, 6]
    assert {event["taskId"] for event in found} == {task}
    shell("complete", task, code=0)
    assert [event["seq"] for event in shell("tail", task, "-n", "1", "--json").lines] == [7]
    assert shell("tail", task, "-n", "0").out == f"✓ SUCCESS     100 %  {task}\n"


def test_tail_follows_all_tasks_that_are_meant(server: Server, task: str) -> None:
    shell = server.shell
    mine = task.replace("task", "mine")

    def told(out: str) -> list[Any]:
        return [(line["type"], line["task"]["progress"]) for line in map(json.loads, out.splitlines())]

    with shell.start("tail", "--prefix", mine, "--json") as running:
        # Nothing says that it has begun but what it tells.
        for number in range(200):
            shell("create", f"{mine}-{number}", code=0)
            if running.said or _readable(running):
                break
        running.until(mine)
        shell("progress", task, "5", code=0)
        watched = f"{mine}-{number}"
        shell("progress", watched, "10", code=0)
        running.until('"progress":10')
        server.stop()
        server.start()
        shell("progress", watched, "20", code=0)
        running.until('"progress":20')
        shell("delete", watched, code=0)
        running.until('"DELETE"')
        running.process.send_signal(signal.SIGINT)
        ended = running.ended()
    assert ended.code == Exit.INTERRUPTED
    assert ended.err == ""
    lines = [line for line in ended.lines if line["task"]["taskId"] == watched]
    assert [line["task"]["progress"] for line in lines][-3:] == [10, 20, 20]
    assert {line["task"]["taskId"].startswith(mine) for line in ended.lines} == {True}


def _readable(running: Any) -> bool:
    import select

    return bool(select.select([running.process.stdout], [], [], 0.5)[0])
