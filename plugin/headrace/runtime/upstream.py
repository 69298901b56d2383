"""An upstream at run time: the frozen plan of one snapshot, with the state that goes by it (`runtime.state`).

`Upstream` is frozen, owns nothing and has no lock. `build_state` finds or builds the state for a plan, while nothing is
in force yet. `Upstream.take_force` then makes that state go by the plan; the reloader calls it under its own lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from headrace.observe.events import CircuitChanged, TlsRotated, UpstreamReset
from headrace.observe.isolation import each
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.frozen import frozen
from headrace.policy.plan import Mode, TlsPlan, UpstreamPlan
from headrace.runtime.migrate import ends_rehearsal, keeps_connections, keeps_learned, keeps_tls
from headrace.runtime.rotation import Material
from headrace.runtime.secrets import LiveHeaders
from headrace.runtime.service import ServiceCounters
from headrace.runtime.state import Endpoint, Learned, build_endpoint, learned_nothing
from headrace.transport.dial.client import TlsClient

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing


@frozen
class Upstream:
    """One name of one snapshot, as a call to one of its origins sees it. A call keeps the one that it began with.

    Attributes:
        learned: What is known of it, at all its origins together.
        endpoint: Where the call goes.
        endpoints: All of them, that of `base_url` first.
        mode: That of the plan, unless the environment overrides it.
        digest: That of the configuration which the plan belongs to.
        request_id_header: Name of the header that carries the request id.
        deadline_header: Name of the header that says what is left of a deadline; None: none is sent.
        service: Counters of the instance that it belongs to.
        fallback: The upstream that is called where the circuit refuses; None: none is, whatever else the plan says.
        tracing: Tells OpenTelemetry of its calls; None: nothing is told.
        material: What its TLS goes by; None: it has none.
        live: Its headers, where some of them follow files; None: they are those of the plan.
        compiled: What was made of it for quick calls, by maker. An entry is made by one store, and may be made twice.
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
    material: Material | None = field(default=None, repr=False)
    live: LiveHeaders | None = None
    compiled: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers of its rules, as they are sent now."""
        return self.plan.headers if self.live is None else self.live.now()

    def everywhere(self) -> tuple[Upstream, ...]:
        """This upstream, as calls to each of its origins see it."""
        return tuple(
            self if endpoint is self.endpoint else replace(self, endpoint=endpoint, compiled={})
            for endpoint in self.endpoints
        )

    def take_force(self, now: float) -> list[CircuitChanged | TlsRotated]:
        """Make the state go by this plan. Mutates the state; idempotent.

        An error in one pool does not keep the others from it.

        Returns:
            What followed, counted and to be logged: transitions, and a rotation.
        """
        plan, tls = self.plan, self.endpoint.tls
        old = None if tls is None else tls.plan
        let_go: list[tuple[int, int]] = []

        def follow(endpoint: Endpoint) -> None:
            let_go.extend(filter(None, (endpoint.pool.follow(plan),)))

        # New handshakes first: what a pool then lets go of is all that was made with the old material.
        if tls is not None and plan.tls is not None:
            tls.follow(plan.tls)
        each(self.endpoints, follow, doing=f"have the pool of {plan.name} go by new rules")
        events: list[CircuitChanged | TlsRotated] = [*self.learned.follow(plan, self.mode, now)]
        if old is not None and plan.tls is not None and old.fingerprint != plan.tls.fingerprint:
            with self.learned.counters.lock:
                add(self.learned.counters.rotations, "taken")
            events.append(_rotated(plan.name, old, plan.tls, let_go))
        return events

    def forget_inherited(self) -> None:
        """In a forked child: let go of the parent's connections, and make a circuit and a budget that know nothing.

        The parent's own, with new locks, will not do: a thread that does not exist here may have been changing them.
        """
        self.learned.counters.lock = threading.RLock()
        each(
            self.endpoints,
            Endpoint.forget_inherited,
            doing=f"give up the parent's connections to {self.plan.name}",
        )
        self.forget_learned()

    def forget_learned(self) -> None:
        """Begin again with a circuit and a budget that know nothing. Connections and counts stay. Mutates the state."""
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


def _rotated(name: str, old: TlsPlan, new: TlsPlan, let_go: Sequence[tuple[int, int]]) -> TlsRotated:
    was, now = old.certificate, new.certificate
    return TlsRotated(
        upstream=name,
        certificate=None if now is None else now.print,
        not_after_s=None if now is None else now.not_after,
        was=None if was is None else was.print,
        closed=sum(closed for closed, _ in let_go),
        draining=sum(busy for _, busy in let_go),
        drain_s=new.rotation_drain_s,
        chain=0 if now is None else now.chain,
        was_chain=0 if was is None else was.chain,
    )


def name_of(upstream: Upstream) -> str:
    """The name of *upstream* in the file."""
    return upstream.plan.name


def build_state(
    plan: UpstreamPlan, counters: UpstreamCounters, *, mode: Mode, before: Upstream | None, is_stopped: bool
) -> tuple[Learned, tuple[Endpoint, ...]]:
    """The state for *plan*, its endpoints in the plan's order. Opens no socket and changes nothing in use.

    It is the state of *before*, as far as `runtime.migrate` says that it can go by *plan*. Once *plan* is in force,
    `Upstream.take_force` makes it do so.

    Args:
        mode: The one in force.
        before: The upstream that has the name so far; None: the name is new.
        is_stopped: The pools of *before* were closed for good.

    The client of its TLS goes on wherever the rules of TLS are the same, also where pools are new. So those that
    drain follow it, too: no call under an old snapshot makes a connection with a certificate that was replaced.

    Raises:
        TlsError: The plan's TLS files cannot be loaded.
    """
    learned, kept, tls = None, {}, None
    if before is not None:
        if keeps_learned(before.plan, plan) and not ends_rehearsal(before.mode, mode):
            learned = before.learned
        if not is_stopped and keeps_connections(before.plan, plan):
            kept = {endpoint.origin: endpoint for endpoint in before.endpoints}
        if keeps_tls(before.plan, plan):
            tls = before.endpoint.tls
    if tls is None and plan.tls is not None:
        tls = TlsClient(plan.tls, counters)
    origins = dict.fromkeys((plan.base.origin, *(prefix.origin for prefix in plan.match)))
    return (
        learned_nothing(plan, counters, mode=mode) if learned is None else learned,
        tuple(kept.get(origin) or build_endpoint(origin, plan, counters, tls=tls) for origin in origins),
    )
