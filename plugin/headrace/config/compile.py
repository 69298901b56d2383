"""Settings to plans: the frozen form that everything past the configuration works with.

A setting is what the file says, in the file's types and under the file's names. A plan is what a call reads: plain
floats in seconds, tuples, frozen sets, functions, and no pydantic object. Every field is copied by hand and by name.
mypy
therefore tells of a field that a plan requires and this module forgets; `tests/config/test_every_key.py` tells of a
key that is accepted and copied nowhere.

Nothing is refused and nothing is read here. The checks have passed, so a contradiction at this place would be a bug of
theirs. A value that depends on another one is made in two places: `settings` cuts a default to the written limit around
it, and the probe timeout is made below. Conditions are shared, since a thousand upstreams would else have one each.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from headrace.config import settings as given
from headrace.config.check.predicates import Predicate
from headrace.config.reuse import Plans
from headrace.policy.outcome import Condition, condition
from headrace.policy.plan import (
    AdaptivePlan,
    BackoffPlan,
    BudgetPlan,
    CircuitPlan,
    Configuration,
    CountWindowPlan,
    FallbackPlan,
    FileHeader,
    HalfOpenPlan,
    HeartbeatPlan,
    IdempotencyKeyPlan,
    InboundDeadlinePlan,
    InstallPlan,
    KeepalivePlan,
    OpenForPlan,
    PoolPlan,
    PropagatePlan,
    ReloadPlan,
    RequestIdPlan,
    RetryAfterHeader,
    RetryAfterPlan,
    RetryPlan,
    SecretFile,
    SecretsPlan,
    ServicePlan,
    SlowCallPlan,
    TelemetryPlan,
    TimeoutPlan,
    TimeWindowPlan,
    TlsPlan,
    UpstreamPlan,
    WindowPlan,
)
from headrace.policy.secret import Secret


def compile_settings(
    settings: given.Settings,
    *,
    tls: Mapping[str, TlsPlan | None],
    predicates: Mapping[str, Predicate],
    file_headers: Mapping[str, tuple[FileHeader, ...]],
    secret_files: Mapping[str, tuple[SecretFile, ...]],
    known: Plans,
    digest: str,
    watched: tuple[str, ...],
    warnings: tuple[str, ...],
    prints: Mapping[str, bytes],
    tls_refused: Mapping[str, str],
    secret_texts: Mapping[str, str],
) -> Configuration:
    """The plans of *settings*, which have passed every check.

    Args:
        tls: TLS plan by upstream, None for http.
        predicates: What `failure_if` names, by upstream.
        file_headers: The headers that follow files, of upstreams that have some.
        secret_files: Where headers and passphrases come from, of upstreams that have such files.
        known: Plans of the load before, which stay where what they are compiled of has not changed.
        digest: Identity of everything read.
        watched: Absolute paths of everything read.
        warnings: Rendered findings.
        prints: SHA-256 of what was read, by path.
        tls_refused: By upstream, why *tls* has the plan of the load before.
        secret_texts: What the files of *file_headers* held, by path.
    """
    service, reload = settings.service, settings.reload
    upstreams = {
        name: _known_or_new(
            known.get(name),
            name,
            upstream,
            tls[name],
            predicates.get(name),
            file_headers.get(name, ()),
            secret_files.get(name, ()),
        )
        for name, upstream in settings.upstreams.items()
    }
    return Configuration(
        service=ServicePlan(
            request_id=RequestIdPlan(
                header=service.request_id.header,
                accept=service.request_id.accept,
                is_trace_id=service.request_id.from_ == "trace",
            ),
            deadline=_inbound_deadline(service.deadline),
            cancel_on_disconnect=service.cancel_on_disconnect,
            max_retries_per_request=service.max_retries_per_request,
            error_responses=service.error_responses,
        ),
        install=InstallPlan(requests=settings.install.requests, urllib3=settings.install.urllib3),
        reload=ReloadPlan(
            debounce_s=float(reload.debounce),
            max_delay_s=float(reload.max_delay),
            poll_s=float(reload.poll),
            drain_s=float(reload.drain),
        ),
        telemetry=TelemetryPlan(
            served_requests=settings.telemetry.served_requests, tracing=settings.telemetry.tracing
        ),
        upstreams=MappingProxyType(upstreams),
        digest=digest,
        watched=watched,
        warnings=warnings,
        prints=prints,
        tls_refused=tls_refused,
        secret_texts=secret_texts,
        secrets=SecretsPlan(max_age_s=_seconds(settings.secrets.max_age)),
    )


def _known_or_new(
    before: tuple[given.Upstream, TlsPlan | None, Predicate | None, UpstreamPlan] | None,
    name: str,
    upstream: given.Upstream,
    tls: TlsPlan | None,
    failure_if: Predicate | None,
    file_headers: tuple[FileHeader, ...],
    secret_files: tuple[SecretFile, ...],
) -> UpstreamPlan:
    if (
        before is not None
        and before[0] is upstream
        and before[1] == tls
        and before[2] is failure_if
        and before[3].file_headers == file_headers
        and before[3].secret_files == secret_files
    ):
        return before[3]
    return _upstream(name, upstream, tls, failure_if, file_headers, secret_files)


def _inbound_deadline(deadline: given.InboundDeadline) -> InboundDeadlinePlan | None:
    if deadline.header is None and deadline.default is None:
        return None
    return InboundDeadlinePlan(
        header=deadline.header, default_s=_seconds(deadline.default), max_s=float(deadline.max)
    )


def _upstream(
    name: str,
    upstream: given.Upstream,
    tls: TlsPlan | None,
    failure_if: Predicate | None,
    file_headers: tuple[FileHeader, ...],
    secret_files: tuple[SecretFile, ...],
) -> UpstreamPlan:
    return UpstreamPlan(
        name=name,
        base=upstream.base_url,
        match=tuple(upstream.match),
        mode=upstream.mode,
        headers=tuple((name, Secret(value)) for name, value in upstream.headers.items()),
        propagate=PropagatePlan(
            request_id=upstream.propagate.request_id,
            retry_sequence=upstream.propagate.retry_sequence,
            deadline=upstream.propagate.deadline,
            traceparent=upstream.propagate.traceparent,
        ),
        timeouts=_timeouts(upstream.timeouts),
        pool=_pool(upstream.pool),
        tls=tls,
        retry=_retry(upstream.retry),
        circuit_breaker=_circuit(
            upstream.circuit_breaker,
            attempt_s=float(upstream.timeouts.attempt),
            deadline_s=_seconds(upstream.timeouts.deadline),
            failure_if=failure_if,
        ),
        fallback=_fallback(upstream.fallback),
        rooted=frozenset(one.origin for one in (upstream.base_url, *upstream.match) if one.is_rooted),
        file_headers=file_headers,
        secret_files=secret_files,
    )


# Plain floats below. A Duration is a float too, but its arithmetic and its repr are not what plans promise.
def _timeouts(timeouts: given.Timeouts) -> TimeoutPlan:
    return TimeoutPlan(
        deadline_s=_seconds(timeouts.deadline),
        attempt_s=float(timeouts.attempt),
        resolve_s=float(timeouts.resolve),
        connect_s=float(timeouts.connect),
        tls_handshake_s=float(timeouts.tls_handshake),
        read_s=float(timeouts.read),
        write_s=float(timeouts.write),
        acquire_s=float(timeouts.acquire),
        caller=timeouts.caller,
        # the file, what it inherits, or a variable
        deadline_is_written="deadline" in timeouts.model_fields_set,
        resolve_is_written="resolve" in timeouts.model_fields_set,
    )


def _pool(pool: given.Pool) -> PoolPlan:
    keepalive, heartbeat = pool.tcp_keepalive, pool.heartbeat
    return PoolPlan(
        max_connections=pool.max_connections,
        min_idle=pool.min_idle,
        max_idle=pool.max_idle,
        when_full=pool.when_full,
        max_waiting=pool.max_waiting,
        idle_timeout_s=float(pool.idle_timeout),
        max_lifetime_s=_seconds(pool.max_lifetime),
        max_lifetime_grace_s=_seconds(pool.max_lifetime_grace),
        max_requests_per_connection=pool.max_requests_per_connection,
        max_response_body_bytes=None if pool.max_response_body is None else int(pool.max_response_body),
        leak_detection_threshold_s=_seconds(pool.leak_detection_threshold),
        parser=pool.parser,
        tcp_keepalive=None
        if keepalive is None
        else KeepalivePlan(
            idle_s=float(keepalive.idle), interval_s=float(keepalive.interval), count=keepalive.count
        ),
        heartbeat=None
        if heartbeat is None
        else HeartbeatPlan(
            path=heartbeat.path,
            interval_s=float(heartbeat.interval),
            timeout_s=float(heartbeat.timeout),
            failures=heartbeat.failures,
        ),
        adaptive=_adaptive(pool.adaptive),
    )


def _adaptive(adaptive: given.Adaptive | None) -> AdaptivePlan | None:
    if adaptive is None:
        return None
    return AdaptivePlan(
        min=adaptive.min,
        grow_when_waiting=float(adaptive.grow_when_waiting),
        grow_when_rate=float(adaptive.grow_when_rate),
        shrink_when_rate=float(adaptive.shrink_when_rate),
        shrink_after_s=float(adaptive.shrink_after),
        rate_window_s=float(adaptive.rate_window),
        connections_per_rps=float(adaptive.connections_per_rps),
    )


def _seconds(duration: float | None) -> float | None:
    return None if duration is None else float(duration)


def _retry(retry: given.Retry) -> RetryPlan:
    key = retry.idempotency_key
    return RetryPlan(
        max_attempts=retry.max_attempts,
        retry_on=_condition(retry.retry_on),
        methods=frozenset(retry.methods),
        backoff=BackoffPlan(
            base_s=float(retry.backoff.base),
            multiplier=float(retry.backoff.multiplier),
            max_s=float(retry.backoff.max),
            jitter=retry.backoff.jitter,
            throttled_s=float(retry.backoff.throttled),
        ),
        retry_after=RetryAfterPlan(
            headers=tuple(
                RetryAfterHeader(name=header.name, format=header.format)
                for header in retry.retry_after.headers
            ),
            max_s=float(retry.retry_after.max),
        ),
        budget=BudgetPlan(
            ratio=float(retry.budget.ratio),
            min_per_second=float(retry.budget.min_per_second),
            ttl_s=float(retry.budget.ttl),
        ),
        idempotency_key=None
        if key is None
        else IdempotencyKeyPlan(header=key.header, methods=frozenset(key.methods)),
    )


def _fallback(fallback: given.Fallback | None) -> FallbackPlan | None:
    if fallback is None:
        return None
    return FallbackPlan(
        status=fallback.status,
        headers=tuple(fallback.headers.items()),
        body=fallback.body.encode(),
        upstream=fallback.upstream,
    )


def _circuit(
    breaker: given.CircuitBreaker,
    *,
    attempt_s: float,
    deadline_s: float | None,
    failure_if: Predicate | None,
) -> CircuitPlan:
    open_for, half_open = breaker.open_for, breaker.half_open
    return CircuitPlan(
        mode=breaker.mode,
        window=_window(breaker.window),
        minimum_calls=breaker.minimum_calls,
        failure_rate_threshold=float(breaker.failure_rate_threshold),
        consecutive_failures=breaker.consecutive_failures,
        slow_call=SlowCallPlan(
            duration_s=_seconds(breaker.slow_call.duration),
            rate_threshold=float(breaker.slow_call.rate_threshold),
        ),
        failure_on=_condition(breaker.failure_on),
        blame_after_s=float(breaker.blame_after),
        open_for=OpenForPlan(
            base_s=float(open_for.base),
            multiplier=float(open_for.multiplier),
            max_s=float(open_for.max),
            jitter=float(open_for.jitter),
        ),
        half_open=HalfOpenPlan(
            max_probes=half_open.max_probes,
            success_rate_threshold=float(half_open.success_rate_threshold),
            window_s=float(half_open.window),
            # A probe holds its place to the end of its call: through its retries, and to the end of a good body.
            probe_timeout_s=max(2 * attempt_s, deadline_s or 0.0)
            if half_open.probe_timeout is None
            else float(half_open.probe_timeout),
            ramp_s=_seconds(half_open.ramp),
        ),
        failure_if=failure_if,
    )


def _window(window: given.Window) -> WindowPlan:
    size = window.size
    if isinstance(size, int):  # `checks` has seen to it that type and size agree
        return CountWindowPlan(size=size, max_age_s=_seconds(window.max_age))
    return TimeWindowPlan(size_s=float(size))


_conditions: dict[tuple[str | int, ...], Condition] = {}


def _condition(words: list[str | int]) -> Condition:
    """The set that *words* name. One object per list of words: a thousand upstreams mostly have the same ones."""
    key = tuple(words)
    known = _conditions.get(key)
    if known is None:
        if len(_conditions) > 256:
            _conditions.clear()
        known = _conditions[key] = condition(words)
    return known
