"""The circuit's states, the one table of its transitions, and the numbers each of them carries."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import assert_never

from headrace.policy.breaker.trip import TRIP_RULES, Tally, Trigger
from headrace.policy.frozen import frozen


class CircuitState(StrEnum):
    """What the circuit does with a call."""

    CLOSED = "closed"  # admits it
    OPEN = "open"  # refuses it
    HALF_OPEN = "half_open"  # admits a few, as probes


_CLOSED, _OPEN, _HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN

TRANSITIONS: Mapping[tuple[CircuitState, Trigger], CircuitState] = MappingProxyType(
    {
        **{(_CLOSED, rule): _OPEN for rule in TRIP_RULES},
        (_OPEN, Trigger.OPEN_FOR_ELAPSED): _HALF_OPEN,
        (_OPEN, Trigger.DISABLED): _HALF_OPEN,
        (_HALF_OPEN, Trigger.PROBES_SUCCEEDED): _CLOSED,
        (_HALF_OPEN, Trigger.PROBE_FAILED): _OPEN,
        (_HALF_OPEN, Trigger.PROBE_EXPIRED): _OPEN,
        (_HALF_OPEN, Trigger.PROBES_SLOW): _OPEN,
        (_HALF_OPEN, Trigger.WINDOW_ELAPSED): _OPEN,
        (_HALF_OPEN, Trigger.DISABLED): _CLOSED,
    }
)
"""Every change of state that exists. CLOSED is not reachable from OPEN: recovery is verified first. The operator waives
that with `mode: disabled`, which makes both steps at once."""


@frozen
class Transition:
    """One change of state, with the numbers that caused it.

    Attributes:
        generation: The generation that began; orders the transitions of one circuit.
        at_s: When it happened, monotonic seconds. Where time alone decided, that is before the call that noticed it.
        reason: The trigger.
        failure_rate: Share of failures among *calls* in [0, 1], or None where no rate was
            asked (too few calls).
        calls: Calls in the window, or verdicts of the half-open phase (expired probes included). A call
            counts once, however many attempts it made.
        failures: How many of *calls* failed.
        slow_calls: How many of *calls* took `slow_call.duration` or longer.
        threshold: What the numbers were compared with: the trip rule's own threshold; for probes
            slow_call.rate_threshold or success_rate_threshold; None where nothing was compared.
        open_for_s: How long the circuit stays open, jitter included; None when it did not open.
        is_observed: The circuit's mode was observe: nothing is refused because of it.
    """

    from_state: CircuitState
    to_state: CircuitState
    at_s: float
    reason: Trigger
    failure_rate: float | None
    calls: int
    failures: int
    consecutive_failures: int
    threshold: float | None
    open_for_s: float | None
    generation: int
    slow_calls: int = 0
    is_observed: bool = False

    @property
    def why(self) -> str:
        """The numbers in words, for an error message about the circuit this transition opened."""
        match self.from_state:
            case CircuitState.CLOSED:
                held = Tally(self.calls, self.failures, self.consecutive_failures, self.slow_calls)
                return TRIP_RULES[self.reason].why(held, self.threshold)
            case CircuitState.HALF_OPEN:
                return self._why_of_probes
            case CircuitState.OPEN:
                return self.reason.value
            case _:
                assert_never(self.from_state)

    @property
    def _why_of_probes(self) -> str:
        if self.reason is Trigger.PROBES_SLOW:
            return f"{self.reason}: {self.slow_calls} of {self.calls} probes"
        failed = f"{self.reason}: {self.failures} of {self.calls} probes failed"
        return failed if self.threshold is None else f"{failed}, {self.threshold:.0%} of them must succeed"
