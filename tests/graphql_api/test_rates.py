"""Buckets of tokens, by a clock that the test moves."""

from time import perf_counter

import pytest

from graphql_api.rates import Buckets


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_taken_at_once_and_then_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(10, 5.0, clock=clock)
    assert [buckets.take("a") for _ in range(50)] == [0.0] * 50
    assert abs(buckets.take("a") - 0.1) < 1e-6
    assert abs(buckets.wait_s("a") - 0.1) < 1e-6
    # Another has its own.
    assert (buckets.take("b"), buckets.wait_s("c")) == (0.0, 0.0)
    clock.now += 0.1
    assert buckets.wait_s("a") == 0.0
    assert buckets.take("a") == 0.0
    assert buckets.take("a") > 0.0
    clock.now += 1_000.0
    assert [buckets.take("a") for _ in range(50)] == [0.0] * 50
    assert buckets.take("a") > 0.0


def test_what_is_refused_costs_nothing_and_what_is_given_back_may_be_taken_again() -> None:
    clock = Clock()
    buckets = Buckets(1, 1.0, clock=clock)
    assert buckets.take("a") == 0.0
    for _ in range(100):
        assert buckets.take("a") > 0.0
    buckets.give_back("a")
    assert buckets.take("a") == 0.0
    clock.now += 1.0
    assert buckets.take("a") == 0.0


def test_a_batch_takes_as_many_tokens_as_it_has_items_or_none() -> None:
    clock = Clock()
    buckets = Buckets(1, 10.0, clock=clock)

    def batch(items: int) -> float:
        assert buckets.take("a") == 0.0
        return buckets.take_more("a", items - 1)

    assert batch(4) == 0.0
    # Six are left: one is refused for the seventh, and has taken its own token only.
    assert batch(7) == pytest.approx(1.0)
    assert batch(5) == 0.0
    assert buckets.take("a") == pytest.approx(1.0)
    # As is said, so it is.
    clock.now += 3.0
    assert batch(4) == pytest.approx(1.0)
    clock.now += 2.0
    assert batch(4) == 0.0
    assert buckets.take("a") > 0.0


def test_a_batch_that_is_larger_than_a_bucket_wants_a_full_one_and_owes_the_rest() -> None:
    clock = Clock()
    buckets = Buckets(1, 10.0, clock=clock)
    assert buckets.take("a") == 0.0
    assert buckets.take("a") == 0.0
    assert buckets.take_more("a", 24) == pytest.approx(1.0)
    clock.now += 1.0
    assert buckets.take_more("a", 24) == 0.0
    # Of 25, ten were there.
    assert buckets.wait_s("a") == pytest.approx(16.0)
    clock.now += 15.9
    assert buckets.take("a") > 0.0
    clock.now += 0.1
    assert buckets.take("a") == 0.0


def test_what_was_done_already_is_owed_and_no_more_than_a_burst_of_it() -> None:
    now = 100.0
    buckets = Buckets(1.0, 5.0, clock=lambda: now)
    for _ in range(5):
        buckets.charge("a")
    assert buckets.wait_s("a") == pytest.approx(1.0)
    for _ in range(100):
        buckets.charge("a")
    assert buckets.wait_s("a") == pytest.approx(6.0)
    now += 6.0
    assert buckets.wait_s("a") == 0.0


def test_a_rate_below_one_a_burst_has_one_token() -> None:
    buckets = Buckets(0.01, 5.0, clock=Clock())
    assert buckets.take("a") == 0.0
    assert buckets.take("a") > 0.0


def test_names_are_bounded_and_those_that_take_are_not_forgotten() -> None:
    clock = Clock()
    buckets = Buckets(1, 5.0, names_max=100, clock=clock)
    for _ in range(5):
        assert buckets.take("busy") == 0.0
    for number in range(10_000):
        buckets.take(f"{number}")
        # Among the flood it stays known as the one that has taken all.
        assert buckets.take("busy") > 0.0
        assert buckets.names <= 100


def test_taking_costs_next_to_nothing() -> None:
    buckets = Buckets(1_000_000, 5.0)
    begun = perf_counter()
    for _ in range(100_000):
        buckets.take("a")
    # It takes a fifth of this; the bound is for a machine that is busy with other things.
    assert (perf_counter() - begun) / 100_000 < 5e-6
