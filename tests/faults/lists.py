"""What was promised of live lists, checked against every state in which a task ever was, and against the clock.

Which tasks a filter means is stated here once more rather than asked of ``storage``, so that a mistake there is found
too. The functions are pure but for those that read.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from tests.faults.ledger import Ledger, ListView, State, Told, Trouble
from tests.postgres import session

# A change is told when nothing is broken: at once, says the documentation. This is for a machine that is busy.
TOLD_S: Final = 3.0
_STATE: Final = ", ".join(State._fields)
# Of what one transaction did to a task, others see only the last.
_CHANGES: Final = f"""
    SELECT at, died, {_STATE} FROM (
        SELECT DISTINCT ON (task_id, created_at, transaction) * FROM archived_states WHERE created_at >= $1
        ORDER BY task_id, created_at, transaction, number DESC
    ) AS states ORDER BY number
"""
_ROWS: Final = f"SELECT {_STATE} FROM tasks WHERE created_at >= $1"


class Change(NamedTuple):
    """A state that a task came to have, or had when it was deleted."""

    at: datetime
    died: bool
    state: State


@dataclass(frozen=True)
class History:
    """All that tasks ever were, by task and in order."""

    changes: Mapping[str, Sequence[Change]]


async def read_history(url: str, since: datetime) -> History:
    """Read what the archive has of tasks that were created since then."""
    async with session(url) as connection:
        rows = await connection.fetch(_CHANGES, since)
    changes: dict[str, list[Change]] = defaultdict(list)
    for row in rows:
        changes[row["task_id"]].append(Change(row["at"], row["died"], _state(row)))
    return History(changes)


async def read_states(url: str, since: datetime) -> dict[str, State]:
    """The tasks that are there, of those that were created since then."""
    async with session(url) as connection:
        return {row["task_id"]: _state(row) for row in await connection.fetch(_ROWS, since)}


def means(wish: Mapping[str, Any], state: State) -> bool:
    """Whether a filter means a task."""
    return (state.status in wish["status"] if "status" in wish else True) and fits(wish, state)


def fits(wish: Mapping[str, Any], state: State) -> bool:
    """The same as far as it never changes."""
    return (
        wish.get("queue", state.queue) == state.queue
        and set(wish.get("tags", ())) <= set(state.tags)
        and state.task_id.startswith(wish.get("taskIdPrefix", ""))
    )


def differences(view: ListView, there: Mapping[str, State], since: datetime) -> Iterator[str]:
    """What a list shows that is not so, or does not show that is."""
    if view.read_at is None:
        yield f"{view} has not read its list."
        return
    shown = {
        task_id: told.state
        for task_id, told in view.latest.items()
        if told.state.created_at >= since and not told.deleted and means(view.wish, told.state)
    }
    for task_id, state in shown.items():
        if task_id not in there:
            yield f"{view} shows {state}, which is gone."
        elif state != there[task_id]:
            yield f"{view} shows {state}, which is {there[task_id]}."
    for task_id, state in there.items():
        if task_id not in shown and means(view.wish, state):
            yield f"{view} does not show {state}."


def check_lists(ledger: Ledger, history: History, since: datetime) -> Iterator[str]:
    """Everything that a round must have kept about lists, but for what they show at its end."""
    states = {
        (change.state.task_id, *change.state.place): change.state
        for changes in history.changes.values()
        for change in changes
    }
    ends = {
        (change.state.task_id, change.state.created_at)
        for changes in history.changes.values()
        for change in changes
        if change.died
    }
    calm = [change for change in _seen(history) if _is_calm(change.at, ledger.troubles)]
    for view in ledger.lists:
        for words in (
            *_true(view, states, ends, since),
            *_in_order(view),
            *_in_time(view, calm),
            *_with_reason(view, ledger.troubles),
        ):
            yield f"{view} {words}."


class _Step(NamedTuple):
    """A change, and what the task was before it."""

    at: datetime
    died: bool
    state: State
    before: State | None


def _seen(history: History) -> Iterator[_Step]:
    for changes in history.changes.values():
        before: State | None = None
        for change in changes:
            # What one transaction created and removed nobody has ever seen.
            if before is not None or not change.died:
                yield _Step(*change, before)
            before = None if change.died else change.state


def _true(
    view: ListView,
    states: Mapping[tuple[str, datetime, int], State],
    ends: Iterable[tuple[str, datetime]],
    since: datetime,
) -> Iterator[str]:
    """Whatever it was told was so, and is what it asked for."""
    for told in view.told:
        state = told.state
        if state.created_at < since:
            continue
        if told.deleted:
            if (state.task_id, state.created_at) not in ends:
                yield f"was told that {state} is gone, and nobody deleted it"
        elif states.get((state.task_id, *state.place)) != state:
            yield f"was told of {state}, which never was so"
        if not (means(view.wish, state) if told.by_page else fits(view.wish, state)):
            yield f"was told of {state}, for which it did not ask"


def _in_order(view: ListView) -> Iterator[str]:
    """What it was told of a task by messages never went backwards."""
    last: dict[str, Told] = {}
    for told in view.told:
        if told.by_page:
            continue
        state = told.state
        before = last.get(state.task_id)
        if before is not None:
            if before.deleted:
                backwards = state.created_at <= before.state.created_at
            elif told.deleted:
                backwards = state.created_at < before.state.created_at
            else:
                backwards = state.place <= before.state.place
            if backwards:
                yield f"was told of {_words(told)} after that of {_words(before)}"
        last[state.task_id] = told


def _in_time(view: ListView, calm: Sequence[_Step]) -> Iterator[str]:
    """What changed while nothing was broken was told at once."""
    if view.read_at is None:
        return
    told_of: dict[str, list[Told]] = defaultdict(list)
    for told in view.told:
        told_of[told.state.task_id].append(told)
    for at, died, state, before in calm:
        due_at = max(at, view.read_at) + timedelta(seconds=TOLD_S)
        if view.ended_at is not None and view.ended_at <= due_at:
            continue
        if died:
            wanted = means(view.wish, state) and at > view.read_at
        else:
            wanted = means(view.wish, state) or (before is not None and at > view.read_at and means(view.wish, before))
        if not wanted:
            continue
        if not any(told.at <= due_at and _covers(told, died, state) for told in told_of[state.task_id]):
            when = f"it was not told within {TOLD_S:.0f} s"
            yield f"did not hear in time that {state.task_id} {'was deleted' if died else f'is {state}'}: {when}"


def _covers(told: Told, died: bool, state: State) -> bool:
    """Whether it tells of this change, or of what came after it."""
    if told.state.created_at != state.created_at:
        return told.state.created_at > state.created_at
    return told.deleted or (not died and told.state.seq >= state.seq)


def _with_reason(view: ListView, troubles: Sequence[Trouble]) -> Iterator[str]:
    """It ended with LIST_OUTDATED only when something was broken that may have kept changes from it."""
    if not view.outdated or view.ended_at is None:
        return
    if not any(trouble.begins_at <= view.ended_at <= trouble.ends_at for trouble in troubles):
        yield f"was ended with LIST_OUTDATED at {view.ended_at}, when nothing was broken"


def _is_calm(at: datetime, troubles: Sequence[Trouble]) -> bool:
    over_at = at + timedelta(seconds=TOLD_S)
    return not any(trouble.begins_at < over_at and trouble.ends_at > at for trouble in troubles)


def _words(told: Told) -> str:
    return f"the deletion of {told.state}" if told.deleted else str(told.state)


def _state(row: Any) -> State:
    state = State(**{name: row[name] for name in State._fields})
    return state._replace(tags=tuple(state.tags or ()))
