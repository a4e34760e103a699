"""What was promised of tasks with options, checked against their logs, what workers were told, and the clock.

Who had a task when is read from the log alone: each claim is made under a name of its own, and its event says it. The
rules are stated here once more rather than asked of ``lifecycle``, so that a mistake there is found too.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from storage import Cancel, Command, Complete, Create, Delete, Fail, OnDependencyFailure, Options, Report
from storage.plan import JITTER
from tests.faults.checker import Line, Log, exactly_once, in_order, numbers
from tests.faults.ledger import Entry, Hold, Ledger, Outcome, Trouble

# A second is promised. The other is for a machine that runs two servers, PostgreSQL and all their clients.
LATE_S: Final = 2.0
# A worker that waits for its bell has what became ready so soon, or its server says so only when it counts again.
WOKEN_S: Final = 3.0
# What is due may wait for so long after something was broken: whoever looks for it has to be replaced.
TAKEOVER_S: Final = 5.0

_CLAIMED: Final = re.compile(r'Claimed by "(.+)", attempt (\d+) of (\d+)')
_RELEASED: Final = re.compile(r'Given back by "(.+)"')
_LAPSED: Final = re.compile(r'The lease of "(.+)" ran out in attempt (\d+) of (\d+)')
_EXPIRED: Final = re.compile(r"Expired: it had not ended by .+")
_SETTLED: Final = re.compile(
    r'(Task canceled: )?"(.+)", on which this task depends, (has succeeded|has failed|was canceled|was deleted)'
)
_WORDS: Final = {"SUCCESS": "has succeeded", "FAILED": "has failed", "CANCELED": "was canceled"}
_FINAL: Final = frozenset(_WORDS)
_ENDS: Final = (Complete, Fail, Cancel)
# When the clock of entries began.
_MONOTONIC_AT: Final = time.time() - time.monotonic()


def check_plans(ledger: Ledger, log: Log) -> Iterator[str]:
    """Everything that a round must have kept about tasks with options."""
    entries: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in ledger.entries.values():
        entries[entry.command.task_id][entry.name] = entry
    holds: dict[str, list[Hold]] = defaultdict(list)
    for hold in ledger.holds:
        holds[hold.task_id].append(hold)
    lives = {
        task_id: _Life(task_id, create, ledger, log, entries[task_id], holds[task_id])
        for task_id, create in ledger.plans.items()
    }
    for life in lives.values():
        yield from life.violations()
    for life in lives.values():
        yield from _dependencies(life, lives, ledger)
    for batch in ledger.batches:
        yield from _all_or_none(batch, log)


def check_quiet(ledger: Ledger, log: Log) -> Iterator[str]:
    """What must be so when nobody does anything any more, and all that waits had time to be done."""
    for task_id in ledger.plans:
        row = log.rows.get(task_id)
        if row is None:
            continue
        if row["status"] not in _FINAL:
            over = [on for on in row["blocked_by"] if on not in log.rows or log.rows[on]["status"] in _FINAL]
            waits = f" for {', '.join(over)}, which has ended or is gone" if over else ""
            yield f"{task_id}: it is {row['status']} and waits forever{waits}."
        if row["due_at"] is not None and (late := (log.read_at - row["due_at"]).total_seconds()) > LATE_S:
            yield f"{task_id}: a timer is lost: something was due {late:.1f} s ago."
    for on, waits, outcome in log.links:
        if outcome is not None:
            yield f"{waits}: the message that {on} is {outcome} was brought by nobody."
        elif on not in log.rows or log.rows[on]["status"] in _FINAL:
            yield f"{waits}: it is linked to {on}, which is over, and will not be told."


@dataclass
class _Life:
    """One task from its creation to its end, told by its log."""

    task_id: str
    create: Create
    ledger: Ledger
    log: Log
    entries: Mapping[str, Entry]
    holds: Sequence[Hold]
    status: str = "PENDING"
    attempt: int = 0
    progress: int = 0
    holder: str | None = None
    # Not claimed before, because of its start or a pause between attempts.
    begins_at: datetime | None = None
    ended_at: datetime | None = None
    # By the number of an event: who had the task after it. At its end, who had it then.
    held_after: dict[int, str | None] = field(default_factory=dict)
    # Under whose claim each event was made that takes a task from somebody without ending it.
    ousted: dict[str, int] = field(default_factory=dict)
    # When it was claimed, and what was said of those that it waited for.
    claimed_at: list[datetime] = field(default_factory=list)
    settled: list[tuple[Line, str, str, bool]] = field(default_factory=list)

    @property
    def options(self) -> Options:
        """What was asked for."""
        assert self.create.options is not None
        return self.create.options

    @property
    def lines(self) -> Sequence[Line]:
        """Its log, also when it is deleted."""
        return self.log.lines.get(self.task_id, ())

    @property
    def died_at(self) -> datetime | None:
        """When it was deleted, if so."""
        gone = self.log.gone.get(self.task_id)
        return None if gone is None else gone["died_at"]

    def violations(self) -> Iterator[str]:
        """What is wrong with it, looked at alone."""
        for words in self._violations():
            yield f"{self.task_id}: {words}"

    def _violations(self) -> Iterator[str]:
        lines, task_id = self.lines, self.task_id
        row = self.log.rows.get(task_id) or self.log.gone.get(task_id)
        reports = [line for line in lines if not _own(line)]
        written = {
            name: entry
            for name, entry in self.entries.items()
            if not isinstance(entry.command, Delete) and not self._deleted_with(entry)
        }
        prefix = f"{task_id}: "
        for words in (
            *numbers(task_id, None if row is None else row["seq"], lines),
            *exactly_once(task_id, reports, written),
            *in_order(task_id, reports, self.entries),
        ):
            yield words.removeprefix(prefix)
        by_token = {hold.token: hold for hold in self.holds}
        for line in lines:
            yield from self._step(line, by_token)
        if row is not None and lines:
            yield from self._row(row)
        yield from self._held()
        yield from self._refusals()
        if lines:
            yield from self._readied()
            yield from self._woken()
        if self.died_at is not None:
            yield from self._deleted(row)

    def _step(self, line: Line, by_token: Mapping[str, Hold]) -> Iterator[str]:
        """What an event makes of it, and whether it may be there."""
        event, command = line.event, self._command(line)
        seq, when, message = event.seq, event.timestamp, event.message
        if self.status in _FINAL:
            yield f"event {seq} ({message!r}) comes after its end."
        had = self.holder
        if command is None and (claim := _CLAIMED.fullmatch(message)):
            yield from self._claimed(seq, when, claim[1], int(claim[2]))
        elif command is None and (given := _RELEASED.fullmatch(message)):
            if given[1] != had:
                yield f"event {seq}: {given[1]} gave back what {had or 'nobody'} had."
            self.attempt -= 1
            self._again(seq)
        elif command is None and (lapse := _LAPSED.fullmatch(message)):
            yield from self._lapsed(seq, when, lapse[1])
        elif command is None and _EXPIRED.fullmatch(message):
            if self.options.expires_at is None or when < self.options.expires_at:
                yield f"event {seq}: it expired at {when}, and was to at {self.options.expires_at}."
            else:
                yield from self._late("it expired", max(self.options.expires_at, self.lines[0].event.timestamp), when)
            self._end("FAILED", when)
        elif command is None and (settled := _SETTLED.fullmatch(message)):
            self.settled.append((line, settled[2], settled[3], settled[1] is not None))
            if settled[1]:
                self._end("CANCELED", when)
        elif isinstance(command, Report):
            if command.token is not None and by_token[command.token].worker != had:
                yield (
                    f"event {seq} ({message!r}) was reported by {by_token[command.token].worker} when "
                    f"{had or 'nobody'} had it."
                )
            self._reported(command, line)
        if event.progress is not None:
            self.progress = event.progress
        if self.attempt > self.options.retry.max_attempts:
            yield f"event {seq} is of attempt {self.attempt} of {self.options.retry.max_attempts}."
        self.held_after[seq] = had if self.status in _FINAL else self.holder

    def _deleted_with(self, entry: Entry) -> bool:
        """Whether it was written by the transaction that deleted the task, so that no table ever had it.

        It was acknowledged after the deletion, then; what was acknowledged before must have been there.
        """
        gone = self.log.gone.get(self.task_id)
        if gone is None or entry.seq is None or entry.seq <= gone["seq"]:
            return False
        return bool(entry.settled_at + _MONOTONIC_AT >= gone["died_at"].timestamp())

    def _command(self, line: Line) -> Command | None:
        entry = self.entries.get(line.report or "")
        return None if entry is None else entry.command

    def _claimed(self, seq: int, when: datetime, worker: str, number: int) -> Iterator[str]:
        if self.holder is not None:
            yield f"event {seq}: {worker} claimed it while {self.holder} had it."
        elif self.status != "PENDING":
            yield f"event {seq}: {worker} claimed it when it was {self.status}."
        if worker not in self.ledger.claims:
            yield f"event {seq}: nobody claimed as {worker}."
        if number != self.attempt + 1:
            yield f"event {seq} is of attempt {number}, after attempt {self.attempt}."
        for why, begins_at in (("its start", self.options.start_at), ("its pause was over", self.begins_at)):
            if begins_at is not None and when < begins_at:
                yield f"event {seq}: it was claimed {(begins_at - when).total_seconds():.3f} s before {why}."
        self.claimed_at.append(when)
        self.attempt, self.status, self.holder, self.begins_at = number, "IN_PROGRESS", worker, None

    def _lapsed(self, seq: int, when: datetime, worker: str) -> Iterator[str]:
        if worker != self.holder:
            yield f"event {seq}: the lease of {worker} ran out when {self.holder or 'nobody'} had it."
        beats = [beat for hold in self.holds if hold.worker == worker for beat in hold.beats]
        told = [beat.expires_at for beat in beats if beat.seq < seq]
        # By the clock of the database, too, which no server can have wrong.
        done_at = min([when, *(step["at"] for step in self._steps() if step["seq"] == seq)])
        if told and done_at < max(told):
            early = (max(told) - done_at).total_seconds()
            yield f"event {seq}: the lease of {worker} ran out {early:.3f} s before the time that it was told."
        kept = [step["lease_expires_at"] for step in self._steps() if step["seq"] < seq and step["lease_expires_at"]]
        if kept:
            yield from self._late(f"the lease of {worker} ran out", kept[-1], when)
        if self.attempt < self.options.retry.max_attempts:
            self._again(seq)
        else:
            self._end("FAILED", when)

    def _reported(self, command: Command, line: Line) -> None:
        match command:
            case Complete() | Cancel():
                self._tried(isinstance(command, Complete))
                self._end("SUCCESS" if isinstance(command, Complete) else "CANCELED", line.event.timestamp)
            case Fail():
                self._tried(True)
                if self.attempt >= self.options.retry.max_attempts or not command.retry:
                    self._end("FAILED", line.event.timestamp)
                    return
                retry = self.options.retry
                pause = min(retry.max_s, (1 - JITTER) * retry.initial_s * retry.factor ** (self.attempt - 1))
                self._again(line.event.seq)
                self.begins_at = line.event.timestamp + timedelta(seconds=pause)
            case _ if line.event.progress is not None:
                self._tried(True)
                self.status = "IN_PROGRESS"

    def _tried(self, tried: bool) -> None:
        """Whoever reports on what nobody has claimed has made an attempt."""
        self.attempt += tried and self.status == "PENDING"

    def _again(self, seq: int) -> None:
        if self.holder is not None:
            self.ousted[self.holder] = seq
        self.status, self.holder, self.begins_at = "PENDING", None, None

    def _end(self, status: str, when: datetime) -> None:
        self.status, self.holder, self.ended_at = status, None, when

    def _row(self, row: Mapping[str, Any]) -> Iterator[str]:
        said = {"status": self.status, "attempt": self.attempt, "progress": self.progress, "worker": self.holder}
        for name, value in said.items():
            if row[name] != value:
                yield f"the row has {name} {row[name]}, and its log says {value}."
        keep_for_s = self.options.keep_for_s
        delete_at = self.ended_at and keep_for_s is not None and self.ended_at + timedelta(seconds=keep_for_s)
        if (row["delete_at"] or None) != (delete_at or None):
            yield f"it is to be deleted at {row['delete_at']}, and should be at {delete_at or None}."

    def _held(self) -> Iterator[str]:
        """What workers were told agrees with the log, and with what others were told."""
        for hold in self.holds:
            first = hold.beats[0].seq
            told = next((line.event.message for line in self.lines if line.event.seq == first), None)
            wanted = f'Claimed by "{hold.worker}", attempt {hold.attempt} of {self.options.retry.max_attempts}'
            if told != wanted:
                yield f"{hold.worker} was given it by event {first} as attempt {hold.attempt}, and that is {told!r}."
            gone = self.log.gone.get(self.task_id)
            for beat in hold.beats:
                if gone is not None and beat.seq > gone["seq"]:
                    # It was told by the transaction that deleted the task.
                    continue
                if self.held_after.get(beat.seq) != hold.worker:
                    holder = self.held_after.get(beat.seq) or "nobody"
                    yield f"{hold.worker} was told at event {beat.seq} that it has it, and {holder} did."
            if hold.lost and hold.worker not in self.ousted:
                yield f"{hold.worker} was told that its lease is lost, and nobody took it."
            given = [line for line in self.lines if line.event.message == f'Given back by "{hold.worker}"']
            if given and hold.released in (None, Outcome.REFUSED):
                yield f"{hold.worker} gave it back by event {given[0].event.seq} and had not asked for that."
            if not given and hold.released is Outcome.DONE:
                yield f"{hold.worker} gave it back, and that is not in the log."
        for one in self.holds:
            for other in self.holds:
                # By what workers were told alone.
                if one.beats[0].seq < other.beats[0].seq and any(b.seq >= other.beats[0].seq for b in one.beats):
                    yield f"{one.worker} and {other.worker} had it at the same time."
                if one is not other and one.token == other.token:
                    yield f"{one.worker} and {other.worker} were given the same token."

    def _refusals(self) -> Iterator[str]:
        there = self.task_id in self.log.rows
        for entry in self.entries.values():
            if entry.code == "TASK_NOT_FOUND" and there:
                yield f"{entry} did not find it, and it is there."
            if entry.code == "BAD_USER_INPUT":
                assert isinstance(entry.command, Create)
                if all(on in self.log.rows for on in entry.command.depends_on):
                    yield f"{entry} was refused, and all that it depends on are there."

    def _steps(self) -> Sequence[Mapping[str, Any]]:
        return self.log.steps.get(self.task_id, ())

    def _readied(self) -> Iterator[str]:
        """It became ready when its time had come, not before and not late."""
        times = {line.event.seq: line.event.timestamp for line in self.lines}
        before = False
        for step in self._steps():
            if step["ready"] and not before:
                begins_at = step["begins_at"]
                if begins_at is not None and step["at"] < begins_at:
                    yield f"it was ready {(begins_at - step['at']).total_seconds():.3f} s before its time."
                # What made it wait until then may have been something else.
                since = times.get(step["seq"], step["at"])
                yield from self._late("it was ready", max(since, begins_at or since), step["at"])
            before = step["ready"]

    def _woken(self) -> Iterator[str]:
        """Who waits for its queue was told as soon as it was ready."""
        if self.options.queue not in self.ledger.belled:
            return
        claims = [
            (line.event.seq, line.event.timestamp) for line in self.lines if _CLAIMED.fullmatch(line.event.message)
        ]
        row = self.log.rows.get(self.task_id)
        if row is not None and row["ready"]:
            claims.append((row["seq"] + 1, self.log.read_at))
        for seq, when in claims:
            steps = (step["at"] for step in self._steps() if step["ready"] and step["seq"] < seq)
            late = calm_s(max(steps, default=self.lines[0].event.timestamp), when, self.ledger.troubles)
            if late > WOKEN_S:
                yield f"event {seq}: nobody was told for {late:.1f} s that it was ready."

    def _deleted(self, row: Mapping[str, Any] | None) -> Iterator[str]:
        assert self.died_at is not None and row is not None
        if any(isinstance(entry.command, Delete) and entry.attempts for entry in self.entries.values()):
            return
        ended = any(isinstance(one.command, _ENDS) and self._deleted_with(one) for one in self.entries.values())
        if ended and self.options.keep_for_s == 0:
            return
        delete_at = row["delete_at"]
        if delete_at is None or self.died_at < delete_at:
            yield f"it was deleted at {self.died_at}, and was to be at {delete_at}."
        else:
            yield from self._late("it was deleted", delete_at, self.died_at)

    def _late(self, what: str, due: datetime, done: datetime) -> Iterator[str]:
        late = calm_s(due, done, self.ledger.troubles)
        if late > LATE_S:
            yield f"{what} {late:.1f} s late, at {done}."


def calm_s(begins_at: datetime, ends_at: datetime, troubles: Sequence[Trouble]) -> float:
    """How much of a time was without any trouble, in seconds. Troubles are in order."""
    calm, since = 0.0, begins_at
    for trouble in troubles:
        if trouble.ends_at <= since or trouble.begins_at >= ends_at:
            continue
        calm += max(0.0, (trouble.begins_at - since).total_seconds())
        since = max(since, trouble.ends_at)
    return calm + max(0.0, (ends_at - since).total_seconds())


def _dependencies(life: _Life, lives: Mapping[str, _Life], ledger: Ledger) -> Iterator[str]:
    """It was claimed when all on which it depends had ended as it wished, and told of each as it was."""
    ignores = life.options.on_dependency_failure is OnDependencyFailure.IGNORE
    for claimed_at in life.claimed_at:
        for on in life.create.depends_on:
            other = lives[on]
            over_at = other.ended_at or other.died_at
            well = other.status == "SUCCESS" or ignores
            if over_at is None or over_at > claimed_at or not well:
                yield f"{life.task_id}: it was claimed at {claimed_at}, when {on} was {_state(other, claimed_at)}."
    told: set[str] = set()
    for line, on, words, canceled in life.settled:
        event = line.event
        if on not in life.create.depends_on or on in told:
            yield f"{life.task_id}: event {event.seq} is about {on}, on which it does not depend, or not any more."
            continue
        told.add(on)
        other = lives[on]
        if words != (wanted := _WORDS.get(other.status, "was deleted" if other.died_at else "nothing yet")):
            yield f"{life.task_id}: event {event.seq} says that {on} {words}, and it {wanted}."
        if canceled != (other.status != "SUCCESS" and not ignores):
            yield f"{life.task_id}: event {event.seq} ({event.message!r}) is not what was asked for."
        if (over_at := other.ended_at or other.died_at) is not None:
            late = calm_s(max(over_at, life.lines[0].event.timestamp), event.timestamp, ledger.troubles)
            if late > LATE_S:
                yield f"{life.task_id}: it was told of the end of {on} {late:.1f} s late."


def _state(life: _Life, when: datetime) -> str:
    if life.ended_at is not None and life.ended_at <= when:
        return life.status
    return f"{life.status} until {life.ended_at}" if life.ended_at else life.status


def _all_or_none(batch: Sequence[Entry], log: Log) -> Iterator[str]:
    made = [entry for entry in batch if any(line.report == entry.name for line in _lines(log, entry))]
    if made and len(made) < len(batch):
        yield f"{batch[0]} and {len(batch) - 1} others were to be created all or none, and {len(made)} were."


def _lines(log: Log, entry: Entry) -> Sequence[Line]:
    return log.lines.get(entry.command.task_id, ())


def _own(line: Line) -> bool:
    """Whether the event was made by the program itself, or by a command that is no report."""
    patterns = (_CLAIMED, _RELEASED, _LAPSED, _EXPIRED, _SETTLED)
    return line.report is None and any(pattern.fullmatch(line.event.message) for pattern in patterns)
