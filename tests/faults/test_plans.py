"""The checker says nothing of tasks whose plans went as they should, and names whatever is planted in one."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage import (
    AddEvent,
    Command,
    Complete,
    Create,
    EventType,
    Fail,
    Heartbeat,
    OnDependencyFailure,
    Options,
    Release,
    Report,
    Retry,
    Status,
    Task,
)
from storage.commands import Lease, Settle, Tick
from storage.lifecycle import decide
from storage.task import Outcome as Over
from tests.faults.checker import Line, Log
from tests.faults.ledger import KEY, Beat, Entry, Hold, Ledger, Outcome, Trouble
from tests.faults.plans import _MONOTONIC_AT, calm_s, check_plans, check_quiet

START = datetime(2026, 1, 1, tzinfo=UTC)
TICK = Tick(task_id="T")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Story:
    """A round in which all went well: T waits for D and for its time, and is claimed four times."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.tasks: dict[str, Task] = {}
        self.lines: dict[str, list[Line]] = {}
        self.steps: list[dict[str, Any]] = []
        self.gone: dict[str, dict[str, Any]] = {}
        self.links: list[tuple[str, str, str | None]] = []
        self.create("D", 0, keep_for_s=None)
        self.create("T", 1, start_at=at(5), depends_on=["D"], expires_at=at(100))
        self.report("D is done", Complete, 2, task_id="D")
        self.does(Settle(task_id="T", on="D", outcome=Over.SUCCESS), 2.1)
        self.does(TICK, 5.1)
        self.claim("w1", 6)
        self.beat("w1", 7)
        self.report("note", AddEvent, 8, token="token of w1", event_type=EventType.LOG, message="m")
        self.report("failure", Fail, 9, token="token of w1", error="disk full")
        self.does(TICK, 11.5)
        self.claim("w2", 12)
        self.does(TICK, 22.1)
        self.claim("w3", 23)
        self.release("w3", 24)
        self.claim("w4", 25)
        self.report("end", Complete, 26, token="token of w4")
        self.dies("T", 36.2)
        self.read_at = at(40)

    def create(self, task_id: str, seconds: float, **wishes: Any) -> Entry:
        retry = Retry(max_attempts=3, initial_s=2)
        options = Options(**{"queue": "q", "keep_for_s": 10, "retry": retry, **wishes})
        name = f"create {task_id}"
        entry = self.ledger.enter(name, Create(task_id=task_id, metadata={KEY: name}, options=options))
        self.does(entry.command, seconds, entry)
        return entry

    def report(self, name: str, kind: type[Report], seconds: float, **arguments: Any) -> None:
        arguments = {"task_id": "T", "metadata": {KEY: name}, **arguments}
        entry = self.ledger.enter(name, kind(**arguments))
        self.does(entry.command, seconds, entry)

    def does(self, command: Command, seconds: float, entry: Entry | None = None) -> Task:
        task_id, now = command.task_id, at(seconds)
        before = self.tasks.get(task_id)
        others = {name: task.status for name, task in self.tasks.items()}
        task = decide(before, command, now, others)
        assert task is not None and task.plan is not None
        self.tasks[task_id] = task
        if before is None or task.seq > before.seq:
            assert task.last_event is not None
            self.lines.setdefault(task_id, []).append(Line(task.last_event, None))
        plan = task.plan
        was = plan if before is None else before.plan
        assert was is not None
        if task_id == "T" and (was.ready, was.lease_expires_at) != (plan.ready, plan.lease_expires_at):
            times = [time for time in (plan.start_at, plan.next_attempt_at) if time is not None]
            self.steps.append(
                {
                    "seq": task.seq,
                    "at": now,
                    "ready": plan.ready,
                    "begins_at": max(times, default=None),
                    "lease_expires_at": plan.lease_expires_at,
                }
            )
        if entry is not None:
            entry.sent()
            entry.settle(Outcome.DONE, seq=task.seq)
            entry.first_sent_at, entry.settled_at = seconds, seconds + 0.1
        return task

    def claim(self, worker: str, seconds: float) -> None:
        token = f"token of {worker}"
        task = self.does(Lease(task_id="T", worker=worker, token=token, lease_s=10), seconds)
        assert task.plan is not None and task.plan.lease_expires_at is not None
        self.ledger.claims.add(worker)
        beat = Beat(task.seq, task.plan.lease_expires_at)
        self.ledger.holds.append(Hold(worker, "T", token, task.plan.attempt, [beat]))

    def beat(self, worker: str, seconds: float) -> None:
        task = self.does(Heartbeat(task_id="T", token=f"token of {worker}", lease_s=10), seconds)
        assert task.plan is not None and task.plan.lease_expires_at is not None
        self.hold(worker).beats.append(Beat(task.seq, task.plan.lease_expires_at))

    def release(self, worker: str, seconds: float) -> None:
        self.does(Release(task_id="T", token=f"token of {worker}"), seconds)
        self.hold(worker).released = Outcome.DONE

    def dies(self, task_id: str, seconds: float) -> None:
        self.gone[task_id] = {**_row(self.tasks.pop(task_id)), "died_at": at(seconds)}

    def hold(self, worker: str) -> Hold:
        return next(hold for hold in self.ledger.holds if hold.worker == worker)

    def place(self, words: str) -> int:
        return next(place for place, line in enumerate(self.lines["T"]) if words in line.event.message)

    def moved(self, words: str, seconds: float) -> None:
        """Have an event happen at another time."""
        place = self.place(words)
        line = self.lines["T"][place]
        self.lines["T"][place] = line._replace(event=line.event._replace(timestamp=at(seconds)))

    def said(self, words: str, other: str) -> None:
        """Have an event say something else."""
        place = self.place(words)
        line = self.lines["T"][place]
        message = line.event.message.replace(words, other)
        self.lines["T"][place] = line._replace(event=line.event._replace(message=message))

    def without(self, words: str) -> None:
        """Have an event not be there, with all numbers as they would be then."""
        del self.lines["T"][self.place(words)]
        for place, line in enumerate(self.lines["T"], start=1):
            self.lines["T"][place - 1] = line._replace(event=line.event._replace(seq=place))

    def violations(self) -> list[str]:
        rows: Mapping[str, Any] = {name: _row(task) for name, task in self.tasks.items()}
        log = Log({}, self.lines, rows, self.gone, {"T": self.steps}, self.links, self.read_at)
        return [*check_plans(self.ledger, log), *check_quiet(self.ledger, log)]

    def says(self, *words: str) -> None:
        violations = self.violations()
        for word in words:
            assert any(word in violation for violation in violations), (word, violations)


def _row(task: Task) -> dict[str, Any]:
    assert task.plan is not None
    return {**task._asdict(), **task.plan._asdict()}


@pytest.fixture
def story() -> Story:
    return Story()


def test_nothing_is_said_of_what_is_right(story: Story) -> None:
    assert story.violations() == []


def test_a_claim_of_what_somebody_has_is_found(story: Story) -> None:
    story.without('The lease of "w2" ran out')
    story.says("w3 claimed it while w2 had it")


def test_a_claim_of_what_is_claimed_already_is_found_by_what_workers_were_told(story: Story) -> None:
    hold = story.hold("w2")
    hold.beats.append(Beat(story.hold("w4").beats[0].seq, at(99)))
    story.says("w2 and w4 had it at the same time", "w2 was told at event 10 that it has it, and w4 did")


def test_a_token_that_two_were_given_is_found(story: Story) -> None:
    story.hold("w3").token = "token of w2"
    story.says("w2 and w3 were given the same token")


def test_a_claim_that_is_not_in_the_log_is_found(story: Story) -> None:
    story.said('"w2", attempt', '"w9", attempt')
    story.says('w2 was given it by event 6 as attempt 2, and that is \'Claimed by "w9"', "nobody claimed as w9")


def test_a_report_with_a_token_that_is_stale_is_found(story: Story) -> None:
    entry = story.ledger.entries["end"]
    entry.command = Complete(task_id="T", metadata={KEY: "end"}, token="token of w2")
    story.says("was reported by w2 when w4 had it")


def test_a_lease_that_runs_out_too_early_is_found(story: Story) -> None:
    story.moved('The lease of "w2" ran out', 21.5)
    story.says("the lease of w2 ran out 0.500 s before the time that it was told")


def test_a_lease_that_runs_out_too_late_is_found(story: Story) -> None:
    story.moved('The lease of "w2" ran out', 24.5)
    story.says("the lease of w2 ran out 2.5 s late")


def test_what_is_late_in_times_of_trouble_is_not_said(story: Story) -> None:
    story.moved('The lease of "w2" ran out', 24.5)
    story.ledger.troubles.append(Trouble(at(20), at(23)))
    assert not any("late" in violation for violation in story.violations())


def test_a_lease_that_ran_out_when_nobody_had_it_is_found(story: Story) -> None:
    story.without('Claimed by "w2"')
    story.says("the lease of w2 ran out when nobody had it")


def test_a_lease_that_is_said_to_be_lost_and_is_not_is_found(story: Story) -> None:
    story.hold("w4").lost = True
    story.says("w4 was told that its lease is lost, and nobody took it")


def test_what_nobody_gave_back_is_found(story: Story) -> None:
    story.hold("w3").released = None
    story.says("w3 gave it back by event 9 and had not asked for that")


def test_a_task_given_back_that_is_not_in_the_log_is_found(story: Story) -> None:
    story.without("Given back")
    story.says("w3 gave it back, and that is not in the log")


def test_an_attempt_too_many_is_found(story: Story) -> None:
    story.ledger.plans["T"] = Create(
        task_id="T", options=Options(queue="q", depends_on=["D"], retry=Retry(max_attempts=2), keep_for_s=10)
    )
    story.says("is of attempt 3 of 2")


def test_a_gap_between_attempts_is_found(story: Story) -> None:
    story.said("attempt 2 of", "attempt 3 of")
    story.says("event 6 is of attempt 3, after attempt 1")


def test_a_claim_before_the_start_is_found(story: Story) -> None:
    story.moved('Claimed by "w1"', 4)
    story.says("it was claimed 1.000 s before its start")


def test_a_claim_before_the_pause_is_over_is_found(story: Story) -> None:
    story.moved('Claimed by "w2"', 10)
    story.says("it was claimed 0.600 s before its pause was over")


@pytest.mark.parametrize("place", [0, 4])
def test_a_task_that_is_ready_before_its_time_is_found(story: Story, place: int) -> None:
    story.steps[place]["at"] -= timedelta(seconds=3)
    story.says("s before its time")


@pytest.mark.parametrize("place", [0, 4])
def test_a_task_that_is_ready_late_is_found(story: Story, place: int) -> None:
    story.steps[place]["at"] += timedelta(seconds=4)
    story.says("T: it was ready 4.")


def test_a_claim_before_what_it_waits_for_has_ended_is_found(story: Story) -> None:
    line = story.lines["D"][1]
    story.lines["D"][1] = line._replace(event=line.event._replace(timestamp=at(6.5)))
    story.says("T: it was claimed at 2026-01-01 00:00:06+00:00, when D was SUCCESS until")


def test_a_claim_after_what_it_waits_for_has_failed_is_found(story: Story) -> None:
    story.ledger.entries["D is done"].command = Fail(task_id="D", metadata={KEY: "D is done"}, error="e")
    create = story.ledger.plans["D"]
    story.ledger.plans["D"] = Create(task_id="D", metadata=create.metadata, options=Options(queue="q"))
    story.says("when D was FAILED", "says that D has succeeded, and it has failed", "is not what was asked for")


def test_a_cancellation_that_names_another_or_comes_unasked_is_found(story: Story) -> None:
    story.said('"D", on which', '"E", on which')
    story.says("event 2 is about E, on which it does not depend")


def test_a_dependent_that_is_told_late_is_found(story: Story) -> None:
    story.moved("on which this task depends", 4.5)
    story.says("T: it was told of the end of D 2.5 s late")


def test_a_dependent_that_waits_forever_is_found(story: Story) -> None:
    story.create("W", 30, depends_on=["D"], on_dependency_failure=OnDependencyFailure.IGNORE)
    waiting = story.tasks["W"]
    assert waiting.plan is not None
    story.tasks["W"] = waiting._replace(plan=waiting.plan._replace(blocked_by=("D",), ready=False))
    story.says("W: it is PENDING and waits forever for D, which has ended or is gone")


def test_a_message_that_nobody_brings_is_found(story: Story) -> None:
    story.create("W", 30, queue=None)
    story.links.append(("D", "W", "SUCCESS"))
    story.says("W: the message that D is SUCCESS was brought by nobody")


def test_a_link_to_what_is_over_is_found(story: Story) -> None:
    story.create("W", 30, queue=None)
    story.links.append(("D", "W", None))
    story.says("W: it is linked to D, which is over, and will not be told")


def test_a_timer_that_is_lost_is_found(story: Story) -> None:
    story.create("W", 30, start_at=at(35))
    story.says("W: a timer is lost: something was due 5.0 s ago")


def test_a_task_that_expires_too_early_or_late_is_found(story: Story) -> None:
    story.create("X", 30, expires_at=at(35))
    story.does(Tick(task_id="X"), 35.1)
    story.read_at = at(36)
    assert story.violations() == []
    line = story.lines["X"][1]
    for seconds, words in ((34.0, "X: event 2: it expired at"), (38.5, "X: it expired 3.5 s late")):
        story.lines["X"][1] = line._replace(event=line.event._replace(timestamp=at(seconds)))
        story.says(words)


def test_a_task_that_is_deleted_too_early_late_or_unasked_is_found(story: Story) -> None:
    gone = story.gone["T"]
    for seconds, words in ((35.5, "T: it was deleted at"), (39.0, "T: it was deleted 3.0 s late")):
        gone["died_at"] = at(seconds)
        story.says(words)
    story.dies("D", 38)
    story.says("D: it was deleted at 2026-01-01 00:00:38+00:00, and was to be at None")


def test_a_row_that_is_not_its_log_is_found(story: Story) -> None:
    for name, value in (("status", Status.FAILED), ("attempt", 2), ("progress", 5), ("worker", "w4")):
        story.gone["T"][name], kept = value, story.gone["T"][name]
        story.says(f"T: the row has {name} {value}, and its log says")
        story.gone["T"][name] = kept


def test_an_event_after_the_end_is_found(story: Story) -> None:
    lines = story.lines["T"]
    lines[-1], lines[-2] = lines[-2], lines[-1]
    story.says("comes after its end")


def test_a_report_that_was_made_twice_is_found(story: Story) -> None:
    story.lines["T"].insert(4, story.lines["T"][story.place("disk full")])
    story.says("fail failure (done after 1 attempts) is in the log 2 times")


def test_tasks_of_which_some_were_created_are_found(story: Story) -> None:
    names = ("A", "B")
    batch = [
        story.ledger.enter(f"create {name}", Create(task_id=name, metadata={KEY: f"create {name}"}, options=Options()))
        for name in names
    ]
    story.ledger.batches.append(batch)
    for entry in batch:
        entry.sent()
        entry.settle(Outcome.UNKNOWN)
    assert story.violations() == []
    story.does(batch[0].command, 30)
    story.does(Tick(task_id="A"), 30)
    story.says("1 others were to be created all or none, and 1 were")


@pytest.mark.parametrize("code", ["TASK_NOT_FOUND", "BAD_USER_INPUT"])
def test_a_refusal_because_of_a_task_that_is_there_is_found(story: Story, code: str) -> None:
    entry = story.create("W", 30, queue=None, depends_on=["D"])
    entry.code = code
    story.says("did not find it, and it is there" if code == "TASK_NOT_FOUND" else "all that it depends on are there")


def test_time_without_trouble_is_counted() -> None:
    troubles = [Trouble(at(2), at(4)), Trouble(at(3), at(6)), Trouble(at(8), at(9))]
    for begins, ends, calm in ((0, 1, 1), (0, 3, 2), (2, 6, 0), (1, 10, 4), (5, 8.5, 2), (20, 21, 1)):
        assert calm_s(at(begins), at(ends), troubles) == calm


@pytest.mark.parametrize(("queue", "found"), [("q", True), ("other", False)])
def test_a_worker_that_is_not_woken_is_found(story: Story, queue: str, found: bool) -> None:
    story.ledger.belled.add(queue)
    # Given back at 24, and claimed again at 25.
    story.moved('Claimed by "w4"', 28)
    assert any("event 10: nobody was told for 4.0 s that it was ready" in one for one in story.violations()) is found


def test_a_worker_that_is_woken_in_time_is_not_said(story: Story) -> None:
    story.ledger.belled.add("q")
    story.moved('Claimed by "w4"', 26.9)
    assert not any("nobody was told" in violation for violation in story.violations())


def test_a_task_that_nobody_is_woken_for_is_found(story: Story) -> None:
    story.ledger.belled.add("q")
    story.create("R", 30)
    story.says("R: event 2: nobody was told for 10.0 s that it was ready")


def test_what_was_written_by_the_transaction_that_deleted_the_task_is_in_no_log(story: Story) -> None:
    story.create("K", 30, keep_for_s=0)
    story.dies("K", 31)
    story.says("K: it was deleted at 2026-01-01 00:00:31+00:00, and was to be at None")
    entry = story.ledger.enter("end of K", Complete(task_id="K", metadata={KEY: "end of K"}))
    entry.sent()
    entry.settle(Outcome.DONE, seq=2)
    entry.settled_at = at(31).timestamp() - _MONOTONIC_AT
    assert story.violations() == []
    entry.settled_at -= 0.1
    story.says("end of K (done after 1 attempts) was acknowledged with number 2 and is not in the log")
    entry.settled_at += 0.1
    entry.seq = 1
    story.says("end of K (done after 1 attempts) was acknowledged with number 1 and is not in the log")
