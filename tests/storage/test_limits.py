"""What passes the checks comes back from PostgreSQL as it was."""

from itertools import count
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import Create, Json, Storage
from tests.storage.helpers import note, opened, submit, task_and_log

a_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# PostgreSQL writes a float beyond these out in full, and it is read as an integer: to JSON it is the same number. It
# has no negative zero.
a_float = st.floats(-1e15, 1e15).map(lambda value: value + 0.0)
a_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | a_float | a_text,
    lambda children: st.lists(children, max_size=5) | st.dictionaries(a_text, children, max_size=5),
    max_leaves=20,
)
some_values = st.lists(st.tuples(a_text, a_json), min_size=1, max_size=20)


def test_every_text_and_every_metadata_that_is_taken_comes_back_as_it_was(database: str) -> None:
    fresh = count()
    with opened(database) as (storage, run):

        @settings(max_examples=100, deadline=None)
        @given(some_values)
        def come_back(values: list[tuple[str, Any]]) -> None:
            # An ID may hold what any text may hold.
            run(_come_back(storage, f"{next(fresh)}{values[0][0]}"[:255], values))

        come_back()


async def _come_back(storage: Storage, task_id: str, values: list[tuple[str, Any]]) -> None:
    first_text, first_json = values[0]
    created, *answers = await submit(
        storage,
        Create(task_id=task_id, metadata=first_json, created_by=first_text[:255] or None),
        *(note(task_id, message=text, metadata=metadata) for text, metadata in values),
    )
    task, events = await task_and_log(storage, task_id)
    assert task is not None
    assert (task.task_id, task.created_by) == (task_id, first_text[:255] or None)
    assert plain(task.metadata) == plain(created.metadata) == canonical(first_json)
    told = [created.last_event, *(answer.last_event for answer in answers)]
    assert [event._replace(metadata=None) for event in events] == [event._replace(metadata=None) for event in told]
    assert [event.message for event in events[1:]] == [text for text, _ in values]
    # Both who wrote and who reads get what was given.
    expected = [canonical(metadata) for metadata in (first_json, *(metadata for _, metadata in values))]
    assert [plain(event.metadata) for event in events] == expected
    assert [plain(event.metadata) for event in told] == expected


def plain(metadata: Json | None) -> bytes:
    return canonical(None if metadata is None else metadata.value())


def canonical(value: Any) -> bytes:
    """Tells 1 from 1.0 and from True, as Python does not."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
