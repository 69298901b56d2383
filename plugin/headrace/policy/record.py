"""The record of one call, on every response and exception that headrace lets out (`.headrace`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Protocol

from headrace.policy.breaker.circuit import Refused, Verdict
from headrace.policy.counters import Exemplar, UpstreamCounters, add
from headrace.policy.decision import EndReason
from headrace.policy.frozen import frozen, slotted
from headrace.policy.outcome import Fault, Outcome


@frozen
class AttemptRecord:
    """One attempt.

    Attributes:
        started_s: Monotonic seconds.
        paused_s: Seconds since the end of the attempt before it: the back-off, or the pause of a caller that retries
            by itself; 0 for the first.
        wait_s: Seconds waited for a connection.
        connect_s: Seconds for TCP and TLS, or None on a reused connection.
        duration_s: Seconds of the attempt itself, after the wait.
        outcome: `2xx` … `5xx`, or the fault.
        verdict: What it says about the upstream: success, failure or ignored. The circuit is told of the call
            as a whole, by the last verdict that is not ignored.
        sent: The request, or a part of it, may have reached the upstream.
        retry_seq: How many attempts before it may have reached the upstream: its `X-Retry-Seq`, absent at 0.
        resent: It was sent twice: the pooled connection had died unnoticed.
        renewed: It was sent twice: the first answer was a 401, and the file of a secret had changed. *retry_seq*
            counts the first sending, too.
        played: The answer came from a cassette (vcrpy), and nothing was sent.
    """

    started_s: float
    paused_s: float
    wait_s: float
    connect_s: float | None
    duration_s: float
    outcome: str
    status: int | None
    verdict: str
    sent: bool
    retry_seq: int
    resent: bool
    played: bool = False
    renewed: bool = False


@slotted
class Record:
    """What became of one call. Pickles.

    Attributes:
        upstream: Name of the upstream.
        method: Upper case.
        request_id: The id of the inbound request, whether it was sent on or not. Outside of one, the id of the call;
            None when none was made.
        reason: Why the call ended: a word of `policy.decision.EndReason`.
        retry_after_s: What the upstream, or our circuit, asks to wait, seconds, or None.
        config_digest: Digest of the configuration that the call began with.
        fallback_for: The upstream that this call stood in for as `fallback`, because its circuit refused; else None.
    """

    upstream: str
    method: str
    request_id: str | None
    reason: EndReason
    retry_after_s: float | None
    config_digest: str
    _outcomes: list[Outcome] = field(repr=False)
    _verdicts: list[Verdict] = field(repr=False)
    fallback_for: str | None = None

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """The attempts made, oldest first. Built on each access, so that the success path pays nothing for it."""
        made: list[AttemptRecord] = []
        retry_seq, ended_s = 0, None
        for outcome, verdict in zip(self._outcomes, self._verdicts, strict=True):
            retry_seq += outcome.renewed
            made.append(
                AttemptRecord(
                    started_s=outcome.started_s,
                    paused_s=0.0 if ended_s is None else max(0.0, outcome.started_s - ended_s),
                    wait_s=outcome.wait_s,
                    connect_s=outcome.connect_s,
                    duration_s=outcome.duration_s,
                    outcome=outcome.label,
                    status=outcome.status,
                    verdict=verdict.value,
                    sent=outcome.sent,
                    retry_seq=retry_seq,
                    resent=outcome.resent,
                    played=outcome.played,
                    renewed=outcome.renewed,
                )
            )
            retry_seq += outcome.sent
            ended_s = outcome.started_s + outcome.wait_s + outcome.duration_s
        return tuple(made)

    @property
    def fault(self) -> Fault | None:
        """Why the last attempt has no answer; None when it has one, or none was made."""
        return self._outcomes[-1].fault if self._outcomes else None

    @property
    def timed_out(self) -> bool:
        """Whether the last attempt has no answer because its time was up: for a connection, a handshake, an answer."""
        return self.fault is Fault.TIMEOUT or (self.fault is not None and self._outcomes[-1].cut)

    @property
    def denied(self) -> EndReason | None:
        """What forbade a further attempt that the rules wanted; None when they wanted none."""
        return self.reason if self._outcomes and self.reason in _DENIALS else None

    @property
    def why(self) -> str:
        """Why the call ended, in words."""
        words = _WHY[self.reason].format(method=self.method)
        if self.reason is EndReason.CERTIFICATE and self._outcomes and self._outcomes[-1].advice is not None:
            return f"never retried: {self._outcomes[-1].advice}"
        if self.reason not in _DENIALS:
            return words
        return f"{'not retried' if self._outcomes else 'not sent'}: {words}"

    def judge_last(self, verdict: Verdict) -> None:
        """Replace the verdict on the last attempt by *verdict*, which came later. Mutates."""
        self._verdicts[-1] = verdict

    def notes(self) -> list[str]:
        """The story in words, a line per attempt and one for the end."""
        lines = [_attempt_in_words(number, one) for number, one in enumerate(self.attempts, 1)]
        asked = "" if self.retry_after_s is None else f", retry after {self.retry_after_s:.1f} s"
        request_id = "" if self.request_id is None else f", request id {self.request_id}"
        lines.append(f"{self.why}{asked} ({self.reason.value}{request_id})")
        return [f'headrace: upstream "{self.upstream}" {line}' for line in lines]


def _attempt_in_words(number: int, one: AttemptRecord) -> str:
    what = str(one.status) if one.status is not None else one.outcome
    if one.played:
        how = ["played from a cassette"]
    elif one.connect_s is not None:
        how = [f"connected in {one.connect_s:.3f} s"]
    else:
        how = ["reused connection" if one.sent else "not connected"]
    if one.wait_s >= 0.0005:
        how.append(f"waited {one.wait_s:.3f} s for it")
    if one.resent:
        how.append("sent again at once: the pooled connection was dead")
    if one.renewed:
        how.append("sent again at once: after a 401, with a newer secret")
    pause = "" if number == 1 else f", {one.paused_s:.3f} s later"
    return f"attempt {number}{pause}: {what} after {one.duration_s:.3f} s ({', '.join(how)})"


_DENIALS: Mapping[EndReason, str] = MappingProxyType(
    {
        EndReason.METHOD: "{method} may have arrived, and retry.methods does not name it (name it there, or send an "
        "Idempotency-Key)",
        EndReason.NOT_REPLAYABLE: "the body can be sent only once (pass bytes, text, or a file that can seek)",
        EndReason.ATTEMPTS: "retry.max_attempts are used up",
        EndReason.EVENT_LOOP: "the pause would have stalled the event loop of this thread",
        EndReason.CIRCUIT_OPENED: "the circuit is open after this failure",
        EndReason.RETRY_AFTER: "the upstream asks for more patience than retry.retry_after.max",
        EndReason.REQUEST_RETRIES: "the inbound request has used up its service.max_retries_per_request",
        EndReason.BUDGET: "the retry budget is spent",
        EndReason.DEADLINE: "the deadline is over, or the next pause would not fit",
        EndReason.CIRCUIT_OPEN: "the circuit lets nothing through",
    }
)
_WHY: Mapping[EndReason, str] = MappingProxyType(
    {
        EndReason.SUCCESS: "ended with an answer that retry.retry_on does not name",
        EndReason.NOT_RETRIABLE: "not retried: retry.retry_on does not name this failure",
        EndReason.CERTIFICATE: "never retried: the peer is not who it should be",
        EndReason.POOL_TIMEOUT: "no connection came free within timeouts.acquire",
        EndReason.POOL_REJECTED: "no connection was to be had, and none was waited for",
        EndReason.CANCELLED: "the caller went away",
        EndReason.RESPONSE_TOO_LARGE: "the body is larger than pool.max_response_body",
        EndReason.LOCAL_ERROR: "the request could not be made, or the caller's own code ended it",
        EndReason.DELEGATED: "further tries were up to the caller, which brings retries of its own",
        **_DENIALS,
    }
)


_NO_CONNECTION = frozenset({Fault.POOL_TIMEOUT, Fault.POOL_REJECTED})


class Ended(Protocol):
    """An exchange that is over, or all tries of a caller that retries by itself; attributes as in `Exchange`."""

    outcomes: list[Outcome]
    deadline_at: float | None
    denied: EndReason | None
    refused: Refused | None


def tally(
    counters: UpstreamCounters,
    exchange: Ended,
    *,
    label: str | None,
    duration_s: float,
    exemplar: Exemplar | None = None,
    own_timeout: bool = False,
) -> None:
    """Count one ended call. Mutates *counters*, once, under its lock.

    Args:
        label: Why the call was refused or broken off; None: the label of its last attempt counts.
        exemplar: The trace to look at for *duration_s*, or None.
        own_timeout: Limits of the call itself took the place of the file's.
    """
    outcomes, deadline_at = exchange.outcomes, exchange.deadline_at
    labels = [outcome.label for outcome in outcomes]
    if label is None:
        label = labels[-1]
    requests, attempts = counters.requests, counters.attempts
    per_call, left = counters.attempts_per_call, counters.deadline_left
    # Flat, with observe() written out: every call comes through here, and a Python-level call costs a microsecond.
    with counters.lock:
        if labels:
            per_call.counts[bisect_left(per_call.bounds, len(labels))] += 1
            per_call.sum += len(labels)
        requests[label] = requests.get(label, 0) + 1
        counters.duration.observe(duration_s)
        if exemplar is not None:
            counters.duration.exemplify(exemplar)
        for number, one in enumerate(labels):
            attempts[one] = attempts.get(one, 0) + 1
            if number:
                add(counters.retries, labels[number - 1])
            outcome = outcomes[number]
            if outcome.resent:
                counters.resent += 1
            if outcome.renewed:
                counters.renewed += 1
            if deadline_at is not None and outcome.fault not in _NO_CONNECTION:
                left_s = deadline_at - outcome.started_s - outcome.wait_s
                left.counts[bisect_left(left.bounds, left_s)] += 1
                left.sum += left_s if left_s > 0.0 else 0.0
        if own_timeout:
            counters.own_timeouts += 1
        if exchange.denied is not None:
            add(counters.retries_denied, exchange.denied.value)
        if exchange.refused is not None:
            counters.refused += 1
