"""Any interleaving of permits, results, cancellations, expiries, time and reloads, against a naive model.

The model stores every outcome and runs a timer tick by tick; the circuit keeps sums
and settles lazily. Both must tell the same story, instants included.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

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
from headrace.policy.plan import (
    CircuitPlan,
    CountWindowPlan,
    HalfOpenPlan,
    OpenForPlan,
    SlowCallPlan,
    TimeWindowPlan,
)
from support.plans import circuit_plan
from support.virtual import constant

CLOSED, OPEN, HALF = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
TICK_S = 0.5
SLOW_S = 2.0

WINDOWS = st.one_of(
    st.builds(TimeWindowPlan, st.sampled_from([5.0, 10.0])),
    st.builds(CountWindowPlan, st.sampled_from([1, 3, 8]), st.sampled_from([None, 2.0, 3.5])),
)
PLANS = st.builds(
    lambda mode, window, minimum, rate, consecutive, slow, half_open: circuit_plan(
        mode=mode,
        window=window,
        minimum_calls=minimum,
        failure_rate_threshold=rate,
        consecutive_failures=consecutive,
        slow_call=slow,
        open_for=OpenForPlan(base_s=1.0, multiplier=2.0, max_s=4.0, jitter=0.0),
        half_open=half_open,
    ),
    st.sampled_from(["enforce", "enforce", "enforce", "observe", "forced_open", "disabled"]),
    WINDOWS,
    st.integers(1, 6),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.sampled_from([None, 2, 4]),
    st.builds(SlowCallPlan, st.sampled_from([None, SLOW_S]), st.sampled_from([0.5, 1.0])),
    st.builds(
        HalfOpenPlan,
        st.integers(1, 4),
        st.sampled_from([0.25, 0.5, 0.9, 1.0]),
        st.sampled_from([2.0, 5.0]),
        st.sampled_from([1.5, 2.0, 6.0]),
        st.sampled_from([None, None, 2.0]),
    ),
)


VERDICTS = st.sampled_from([Verdict.SUCCESS, Verdict.SUCCESS, Verdict.FAILURE])
DURATIONS = st.sampled_from([0.0, 0.0, SLOW_S])


@dataclass
class Call:
    """One outcome that the closed circuit was told, and all that a window of its kind would know about it."""

    at: float
    failed: bool
    slow: bool
    turnable: bool = True  # False once it was moved to another window


@dataclass
class Lease:
    expires_at: float


class Model:
    """The circuit as circuit-breaker.md describes it, without an idea of cost."""

    def __init__(self, plan: CircuitPlan, now: float) -> None:
        self.plan = plan
        self.now = now
        self.state = CLOSED
        self.story: list[tuple[CircuitState, float, Trigger]] = []
        self.calls: list[Call] = []  # since the circuit was last closed, oldest first
        self.failures_in_a_row = 0
        self.broken_run = 0  # failures in a row that the last success ended
        self.last_success = -1  # the place that the circuit gave it
        self.openings = 0
        self.open_until = 0.0
        self.verdicts: list[tuple[bool, bool]] = []  # failed, slow
        self.probes: dict[int, Lease] = {}  # by id of the permit
        self.most_probes = 0  # that this half-open phase may have at a time: the highest cap since it began
        self.window_ends_at = 0.0
        self.ramp_began_at: float | None = None
        self.earned = 1.0

    # The window

    def slice_of(self, instant: float) -> int:
        assert isinstance(self.plan.window, TimeWindowPlan)
        return int(instant // (self.plan.window.size_s / 10))

    def in_window(self) -> list[Call]:
        window = self.plan.window
        if isinstance(window, TimeWindowPlan):
            return [call for call in self.calls if self.slice_of(call.at) > self.slice_of(self.now) - 10]
        newest = self.calls[-window.size :]
        if window.max_age_s is None:
            return newest
        return [call for call in newest if call.at + window.max_age_s > self.now]

    def rebucket(self, old: CircuitPlan) -> None:
        """What the old window knew of each call in it is all that the new one gets."""
        kept, old_window = self.calls, old.window
        if isinstance(old_window, TimeWindowPlan):
            slice_s = old_window.size_s / 10
            moved: list[Call] = []
            for number in sorted({int(call.at // slice_s) for call in kept}):
                inside = [call for call in kept if int(call.at // slice_s) == number]
                failed = sorted(call.failed for call in inside)  # the order inside is not known
                slow = sorted(call.slow for call in inside)
                at = min(self.now, (number + 1) * slice_s)
                moved += [Call(at, *flags, turnable=False) for flags in zip(failed, slow, strict=True)]
            self.calls = moved
        else:
            ages = old_window.max_age_s is not None
            self.calls = [
                Call(call.at if ages else self.now, call.failed, call.slow, turnable=False) for call in kept
            ]

    # Time

    def pass_tick(self) -> None:
        self.now += TICK_S
        for permit, lease in sorted(self.probes.items(), key=lambda item: item[1].expires_at):
            if lease.expires_at <= self.now and self.state is HALF:
                self.probes.pop(permit, None)
                self.verdict(failed=True, slow=False, trigger=Trigger.PROBE_EXPIRED)
        if self.state is HALF and self.window_ends_at <= self.now:
            if any(failed for failed, _ in self.verdicts):
                self.go(OPEN, Trigger.WINDOW_ELAPSED)
            else:
                self.window_ends_at = self.now + self.plan.half_open.window_s

    # The machine

    def go(self, state: CircuitState, trigger: Trigger) -> None:
        self.state = state
        self.story.append((state, self.now, trigger))
        self.probes, self.verdicts, self.ramp_began_at = {}, [], None
        if state is OPEN:
            open_for = self.plan.open_for
            self.open_until = self.now + min(
                open_for.max_s, open_for.base_s * open_for.multiplier**self.openings
            )
            self.openings += 1
        elif state is HALF:
            self.window_ends_at = self.now + self.plan.half_open.window_s
            self.most_probes = self.plan.half_open.max_probes
        else:
            self.openings = 0
            if trigger is not Trigger.DISABLED:
                self.calls, self.failures_in_a_row = [], 0
                # A ramp that a later edit brings in is for the next recovery: this one was over at once.
                ramps = self.plan.half_open.ramp_s is not None
                self.ramp_began_at, self.earned = self.now if ramps else None, 1.0

    def weigh(self, trigger: Trigger) -> None:
        half_open, slow_call = self.plan.half_open, self.plan.slow_call
        failed = sum(failed for failed, _ in self.verdicts)
        slow = sum(slow for _, slow in self.verdicts)
        if 1 - failed / half_open.max_probes < half_open.success_rate_threshold - 1e-9:
            self.go(OPEN, trigger)
        elif slow_call.duration_s is not None and slow / half_open.max_probes >= slow_call.rate_threshold:
            self.go(OPEN, Trigger.PROBES_SLOW)
        elif len(self.verdicts) >= half_open.max_probes:
            self.go(CLOSED, Trigger.PROBES_SUCCEEDED)

    def verdict(self, *, failed: bool, slow: bool, trigger: Trigger) -> None:
        self.verdicts.append((failed, slow))
        self.weigh(trigger)

    def refusal(self) -> Refusal | None:
        """What an enforced circuit answers now; None: go."""
        if self.plan.mode == "forced_open":
            return Refusal.FORCED_OPEN
        if self.state is OPEN and self.now >= self.open_until:
            self.go(HALF, Trigger.OPEN_FOR_ELAPSED)
        if self.state is HALF:
            full = len(self.verdicts) + len(self.probes) >= self.plan.half_open.max_probes
            return Refusal.NO_PLACE if full else None
        if self.state is OPEN:
            return Refusal.OPEN
        ramp_s = self.plan.half_open.ramp_s
        if self.ramp_began_at is None or ramp_s is None or self.now >= self.ramp_began_at + ramp_s:
            self.ramp_began_at = None
            return None
        self.earned += (self.now - self.ramp_began_at) / ramp_s
        if self.earned < 1.0:
            return Refusal.RAMP
        self.earned -= 1.0
        return None

    def ask_trip_rules(self) -> None:
        plan, counted = self.plan, self.in_window()
        if plan.mode == "disabled":
            return
        failed = sum(call.failed for call in counted)
        slow = sum(call.slow for call in counted)
        enough = len(counted) >= plan.minimum_calls
        if enough and failed / len(counted) >= plan.failure_rate_threshold:
            self.go(OPEN, Trigger.FAILURE_RATE)
        elif (
            enough
            and plan.slow_call.duration_s is not None
            and slow / len(counted) >= plan.slow_call.rate_threshold
        ):
            self.go(OPEN, Trigger.SLOW_CALL_RATE)
        elif (
            not enough
            and plan.consecutive_failures is not None
            and self.failures_in_a_row >= plan.consecutive_failures
        ):
            self.go(OPEN, Trigger.CONSECUTIVE_FAILURES)

    def record_closed(self, *, failed: bool, slow: bool) -> Call:
        call = Call(self.now, failed, slow)
        self.calls.append(call)
        if failed:
            self.failures_in_a_row += 1
        else:
            self.broken_run, self.failures_in_a_row = self.failures_in_a_row, 0
        if failed or slow:
            self.ask_trip_rules()
        return call

    def turn(self, call: Call, place: int) -> bool:
        if not call.turnable or call.failed or not any(call is one for one in self.in_window()):
            return False
        call.failed = True
        self.failures_in_a_row += 1
        if place == self.last_success:
            self.failures_in_a_row += self.broken_run
            self.broken_run = 0
        self.ask_trip_rules()
        return True

    def mend(self, call: Call, place: int) -> bool:
        if not call.turnable or not any(call is one for one in self.in_window()):
            return False
        call.failed = False
        self.broken_run, self.failures_in_a_row = max(0, self.failures_in_a_row - 1), 0
        self.last_success = place
        return True

    def apply(self, plan: CircuitPlan) -> None:
        before, kept = self.plan, self.in_window()
        if plan.window != before.window:
            self.calls = kept
            self.rebucket(before)
        self.plan = plan
        self.most_probes = max(self.most_probes, plan.half_open.max_probes)
        if plan.mode == "disabled":
            self.ramp_began_at = None
            if self.state is OPEN:
                self.go(HALF, Trigger.DISABLED)
            if self.state is HALF:
                self.go(CLOSED, Trigger.DISABLED)
        elif self.state is HALF:
            self.weigh(Trigger.PROBE_FAILED)


class CircuitMachine(RuleBasedStateMachine):
    permits = Bundle("permits")  # (permit, model's count of transitions when it was given)
    counted = Bundle("counted")  # (permit, place, generation, the model's call): may be turned or mended

    @initialize(plan=PLANS)
    def build(self, plan: CircuitPlan) -> None:
        self.told: list[Transition] = []
        self.waived: list[Refused] = []
        self.circuit = Circuit(
            plan, rng=constant(0.5), on_transition=self.told.append, on_waived=self.waived.append
        )
        self.model = Model(plan, 1000.0)
        self.calls_since_reload = 0

    @rule(ticks=st.integers(1, 12))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.model.pass_tick()

    @precondition(lambda self: self.calls_since_reload >= 8)  # else most steps are reloads of an idle circuit
    @rule(plan=PLANS)
    def reload(self, plan: CircuitPlan) -> None:
        self.calls_since_reload = 0
        told, generation = len(self.told), self.circuit.generation
        brought_about = self.circuit.apply(plan, self.model.now)
        self.model.apply(plan)

        assert len(self.told) == told, "the code that applies a plan tells of what came of it"
        assert self.circuit.generation == generation + len(brought_about)
        self.told += brought_about

    @rule(target=permits)
    def ask(self):  # type: ignore[no-untyped-def]
        given = self._ask()
        return multiple() if given is None else given

    @rule(target=counted, given=permits, verdict=VERDICTS, duration_s=DURATIONS)
    def answer(self, given: tuple[Permit, int], verdict: Verdict, duration_s: float):  # type: ignore[no-untyped-def]
        success = self._answer(given, verdict, duration_s)
        return multiple() if success is None else success

    @rule(target=counted, times=st.integers(1, 5), verdict=VERDICTS, duration_s=DURATIONS)
    def call_and_answer(self, times: int, verdict: Verdict, duration_s: float):  # type: ignore[no-untyped-def]
        """Traffic: most of what a circuit sees, and what it takes to get anywhere."""
        given = [self._ask() for _ in range(times)]
        answered = [self._answer(one, verdict, duration_s) for one in given if one is not None]
        return multiple(*(success for success in answered if success is not None))

    def _ask(self) -> tuple[Permit, int] | None:
        self.calls_since_reload += 1
        waived = len(self.waived)
        answer = self.circuit.acquire(self.model.now)
        expected = self.model.refusal()

        if self.model.plan.mode == "observe" and expected is not None:
            assert isinstance(answer, Permit), "an observing circuit refuses nothing"
            assert [refused.kind for refused in self.waived[waived:]] == [expected]
            return answer, -1
        assert len(self.waived) == waived
        if isinstance(answer, Refused):
            assert answer.kind is expected, "refused <=> open, or no place, or not yet its turn"
            assert answer.retry_after_s > 0.0
            assert str(answer)
            if expected is Refusal.OPEN:
                assert answer.retry_after_s == self.model.open_until - self.model.now
            return None
        assert expected is None
        if answer.probe is not None:
            expires_at = self.model.now + self.model.plan.half_open.probe_timeout_s
            self.model.probes[id(answer)] = Lease(expires_at)
        return answer, len(self.model.story)

    def _answer(
        self, given: tuple[Permit, int], verdict: Verdict, duration_s: float
    ) -> tuple[Permit, int, int, Call] | None:
        permit, generation = given
        failed = verdict is Verdict.FAILURE
        slow = self.model.plan.slow_call.duration_s is not None and duration_s >= SLOW_S
        place = self.circuit.record(permit, verdict, self.model.now, duration_s)

        if generation == len(self.model.story):
            if permit.probe is None:
                call = self.model.record_closed(failed=failed, slow=slow)
                assert place is not None, "what was counted can be turned, or mended, later"
                if not failed:
                    self.model.last_success = place
                return permit, place, generation, call
            if self.model.probes.pop(id(permit), None) is not None:
                self.model.verdict(failed=failed, slow=slow, trigger=Trigger.PROBE_FAILED)
        assert place is None, "nothing was counted in a window"
        return None

    @rule(given=permits)
    def cancel(self, given: tuple[Permit, int]) -> None:
        permit, generation = given
        assert self.circuit.record(permit, Verdict.IGNORED, self.model.now, SLOW_S) is None
        if generation == len(self.model.story):
            self.model.probes.pop(id(permit), None)

    @rule(success=counted)
    def body_breaks(self, success: tuple[Permit, int, int, Call]) -> None:
        permit, place, generation, call = success
        if call.failed:
            return  # a failure, or turned before: once is what the caller promises
        expected = generation == len(self.model.story) and self.model.turn(call, place)

        assert self.circuit.turn(permit, place, self.model.now) == expected

    @rule(failure=counted)
    def a_later_attempt_succeeds(self, failure: tuple[Permit, int, int, Call]) -> None:
        permit, place, generation, call = failure
        if not call.failed:
            return
        expected = generation == len(self.model.story) and self.model.mend(call, place)

        assert self.circuit.mend(permit, place, self.model.now) == expected

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
        assert view.verdicts + view.probes_in_flight <= self.model.most_probes

    @invariant()
    def counts_what_the_model_counts(self) -> None:
        if len(self.told) != len(self.model.story):
            return
        model, view = self.model, self.circuit.view(self.model.now)
        counted = model.in_window()
        assert (view.state, view.calls) == (model.state, len(counted))
        assert view.failures == sum(call.failed for call in counted)
        assert view.slow_calls == sum(call.slow for call in counted)
        assert view.consecutive_failures == model.failures_in_a_row
        assert (view.probes_in_flight, view.verdicts) == (len(model.probes), len(model.verdicts))
        assert view.retry_after_s == (max(0.0, model.open_until - model.now) if model.state is OPEN else 0.0)

    @invariant()
    def an_observing_or_disabled_circuit_is_never_shut(self) -> None:
        if self.model.plan.mode in ("observe", "disabled"):
            assert not self.circuit.is_shut


CircuitMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestCircuitAgainstTheNaiveModel = CircuitMachine.TestCase
