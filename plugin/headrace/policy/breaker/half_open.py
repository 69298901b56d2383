"""The half-open phase: a few calls are let through as probes, and their verdicts decide.

This is the arithmetic of one phase. The circuit owns it, guards it with its lock and does what it says.
"""

from __future__ import annotations

from math import ceil, floor, inf
from typing import Literal, TypeAlias, assert_never

from headrace.policy.breaker.trip import Trigger
from headrace.policy.plan import CircuitPlan

ProbesTrigger: TypeAlias = Literal[
    Trigger.PROBES_SUCCEEDED,
    Trigger.PROBE_FAILED,
    Trigger.PROBE_EXPIRED,
    Trigger.PROBES_SLOW,
    Trigger.WINDOW_ELAPSED,
]
"""What ends a half-open phase by itself."""


def threshold_of(trigger: ProbesTrigger, plan: CircuitPlan) -> float:
    """What the verdicts were compared with when *trigger* ended the phase."""
    match trigger:
        case Trigger.PROBES_SLOW:
            return plan.slow_call.rate_threshold
        case Trigger.PROBES_SUCCEEDED | Trigger.PROBE_FAILED | Trigger.PROBE_EXPIRED | Trigger.WINDOW_ELAPSED:
            return plan.half_open.success_rate_threshold
        case _:
            assert_never(trigger)


class HalfOpen:
    """Probes in flight and verdicts of one half-open phase. Not thread-safe.

    A probe is a lease: a probe that hangs expires, and that counts as a failure.
    The plan is given with each question, so that thresholds follow a reload. A lease
    or a window that runs keeps the end it was given.

    Attributes:
        succeeded: Verdicts so far; failed likewise, expired probes included.
        slow: How many of the verdicts took long.
    """

    __slots__ = (
        "_last_probe",
        "_lengths",
        "_probes",
        "_window_ends_at",
        "_window_s",
        "failed",
        "slow",
        "succeeded",
    )

    def __init__(self, plan: CircuitPlan, now: float) -> None:
        self._probes: dict[int, float] = {}  # number of the lease -> when it expires
        self._lengths: dict[int, float] = {}  # number of the lease -> how long it may take
        self._last_probe = 0
        self._window_s = plan.half_open.window_s
        self._window_ends_at = now + self._window_s
        self.succeeded = self.failed = self.slow = 0

    @property
    def verdicts(self) -> int:
        """How many probes have been judged."""
        return self.succeeded + self.failed

    @property
    def probes(self) -> int:
        """Leases that were not given back. Call `settle` first to drop those that expired."""
        return len(self._probes)

    def lease(self, plan: CircuitPlan, now: float) -> int | None:
        """The number of a new probe, or None when there is no place for one. Mutates."""
        half_open = plan.half_open
        if self.succeeded + self.failed + len(self._probes) >= half_open.max_probes:
            return None
        self._last_probe += 1
        self._probes[self._last_probe] = now + half_open.probe_timeout_s
        self._lengths[self._last_probe] = half_open.probe_timeout_s
        return self._last_probe

    def oldest_expires_at(self) -> float:
        """When the next lease expires, or infinity."""
        return min(self._probes.values(), default=inf)

    def in_flight(self, now: float) -> int:
        """Leases that have not expired by *now*."""
        return sum(expires_at > now for expires_at in self._probes.values())

    def give_back(self, probe: int | None) -> bool:
        """End the lease of *probe*; False when it had expired, or was given back before. Mutates."""
        if probe is None or self._probes.pop(probe, None) is None:
            return False
        del self._lengths[probe]
        return True

    def judge(self, *, failed: bool, slow: bool) -> None:
        """Count the verdict on a probe that was given back. Mutates."""
        if failed:
            self.failed += 1
        else:
            self.succeeded += 1
        self.slow += slow

    def weigh(
        self, plan: CircuitPlan, failed_by: ProbesTrigger = Trigger.PROBE_FAILED
    ) -> ProbesTrigger | None:
        """What the verdicts decide, or None as long as the remaining probes can change the result."""
        most = plan.half_open.max_probes
        if (most - self.failed) / most < plan.half_open.success_rate_threshold:
            return failed_by
        # An upstream that answers as slowly as it did when the circuit opened has not recovered.
        if plan.slow_call.duration_s is not None and self.slow / most >= plan.slow_call.rate_threshold:
            return Trigger.PROBES_SLOW
        if self.succeeded + self.failed >= most:
            return Trigger.PROBES_SUCCEEDED
        return None

    def settle(self, plan: CircuitPlan, now: float) -> tuple[ProbesTrigger, float] | None:
        """What time alone has decided by *now*, and when it did; None: nothing yet. Mutates.

        Expired leases and windows that passed are taken in the order in which they happened.
        """
        window_s = plan.half_open.window_s
        self._cap_ends(now)
        while True:
            expires_at = self.oldest_expires_at()
            if expires_at <= now and expires_at <= self._window_ends_at:
                self.give_back(min(self._probes, key=self._probes.__getitem__))
                self.failed += 1
                trigger = self.weigh(plan, Trigger.PROBE_EXPIRED)
                if trigger is not None:
                    return trigger, expires_at
            elif self._window_ends_at > now:
                return None
            elif self.failed:
                return Trigger.WINDOW_ELAPSED, self._window_ends_at
            else:
                # Nothing speaks against the upstream: the verdicts are kept and the window starts again. All silent
                # windows pass at once, so that a week is one step. A probe that expires with a window belongs to it.
                if expires_at <= now:
                    passed = ceil((expires_at - self._window_ends_at) / window_s)
                else:
                    passed = 1 + floor((now - self._window_ends_at) / window_s)
                self._window_ends_at += window_s * passed
                self._window_s = window_s

    def _cap_ends(self, now: float) -> None:
        """Let nothing end later than its whole length from now: the clock may have stepped back."""
        self._window_ends_at = min(self._window_ends_at, now + self._window_s)
        for probe, length_s in self._lengths.items():
            self._probes[probe] = min(self._probes[probe], now + length_s)
