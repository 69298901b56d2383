"""An upstream at run time: a plan (frozen, of one snapshot), and the state that it goes with (`runtime.state`)."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.observe.events import CircuitChanged, UpstreamReset
from headrace.observe.isolation import each
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.plan import Mode, UpstreamPlan
from headrace.runtime.migrate import ends_rehearsal, keeps_connections, keeps_learned
from headrace.runtime.service import ServiceCounters
from headrace.runtime.state import Endpoint, Learned, build_endpoint, learned_nothing

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing


@dataclass(frozen=True, slots=True)
class Upstream:
    """One name of one snapshot, as a call to one of its origins sees it. A call reads it once and keeps it to its end.

    Attributes:
        learned: What is known of it, at all its origins.
        endpoint: Where the call goes.
        endpoints: All of them, that of `base_url` first.
        mode: The plan's, unless the environment overrides it.
        digest: Of the configuration this plan belongs to.
        request_id_header: Name of the header that carries the request id.
        deadline_header: Name of the header that says what is left of a deadline, or None.
        service: Counters of the instance it belongs to.
        fallback: Asked instead where the circuit refuses; None: none is, whatever else the plan says.
        tracing: Tells OpenTelemetry of its calls, or None: nothing is told.
    """

    plan: UpstreamPlan
    learned: Learned
    endpoint: Endpoint
    endpoints: tuple[Endpoint, ...]
    mode: Mode
    digest: str
    request_id_header: str
    deadline_header: str | None
    service: ServiceCounters
    fallback: Upstream | None = None
    tracing: Tracing | None = None

    def everywhere(self) -> tuple[Upstream, ...]:
        """This upstream, as calls to each of its origins see it."""
        return tuple(
            self if endpoint is self.endpoint else replace(self, endpoint=endpoint)
            for endpoint in self.endpoints
        )

    def take_force(self, now: float) -> list[CircuitChanged]:
        """Make what earlier rules have left behind go by these rules. Mutates the state; idempotent.

        A pool that cannot follow keeps none of the others from it.

        Returns:
            What came of it, counted and to be logged.
        """
        plan = self.plan
        each(
            self.endpoints,
            lambda one: one.pool.follow(plan),
            doing=f"have the pool of {plan.name} go by new rules",
        )
        return self.learned.follow(plan, self.mode, now)

    def forget_inherited(self) -> None:
        """In a forked child: its own connections and locks, and a circuit and budget that know nothing yet.

        Not the parent's with new locks: a thread that does not exist here may have been amid an update.
        """
        self.learned.counters.lock = threading.Lock()
        each(
            self.endpoints,
            Endpoint.forget_inherited,
            doing=f"give up the parent's connections to {self.plan.name}",
        )
        self.forget_learned()

    def forget_learned(self) -> None:
        """A circuit and a budget that know nothing yet; connections and counts stay. Mutates the state."""
        self.learned.forget(self.plan)
        for endpoint in self.endpoints:
            endpoint.forget_misses()

    def reset(self, now: float) -> UpstreamReset:
        """As `forget_learned`, by the application's wish: a circuit that was not closed counts as having closed.

        Returns:
            What is to be logged.
        """
        learned = self.learned
        state, tokens = learned.circuit.view(now).state.value, learned.budget.balance(now)
        self.forget_learned()
        if state != "closed":
            with learned.counters.lock:
                add(learned.counters.transitions, (state, "closed"))
        return UpstreamReset(upstream=self.plan.name, state=state, tokens=tokens)

    def __repr__(self) -> str:
        circuit = self.learned.circuit.state.value
        return f"<Upstream {self.plan.name} {self.mode} circuit={circuit} {self.endpoint.pool!r}>"


def name_of(upstream: Upstream) -> str:
    """What the file calls it."""
    return upstream.plan.name


def build_state(
    plan: UpstreamPlan, counters: UpstreamCounters, *, mode: Mode, before: Upstream | None
) -> tuple[Learned, tuple[Endpoint, ...]]:
    """What *plan* goes with, its endpoints in its own order; opens no socket and changes nothing in use.

    It is that of *before*, as far as `runtime.migrate` says that it can go by *plan*; it does once that is in force
    (`Upstream.take_force`).

    Args:
        mode: The one in force.
        before: The upstream of that name so far, or None.

    Raises:
        TlsError: The plan's TLS files cannot be loaded.
    """
    learned, kept = None, {}
    if before is not None:
        if keeps_learned(before.plan, plan) and not ends_rehearsal(before.mode, mode):
            learned = before.learned
        if keeps_connections(before.plan, plan):
            kept = {endpoint.origin: endpoint for endpoint in before.endpoints}
    origins = dict.fromkeys((plan.base.origin, *(prefix.origin for prefix in plan.match)))
    return (
        learned_nothing(plan, counters, mode=mode) if learned is None else learned,
        tuple(kept.get(origin) or build_endpoint(origin, plan, counters) for origin in origins),
    )
