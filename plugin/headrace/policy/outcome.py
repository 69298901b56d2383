"""What became of one attempt, in the words that rules are written in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from headrace.policy.frozen import frozen, slotted


class Fault(StrEnum):
    """Why an attempt has no answer."""

    DNS_FAILURE = "dns_failure"  # the name has no address, or its server said that it cannot tell: never sent
    RESOLVE_TIMEOUT = "resolve_timeout"  # the name was not looked up in time: never sent
    CONNECT_FAILURE = "connect_failure"  # refused, unreachable, connect timeout: never sent
    TLS_FAILURE = "tls_failure"  # handshake broken off or timed out: never sent
    # The peer is not what it should be, or refuses TLS with us in a way that will not change: never retried.
    CERTIFICATE = "certificate"
    RESET = "reset"  # closed or reset before the end of the answer
    TIMEOUT = "timeout"  # no answer, or no more of it, in time
    PROTOCOL_ERROR = "protocol_error"  # an answer that is not HTTP
    POOL_TIMEOUT = "pool_timeout"  # local: no connection came free in time
    POOL_REJECTED = "pool_rejected"  # local: the pool was full
    CANCELLED = "cancelled"  # local: the caller went away (KeyboardInterrupt, GreenletExit, …)
    RESPONSE_TOO_LARGE = "response_too_large"  # local: more of a body than we take
    LOCAL_ERROR = (
        "local_error"  # local: the request could not be made (bad header), or the caller's own code ended it
    )


UPSTREAM_FAULTS = frozenset(
    {
        Fault.DNS_FAILURE,
        Fault.RESOLVE_TIMEOUT,
        Fault.CONNECT_FAILURE,
        Fault.TLS_FAILURE,
        Fault.CERTIFICATE,
        Fault.RESET,
        Fault.TIMEOUT,
        Fault.PROTOCOL_ERROR,
    }
)
"""Faults that say something about the upstream; the others are our own trouble."""


@slotted
class Outcome:
    """Facts of one attempt, gathered at the transport's edge.

    Attributes:
        fault: None when an answer came (then `status` is set).
        sent: A byte of the request may have reached the upstream.
        cut: A timer (connect, read, attempt, deadline) ended it, not the upstream.
        started_s: When the attempt asked for its connection, monotonic seconds.
        wait_s: Seconds waited for the connection.
        connect_s: Seconds spent connecting (TCP + TLS), or None on a reused connection.
        duration_s: Seconds of the attempt itself, after the wait.
        retry_after_s: The answer's `Retry-After` in seconds from now, or None.
        resent: The pooled connection had died unnoticed, and the request went out a second
            time over a fresh one.
        renewed: The answer before this one was a 401. The request went out once more, with what the file of a secret
            held by then.
        condemned: The answer is a failure by `failure_if`, whatever its status.
        advice: What is wrong and what to do, where that is known; None: the outcome's word says it all.
        excused: We cut it after this process had stood still: whether the peer was silent is not known.
        broken_off: headrace itself shut the connection: its pool was stopped, or its lifetime was over.
        reused: The connection had carried a request before. Set for failed attempts only; answered likewise.
        answered: A status line had arrived.
        played: The answer came from a recorder's cassette, and nothing was sent.
    """

    fault: Fault | None = None
    status: int | None = None
    sent: bool = False
    cut: bool = False
    started_s: float = 0.0
    wait_s: float = 0.0
    connect_s: float | None = None
    duration_s: float = 0.0
    retry_after_s: float | None = None
    resent: bool = False
    renewed: bool = False
    condemned: bool = False
    broken_off: bool = False
    excused: bool = False
    advice: str | None = None
    reused: bool = False
    answered: bool = False
    played: bool = False

    @property
    def label(self) -> str:
        """Word for metrics and records: `2xx` … `5xx`, or the fault."""
        if self.fault is not None:
            return self.fault.value
        return STATUS_CLASS[(self.status or 0) // 100 % 10]


STATUS_CLASS = ("other", "1xx", "2xx", "3xx", "4xx", "5xx", "other", "other", "other", "other")

# Without 501 not implemented, 505 version not supported and 511 captive portal: asking again is no use.
_SERVER_ERRORS = frozenset(range(500, 600)) - {501, 505, 511}

_NO_CONNECTION = frozenset({Fault.DNS_FAILURE, Fault.RESOLVE_TIMEOUT, Fault.CONNECT_FAILURE})

FAULT_WORDS: Mapping[str, frozenset[Fault]] = MappingProxyType(
    {
        "network": _NO_CONNECTION | {Fault.TLS_FAILURE, Fault.RESET, Fault.TIMEOUT, Fault.PROTOCOL_ERROR},
        # The look-up is a part of connecting. Whoever wants to tell it apart has a word for it.
        "connect_failure": _NO_CONNECTION,
        "dns_failure": frozenset({Fault.DNS_FAILURE}),
        "resolve_timeout": frozenset({Fault.RESOLVE_TIMEOUT}),
        "tls_failure": frozenset({Fault.TLS_FAILURE}),
        "reset": frozenset({Fault.RESET}),
        "timeout": frozenset({Fault.TIMEOUT}),
        "protocol_error": frozenset({Fault.PROTOCOL_ERROR}),
    }
)
STATUS_WORDS: Mapping[str, frozenset[int]] = MappingProxyType(
    {
        "gateway_error": frozenset({502, 503, 504}),
        "5xx": _SERVER_ERRORS,
        "retriable_4xx": frozenset({408, 425, 429}),
    }
)


@frozen
class Condition:
    """A set of outcomes, as `retry_on` and `failure_on` name it."""

    faults: frozenset[Fault]
    statuses: frozenset[int]

    def matches(self, outcome: Outcome) -> bool:
        """Whether *outcome* is in the set."""
        if outcome.fault is not None:
            return outcome.fault in self.faults
        return outcome.status in self.statuses


def condition(words: Iterable[str | int]) -> Condition:
    """The set of outcomes that *words* name.

    Args:
        words: Words of FAULT_WORDS and STATUS_WORDS, or status codes 100..599.

    Raises:
        ValueError: A word that is none of these; the text names it.
    """
    faults: set[Fault] = set()
    statuses: set[int] = set()
    for word in words:
        if isinstance(word, int) and not isinstance(word, bool) and 100 <= word <= 599:
            statuses.add(word)
        elif isinstance(word, str) and word in FAULT_WORDS:
            faults |= FAULT_WORDS[word]
        elif isinstance(word, str) and word in STATUS_WORDS:
            statuses |= STATUS_WORDS[word]
        else:
            raise ValueError(f"unknown word {word!r}")
    return Condition(frozenset(faults), frozenset(statuses))
