from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest

from headrace.policy.breaker.circuit import (
    Circuit,
    CircuitState,
    Permit,
    Refusal,
    Refused,
    Transition,
    Trigger,
    Verdict,
)
from headrace.policy.breaker.half_open import HalfOpen
from headrace.policy.breaker.ramp import Ramp
from headrace.policy.breaker.transition import TRANSITIONS
from headrace.policy.plan import CircuitMode, CircuitPlan, CountWindowPlan, SlowCallPlan, TimeWindowPlan
from support.plans import HALF_OPEN, OPEN_FOR, circuit_plan
from support.virtual import constant

CLOSED, OPEN, HALF = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
SUCCESS, FAILURE, IGNORED = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED
T0 = 1000.0


class Bench:
    """A circuit and what it told."""

    def __init__(self, plan: CircuitPlan | None = None, *, rng: float = 0.5) -> None:
        self.told: list[Transition] = []
        self.waived: list[Refused] = []
        self.circuit = Circuit(
            plan or circuit_plan(),
            rng=constant(rng),
            on_transition=self.told.append,
            on_waived=self.waived.append,
        )

    def call(self, verdict: Verdict, now: float, duration_s: float = 0.0) -> int | None:
        return self.circuit.record(self.permit(now), verdict, now, duration_s)

    def apply(self, plan: CircuitPlan, now: float) -> None:
        self.told += self.circuit.apply(plan, now)

    def permit(self, now: float) -> Permit:
        permit = self.circuit.acquire(now)
        assert isinstance(permit, Permit)
        return permit

    def refused(self, now: float) -> Refused:
        refused = self.circuit.acquire(now)
        assert isinstance(refused, Refused)
        return refused

    def opened(self, now: float = T0) -> Bench:
        while self.circuit.state is CLOSED:
            self.call(FAILURE, now)
        return self


# Tripping


def test_a_fresh_circuit_is_closed_and_hands_out_one_shared_permit() -> None:
    bench = Bench()

    assert bench.permit(T0) is bench.permit(T0 + 1)


def test_closed_is_not_reachable_from_open() -> None:
    assert {after for (before, _), after in TRANSITIONS.items() if before is OPEN} == {HALF}


def test_as_many_consecutive_failures_as_the_plan_says_open_the_circuit() -> None:
    bench = Bench()
    for _ in range(4):
        bench.call(FAILURE, T0)
    assert bench.circuit.state is CLOSED

    bench.call(FAILURE, T0)

    (told,) = bench.told
    assert told == Transition(
        from_state=CLOSED,
        to_state=OPEN,
        at_s=T0,
        reason=Trigger.CONSECUTIVE_FAILURES,
        failure_rate=None,
        calls=5,
        failures=5,
        consecutive_failures=5,
        threshold=5,
        open_for_s=5.0,
        generation=1,
    )


def test_a_success_starts_the_consecutive_count_again_and_an_ignored_outcome_does_not() -> None:
    bench = Bench()
    for verdict in [FAILURE] * 4 + [SUCCESS] + [FAILURE] * 4 + [IGNORED]:
        bench.call(verdict, T0)
    assert bench.circuit.state is CLOSED

    bench.call(FAILURE, T0)

    assert bench.circuit.state is OPEN


def test_eighty_percent_failures_trip_although_they_are_never_consecutive_enough() -> None:
    """failures.md 5."""
    bench = Bench()
    for number in range(20):
        bench.call(SUCCESS if number % 5 == 0 else FAILURE, T0)

    (told,) = bench.told
    assert (told.reason, told.failure_rate, told.calls, told.threshold) == (
        Trigger.FAILURE_RATE,
        0.8,
        20,
        0.5,
    )


def test_ignored_outcomes_are_in_neither_part_of_the_failure_rate() -> None:
    """failures.md 5."""
    bench = Bench(circuit_plan(consecutive_failures=None))
    for verdict in [SUCCESS] * 9 + [IGNORED] * 100 + [FAILURE] * 10:
        bench.call(verdict, T0)
    assert bench.circuit.view(T0).calls == 19

    bench.call(FAILURE, T0)

    assert bench.told[0].failure_rate == 11 / 20


def test_a_success_never_trips_even_when_it_completes_the_minimum_of_calls() -> None:
    bench = Bench(circuit_plan(consecutive_failures=None))
    for verdict in [FAILURE] * 19 + [SUCCESS]:
        bench.call(verdict, T0)

    assert bench.circuit.state is CLOSED
    assert bench.circuit.view(T0).failure_rate == 19 / 20


def test_failures_that_have_left_the_window_no_longer_count() -> None:
    bench = Bench(circuit_plan(consecutive_failures=None))
    for _ in range(19):
        bench.call(FAILURE, T0)

    bench.call(FAILURE, T0 + 10.0)

    assert bench.circuit.state is CLOSED
    assert bench.circuit.view(T0 + 10.0).calls == 1


def test_a_disabled_circuit_counts_and_never_trips() -> None:
    bench = Bench(circuit_plan(mode="disabled"))
    for _ in range(50):
        bench.call(FAILURE, T0)

    view = bench.circuit.view(T0)
    assert (view.state, view.calls, view.failures, view.failure_rate) == (CLOSED, 50, 50, 1.0)


def test_a_late_success_of_an_earlier_generation_does_not_close_an_open_circuit() -> None:
    """failures.md 4."""
    bench = Bench()
    early = bench.permit(T0)
    bench.opened()

    bench.circuit.record(early, SUCCESS, T0 + 1)
    assert bench.circuit.state is OPEN

    bench.permit(T0 + 5)
    bench.circuit.record(early, SUCCESS, T0 + 5)
    view = bench.circuit.view(T0 + 5)
    assert (view.state, view.verdicts, view.probes_in_flight) == (HALF, 0, 1)


def test_a_late_success_of_a_probe_says_nothing_once_the_circuit_has_opened_again() -> None:
    """Its number is that of a probe of the later phase.

    failures.md 4.
    """
    one_probe = replace(HALF_OPEN, max_probes=2, success_rate_threshold=1.0)
    bench = Bench(circuit_plan(half_open=one_probe)).opened()
    late = bench.permit(T0 + 5)
    bench.call(FAILURE, T0 + 5)
    assert bench.circuit.state is OPEN

    now = T0 + 5 + bench.circuit.view(T0 + 5).retry_after_s
    bench.permit(now)
    bench.circuit.record(late, SUCCESS, now)
    view = bench.circuit.view(now)
    assert (view.state, view.verdicts, view.probes_in_flight) == (HALF, 0, 1)


def test_a_late_failure_of_before_an_opening_does_not_count_once_the_circuit_is_closed_again() -> None:
    """failures.md 4."""
    bench = Bench()
    late = bench.permit(T0)
    bench.opened()
    for _ in range(HALF_OPEN.max_probes):
        bench.call(SUCCESS, T0 + 5)
    assert bench.circuit.state is CLOSED

    bench.circuit.record(late, FAILURE, T0 + 5)
    assert bench.circuit.view(T0 + 5).failures == 0


# Open


def test_an_open_circuit_refuses_and_says_how_long_and_why() -> None:
    refused = Bench().opened().refused(T0 + 2.7)

    assert (refused.state, refused.calls, refused.failure_rate, refused.threshold) == (OPEN, 5, None, 5)
    assert refused.retry_after_s == pytest.approx(2.3)
    assert str(refused) == "circuit open for 2.3 s more (5 failed calls in a row)"


def test_the_refusal_text_of_a_failure_rate_holds_rate_calls_and_threshold() -> None:
    bench = Bench(circuit_plan(minimum_calls=40, consecutive_failures=None))
    for number in range(40):
        bench.call(SUCCESS if number < 15 else FAILURE, T0)

    assert (
        str(bench.refused(T0 + 2.7))
        == "circuit open for 2.3 s more (failure rate 0.62 over 40 calls, threshold 0.5)"
    )


def test_the_open_period_grows_with_each_consecutive_opening_up_to_its_maximum() -> None:
    bench = Bench().opened()
    now = T0
    for _ in range(5):
        now += 60.0
        bench.call(FAILURE, now)

    assert [told.open_for_s for told in bench.told if told.to_state is OPEN] == [5, 10, 20, 40, 60, 60]


def test_the_open_period_starts_small_again_after_the_circuit_was_closed() -> None:
    bench = Bench().opened()
    bench.call(FAILURE, T0 + 5)
    for _ in range(3):
        bench.call(SUCCESS, T0 + 15)
    assert bench.circuit.state is CLOSED

    bench.opened(T0 + 20)

    assert bench.told[-1].open_for_s == 5.0


@pytest.mark.parametrize(("rng", "open_for_s"), [(0.0, 4.5), (0.5, 5.0), (1.0, 5.5)])
def test_the_open_period_is_jittered_by_its_share(rng: float, open_for_s: float) -> None:
    bench = Bench(circuit_plan(open_for=OPEN_FOR), rng=rng).opened()

    assert bench.told[0].open_for_s == pytest.approx(open_for_s)


def test_an_upstream_down_for_ever_does_not_overflow_the_growth() -> None:
    bench = Bench(circuit_plan(open_for=replace(OPEN_FOR, jitter=0.0, multiplier=1e300))).opened()
    for _ in range(4):
        bench.call(FAILURE, bench.told[-1].at_s + 60.0)

    assert bench.told[-1].open_for_s == 60.0


# Half open


def test_a_circuit_that_begins_to_probe_says_what_ended_its_open_period() -> None:
    bench = Bench().opened()
    bench.permit(T0 + 5.0)

    assert bench.told[-1].why == "open_for elapsed"


def test_a_circuit_that_begins_to_probe_has_counted_no_call_yet() -> None:
    bench = Bench().opened()
    bench.permit(T0 + 5)

    told = bench.told[-1]
    assert (told.to_state, told.calls, told.failures, told.slow_calls, told.failure_rate) == (
        HALF,
        0,
        0,
        0,
        None,
    )


def test_slow_verdicts_in_hand_decide_nothing_once_a_reload_calls_no_call_slow() -> None:
    slow = SlowCallPlan(duration_s=1.0, rate_threshold=0.5)
    bench = Bench(circuit_plan(slow_call=slow)).opened()
    bench.call(SUCCESS, T0 + 5, 2.0)

    bench.apply(circuit_plan(slow_call=replace(slow, duration_s=None, rate_threshold=0.3)), T0 + 5)

    assert bench.circuit.state is HALF


def test_half_open_admits_only_max_probes() -> None:
    """failures.md 1."""
    bench = Bench().opened()

    answers = [bench.circuit.acquire(T0 + 5) for _ in range(20)]

    assert sum(isinstance(answer, Permit) for answer in answers) == 3
    assert bench.circuit.view(T0 + 5).probes_in_flight == 3


def test_half_open_with_no_place_says_when_at_the_latest_something_changes() -> None:
    bench = Bench().opened()
    for delta_s in (5, 6, 7):
        bench.permit(T0 + delta_s)

    refused = bench.refused(T0 + 8)

    assert (refused.state, refused.retry_after_s) == (HALF, 5.0)
    assert str(refused) == (
        "circuit half open with no place for another probe: 3 under way (5 failed calls in a row)"
    )


def test_the_circuit_closes_once_max_probes_verdicts_meet_the_threshold() -> None:
    bench = Bench().opened()
    for _ in range(2):
        bench.call(SUCCESS, T0 + 5)
    assert bench.circuit.state is HALF

    bench.call(SUCCESS, T0 + 6)

    told = bench.told[-1]
    assert (told.to_state, told.reason, told.calls, told.failures) == (CLOSED, Trigger.PROBES_SUCCEEDED, 3, 0)
    view = bench.circuit.view(T0 + 6)
    assert (view.calls, view.consecutive_failures, view.retry_after_s) == (0, 0, 0.0)


def test_the_circuit_opens_as_soon_as_the_threshold_cannot_be_met() -> None:
    bench = Bench().opened()
    still_out = bench.permit(T0 + 5)

    bench.call(FAILURE, T0 + 6)

    told = bench.told[-1]
    assert (told.to_state, told.reason, told.calls, told.failures) == (OPEN, Trigger.PROBE_FAILED, 1, 1)
    assert (told.threshold, told.open_for_s) == (0.9, 10.0)
    assert str(bench.refused(T0 + 6)) == (
        "circuit open for 10.0 s more (probe failed: 1 of 1 probes failed, 90% of them must succeed)"
    )
    bench.circuit.record(still_out, SUCCESS, T0 + 7)
    assert bench.circuit.state is OPEN


@pytest.mark.parametrize(
    ("threshold", "verdicts", "state"),
    [
        pytest.param(0.5, [FAILURE], HALF, id="can still be met"),
        pytest.param(0.5, [FAILURE, SUCCESS], HALF, id="met, but not all verdicts are in"),
        pytest.param(0.5, [FAILURE, FAILURE, SUCCESS, SUCCESS], CLOSED, id="met exactly"),
        pytest.param(0.5, [FAILURE, FAILURE, FAILURE], OPEN, id="cannot be met"),
        pytest.param(0.75, [FAILURE, SUCCESS, SUCCESS, SUCCESS], CLOSED, id="three quarters of four"),
        pytest.param(1.0, [SUCCESS, SUCCESS, SUCCESS, FAILURE], OPEN, id="the last one spoils it"),
    ],
)
def test_half_open_decides_by_its_success_rate(
    threshold: float, verdicts: list[Verdict], state: CircuitState
) -> None:
    half_open = replace(HALF_OPEN, max_probes=4, success_rate_threshold=threshold)
    bench = Bench(circuit_plan(half_open=half_open)).opened()

    for verdict in verdicts:
        bench.call(verdict, T0 + 5)

    assert bench.circuit.state is state


def test_a_hung_probe_expires_and_counts_as_failed_instead_of_rejecting_everybody_for_ever() -> None:
    """failures.md 2."""
    bench = Bench().opened()
    hung = bench.permit(T0 + 5)

    refused = bench.refused(T0 + 14)

    told = bench.told[-1]
    assert (told.to_state, told.reason, told.at_s) == (OPEN, Trigger.PROBE_EXPIRED, T0 + 13)
    assert refused.retry_after_s == pytest.approx(
        9.0
    )  # opened for 10 s when it expired, not when somebody noticed
    bench.circuit.record(hung, SUCCESS, T0 + 14)
    assert bench.circuit.state is OPEN
    assert isinstance(bench.circuit.acquire(T0 + 23), Permit)


def test_the_late_answer_of_an_expired_probe_changes_nothing_even_when_nobody_called_in_between() -> None:
    bench = Bench().opened()
    hung = bench.permit(T0 + 5)

    bench.circuit.record(hung, SUCCESS, T0 + 13)

    assert bench.circuit.state is OPEN


def test_a_cancelled_probe_gives_its_place_back_and_decides_nothing() -> None:
    """failures.md 3."""
    bench = Bench().opened()
    probes = [bench.permit(T0 + 5) for _ in range(3)]
    bench.refused(T0 + 5)

    bench.circuit.record(probes[1], IGNORED, T0 + 5)

    view = bench.circuit.view(T0 + 5)
    assert (view.state, view.verdicts, view.probes_in_flight) == (HALF, 0, 2)
    bench.permit(T0 + 5)


def test_a_probe_that_is_given_back_twice_counts_once() -> None:
    bench = Bench().opened()
    probe = bench.permit(T0 + 5)

    bench.circuit.record(probe, SUCCESS, T0 + 5)
    bench.circuit.record(probe, SUCCESS, T0 + 5)

    assert bench.circuit.view(T0 + 5).verdicts == 1


def test_a_half_open_window_with_a_failed_probe_in_it_opens_the_circuit_when_it_passes() -> None:
    half_open = replace(HALF_OPEN, success_rate_threshold=0.5)
    bench = Bench(circuit_plan(half_open=half_open)).opened()
    bench.call(FAILURE, T0 + 5)
    assert bench.circuit.state is HALF

    bench.circuit.acquire(T0 + 65)

    told = bench.told[2]
    assert (told.to_state, told.reason, told.at_s) == (OPEN, Trigger.WINDOW_ELAPSED, T0 + 65)


def test_a_failed_probe_ends_the_phase_with_the_window_that_it_is_in_however_many_have_passed() -> None:
    half_open = replace(HALF_OPEN, success_rate_threshold=0.5, window_s=60.0)
    bench = Bench(circuit_plan(half_open=half_open)).opened()
    bench.call(SUCCESS, T0 + 5)
    bench.call(FAILURE, T0 + 5 + 60 + 60 + 5)  # two windows have passed, and the third began 5 s ago

    assert bench.circuit.state is HALF
    bench.circuit.acquire(T0 + 5 + 180 - 0.5)
    assert bench.circuit.state is HALF
    bench.circuit.acquire(T0 + 5 + 180 + 0.5)

    told = bench.told[2]
    assert (told.to_state, told.reason, told.at_s) == (OPEN, Trigger.WINDOW_ELAPSED, T0 + 5 + 180)


def test_probes_that_failed_are_among_those_that_a_phase_admits() -> None:
    bench = Bench(circuit_plan(half_open=replace(HALF_OPEN, success_rate_threshold=0.5))).opened()
    bench.call(FAILURE, T0 + 5)
    bench.permit(T0 + 5), bench.permit(T0 + 5)

    assert bench.refused(T0 + 5).kind is Refusal.NO_PLACE


def test_a_low_traffic_upstream_with_one_call_a_minute_closes_again() -> None:
    bench = Bench().opened()

    for minute in (1, 2, 3):
        bench.call(SUCCESS, T0 + 60.0 * minute)

    assert bench.circuit.state is CLOSED


def test_a_week_of_silence_in_half_open_keeps_the_verdicts() -> None:
    bench = Bench().opened()
    bench.call(SUCCESS, T0 + 5)

    bench.permit(T0 + 7 * 86400)

    view = bench.circuit.view(T0 + 7 * 86400)
    assert (view.state, view.verdicts, view.probes_in_flight) == (HALF, 1, 1)


@pytest.mark.parametrize("noticed_at", [T0 + 11, T0 + 12])
def test_a_probe_that_expires_with_the_end_of_a_window_is_a_failure_in_that_window(noticed_at: float) -> None:
    half_open = replace(
        HALF_OPEN, max_probes=2, success_rate_threshold=0.5, window_s=2.0, probe_timeout_s=6.0
    )
    bench = Bench(circuit_plan(half_open=half_open)).opened()
    bench.permit(T0 + 5)

    bench.refused(noticed_at)

    told = bench.told[-1]
    assert (told.to_state, told.reason, told.at_s) == (OPEN, Trigger.WINDOW_ELAPSED, T0 + 11)


def test_of_two_probes_only_the_one_whose_time_is_up_has_expired() -> None:
    bench = Bench(circuit_plan(half_open=replace(HALF_OPEN, success_rate_threshold=0.5))).opened()
    bench.permit(T0 + 5)  # hangs; its time is up at T0 + 13
    later = bench.permit(T0 + 10)

    bench.permit(T0 + 14)
    bench.circuit.record(later, SUCCESS, T0 + 15)

    assert bench.circuit.view(T0 + 15).verdicts == 2


def test_an_expiry_can_complete_the_verdicts_and_close_the_circuit() -> None:
    half_open = replace(HALF_OPEN, max_probes=2, success_rate_threshold=0.5)
    bench = Bench(circuit_plan(half_open=half_open)).opened()
    bench.permit(T0 + 5)
    bench.call(SUCCESS, T0 + 5)

    permit = bench.permit(T0 + 14)

    assert permit.probe is None
    assert (bench.told[-1].to_state, bench.told[-1].at_s) == (CLOSED, T0 + 13)


# Slow calls

SLOW = SlowCallPlan(duration_s=1.0, rate_threshold=0.5)


def test_slow_calls_open_the_circuit_at_their_own_threshold_although_all_of_them_succeed() -> None:
    bench = Bench(circuit_plan(slow_call=SLOW))
    for number in range(20):
        bench.call(SUCCESS, T0, duration_s=1.0 if number % 2 else 0.99)

    (told,) = bench.told
    assert (told.reason, told.calls, told.slow_calls, told.failures, told.threshold) == (
        Trigger.SLOW_CALL_RATE,
        20,
        10,
        0,
        0.5,
    )
    assert (
        str(bench.refused(T0))
        == "circuit open for 5.0 s more (slow-call rate 0.50 over 20 calls, threshold 0.5)"
    )


def test_a_fast_success_never_trips_however_many_were_slow() -> None:
    bench = Bench(circuit_plan(slow_call=SLOW))
    for number in range(20):
        bench.call(SUCCESS, T0, duration_s=0.0 if number == 19 else 5.0)

    assert bench.circuit.state is CLOSED
    assert bench.circuit.view(T0).slow_call_rate == 19 / 20


def test_a_slow_failure_counts_as_both_and_a_slow_success_ends_a_row_of_failures() -> None:
    bench = Bench(circuit_plan(slow_call=SLOW))
    for verdict in [FAILURE] * 4 + [SUCCESS]:
        bench.call(verdict, T0, duration_s=2.0)

    view = bench.circuit.view(T0)
    assert (view.calls, view.failures, view.slow_calls, view.consecutive_failures) == (5, 4, 5, 0)


def test_without_a_duration_nothing_is_slow() -> None:
    bench = Bench()
    bench.call(SUCCESS, T0, duration_s=1e9)

    view = bench.circuit.view(T0)
    assert (view.slow_calls, view.slow_call_rate) == (0, None)


def test_calls_that_were_slow_by_the_old_file_open_nothing_once_none_is_called_slow() -> None:
    bench = Bench(circuit_plan(slow_call=replace(SLOW, rate_threshold=1.0), consecutive_failures=None))
    for number in range(20):
        bench.call(FAILURE if number == 0 else SUCCESS, T0, duration_s=5.0 if number else 0.0)

    bench.apply(circuit_plan(slow_call=SlowCallPlan(None, 0.5), consecutive_failures=None), T0)
    bench.call(FAILURE, T0)

    view = bench.circuit.view(T0)
    assert (view.state, view.slow_call_rate) == (CLOSED, None)  # not 0.0: nothing is measured


def test_probes_that_succeed_as_slowly_as_before_open_the_circuit_again() -> None:
    bench = Bench(circuit_plan(slow_call=SLOW)).opened()
    bench.call(SUCCESS, T0 + 5, duration_s=1.0)
    assert bench.circuit.state is HALF

    bench.call(SUCCESS, T0 + 5, duration_s=1.0)

    told = bench.told[-1]
    assert (told.to_state, told.reason, told.slow_calls, told.threshold) == (
        OPEN,
        Trigger.PROBES_SLOW,
        2,
        0.5,
    )
    assert str(bench.refused(T0 + 5)) == "circuit open for 10.0 s more (probes slow: 2 of 2 probes)"


def test_probes_that_are_all_slow_meet_a_slow_call_threshold_of_one() -> None:
    bench = Bench(circuit_plan(slow_call=SlowCallPlan(1.0, 1.0))).opened()
    for _ in range(3):
        assert bench.circuit.state is not CLOSED
        bench.call(SUCCESS, T0 + 5, duration_s=1.0)

    assert (bench.circuit.state, bench.told[-1].reason) == (OPEN, Trigger.PROBES_SLOW)


def test_a_half_open_window_with_only_slow_successes_keeps_them() -> None:
    bench = Bench(circuit_plan(slow_call=SlowCallPlan(1.0, 1.0))).opened()
    bench.call(SUCCESS, T0 + 5, duration_s=1.0)
    bench.call(SUCCESS, T0 + 70, duration_s=0.1)

    assert bench.circuit.state is HALF
    assert bench.circuit.view(T0 + 70).verdicts == 2


# A window of calls


def test_a_count_window_judges_the_last_calls_whatever_their_age() -> None:
    bench = Bench(circuit_plan(window=CountWindowPlan(4, None), minimum_calls=4, consecutive_failures=None))
    for hour, verdict in enumerate([FAILURE, SUCCESS, SUCCESS, SUCCESS, FAILURE]):
        bench.call(verdict, T0 + 3600.0 * hour)
    assert bench.circuit.state is CLOSED

    bench.call(FAILURE, T0 + 5 * 3600.0)

    assert (bench.told[0].failure_rate, bench.told[0].calls) == (0.5, 4)


def test_a_ring_of_8192_can_be_trimmed_to_the_last_second() -> None:
    bench = Bench(circuit_plan(window=CountWindowPlan(8192, 1.0), consecutive_failures=None))
    for number in range(19):
        bench.call(FAILURE, T0 + number / 100)

    bench.call(FAILURE, T0 + 1.05)

    assert bench.circuit.state is CLOSED
    assert bench.circuit.view(T0 + 1.05).calls == 14  # those of T0 .. T0 + 0.05 have left


# Modes


def test_an_observing_circuit_goes_through_its_states_and_refuses_nothing() -> None:
    bench = Bench(circuit_plan(mode="observe"))
    for _ in range(5):
        bench.call(FAILURE, T0)
    assert bench.circuit.state is OPEN
    assert bench.told[0].is_observed
    assert not bench.circuit.is_shut

    permits = [bench.permit(T0 + 1) for _ in range(3)]

    assert [refused.kind for refused in bench.waived] == [Refusal.OPEN] * 3
    for permit in permits:  # made all the same, unknown to the circuit
        bench.circuit.record(permit, SUCCESS, T0 + 1)
    assert bench.circuit.view(T0 + 1).calls == 5
    for _ in range(3):
        bench.call(SUCCESS, T0 + 6)
    assert bench.circuit.state is CLOSED


def test_half_open_an_observing_circuit_judges_its_probes_and_lets_the_others_pass() -> None:
    bench = Bench(circuit_plan(mode="observe")).opened()

    answers = [bench.permit(T0 + 5) for _ in range(20)]

    assert sum(permit.probe is not None for permit in answers) == 3
    assert [refused.kind for refused in bench.waived] == [Refusal.NO_PLACE] * 17


def test_forced_open_refuses_everything_without_a_probe_for_as_long_as_it_is_said() -> None:
    bench = Bench(circuit_plan(mode="forced_open"))

    refused = bench.refused(T0)

    assert (refused.kind, refused.retry_after_s, refused.cause) == (Refusal.FORCED_OPEN, 60.0, None)
    assert str(refused) == "circuit forced open by the configuration (circuit_breaker.mode: forced_open)"
    assert (refused.failure_rate, refused.calls, refused.threshold) == (None, 0, None)
    assert bench.refused(T0 + 1e6).kind is Refusal.FORCED_OPEN
    assert bench.told == []
    assert bench.circuit.is_shut
    assert bench.circuit.view(T0).label == "forced_open"


def test_forcing_a_circuit_open_keeps_its_window_and_its_state() -> None:
    bench = Bench()
    for _ in range(3):
        bench.call(FAILURE, T0)
    late = bench.permit(T0)

    bench.apply(circuit_plan(mode="forced_open"), T0)
    bench.refused(T0 + 1)
    bench.circuit.record(late, FAILURE, T0 + 1)
    bench.apply(circuit_plan(), T0 + 2)

    view = bench.circuit.view(T0 + 2)
    assert (view.state, view.generation, view.calls, view.consecutive_failures) == (CLOSED, 0, 4, 4)
    bench.call(FAILURE, T0 + 2)
    assert bench.circuit.state is OPEN


def test_disabling_lets_calls_through_an_open_circuit_and_keeps_what_it_counted() -> None:
    bench = Bench().opened()

    bench.apply(circuit_plan(mode="disabled"), T0 + 1)

    assert [(told.from_state, told.to_state, told.reason) for told in bench.told[1:]] == [
        (OPEN, HALF, Trigger.DISABLED),
        (HALF, CLOSED, Trigger.DISABLED),
    ]
    bench.call(FAILURE, T0 + 1)
    assert bench.circuit.state is CLOSED
    view = bench.circuit.view(T0 + 1)
    assert (view.calls, view.consecutive_failures) == (6, 6)
    bench.apply(circuit_plan(), T0 + 2)
    assert bench.circuit.state is CLOSED
    bench.call(FAILURE, T0 + 2)  # the rules are asked after a failure, and they have forgotten nothing
    assert bench.circuit.state is OPEN


# The ramp

RAMP = replace(HALF_OPEN, ramp_s=10.0)


def closed_again(plan: CircuitPlan) -> Bench:
    bench = Bench(plan).opened()
    for _ in range(3):
        bench.call(SUCCESS, T0 + 5)
    assert bench.circuit.state is CLOSED
    return bench


def test_after_closing_the_share_of_calls_admitted_grows_linearly() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))
    admitted = []
    for second in range(10):
        answers = [bench.circuit.acquire(T0 + 5 + second + number / 100) for number in range(100)]
        admitted.append(sum(isinstance(answer, Permit) for answer in answers))

    # The integral of the share over each second, give or take the call that is not whole yet.
    assert admitted == [pytest.approx(10 * second + 5, abs=1.01) for second in range(10)]
    assert bench.permit(T0 + 15) is bench.permit(T0 + 15)


def test_the_first_call_after_closing_goes_through_so_that_little_traffic_is_not_held_up() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))

    bench.permit(T0 + 5)
    refused = bench.refused(T0 + 5)

    assert (refused.kind, refused.state, refused.retry_after_s) == (Refusal.RAMP, CLOSED, 10.0)


def test_a_refusal_of_the_ramp_says_which_share_goes_through() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))
    bench.permit(T0 + 7.5)

    assert str(bench.refused(T0 + 7.5)) == (
        "circuit closed again and letting through 25% of calls, all of them in 7.5 s (5 failed calls in a row)"
    )
    assert bench.circuit.view(T0 + 7.5).ramp_share == 0.25


def test_failures_during_the_ramp_are_judged_by_the_normal_rules() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP, consecutive_failures=2))
    permits = [bench.permit(T0 + 5)]
    assert bench.refused(T0 + 14.9).kind is Refusal.RAMP
    permits.append(bench.permit(T0 + 14.9))

    for permit in permits:
        bench.circuit.record(permit, FAILURE, T0 + 14.9)

    assert bench.told[-1].reason is Trigger.CONSECUTIVE_FAILURES
    assert bench.refused(T0 + 14.9).kind is Refusal.OPEN


def test_a_circuit_that_opens_during_its_ramp_has_none_any_more() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP, consecutive_failures=1))
    bench.call(FAILURE, T0 + 6)

    assert bench.circuit.state is OPEN
    assert bench.circuit.view(T0 + 6).ramp_share is None


def test_a_reload_that_takes_the_ramp_away_ends_it() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))
    bench.permit(T0 + 5)
    bench.refused(T0 + 5)

    bench.apply(circuit_plan(), T0 + 5)

    assert bench.permit(T0 + 5) is bench.permit(T0 + 5)
    assert bench.circuit.generation == 3


@pytest.mark.parametrize("mode", ["disabled", "observe"])
def test_nobody_is_held_up_by_a_ramp_once_the_breaker_may_refuse_nothing(mode: CircuitMode) -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))
    bench.permit(T0 + 5)
    bench.refused(T0 + 5)

    bench.apply(circuit_plan(half_open=RAMP, mode=mode), T0 + 5)

    for _ in range(10):
        bench.permit(T0 + 5)
    assert [refused.kind for refused in bench.waived] == ([Refusal.RAMP] * 10 if mode == "observe" else [])


# Reload


def test_thresholds_are_live_and_permits_stay_good() -> None:
    bench = Bench()
    for _ in range(3):
        bench.call(FAILURE, T0)
    permit = bench.permit(T0)

    bench.apply(circuit_plan(consecutive_failures=4), T0)
    bench.circuit.record(permit, FAILURE, T0)

    assert (bench.told[0].consecutive_failures, bench.told[0].threshold) == (4, 4)


def test_a_threshold_that_is_over_already_waits_for_the_next_failure() -> None:
    bench = Bench()
    for _ in range(4):
        bench.call(FAILURE, T0)

    bench.apply(circuit_plan(consecutive_failures=2), T0)
    assert bench.circuit.state is CLOSED

    bench.call(FAILURE, T0)
    assert bench.told[0].consecutive_failures == 5


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        pytest.param(TimeWindowPlan(10.0), TimeWindowPlan(60.0), (30, 12), id="longer"),
        pytest.param(TimeWindowPlan(10.0), TimeWindowPlan(5.0), (18, 7), id="shorter"),
        pytest.param(TimeWindowPlan(10.0), CountWindowPlan(100, None), (30, 12), id="to a count"),
        pytest.param(TimeWindowPlan(10.0), CountWindowPlan(4, None), (4, 2), id="to a small count"),
        pytest.param(TimeWindowPlan(10.0), CountWindowPlan(100, 2.0), (9, 4), id="to a count with an age"),
        pytest.param(CountWindowPlan(100, None), TimeWindowPlan(10.0), (30, 12), id="from a count: no ages"),
        pytest.param(CountWindowPlan(100, 60.0), TimeWindowPlan(5.0), (15, 6), id="from a count with ages"),
        pytest.param(CountWindowPlan(100, None), CountWindowPlan(20, None), (20, 8), id="fewer"),
        pytest.param(CountWindowPlan(100, 60.0), CountWindowPlan(100, 3.0), (9, 4), id="younger"),
    ],
)
def test_a_window_of_another_kind_or_size_takes_over_what_it_can_hold(
    before: TimeWindowPlan | CountWindowPlan,
    after: TimeWindowPlan | CountWindowPlan,
    kept: tuple[int, int],
) -> None:
    quiet = {"minimum_calls": 1000, "consecutive_failures": None}
    bench = Bench(circuit_plan(window=before, **quiet))
    for second in range(10):
        for number in range(3):
            bench.call(FAILURE if (3 * second + number) % 5 in (1, 3) else SUCCESS, T0 + second + 0.5)

    bench.apply(circuit_plan(window=after, **quiet), T0 + 9.5)

    view = bench.circuit.view(T0 + 9.5)
    assert (view.calls, view.failures) == kept
    assert (view.state, view.generation) == (CLOSED, 0)


def test_an_open_circuit_stays_open_for_what_it_said_and_then_goes_by_the_new_rules() -> None:
    bench = Bench().opened()
    bench.apply(circuit_plan(half_open=replace(HALF_OPEN, max_probes=1)), T0 + 1)

    assert bench.refused(T0 + 4.9).retry_after_s == pytest.approx(0.1)
    bench.call(SUCCESS, T0 + 5)
    assert bench.circuit.state is CLOSED


def test_verdicts_in_hand_decide_at_once_under_a_lower_number_of_probes() -> None:
    bench = Bench().opened()
    bench.call(SUCCESS, T0 + 5)
    in_flight = bench.permit(T0 + 5)

    bench.apply(circuit_plan(half_open=replace(HALF_OPEN, max_probes=1)), T0 + 6)

    assert (bench.told[-1].to_state, bench.told[-1].reason) == (CLOSED, Trigger.PROBES_SUCCEEDED)
    bench.circuit.record(in_flight, FAILURE, T0 + 6)  # void since the transition
    assert bench.circuit.view(T0 + 6).failures == 0


def test_what_had_happened_before_a_reload_is_judged_by_the_rules_of_its_time() -> None:
    bench = Bench().opened()
    bench.permit(T0 + 5.0)  # a probe that hangs; its lease is over at T0 + 13

    told = bench.circuit.apply(
        circuit_plan(half_open=replace(HALF_OPEN, success_rate_threshold=0.5)), T0 + 20.0
    )

    (transition,) = told
    assert (transition.reason, transition.to_state, transition.at_s) == (
        Trigger.PROBE_EXPIRED,
        OPEN,
        T0 + 13.0,
    )
    assert transition.threshold == 0.9


def test_a_probe_under_way_survives_a_reload_and_its_verdict_counts() -> None:
    bench = Bench().opened()
    probe = bench.permit(T0 + 5)

    bench.apply(circuit_plan(half_open=replace(HALF_OPEN, max_probes=2)), T0 + 6)
    bench.circuit.record(probe, SUCCESS, T0 + 6)

    view = bench.circuit.view(T0 + 6)
    assert (view.state, view.verdicts, view.probes_in_flight) == (HALF, 1, 0)


# A body that breaks after its head was counted


@pytest.mark.parametrize(
    "window", [TimeWindowPlan(10.0), CountWindowPlan(100, None), CountWindowPlan(100, 9.0)]
)
def test_a_success_can_be_turned_into_the_failure_that_it_became(
    window: TimeWindowPlan | CountWindowPlan,
) -> None:
    bench = Bench(circuit_plan(window=window, consecutive_failures=None))
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, SUCCESS, T0)
    for _ in range(18):
        bench.call(FAILURE, T0 + 3)
    assert place is not None

    assert bench.circuit.turn(permit, place, T0 + 4)

    view = bench.circuit.view(T0 + 4)
    assert (view.state, view.calls, view.failures) == (CLOSED, 19, 19)


def test_a_success_that_turns_may_be_the_failure_that_opens_the_circuit() -> None:
    bench = Bench(circuit_plan(consecutive_failures=1))
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, SUCCESS, T0)
    assert place is not None

    assert bench.circuit.turn(permit, place, T0 + 1)

    assert bench.told[0].reason is Trigger.CONSECUTIVE_FAILURES


def test_answers_that_all_break_off_later_are_failures_in_a_row() -> None:
    bench = Bench(circuit_plan(consecutive_failures=4))
    bench.call(FAILURE, T0)
    for _ in range(3):
        permit = bench.permit(T0)
        place = bench.circuit.record(permit, SUCCESS, T0)
        assert place is not None
        assert bench.circuit.turn(permit, place, T0)

    assert bench.told[0].reason is Trigger.CONSECUTIVE_FAILURES


def test_a_success_since_has_ended_the_run_that_a_turned_one_would_go_on_with() -> None:
    bench = Bench(circuit_plan(consecutive_failures=3))
    bench.call(FAILURE, T0)
    bench.call(FAILURE, T0)
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, SUCCESS, T0)
    assert place is not None
    bench.call(SUCCESS, T0)

    assert bench.circuit.turn(permit, place, T0)

    assert (bench.told, bench.circuit.view(T0).consecutive_failures) == ([], 1)


@pytest.mark.parametrize("window", [TimeWindowPlan(10.0), CountWindowPlan(100, None)], ids=["time", "count"])
def test_an_old_success_that_turns_does_not_go_on_with_a_later_run(
    window: TimeWindowPlan | CountWindowPlan,
) -> None:
    bench = Bench(circuit_plan(window=window))
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, SUCCESS, T0)
    for verdict in [FAILURE] * 4 + [SUCCESS]:
        bench.call(verdict, T0 + 2)
    assert place is not None

    assert bench.circuit.turn(permit, place, T0 + 3)

    assert (bench.circuit.state, bench.circuit.view(T0 + 3).consecutive_failures) == (CLOSED, 1)


@pytest.mark.parametrize(
    ("window", "later_calls"),
    [
        pytest.param(TimeWindowPlan(10.0), 0, id="by time"),
        pytest.param(CountWindowPlan(3, None), 3, id="pushed out by later calls"),
        pytest.param(CountWindowPlan(100, 10.0), 0, id="by its age"),
    ],
)
def test_a_success_that_has_left_the_window_is_not_turned(
    window: TimeWindowPlan | CountWindowPlan, later_calls: int
) -> None:
    bench = Bench(circuit_plan(window=window, consecutive_failures=1))
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, SUCCESS, T0)
    for _ in range(later_calls):
        bench.call(SUCCESS, T0 + 10)
    assert place is not None

    assert bench.circuit.turn(permit, place, T0 + 10) is False

    assert bench.circuit.view(T0 + 10).failures == 0


def test_a_success_of_another_generation_or_window_is_not_turned() -> None:
    bench = Bench()
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, SUCCESS, T0)
    assert place is not None
    bench.apply(circuit_plan(window=TimeWindowPlan(20.0)), T0)
    assert bench.circuit.turn(permit, place, T0) is False
    bench.opened()
    assert bench.circuit.turn(permit, place, T0) is False
    assert bench.circuit.view(T0).failures == 5


def test_a_failure_that_has_left_the_window_is_not_mended() -> None:
    bench = Bench()
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, FAILURE, T0)
    assert place is not None

    assert bench.circuit.mend(permit, place, T0 + 10) is False

    assert bench.circuit.view(T0 + 10).consecutive_failures == 1


def test_a_mended_failure_that_breaks_off_after_all_is_one_failure_in_a_row() -> None:
    bench = Bench(circuit_plan(consecutive_failures=2))
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, FAILURE, T0)
    assert place is not None
    bench.call(SUCCESS, T0)  # another call's: it has ended the run of one

    assert bench.circuit.mend(permit, place, T0) is True
    assert bench.circuit.turn(permit, place, T0) is True
    assert bench.circuit.view(T0).consecutive_failures == 1
    bench.call(FAILURE, T0)

    assert bench.told[-1].reason is Trigger.CONSECUTIVE_FAILURES


def test_a_permit_is_good_for_another_attempt_until_calls_are_refused_or_the_state_has_changed() -> None:
    bench = Bench()
    permit = bench.permit(T0)
    assert bench.circuit.still_holds(permit)

    bench.apply(circuit_plan(mode="forced_open"), T0)
    assert not bench.circuit.still_holds(permit)
    bench.apply(circuit_plan(), T0)
    assert bench.circuit.still_holds(permit)

    bench.opened()
    for _ in range(3):
        bench.call(SUCCESS, T0 + 5)
    assert bench.circuit.state is CLOSED
    assert not bench.circuit.still_holds(permit)


def test_a_half_open_verdict_gives_no_place_to_turn() -> None:
    bench = Bench().opened()

    assert bench.call(SUCCESS, T0 + 5) is None


# Looking at it


def test_a_refusal_carries_the_numbers_of_the_opening_for_who_logs_them() -> None:
    bench = Bench(circuit_plan(consecutive_failures=None))
    for verdict in [SUCCESS] * 8 + [FAILURE] * 12:
        bench.call(verdict, T0)

    refused = bench.refused(T0)

    assert (refused.failure_rate, refused.calls, refused.threshold) == (0.6, 20, 0.5)
    assert (refused.probes, refused.verdicts, refused.share) == (0, 0, 0.0)


def test_a_refusal_of_the_configurations_names_no_numbers() -> None:
    refused = Bench(circuit_plan(mode="forced_open")).refused(T0)

    assert (refused.failure_rate, refused.calls, refused.threshold) == (None, 0, None)
    assert (refused.probes, refused.verdicts, refused.share) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("mode", "label"), [("enforce", "closed"), ("disabled", "closed"), ("forced_open", "forced_open")]
)
def test_the_label_is_what_callers_meet(mode: CircuitMode, label: str) -> None:
    assert Bench(circuit_plan(mode=mode)).circuit.view(T0).label == label


def test_the_view_counts_an_expired_probe_as_a_verdict_and_changes_no_state() -> None:
    bench = Bench().opened()
    bench.permit(T0 + 5)

    view = bench.circuit.view(T0 + 13)

    assert (view.state, view.verdicts, view.probes_in_flight, len(bench.told)) == (HALF, 1, 0, 2)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        pytest.param([], "<Circuit closed, generation 0: 0 of 0 calls failed>", id="closed"),
        pytest.param([0], "<Circuit open, generation 1: 5 failed calls in a row>", id="open"),
        pytest.param(
            [0, 5], "<Circuit half_open, generation 2: 0 verdicts and 1 probes of 3>", id="half open"
        ),
    ],
)
def test_the_repr_answers_what_it_is_doing(steps: list[int], text: str) -> None:
    bench = Bench()
    for step in steps:
        if step == 0:
            bench.opened()
        else:
            bench.permit(T0 + step)

    assert repr(bench.circuit) == text


def test_a_circuit_that_is_seen_in_the_middle_of_its_opening_can_be_shown() -> None:
    bench = Bench()
    bench.circuit.state = CircuitState.OPEN  # a debugger stops the holder of the lock where it likes

    assert repr(bench.circuit) == "<Circuit open, generation 0: 0 of 0 calls failed>"


def test_the_listener_is_told_after_the_lock_is_released_and_may_use_the_circuit() -> None:
    """failures.md 7."""
    lock = threading.Lock()
    heard: list[tuple[bool, CircuitState]] = []

    def listen(_: Transition) -> None:
        heard.append((lock.locked(), circuit.view(T0).state))  # a plain lock: would hang if it were held

    circuit = Circuit(circuit_plan(), rng=constant(0.5), lock=lock, on_transition=listen)
    for _ in range(5):
        permit = circuit.acquire(T0)
        assert isinstance(permit, Permit)
        circuit.record(permit, FAILURE, T0)
    circuit.acquire(T0 + 5)

    assert heard == [(False, OPEN), (False, HALF)]


def test_a_listener_that_raises_leaves_the_circuit_consistent() -> None:
    def listen(_: Transition) -> None:
        raise LookupError("listener")

    circuit = Circuit(circuit_plan(consecutive_failures=1), rng=constant(0.5), on_transition=listen)
    permit = circuit.acquire(T0)
    assert isinstance(permit, Permit)
    with pytest.raises(LookupError, match="listener"):
        circuit.record(permit, FAILURE, T0)

    assert circuit.state is OPEN
    assert isinstance(circuit.acquire(T0 + 1), Refused)


def test_a_probe_that_its_caller_never_got_because_a_listener_raised_returns() -> None:
    """As KeyboardInterrupt in a log handler does.

    failures.md 3.
    """

    def listen(told: Transition) -> None:
        if told.to_state is HALF:
            raise KeyboardInterrupt

    circuit = Circuit(circuit_plan(consecutive_failures=1), rng=constant(0.5), on_transition=listen)
    permit = circuit.acquire(T0)
    assert isinstance(permit, Permit)
    circuit.record(permit, FAILURE, T0)
    with pytest.raises(KeyboardInterrupt):
        circuit.acquire(T0 + 5)

    view = circuit.view(T0 + 5)
    assert (view.state, view.probes_in_flight, view.verdicts) == (HALF, 0, 0)


def test_the_history_is_the_latest_four_transitions_oldest_first() -> None:
    bench = Bench()
    assert bench.circuit.history == ()

    now = T0
    for _ in range(3):
        bench.opened(now)
        now += OPEN_FOR.max_s * 2
        for _ in range(HALF_OPEN.max_probes):
            bench.call(SUCCESS, now)

    assert len(bench.told) == 9
    assert list(bench.circuit.history) == bench.told[-4:]


# What it counts, and what it says of itself


def test_a_failure_that_is_mended_amends_the_run_that_it_is_in() -> None:
    bench = Bench(circuit_plan(consecutive_failures=None))
    permit = bench.permit(T0)
    for _ in range(2):
        bench.call(FAILURE, T0)
    place = bench.circuit.record(permit, FAILURE, T0)
    assert place is not None

    assert bench.circuit.mend(permit, place, T0) is True
    view = bench.circuit.view(T0)
    assert (view.calls, view.failures, view.consecutive_failures) == (3, 2, 0)
    assert bench.circuit.turn(permit, place, T0) is True  # and its body breaks off after all
    assert bench.circuit.view(T0).consecutive_failures == 3


def test_of_two_successes_in_one_slice_that_turn_the_run_before_them_counts_once() -> None:
    bench = Bench(circuit_plan(consecutive_failures=None))
    permit = bench.permit(T0)
    place = bench.call(SUCCESS, T0)
    for _ in range(2):
        bench.call(FAILURE, T0)
    assert bench.call(SUCCESS, T0) == place
    assert place is not None

    for _ in range(2):
        bench.circuit.turn(permit, place, T0)

    assert bench.circuit.view(T0).consecutive_failures == 4


def test_a_failure_of_another_generation_is_not_mended() -> None:
    bench = Bench()
    permit = bench.permit(T0)
    place = bench.circuit.record(permit, FAILURE, T0)
    assert place is not None
    bench.opened()

    assert bench.circuit.mend(permit, place, T0) is False


def test_a_call_that_mode_observe_let_pass_may_be_retried() -> None:
    bench = Bench(circuit_plan(mode="observe")).opened()
    waived = bench.permit(T0)

    assert len(bench.waived) == 1
    assert bench.circuit.still_holds(waived)


def test_a_view_without_calls_since_shows_what_has_left_the_window_no_more() -> None:
    bench = Bench()
    bench.call(FAILURE, T0)

    assert bench.circuit.view(T0 + 9).calls == 1
    assert bench.circuit.view(T0 + 10).calls == 0


def test_a_view_of_a_circuit_that_does_not_probe_shows_no_probes() -> None:
    bench = Bench()
    for circuit in (bench.circuit, bench.opened().circuit):
        view = circuit.view(T0)
        assert (view.probes_in_flight, view.verdicts) == (0, 0)


@pytest.mark.parametrize(("after_s", "left_s"), [(0.0, 5.0), (2.0, 3.0), (5.0, 0.0), (60.0, 0.0)])
def test_a_view_says_what_is_left_of_the_open_period(after_s: float, left_s: float) -> None:
    assert Bench().opened().circuit.view(T0 + after_s).retry_after_s == left_s


def test_a_circuit_that_is_closed_again_says_what_it_counts_and_not_why_it_was_open() -> None:
    assert repr(closed_again(circuit_plan()).circuit) == (
        "<Circuit closed, generation 3: 0 of 0 calls failed>"
    )


@pytest.mark.parametrize(
    ("mode", "opens", "is_shut"),
    [
        ("enforce", False, False),
        ("enforce", True, True),
        ("observe", True, False),
        ("forced_open", False, True),
    ],
)
def test_a_circuit_is_shut_where_it_refuses_calls(mode: CircuitMode, opens: bool, is_shut: bool) -> None:
    bench = Bench(circuit_plan(mode=mode))
    if opens:
        bench.opened()
    assert bench.circuit.is_shut is is_shut


@pytest.mark.parametrize(("after_s", "share"), [(2.5, 0.25), (9.5, 0.95), (10.0, None), (10.5, None)])
def test_the_ramp_is_over_when_all_calls_are_let_through(after_s: float, share: float | None) -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))

    assert bench.circuit.view(T0 + 5 + after_s).ramp_share == share


def test_a_view_shows_no_ramp_once_the_file_has_none() -> None:
    bench = closed_again(circuit_plan(half_open=RAMP))
    bench.apply(circuit_plan(), T0 + 6)

    assert bench.circuit.view(T0 + 6).ramp_share is None


def test_the_failure_rate_of_probes_is_that_of_their_verdicts() -> None:
    bench = Bench().opened()
    bench.call(SUCCESS, T0 + 5)
    bench.call(FAILURE, T0 + 5)

    told = bench.told[-1]
    assert (told.reason, told.failure_rate, told.calls) == (Trigger.PROBE_FAILED, 0.5, 2)


def test_at_a_share_of_a_quarter_the_first_call_is_let_through_and_then_one_of_four() -> None:
    ramp = Ramp(T0)

    assert [ramp.admits(0.25) for _ in range(8)] == [True, False, False, True, False, False, False, True]


def test_what_is_no_probe_and_a_probe_that_is_back_have_no_place_to_give_back() -> None:
    half_open = HalfOpen(circuit_plan(), T0)
    probe = half_open.lease(circuit_plan(), T0)

    assert [half_open.give_back(one) for one in (None, probe, probe)] == [False, True, False]


def test_a_caller_that_waited_for_the_lock_while_the_circuit_was_closed_gets_the_permit_of_all() -> None:
    class HeldByAReload:
        """A lock that is free once a reload has done its work under it."""

        def __enter__(self) -> None:
            bench.circuit._lock = nullcontext()
            bench.apply(circuit_plan(mode="disabled"), T0)

        def __exit__(self, *exc_info: object) -> None:
            pass

    bench = Bench().opened()
    bench.circuit._lock = HeldByAReload()

    assert bench.permit(T0) is bench.permit(T0)
