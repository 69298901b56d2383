"""The table of attempts under way, and the thread that ends those that are late."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.runtime.deadlines import AGAIN_S, LONGEST_AGAIN_S, SLACK_S, Deadlines, deadlines
from headrace.transport.attempt import Attempt
from headrace.transport.standstill import GRACE_S, MOST_GRACES
from support.faultserver import FaultServer
from support.governed import rules, running
from support.interrupts import interrupted_at
from support.plans import TIMEOUTS
from support.waiting import wait_until

NEVER = float("inf")


class Leases:
    """As much of a lease pool as is asked: whether a token is still in use."""

    def __init__(self) -> None:
        self.aborted: list[Any] = []
        self.in_use: set[Any] = set()
        self.readable: set[Any] = set()

    def abort(self, token: Any) -> bool:
        self.aborted.append(token)
        return token in self.in_use


def attempt_over(leases: Leases, token: Any, *, ends_at: float) -> Attempt:
    pool = SimpleNamespace(leases=leases, has_arrived=lambda one: one in getattr(leases, "readable", ()))
    made = Attempt(pool, None, None, (), TIMEOUTS, ends_at, False)
    made.token = token
    return made


@pytest.fixture
def leases() -> Leases:
    return Leases()


def test_an_attempt_whose_time_is_up_is_taken_out_and_broken_off(leases: Leases) -> None:
    deadlines, late = Deadlines(), attempt_over(leases, "a", ends_at=10.0)
    deadlines.table[late] = 10.0

    assert deadlines.cut_late(10.0) == 10.0 + SLACK_S  # a silent peer is left to the socket's own limit
    assert (leases.aborted, late.cut) == ([], False)
    assert deadlines.cut_late(10.0 + SLACK_S) == NEVER
    assert (leases.aborted, late.cut, deadlines.table) == (["a"], True, {})


def test_what_its_owner_has_ended_is_let_alone(leases: Leases) -> None:
    deadlines, done = Deadlines(), attempt_over(leases, "a", ends_at=10.0)
    deadlines.table[done] = 10.0
    assert deadlines.table.pop(done) == 10.0

    assert deadlines.cut_late(20.0) == NEVER
    assert (leases.aborted, done.cut) == ([], False)


def test_one_that_has_no_connection_yet_is_asked_again_ever_more_rarely_until_it_has_ended(
    leases: Leases,
) -> None:
    deadlines = Deadlines()
    deadlines.table[attempt_over(leases, "a", ends_at=10.0)] = 10.0
    leases.in_use.add("a")
    now, pauses = 11.0, []
    for _ in range(8):
        next_at = deadlines.cut_late(now)
        pauses.append(round(next_at - now, 6))
        now = next_at
    assert pauses[:3] == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    assert pauses[-1] == LONGEST_AGAIN_S

    leases.in_use.clear()
    assert deadlines.cut_late(now) == NEVER
    assert set(leases.aborted) == {"a"}


def test_one_whose_connection_cannot_be_shut_keeps_no_other_from_being_cut(
    leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 59."""

    class Unhashable(Exception):
        pass

    class BrokenLeases:
        def abort(self, token: Any) -> bool:
            raise Unhashable("weak object has gone away")

    deadlines = Deadlines()
    broken = [attempt_over(BrokenLeases(), token, ends_at=10.0) for token in "bc"]  # type: ignore[arg-type]
    sound = [attempt_over(leases, token, ends_at=10.0) for token in "ad"]
    for one in (broken[0], *sound, broken[1]):
        deadlines.table[one] = 10.0

    for now in (20.0, 20.1):
        assert deadlines.cut_late(now) == NEVER
    assert (leases.aborted, [one.cut for one in sound]) == (["a", "d"], [True, True])
    assert caplog.text.count("could not cut off an attempt") == 1


def test_the_next_look_is_due_at_the_first_end_of_all(leases: Leases) -> None:
    deadlines = Deadlines()
    for ends_at in (14.0, 12.0, 13.0):
        deadlines.table[attempt_over(leases, ends_at, ends_at=ends_at)] = ends_at
    assert deadlines.cut_late(11.0) == 12.0 + SLACK_S
    assert deadlines.cut_late(13.0) == 13.0 + SLACK_S
    assert leases.aborted == [12.0]


def test_the_thread_sleeps_through_calls_that_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roused by each call it would cost more than the calls' own bookkeeping."""
    looks = []
    cut_late = Deadlines.cut_late
    monkeypatch.setattr(Deadlines, "cut_late", lambda self, *at: looks.append(at) or cut_late(self, *at))
    body = "    timeouts: {attempt: 5m, deadline: 10m}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        for _ in range(100):
            hr.upstream("billing").urlopen("GET", "/")
            # A call that it meets while it looks may rouse it again, and on a busy machine it looks for long.
            wait_until(lambda: deadlines.wake_at < NEVER and not deadlines._gate.is_set)
        assert 1 <= len(looks) <= 10  # the first call's, and the second because the gate was open by then


def test_a_late_look_gives_everybody_overdue_a_grace_whatever_the_sockets_say(leases: Leases) -> None:
    """failures.md 67. The owner may have read the answer and not yet settled: the socket is silent then."""
    deadlines = Deadlines()
    silent, young = attempt_over(leases, "a", ends_at=10.0), attempt_over(leases, "b", ends_at=11.79)
    deadlines.table |= {silent: 10.0, young: 11.79}
    assert deadlines.cut_late(11.8, late_s=1.795) == pytest.approx(11.8 + GRACE_S)
    assert leases.aborted == []

    deadlines.table.pop(young)  # its owner had come to the end
    now = 11.8
    for _ in range(MOST_GRACES - 1):
        assert not silent.cut
        now = deadlines.cut_late(now + GRACE_S, late_s=0.0) - GRACE_S
    assert deadlines.cut_late(now + GRACE_S, late_s=0.0) == NEVER
    assert (leases.aborted, silent.cut, silent.excused) == (["a"], True, True)
    assert (young.cut, young.excused) == (False, False)


def test_a_look_in_time_gives_a_grace_once_where_something_has_arrived(leases: Leases) -> None:
    """failures.md 67."""
    deadlines = Deadlines()
    said, silent = attempt_over(leases, "said", ends_at=10.0), attempt_over(leases, "silent", ends_at=10.0)
    deadlines.table |= {said: 10.0, silent: 10.0}
    leases.readable.add("said")
    now = 10.0 + SLACK_S
    assert deadlines.cut_late(now) == now + GRACE_S
    assert (leases.aborted, silent.excused) == (["silent"], False)
    assert deadlines.cut_late(now + GRACE_S) == NEVER
    assert (leases.aborted, said.excused) == (["silent", "said"], True)


def test_a_limit_holds_even_where_every_look_is_late(leases: Leases) -> None:
    """failures.md 67."""
    deadlines, attempt = Deadlines(), attempt_over(leases, "a", ends_at=10.0)
    deadlines.table[attempt] = 10.0
    now, looks = 11.0, 0
    while not attempt.cut:
        now = deadlines.cut_late(now, late_s=1.0) + 1.0
        looks += 1
    assert looks == MOST_GRACES + 1


def test_a_grace_is_forgotten_with_the_end_that_it_was_given_for(leases: Leases) -> None:
    """The same attempt comes back into the table while its failed answer is set aside."""
    deadlines, attempt = Deadlines(), attempt_over(leases, "a", ends_at=10.0)
    deadlines.table[attempt] = 10.0
    deadlines.cut_late(11.0, late_s=1.0)
    deadlines.table[attempt] = 11.5
    assert deadlines.cut_late(11.0 + GRACE_S) == 11.5 + SLACK_S
    assert not attempt.cut


def test_an_end_before_those_known_is_met_all_the_same(leases: Leases) -> None:
    deadlines = Deadlines()
    try:
        now = time.monotonic()
        for token, in_s in (("late", 30.0), ("soon", 0.05)):
            made = attempt_over(leases, token, ends_at=now + in_s)
            deadlines.table[made] = made.ends_at
            if made.ends_at < deadlines.wake_at:
                deadlines.rouse(made.ends_at)
        wait_until(lambda: leases.aborted == ["soon"])
    finally:
        deadlines.table.clear()
        deadlines.stop()
    assert not any(one.name == "headrace-deadline" for one in threading.enumerate())


def test_a_thread_that_ends_by_itself_is_replaced_by_the_next_attempt(
    leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 60."""

    class OfThisTest(Exception):
        pass

    broken = True

    def clock() -> float:
        if broken:
            raise OfThisTest
        return time.monotonic()

    deadlines = Deadlines(clock=clock)
    for token in "ab":
        late = attempt_over(leases, token, ends_at=time.monotonic())
        deadlines.table[late] = late.ends_at
        assert late.ends_at < deadlines.wake_at
        deadlines.rouse(late.ends_at)
        if broken:
            wait_until(lambda: "could not go on with the deadline thread" in caplog.text)
            wait_until(lambda: not deadlines._thread or not deadlines._thread.is_alive())
        broken = False
    wait_until(lambda: sorted(leases.aborted) == ["a", "b"])
    deadlines.stop()


def test_stopped_it_starts_again_with_the_next_attempt(leases: Leases) -> None:
    deadlines = Deadlines()
    for token in ("first", "second"):
        made = attempt_over(leases, token, ends_at=time.monotonic())
        deadlines.table[made] = made.ends_at
        deadlines.rouse(made.ends_at)
        wait_until(lambda token=token: leases.aborted[-1:] == [token])
        deadlines.stop()
    assert not any(one.name == "headrace-deadline" for one in threading.enumerate())


def test_an_interrupt_anywhere_in_the_start_of_the_thread_leaves_none_that_cannot_end() -> None:
    """`Thread.start()` waits for an Event that an interrupt may leave locked: the thread then stands there for good."""
    before = {thread for thread in threading.enumerate() if thread.name == "headrace-deadline"}

    def left() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "headrace-deadline" and one not in before]

    point, went_on = 0, True
    while went_on:
        point += 1
        one = Deadlines()
        went_on = interrupted_at(point, lambda: one.rouse(time.monotonic() + 60.0))  # noqa: B023 - called at once
        one.rouse(time.monotonic() + 60.0)  # as the next attempt does
        one.stop()
        wait_until(lambda: not left())
    assert point > 20
