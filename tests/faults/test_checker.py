"""The checker says nothing of a log that is right, and names whatever is planted in it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage import AddEvent, Command, Complete, Create, EventType, Task, UpdateProgress
from storage.lifecycle import decide
from tests.faults.checker import Line, Log, check
from tests.faults.ledger import KEY, Ledger, Outcome, Seen, View

START = datetime(2026, 1, 1, tzinfo=UTC)


class Story:
    """A round in which all went well: a task with a log, its reports acknowledged, and a subscriber who saw all."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.task: Task | None = None
        self.lines: list[Line] = []
        self.view = View("s", "T", after=2)
        self.ledger.views.append(self.view)
        self.happens("create T", Create(task_id="T", metadata={KEY: "create T"}))
        self.happens("a", note("a"))
        self.happens("b", UpdateProgress(task_id="T", progress=50, idempotency_key="b"))
        self.happens("c", note("c", idempotency_key="c"))
        self.happens("d", note("d"))
        self.happens("e", Complete(task_id="T", metadata={KEY: "e"}, idempotency_key="e"))
        self.view.events = [
            Seen(line.event.seq, line.event.event_type, line.event.message, line.event.progress)
            for line in self.lines[2:]
        ]

    def happens(self, name: str, command: Command) -> None:
        place = len(self.lines)
        entry = self.ledger.enter(name, command)
        entry.sent()
        self.task = decide(self.task, command, START + timedelta(seconds=place))
        assert self.task is not None and self.task.last_event is not None
        self.lines.append(Line(self.task.last_event, getattr(command, "idempotency_key", None)))
        entry.settle(Outcome.DONE, seq=self.task.seq)
        entry.first_sent_at, entry.settled_at = place + 0.1, place + 0.9

    def renumber(self) -> None:
        """Hide a gap or a repetition, as a bug might that numbers what it has."""
        for place, line in enumerate(self.lines, start=1):
            self.lines[place - 1] = line._replace(event=line.event._replace(seq=place))

    def violations(self) -> list[str]:
        tasks = {} if self.task is None else {"T": self.task._replace(last_event=None)}
        return list(check(self.ledger, Log(tasks, {"T": self.lines})))

    def says(self, *words: str) -> None:
        violations = self.violations()
        for word in words:
            assert any(word in violation for violation in violations), (word, violations)


def note(name: str, **arguments: Any) -> AddEvent:
    return AddEvent(task_id="T", event_type=EventType.LOG, message=f"m {name}", metadata={KEY: name}, **arguments)


@pytest.fixture
def story() -> Story:
    return Story()


def test_nothing_is_said_of_what_is_right(story: Story) -> None:
    assert story.violations() == []


def test_a_repeated_event_is_found(story: Story) -> None:
    story.lines.insert(4, story.lines[3])
    story.says(
        "T: event 4 is there twice; expected number 5", "addEvent c (done after 1 attempts) is in the log 2 times"
    )


def test_a_gap_is_found(story: Story) -> None:
    del story.lines[3]
    story.says(
        "T: event 5 follows a gap; expected number 4", "c (done after 1 attempts) was acknowledged with number 4"
    )


def test_a_lost_event_is_found_although_the_numbers_are_right(story: Story) -> None:
    del story.lines[3]
    story.renumber()
    assert story.task is not None
    story.task = story.task._replace(seq=5)
    story.says("addEvent c (done after 1 attempts) was acknowledged with number 4 and is not in the log")


def test_an_event_that_nobody_reported_is_found(story: Story) -> None:
    del story.ledger.entries["d"]
    story.says("T: nobody reported event 5 ('m d', key None)")


def test_a_refused_report_that_is_in_the_log_is_found(story: Story) -> None:
    story.ledger.entries["d"].outcome = Outcome.REFUSED
    story.says("addEvent d (refused after 1 attempts) was refused and is in the log as event 5")


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.OPEN])
def test_what_may_be_there_may_be_there_once(story: Story, outcome: Outcome) -> None:
    story.ledger.entries["d"].outcome = outcome
    assert story.violations() == []
    story.lines.insert(5, story.lines[4])
    story.renumber()
    story.says("is in the log 2 times, as events 5, 6")


def test_what_may_be_missing_may_be_missing(story: Story) -> None:
    entry = story.ledger.enter("f", note("f"))
    entry.sent()
    entry.settle(Outcome.UNKNOWN)
    assert story.violations() == []


def test_a_wrong_number_in_an_answer_is_found(story: Story) -> None:
    story.ledger.entries["d"].seq = 6
    story.says("addEvent d (done after 1 attempts) was acknowledged with number 6 and is event 5")


def test_an_order_that_cannot_be_is_found(story: Story) -> None:
    entry = story.ledger.entries["d"]
    entry.first_sent_at, entry.settled_at = 1.2, 1.3
    story.says("T: event 5 (addEvent d (done after 1 attempts)) comes after addEvent c")


def test_a_row_that_is_not_its_log_is_found(story: Story) -> None:
    assert story.task is not None
    story.task = story.task._replace(progress=50)
    story.says("T: the row has progress 50, and its log says 100")


def test_a_number_of_the_row_that_is_not_the_log_s_is_found(story: Story) -> None:
    assert story.task is not None
    story.task = story.task._replace(seq=7)
    story.says("T: the task says that its latest event is 7, and the log's is 6")


def test_a_report_after_the_end_is_found(story: Story) -> None:
    entry = story.ledger.enter("f", note("f"))
    entry.sent()
    entry.settle(Outcome.DONE, seq=7)
    event = story.lines[1].event
    story.lines.append(Line(event._replace(seq=7, message="m f", metadata=entry.command.metadata_json), None))  # type: ignore[attr-defined]
    story.says("T: the rules refuse event 7")


def test_a_task_without_a_row_is_found(story: Story) -> None:
    story.task = None
    story.says("T: there are 6 events and no task")


def test_a_missed_event_is_found(story: Story) -> None:
    del story.view.events[1]
    story.says("s on T at no server missed 4 of 6, its snapshot was at 2, and it saw up to 6")


def test_an_end_that_was_not_seen_is_found(story: Story) -> None:
    story.view.events = story.view.events[:2]
    story.says("missed 5, 6 of 6, its snapshot was at 2, and it saw up to 4")


def test_an_event_seen_twice_is_found(story: Story) -> None:
    story.view.events.insert(1, story.view.events[0])
    story.says("saw event 3 twice")


def test_an_event_seen_out_of_order_is_found(story: Story) -> None:
    story.view.events[0], story.view.events[1] = story.view.events[1], story.view.events[0]
    story.says("saw events out of order")


def test_an_event_that_was_never_committed_is_found(story: Story) -> None:
    story.view.events[1] = story.view.events[1]._replace(message="m ghost")
    story.view.events.append(Seen(7, "LOG", "m ghost", None))
    story.says("and the log has Seen(seq=4", "saw event 7 ('m ghost'), which is not in the log")


def test_a_view_without_a_snapshot_is_found(story: Story) -> None:
    story.view.after = None
    story.says("never saw a snapshot")
