"""The circuit of one upstream: a state machine fed with verdicts, asked for permits.

`CLOSED -> OPEN -> HALF_OPEN -> CLOSED | OPEN`, from one table (`transition`). Time is
given (monotonic seconds) and never waited for: what time alone decides (a probe
that hung, a half-open window that passed) is settled when the circuit is next
touched, at the instant it happened.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor, inf
from typing import Any, Final

from headrace.policy.growth import grown_s
from headrace.policy.plan import CircuitPlan
from headrace.policy.transition import TRANSITIONS, CircuitState, Transition, Trigger
from headrace.policy.trip import TRIP_RULES, Tally, failure_rate
from headrace.policy.window import TimeWindow

__all__ = ["Circuit", "CircuitState", "CircuitView", "Permit", "Refused", "Transition", "Trigger", "Verdict"]


class Verdict(StrEnum):
    """What one attempt says about the upstream's health."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"  # nothing: local refusal, cancellation, cut too early. Gives its permit back


# A global is one look-up; a member of an enum class goes through its metaclass.
_CLOSED: Final = CircuitState.CLOSED
_OPEN: Final = CircuitState.OPEN
_HALF_OPEN: Final = CircuitState.HALF_OPEN
_SUCCESS: Final = Verdict.SUCCESS
_FAILURE: Final = Verdict.FAILURE
_IGNORED: Final = Verdict.IGNORED


@dataclass(slots=True)
class Permit:
    """Leave to make one attempt; goes back by `Circuit.record`.

    Attributes:
        generation: The circuit's when it was given; void after the next transition.
        probe: Number of the probe's lease, or None for a permit of the closed circuit
            (then one object serves all callers: no allocation).
    """

    generation: int
    probe: int | None = None


@dataclass(slots=True)
class Refused:
    """No permit, and why. `str()` is the sentence for an error message.

    Attributes:
        retry_after_s: Open: seconds until a probe may be admitted. Half open: seconds
            until the oldest probe expires, so at the latest then something has changed. >= 0.
        cause: The transition that opened the circuit.
    """

    retry_after_s: float
    state: CircuitState
    cause: Transition

    @property
    def failure_rate(self) -> float | None:
        """Rate that opened the circuit, or None when it was not a rate."""
        return self.cause.failure_rate

    @property
    def calls(self) -> int:
        """Calls behind `failure_rate`."""
        return self.cause.calls

    @property
    def threshold(self) -> float | None:
        """What the rule that opened the circuit compared with."""
        return self.cause.threshold

    def __str__(self) -> str:
        why = self.cause.why
        if self.state is _HALF_OPEN:
            return f"circuit half open with no place for another probe ({why})"
        return f"circuit open for {self.retry_after_s:.1f} s more ({why})"


@dataclass(frozen=True, slots=True)
class CircuitView:
    """A circuit at one instant, for status and metrics.

    Attributes:
        failure_rate: Share of failures in the window, or None below `minimum_calls`.
        retry_after_s: Seconds left of the open period; 0 when it is over or not open.
        probes_in_flight: Leases of half-open probes that have not expired.
        verdicts: Verdicts of the half-open phase, expired probes included.
    """

    state: CircuitState
    generation: int
    calls: int
    failures: int
    failure_rate: float | None
    consecutive_failures: int
    retry_after_s: float
    probes_in_flight: int
    verdicts: int


def _unheard(_: Transition) -> None:
    """Stand-in listener."""


class Circuit:
    """One upstream's circuit, shared by all its callers.

    Thread-safe with a plain (non-reentrant) *lock*. Under the lock: arithmetic and one
    call of *rng*; *on_transition* is called after it is released, in the thread that
    noticed. Not to be called from a finalizer (the collecting thread may hold the lock).

    Args:
        rng: Uniform numbers in [0, 1), for the jitter of the open period.
        lock: Mutex of this circuit; None: the caller is the only thread.
        on_transition: Told of each transition; two threads may tell out of order,
            `Transition.generation` says which was first.

    Attributes:
        state: Readable without the lock, as a hint.
        generation: Counts the transitions so far; readable as a hint.
    """

    __slots__ = (
        "_consecutive_failures",
        "_failed_probes",
        "_lock",
        "_next_probe",
        "_on_transition",
        "_open_until",
        "_opened",
        "_openings",
        "_permit",
        "_plan",
        "_probes",
        "_rng",
        "_succeeded_probes",
        "_untold",
        "_window",
        "_window_ends_at",
        "generation",
        "state",
    )

    def __init__(
        self,
        plan: CircuitPlan,
        *,
        rng: Callable[[], float],
        lock: AbstractContextManager[Any] | None = None,
        on_transition: Callable[[Transition], None] = _unheard,
    ) -> None:
        self._plan = plan
        self._rng = rng
        self._lock: AbstractContextManager[Any] = nullcontext() if lock is None else lock
        self._on_transition = on_transition
        self.state = _CLOSED
        self.generation = 0
        self._permit = Permit(0)
        self._window = TimeWindow(plan.window_s)
        self._consecutive_failures = 0
        self._openings = 0  # consecutive, since the circuit was last closed
        self._opened: Transition | None = None  # the last to OPEN; set whenever the circuit is not closed
        self._open_until = 0.0
        self._probes: dict[int, float] = {}  # lease number -> when it expires
        self._next_probe = 0
        self._succeeded_probes = 0
        self._failed_probes = 0  # expired ones included
        self._window_ends_at = 0.0
        self._untold: list[Transition] = []

    def acquire(self, now: float) -> Permit | Refused:
        """Leave to make one attempt at *now*, or why not. Mutates; may transition.

        A permit goes back by `record`, exactly once.
        """
        with self._lock:
            if self.state is _CLOSED:
                return self._permit
            answer = self._admit(now)
            untold = self._take_untold()
        for transition in untold:
            self._on_transition(transition)
        return answer

    def record(self, permit: Permit, verdict: Verdict, now: float) -> None:
        """Give *permit* back with what came of it. Mutates; may transition.

        A permit of an earlier generation, and a probe whose lease has expired, change nothing.
        """
        with self._lock:
            if permit.generation != self.generation:
                return
            if self.state is _CLOSED:
                # The success path: one call of ours (the window) and no allocation.
                if verdict is _SUCCESS:
                    self._consecutive_failures = 0
                    self._window.add(now, 1, 0)
                    return
                if verdict is _IGNORED:
                    return
                self._consecutive_failures += 1
                self._window.add(now, 1, 1)
                self._ask_trip_rules(now)
            else:
                self._settle(now)
                self._judge_probe(permit, verdict, now)
            untold = self._take_untold()
        for transition in untold:
            self._on_transition(transition)

    def view(self, now: float) -> CircuitView:
        """The circuit as of *now*. Changes no state: an open period that is over ends with the next call."""
        with self._lock:
            self._window.advance(now)
            tally = self._tally()
            in_flight = sum(expires_at > now for expires_at in self._probes.values())
            return CircuitView(
                state=self.state,
                generation=self.generation,
                calls=tally.calls,
                failures=tally.failures,
                failure_rate=failure_rate(tally, minimum_calls=self._plan.minimum_calls),
                consecutive_failures=tally.consecutive_failures,
                retry_after_s=max(0.0, self._open_until - now) if self.state is _OPEN else 0.0,
                probes_in_flight=in_flight,
                verdicts=self._succeeded_probes + self._failed_probes + len(self._probes) - in_flight,
            )

    def __repr__(self) -> str:
        # Without the lock: a repr is asked for in a debugger, where the holder may be stopped.
        doing = f"{self._window.marked} of {self._window.calls} calls failed"
        if self.state is _HALF_OPEN:
            verdicts = self._succeeded_probes + self._failed_probes
            doing = f"{verdicts} verdicts and {len(self._probes)} probes of {self._plan.half_open.max_probes}"
        elif self.state is _OPEN and self._opened is not None:
            doing = self._opened.why
        return f"<Circuit {self.state}, generation {self.generation}: {doing}>"

    # Below: under the lock.

    def _take_untold(self) -> list[Transition]:
        untold = self._untold
        if untold:
            self._untold = []
        return untold

    def _tally(self) -> Tally:
        return Tally(self._window.calls, self._window.marked, self._consecutive_failures)

    def _ask_trip_rules(self, now: float) -> None:
        if self._plan.mode == "disabled":
            return
        tally = self._tally()
        for trigger, trips in TRIP_RULES.items():
            if trips(self._plan, tally):
                self._transition(trigger, now)
                return

    def _admit(self, now: float) -> Permit | Refused:
        """The answer of a circuit that is not closed."""
        if self.state is _HALF_OPEN:
            self._settle(now)
        if self.state is _CLOSED:
            return self._permit
        if self.state is _OPEN:
            if now < self._open_until:
                return self._refusal(self._open_until - now)
            self._transition(Trigger.OPEN_FOR_ELAPSED, now)
        half_open = self._plan.half_open
        if self._succeeded_probes + self._failed_probes + len(self._probes) >= half_open.max_probes:
            # All verdicts and no probe would have been decided, so a probe is in flight.
            return self._refusal(min(self._probes.values()) - now)
        self._next_probe += 1
        self._probes[self._next_probe] = now + half_open.probe_timeout_s
        return Permit(self.generation, self._next_probe)

    def _refusal(self, retry_after_s: float) -> Refused:
        assert self._opened is not None, "a circuit that is not closed has been opened"
        return Refused(retry_after_s, self.state, self._opened)

    def _settle(self, now: float) -> None:
        """What time alone has decided about a half-open circuit, in the order it happened."""
        half_open = self._plan.half_open
        while self.state is _HALF_OPEN:
            oldest = min(self._probes, key=self._probes.__getitem__, default=None)
            expires_at = inf if oldest is None else self._probes[oldest]
            if oldest is not None and expires_at <= now and expires_at <= self._window_ends_at:
                del self._probes[oldest]
                self._failed_probes += 1
                self._weigh(Trigger.PROBE_EXPIRED, expires_at)
            elif self._window_ends_at <= now:
                if self._failed_probes:
                    self._transition(Trigger.WINDOW_ELAPSED, self._window_ends_at)
                else:
                    # Nothing speaks against the upstream: verdicts kept, the window starts again. All silent
                    # windows at once, so that a week is one step; a probe that expires with one belongs to it.
                    if expires_at <= now:
                        passed = ceil((expires_at - self._window_ends_at) / half_open.window_s)
                    else:
                        passed = 1 + floor((now - self._window_ends_at) / half_open.window_s)
                    self._window_ends_at += half_open.window_s * passed
            else:
                return

    def _judge_probe(self, permit: Permit, verdict: Verdict, now: float) -> None:
        if permit.probe is None or self._probes.pop(permit.probe, None) is None:
            return  # expired, or given back before
        if verdict is _SUCCESS:
            self._succeeded_probes += 1
        elif verdict is _FAILURE:
            self._failed_probes += 1
        else:
            return  # ignored: its place is free again
        self._weigh(Trigger.PROBE_FAILED, now)

    def _weigh(self, trigger: Trigger, at_s: float) -> None:
        """Decide as soon as the rest of the probes cannot change the result."""
        half_open = self._plan.half_open
        best_rate = (half_open.max_probes - self._failed_probes) / half_open.max_probes
        if best_rate < half_open.success_rate_threshold:
            self._transition(trigger, at_s)
        elif self._succeeded_probes + self._failed_probes >= half_open.max_probes:
            self._transition(Trigger.PROBES_SUCCEEDED, at_s)

    def _transition(self, trigger: Trigger, at_s: float) -> None:
        plan, before = self._plan, self.state
        after = TRANSITIONS[before, trigger]
        calls, failures, rate, threshold = self._numbers(trigger)
        open_for_s = None
        if after is _OPEN:
            self._openings += 1
            open_for_s = self._open_for_s()
            self._open_until = at_s + open_for_s
        elif after is _HALF_OPEN:
            self._window_ends_at = at_s + plan.half_open.window_s
        self._probes.clear()
        self._succeeded_probes = self._failed_probes = 0
        self.generation += 1
        transition = Transition(
            from_state=before,
            to_state=after,
            at_s=at_s,
            reason=trigger,
            failure_rate=rate,
            calls=calls,
            failures=failures,
            consecutive_failures=self._consecutive_failures,
            threshold=threshold,
            open_for_s=open_for_s,
            generation=self.generation,
        )
        if after is _OPEN:
            self._opened = transition
        elif after is _CLOSED:
            self._openings = self._consecutive_failures = 0
            self._window.clear()
            self._permit = Permit(self.generation)
        self.state = after
        self._untold.append(transition)

    def _numbers(self, trigger: Trigger) -> tuple[int, int, float | None, float | None]:
        """Calls, failures, failure rate and threshold behind *trigger*."""
        plan = self._plan
        if self.state is _CLOSED:
            tally = self._tally()
            rate = failure_rate(tally, minimum_calls=plan.minimum_calls)
            threshold = (
                plan.failure_rate_threshold if trigger is Trigger.FAILURE_RATE else plan.consecutive_failures
            )
            return tally.calls, tally.failures, rate, threshold
        if self.state is _OPEN:
            return 0, 0, None, None
        verdicts = self._succeeded_probes + self._failed_probes
        rate = self._failed_probes / verdicts if verdicts else None
        return verdicts, self._failed_probes, rate, plan.half_open.success_rate_threshold

    def _open_for_s(self) -> float:
        plan = self._plan.open_for
        spread = 1.0 + plan.jitter * (2.0 * self._rng() - 1.0)
        return grown_s(plan.base_s, plan.multiplier, plan.max_s, self._openings) * spread
