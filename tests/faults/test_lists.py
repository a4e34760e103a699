"""The checker says nothing of lists that were told as they should be, and names whatever is planted in one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.ledger import Ledger, ListView, State, Told, Trouble
from tests.faults.lists import Change, History, check_lists, differences, means

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def state(seq: int, status: str, seconds: float, *, born: float = 1, task_id: str = "T") -> State:
    return State(task_id, at(born), seq, status, seq, at(seconds), "q", ("a", "b"))


class Story:
    """A round in which all went well: T was worked on, deleted and created anew while a list of what runs was shown."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ledger.troubles.append(Trouble(at(2), at(4)))
        self.view = ListView("l", {"status": ["PENDING", "IN_PROGRESS"]}, "server 1", read_at=at(5))
        self.ledger.lists.append(self.view)
        self.changes: list[Change] = []
        self.there: dict[str, State] = {}
        self.happens(state(1, "PENDING", 1), 1, told=None)
        self.view.take(Told(at(5), self.changes[0].state, by_page=True))
        self.happens(state(2, "IN_PROGRESS", 10), 10)
        self.happens(state(3, "IN_PROGRESS", 20), 20)
        self.happens(state(4, "SUCCESS", 30), 30)
        self.happens(state(5, "SUCCESS", 35), 35, told=None)
        self.happens(state(5, "SUCCESS", 35), 40, died=True, told=None)
        self.happens(state(1, "PENDING", 50, born=50), 50)
        self.happens(state(1, "PENDING", 52, born=52, task_id="U"), 52)
        self.happens(state(1, "PENDING", 52, born=52, task_id="U"), 60, died=True)

    def happens(self, new: State, seconds: float, *, died: bool = False, told: float | None = 0.2) -> None:
        self.changes.append(Change(at(seconds), died, new))
        if died:
            self.there.pop(new.task_id)
        else:
            self.there[new.task_id] = new
        if told is not None:
            self.view.take(Told(at(seconds + told), new, died))

    def place(self, seconds: float) -> int:
        """Where in what it was told the message is that came after so long."""
        return next(place for place, told in enumerate(self.view.told) if told.at == at(seconds))

    def retold(self, seconds: float, **changed: Any) -> None:
        """Have it be told something else, or at another time."""
        place = self.place(seconds)
        self.view.told[place] = self.view.told[place]._replace(**changed)

    def retell(self) -> None:
        """Put what it was told together anew."""
        told, self.view.told, self.view.latest = self.view.told, [], {}
        for one in told:
            self.view.take(one)

    def violations(self) -> list[str]:
        changes: dict[str, list[Change]] = {}
        for change in self.changes:
            changes.setdefault(change.state.task_id, []).append(change)
        return [
            *check_lists(self.ledger, History(changes), START),
            *differences(self.view, self.there, START),
        ]

    def says(self, *words: str) -> None:
        violations = self.violations()
        for word in words:
            assert any(word in violation for violation in violations), (word, violations)


@pytest.fixture
def story() -> Story:
    return Story()


def test_nothing_is_said_of_what_is_right(story: Story) -> None:
    assert story.violations() == []


@pytest.mark.parametrize(
    ("wish", "meant"),
    [
        ({}, True),
        ({"status": ["PENDING", "FAILED"]}, True),
        ({"status": ["SUCCESS"]}, False),
        ({"status": []}, False),
        ({"tags": ["b"]}, True),
        ({"tags": ["b", "c"]}, False),
        ({"queue": "q", "status": ["PENDING"]}, True),
        ({"queue": "other"}, False),
        ({"taskIdPrefix": "T"}, True),
        ({"taskIdPrefix": "T-1"}, False),
    ],
)
def test_a_filter_means_what_has_all_that_it_asks_for(wish: dict[str, Any], meant: bool) -> None:
    assert means(wish, state(1, "PENDING", 1)) is meant


def test_a_row_that_is_old_is_found(story: Story) -> None:
    story.there["T"] = state(2, "IN_PROGRESS", 55, born=50)
    story.says("l at server 1 shows T PENDING 1 % at 1, which is T IN_PROGRESS 2 % at 2")


def test_a_row_that_has_another_time_is_found(story: Story) -> None:
    story.there["T"] = story.there["T"]._replace(updated_at=at(51))
    story.says("shows T PENDING 1 % at 1, which is T PENDING 1 % at 1")


def test_a_row_that_is_gone_is_found(story: Story) -> None:
    del story.there["T"]
    story.says("shows T PENDING 1 % at 1, which is gone")


def test_a_row_that_is_missing_is_found(story: Story) -> None:
    story.there["V"] = state(1, "PENDING", 1, task_id="V")
    story.says("does not show V PENDING 1 % at 1")


def test_what_the_filter_does_not_mean_need_not_be_shown(story: Story) -> None:
    story.there["V"] = state(1, "FAILED", 1, task_id="V")
    assert story.violations() == []


def test_a_list_that_was_never_read_is_found(story: Story) -> None:
    story.view.read_at = None
    story.says("has not read its list")


def test_a_state_that_never_was_is_found(story: Story) -> None:
    story.retold(20.2, state=state(3, "IN_PROGRESS", 20)._replace(progress=77))
    story.says("was told of T IN_PROGRESS 77 % at 3, which never was so")


def test_a_deletion_that_never_was_is_found(story: Story) -> None:
    story.retold(50.2, deleted=True)
    story.says("was told that T PENDING 1 % at 1 is gone, and nobody deleted it")


def test_what_nobody_asked_for_is_found(story: Story) -> None:
    story.view.wish = {"queue": "other"}
    story.says("was told of T IN_PROGRESS 2 % at 2, for which it did not ask")


def test_a_page_with_what_nobody_asked_for_is_found(story: Story) -> None:
    story.view.wish = {"status": ["IN_PROGRESS"]}
    story.says("was told of T PENDING 1 % at 1, for which it did not ask")


def test_what_leaves_the_list_is_told_and_may_be(story: Story) -> None:
    story.happens(state(2, "FAILED", 70, born=50), 70)
    assert story.violations() == []


@pytest.mark.parametrize("earlier", [10.2, 20.2])
def test_numbers_that_run_backwards_are_found(story: Story, earlier: float) -> None:
    again = story.view.told[story.place(earlier)]
    story.view.told.insert(story.place(20.2) + 1, again._replace(at=at(20.3)))
    story.says(f"was told of {again.state} after that of T IN_PROGRESS 3 % at 3")


def test_what_is_told_after_its_deletion_is_found(story: Story) -> None:
    story.view.told.append(Told(at(61), state(1, "PENDING", 52, born=52, task_id="U")))
    story.says("was told of U PENDING 1 % at 1 after that of the deletion of U PENDING 1 % at 1")


def test_the_task_before_is_not_told_after_the_one_that_was_created_anew(story: Story) -> None:
    story.view.told.append(Told(at(61), state(4, "SUCCESS", 30)))
    story.says("was told of T SUCCESS 4 % at 4 after that of T PENDING 1 % at 1")


@pytest.mark.parametrize(("late", "found"), [(2.9, False), (3.1, True)])
def test_a_change_that_is_told_late_is_found(story: Story, late: float, found: bool) -> None:
    story.retold(10.2, at=at(10 + late))
    violations = story.violations()
    assert any("did not hear in time that T is T IN_PROGRESS 2 % at 2" in one for one in violations) is found


def test_what_leaves_the_list_must_be_told_in_time(story: Story) -> None:
    del story.view.told[story.place(30.2)]
    story.says("did not hear in time that T is T SUCCESS 4 % at 4")


def test_a_deletion_that_is_not_told_is_found(story: Story) -> None:
    del story.view.told[story.place(60.2)]
    story.retell()
    story.says("did not hear in time that U was deleted", "shows U PENDING 1 % at 1, which is gone")


def test_what_is_told_late_in_times_of_trouble_is_not_said(story: Story) -> None:
    story.retold(10.2, at=at(19))
    story.ledger.troubles.append(Trouble(at(12), at(13)))
    assert story.violations() == []


def test_what_came_later_stands_for_what_was_before(story: Story) -> None:
    story.happens(state(2, "IN_PROGRESS", 70, born=50), 70, told=None)
    story.happens(state(3, "IN_PROGRESS", 71, born=50), 71)
    assert story.violations() == []


def test_who_has_left_need_not_be_told(story: Story) -> None:
    story.view.ended_at = at(62)
    story.happens(state(2, "IN_PROGRESS", 61, born=50), 61, told=None)
    assert list(check_lists(story.ledger, History({"T": story.changes}), START)) == []


@pytest.mark.parametrize(("seconds", "found"), [(3, False), (70, True)])
def test_an_end_without_a_reason_is_found(story: Story, seconds: float, found: bool) -> None:
    story.view.outdated, story.view.ended_at = True, at(seconds)
    assert any("was ended with LIST_OUTDATED" in one for one in story.violations()) is found


def test_a_page_that_was_read_before_a_message_changes_nothing() -> None:
    view = ListView("l", {}, "server 1")
    view.take(Told(at(3), state(2, "IN_PROGRESS", 2)))
    view.take(Told(at(4), state(1, "PENDING", 1), by_page=True))
    assert view.latest["T"].state.seq == 2
    view.take(Told(at(5), state(2, "IN_PROGRESS", 2), deleted=True))
    view.take(Told(at(6), state(2, "IN_PROGRESS", 2), by_page=True))
    assert view.latest["T"].deleted
    view.take(Told(at(7), state(1, "PENDING", 9, born=9)))
    view.take(Told(at(8), state(2, "IN_PROGRESS", 2), deleted=True))
    assert view.latest["T"].state.created_at == at(9)


def test_what_one_transaction_created_and_removed_need_not_be_told(story: Story) -> None:
    story.changes.append(Change(at(70), True, state(1, "PENDING", 70, born=70, task_id="V")))
    assert story.violations() == []
