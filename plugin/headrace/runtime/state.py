"""The state of an upstream: it survives a reload, as far as `runtime.migrate` says.

`Learned` is one per name: what calls to all its origins have taught. `Endpoint` is one per origin: the connections to
it, and whether it is well. A call reads each once, when it begins, and keeps it to its end.

Neither class has a lock. Each part has its own: `Circuit._lock`, `RetryBudget._lock`, `LeasePool._lock` and
`PoolSizer._lock`. `UpstreamCounters.lock` guards the counters, and `Endpoint.in_flight` as well. `Endpoint.misses` and
`suspect` are single stores. A part is replaced by one store, as in `Learned.forget`.
"""

from __future__ import annotations

import functools
import random
import threading
from weakref import WeakSet

from headrace.clock import monotonic
from headrace.observe.events import CircuitChanged
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.counters import UpstreamCounters
from headrace.policy.plan import Mode, Origin, UpstreamPlan
from headrace.policy.retry import RetryBudget
from headrace.runtime.reports import CircuitReporter, report_resize
from headrace.transport.dial.client import TlsClient
from headrace.transport.lease.sizer import PoolSizer
from headrace.transport.stock.pool import GovernedHTTPPool, build_pool


class Learned:
    """What is known of an upstream, whichever of its origins a call went to.

    Attributes:
        circuit, budget: Thread-safe.
        reporter: Counts and logs the circuit's transitions.
        counters: Totals; the same object before and after a reload.
    """

    __slots__ = ("budget", "circuit", "counters", "reporter")

    def __init__(
        self, *, circuit: Circuit, budget: RetryBudget, reporter: CircuitReporter, counters: UpstreamCounters
    ) -> None:
        self.circuit = circuit
        self.budget = budget
        self.reporter = reporter
        self.counters = counters

    def follow(self, plan: UpstreamPlan, mode: Mode, now: float) -> list[CircuitChanged]:
        """Go by *plan* from now on. Mutates; idempotent.

        Returns:
            The transitions that followed, counted and to be logged.
        """
        self.reporter.is_observed = mode == "observe"
        self.budget.apply(plan.retry.budget, now)
        return [self.reporter.count(one) for one in self.circuit.apply(plan.circuit_breaker, now)]

    def forget(self, plan: UpstreamPlan) -> None:
        """Begin again with a circuit and a budget that know nothing. The counts stay. Mutates."""
        self.circuit, self.budget = _circuit(plan, self.reporter), _budget(plan)


class Endpoint:
    """One origin of an upstream, and the connections to it.

    Attributes:
        origin: One of the plan's `base_url` and `match`.
        pool: Its connections.
        tls: What they go by, and those of the upstream's other origins; None: they are plain.
        sizer: Adapts the size of the pool; None: the size is fixed.
        misses: Heartbeats missed in a row. Any answer makes it 0, also one to a call.
        suspect: As many as `heartbeat.failures` were missed. Any answer makes it False, also one to a call.
    """

    __slots__ = ("_in_flight", "misses", "origin", "pool", "sizer", "suspect", "tls")

    def __init__(
        self,
        origin: Origin,
        pool: GovernedHTTPPool,
        sizer: PoolSizer | None = None,
        tls: TlsClient | None = None,
    ) -> None:
        self.origin = origin
        self.pool = pool
        self.sizer = sizer
        self.tls = tls
        self._in_flight: WeakSet[object] | None = None
        self.misses = 0
        self.suspect = False

    @property
    def in_flight(self) -> WeakSet[object]:
        """One object of each call under way in `mode: observe`. Mutates: it is made for the first one who asks.

        The references are weak: an interrupt may end a call before it takes itself out, and then its object goes with
        its frame. The caller holds the lock of the counters.
        """
        if self._in_flight is None:
            self._in_flight = WeakSet()
        return self._in_flight

    @property
    def in_flight_count(self) -> int:
        """How many of these there are. Needs no lock."""
        return 0 if self._in_flight is None else len(self._in_flight)

    def forget_misses(self) -> None:
        """Hold nothing against it any more. Mutates."""
        self.misses = 0
        self.suspect = False

    def forget_inherited(self) -> None:
        """In a forked child: give up the connections and the calls under way, which are the parent's."""
        self._in_flight = None
        self.pool.forget_inherited()
        if self.tls is not None:
            self.tls.forget_inherited()


def learned_nothing(plan: UpstreamPlan, counters: UpstreamCounters, *, mode: Mode) -> Learned:
    """What is known under *plan* of an upstream that was never called.

    Args:
        mode: The one in force, for the wording of events.
    """
    reporter = CircuitReporter(plan.name, counters, is_observed=mode == "observe")
    return Learned(
        circuit=_circuit(plan, reporter), budget=_budget(plan), reporter=reporter, counters=counters
    )


def build_endpoint(
    origin: Origin, plan: UpstreamPlan, counters: UpstreamCounters, *, tls: TlsClient | None
) -> Endpoint:
    """The endpoint at *origin*, one of those that *plan* claims. Opens no socket.

    Args:
        tls: What its connections go by; None: they are plain.
    """
    pool = build_pool(plan, origin, counters, tls=tls)
    sizer = None
    if plan.pool.adaptive is not None:
        sizer = PoolSizer(
            plan.pool.adaptive,
            pool.leases,
            counters,
            clock=monotonic,
            on_resize=functools.partial(report_resize, plan.name),
        )
    return Endpoint(origin, pool, sizer, tls)


# Re-entrant locks, here and of the counters: a finalizer may make a call (failures.md 25), on a thread that holds them.


def _circuit(plan: UpstreamPlan, reporter: CircuitReporter) -> Circuit:
    return Circuit(
        plan.circuit_breaker,
        rng=random.random,
        lock=threading.RLock(),
        on_transition=reporter,
        on_waived=reporter.waived,
    )


def _budget(plan: UpstreamPlan) -> RetryBudget:
    return RetryBudget(plan.retry.budget, lock=threading.RLock())
