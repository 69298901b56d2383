"""The table of metric families: what each is called, and how it is made of a reading.

A row is all that has to be written for a metric. `samples` reads the rows and nothing else knows a family by name, so
the Collector (`metrics`), the files of prometheus_client's multiprocess mode (`multiprocess`) and the table of
metrics.md (a test compares it) cannot differ. Labels are names from the configuration and words from closed lists,
never a URL: the number of series stays bounded.

A `read` function gets a copied reading, which belongs to the caller alone. It may therefore walk the totals without a
lock. It must be pure: it runs at a scrape, on any thread. `merge`, `across_processes` and `gone` are needed because a
gauge cannot be added up like a counter. `merge` is for two instances of one process, `across_processes` for several
processes, `gone` for an upstream that has left while its series stays in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Literal, TypeVar

from headrace.observe.readings import ServiceReading, UpstreamReading
from headrace.policy.breaker.circuit import CircuitState, CircuitView
from headrace.policy.counters import Histogram, totals_of
from headrace.policy.frozen import frozen

Labels = tuple[str, ...]
Value = float | Histogram
Source = TypeVar("Source", UpstreamReading, ServiceReading)


@frozen
class Family(Generic[Source]):
    """One metric family: its outside and how it is read.

    Attributes:
        name: As exposed; a counter's ends in `_total`.
        labels: Without the leading `upstream` of an upstream's family.
        read: Label values and value of each sample; a sample that cannot be told is left out.
        merge: What two instances of one process make of one gauge (counters add up).
        across_processes: prometheus_client's multiprocess mode of a gauge: `livesum`
            for what adds up, `liveall` (a series per process, dropped by
            `mark_process_dead`) for ratios and states.
        gone: What a gauge in the multiprocess files becomes when its upstream has
            left, as series cannot be removed there.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    documentation: str
    labels: Labels
    read: Callable[[Source], Iterable[tuple[Labels, Value]]]
    merge: Callable[[float, float], float] = lambda old, new: old + new
    across_processes: Literal["", "livesum", "liveall"] = ""
    gone: float = 0.0


_NAN = float("nan")


def _by_single_label(totals: Mapping[str, int]) -> Iterable[tuple[Labels, Value]]:
    return (((key,), total) for key, total in totals.items())


def _if_known(value: float | None) -> Iterable[tuple[Labels, Value]]:
    return () if value is None else (((), value),)


def _once_called(up: UpstreamReading, histogram: Histogram) -> Iterable[tuple[Labels, Value]]:
    """*histogram*, unless *up* was never called: the four of an upstream are 57 of its 75 lines at a scrape."""
    return (((), histogram),) if up.counters.requests or any(histogram.counts) else ()


_STATE_LABELS = (*(state.value for state in CircuitState), "forced_open")


def _states(circuit: CircuitView | None) -> Iterable[tuple[Labels, Value]]:
    if circuit is None:
        return ()
    return (((label,), float(circuit.label == label)) for label in _STATE_LABELS)


UPSTREAM_FAMILIES: tuple[Family[UpstreamReading], ...] = (
    Family(
        "headrace_pool_connections",
        "gauge",
        "Connections of the pool, by state: inuse (leased to a call) or idle.",
        ("state",),
        lambda up: ((("inuse",), up.inuse), (("idle",), up.idle)),
        across_processes="livesum",
    ),
    Family(
        "headrace_pool_waiting",
        "gauge",
        "Calls waiting for a connection.",
        (),
        lambda up: (((), up.waiting),),
        across_processes="livesum",
    ),
    Family(
        "headrace_pool_suspect",
        "gauge",
        "1 while heartbeats were missed in a row and nothing has been answered since.",
        (),
        lambda upstream: (((), float(upstream.suspect)),),
        merge=max,
        across_processes="liveall",
    ),
    Family(
        "headrace_pool_hit_rate",
        "gauge",
        "Share of checkouts of the last 10 s served by an idle connection, 0 to 1.",
        (),
        lambda up: _if_known(up.hit_rate),
        merge=min,
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_pool_target_size",
        "gauge",
        "Connections that the pool may have: max_connections, or what adaptive makes of it.",
        (),
        lambda up: (((), up.target_size),),
        across_processes="livesum",
    ),
    Family(
        "headrace_pool_acquires_total",
        "counter",
        "Connection checkouts, by result: hit, miss, timeout, rejected, deadline, cancelled.",
        ("result",),
        lambda up: _by_single_label(up.counters.acquires),
    ),
    Family(
        "headrace_pool_connections_closed_total",
        "counter",
        "Connections closed, by reason: idle, lifetime, dead, surplus, retired, rotated, error, leaked, abandoned.",
        ("reason",),
        lambda up: _by_single_label(up.counters.closed),
    ),
    Family(
        "headrace_tls_rotations_total",
        "counter",
        "Changes of what a certificate, key or CA file holds, by result: taken, refused (the last good one stays).",
        ("result",),
        lambda up: _by_single_label(up.counters.rotations),
    ),
    Family(
        "headrace_tls_handshakes_total",
        "counter",
        "TLS handshakes that succeeded, by whether they went on with a session of one before: yes or no.",
        ("resumed",),
        lambda up: _by_single_label(up.counters.tls_handshakes),
    ),
    Family(
        "headrace_pool_collections_total",
        "counter",
        "Collections of garbage that were asked for because the pool was full and somebody waited.",
        (),
        lambda up: (((), up.counters.collections),),
    ),
    Family(
        "headrace_pool_wait_seconds",
        "histogram",
        "Time from asking for a connection to having one, or giving up.",
        (),
        lambda up: _once_called(up, up.counters.wait),
    ),
    Family(
        "headrace_requests_total",
        "counter",
        "Governed calls that ended, by outcome: a status class, a fault, circuit_open, deadline.",
        ("outcome",),
        lambda up: _by_single_label(up.counters.requests),
    ),
    Family(
        "headrace_request_duration_seconds",
        "histogram",
        "Duration of governed calls: waiting, attempts and back-offs together.",
        (),
        lambda up: _once_called(up, up.counters.duration),
    ),
    Family(
        "headrace_request_attempts",
        "histogram",
        "Attempts per governed call, of calls that made at least one.",
        (),
        lambda up: _once_called(up, up.counters.attempts_per_call),
    ),
    Family(
        "headrace_deadline_left_seconds",
        "histogram",
        "What was left of the deadline when an attempt had its connection; nothing without a deadline.",
        (),
        lambda up: _once_called(up, up.counters.deadline_left),
    ),
    Family(
        "headrace_attempts_total",
        "counter",
        "Attempts that ended, by outcome: a status class or a fault.",
        ("outcome",),
        lambda up: _by_single_label(up.counters.attempts),
    ),
    Family(
        "headrace_retries_total",
        "counter",
        "Attempts after the first, by the outcome that caused them.",
        ("reason",),
        lambda up: _by_single_label(up.counters.retries),
    ),
    Family(
        "headrace_retries_denied_total",
        "counter",
        "Retries that the rules wanted and something forbade, by reason.",
        ("reason",),
        lambda up: _by_single_label(up.counters.retries_denied),
    ),
    Family(
        "headrace_retries_delegated_total",
        "counter",
        "Tries of callers that bring retries of their own, which are kept: one attempt each.",
        (),
        lambda up: (((), up.counters.retries_delegated),),
    ),
    Family(
        "headrace_resends_total",
        "counter",
        "Requests sent once more over a fresh connection because the pooled one had died: no attempt, no retry.",
        (),
        lambda up: (((), up.counters.resent),),
    ),
    Family(
        "headrace_secret_resends_total",
        "counter",
        "Requests sent once more, with a newer secret, after a 401: no attempt, no retry.",
        (),
        lambda up: (((), up.counters.renewed),),
    ),
    Family(
        "headrace_broken_bodies_total",
        "counter",
        "Streamed answers that broke off as they were read: counted as answers before, and now as failures.",
        (),
        lambda up: (((), up.counters.broken_bodies),),
    ),
    Family(
        "headrace_own_timeouts_total",
        "counter",
        "Calls whose own timeout= took the place of the file's limits; timeouts.caller: ignore keeps the file's.",
        (),
        lambda up: (((), up.counters.own_timeouts),),
    ),
    Family(
        "headrace_fallbacks_total",
        "counter",
        "Calls that the circuit refused and that got their fallback.",
        (),
        lambda up: (((), up.counters.fallbacks),),
    ),
    Family(
        "headrace_retry_budget_tokens",
        "gauge",
        "Retries that the budget would pay for now; below 0 when what paid for the last ones has expired.",
        (),
        lambda up: _if_known(up.budget_tokens),
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_breaker_state",
        "gauge",
        "1 for what callers meet, 0 for the others: closed, open, half_open, or forced_open (a mode).",
        ("state",),
        lambda up: _states(up.circuit),
        merge=max,
        across_processes="liveall",
    ),
    Family(
        "headrace_breaker_transitions_total",
        "counter",
        "Changes of the circuit's state.",
        ("from_state", "to_state"),
        lambda up: up.counters.transitions.items(),
    ),
    Family(
        "headrace_breaker_failure_rate",
        "gauge",
        "Share of failed calls in the circuit's window, 0 to 1; absent below minimum_calls.",
        (),
        lambda up: _if_known(None if up.circuit is None else up.circuit.failure_rate),
        merge=max,
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_breaker_slow_call_rate",
        "gauge",
        "Share of slow calls in the circuit's window, 0 to 1; absent below minimum_calls and without slow_call.",
        (),
        lambda up: _if_known(None if up.circuit is None else up.circuit.slow_call_rate),
        merge=max,
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_breaker_refused_total",
        "counter",
        "Calls refused because the circuit was open, half open with no place left, ramping or forced open.",
        (),
        lambda up: (((), up.counters.refused),),
    ),
    Family(
        "headrace_tls_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the certificate in force ends, by kind: client, or ca (the first to end, of at most 16); Unix time.",
        ("kind",),
        lambda up: (((kind,), at) for kind, at in up.certificates.items()),
        merge=min,
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_secret_age_seconds",
        "gauge",
        "Time since the file of a secret was written, by kind: header (the oldest of them), key, key_passphrase.",
        ("kind",),
        lambda up: (((kind,), age_s) for kind, age_s in up.secrets.items()),
        merge=max,
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_protected_calls_total",
        "counter",
        "Calls of protected functions, by what the circuit was told (success, failure, ignored), or refused.",
        ("outcome",),
        lambda up: _by_single_label(totals_of(up.counters.protected)),
    ),
    Family(
        "headrace_observed_total",
        "counter",
        "Mode observe, of the upstream or of its breaker: what the rules would have done, by action "
        "(retried, refused, fallback, timed_out, waited, rejected, tls_refused).",
        ("action",),
        lambda up: _by_single_label(up.counters.observed),
    ),
)

SERVICE_FAMILIES: tuple[Family[ServiceReading], ...] = (
    Family(
        "headrace_ungoverned_calls_total",
        "counter",
        "Calls to a known upstream that passed through untouched, by reason: proxy, tls, adapter, manager, pool_class, "
        "httpx.",
        ("reason",),
        lambda service: _by_single_label(service.ungoverned),
    ),
    Family(
        "headrace_inbound_deadlines_total",
        "counter",
        "Deadlines of inbound requests not taken as they were, by result: refused (past: 504), excused, unreadable.",
        ("result",),
        lambda service: _by_single_label(service.inbound_deadlines),
    ),
    Family(
        "headrace_config_reloads_total",
        "counter",
        "Reloads of the configuration, by result.",
        ("result",),
        lambda service: _by_single_label(service.reloads),
    ),
    Family(
        "headrace_config_digest",
        "gauge",
        "First 48 bits of the digest in force: equal numbers, equal configuration.",
        (),
        lambda service: (((), digest_number(service.digest)),),
        merge=lambda _old, new: (
            new
        ),  # no sum or extreme of two digests means anything: the one installed last
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_config_last_reload_success_timestamp_seconds",
        "gauge",
        "Unix time at which the configuration in force was taken into force.",
        (),
        lambda service: (((), service.last_success_timestamp_s),),
        merge=min,  # the one that is furthest behind
        across_processes="liveall",
        gone=_NAN,
    ),
    Family(
        "headrace_served_requests_total",
        "counter",
        "Inbound requests answered, by status class.",
        ("status_class",),
        lambda service: _by_single_label(service.served),
    ),
    Family(
        "headrace_served_request_duration_seconds",
        "histogram",
        "Time from the inbound request to the end of its answer.",
        (),
        lambda service: (((), service.served_duration),),
    ),
)

FAMILIES: Mapping[str, tuple[Family[Any], Labels]] = {
    **{family.name: (family, ("upstream", *family.labels)) for family in UPSTREAM_FAMILIES},
    **{family.name: (family, family.labels) for family in SERVICE_FAMILIES},
}
"""Every family with all of its label names."""


def digest_number(digest: str) -> int:
    """First 48 bits of hex *digest* as a number, which a float64 holds exactly; 0 for ""."""
    return int(digest[:12] or "0", 16)
