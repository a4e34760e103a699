"""The rules, against the table of the design, written out here once more."""

from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import (
    AddEvent,
    Cancel,
    Complete,
    Create,
    Delete,
    Event,
    EventType,
    Fail,
    Json,
    Refusal,
    Report,
    Status,
    Task,
    TaskAlreadyExists,
    TaskFinished,
    TaskNotFound,
    TooLarge,
    UpdateProgress,
    UpdateType,
)
from storage.lifecycle import decide
from storage.limits import SEQ_MAX
from storage.task import FINAL, Update, update_of

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
LATER: Final = NOW + timedelta(minutes=1)
META: Final = {"step": [1, 2]}
META_JSON: Final = Json('{"step":[1,2]}')


@dataclass(frozen=True)
class Row:
    """A row of the table: a report, and what it does."""

    report: Report
    # What it makes of a task that is PENDING, and of one that is IN_PROGRESS.
    from_pending: Status
    from_in_progress: Status
    # The progress that it leaves; None: as it was.
    leaves_progress: int | None
    event: tuple[EventType, str, int | None]
    # "The task can no longer …"
    wanted: str


TABLE: Final = {
    row.report.operation + (" with progress" if getattr(row.report, "progress", None) == 50 else ""): row
    for row in (
        Row(
            AddEvent(task_id="T", event_type=EventType.ERROR, message="disk slow", metadata=META),
            Status.PENDING,
            Status.IN_PROGRESS,
            None,
            (EventType.ERROR, "disk slow", None),
            "take events",
        ),
        Row(
            AddEvent(task_id="T", event_type=EventType.SUCCESS, message="half", progress=50, metadata=META),
            Status.IN_PROGRESS,
            Status.IN_PROGRESS,
            50,
            (EventType.SUCCESS, "half", 50),
            "report progress",
        ),
        Row(
            UpdateProgress(task_id="T", progress=7),
            Status.IN_PROGRESS,
            Status.IN_PROGRESS,
            7,
            (EventType.PROGRESS, "Progress updated to 7%", 7),
            "report progress",
        ),
        Row(
            Complete(task_id="T", metadata=META),
            Status.SUCCESS,
            Status.SUCCESS,
            100,
            (EventType.SUCCESS, "Task completed successfully", 100),
            "be completed",
        ),
        Row(
            Fail(task_id="T", error="disk full", metadata=META),
            Status.FAILED,
            Status.FAILED,
            None,
            (EventType.ERROR, "disk full", None),
            "be failed",
        ),
        Row(
            Cancel(task_id="T", metadata=META),
            Status.CANCELED,
            Status.CANCELED,
            None,
            (EventType.ERROR, "Task canceled", None),
            "be canceled",
        ),
    )
}
# The time that tells when a status was entered.
TIME_OF: Final = {
    Status.IN_PROGRESS: "started_at",
    Status.SUCCESS: "completed_at",
    Status.FAILED: "failed_at",
    Status.CANCELED: "canceled_at",
}

every_report = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
every_status = pytest.mark.parametrize("status", Status)
every_final_status = pytest.mark.parametrize("status", sorted(FINAL))


def born(status: Status, progress: int = 20) -> Task:
    task = decide(None, Create(task_id="T", status=status, progress=progress, metadata=META, created_by="ci"), NOW)
    assert task is not None
    return task


@every_status
def test_a_task_may_be_born_in_any_status_with_the_time_that_goes_with_it(status: Status) -> None:
    times: dict[str, Any] = dict.fromkeys(TIME_OF.values())
    if status in TIME_OF:
        times[TIME_OF[status]] = NOW
    assert born(status) == Task(
        task_id="T",
        status=status,
        progress=100 if status is Status.SUCCESS else 20,
        metadata=META_JSON,
        seq=1,
        created_by="ci",
        created_at=NOW,
        updated_at=NOW,
        **times,
        last_event=Event("T", 1, EventType.LOG, "Task created", None, META_JSON, NOW, "ci"),
    )


@every_report
@pytest.mark.parametrize("status", [Status.PENDING, Status.IN_PROGRESS])
def test_an_open_task_takes_every_report_as_the_table_says(status: Status, row: Row) -> None:
    task = born(status)
    becomes = row.from_pending if status is Status.PENDING else row.from_in_progress
    times: dict[str, Any] = {} if becomes is status else {TIME_OF[becomes]: LATER}
    assert decide(task, row.report, LATER) == task._replace(
        status=becomes,
        progress=task.progress if row.leaves_progress is None else row.leaves_progress,
        seq=2,
        updated_at=LATER,
        last_event=Event("T", 2, *row.event, row.report.metadata_json, LATER),
        **times,
    )


@every_report
@every_final_status
def test_a_finished_task_refuses_every_report_and_stays_as_it_was(status: Status, row: Row) -> None:
    task = born(status)
    before = deepcopy(task)
    with pytest.raises(TaskFinished) as refused:
        decide(task, row.report, LATER)
    assert task == before
    assert refused.value.code == "TASK_FINISHED"
    assert refused.value.extensions == {"status": status}
    assert str(refused.value) == f'Task "T" is {status} and can no longer {row.wanted}.'


@every_status
def test_a_task_cannot_be_created_again_and_stays_as_it_was(status: Status) -> None:
    task = born(status)
    before = deepcopy(task)
    with pytest.raises(TaskAlreadyExists, match=r'Task "T" exists already\.$'):
        decide(task, Create(task_id="T", status=Status.PENDING), LATER)
    assert task == before


@every_status
def test_a_task_can_be_deleted_in_any_status(status: Status) -> None:
    assert decide(born(status), Delete(task_id="T"), LATER) is None


@pytest.mark.parametrize("command", [*(row.report for row in TABLE.values()), Delete(task_id="T")])
def test_nothing_but_a_creation_can_be_asked_of_a_task_that_is_not_there(command: Report | Delete) -> None:
    with pytest.raises(TaskNotFound, match=r'There is no task "T"\.$'):
        decide(None, command, NOW)


@pytest.mark.parametrize("value", [born(Status.PENDING), born(Status.PENDING).last_event, TABLE["fail"].report])
def test_tasks_events_and_commands_are_frozen(value: object) -> None:
    with pytest.raises(AttributeError):
        value.task_id = "other"  # type: ignore[attr-defined]


def test_progress_may_fall_because_a_retry_starts_over() -> None:
    task = decide(born(Status.IN_PROGRESS, progress=80), UpdateProgress(task_id="T", progress=0), LATER)
    assert task is not None
    assert (task.progress, task.started_at) == (0, NOW)


@every_report
def test_times_do_not_run_backwards_when_the_clock_does(row: Row) -> None:
    task = born(Status.PENDING)
    after = decide(task, row.report, NOW - timedelta(days=1))
    assert after is not None
    assert after.last_event is not None
    assert after.updated_at == after.last_event.timestamp == NOW
    assert {getattr(after, name) for name in TIME_OF.values()} <= {None, NOW}


def test_a_task_takes_events_up_to_the_last_number_and_no_more() -> None:
    task = born(Status.IN_PROGRESS)._replace(seq=SEQ_MAX - 1)
    full = decide(task, TABLE["fail"].report, LATER)
    assert full is not None
    assert full.seq == SEQ_MAX
    with pytest.raises(TooLarge, match=f"has {SEQ_MAX} events"):
        decide(task._replace(seq=SEQ_MAX), TABLE["fail"].report, LATER)


@pytest.mark.parametrize(
    ("reports", "named"),
    [
        (["addEvent"], UpdateType.EVENT),
        (["addEvent with progress"], UpdateType.EVENT),
        (["updateProgress"], UpdateType.PROGRESS),
        (["updateProgress", "addEvent"], UpdateType.EVENT),
        (["addEvent", "updateProgress"], UpdateType.PROGRESS),
        (["updateProgress", "complete"], UpdateType.COMPLETE),
        (["addEvent", "fail"], UpdateType.FAIL),
        (["cancel"], UpdateType.CANCEL),
    ],
)
def test_an_update_is_named_after_what_happened_last(reports: list[str], named: UpdateType) -> None:
    task, events = born(Status.PENDING), []
    for name in reports:
        task = decide(task, TABLE[name].report, LATER)  # type: ignore[assignment]
        assert task.last_event is not None
        events.append(task.last_event)
    assert update_of(task, tuple(events)) == Update(named, task, tuple(events))


a_progress = st.integers(0, 100)
a_message = st.sampled_from(["Task created", "Task completed successfully", "Task canceled", "m"])
a_command = st.one_of(
    st.builds(Create, task_id=st.just("T"), status=st.sampled_from(Status), progress=a_progress),
    st.builds(Delete, task_id=st.just("T")),
    st.builds(
        AddEvent,
        task_id=st.just("T"),
        event_type=st.sampled_from(EventType),
        message=a_message,
        progress=st.none() | a_progress,
    ),
    st.builds(UpdateProgress, task_id=st.just("T"), progress=a_progress),
    st.builds(Fail, task_id=st.just("T"), error=a_message),
    *(st.builds(kind, task_id=st.just("T"), metadata=st.none() | st.just(META)) for kind in (Complete, Cancel)),
)
a_step = st.tuples(a_command, st.integers(-60, 60).map(lambda seconds: timedelta(seconds=seconds)))


@given(st.lists(a_step, max_size=30))
def test_whatever_is_asked_a_task_is_the_fold_of_its_log(steps: list[tuple[Any, timedelta]]) -> None:
    task: Task | None = None
    story: list[tuple[Any, Event]] = []
    now = NOW
    for command, step in steps:
        now += step
        before = deepcopy(task)
        try:
            after = decide(task, command, now)
        except Refusal:
            assert task == before
            continue
        task = after
        if task is None:
            story.clear()
        else:
            assert task.last_event is not None
            story.append((command, task.last_event))
            assert task == told_by(story)


def told_by(story: list[tuple[Any, Event]]) -> Task:
    """The task that a log tells of, from the commands that were taken and their events, without the rules."""
    (creation, first), *reports = story
    assert [event.seq for _, event in story] == list(range(1, len(story) + 1))
    times = [event.timestamp for _, event in story]
    assert times == sorted(times)
    first_time_of = {
        kind: next((event.timestamp for command, event in reports if isinstance(command, kind)), None)
        for kind in (Complete, Fail, Cancel)
    }
    started = next(
        (event.timestamp for command, event in reports if getattr(command, "progress", None) is not None),
        None,
    )
    if creation.status is Status.IN_PROGRESS:
        started = first.timestamp
    status, last = creation.status, story[-1][0]
    if started is not None:
        status = Status.IN_PROGRESS
    for kind, final in ((Complete, Status.SUCCESS), (Fail, Status.FAILED), (Cancel, Status.CANCELED)):
        if isinstance(last, kind):
            status = final
    progress = 100 if creation.status is Status.SUCCESS else creation.progress
    for _, event in reports:
        progress = progress if event.progress is None else event.progress
    return Task(
        task_id="T",
        status=status,
        progress=progress,
        metadata=creation.metadata_json,
        seq=len(story),
        created_by=creation.created_by,
        created_at=first.timestamp,
        updated_at=times[-1],
        started_at=started,
        completed_at=first.timestamp if creation.status is Status.SUCCESS else first_time_of[Complete],
        failed_at=first.timestamp if creation.status is Status.FAILED else first_time_of[Fail],
        canceled_at=first.timestamp if creation.status is Status.CANCELED else first_time_of[Cancel],
        last_event=story[-1][1],
    )
