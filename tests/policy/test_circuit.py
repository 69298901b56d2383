from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from headrace.policy.circuit import Circuit, CircuitState, Permit, Refused, Transition, Trigger, Verdict
from headrace.policy.plan import CircuitPlan
from headrace.policy.transition import TRANSITIONS
from support.plans import HALF_OPEN, OPEN_FOR, circuit_plan
from support.virtual import constant

CLOSED, OPEN, HALF = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
SUCCESS, FAILURE, IGNORED = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED
T0 = 1000.0


class Bench:
    """A circuit and what it told."""

    def __init__(self, plan: CircuitPlan | None = None, *, rng: float = 0.5) -> None:
        self.told: list[Transition] = []
        self.circuit = Circuit(plan or circuit_plan(), rng=constant(rng), on_transition=self.told.append)

    def call(self, verdict: Verdict, now: float) -> None:
        self.circuit.record(self.permit(now), verdict, now)

    def permit(self, now: float) -> Permit:
        permit = self.circuit.acquire(now)
        assert isinstance(permit, Permit)
        return permit

    def refused(self, now: float) -> Refused:
        refused = self.circuit.acquire(now)
        assert isinstance(refused, Refused)
        return refused

    def opened(self, now: float = T0) -> Bench:
        for _ in range(5):
            self.call(FAILURE, now)
        assert self.circuit.state is OPEN
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
    """Pitfall 5."""
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
    """Pitfall 5."""
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
    """Pitfall 4."""
    bench = Bench()
    early = bench.permit(T0)
    bench.opened()

    bench.circuit.record(early, SUCCESS, T0 + 1)
    assert bench.circuit.state is OPEN

    bench.permit(T0 + 5)
    bench.circuit.record(early, SUCCESS, T0 + 5)
    view = bench.circuit.view(T0 + 5)
    assert (view.state, view.verdicts, view.probes_in_flight) == (HALF, 0, 1)


# Open


def test_an_open_circuit_refuses_and_says_how_long_and_why() -> None:
    refused = Bench().opened().refused(T0 + 2.7)

    assert (refused.state, refused.calls, refused.failure_rate, refused.threshold) == (OPEN, 5, None, 5)
    assert refused.retry_after_s == pytest.approx(2.3)
    assert str(refused) == "circuit open for 2.3 s more (5 consecutive failures)"


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


def test_half_open_admits_only_max_probes() -> None:
    """Pitfall 1."""
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
    assert str(refused) == "circuit half open with no place for another probe (5 consecutive failures)"


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
    assert str(bench.refused(T0 + 6)) == "circuit open for 10.0 s more (probe failed: 1 of 1 probes failed)"
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
    """Pitfall 2."""
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
    """Pitfall 3."""
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


def test_a_probe_that_expires_with_the_end_of_a_window_is_a_failure_in_that_window() -> None:
    half_open = replace(
        HALF_OPEN, max_probes=2, success_rate_threshold=0.5, window_s=2.0, probe_timeout_s=6.0
    )
    bench = Bench(circuit_plan(half_open=half_open)).opened()
    bench.permit(T0 + 5)

    bench.refused(T0 + 12)

    told = bench.told[-1]
    assert (told.to_state, told.reason, told.at_s) == (OPEN, Trigger.WINDOW_ELAPSED, T0 + 11)


def test_an_expiry_can_complete_the_verdicts_and_close_the_circuit() -> None:
    half_open = replace(HALF_OPEN, max_probes=2, success_rate_threshold=0.5)
    bench = Bench(circuit_plan(half_open=half_open)).opened()
    bench.permit(T0 + 5)
    bench.call(SUCCESS, T0 + 5)

    permit = bench.permit(T0 + 14)

    assert permit.probe is None
    assert (bench.told[-1].to_state, bench.told[-1].at_s) == (CLOSED, T0 + 13)


# Looking at it


def test_the_view_counts_an_expired_probe_as_a_verdict_and_changes_no_state() -> None:
    bench = Bench().opened()
    bench.permit(T0 + 5)

    view = bench.circuit.view(T0 + 13)

    assert (view.state, view.verdicts, view.probes_in_flight, len(bench.told)) == (HALF, 1, 0, 2)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        pytest.param([], "<Circuit closed, generation 0: 0 of 0 calls failed>", id="closed"),
        pytest.param([0], "<Circuit open, generation 1: 5 consecutive failures>", id="open"),
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


def test_the_listener_is_told_after_the_lock_is_released_and_may_use_the_circuit() -> None:
    """Pitfall 7."""
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
