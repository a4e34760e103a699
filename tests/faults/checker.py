"""What was promised, checked against what is in the tables and what clients did and saw.

The functions are pure but for ``read``. A violation is a sentence that names the task, the number and the client.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from storage import Create, Event, EventType, Json, Refusal, Status, Task
from storage.lifecycle import decide
from tests.faults.ledger import KEY, Entry, Ledger, Outcome, Seen, View
from tests.postgres import session

_TASKS: Final = "SELECT * FROM tasks WHERE task_id = ANY($1)"
_EVENTS: Final = (
    "SELECT task_id, seq, event_type, message, progress, metadata::text AS metadata, timestamp, actor,"
    " idempotency_key FROM (SELECT * FROM task_events UNION ALL SELECT * FROM archived_events) AS events"
    " WHERE task_id = ANY($1) ORDER BY task_id, seq"
)
# Rows that were inserted for a creation that was then refused never were tasks.
_GONE: Final = (
    "SELECT * FROM archived_tasks AS gone WHERE task_id = ANY($1)"
    " AND EXISTS (SELECT FROM archived_events AS events WHERE events.task_id = gone.task_id)"
)
_STEPS: Final = "SELECT * FROM archived_steps WHERE task_id = ANY($1) ORDER BY number"
_LINKS: Final = "SELECT task_id, dependent_id, outcome FROM task_dependencies WHERE dependent_id = ANY($1)"
# What a fold of the log must give; metadata is not changed by reports.
_FOLDED: Final = tuple(name for name in Task._fields if name not in ("metadata", "last_event", "created_by"))

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class Line(NamedTuple):
    """An event as the table has it, with its key."""

    event: Event
    key: str | None

    @property
    def report(self) -> str | None:
        """The name of the report that it is."""
        if self.key is not None:
            return self.key
        value = self.event.metadata.value() if self.event.metadata is not None else None
        return value.get(KEY) if isinstance(value, dict) else None


@dataclass(frozen=True)
class Log:
    """What the tables hold, and what the archive beside them does."""

    tasks: Mapping[str, Task]
    # Of tasks that are deleted, too.
    lines: Mapping[str, Sequence[Line]]
    # Tasks that are there, and that are not, with all their columns.
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gone: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Of plans, in order.
    steps: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    # The task that is waited for, the one that waits, and what it is to be told.
    links: Sequence[tuple[str, str, str | None]] = ()
    read_at: datetime = _NEVER


async def read(url: str, task_ids: Sequence[str]) -> Log:
    """Read tasks with their events, past the program."""
    async with session(url) as connection, connection.transaction(isolation="repeatable_read"):
        read_at = await connection.fetchval("SELECT clock_timestamp()")
        rows = await connection.fetch(_TASKS, task_ids)
        events = await connection.fetch(_EVENTS, task_ids)
        gone = await connection.fetch(_GONE, task_ids)
        stepped = await connection.fetch(_STEPS, task_ids)
        links = await connection.fetch(_LINKS, task_ids)
    lines: dict[str, list[Line]] = defaultdict(list)
    for row in events:
        lines[row["task_id"]].append(_line(row))
    steps: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in stepped:
        steps[row["task_id"]].append(row)
    there = {row["task_id"]: row for row in rows}
    return Log(
        {task_id: _task(row) for task_id, row in there.items()},
        lines,
        there,
        {row["task_id"]: row for row in gone if row["task_id"] not in there},
        steps,
        [tuple(row) for row in links],
        read_at,
    )


def check(ledger: Ledger, log: Log) -> Iterator[str]:
    """Everything that a round must have kept."""
    entries: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in ledger.entries.values():
        entries[entry.command.task_id][entry.name] = entry
    for task_id in ledger.task_ids:
        yield from check_task(task_id, log.tasks.get(task_id), log.lines.get(task_id, ()), entries[task_id])
    for view in ledger.views:
        yield from check_view(view, [line.event for line in log.lines.get(view.task_id, ())])


def check_task(task_id: str, task: Task | None, lines: Sequence[Line], entries: Mapping[str, Entry]) -> Iterator[str]:
    """One task: its numbers, its reports, their order, and its state."""
    yield from numbers(task_id, None if task is None else task.seq, lines)
    yield from exactly_once(task_id, lines, entries)
    yield from in_order(task_id, lines, entries)
    yield from _fold(task_id, task, lines, entries)


def check_view(view: View, events: Sequence[Event]) -> Iterator[str]:
    """One view of a task: every event after its snapshot, once, in order, as the log has it, up to the end."""
    if view.after is None:
        yield f"{view} never saw a snapshot."
        return
    wanted = {event.seq: Seen(event.seq, event.event_type, event.message, event.progress) for event in events}
    seen: set[int] = set()
    for event in view.events:
        if event.seq in seen:
            yield f"{view} saw event {event.seq} twice."
        seen.add(event.seq)
        if event.seq not in wanted:
            yield f"{view} saw event {event.seq} ({event.message!r}), which is not in the log."
        elif event != wanted[event.seq]:
            yield f"{view} saw {event}, and the log has {wanted[event.seq]}."
    if [event.seq for event in view.events] != sorted(event.seq for event in view.events):
        yield f"{view} saw events out of order."
    missed = [seq for seq in wanted if seq > view.after and seq not in seen]
    if missed:
        yield (
            f"{view} missed {_list(missed)} of {max(wanted)}, its snapshot was at {view.after}, "
            f"and it saw up to {view.last}."
        )


def numbers(task_id: str, seq: int | None, lines: Sequence[Line]) -> Iterator[str]:
    """The numbers of its events are 1, 2, 3 … up to that of the task, which is None where there is no task."""
    for place, line in enumerate(lines, start=1):
        if line.event.seq != place:
            what = "is there twice" if place > 1 and line.event.seq == lines[place - 2].event.seq else "follows a gap"
            yield f"{task_id}: event {line.event.seq} {what}; expected number {place}."
            break
    if seq is None and lines:
        yield f"{task_id}: there are {len(lines)} events and no task."
    elif seq is not None and (not lines or lines[-1].event.seq != seq):
        latest = lines[-1].event.seq if lines else 0
        yield f"{task_id}: the task says that its latest event is {seq}, and the log's is {latest}."


def exactly_once(task_id: str, lines: Sequence[Line], entries: Mapping[str, Entry]) -> Iterator[str]:
    """What was acknowledged is there once, what was refused is not, and there is nothing else."""
    found: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        name = line.report
        if name is None or name not in entries:
            yield f"{task_id}: nobody reported event {line.event.seq} ({line.event.message!r}, key {line.key})."
        else:
            found[name].append(line.event.seq)
    for name, entry in entries.items():
        seqs = found[name]
        if len(seqs) > 1:
            yield f"{task_id}: {entry} is in the log {len(seqs)} times, as events {_list(seqs)}."
        elif entry.outcome is Outcome.DONE and not seqs:
            yield f"{task_id}: {entry} was acknowledged with number {entry.seq} and is not in the log."
        elif entry.outcome is Outcome.REFUSED and seqs:
            yield f"{task_id}: {entry} was refused and is in the log as event {seqs[0]}."
        elif seqs and entry.attempts == 0:
            yield f"{task_id}: {entry} was never sent and is in the log as event {seqs[0]}."
        elif entry.seq is not None and (entry.seq < seqs[0] or (entry.attempts == 1 and _other(entry, seqs[0]))):
            yield f"{task_id}: {entry} was acknowledged with number {entry.seq} and is event {seqs[0]}."


def _other(entry: Entry, seq: int) -> bool:
    """Whether an answer has another number than the event. One that waits for what is over is told so at once."""
    return entry.seq != seq and not (isinstance(entry.command, Create) and entry.command.depends_on)


def in_order(task_id: str, lines: Sequence[Line], entries: Mapping[str, Entry]) -> Iterator[str]:
    """What was acknowledged before something else was sent comes before it in the log."""
    latest: Entry | None = None
    for line in lines:
        entry = entries.get(line.report or "")
        if entry is None:
            continue
        if latest is not None and entry.outcome is Outcome.DONE and entry.settled_at < latest.first_sent_at:
            yield (
                f"{task_id}: event {line.event.seq} ({entry}) comes after {latest}, "
                f"which was sent {latest.first_sent_at - entry.settled_at:.3f} s after its acknowledgement."
            )
        if latest is None or entry.first_sent_at > latest.first_sent_at:
            latest = entry


def _fold(task_id: str, task: Task | None, lines: Sequence[Line], entries: Mapping[str, Entry]) -> Iterator[str]:
    """The row is what the rules make of the reports in the order of the log."""
    state: Task | None = None
    for line in lines:
        entry = entries.get(line.report or "")
        if entry is None:
            return
        event = line.event
        try:
            state = decide(state, entry.command, event.timestamp)
        except Refusal as refusal:
            yield f"{task_id}: the rules refuse event {event.seq} ({entry}) where it is: {refusal}"
            return
        assert state is not None and state.last_event is not None
        # Who reported it is not in the ledger: all did with one key.
        if state.last_event._replace(metadata=None, actor=None) != event._replace(metadata=None, actor=None):
            yield f"{task_id}: event {event.seq} is {event}, and {entry} makes {state.last_event}."
            return
        if _value(state.last_event.metadata) != _value(event.metadata):
            yield f"{task_id}: event {event.seq} has other metadata than {entry}: {event.metadata}."
    if task is None or state is None:
        return
    for name in _FOLDED:
        if getattr(task, name) != getattr(state, name):
            yield f"{task_id}: the row has {name} {getattr(task, name)}, and its log says {getattr(state, name)}."


def _line(row: Any) -> Line:
    event = Event(
        row["task_id"],
        row["seq"],
        EventType(row["event_type"]),
        row["message"],
        row["progress"],
        None if row["metadata"] is None else Json(row["metadata"]),
        row["timestamp"],
        row["actor"],
    )
    return Line(event, row["idempotency_key"])


def _task(row: Any) -> Task:
    values = {name: row[name] for name in Task._fields if name not in ("plan", "last_event")}
    metadata = values.pop("metadata")
    return Task(
        **{**values, "status": Status(values["status"])},
        metadata=None if metadata is None else Json(metadata),
        last_event=None,
    )


def _value(metadata: Json | None) -> Any:
    return None if metadata is None else metadata.value()


def _list(numbers: Iterable[int]) -> str:
    listed = [str(number) for number in numbers]
    return ", ".join(listed[:5]) + (f" … ({len(listed)} in all)" if len(listed) > 5 else "")
