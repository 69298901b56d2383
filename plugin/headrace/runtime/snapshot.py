"""A snapshot: one configuration and the upstreams that are built for it.

A configuration and the snapshot before go in, the next snapshot comes out. Only `build_snapshot` builds, and it opens
no socket. A snapshot is frozen and has no lock: `Reloader` replaces the reference to it. The state of its upstreams
(`runtime.state`) is shared with the snapshots before and after.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from headrace.errors import UnknownUpstream
from headrace.observe.tracing.gate import tracing_of
from headrace.policy.counters import UpstreamCounters
from headrace.policy.frozen import frozen
from headrace.policy.plan import Configuration, UrlPrefix
from headrace.policy.printable import printable
from headrace.policy.routes import RouteTable
from headrace.runtime.migrate import is_unchanged
from headrace.runtime.rotation import material_for
from headrace.runtime.secrets import LiveHeaders, Secrets
from headrace.runtime.service import ServiceCounters
from headrace.runtime.state import Endpoint
from headrace.runtime.upstream import Upstream, build_state

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing


@frozen
class Snapshot:
    """Immutable. Read once per call, bound per inbound request.

    Attributes:
        loaded_at: Wall clock, seconds since the epoch.
        tracing: Tells OpenTelemetry of requests and calls; None: nothing is told.
    """

    configuration: Configuration
    upstreams: Mapping[str, Upstream]
    routes: RouteTable[Upstream]
    loaded_at: float
    tracing: Tracing | None = None

    @property
    def digest(self) -> str:
        """The configuration's digest."""
        return self.configuration.digest

    def upstream(self, name: str) -> Upstream:
        """The upstream called *name*.

        Raises:
            UnknownUpstream: The file in force has no such name.
        """
        found = self.upstreams.get(name)
        if found is None:
            known = ", ".join(self.upstreams) or "none"
            raise UnknownUpstream(
                f'upstream "{printable(name)}" is not in the configuration in force; it has: {known}'
            )
        return found

    def __repr__(self) -> str:
        return f"<Snapshot {self.digest[:12]} upstreams={list(self.upstreams)}>"


def build_snapshot(
    configuration: Configuration,
    *,
    previous: Snapshot | None,
    override: Literal["observe", "off"] | None,
    counters: dict[str, UpstreamCounters],
    service: ServiceCounters,
    secrets: Secrets,
    loaded_at: float,
    is_stopped: bool = False,
) -> Snapshot:
    """The snapshot for *configuration*, with everything built that it needs. Opens no socket.

    An upstream whose plan is unchanged keeps the very same objects. A changed one keeps the state that can go by its
    new rules; `Upstream.take_force` makes it go by them. Mutates *counters*: names that are new are added.

    Args:
        is_stopped: The pools of *previous* were closed for good: only what its upstreams have learned is kept.

    Raises:
        TlsError: TLS files cannot be loaded, and the upstream has no earlier contents of the same ones.
    """
    upstreams: dict[str, Upstream] = {}
    deadline = configuration.service.deadline
    tracing = tracing_of(configuration.telemetry.tracing)
    for name, plan in configuration.upstreams.items():
        before = previous.upstreams.get(name) if previous is not None else None
        plan, material = material_for(
            plan,
            in_force=None if before is None else before.plan,
            refused=configuration.tls_refused.get(name),
            now_s=loaded_at,
        )
        live = None
        if before is not None and is_unchanged(before.plan, plan):
            plan, live = before.plan, before.live
        elif plan.file_headers:
            live = LiveHeaders(plan, secrets)
        if before is not None and before.plan is plan and not is_stopped:
            learned, endpoints = before.learned, before.endpoints
        else:
            learned, endpoints = build_state(
                plan,
                counters.setdefault(name, UpstreamCounters(lock=threading.RLock())),
                mode=override or plan.mode,
                before=before,
                is_stopped=is_stopped,
            )
        upstreams[name] = Upstream(
            plan=plan,
            learned=learned,
            endpoint=endpoints[0],
            endpoints=endpoints,
            mode=override or plan.mode,
            digest=configuration.digest,
            request_id_header=configuration.service.request_id.header,
            deadline_header=None if deadline is None else deadline.header,
            service=service,
            tracing=tracing,
            material=material,
            live=live,
        )
    for name in upstreams:
        _find_fallback(name, upstreams)
    return Snapshot(
        configuration=configuration,
        upstreams=upstreams,
        routes=RouteTable(routes_of(upstreams.values())),
        loaded_at=loaded_at,
        tracing=tracing,
    )


def _find_fallback(name: str, upstreams: dict[str, Upstream]) -> Upstream:
    """Upstream *name* with the upstream that its fallback names, which has its own in turn. Mutates *upstreams*.

    This recurs, and so does a call that goes from one to the next. A checked file has at most MAX_LINKS in a row.
    """
    found = upstreams[name]
    fallback = found.plan.fallback
    if fallback is not None and fallback.upstream is not None and found.fallback is None:
        found = upstreams[name] = replace(
            found, fallback=_find_fallback(fallback.upstream, upstreams), compiled={}
        )
    return found


def routes_of(upstreams: Iterable[Upstream]) -> Iterator[tuple[UrlPrefix, Upstream]]:
    """Every URL prefix that *upstreams* claim, with its upstream as a call to that origin sees it."""
    for upstream in upstreams:
        at = {one.endpoint.origin: one for one in upstream.everywhere()}
        for prefix in (upstream.plan.base, *upstream.plan.match):
            yield prefix, at[prefix.origin]


def changed_upstreams(old: Snapshot, new: Snapshot) -> list[Upstream]:
    """Upstreams of *new* that *old* had under other rules."""
    return [
        upstream
        for name, upstream in new.upstreams.items()
        if name in old.upstreams and old.upstreams[name].plan is not upstream.plan
    ]


def retired_endpoints(old: Snapshot, new: Snapshot) -> list[tuple[str, Endpoint]]:
    """Endpoints of *old* that *new* does not use any more, with the names of their upstreams."""
    kept = {id(one) for upstream in new.upstreams.values() for one in upstream.endpoints}
    return [
        (name, one)
        for name, upstream in old.upstreams.items()
        for one in upstream.endpoints
        if id(one) not in kept
    ]
