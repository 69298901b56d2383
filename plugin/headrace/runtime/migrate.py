"""What becomes of an upstream that exists when an edited file takes force: one row for each key that an upstream has.

The plan in force and the next plan go in. The answers say whether the connections can go by the new plan, and whether
what was learned still holds. This module is pure: `runtime.upstream` builds and applies.

A list is one key, and so is a map of free names. A section that may be null has a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from headrace.policy.frozen import frozen
from headrace.policy.plan import Mode, UpstreamPlan


class Change(StrEnum):
    """What a new value of a key needs."""

    LIVE = "live"
    RESIZE = "resize"
    REBUILD = "rebuild"


MEANING: Final[Mapping[Change, str]] = MappingProxyType(
    {
        Change.LIVE: "what comes next goes by it; what is under way keeps what it began with",
        # Surplus connections, the circuit's window, the retry budget.
        Change.RESIZE: "what there is, is cut or grown to fit at once",
        Change.REBUILD: "new connections; the old ones serve the calls under way, and drain",
    }
)
"""Each of them in words, for who asks what an edit does."""


@frozen
class Row:
    """What a new value of one key needs.

    Attributes:
        built: Answers the part of a plan that connections are built with, and keep; None: they follow any value.
        learned: Answers the part of a plan that the circuit and the budget hold for; None: they hold for any value.
        note: What else there is to say of an edit, or "".
    """

    change: Change
    built: Callable[[UpstreamPlan], object] | None = None
    learned: Callable[[UpstreamPlan], object] | None = None
    note: str = ""


def _origin(plan: UpstreamPlan) -> object:
    return plan.base.origin


def _tls(plan: UpstreamPlan) -> object:
    # Not what the files hold: the connections follow that (`runtime.rotation`).
    return None if plan.tls is None else plan.tls.policy


def _tcp_keepalive(plan: UpstreamPlan) -> object:
    return plan.pool.tcp_keepalive


def _adaptive(plan: UpstreamPlan) -> object:
    return plan.pool.adaptive


def _adaptive_size(plan: UpstreamPlan) -> object:
    """The upper bound of a pool that follows its load. Its rule has a memory that belongs to these bounds."""
    return None if plan.pool.adaptive is None else plan.pool.max_connections


_LIVE: Final = Row(Change.LIVE)
_RESIZE: Final = Row(Change.RESIZE)
_BY_TLS: Final = Row(Change.REBUILD, built=_tls)
_BY_KEEPALIVE: Final = Row(Change.REBUILD, built=_tcp_keepalive)
_BY_ADAPTIVE: Final = Row(Change.REBUILD, built=_adaptive)

ROWS: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "base_url": Row(
            Change.REBUILD,
            built=_origin,
            learned=_origin,
            note="another origin begins with a closed breaker and a full budget; another path is live",
        ),
        # A new origin gets connections of its own. Those of an origin that has left the file drain.
        "match": _LIVE,
        # The keys that it brings in count as if they were written here.
        "extends": _LIVE,
        # See `ends_rehearsal`.
        "mode": Row(Change.LIVE, note="from observe to enforce, breaker and budget begin afresh"),
        "headers": Row(Change.LIVE, note="a value made of ${file:…} follows the file, without a reload"),
        "propagate.request_id": _LIVE,
        "propagate.retry_sequence": _LIVE,
        "propagate.deadline": _LIVE,
        "propagate.traceparent": _LIVE,
        "timeouts.deadline": _LIVE,
        "timeouts.attempt": _LIVE,
        "timeouts.resolve": _LIVE,
        "timeouts.connect": _LIVE,
        "timeouts.tls_handshake": _LIVE,
        "timeouts.read": _LIVE,
        "timeouts.write": _LIVE,
        "timeouts.acquire": _LIVE,
        "timeouts.caller": _LIVE,
        "pool.max_connections": Row(
            Change.RESIZE, built=_adaptive_size, note="rebuild, where pool.adaptive is"
        ),
        "pool.min_idle": _LIVE,
        "pool.max_idle": _LIVE,
        "pool.when_full": _LIVE,
        "pool.max_waiting": _LIVE,
        "pool.idle_timeout": _LIVE,
        "pool.max_lifetime": Row(Change.LIVE, note="a connection keeps the lifetime that it was made with"),
        "pool.max_lifetime_grace": _LIVE,
        "pool.max_requests_per_connection": _LIVE,
        "pool.max_response_body": _LIVE,
        "pool.leak_detection_threshold": _LIVE,
        "pool.parser": _LIVE,
        # Set on a socket before it connects.
        "pool.tcp_keepalive": _BY_KEEPALIVE,
        "pool.tcp_keepalive.idle": _BY_KEEPALIVE,
        "pool.tcp_keepalive.interval": _BY_KEEPALIVE,
        "pool.tcp_keepalive.count": _BY_KEEPALIVE,
        "pool.heartbeat": _LIVE,
        "pool.heartbeat.path": _LIVE,
        "pool.heartbeat.interval": _LIVE,
        "pool.heartbeat.timeout": _LIVE,
        "pool.heartbeat.failures": _LIVE,
        "pool.adaptive": _BY_ADAPTIVE,
        "pool.adaptive.min": _BY_ADAPTIVE,
        "pool.adaptive.grow_when_waiting": _BY_ADAPTIVE,
        "pool.adaptive.grow_when_rate": _BY_ADAPTIVE,
        "pool.adaptive.shrink_when_rate": _BY_ADAPTIVE,
        "pool.adaptive.shrink_after": _BY_ADAPTIVE,
        "pool.adaptive.rate_window": _BY_ADAPTIVE,
        "pool.adaptive.connections_per_rps": _BY_ADAPTIVE,
        "tls.verify": _BY_TLS,
        # It confirms `verify: false`, which has its own row.
        "tls.insecure_skip_verify": _LIVE,
        # It says what the file must have.
        "tls.require_client_certificate": _LIVE,
        "tls.ca": _BY_TLS,
        "tls.cert": _BY_TLS,
        "tls.key": _BY_TLS,
        # Once it opens another key: as where the key's file has other contents.
        "tls.key_passphrase": _LIVE,
        "tls.rotation_drain": _LIVE,
        "tls.server_name": _BY_TLS,
        "tls.min_version": _BY_TLS,
        # Connections that were made before have been compared with the list of before.
        "tls.identities": _BY_TLS,
        "tls.session_resumption": _LIVE,
        "tls.session_cache.size": _LIVE,
        "tls.session_cache.ttl": _LIVE,
        "retry.max_attempts": _LIVE,
        "retry.retry_on": _LIVE,
        "retry.methods": _LIVE,
        "retry.backoff.base": _LIVE,
        "retry.backoff.multiplier": _LIVE,
        "retry.backoff.max": _LIVE,
        "retry.backoff.jitter": _LIVE,
        "retry.backoff.throttled": _LIVE,
        "retry.retry_after.headers": _LIVE,
        "retry.retry_after.max": _LIVE,
        # What was earned and spent is known as before. The new rules say what it is worth.
        "retry.budget.ratio": _RESIZE,
        "retry.budget.min_per_second": _RESIZE,
        "retry.budget.ttl": _RESIZE,
        "retry.idempotency_key": _LIVE,
        "retry.idempotency_key.header": _LIVE,
        "retry.idempotency_key.methods": _LIVE,
        "circuit_breaker.mode": _LIVE,
        # The new window takes over the calls that were counted, as far as they fit.
        "circuit_breaker.window.type": _RESIZE,
        "circuit_breaker.window.size": _RESIZE,
        "circuit_breaker.window.max_age": _RESIZE,
        "circuit_breaker.minimum_calls": _LIVE,
        "circuit_breaker.failure_rate_threshold": _LIVE,
        "circuit_breaker.consecutive_failures": _LIVE,
        "circuit_breaker.slow_call.duration": _LIVE,
        "circuit_breaker.slow_call.rate_threshold": _LIVE,
        "circuit_breaker.failure_on": _LIVE,
        "circuit_breaker.failure_if": _LIVE,
        "circuit_breaker.blame_after": _LIVE,
        # An open period, a probe's lease and a half-open window that run keep the end that they were given.
        "circuit_breaker.open_for.base": _LIVE,
        "circuit_breaker.open_for.multiplier": _LIVE,
        "circuit_breaker.open_for.max": _LIVE,
        "circuit_breaker.open_for.jitter": _LIVE,
        "circuit_breaker.half_open.max_probes": _LIVE,
        "circuit_breaker.half_open.success_rate_threshold": _LIVE,
        "circuit_breaker.half_open.window": _LIVE,
        "circuit_breaker.half_open.probe_timeout": _LIVE,
        "circuit_breaker.half_open.ramp": _LIVE,
        "fallback": _LIVE,
        "fallback.status": _LIVE,
        "fallback.headers": _LIVE,
        "fallback.body": _LIVE,
        "fallback.upstream": _LIVE,
    }
)
"""By key, as it is written below an upstream or in `defaults`."""

_BUILT: Final = tuple(dict.fromkeys(row.built for row in ROWS.values() if row.built is not None))
_LEARNED: Final = tuple(dict.fromkeys(row.learned for row in ROWS.values() if row.learned is not None))


def is_unchanged(before: UpstreamPlan, after: UpstreamPlan) -> bool:
    """Whether both are the same rules. What the files hold that headers follow is not one of them."""
    if before == after:
        return True
    if not after.file_headers or before.file_headers != after.file_headers:
        return False
    return _without_secrets(before) == _without_secrets(after)


def _without_secrets(plan: UpstreamPlan) -> UpstreamPlan:
    of_files = {header.name for header in plan.file_headers}
    return replace(
        plan, headers=tuple((name, "" if name in of_files else value) for name, value in plan.headers)
    )


def keeps_connections(before: UpstreamPlan, after: UpstreamPlan) -> bool:
    """Whether the connections made by *before* can go by *after*."""
    return all(built(before) == built(after) for built in _BUILT)


def keeps_tls(before: UpstreamPlan, after: UpstreamPlan) -> bool:
    """Whether what *before* goes by in TLS can follow *after*: the rules are the same, whatever the files hold."""
    return before.tls is not None and _tls(before) == _tls(after)


def keeps_learned(before: UpstreamPlan, after: UpstreamPlan) -> bool:
    """Whether what was learned by *before* holds for *after*: the circuit and the budget."""
    return all(learned(before) == learned(after) for learned in _LEARNED)


def ends_rehearsal(before: Mode, after: Mode) -> bool:
    """Whether *after* enforces what *before* only rehearsed. Assumed retries are no ground to refuse a call."""
    return before == "observe" and after == "enforce"
