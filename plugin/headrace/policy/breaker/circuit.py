"""The circuit of one upstream: a state machine fed with verdicts, asked for permits.

`CLOSED -> OPEN -> HALF_OPEN -> CLOSED | OPEN`, from one table (`transition`). Time is
given (monotonic seconds) and never waited for. What time alone decides (a probe
that hung, a half-open window that passed) is settled when the circuit is next
touched, with the instant at which it happened. If the clock steps back, a period that runs lasts at most
its whole length from there (failures.md 69).

The file is a little long. Everything that happens under the circuit's lock, and how a mode or a
reload changes it, is meant to be read in one place. The arithmetic is elsewhere (`window`,
`trip`, `half_open`, `ramp`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import Any, Final

from headrace.policy.breaker.half_open import HalfOpen, ProbesTrigger, threshold_of
from headrace.policy.breaker.permit import CircuitView, Permit, Refusal, Refused, Verdict
from headrace.policy.breaker.ramp import Ramp
from headrace.policy.breaker.transition import TRANSITIONS, CircuitState, Transition
from headrace.policy.breaker.trip import Tally, Trigger, failure_rate, slow_call_rate, tripped_by
from headrace.policy.breaker.window import Slot, window_for
from headrace.policy.growth import grown_s
from headrace.policy.plan import CircuitPlan

__all__ = [
    "Circuit",
    "CircuitState",
    "CircuitView",
    "Permit",
    "Refusal",
    "Refused",
    "Transition",
    "Trigger",
    "Verdict",
]

# A global is one look-up; a member of an enum class goes through its metaclass.
_CLOSED: Final = CircuitState.CLOSED
_OPEN: Final = CircuitState.OPEN
_HALF_OPEN: Final = CircuitState.HALF_OPEN
_SUCCESS: Final = Verdict.SUCCESS
_FAILURE: Final = Verdict.FAILURE
_IGNORED: Final = Verdict.IGNORED


class _Passing:
    """What a success goes by that is counted without the lock: one object, replaced as a whole under the lock.

    Attributes:
        permit: The one shared permit of the generation. Another permit is looked at under the lock.
        slow_s: From this duration on a success is slow, and is looked at under the lock; inf: none is.
        begins_at, ends_at, place, tick: Those of the current `Slot`.
    """

    __slots__ = ("begins_at", "ends_at", "permit", "place", "slow_s", "tick")

    def __init__(self, permit: Permit, slow_s: float, slot: Slot) -> None:
        self.permit = permit
        self.slow_s = slow_s
        self.begins_at = slot.begins_at
        self.ends_at = slot.ends_at
        self.place = slot.place
        self.tick = slot.tick


_WAIVED: Final = Permit(-1)  # of no generation: the circuit ignores the outcome of its call


def _no_listener(_: object) -> None:
    """Stands in where nobody listens."""


class Circuit:
    """One upstream's circuit, shared by all its callers.

    Thread-safe with a *lock*; a re-entrant one, where a finalizer may make a call. Under the lock: arithmetic and one
    call of *rng*. The listeners are called after the lock is released, by the thread that
    noticed. Not to be called from a finalizer (the collecting thread may hold the lock).

    Args:
        rng: Uniform numbers in [0, 1), for the jitter of the open period.
        lock: Mutex of this circuit; None: the caller is the only thread.
        on_transition: Called with each transition. Two threads may call it out of order;
            `Transition.generation` says which was first.
        on_waived: Called with each refusal that `mode: observe` turned into a permit.

    Attributes:
        state: Readable without the lock, as a hint.
        generation: Counts the transitions so far; readable as a hint.
        is_shut: Calls are refused, except probes; readable as a hint.
        shared_permit: What `acquire` answers, or None: `acquire` must be asked. Readable without the lock: who counts
            Python calls reads it first.
        history: The latest transitions, four at most, oldest first; readable without the lock.
    """

    __slots__ = (
        "_consecutive_failures",
        "_half_open",
        "_last_success",
        "_lock",
        "_on_transition",
        "_on_waived",
        "_open_s",
        "_open_until",
        "_opened",
        "_openings",
        "_passing",
        "_plan",
        "_ramp",
        "_rng",
        "_run_before_success",
        "_slow_s",
        "_unreported",
        "_window",
        "generation",
        "history",
        "is_shut",
        "shared_permit",
        "state",
    )

    _run_before_success: (
        int  # failures in a row that the last success ended; set by it, before `turn` may ask
    )
    # Set by each opening, before the open circuit may ask.
    _open_until: float
    _open_s: float

    def __init__(
        self,
        plan: CircuitPlan,
        *,
        rng: Callable[[], float],
        lock: AbstractContextManager[Any] | None = None,
        on_transition: Callable[[Transition], None] = _no_listener,
        on_waived: Callable[[Refused], None] = _no_listener,
    ) -> None:
        self._rng = rng
        self._lock: AbstractContextManager[Any] = nullcontext() if lock is None else lock
        self._on_transition = on_transition
        self._on_waived = on_waived
        self.state = _CLOSED
        self.generation = 0
        self.history: tuple[Transition, ...] = ()
        self._window = window_for(plan.window)
        self._consecutive_failures = 0
        self._last_success = -1  # its place: it may turn out to be a failure
        # Set only while there is a shared permit, and nothing but looks have come under the lock since a success.
        self._passing: _Passing | None = None
        self._openings = 0  # consecutive, since the circuit was last closed
        self._opened: Transition | None = None  # the last to OPEN; set whenever the circuit is not closed
        self._half_open: HalfOpen | None = None  # while HALF_OPEN
        self._ramp: Ramp | None = None  # while CLOSED, for a time after it was closed
        self._unreported: list[Transition] = []
        self._follow(plan)

    def acquire(self, now: float) -> Permit | Refused:
        """A permit for one call at *now*, or why there is none. Mutates; may transition.

        A permit goes back by `record`, exactly once.
        """
        # Nearly every call ends here, without the lock: it reads one reference, which is replaced as a whole under the
        # lock. A caller that reads it just before a transition came before the transition. Its permit then becomes
        # void, like all permits of that generation.
        permit = self.shared_permit
        if permit is not None:
            return permit
        waived = None
        with self._lock:
            permit = self.shared_permit
            if permit is not None:
                return permit
            answer = self._admit(now)
            if isinstance(answer, Refused) and self._plan.mode == "observe":
                waived, answer = answer, _WAIVED
            unreported = self._take_unreported()
        try:
            for transition in unreported:
                self._on_transition(transition)
            if waived is not None:
                self._on_waived(waived)
        except BaseException:
            # Nobody will hold the permit: a probe's place must not be lost until it expires.
            if isinstance(answer, Permit):
                self.record(answer, _IGNORED, now)
            raise
        return answer

    def record(self, permit: Permit, verdict: Verdict, now: float, duration_s: float = 0.0) -> int | None:
        """Give *permit* back with the verdict on its call. Mutates; may transition.

        A permit of an earlier generation, and a probe whose lease has expired, change nothing.

        Args:
            duration_s: How long the call's longest attempt took; the circuit decides whether that is slow.

        Returns:
            Where the call was counted in the window, for `turn` and `mend`; None: nowhere.
        """
        # Nearly every call ends here, without the lock, at two fifths of the cost. It reads one reference, which is
        # taken away under the lock before anything happens that this success could not have come before: a failure, a
        # transition, other rules, another slice. A thread that has read it just before that came before it.
        passing = self._passing
        if (
            passing is not None
            and verdict is _SUCCESS
            and permit is passing.permit
            and passing.begins_at <= now < passing.ends_at
            and duration_s < passing.slow_s
        ):
            passing.tick()
            return passing.place
        place = None
        with self._lock:
            if permit.generation != self.generation:
                return None
            if self._passing is not None:
                self._stop_passing()
            is_slow = duration_s >= self._slow_s
            if self.state is _CLOSED:
                if verdict is _SUCCESS:
                    before, self._run_before_success = self._last_success, self._consecutive_failures
                    self._consecutive_failures = 0
                    self._last_success = place = self._window.add(now, slow=is_slow)
                    if not is_slow:
                        if place == before:  # they come often enough for it
                            self._let_pass()
                        return place
                elif verdict is _FAILURE:
                    self._consecutive_failures += 1
                    place = self._window.add(now, 1, is_slow)
                else:
                    return None
                self._ask_trip_rules(now)
            else:
                self._judge_probe(permit, verdict, is_slow, now)
            unreported = self._take_unreported()
        for transition in unreported:
            self._on_transition(transition)
        return place

    def turn(self, permit: Permit, place: int, now: float) -> bool:
        """Turn the success that `record(permit, …)` counted at *place* into a failure: its body broke later.

        Mutates; may transition, because this is a failure that is heard of now. Changes nothing when
        its generation or its bucket is gone (a reload that changes the window makes new ones).
        A success is turned once.

        Returns:
            Whether the success was still there.
        """
        with self._lock:
            if permit.generation != self.generation:
                return False
            self._stop_passing()
            self._window.advance(now)
            if not self._window.turn(place):
                return False
            self._consecutive_failures += 1
            if place == self._last_success:
                # The run of failures that this success had ended goes on. (A slice of a time window is one place:
                # of two successes in one slice, the older may be taken for the later.)
                self._consecutive_failures += self._run_before_success
                self._run_before_success = 0
            self._ask_trip_rules(now)
            unreported = self._take_unreported()
        for transition in unreported:
            self._on_transition(transition)
        return True

    def mend(self, permit: Permit, place: int, now: float) -> bool:
        """Turn the failure that `record(permit, …)` counted at *place* into a success: a later attempt has an answer.

        Mutates. Changes nothing when its generation or its bucket is gone.

        Returns:
            Whether the failure was still there.
        """
        with self._lock:
            if permit.generation != self.generation:
                return False
            self._stop_passing()
            self._window.advance(now)
            if not self._window.turn(place, -1):
                return False
            self._run_before_success = max(0, self._consecutive_failures - 1)
            self._consecutive_failures = 0
            self._last_success = place
            return True

    def still_holds(self, permit: Permit) -> bool:
        """Whether *permit* is good for another attempt of its call. Read without the lock, as a hint."""
        return permit is _WAIVED or (permit.generation == self.generation and not self.is_shut)

    def apply(self, plan: CircuitPlan, now: float) -> list[Transition]:
        """Go by *plan* from now on. What was learned stays; of the window, as much as fits. Mutates.

        A period that runs keeps the end it was given: an open period, a probe's lease, a half-open
        window. Permits stay good unless the state changes. The state changes where the verdicts so far decide
        under the new half-open thresholds. `mode: disabled` closes the circuit, and the window is kept.

        Returns:
            The transitions that this caused; the listener is not told of them.
        """
        with self._lock:
            self._stop_passing()
            if self._half_open is not None:
                self._settle(now)
            if plan.window != self._plan.window:
                window = window_for(plan.window)
                window.take_over(self._window, now)
                self._window = window
            self._follow(plan)
            if plan.mode == "disabled":
                while self.state is not _CLOSED:
                    self._transition(Trigger.DISABLED, now, *self._probe_tally(), None)
            elif self._half_open is not None:
                self._decide(self._half_open.weigh(plan), now)
            return self._take_unreported()

    def view(self, now: float) -> CircuitView:
        """The circuit at *now*. Changes no state: an open period that is over ends with the next call."""
        with self._lock:
            self._take_in()
            self._window.advance(now)
            if self._window.slot is None:
                self._passing = None  # its slice is over; who is late, counts with the newest
            tally, half_open = self._tally(), self._half_open
            in_flight = 0 if half_open is None else half_open.in_flight(now)
            return CircuitView(
                state=self.state,
                mode=self._plan.mode,
                generation=self.generation,
                calls=tally.calls,
                failures=tally.failures,
                slow_calls=tally.slow_calls,
                failure_rate=failure_rate(tally, minimum_calls=self._plan.minimum_calls),
                slow_call_rate=slow_call_rate(tally, self._plan),
                consecutive_failures=tally.consecutive_failures,
                retry_after_s=min(max(0.0, self._open_until - now), self._open_s)
                if self.state is _OPEN
                else 0.0,
                probes_in_flight=in_flight,
                verdicts=0 if half_open is None else half_open.verdicts + half_open.probes - in_flight,
                ramp_share=self._ramp_share(now),
            )

    def __repr__(self) -> str:
        # Without the lock: a debugger asks for a repr while it may have stopped the holder of the lock.
        half_open = self._half_open
        doing = f"{self._window.marked} of {self._window.calls_so_far} calls failed"
        if half_open is not None:
            most = self._plan.half_open.max_probes
            doing = f"{half_open.verdicts} verdicts and {half_open.probes} probes of {most}"
        elif self.state is _OPEN and self._opened is not None:
            doing = self._opened.why
        mode = "" if self._plan.mode == "enforce" else f" ({self._plan.mode})"
        return f"<Circuit {self.state}{mode}, generation {self.generation}: {doing}>"

    # Everything below runs under the lock.

    def _take_unreported(self) -> list[Transition]:
        unreported = self._unreported
        if unreported:
            self._unreported = []
        return unreported

    def _let_pass(self) -> None:
        """Have successes that are like the last one counted without the lock from now on, where the window can."""
        permit, slot = self.shared_permit, self._window.open()
        if permit is not None and slot is not None:
            self._passing = _Passing(permit, self._slow_s, slot)

    def _stop_passing(self) -> None:
        """Have every success looked at under the lock from now on."""
        self._take_in()
        self._passing = None

    def _take_in(self) -> None:
        """Take note of the successes that were counted without the lock."""
        passing = self._passing
        if passing is not None and self._window.take_in():
            self._last_success, self._run_before_success = passing.place, 0

    def _tally(self) -> Tally:
        window = self._window
        window.take_in()
        return Tally(window.calls, window.marked, self._consecutive_failures, window.slow)

    def _follow(self, plan: CircuitPlan) -> None:
        self._plan = plan
        slow_s = plan.slow_call.duration_s
        self._slow_s = inf if slow_s is None else slow_s
        if plan.mode == "disabled":
            self._ramp = None
        self._set_shared_permit()

    def _set_shared_permit(self) -> None:
        """Decide whether callers pass without a look at the circuit: one permit in `shared_permit` serves them all."""
        mode = self._plan.mode
        passes = self.state is _CLOSED and self._ramp is None and mode != "forced_open"
        self.shared_permit = Permit(self.generation) if passes else None
        self.is_shut = mode == "forced_open" or (self.state is _OPEN and mode == "enforce")

    def _ask_trip_rules(self, now: float) -> None:
        plan = self._plan
        if plan.mode == "disabled":
            return
        tally = self._tally()
        tripped = tripped_by(tally, plan)
        if tripped is not None:
            trigger, threshold = tripped
            rate = failure_rate(tally, minimum_calls=plan.minimum_calls)
            self._transition(trigger, now, tally, rate, threshold)

    def _admit(self, now: float) -> Permit | Refused:
        """The answer of a circuit that does not let every call pass."""
        plan = self._plan
        if plan.mode == "forced_open":
            return Refused(Refusal.FORCED_OPEN, plan.open_for.max_s, self.state, None)
        if self._half_open is not None:
            self._settle(now)
        if self.state is _CLOSED:
            return self._admit_closed(now)
        if self.state is _OPEN:
            self._open_until = min(self._open_until, now + self._open_s)
            if now < self._open_until:
                return Refused(Refusal.OPEN, self._open_until - now, _OPEN, self._opened)
            self._transition(Trigger.OPEN_FOR_ELAPSED, now, *self._probe_tally(), None)
        half_open = self._half_open
        assert half_open is not None, "neither closed nor open"
        probe = half_open.lease(plan, now)
        if probe is not None:
            return Permit(self.generation, probe)
        # If all verdicts were in and no probe were in flight, the phase would be over. So a probe is in flight.
        return Refused(
            Refusal.NO_PLACE,
            half_open.oldest_expires_at() - now,
            _HALF_OPEN,
            self._opened,
            probes=half_open.probes,
            verdicts=half_open.verdicts,
        )

    def _admit_closed(self, now: float) -> Permit | Refused:
        ramp, ramp_s = self._ramp, self._plan.half_open.ramp_s
        if ramp is None or ramp_s is None or ramp.left_s(ramp_s, now) <= 0.0:
            self._ramp = None
            self._set_shared_permit()
        else:
            share = ramp.share(ramp_s, now)
            if not ramp.admits(share):
                return Refused(Refusal.RAMP, ramp.left_s(ramp_s, now), _CLOSED, self._opened, share=share)
        return self.shared_permit or Permit(self.generation)

    def _ramp_share(self, now: float) -> float | None:
        ramp, ramp_s = self._ramp, self._plan.half_open.ramp_s
        if ramp is None or ramp_s is None or ramp.left_s(ramp_s, now) <= 0.0:
            return None
        return ramp.share(ramp_s, now)

    def _judge_probe(self, permit: Permit, verdict: Verdict, is_slow: bool, now: float) -> None:
        self._settle(now)
        half_open = self._half_open
        if half_open is None or not half_open.give_back(permit.probe) or verdict is _IGNORED:
            return  # the phase is over, the probe expired or was given back before, or its verdict says nothing
        half_open.judge(failed=verdict is _FAILURE, slow=is_slow)
        self._decide(half_open.weigh(self._plan), now)

    def _settle(self, now: float) -> None:
        """Do what time alone has decided about the half-open phase."""
        if self._half_open is not None:
            decided = self._half_open.settle(self._plan, now)
            if decided is not None:
                self._decide(*decided)

    def _decide(self, trigger: ProbesTrigger | None, at_s: float) -> None:
        if trigger is not None:
            self._transition(trigger, at_s, *self._probe_tally(), threshold_of(trigger, self._plan))

    def _probe_tally(self) -> tuple[Tally, float | None]:
        """The verdicts of the half-open phase, and the failure rate among them; nothing while the circuit is open."""
        half_open = self._half_open
        if half_open is None:
            return Tally(0, 0, self._consecutive_failures, 0), None
        verdicts = half_open.verdicts
        rate = half_open.failed / verdicts if verdicts else None
        return Tally(verdicts, half_open.failed, self._consecutive_failures, half_open.slow), rate

    def _transition(
        self, trigger: Trigger, at_s: float, tally: Tally, rate: float | None, threshold: float | None
    ) -> None:
        """Change the state as the table says, and keep the numbers that caused it."""
        plan, before = self._plan, self.state
        after = TRANSITIONS[before, trigger]
        open_for_s = None
        if after is _OPEN:
            self._openings += 1
            open_for_s = self._open_s = self._open_for_s()
            self._open_until = at_s + open_for_s
        self.generation += 1
        self._window.give_up_slots()  # whoever is about to tick there, has a permit that is void now
        transition = Transition(
            from_state=before,
            to_state=after,
            at_s=at_s,
            reason=trigger,
            failure_rate=rate,
            calls=tally.calls,
            failures=tally.failures,
            consecutive_failures=tally.consecutive_failures,
            threshold=threshold,
            open_for_s=open_for_s,
            generation=self.generation,
            slow_calls=tally.slow_calls,
            is_observed=plan.mode == "observe",
        )
        self.state = after
        self._half_open = HalfOpen(plan, at_s) if after is _HALF_OPEN else None
        self._ramp = None
        if after is _OPEN:
            self._opened = transition
        elif after is _CLOSED:
            self._openings = 0
            if trigger is not Trigger.DISABLED:  # the operator waived the failures, which does not undo them
                self._consecutive_failures = 0
                self._window.clear()
                self._ramp = None if plan.half_open.ramp_s is None else Ramp(at_s)
        self._set_shared_permit()
        self.history = (*self.history[-3:], transition)
        self._unreported.append(transition)

    def _open_for_s(self) -> float:
        plan = self._plan.open_for
        spread = 1.0 + plan.jitter * (2.0 * self._rng() - 1.0)
        return grown_s(plan.base_s, plan.multiplier, plan.max_s, self._openings) * spread
