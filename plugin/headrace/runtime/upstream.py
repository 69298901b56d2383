"""An upstream at run time: a Plan (frozen, of one snapshot) and a State (shared, survives reloads)."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from headrace.clock import monotonic
from headrace.observe.events import CircuitChanged, LeaseHeld, LeaseLeaked, PoolFault, PoolResized
from headrace.observe.isolation import each
from headrace.observe.logs import emit
from headrace.policy.breaker.circuit import Circuit, Refused, Transition
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.plan import Mode, Origin, UpstreamPlan
from headrace.policy.retry import RetryBudget
from headrace.policy.sizing import Resize
from headrace.runtime.migrate import ends_rehearsal, keeps_connections, keeps_learned
from headrace.runtime.service import ServiceCounters
from headrace.transport.lease.pool import LeaseFault, LeasePool
from headrace.transport.lease.sizer import PoolSizer
from headrace.transport.stock.pool import GovernedHTTPPool, build_pool

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing


class CircuitReporter:
    """Counts and logs what one upstream's circuit tells; called without the circuit's lock.

    Attributes:
        is_observed: The upstream's mode is observe; follows reloads.
    """

    __slots__ = ("_counters", "_name", "is_observed")

    def __init__(self, name: str, counters: UpstreamCounters, *, is_observed: bool) -> None:
        self._name = name
        self._counters = counters
        self.is_observed = is_observed

    def __call__(self, transition: Transition) -> None:
        emit(self.count(transition))

    def count(self, transition: Transition) -> CircuitChanged:
        """Count *transition*; the event of it, to be logged."""
        with self._counters.lock:
            add(self._counters.transitions, (transition.from_state.value, transition.to_state.value))
        return CircuitChanged(
            upstream=self._name,
            from_state=transition.from_state.value,
            to_state=transition.to_state.value,
            reason=transition.reason,
            failure_rate=transition.failure_rate,
            calls=transition.calls,
            failures=transition.failures,
            consecutive_failures=transition.consecutive_failures,
            threshold=transition.threshold,
            open_for_s=transition.open_for_s,
            is_observed=self.is_observed or transition.is_observed,
            slow_calls=transition.slow_calls,
        )

    def waived(self, _: Refused) -> None:
        """Count a call that an enforced breaker would have refused."""
        with self._counters.lock:
            add(self._counters.observed, "refused")


class UpstreamState:
    """What an upstream has learned and holds, at one of its origins. Each part guards itself.

    Attributes:
        pool: Its connections; guarded by the lease pool's lock.
        sizer: Keeps the pool's size, if it is adaptive.
        circuit, budget: Shared by all origins; guarded by the lock each was given.
        reporter: Tells of the circuit's transitions.
        counters: Totals by name; the same object before and after a reload.
        in_flight: Calls in `mode: observe` under way, something of each; guarded by `counters.lock`. Weak: the call
            that an interrupt ended before it could take itself out is gone with its frame.
        misses: Heartbeats missed in a row; any answer, a call's too, makes it 0.
        suspect: That many were `heartbeat.failures`; any answer, a call's too, makes it False.
    """

    __slots__ = (
        "budget",
        "circuit",
        "counters",
        "in_flight",
        "misses",
        "pool",
        "reporter",
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
        reporter: CircuitReporter,
        counters: UpstreamCounters,
    ) -> None:
        self.pool = pool
        self.sizer = sizer
        self.circuit = circuit
        self.budget = budget
        self.reporter = reporter
        self.counters = counters
        self.in_flight: WeakSet[object] = WeakSet()
        self.misses = 0
        self.suspect = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """One name of one snapshot. A call reads it once and keeps it to its end.

    Attributes:
        mode: The plan's, unless the environment overrides it.
        digest: Of the configuration this plan belongs to.
        request_id_header: Name of the header that carries the request id.
        deadline_header: Name of the header that says what is left of a deadline, or None.
        service: Counters of the instance it belongs to.
        elsewhere: States for the other origins of `match`: connections of their own, and the
            circuit, budget and counters of `state`.
        fallback: Asked instead where the circuit refuses; None: none is, whatever else the plan says.
        tracing: Tells OpenTelemetry of its calls, or None: nothing is told.
    """

    plan: UpstreamPlan
    state: UpstreamState
    mode: Mode
    digest: str
    request_id_header: str
    deadline_header: str | None
    service: ServiceCounters
    elsewhere: Mapping[Origin, UpstreamState] = field(default_factory=dict)
    fallback: Upstream | None = None
    tracing: Tracing | None = None

    def at(self, origin: Origin) -> Upstream:
        """This upstream as calls to *origin*, one of its `base_url` and `match`, see it."""
        state = self.elsewhere.get(origin)
        return self if state is None else replace(self, state=state)

    def everywhere(self) -> tuple[Upstream, ...]:
        """This upstream at each of its origins."""
        return (self, *(replace(self, state=state) for state in self.elsewhere.values()))

    def states(self) -> tuple[UpstreamState, ...]:
        """Its state at each of its origins."""
        return (self.state, *self.elsewhere.values())

    def take_force(self, now: float) -> list[CircuitChanged]:
        """Make what earlier rules have left behind go by these rules. Mutates the states; idempotent.

        A pool that cannot follow keeps none of the others from it.

        Returns:
            What came of it, counted and to be logged.
        """
        state, plan = self.state, self.plan
        if ends_rehearsal("observe" if state.reporter.is_observed else "enforce", self.mode):
            self._forget_rehearsal()
        state.reporter.is_observed = self.mode == "observe"
        state.budget.apply(plan.retry.budget, now)
        each(
            self.states(),
            lambda one: one.pool.follow(plan),
            doing=f"have the pool of {plan.name} go by new rules",
        )
        return [state.reporter.count(one) for one in state.circuit.apply(plan.circuit_breaker, now)]

    def _forget_rehearsal(self) -> None:
        """A circuit and a budget that know nothing yet."""
        circuit, budget = _circuit(self.plan, self.state.reporter), _budget(self.plan)
        for state in self.states():
            state.circuit, state.budget = circuit, budget

    def forget_inherited(self) -> None:
        """In a forked child: its own connections and locks, and a circuit and budget that know nothing yet.

        Not the parent's with new locks: a thread that does not exist here may have been amid an update.
        """
        self.state.counters.lock = threading.Lock()
        each(self.states(), _give_up, doing=f"give up the parent's connections to {self.plan.name}")
        self.forget_learned()

    def forget_learned(self) -> None:
        """A circuit and a budget that know nothing yet; connections and counts stay. Mutates the states."""
        circuit, budget = _circuit(self.plan, self.state.reporter), _budget(self.plan)
        for state in self.states():
            state.circuit, state.budget = circuit, budget
            state.misses = 0
            state.suspect = False

    def __repr__(self) -> str:
        circuit = self.state.circuit.state.value
        return f"<Upstream {self.plan.name} {self.mode} circuit={circuit} {self.state.pool!r}>"


def name_of(upstream: Upstream) -> str:
    """What the file calls it."""
    return upstream.plan.name


def _give_up(state: UpstreamState) -> None:
    state.in_flight = WeakSet()
    state.pool.forget_inherited()


def build_states(
    plan: UpstreamPlan, counters: UpstreamCounters, *, mode: Mode, before: Upstream | None
) -> dict[Origin, UpstreamState]:
    """A state for each origin of *plan*, that of `base_url` first; opens no socket and changes nothing in use.

    Circuit, budget and each origin's connections are those of *before*, as far as `runtime.migrate` says that they
    can go by *plan*. They do once it is in force (`Upstream.take_force`).

    Args:
        mode: The one in force, for the wording of events.
        before: The upstream of that name so far, or None.

    Raises:
        TlsError: The plan's TLS files cannot be loaded.
    """
    base = plan.base.origin
    kept: dict[Origin, UpstreamState] = {}
    if before is not None and keeps_learned(before.plan, plan):
        known = before.state
        circuit, budget, reporter = known.circuit, known.budget, known.reporter
        if keeps_connections(before.plan, plan):
            kept = {base: known, **before.elsewhere}
    else:
        reporter = CircuitReporter(plan.name, counters, is_observed=mode == "observe")
        circuit, budget = _circuit(plan, reporter), _budget(plan)
    states: dict[Origin, UpstreamState] = {}
    for origin in (base, *(prefix.origin for prefix in plan.match)):
        if origin not in states:
            states[origin] = kept.get(origin) or _state_at(origin, plan, circuit, budget, reporter, counters)
    return states


def _state_at(
    origin: Origin,
    plan: UpstreamPlan,
    circuit: Circuit,
    budget: RetryBudget,
    reporter: CircuitReporter,
    counters: UpstreamCounters,
) -> UpstreamState:
    pool = build_pool(plan, origin, counters)
    return UpstreamState(
        pool=pool,
        sizer=_sizer(plan, pool, counters),
        circuit=circuit,
        budget=budget,
        reporter=reporter,
        counters=counters,
    )


def _circuit(plan: UpstreamPlan, reporter: CircuitReporter) -> Circuit:
    return Circuit(
        plan.circuit_breaker,
        rng=random.random,
        lock=threading.Lock(),
        on_transition=reporter,
        on_waived=reporter.waived,
    )


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

    return PoolSizer(plan.pool.adaptive, pool.leases, counters, clock=monotonic, on_resize=report)


def _budget(plan: UpstreamPlan) -> RetryBudget:
    return RetryBudget(plan.retry.budget, lock=threading.Lock())


def report_leases(name: str, leases: LeasePool[Any]) -> None:
    """Log which leases of upstream *name* were dropped, are held for too long, or could not be kept account of."""
    for report in leases.reports():
        if isinstance(report, LeaseFault):
            emit(PoolFault(upstream=name, error=report.error, raised_at=report.site))
        elif report.held_s is None:
            site = report.site or "unknown; set pool.leak_detection_threshold to see where"
            emit(LeaseLeaked(upstream=name, call_site=site))
        else:
            emit(LeaseHeld(upstream=name, call_site=report.site or "unknown", held_s=report.held_s))
