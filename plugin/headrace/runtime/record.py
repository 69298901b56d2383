"""The record of one call, on every response and exception that headrace lets out (`.headrace`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.policy.circuit import Verdict
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.exchange import EndReason, Exchange
from headrace.policy.outcome import Fault, Outcome


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt.

    Attributes:
        started_s: Monotonic seconds.
        wait_s: Waited for a connection.
        connect_s: TCP and TLS, or None on a reused connection.
        duration_s: The attempt itself, after the wait.
        outcome: `2xx` … `5xx`, or the fault.
        verdict: What the circuit was told: success, failure or ignored.
        resent: It was sent twice: the pooled connection had died unnoticed.
    """

    started_s: float
    wait_s: float
    connect_s: float | None
    duration_s: float
    outcome: str
    status: int | None
    verdict: str
    resent: bool


@dataclass(slots=True)
class Record:
    """What became of one call. Pickles.

    Attributes:
        upstream: Name of the upstream.
        request_id: The id that every attempt carried, or None when none was sent on.
        reason: Why the call ended: a word of `policy.exchange.EndReason`.
        retry_after_s: What the upstream, or our circuit, asks to wait, seconds, or None.
        config_digest: Of the configuration the call began with.
        fallback_for: The upstream whose circuit refused the call, where this is its `fallback`; else None.
    """

    upstream: str
    request_id: str | None
    reason: EndReason
    retry_after_s: float | None
    config_digest: str
    _outcomes: Sequence[Outcome] = field(repr=False)
    _verdicts: Sequence[Verdict] = field(repr=False)
    fallback_for: str | None = None

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """The attempts made, oldest first. Built on each access: the success path pays nothing for it."""
        return tuple(
            AttemptRecord(
                started_s=outcome.started_s,
                wait_s=outcome.wait_s,
                connect_s=outcome.connect_s,
                duration_s=outcome.duration_s,
                outcome=outcome.label,
                status=outcome.status,
                verdict=verdict.value,
                resent=outcome.resent,
            )
            for outcome, verdict in zip(self._outcomes, self._verdicts, strict=True)
        )

    def notes(self) -> list[str]:
        """The story in words, a line per attempt and one for the end."""
        lines = []
        for number, one in enumerate(self.attempts, 1):
            connect = "reused connection" if one.connect_s is None else f"connected in {one.connect_s:.3f} s"
            if one.resent:
                connect += ", resent over it: the pooled one was dead"
            what = str(one.status) if one.status is not None else one.outcome
            lines.append(
                f'headrace: upstream "{self.upstream}" attempt {number}: {what} after {one.duration_s:.3f} s '
                f"({connect}, waited {one.wait_s:.3f} s)"
            )
        asked = "" if self.retry_after_s is None else f", retry after {self.retry_after_s:.1f} s"
        lines.append(f"headrace: ended: {self.reason.value}{asked} (request id {self.request_id or '-'})")
        return lines


_NO_CONNECTION = frozenset({Fault.POOL_TIMEOUT, Fault.POOL_REJECTED})


def tally(counters: UpstreamCounters, exchange: Exchange, *, label: str | None, duration_s: float) -> None:
    """Count one ended call. Mutates *counters*, once, under its lock.

    Args:
        label: Why it was refused or broken off; None: the label of its last attempt.
    """
    outcomes, deadline_at = exchange.outcomes, exchange.deadline_at
    labels = [outcome.label for outcome in outcomes]
    if label is None:
        label = labels[-1]
    requests, attempts = counters.requests, counters.attempts
    per_call, left = counters.attempts_per_call, counters.deadline_left
    # Flat, observe() written out: every call comes through here, and a Python-level call is a microsecond.
    with counters.lock:
        if labels:
            per_call.counts[bisect_left(per_call.bounds, len(labels))] += 1
            per_call.sum += len(labels)
        requests[label] = requests.get(label, 0) + 1
        counters.duration.observe(duration_s)
        for number, one in enumerate(labels):
            attempts[one] = attempts.get(one, 0) + 1
            if number:
                add(counters.retries, labels[number - 1])
            outcome = outcomes[number]
            if outcome.resent:
                counters.resent += 1
            if deadline_at is not None and outcome.fault not in _NO_CONNECTION:
                left_s = deadline_at - outcome.started_s - outcome.wait_s
                left.counts[bisect_left(left.bounds, left_s)] += 1
                left.sum += left_s if left_s > 0.0 else 0.0
        if exchange.denied is not None:
            add(counters.retries_denied, exchange.denied.value)
        if exchange.refused is not None:
            counters.refused += 1
