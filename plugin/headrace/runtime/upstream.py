"""An upstream at run time: a Plan (frozen, of one snapshot) and a State (shared, survives reloads)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from headrace.observe.events import CircuitChanged, LeaseHeld, LeaseLeaked, PoolResized
from headrace.observe.logs import emit
from headrace.policy.circuit import Circuit, Transition
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.plan import Mode, Origin, UpstreamPlan
from headrace.policy.retry import RetryBudget
from headrace.policy.sizing import Resize
from headrace.runtime.service import ServiceCounters
from headrace.transport.lease import LeasePool
from headrace.transport.pool_sizer import PoolSizer
from headrace.transport.urllib3_pool import GovernedHTTPPool, build_pool


class UpstreamState:
    """What an upstream has learned and holds. Each part guards itself.

    Attributes:
        pool: Its connections; guarded by the lease pool's lock.
        circuit, budget: Guarded by the lock each was given.
        counters: Totals by name; the same object before and after a reload.
        in_flight: Calls in `mode: observe` under way; guarded by `counters.lock`.
        misses: Heartbeats missed in a row; any answer, a call's too, makes it 0.
        suspect: That many were `heartbeat.failures`; any answer, a call's too, makes it False.
        sizer: Keeps the pool's size, if it is adaptive.
        elsewhere: States for the other origins of `match`: connections of their own, and this
            circuit, budget and counters.
    """

    __slots__ = (
        "budget",
        "circuit",
        "counters",
        "elsewhere",
        "in_flight",
        "misses",
        "pool",
        "sizer",
        "suspect",
    )

    def __init__(
        self,
        *,
        pool: GovernedHTTPPool,
        sizer: PoolSizer | None,
        circuit: Circuit,
        budget: RetryBudget,
        counters: UpstreamCounters,
        elsewhere: Mapping[Origin, UpstreamState],
    ) -> None:
        self.elsewhere = elsewhere
        self.pool = pool
        self.sizer = sizer
        self.circuit = circuit
        self.budget = budget
        self.counters = counters
        self.in_flight = 0
        self.misses = 0
        self.suspect = False

    def forget_inherited(self, plan: UpstreamPlan, *, mode: Mode) -> None:
        """In a forked child: its own connections and locks, and a circuit and budget that know nothing yet.

        Not the parent's with new locks: a thread that does not exist here may have been amid an update.
        """
        self.counters.lock = threading.Lock()
        for state in self.everywhere():
            state.in_flight = 0
            state.pool.forget_inherited()
        self.forget_learned(plan, mode=mode)

    def forget_learned(self, plan: UpstreamPlan, *, mode: Mode) -> None:
        """A circuit and a budget that know nothing yet; connections and counts stay. Mutates."""
        circuit, budget = _circuit(plan, self.counters, mode=mode), _budget(plan)
        for state in self.everywhere():
            state.circuit, state.budget = circuit, budget
            state.misses = 0
            state.suspect = False

    def everywhere(self) -> tuple[UpstreamState, ...]:
        """This state, and those of the other origins."""
        return (self, *self.elsewhere.values())


@dataclass(frozen=True, slots=True)
class Upstream:
    """One name of one snapshot. A call reads it once and keeps it to its end.

    Attributes:
        mode: The plan's, unless the environment overrides it.
        digest: Of the configuration this plan belongs to.
        request_id_header: Name of the header that carries the request id.
        deadline_header: Name of the header that says what is left of a deadline, or None.
        service: Counters of the instance it belongs to.
        fallback: Asked instead where the circuit refuses; None: none is, whatever else the plan says.
    """

    plan: UpstreamPlan
    state: UpstreamState
    mode: Mode
    digest: str
    request_id_header: str
    deadline_header: str | None
    service: ServiceCounters
    fallback: Upstream | None = None

    def at(self, origin: Origin) -> Upstream:
        """This upstream as calls to *origin*, one of its `base_url` and `match`, see it."""
        state = self.state.elsewhere.get(origin)
        return self if state is None else replace(self, state=state)

    def everywhere(self) -> tuple[Upstream, ...]:
        """This upstream at each of its origins."""
        return (self, *(replace(self, state=state) for state in self.state.elsewhere.values()))

    def __repr__(self) -> str:
        circuit = self.state.circuit.state.value
        return f"<Upstream {self.plan.name} {self.mode} circuit={circuit} {self.state.pool!r}>"


def build_state(plan: UpstreamPlan, counters: UpstreamCounters, *, mode: Mode) -> UpstreamState:
    """A fresh state for *plan*; opens no socket.

    Args:
        mode: The one in force, for the wording of events.

    Raises:
        TlsError: The plan's TLS files cannot be loaded.
    """
    circuit, budget = _circuit(plan, counters, mode=mode), _budget(plan)
    base = plan.base.origin
    others = dict.fromkeys(prefix.origin for prefix in plan.match if prefix.origin != base)
    return _state_at(
        base,
        plan,
        circuit,
        budget,
        counters,
        elsewhere={origin: _state_at(origin, plan, circuit, budget, counters) for origin in others},
    )


def _state_at(
    origin: Origin,
    plan: UpstreamPlan,
    circuit: Circuit,
    budget: RetryBudget,
    counters: UpstreamCounters,
    *,
    elsewhere: Mapping[Origin, UpstreamState] = MappingProxyType({}),
) -> UpstreamState:
    pool = build_pool(plan, origin, counters)
    return UpstreamState(
        pool=pool,
        sizer=_sizer(plan, pool, counters),
        circuit=circuit,
        budget=budget,
        counters=counters,
        elsewhere=elsewhere,
    )


def _circuit(plan: UpstreamPlan, counters: UpstreamCounters, *, mode: Mode) -> Circuit:
    return Circuit(
        plan.circuit_breaker,
        rng=random.random,
        lock=threading.Lock(),
        on_transition=_transition_reporter(plan.name, counters, is_observed=mode == "observe"),
        on_waived=lambda _: _count_waived(counters),
    )


def _count_waived(counters: UpstreamCounters) -> None:
    with counters.lock:
        add(counters.observed, "refused")


def _sizer(plan: UpstreamPlan, pool: GovernedHTTPPool, counters: UpstreamCounters) -> PoolSizer | None:
    if plan.pool.adaptive is None:
        return None

    def report(resize: Resize) -> None:
        emit(
            PoolResized(
                upstream=plan.name,
                from_size=resize.from_size,
                to_size=resize.to_size,
                reason=resize.reason.value,
                waiting=resize.waiting,
                peak_inuse=resize.peak_inuse,
                rate_rps=resize.rate_rps,
                baseline_rps=resize.baseline_rps,
            )
        )

    return PoolSizer(plan.pool.adaptive, pool.leases, counters, clock=time.monotonic, on_resize=report)


def _budget(plan: UpstreamPlan) -> RetryBudget:
    return RetryBudget(plan.retry.budget, lock=threading.Lock())


def report_leases(name: str, leases: LeasePool[Any]) -> None:
    """Log which leases of upstream *name* were dropped, or are held for too long."""
    for report in leases.reports():
        if report.held_s is None:
            site = report.site or "unknown; set pool.leak_detection_threshold to see where"
            emit(LeaseLeaked(upstream=name, call_site=site))
        else:
            emit(LeaseHeld(upstream=name, call_site=report.site or "unknown", held_s=report.held_s))


def _transition_reporter(
    name: str, counters: UpstreamCounters, *, is_observed: bool
) -> Callable[[Transition], None]:
    def report(transition: Transition) -> None:
        with counters.lock:
            add(counters.transitions, (transition.from_state.value, transition.to_state.value))
        emit(
            CircuitChanged(
                upstream=name,
                from_state=transition.from_state.value,
                to_state=transition.to_state.value,
                reason=transition.reason,
                failure_rate=transition.failure_rate,
                calls=transition.calls,
                failures=transition.failures,
                consecutive_failures=transition.consecutive_failures,
                threshold=transition.threshold,
                open_for_s=transition.open_for_s,
                is_observed=is_observed or transition.is_observed,
                slow_calls=transition.slow_calls,
            )
        )

    return report
