"""Any interleaving of permits, results, cancellations, expiries and time, against a naive model.

The model stores every outcome and runs a timer tick by tick; the circuit keeps sums
and settles lazily. Both must tell the same story, instants included.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from headrace.policy.circuit import Circuit, CircuitState, Permit, Refused, Transition, Trigger, Verdict
from headrace.policy.plan import CircuitPlan, HalfOpenPlan, OpenForPlan
from support.plans import circuit_plan
from support.virtual import constant

CLOSED, OPEN, HALF = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
TICK_S = 0.5

PLANS = st.builds(
    lambda window_s, minimum, rate, consecutive, probes, success, half_window, probe_timeout: circuit_plan(
        window_s=window_s,
        minimum_calls=minimum,
        failure_rate_threshold=rate,
        consecutive_failures=consecutive,
        open_for=OpenForPlan(base_s=1.0, multiplier=2.0, max_s=4.0, jitter=0.0),
        half_open=HalfOpenPlan(probes, success, half_window, probe_timeout),
    ),
    st.sampled_from([5.0, 10.0]),
    st.integers(1, 6),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.sampled_from([None, 2, 4]),
    st.integers(1, 4),
    st.sampled_from([0.25, 0.5, 0.9, 1.0]),
    st.sampled_from([2.0, 5.0]),
    st.sampled_from([1.5, 2.0, 6.0]),
)


class Model:
    """The circuit as DESIGN §4.6 reads, without an idea of cost."""

    def __init__(self, plan: CircuitPlan, now: float) -> None:
        self.plan = plan
        self.now = now
        self.state = CLOSED
        self.story: list[tuple[CircuitState, float, Trigger]] = []
        self.outcomes: list[tuple[int, bool]] = []  # (slice, failed), since the circuit was last closed
        self.failures_in_a_row = 0
        self.openings = 0
        self.open_until = 0.0
        self.verdicts: list[bool] = []  # failed?
        self.probes: dict[int, float] = {}  # id of the permit -> expires at
        self.window_ends_at = 0.0

    def slice_of(self, instant: float) -> int:
        return int(instant // (self.plan.window_s / 10))

    def in_window(self) -> list[bool]:
        return [failed for number, failed in self.outcomes if number > self.slice_of(self.now) - 10]

    def pass_tick(self) -> None:
        self.now += TICK_S
        for permit, expires_at in list(self.probes.items()):
            if expires_at <= self.now and self.state is HALF:
                self.probes.pop(permit, None)
                self.verdict(failed=True, trigger=Trigger.PROBE_EXPIRED)
        if self.state is HALF and self.window_ends_at <= self.now:
            if any(self.verdicts):
                self.go(OPEN, Trigger.WINDOW_ELAPSED)
            else:
                self.window_ends_at = self.now + self.plan.half_open.window_s

    def go(self, state: CircuitState, trigger: Trigger) -> None:
        self.state = state
        self.story.append((state, self.now, trigger))
        self.probes, self.verdicts = {}, []
        if state is OPEN:
            open_for = self.plan.open_for
            self.open_until = self.now + min(
                open_for.max_s, open_for.base_s * open_for.multiplier**self.openings
            )
            self.openings += 1
        elif state is HALF:
            self.window_ends_at = self.now + self.plan.half_open.window_s
        else:
            self.outcomes, self.failures_in_a_row, self.openings = [], 0, 0

    def verdict(self, *, failed: bool, trigger: Trigger) -> None:
        half_open = self.plan.half_open
        self.verdicts.append(failed)
        missing = half_open.max_probes - len(self.verdicts)
        if (self.verdicts.count(False) + missing) / half_open.max_probes < half_open.success_rate_threshold:
            self.go(OPEN, trigger)
        elif missing == 0:
            self.go(CLOSED, Trigger.PROBES_SUCCEEDED)

    def admits(self) -> bool:
        if self.state is OPEN and self.now >= self.open_until:
            self.go(HALF, Trigger.OPEN_FOR_ELAPSED)
        if self.state is HALF:
            return len(self.verdicts) + len(self.probes) < self.plan.half_open.max_probes
        return self.state is CLOSED

    def record_closed(self, *, failed: bool) -> None:
        self.outcomes.append((self.slice_of(self.now), failed))
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        if not failed:
            return
        counted = self.in_window()
        rate = sum(counted) / len(counted)
        if len(counted) >= self.plan.minimum_calls and rate >= self.plan.failure_rate_threshold:
            self.go(OPEN, Trigger.FAILURE_RATE)
        elif (
            self.plan.consecutive_failures is not None
            and self.failures_in_a_row >= self.plan.consecutive_failures
        ):
            self.go(OPEN, Trigger.CONSECUTIVE_FAILURES)


class CircuitMachine(RuleBasedStateMachine):
    permits = Bundle("permits")  # (permit, model's count of transitions when it was given)

    @initialize(plan=PLANS)
    def build(self, plan: CircuitPlan) -> None:
        self.told: list[Transition] = []
        self.circuit = Circuit(plan, rng=constant(0.5), on_transition=self.told.append)
        self.model = Model(replace(plan), 1000.0)

    @rule(ticks=st.integers(1, 12))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.model.pass_tick()

    @rule(target=permits)
    def ask(self):  # type: ignore[no-untyped-def]
        answer = self.circuit.acquire(self.model.now)

        assert isinstance(answer, Permit) == self.model.admits(), "refused <=> open or no place"
        if isinstance(answer, Refused):
            assert answer.state is self.model.state
            assert answer.retry_after_s > 0.0
            if answer.state is OPEN:
                assert answer.retry_after_s == self.model.open_until - self.model.now
            return multiple()
        if answer.probe is not None:
            self.model.probes[id(answer)] = self.model.now + self.model.plan.half_open.probe_timeout_s
        return answer, len(self.model.story)

    @rule(given=permits, verdict=st.sampled_from([Verdict.SUCCESS, Verdict.FAILURE, Verdict.FAILURE]))
    def answer(self, given: tuple[Permit, int], verdict: Verdict) -> None:
        permit, generation = given
        failed = verdict is Verdict.FAILURE
        self.circuit.record(permit, verdict, self.model.now)
        if generation != len(self.model.story):
            return  # void: the state has changed since
        if permit.probe is None:
            self.model.record_closed(failed=failed)
        elif self.model.probes.pop(id(permit), None) is not None:
            self.model.verdict(failed=failed, trigger=Trigger.PROBE_FAILED)

    @rule(given=permits)
    def cancel(self, given: tuple[Permit, int]) -> None:
        permit, generation = given
        self.circuit.record(permit, Verdict.IGNORED, self.model.now)
        if generation == len(self.model.story):
            self.model.probes.pop(id(permit), None)

    @invariant()
    def tells_the_same_story(self) -> None:
        story = [(told.to_state, told.at_s, told.reason) for told in self.told]
        # The circuit may not have noticed yet what time alone decided; never more than the last step.
        assert story == self.model.story[: len(story)]
        assert len(self.model.story) - len(story) <= 1
        assert [told.generation for told in self.told] == list(range(1, len(story) + 1))

    @invariant()
    def never_closes_from_open(self) -> None:
        assert all((told.from_state, told.to_state) != (OPEN, CLOSED) for told in self.told)

    @invariant()
    def probes_and_verdicts_stay_within_the_cap(self) -> None:
        view = self.circuit.view(self.model.now)
        assert view.verdicts + view.probes_in_flight <= self.model.plan.half_open.max_probes

    @invariant()
    def counts_what_the_model_counts(self) -> None:
        if len(self.told) != len(self.model.story):
            return
        model, view = self.model, self.circuit.view(self.model.now)
        counted = model.in_window()
        assert (view.state, view.calls, view.failures) == (model.state, len(counted), sum(counted))
        assert view.consecutive_failures == model.failures_in_a_row
        assert (view.probes_in_flight, view.verdicts) == (len(model.probes), len(model.verdicts))
        assert view.retry_after_s == (max(0.0, model.open_until - model.now) if model.state is OPEN else 0.0)


CircuitMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestCircuitAgainstTheNaiveModel = CircuitMachine.TestCase
