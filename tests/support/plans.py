"""Plans with the defaults of `upstreams.yaml`, and the few that a test changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headrace.policy.outcome import condition
from headrace.policy.plan import (
    BackoffPlan,
    BudgetPlan,
    CircuitPlan,
    HalfOpenPlan,
    OpenForPlan,
    Origin,
    PoolPlan,
    PropagatePlan,
    RetryAfterHeader,
    RetryAfterPlan,
    RetryPlan,
    SlowCallPlan,
    TimeoutPlan,
    TimeWindowPlan,
    UpstreamPlan,
    UrlPrefix,
)
from headrace.policy.request import Request

OPEN_FOR = OpenForPlan(base_s=5.0, multiplier=2.0, max_s=60.0, jitter=0.1)
HALF_OPEN = HalfOpenPlan(max_probes=3, success_rate_threshold=0.9, window_s=60.0, probe_timeout_s=8.0)
BUDGET = BudgetPlan(ratio=0.2, min_per_second=3.0, ttl_s=10.0)
BACKOFF = BackoffPlan(base_s=0.025, multiplier=2.0, max_s=1.0)
TIMEOUTS = TimeoutPlan(
    deadline_s=15.0,
    attempt_s=4.0,
    resolve_s=2.0,
    connect_s=2.0,
    tls_handshake_s=2.0,
    read_s=4.0,
    write_s=4.0,
    acquire_s=0.5,
)
POOL = PoolPlan(
    max_connections=200,
    min_idle=0,
    max_idle=200,
    when_full="wait",
    max_waiting=1024,
    idle_timeout_s=60.0,
    max_lifetime_s=300.0,
    max_lifetime_grace_s=None,
    max_requests_per_connection=None,
    max_response_body_bytes=None,
    leak_detection_threshold_s=None,
    parser="auto",
    tcp_keepalive=None,
    heartbeat=None,
)
CIRCUIT = CircuitPlan(
    mode="enforce",
    window=TimeWindowPlan(10.0),
    minimum_calls=20,
    failure_rate_threshold=0.5,
    consecutive_failures=5,
    slow_call=SlowCallPlan(duration_s=None, rate_threshold=1.0),
    failure_on=condition(["network", "5xx"]),
    blame_after_s=0.5,
    open_for=OPEN_FOR,
    half_open=HALF_OPEN,
)
RETRY = RetryPlan(
    max_attempts=3,
    retry_on=condition(["network", "5xx", 408, 429]),
    methods=frozenset({"GET", "HEAD", "OPTIONS"}),
    backoff=BACKOFF,
    retry_after=RetryAfterPlan(headers=(RetryAfterHeader("Retry-After", "auto"),), max_s=30.0),
    budget=BUDGET,
)


def pool_plan(**changes: Any) -> PoolPlan:
    """The default pool with *changes*."""
    return replace(POOL, **changes)


def circuit_plan(**changes: Any) -> CircuitPlan:
    """The default circuit with *changes*; jitter 0 unless `open_for` is given, so that instants are exact."""
    return replace(CIRCUIT, **{"open_for": replace(OPEN_FOR, jitter=0.0)} | changes)


def retry_plan(**changes: Any) -> RetryPlan:
    """The default retry rules with *changes*."""
    return replace(RETRY, **changes)


def request(method: str = "GET", *, timeouts: TimeoutPlan = TIMEOUTS, **facts: Any) -> Request:
    """A request of that method that its driver would send; *facts* are those of `Request`."""
    return Request(None, method, None, timeouts, **facts)


def upstream_plan(
    *,
    circuit: CircuitPlan | None = None,
    retry: RetryPlan = RETRY,
    timeouts: TimeoutPlan = TIMEOUTS,
) -> UpstreamPlan:
    """An upstream "billing" with these rules; circuit None: `circuit_plan()`."""
    return UpstreamPlan(
        name="billing",
        base=UrlPrefix(Origin("http", "billing.internal", 80), ()),
        match=(),
        mode="enforce",
        headers=(),
        propagate=PropagatePlan(request_id=True, retry_sequence=True),
        timeouts=timeouts,
        pool=POOL,
        tls=None,
        retry=retry,
        circuit_breaker=circuit if circuit is not None else circuit_plan(),
    )
