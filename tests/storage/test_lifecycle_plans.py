"""The rules of tasks with a plan: claims, attempts, times, and those that wait for others."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from storage import (
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    EventType,
    Fail,
    Heartbeat,
    LeaseLost,
    OnDependencyFailure,
    Options,
    Plan,
    Refusal,
    Release,
    Report,
    Retry,
    Status,
    Task,
    TaskFinished,
    TaskNotFound,
    UpdateProgress,
)
from storage.commands import Lease, Settle, Tick
from storage.lifecycle import decide
from storage.plan import pause_s
from storage.task import Outcome

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def born(status: Status = Status.PENDING, *, others: Mapping[str, Status] | None = None, **options: Any) -> Task:
    create = Create(task_id="T", status=status, options=Options(**options))
    return made(None, create, 0, others or {})


def made(task: Task | None, command: Command, seconds: float = 0, others: Mapping[str, Status] | None = None) -> Task:
    after = decide(task, command, at(seconds), others or {})
    assert after is not None
    return after


def plan(task: Task) -> Plan:
    assert task.plan is not None
    return task.plan


def told(task: Task) -> str:
    assert task.last_event is not None
    return task.last_event.message


def lease(token: str = "t", lease_s: int = 60) -> Lease:
    return Lease(task_id="T", worker="w", token=token, lease_s=lease_s)


def claimed(attempts: int = 3, **options: Any) -> Task:
    return made(born(queue="q", retry=Retry(max_attempts=attempts), **options), lease())


TICK: Final = Tick(task_id="T")
PROGRESS: Final = UpdateProgress(task_id="T", progress=50)
FAIL: Final = Fail(task_id="T", error="disk full")


def test_a_task_without_options_has_no_plan_and_time_does_nothing_to_it() -> None:
    task = made(None, Create(task_id="T"))
    assert task.plan is None
    assert decide(task, TICK, at(10**9)) is task


def test_a_task_in_a_queue_is_ready_at_once_and_one_in_none_never() -> None:
    assert plan(born(queue="q")).ready
    assert not plan(born()).ready
    assert plan(born()).due_at is None


def test_a_task_that_may_not_start_yet_becomes_ready_by_a_tick_that_is_no_event() -> None:
    task = born(queue="q", start_at=at(60))
    assert (plan(task).ready, plan(task).due_at) == (False, at(60))
    assert decide(task, TICK, at(59.9)) is task
    ready = made(task, TICK, 60)
    assert (plan(ready).ready, plan(ready).due_at, ready.seq) == (True, None, 1)


def test_a_start_in_the_past_means_now() -> None:
    task = born(queue="q", start_at=at(-60))
    assert (plan(task).ready, plan(task).start_at) == (True, NOW)


def test_a_claim_begins_an_attempt_under_a_lease() -> None:
    task = made(born(queue="q", retry=Retry(max_attempts=3)), lease(lease_s=30), 5)
    assert (task.status, task.started_at, task.seq) == (Status.IN_PROGRESS, at(5), 2)
    assert (plan(task).attempt, plan(task).worker, plan(task).lease_token) == (1, "w", "t")
    assert plan(task).lease_expires_at == plan(task).due_at == at(35)
    assert not plan(task).ready
    assert told(task) == 'Claimed by "w", attempt 1 of 3'


def test_the_first_progress_without_a_claim_begins_an_attempt_and_the_next_do_not() -> None:
    task = made(born(queue="q"), PROGRESS)
    assert (plan(task).attempt, plan(task).ready, plan(task).claimed) == (1, False, False)
    again = made(task, PROGRESS, 1)
    assert again.plan is task.plan


@pytest.mark.parametrize("report", [PROGRESS, AddEvent(task_id="T", event_type=EventType.LOG, message="m")])
def test_reports_of_a_worker_leave_the_plan_as_it_is(report: Report) -> None:
    task = claimed()
    assert made(task, report, 1).plan is task.plan


REPORTS: Final[list[Callable[[str | None], Report]]] = [
    lambda token: AddEvent(task_id="T", event_type=EventType.LOG, message="m", token=token),
    lambda token: UpdateProgress(task_id="T", progress=1, token=token),
    lambda token: Complete(task_id="T", token=token),
    lambda token: Fail(task_id="T", error="e", token=token),
    lambda token: Cancel(task_id="T", token=token),
]
WITH_TOKEN: Final[list[Callable[[str], Command]]] = [
    *REPORTS,
    lambda token: Heartbeat(task_id="T", token=token, lease_s=5),
    lambda token: Release(task_id="T", token=token),
]


@pytest.mark.parametrize("command", WITH_TOKEN)
def test_what_shows_a_token_is_taken_with_that_of_the_lease_and_no_other(command: Callable[[str], Command]) -> None:
    made(claimed(), command("t"))
    after_another = made(made(claimed(), TICK, 60), lease("of another"), 61)
    for task in (
        claimed()._replace(plan=None),
        born(queue="q"),
        made(claimed(), lease_over := Release(task_id="T", token="t")),
        made(claimed(), TICK, 60),
        after_another,
        made(claimed(), FAIL, 1),
    ):
        with pytest.raises(LeaseLost, match=r'Task "T" has no lease with this token'):
            decide(task, command("t"), at(100))
    assert lease_over.token == "t"
    with pytest.raises(LeaseLost):
        decide(claimed(), command("other"), NOW)


@pytest.mark.parametrize("report", REPORTS)
def test_without_a_token_a_report_is_taken_whoever_has_the_lease(report: Callable[[None], Report]) -> None:
    made(claimed(), report(None))


@pytest.mark.parametrize("report", REPORTS)
def test_a_worker_whose_task_has_ended_is_told_so(report: Callable[[str], Report]) -> None:
    canceled = made(claimed(), Cancel(task_id="T"))
    assert not plan(canceled).claimed
    with pytest.raises(TaskFinished):
        decide(canceled, report("t"), NOW)
    with pytest.raises(TaskFinished, match="can no longer be given back"):
        decide(canceled, Release(task_id="T", token="t"), NOW)
    # A heartbeat brings it the status.
    assert decide(canceled, Heartbeat(task_id="T", token="t", lease_s=9), NOW) is canceled


def test_a_heartbeat_keeps_the_lease_from_now_and_is_no_event() -> None:
    task = made(claimed(), Heartbeat(task_id="T", token="t", lease_s=90), 50)
    assert (task.seq, task.updated_at) == (2, NOW)
    # The tick is where it was, and moves when it finds that there is more time.
    assert (plan(task).lease_expires_at, plan(task).due_at) == (at(140), at(60))
    looked_at = decide(task, TICK, at(60))
    assert looked_at is not None
    assert (looked_at.seq, plan(looked_at).due_at) == (2, at(140))
    # Late, and not too late: nobody has taken the task.
    assert plan(made(task, Heartbeat(task_id="T", token="t", lease_s=1), 200)).lease_expires_at == at(201)


def test_a_heartbeat_takes_nothing_back_of_a_lease() -> None:
    task = claimed()
    less = Heartbeat(task_id="T", token="t", lease_s=9)
    assert decide(task, less, at(51)) is task
    assert plan(made(task, less, 52)).lease_expires_at == at(61)
    # One that waited while a later one was decided.
    kept = made(task, Heartbeat(task_id="T", token="t", lease_s=60), 30)
    assert decide(kept, Heartbeat(task_id="T", token="t", lease_s=60), at(29)) is kept


def test_a_release_gives_back_without_counting_the_attempt() -> None:
    task = made(made(claimed(attempts=1), PROGRESS), Release(task_id="T", token="t", actor="me"), 9)
    assert (task.status, task.progress, task.started_at) == (Status.PENDING, 0, NOW)
    assert (plan(task).attempt, plan(task).ready, plan(task).worker, plan(task).due_at) == (0, True, None, None)
    assert task.last_event is not None
    assert (told(task), task.last_event.actor) == ('Given back by "w"', "me")


def test_a_lease_that_runs_out_makes_the_task_claimable_again_and_at_last_fails_it() -> None:
    task = claimed(attempts=2)
    assert decide(task, TICK, at(59.9)) is not None
    assert decide(task, TICK, at(59.9)) is task
    lapsed = made(task, TICK, 60)
    assert (lapsed.status, plan(lapsed).ready, plan(lapsed).attempt) == (Status.PENDING, True, 1)
    assert told(lapsed) == 'The lease of "w" ran out in attempt 1 of 2'
    failed = made(made(lapsed, lease("t2"), 70), TICK, 130)
    assert (failed.status, failed.failed_at, plan(failed).attempt) == (Status.FAILED, at(130), 2)
    assert told(failed) == 'The lease of "w" ran out in attempt 2 of 2'


def test_a_failure_for_good_is_final_whatever_attempts_are_left() -> None:
    failed = made(claimed(attempts=9), Fail(task_id="T", error="no such film", retry=False), 5)
    assert (failed.status, failed.failed_at, plan(failed).next_attempt_at) == (Status.FAILED, at(5), None)
    unclaimed = made(born(queue="q", retry=Retry(max_attempts=9)), Fail(task_id="T", error="no such film", retry=False))
    assert (unclaimed.status, plan(unclaimed).attempt) == (Status.FAILED, 1)


def test_a_failure_with_attempts_left_is_tried_again_after_a_pause() -> None:
    retry = Retry(max_attempts=3, initial_s=10, max_s=1000, factor=3)
    task = made(made(born(queue="q", retry=retry), lease()), PROGRESS)
    failed = made(task, Fail(task_id="T", error="disk full", metadata=[1]), 5)
    assert (failed.status, failed.progress, failed.started_at, failed.failed_at) == (Status.PENDING, 0, NOW, None)
    assert failed.last_event is not None
    assert (failed.last_event.event_type, told(failed), failed.last_event.metadata) == (
        EventType.ERROR,
        "disk full",
        "[1]",
    )
    next_attempt_at = plan(failed).next_attempt_at
    assert next_attempt_at is not None
    assert at(5 + 8) <= next_attempt_at <= at(5 + 12)
    assert (plan(failed).ready, plan(failed).due_at, plan(failed).claimed) == (False, next_attempt_at, False)
    ready = made(failed, TICK, 20)
    assert plan(ready).ready
    again = made(made(ready, lease("t2"), 21), FAIL, 22)
    assert plan(again).next_attempt_at is not None
    assert at(22 + 24) <= plan(again).next_attempt_at <= at(22 + 36)  # type: ignore[operator]
    last = made(made(made(again, TICK, 100), lease("t3"), 100), FAIL, 101)
    assert (last.status, plan(last).attempt, plan(last).next_attempt_at) == (Status.FAILED, 3, None)


def test_a_failure_from_pending_is_an_attempt() -> None:
    once = made(born(queue="q", retry=Retry(max_attempts=2, initial_s=0)), FAIL)
    assert (once.status, plan(once).attempt, plan(once).ready) == (Status.PENDING, 1, True)
    assert made(once, FAIL).status is Status.FAILED


@pytest.mark.parametrize(("attempt", "least", "most"), [(1, 8, 12), (2, 16, 24), (4, 64, 70), (100, 70, 70)])
def test_pauses_grow_to_their_bound(attempt: int, least: float, most: float) -> None:
    retry = Retry(max_attempts=100, initial_s=10, max_s=70, factor=2)
    tried = plan(born(retry=retry))._replace(attempt=attempt)
    pauses = [pause_s(tried, chance / 10) for chance in range(11)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == pytest.approx((least, most))


def test_those_that_failed_together_do_not_come_back_together() -> None:
    retry = Retry(max_attempts=2, initial_s=1000, max_s=10_000)
    created = [made(None, Create(task_id=f"T{n}", options=Options(retry=retry))) for n in range(100)]
    failed = [made(task, Fail(task_id=task.task_id, error="")) for task in created]
    assert len({plan(task).next_attempt_at for task in failed}) == 100


def test_an_unfinished_task_fails_when_it_expires_whoever_has_it() -> None:
    for task in (born(queue="q", expires_at=at(30)), claimed(expires_at=at(30))):
        assert plan(task).due_at == at(30)
        assert decide(task, TICK, at(29)) is task
        expired = made(task, TICK, 30)
        assert (expired.status, plan(expired).claimed, plan(expired).due_at) == (Status.FAILED, False, None)
        assert told(expired) == "Expired: it had not ended by 2026-01-01T00:00:30+00:00"
    done = made(born(expires_at=at(30)), Complete(task_id="T"))
    assert decide(done, TICK, at(31)) is done


def test_a_finished_task_is_deleted_when_it_has_been_kept_long_enough() -> None:
    done = made(born(keep_for_s=60), Complete(task_id="T"), 5)
    assert plan(done).delete_at == plan(done).due_at == at(65)
    assert decide(done, TICK, at(64)) is done
    # What the task says goes before what the server says.
    assert decide(done, Tick(task_id="T", keep_finished_s=1), at(64)) is done
    assert decide(done, TICK, at(65)) is None


@pytest.mark.parametrize("options", [None, Options(queue="q")])
@pytest.mark.parametrize("end", [Complete(task_id="T"), FAIL, Cancel(task_id="T")])
def test_the_server_says_how_long_others_are_kept(options: Options | None, end: Report) -> None:
    task = made(None, Create(task_id="T", options=options))
    tick = Tick(task_id="T", keep_finished_s=60)
    assert decide(task, tick, at(1000)) is task
    done = made(task, end, 5)
    assert decide(done, tick, at(64.9)) is done
    assert decide(done, TICK, at(10**9)) is done
    assert decide(done, tick, at(65)) is None


def test_a_task_waits_for_all_on_which_it_depends() -> None:
    task = born(queue="q", depends_on=["a", "b", "c"], others={"b": Status.SUCCESS, "c": Status.IN_PROGRESS})
    assert (plan(task).depends_on, plan(task).blocked_by, plan(task).ready) == (("a", "b", "c"), ("a", "c"), False)
    one_left = made(task, Settle(task_id="T", on="a", outcome=Outcome.SUCCESS))
    assert (plan(one_left).blocked_by, plan(one_left).ready) == (("c",), False)
    assert told(one_left) == '"a", on which this task depends, has succeeded'
    assert decide(one_left, Settle(task_id="T", on="a", outcome=Outcome.FAILED), NOW) is one_left
    assert plan(made(one_left, Settle(task_id="T", on="c", outcome=Outcome.SUCCESS))).ready


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELED, Outcome.DELETED])
def test_a_task_whose_dependency_did_not_succeed_is_canceled_or_goes_on_as_it_wished(outcome: Outcome) -> None:
    settle = Settle(task_id="T", on="a", outcome=outcome)
    canceled = made(born(queue="q", depends_on=["a"]), settle)
    assert (canceled.status, canceled.canceled_at) == (Status.CANCELED, NOW)
    assert '"a"' in told(canceled)
    ignoring = OnDependencyFailure.IGNORE
    goes_on = made(born(queue="q", depends_on=["a"], on_dependency_failure=ignoring), settle)
    assert (goes_on.status, plan(goes_on).ready, plan(goes_on).blocked_by) == (Status.PENDING, True, ())


def test_with_ignore_those_that_ended_before_are_not_waited_for() -> None:
    others = {"a": Status.FAILED, "b": Status.PENDING}
    task = born(depends_on=["a", "b"], on_dependency_failure=OnDependencyFailure.IGNORE, others=others)
    assert plan(task).blocked_by == ("b",)


@pytest.mark.parametrize("command", [TICK, lease(), Settle(task_id="T", on="a", outcome=Outcome.SUCCESS)])
def test_nothing_is_done_to_a_task_that_is_not_there(command: Command) -> None:
    with pytest.raises(TaskNotFound):
        decide(None, command, NOW)


@pytest.mark.parametrize(("status", "attempt"), [(Status.PENDING, 0), (Status.IN_PROGRESS, 1), (Status.FAILED, 1)])
def test_a_task_that_is_born_further_on_has_been_tried(status: Status, attempt: int) -> None:
    assert plan(born(status, queue="q")).attempt == attempt


# ---------------------------------------------------------------- whatever is asked, no forbidden state

# Lives are made up by chance that hypothesis seeds, not piece by piece: what it makes up by itself is mostly so simple
# that hardly anything is ever claimed.


def some_options(random: Random) -> Options:
    begins, has_s = random.choice([None, random.randint(0, 60)]), random.choice([None, None, random.randint(0, 500)])
    return Options(
        start_at=None if begins is None else at(begins),
        expires_at=None if has_s is None else at((begins or 0) + has_s),
        queue=random.choice(["q", "q", "q", None]),
        depends_on=random.choice([[], [], ["a"], ["a", "b"]]),
        on_dependency_failure=random.choice(list(OnDependencyFailure)),
        retry=Retry(
            max_attempts=random.choice([1, 2, 3, 5]),
            initial_s=random.randint(0, 60),
            max_s=random.randint(0, 100),
            factor=random.uniform(1, 5),
        ),
        keep_for_s=random.choice([None, random.randint(0, 100)]),
    )


def some_command(random: Random, task: Task) -> Command:
    """What somebody may ask; what makes a life go on comes more often than what ends it."""
    own = plan(task).lease_token or "none"
    token = random.choice([own, own, own, "another"])
    report: dict[str, Any] = {"task_id": "T", "token": random.choice([None, token, token])}
    settle = Settle(task_id="T", on=random.choice("abz"), outcome=random.choice([*Outcome, *[Outcome.SUCCESS] * 8]))
    commands: dict[Command, float] = {
        lease(random.choice(["t0", "t1", "t2"]), random.randint(1, 60)): 6 if plan(task).ready else 0,
        Tick(task_id="T", keep_finished_s=random.choice([None, random.randint(0, 100)])): 4,
        Heartbeat(task_id="T", token=token, lease_s=random.randint(1, 60)): 3,
        UpdateProgress(progress=random.randint(0, 100), **report): 2,
        AddEvent(event_type=EventType.LOG, message="m", **report): 1,
        Fail(error="e", retry=random.random() < 0.9, **report): 1,
        Release(task_id="T", token=token): 0.5,
        settle: 3,
        Complete(**report): 0.2,
        Cancel(**report): 0.2,
        Delete(task_id="T"): 0.1,
    }
    return random.choices(list(commands), list(commands.values()))[0]


@settings(max_examples=600, deadline=None)
@given(st.randoms(use_true_random=True))
def test_whatever_is_asked_no_forbidden_state_is_reached(random: Random) -> None:
    now, status = NOW, random.choice([*[Status.PENDING] * 20, *Status])
    others = {name: random.choice(list(Status)) for name in "ab" if random.random() < 0.3}
    task: Task | None = decide(None, Create(task_id="T", status=status, options=some_options(random)), now, others)
    check(task, None, now)
    for _ in range(60):
        assert task is not None
        now += timedelta(seconds=random.choice([-5, 0, 1, 5, 30]))
        before, command = task, some_command(random, task)
        note(f"{now}: {command}")
        try:
            task = decide(before, command, now)
        except Refusal:
            continue
        check(task, before, now)
        check_step(before, command, task, now)
        if task is None:
            return


def check_step(before: Task, command: Command, task: Task | None, now: datetime) -> None:
    """What a command may make of a task that there was."""
    was = plan(before)
    if task is None:
        # Deleted by somebody's word, or by time, which has come.
        ticked = isinstance(command, Tick) and before.status.final
        assert isinstance(command, Delete) or (ticked and (was.delete_at is None or was.delete_at <= now))
        return
    it = plan(task)
    if isinstance(command, Heartbeat | Release | Report) and command.token is not None:
        assert command.token == was.lease_token
    if isinstance(command, Heartbeat) and was.claimed:
        assert it.lease_expires_at is not None
        assert it.lease_expires_at >= now + timedelta(seconds=command.lease_s)
    if isinstance(command, Lease):
        assert (it.lease_token, it.lease_expires_at) == (command.token, now + timedelta(seconds=command.lease_s))
    # An attempt is counted when it begins, and only one that is given back is not.
    begins = before.status is Status.PENDING and (
        isinstance(command, Lease | Complete | Fail) or task.status is Status.IN_PROGRESS
    )
    assert it.attempt == was.attempt + begins - isinstance(command, Release)
    # Whoever is thrown out of a lease has been asked to, or time has.
    if was.claimed and not it.claimed and isinstance(command, Tick):
        assert was.lease_expires_at is not None
        assert min(was.lease_expires_at, was.expires_at or was.lease_expires_at) <= now
    if isinstance(command, Tick) and task.status is Status.FAILED and before.status is not Status.FAILED:
        expired = was.expires_at is not None and was.expires_at <= now
        assert expired or (was.claimed and was.attempt == was.max_attempts)
    if isinstance(command, Tick) and it.ready and not was.ready and not was.claimed:
        assert (it.start_at or now) <= now
        assert (was.next_attempt_at or now) <= now
    if isinstance(command, Fail):
        tried_again = command.retry and it.attempt < it.max_attempts
        assert task.status is (Status.PENDING if tried_again else Status.FAILED)
        if tried_again:
            assert it.next_attempt_at is not None
            pause = (it.next_attempt_at - task.updated_at).total_seconds()
            least = 0.8 * it.retry_initial_s * it.retry_factor ** (it.attempt - 1)
            assert min(it.retry_max_s, least) <= pause + 1e-6
            assert pause <= it.retry_max_s + 1e-6
    if isinstance(command, Settle) and not before.status.final and command.on in was.blocked_by:
        assert command.on not in it.blocked_by or task.status.final
        fails = command.outcome is not Outcome.SUCCESS and it.on_dependency_failure is OnDependencyFailure.CANCEL
        assert (task.status is Status.CANCELED) == fails


FINAL_TIMES: Final = {
    Status.SUCCESS: "completed_at",
    Status.FAILED: "failed_at",
    Status.CANCELED: "canceled_at",
}


def check(task: Task | None, before: Task | None, now: datetime) -> None:
    """All that is always so."""
    if task is None:
        return
    it = plan(task)
    waits_until = [time for time in (it.start_at, it.next_attempt_at) if time is not None]
    open_ = not task.status.final
    # Ready means that it can be claimed; whether its times have passed was seen when it was changed last, or is due.
    claimable = task.status is Status.PENDING and it.queue is not None and not it.blocked_by
    assert not it.ready or claimable
    if claimable and not it.ready:
        assert it.due_at is not None
        assert it.due_at <= max(waits_until)
    # A lease is whole or not there; it is somebody's who works.
    assert (it.worker is None) == (it.lease_expires_at is None)
    if it.claimed:
        assert task.status is Status.IN_PROGRESS
        assert it.lease_token is not None
    if task.status is Status.PENDING:
        assert it.lease_token is None
        assert it.attempt < it.max_attempts
        assert task.progress == 0 or it.attempt == 0
    assert 0 <= it.attempt <= it.max_attempts
    if task.status is Status.IN_PROGRESS:
        assert it.attempt >= 1
        assert task.started_at is not None
        assert it.next_attempt_at is None
    for status, name in FINAL_TIMES.items():
        assert (task.status is status) == (getattr(task, name) is not None)
    if task.status.final:
        assert not it.ready
        assert not it.claimed
        assert (it.delete_at is None) == (it.keep_for_s is None)
    else:
        assert it.delete_at is None
    # Time changes something at the earliest of all its moments, and at no other; but a lease that was kept is looked at
    # when it would have run out.
    moments = [
        it.lease_expires_at,
        it.expires_at if open_ else None,
        it.delete_at,
        max(waits_until) if claimable and not it.ready else None,
    ]
    due_at = min((moment for moment in moments if moment is not None), default=None)
    assert it.due_at == due_at or (it.claimed and it.due_at is not None and due_at is not None and it.due_at < due_at)
    assert set(it.blocked_by) <= set(it.depends_on)
    # What is due is done by ticks, one after the other, until nothing is due.
    after: Task | None = task
    for _ in range(5):
        if after is not None and plan(after).due_at is not None and plan(after).due_at <= now:  # type: ignore[operator]
            ticked = decide(after, TICK, now)
            assert ticked is not after
            after = ticked
    assert after is None or plan(after).due_at is None or plan(after).due_at > now  # type: ignore[operator]
    if before is None:
        return
    # No final status is left; what was wished for never changes; the log goes on by one, or there is no event.
    assert open_ or not before.status.final or task.status is before.status
    assert not before.status.final or task.status is before.status
    fixed = Plan._fields.index("blocked_by")
    assert it[:fixed] == plan(before)[:fixed]
    assert set(it.blocked_by) <= set(plan(before).blocked_by)
    assert task.seq - before.seq in (0, 1)
    assert task.updated_at >= before.updated_at
    if it.claimed and it.lease_token == plan(before).lease_token:
        # What a worker was told that it has is never taken back.
        assert it.lease_expires_at >= plan(before).lease_expires_at  # type: ignore[operator]
    if task.seq == before.seq:
        assert task._replace(plan=None, last_event=None) == before._replace(plan=None, last_event=None)
    elif task.last_event is not None:
        assert (task.last_event.seq, task.last_event.timestamp) == (task.seq, task.updated_at)
