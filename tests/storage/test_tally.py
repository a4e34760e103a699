"""Lines that are due once in a while."""

from storage.tally import Tally


def test_the_first_is_told_at_once_and_the_others_together_when_it_is_time() -> None:
    now = 100.0
    tally = Tally(apart_s=10, clock=lambda: now)
    assert tally.add(3) == 3
    now += 9.9
    assert tally.add(4) == 0
    now += 0.1
    assert tally.add(5) == 9
    assert tally.add(1) == 0
