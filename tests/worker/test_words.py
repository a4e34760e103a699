"""What is told of an exception, and the numbers of progress."""

import asyncio

import pytest

from worker.client import Client
from worker.errors import WorkerError
from worker.progress import Counter, Progress
from worker.reports import ERROR_CHARACTERS_MAX, Reports

KEY = "spn_0192ca5781b55e52_secret"


async def words(error: BaseException) -> str:
    client = Client("http://127.0.0.1/graphql", KEY)
    try:
        return Reports(client, "film", "lease-7").words_of(error)
    finally:
        await client.close()


async def test_the_words_of_an_exception_have_a_bound_and_no_secrets() -> None:
    assert await words(ValueError("no page 14")) == "ValueError: no page 14"
    assert await words(KeyError()) == "KeyError"
    assert await words(ValueError(f"{KEY} lease-7 Bearer abc.def spt_x.y.z")) == (
        "ValueError: [hidden] [hidden] [hidden] [hidden]"
    )
    assert await words(ValueError("at https://ada:hunter2@example.com/x")) == (
        "ValueError: at https://[hidden]@example.com/x"
    )
    assert await words(ValueError("a\0b \ud800")) == "ValueError: ab ?"
    assert len(await words(ValueError("x" * (ERROR_CHARACTERS_MAX - 12)))) == ERROR_CHARACTERS_MAX
    long = await words(ValueError("x" * (ERROR_CHARACTERS_MAX - 11)))
    assert len(long) == ERROR_CHARACTERS_MAX
    assert long.endswith("x […]")


async def test_of_a_group_the_first_three_are_told() -> None:
    group = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    assert await words(group) == "ValueError: a; KeyError: 'b'"
    many = ExceptionGroup("many", [ValueError(str(number)) for number in range(5)])
    assert await words(many) == "ValueError: 0; ValueError: 1; ValueError: 2; and 2 more"


def test_percents_are_said_when_they_change() -> None:
    counter = Counter([0] * 300, None)
    assert [percent for _ in range(300) if (percent := counter.next()) is not None] == list(range(1, 101))
    # More items than were announced.
    assert counter.next() is None
    assert Counter([], 0).next() == 100


async def test_the_latest_number_is_told_and_none_twice() -> None:
    told: list[int] = []

    async def send(percent: int) -> None:
        await asyncio.sleep(0)
        told.append(percent)

    def failed(error: WorkerError) -> None:
        raise AssertionError(error)

    progress = Progress(send, failed)
    for percent in (1, 2, 3):
        progress.set(percent)
    await progress.flush()
    progress.set(3)
    await progress.flush()
    assert told == [3]
    progress.set(2)
    await progress.close()
    assert told == [3]
    for wrong in (-1, 101):
        with pytest.raises(ValueError, match="0 to 100"):
            progress.set(wrong)
