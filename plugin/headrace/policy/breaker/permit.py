"""What a circuit answers, and what it is told: permits and refusals, verdicts, and a look at it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headrace.policy.breaker.transition import CircuitState, Transition
from headrace.policy.plan import CircuitMode


class Verdict(StrEnum):
    """What an attempt, or a call by the last that says anything, says about the upstream's health."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"  # nothing: local refusal, cancellation, cut too early. Gives its permit back


@dataclass(slots=True)
class Permit:
    """Leave to make one call, its retries included; goes back by `Circuit.record`.

    Attributes:
        generation: The circuit's when it was given; void after the next transition.
        probe: Number of the probe's lease, or None for a permit of the closed circuit
            (then one object serves all callers: no allocation).
    """

    generation: int
    probe: int | None = None


class Refusal(StrEnum):
    """Why there is no permit."""

    OPEN = "open"
    NO_PLACE = "no_place"  # half open, and as many probes as may are out
    RAMP = "ramp"  # closed again, and not yet this one's turn
    FORCED_OPEN = "forced_open"


@dataclass(slots=True)
class Refused:
    """No permit, and why. `str()` is the sentence for an error message.

    Attributes:
        retry_after_s: Seconds until asking makes sense, >= 0: until a probe may be admitted
            (open), the oldest probe expires, so at the latest then something has changed (half open),
            every call is admitted (ramp). Forced open ends with an edit: the longest open period.
        cause: The transition that opened the circuit; None where the configuration did.
        probes: Probes in flight (half open).
        verdicts: What is known of others (half open).
        share: Of calls admitted, 0..1 (ramp).
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
        """Rate that opened the circuit, or None when it was not a rate."""
        return None if self.cause is None else self.cause.failure_rate

    @property
    def calls(self) -> int:
        """Calls behind the opening."""
        return 0 if self.cause is None else self.cause.calls

    @property
    def threshold(self) -> float | None:
        """What the rule that opened the circuit compared with."""
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


@dataclass(frozen=True, slots=True)
class CircuitView:
    """A circuit at one instant, for status and metrics.

    Attributes:
        failure_rate: Share of failures in the window, or None below `minimum_calls`.
        slow_call_rate: Share of slow calls likewise; None also when no call counts as slow.
        retry_after_s: Seconds left of the open period; 0 when it is over or not open.
        probes_in_flight: Leases of half-open probes that have not expired.
        verdicts: Verdicts of the half-open phase, expired probes included.
        ramp_share: Of calls admitted after closing, 0..1; None when it is all of them, or another state's matter.
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
    mode: CircuitMode = "enforce"
    slow_calls: int = 0
    slow_call_rate: float | None = None
    ramp_share: float | None = None

    @property
    def label(self) -> str:
        """What callers meet, in a word: the state, or `forced_open`."""
        return "forced_open" if self.mode == "forced_open" else self.state.value
