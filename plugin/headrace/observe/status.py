"""What `status()` says of one upstream: plain data, fit for JSON, made of a reading."""

from __future__ import annotations

from typing import Any

from headrace.observe.readings import TlsReading, UpstreamReading
from headrace.policy.counters import totals_of
from headrace.policy.plan import Mode


def upstream_status(reading: UpstreamReading, *, mode: Mode) -> dict[str, Any]:
    """The numbers of *reading*, which has a circuit: it is of an upstream in force. Copies the totals, as `copy` does.

    Args:
        mode: The mode that the upstream goes by.
    """
    reading = reading.copy()
    counters, circuit = reading.counters, reading.circuit
    assert circuit is not None
    return {
        "mode": mode,
        "pool": {
            "inuse": reading.inuse,
            "idle": reading.idle,
            "waiting": reading.waiting,
            "max_connections": reading.max_connections,
            "target_size": reading.target_size,
            "hit_rate": reading.hit_rate,
            "suspect": reading.suspect,
            "acquires": counters.acquires,
            "closed": counters.closed,
            "tls_handshakes": counters.tls_handshakes,
            "collections": counters.collections,
        },
        "circuit_breaker": {
            "mode": circuit.mode,
            "state": circuit.state.value,
            "failure_rate": circuit.failure_rate,
            "calls": circuit.calls,
            "failures": circuit.failures,
            "slow_calls": circuit.slow_calls,
            "slow_call_rate": circuit.slow_call_rate,
            "consecutive_failures": circuit.consecutive_failures,
            "retry_after": circuit.retry_after_s,
            "ramp_share": circuit.ramp_share,
            "refused": counters.refused,
            "fallbacks": counters.fallbacks,
        },
        "retry": {
            "budget_tokens": reading.budget_tokens,
            "retries": counters.retries,
            "denied": counters.retries_denied,
            "delegated": counters.retries_delegated,
            "resent": counters.resent,
            "renewed": counters.renewed,
        },
        "tls": None if reading.tls is None else _tls_status(reading.tls),
        "rotations": counters.rotations,
        "certificates": dict(reading.certificates),
        "secrets": dict(reading.secrets),
        "requests": counters.requests,
        "attempts": counters.attempts,
        "own_timeouts": counters.own_timeouts,
        "protected": totals_of(counters.protected),
        "broken_bodies": counters.broken_bodies,
        "observed": counters.observed,
    }


def _tls_status(tls: TlsReading) -> dict[str, Any]:
    """Which generation is in force, and what was refused in its place. No path of a file that is in force."""
    return {
        "certificate": tls.certificate,
        "not_before": tls.not_before_s,
        "not_after": tls.not_after_s,
        "since": tls.since_s,
        "refused": None if tls.refused is None else {"at": tls.refused_since_s, "reason": tls.refused},
    }
