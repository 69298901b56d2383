"""When a reading is due and what it means, in virtual time."""

from __future__ import annotations

import pytest

from headrace.policy.plan import ReloadPlan
from headrace.runtime.watch.settling import Settling

PLAN = ReloadPlan(debounce_s=0.1, max_delay_s=1.0, poll_s=2.0, drain_s=30.0)
OLD, NEW, NEWER = {"f": b"old"}, {"f": b"new"}, {"f": b"newer"}


def settled_at(now: float = 0.0) -> Settling:
    """One that knows OLD and has just read it."""
    settling = Settling(PLAN, now=now, known=OLD)
    read(settling, now, OLD)
    return settling


def read(settling: Settling, now: float, prints: dict[str, bytes]) -> bool:
    first = settling.take(now)
    return settling.judge(now, prints, first_poke_at=first)


def test_the_first_reading_is_due_at_once() -> None:
    assert Settling(PLAN, now=7.0, known=OLD).due_at() == 7.0


def test_a_poke_is_read_after_the_debounce_and_reported() -> None:
    settling = settled_at(0.0)
    assert settling.poke(0.5)
    assert settling.due_at() == pytest.approx(0.6)
    assert read(settling, settling.due_at(), NEW)
    assert settling.known == NEW


def test_each_further_poke_waits_longer_but_not_beyond_max_delay() -> None:
    settling = settled_at(0.0)
    settling.poke(0.5)
    for step in range(20):
        settling.poke(0.5 + step * 0.09)
    assert settling.due_at() == pytest.approx(1.5)  # first poke + max_delay, although they never were quiet
    assert read(settling, 1.5, NEW)


def test_only_the_first_poke_of_a_series_wakes_the_waiter() -> None:
    settling = settled_at(0.0)
    assert [settling.poke(at) for at in (0.5, 0.51, 0.52)] == [True, False, False]
    read(settling, 0.62, OLD)
    assert settling.poke(0.7)


def test_equal_content_is_not_a_change_however_often_it_is_poked() -> None:
    settling = settled_at(0.0)
    settling.poke(0.5)
    assert not read(settling, 0.6, OLD)
    assert settling.due_at() == pytest.approx(2.6)


def test_an_edit_that_is_undone_within_the_debounce_is_no_change() -> None:
    settling = settled_at(0.0)
    settling.poke(0.50)
    settling.poke(0.55)
    assert not read(settling, 0.65, OLD)


def test_a_reported_change_is_reported_once() -> None:
    settling = settled_at(0.0)
    settling.poke(0.5)
    assert read(settling, settling.due_at(), NEW)
    assert not read(settling, 2.6, NEW)


def test_a_change_without_a_poke_is_found_by_the_poll_and_read_twice() -> None:
    settling = settled_at(0.0)
    assert settling.due_at() == 2.0
    assert not read(settling, 2.0, NEW)  # perhaps half written: nobody told when it began
    assert settling.due_at() == pytest.approx(2.1)
    assert read(settling, settling.due_at(), NEW)


def test_the_poll_waits_for_a_file_that_is_still_being_written() -> None:
    settling = settled_at(0.0)
    for held in (b"n", b"ne", b"new"):
        assert not read(settling, settling.due_at(), {"f": held})
    assert read(settling, settling.due_at(), NEW)


def test_the_poll_does_not_wait_for_ever_for_a_file_that_never_rests() -> None:
    settling = settled_at(0.0)
    now, reports = 2.0, 0
    for step in range(40):
        reports += read(settling, now, {"f": b"%d" % step})
        if reports:
            break
        now = settling.due_at()
    assert reports == 1
    assert now <= 2.0 + PLAN.max_delay_s + 1e-6


def test_a_poke_during_the_reading_belongs_to_the_next_one() -> None:
    settling = settled_at(0.0)
    settling.poke(0.5)
    first = settling.take(0.6)
    settling.poke(0.61)  # after the file was read
    assert settling.judge(0.62, NEW, first_poke_at=first)
    assert settling.due_at() == pytest.approx(0.71)
    assert read(settling, settling.due_at(), NEWER)


def test_a_file_that_is_not_known_counts_as_changed() -> None:
    settling = Settling(PLAN, now=0.0)
    assert not read(settling, 0.0, OLD)
    assert read(settling, settling.due_at(), OLD)
    assert not read(settling, settling.due_at(), OLD)


def test_a_file_that_is_no_longer_watched_is_forgotten_silently() -> None:
    settling = Settling(PLAN, now=0.0, known={"f": b"old", "g": b"x"})
    assert not read(settling, 0.0, OLD)
    assert settling.known == OLD


def test_again_reports_unchanged_content_once_at_its_instant() -> None:
    settling = settled_at(0.0)
    settling.again_at(1.5)
    assert settling.due_at() == 1.5
    assert read(settling, 1.5, OLD)
    assert not read(settling, settling.due_at(), OLD)


def test_again_does_not_come_early_with_another_reading() -> None:
    settling = settled_at(0.0)
    settling.again_at(1.5)
    settling.poke(0.5)
    assert not read(settling, 0.6, OLD)
    assert settling.due_at() == 1.5


def test_new_rules_apply_to_the_poke_under_way() -> None:
    settling = settled_at(0.0)
    settling.poke(0.5)
    settling.replan(ReloadPlan(debounce_s=0.5, max_delay_s=5.0, poll_s=9.0, drain_s=1.0))
    assert settling.due_at() == 1.0


def test_a_poll_that_falls_into_the_debounce_of_a_poke_does_not_make_it_longer() -> None:
    settling = settled_at(0.0)
    settling.poke(1.95)
    assert not read(settling, 2.0, NEW)  # the safety poll; the writer may not be done yet
    assert settling.due_at() == pytest.approx(2.05)
    assert read(settling, 2.05, NEW)
