"""What a circuit answers and what it is told: permits and refusals, verdicts, and a view of it."""

from __future__ import annotations

from enum import StrEnum

from headrace.policy.breaker.transition import CircuitState, Transition
from headrace.policy.frozen import frozen, slotted
from headrace.policy.plan import CircuitMode


class Verdict(StrEnum):
    """What an attempt says about the upstream's health. That of a call is its last that is not IGNORED."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = (
        "ignored"  # it says nothing: local refusal, cancellation, cut too early. The permit is given back
    )


@slotted
class Permit:
    """Permission to make one call with its retries; goes back by `Circuit.record`.

    Attributes:
        generation: The circuit's when the permit was given; the permit is void after the next transition.
        probe: Number of the probe's lease, or None for a permit of the closed circuit
            (then one object serves all callers: no allocation).
    """

    generation: int
    probe: int | None = None


class Refusal(StrEnum):
    """Why there is no permit."""

    OPEN = "open"
    NO_PLACE = "no_place"  # half open, and all places for probes are taken
    RAMP = "ramp"  # closed again, and not yet this call's turn
    FORCED_OPEN = "forced_open"


@slotted
class Refused:
    """No permit, and why. `str()` is the sentence for an error message.

    Attributes:
        retry_after_s: Seconds until asking makes sense, >= 0. Open: until a probe may be admitted.
            Half open: until the oldest probe expires, since something has changed by then. Ramp: until
            every call is admitted. Forced open: the longest open period, since only an edit ends it.
        cause: The transition that opened the circuit; None where the configuration did.
        probes: Probes in flight (half open); count.
        verdicts: Probes that were judged (half open); count.
        share: Share of calls admitted, 0..1 (ramp).
    """

    kind: Refusal
    retry_after_s: float
    state: CircuitState
    cause: Transition | None
    probes: int = 0
    verdicts: int = 0
    share: float = 0.0

    @property
    def failure_rate(self) -> float | None:
        """The failure rate that opened the circuit, or None when no rate did."""
        return None if self.cause is None else self.cause.failure_rate

    @property
    def calls(self) -> int:
        """How many calls the opening was decided on."""
        return 0 if self.cause is None else self.cause.calls

    @property
    def threshold(self) -> float | None:
        """The threshold of the rule that opened the circuit."""
        return None if self.cause is None else self.cause.threshold

    def __str__(self) -> str:
        why = "" if self.cause is None else f" ({self.cause.why})"
        match self.kind:
            case Refusal.OPEN:
                return f"circuit open for {self.retry_after_s:.1f} s more{why}"
            case Refusal.NO_PLACE:
                others = f", {self.verdicts} judged" if self.verdicts else ""
                probes = f"{self.probes} under way{others}"
                return f"circuit half open with no place for another probe: {probes}{why}"
            case Refusal.RAMP:
                return (
                    f"circuit closed again and letting through {self.share:.0%} of calls, "
                    f"all of them in {self.retry_after_s:.1f} s{why}"
                )
            case Refusal.FORCED_OPEN:
                return "circuit forced open by the configuration (circuit_breaker.mode: forced_open)"


@frozen
class CircuitView:
    """A circuit at one instant, for status and metrics.

    Attributes:
        failure_rate: Share of failures in the window, or None below `minimum_calls`.
        slow_call_rate: Share of slow calls, likewise; None also when no call counts as slow.
        retry_after_s: Seconds left of the open period; 0 when it is over or not open.
        probes_in_flight: Leases of half-open probes that have not expired.
        verdicts: Verdicts of the half-open phase, expired probes included.
        ramp_share: Share of calls admitted after closing, 0..1; None when all of them are, and in any other state.
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
    slow_calls: int
    mode: CircuitMode = "enforce"
    slow_call_rate: float | None = None
    ramp_share: float | None = None

    @property
    def label(self) -> str:
        """What callers meet, in a word: the state, or `forced_open`."""
        return "forced_open" if self.mode == "forced_open" else self.state.value
