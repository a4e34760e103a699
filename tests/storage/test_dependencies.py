"""Tasks that wait for others: nobody waits for ever, whatever happens when."""

import asyncio
from itertools import permutations
from typing import Any, Final

import pytest

from storage import (
    BadInput,
    Cancel,
    Command,
    Complete,
    Create,
    CreateMany,
    Delete,
    Fail,
    OnDependencyFailure,
    Options,
    Retry,
    Status,
    Storage,
    Task,
    TaskAlreadyExists,
    TaskNotFound,
    UpdateProgress,
    open_storage,
)
from storage.messenger import Messenger
from tests.postgres import session
from tests.storage.helpers import messages, spied, submit, task_and_log
from tests.storage.linked import processes


def after(task_id: str, *others: str, **options: Any) -> Create:
    return Create(task_id=task_id, options=Options(queue="q", depends_on=others, **options))


async def settled(storage: Storage, task_id: str = "D") -> Task:
    """The task when all messages have been brought."""
    await storage.writer.messenger.brought()
    task = await storage.reader.task(task_id)
    assert task is not None
    assert task.plan is not None
    return task


async def links(database: str) -> list[tuple[str, str, str | None]]:
    async with session(database) as other:
        return [tuple(row) for row in await other.fetch("SELECT * FROM task_dependencies ORDER BY 1, 2")]


SUCCESS: Final = (Status.PENDING, True, ())
CANCELED: Final = (Status.CANCELED, False, ("a",))
ENDS: Final[list[tuple[Command, Any]]] = [
    (Complete(task_id="a"), SUCCESS),
    (Fail(task_id="a", error="e"), CANCELED),
    (Cancel(task_id="a"), CANCELED),
    (Delete(task_id="a"), CANCELED),
]


def state(task: Task) -> Any:
    assert task.plan is not None
    return task.status, task.plan.ready, task.plan.blocked_by


@pytest.mark.parametrize(("end", "expected"), ENDS)
@pytest.mark.parametrize("together", [True, False])
async def test_an_end_after_the_dependent_was_made_reaches_it(
    database: str, end: Command, expected: Any, together: bool
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        commands = [Create(task_id="a"), after("D", "a"), end]
        if together:
            outcomes = await submit(storage, *commands)
            assert not any(isinstance(outcome, Exception) for outcome in outcomes)
        else:
            for command in commands:
                await storage.writer.submit(command)
        task = await settled(storage)
        assert state(task) == expected
        assert task.seq == 2
        assert '"a"' in (await messages(storage, "D"))[-1]
        assert await links(database) == []


@pytest.mark.parametrize(("end", "expected"), ENDS[:3])
@pytest.mark.parametrize("together", [True, False])
async def test_an_end_before_the_dependent_is_made_counts_at_once(
    database: str, end: Command, expected: Any, together: bool
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        commands = [Create(task_id="a"), end, after("D", "a")]
        if together:
            *_, made = await submit(storage, *commands)
        else:
            *_, made = [await storage.writer.submit(command) for command in commands]
        assert state(made) == expected
        assert await settled(storage) == made._replace(last_event=None)
        assert len((await task_and_log(storage, "D"))[1]) == made.seq
        assert await links(database) == []


@pytest.mark.parametrize("end", [Complete(task_id="a"), Fail(task_id="a", error="e"), Delete(task_id="a")])
async def test_an_end_while_the_dependents_are_made_reaches_each_of_them(database: str, end: Command) -> None:
    """Two processes, so that nothing but the database puts the two in order."""
    async with processes(database, database, 2) as (one, two):
        for round_ in range(30):
            a, dependents = f"a{round_}", [f"D{round_}-{n}" for n in range(8)]
            await submit(one, Create(task_id=a))
            ends = (
                Complete(task_id=a)
                if isinstance(end, Complete)
                else (Delete(task_id=a) if isinstance(end, Delete) else Fail(task_id=a, error="e"))
            )

            async def make(names: list[str], a: str = a, turns: int = round_) -> list[Any]:
                made = []
                for name in names:
                    made += await submit(two, after(name, a))
                    for _ in range(turns % 5):
                        await asyncio.sleep(0)
                return made

            made, ended = await asyncio.gather(make(dependents), one.writer.submit(ends))
            assert (ended is None) == isinstance(end, Delete)
            for name, outcome in zip(dependents, made, strict=True):
                if isinstance(outcome, BadInput):
                    assert isinstance(end, Delete)
                    continue
                await two.writer.messenger.brought()
                task = await settled(one, name)
                assert task.plan is not None
                if isinstance(end, Complete):
                    assert task.plan.ready, name
                else:
                    assert task.status is Status.CANCELED, name
        assert await links(database) == []


async def test_in_whatever_order_those_end_the_dependent_becomes_ready_once_all_have(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        for number, order in enumerate(permutations("abc")):
            names = [f"{name}{number}" for name in order]
            dependent = f"D{number}"
            await submit(storage, *(Create(task_id=name) for name in names), after(dependent, *sorted(names)))
            for name in names[:-1]:
                await submit(storage, Complete(task_id=name))
                assert not (await settled(storage, dependent)).plan.ready  # type: ignore[union-attr]
            await submit(storage, Complete(task_id=names[-1]))
            assert state(await settled(storage, dependent)) == SUCCESS


async def test_a_chain_falls_when_its_first_does(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T0"), *(after(f"T{n}", f"T{n - 1}") for n in range(1, 20)))
        await submit(storage, Fail(task_id="T0", error="e"))
        last = await settled(storage, "T19")
        assert last.status is Status.CANCELED
        assert (await messages(storage, "T19"))[-1] == 'Task canceled: "T18", on which this task depends, was canceled'


async def test_with_ignore_an_end_of_any_kind_is_enough(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        ignore = OnDependencyFailure.IGNORE
        await submit(storage, *(Create(task_id=name) for name in "abcd"), Fail(task_id="d", error="e"))
        made, *_ = await submit(storage, after("D", *"abcd", on_dependency_failure=ignore))
        assert made.plan.blocked_by == ("a", "b", "c")
        await submit(storage, Fail(task_id="a", error="e"), Delete(task_id="b"), Cancel(task_id="c"))
        assert state(await settled(storage)) == SUCCESS


async def test_a_failure_that_is_tried_again_is_no_end(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        retried = Create(task_id="a", options=Options(queue="q", retry=Retry(max_attempts=2, initial_s=0)))
        await submit(storage, retried, after("D", "a"))
        await submit(storage, Fail(task_id="a", error="e"))
        assert (await settled(storage)).status is Status.PENDING
        await submit(storage, Fail(task_id="a", error="e"))
        assert (await settled(storage)).status is Status.CANCELED


async def test_what_does_not_exist_cannot_be_waited_for_and_nothing_is_made(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        refused, good = await submit(storage, after("D", "nobody"), Create(task_id="other"))
        assert isinstance(refused, BadInput)
        assert 'there is no task "nobody"' in str(refused)
        assert good.seq == 1
        assert await storage.reader.task("D") is None
        # In the order in which they came: the second creation is the first that is taken.
        refused, made, again = await submit(
            storage, after("D", "nobody"), Create(task_id="D", progress=7), Create(task_id="D")
        )
        assert [type(refused), type(again)] == [BadInput, TaskAlreadyExists]
        assert await storage.reader.task("D") == made._replace(last_event=None)
        async with session(database) as other:
            assert await other.fetchval("SELECT count(*) FROM task_events WHERE task_id = 'D'") == 1


async def test_a_message_that_nobody_brought_is_brought_by_the_timers(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when the process dies between the commit and what follows it.
    monkeypatch.setattr(Messenger, "bring", lambda *_: None)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), after("D", "a"), after("E", "a"))
        await submit(storage, Complete(task_id="a"), Delete(task_id="E"))
        assert await links(database) == [("a", "D", "SUCCESS"), ("a", "E", "SUCCESS")]
    async with open_storage(database, upgrade=False, timers=True) as storage:
        assert storage.timers is not None
        async with session(database) as other:
            while await other.fetchval("SELECT count(*) FROM task_dependencies"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert state(await settled(storage)) == SUCCESS


async def test_a_message_for_a_task_of_the_same_id_is_not_taken_for_ones_own(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[Any] = []
    monkeypatch.setattr(Messenger, "bring", lambda _, found: brought.extend(found))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), after("D", "a"))
        await submit(storage, Complete(task_id="a"))
        # Both are other tasks now.
        await submit(storage, Delete(task_id="a"), Delete(task_id="D"))
        await submit(storage, Create(task_id="a"), after("D", "a"))
        assert len(brought) == 1
        await submit(storage, *brought)
        task = await storage.reader.task("D")
        assert task is not None
        assert state(task) == (Status.PENDING, False, ("a",))
        assert await links(database) == [("a", "D", None)]


async def test_a_message_for_a_task_of_the_same_id_is_not_taken_by_one_that_is_born_beside_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[Any] = []
    monkeypatch.setattr(Messenger, "bring", lambda _, found: brought.extend(found))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), after("D", "a"))
        # The message that "a" has failed stays untaken, as when the process dies before it brings it.
        await submit(storage, Fail(task_id="a", error="e"))
        await submit(storage, Delete(task_id="a"), Delete(task_id="D"))
        await submit(storage, Create(task_id="a"))
        # The timers bring it just as another "D" is born, in one group with that.
        made, *_ = await submit(storage, after("D", "a"), *brought)
        task = await storage.reader.task("D")
        assert task == made._replace(last_event=None)
        assert state(made) == (Status.PENDING, False, ("a",))
        assert await links(database) == [("a", "D", None)]


async def test_what_became_of_a_task_is_what_the_table_says_not_what_an_old_message_did(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[Any] = []
    monkeypatch.setattr(Messenger, "bring", lambda _, found: brought.extend(found))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), after("D", "a"))
        await submit(storage, Complete(task_id="a"))
        (late,) = brought
        # Other tasks of the same IDs go through the same, with another end, before the message arrives.
        await submit(storage, Delete(task_id="a"), Delete(task_id="D"))
        await submit(storage, Create(task_id="a"), after("D", "a"))
        await submit(storage, Fail(task_id="a", error="e"))
        await submit(storage, late)
        assert state(await settled(storage)) == CANCELED
        assert (await messages(storage, "D"))[-1] == 'Task canceled: "a", on which this task depends, has failed'


async def test_only_an_end_for_which_others_wait_goes_the_long_way(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), Create(task_id="b"), after("D", "a"))
        with spied(storage) as spy:
            await submit(storage, UpdateProgress(task_id="a", progress=5))
            await submit(storage, Complete(task_id="b"))
        assert len(spy.statements) == 2
        await submit(storage, Complete(task_id="a"))
        assert state(await settled(storage)) == SUCCESS


# ---------------------------------------------------------------- several at once


async def test_many_are_made_all_or_none_and_the_error_says_which(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="there"))
        many = (Create(task_id="x"), after("y", "x"), Create(task_id="there"))
        with pytest.raises(TaskAlreadyExists, match=r'^2: Task "there" exists already\.') as refused:
            await storage.writer.create_many(CreateMany(tasks=many))
        assert refused.value.index == 2
        assert [await storage.reader.task(name) for name in ("x", "y")] == [None, None]
        assert await links(database) == []
        with pytest.raises(BadInput, match='there is no task "nobody"') as unknown:
            await storage.writer.create_many(CreateMany(tasks=(Create(task_id="x"), after("y", "nobody"))))
        assert unknown.value.index == 1
        made = await storage.writer.create_many(CreateMany(tasks=many[:2]))
        assert [task.task_id for task in made] == ["x", "y"]
        for task in made:
            assert await storage.reader.task(task.task_id) == task._replace(last_event=None)
        assert await storage.writer.create_many(CreateMany(tasks=())) == ()


async def test_many_and_others_in_one_group_do_not_disturb_each_other(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        bad = CreateMany(tasks=(Create(task_id="x", progress=1), Create(task_id="y"), after("z", "nobody")))
        outcomes = await asyncio.gather(
            storage.writer.submit(Create(task_id="y", progress=9)),
            storage.writer.submit(UpdateProgress(task_id="y", progress=10)),
            storage.writer.create_many(bad),
            storage.writer.submit(UpdateProgress(task_id="y", progress=11)),
            storage.writer.submit(Create(task_id="x", progress=3)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[2], TaskAlreadyExists | BadInput)
        assert [getattr(outcome, "seq", None) for outcome in outcomes] == [1, 2, None, 3, 1]
        for task_id, progress in (("x", 3), ("y", 11)):
            task, log = await task_and_log(storage, task_id)
            assert task is not None
            assert (task.progress, len(log)) == (progress, task.seq)
        assert await storage.reader.task("z") is None


async def test_many_may_wait_for_each_other_in_any_order_but_not_in_a_circle(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        made = await storage.writer.create_many(
            CreateMany(tasks=(after("c", "b"), after("b", "a"), Create(task_id="a")))
        )
        assert [task.plan and task.plan.blocked_by for task in made] == [("b",), ("a",), None]
        await submit(storage, Complete(task_id="a"))
        assert state(await settled(storage, "b")) == SUCCESS
        with pytest.raises(BadInput, match="wait for each other in a circle"):
            CreateMany(tasks=(Create(task_id="p"), after("q", "r"), after("r", "s"), after("s", "q")))


def test_a_task_cannot_wait_for_itself_nor_be_named_twice() -> None:
    with pytest.raises(BadInput, match='Task "T" cannot depend on itself'):
        after("T", "T")
    with pytest.raises(BadInput, match='1: Task "T" is named twice'):
        CreateMany(tasks=(Create(task_id="T"), Create(task_id="T")))
    with pytest.raises(BadInput, match="must be 0 to 1000, got 1001"):
        CreateMany(tasks=(Create(task_id="T"),) * 1001)


async def test_a_message_to_a_task_that_is_gone_is_taken_away(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"), after("D", "a"))
        await submit(storage, Delete(task_id="D"))
        await submit(storage, Complete(task_id="a"))
        await storage.writer.messenger.brought()
        assert await links(database) == []
        with pytest.raises(TaskNotFound):
            await storage.writer.submit(Complete(task_id="D"))
