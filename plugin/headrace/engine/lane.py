"""The short way of a call: one attempt over a warm connection that has a good answer at once.

Nearly every call goes this way. It builds no `Call`, no `Exchange` and no object of a library, and asks the same pure
functions: `gate.next_send` whether it may be sent, `gate.settle` at its end. Whatever is not of this kind (an open
circuit, no warm connection, an answer that a rule may name, an error) is handed on as `Begun`, at any moment, and a
`Call` goes on as if it had done all of it by itself. What needs the long way from its start, `lane_of` and `first_try`
say before anything is done.

It is one flat body, because a Python-level call costs about a microsecond in situ, and this is where calls spend their
time. What happens between taking the lease and giving it back has the order that it has in `engine.call`.
"""

from __future__ import annotations

import logging
import sys
from asyncio import _get_running_loop
from logging import DEBUG
from os import urandom
from typing import Any, Final, Protocol, TypeAlias

from headrace.clock import monotonic
from headrace.engine.begun import Begun
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.breaker.permit import Permit, Verdict
from headrace.policy.decision import EndReason, Send
from headrace.policy.gate import next_send, settle
from headrace.policy.outcome import STATUS_CLASS, Outcome
from headrace.policy.plan import TimeoutPlan
from headrace.policy.record import Record
from headrace.policy.retry import RETRY_AFTER_FROM
from headrace.runtime.deadlines import deadlines
from headrace.runtime.inbound import inbound_var
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.connection_auth import is_of_connection
from headrace.transport.dial.sending import LOOKS, send_rest
from headrace.transport.lease.pool import Lease
from headrace.transport.wire.blocking import MOST_BYTES, PIECE_BYTES
from headrace.transport.wire.exchange import CONNECTIONS, is_plain_socket
from headrace.transport.wire.h1 import Whole
from headrace.transport.wire.response import KNOWN
from headrace.transport.wire.untouched import is_untouched

in_flight = deadlines.table

_log: Final = logging.getLogger("urllib3.connectionpool")
_levels: Final[dict[int, bool]] = getattr(
    _log, "_cache", {}
)  # what it is enabled for, as far as it was asked

_NEVER: Final = float("inf")
_GOOD: Final = STATUS_CLASS[2]
_SHORTEST_S: Final = 0.001  # a socket limit of 0 would mean non-blocking
IN_ONE_GO: Final = 12 * 1024
"""Longest body of a request: with its head it is one TLS record, and a socket between two answers takes it at once."""


Told: TypeAlias = tuple[Upstream, str, str, str | None, int, float, float, float, bytes]
"""What is known of a call that went the short way: upstream, method, target, request id, status; when it asked for its
connection, how long it waited for it, how long the attempt took; the head of its answer in lower case.
`record_of_told` makes a record of it."""


def record_of_told(told: Told) -> Record:
    """The record of a call, a new one each time."""
    upstream, method, _, request_id, status, started_s, wait_s, duration_s, _ = told
    outcome = Outcome(status=status, sent=True, started_s=started_s, wait_s=wait_s, duration_s=duration_s)
    return Record(
        upstream.plan.name,
        method,
        request_id,
        EndReason.SUCCESS,
        None,
        upstream.digest,
        [outcome],
        [Verdict.SUCCESS],
    )


class _Sent(Attempt):
    """An attempt over a warm connection, which is about to be sent. What is the same for all of these stands here."""

    message = None
    lease = None
    headers = ()
    streamed = False
    phase = "sent"
    is_unsent = True


_new_attempt: Final[Any] = _Sent.__new__  # not by __init__, which sets thrice as much


class View(Protocol):
    """Makes the answer that the caller gets."""

    def __call__(self, status: int, head: bytes, body: bytes, told: Told, /) -> Any:
        """The answer, which has come as a whole; None where something is odd about it.

        Args:
            body: As sent, without the framing of chunks.
        """


class Lane:
    """What the short way has to know of one upstream. Immutable; made once per snapshot.

    Attributes:
        trouble: Statuses below 300 that a rule names. (From 300 on every answer goes the long way.)
        id_line: The beginning of the line with the request's id; None: the upstream is sent no id.
        passes_trace: The trace of the inbound request goes on to it.
        headers: Those of the rules, as they are sent.
    """

    __slots__ = ("headers", "id_line", "passes_trace", "trouble")

    def __init__(self, upstream: Upstream, headers: tuple[tuple[str, str], ...]) -> None:
        plan = upstream.plan
        rules = plan.retry.retry_on.statuses | plan.circuit_breaker.failure_on.statuses
        self.trouble = frozenset(status for status in rules if status < RETRY_AFTER_FROM)
        self.headers = headers
        propagate = plan.propagate
        self.id_line = f"{upstream.request_id_header}: " if propagate.request_id else None
        self.passes_trace = propagate.traceparent and "traceparent" not in {
            name.lower() for name, _ in plan.headers
        }


def lane_of(upstream: Upstream, headers: tuple[tuple[str, str], ...]) -> Lane | None:
    """The lane of *upstream* for calls with *headers* of its rules; None where each of them needs the long way."""
    plan = upstream.plan
    if (
        upstream.mode != "enforce"
        or plan.circuit_breaker.failure_if is not None
        or plan.pool.max_response_body_bytes is not None
        or plan.pool.parser != "auto"
        or (plan.propagate.deadline and upstream.deadline_header is not None)
        or is_of_connection(dict(headers))
    ):
        return None
    return Lane(upstream, headers)


def first_try(
    upstream: Upstream,
    lane: Lane,
    timeouts: TimeoutPlan,
    method: str,
    target: str,
    lines: str,
    body: bytes | None,
    view: View,
    owner: object | None,
) -> Any:
    """The answer as *view* makes it; or `Begun`: a `Call` must go on; or None: nothing was done. Blocks.

    Args:
        timeouts: Those that hold for this call.
        method: Upper case.
        owner: The owner of connections that may be used, too, as in `LeasePool.acquire`; None: the call has none.
        lines: Of the head of the request, between the first line and what names this very call; latin-1.
    """
    tracing, inbound, id_line = upstream.tracing, inbound_var.get(), lane.id_line
    if (
        (tracing is not None and tracing.is_wanted())
        or _get_running_loop() is not None
        or (_levels.get(DEBUG) is not False and _log.isEnabledFor(DEBUG))  # it tells of each request
    ):
        return None
    began, deadline_at = monotonic(), None
    if timeouts.deadline_s is not None:
        deadline_at = began + timeouts.deadline_s
    tail = "\r\n"
    if inbound is None:
        request_id = None if id_line is None else urandom(16).hex()
    else:
        request_id = inbound.request_id
        if inbound.cancellation is not None or not (request_id.isascii() and request_id.isprintable()):
            return None
        if inbound.trace and lane.passes_trace:
            for name, value in inbound.trace:
                if not (value.isascii() and value.isprintable()):
                    return None
                tail += f"{name}: {value}\r\n"
        at = inbound.deadline_at  # as `gate.deadline_of` has it
        if at is not None and not inbound.is_over and (deadline_at is None or at < deadline_at):
            deadline_at = at
    learned, endpoint = upstream.learned, upstream.endpoint
    circuit, budget, pool = learned.circuit, learned.budget, endpoint.pool
    leases = pool.leases
    data, headers = b"", lane.headers
    lease: Lease[Any] | None = None
    mine: list[Lease[Any]] = []
    attempt: Attempt | None = None
    error: BaseException | None = None
    send: Any = None  # made when somebody asks for it
    permit: Any = circuit.shared_permit
    if permit is None or (deadline_at is not None and deadline_at <= began):
        send = next_send(timeouts, circuit, began, deadline_at=deadline_at, pay=budget.deposit)
        if not isinstance(send, Send):
            return Begun(send, circuit, budget, request_id, began, None, None, None, headers)
        permit = send.permit
    else:  # the gate would give the same permit to all, and nobody but the call itself limits it
        budget.deposit(began)
    sent_at = began
    try:
        lease = leases.unpark(began, owner)
        if lease is None:
            send = send or _decided(timeouts, circuit, permit, began, deadline_at)
            lease = leases.acquire(send.patience_s, by_deadline=send.by_deadline, owner=owner)
            sent_at = monotonic()
        conn = lease.connection.conn
        reader: Any = None if conn is None else conn.reader
        if (
            conn is not None
            and reader is not None
            and reader.reusable
            and is_plain_socket.get(type(conn.sock)) is True
            and type(conn) in CONNECTIONS
            and not conn.debuglevel
            and pool.ConnectionCls in CONNECTIONS
            and KNOWN
            and is_untouched()
        ):
            sock, limit_s, left_s = conn.sock, timeouts.attempt_s, None
            if deadline_at is not None:
                left_s = deadline_at - sent_at
                if left_s < limit_s:
                    limit_s = left_s if left_s > _SHORTEST_S else _SHORTEST_S
            ends_at = sent_at + limit_s
            attempt = _new_attempt(_Sent)
            attempt.pool, attempt.token, attempt.timeouts = pool, lease.token, timeouts
            attempt.began, attempt.limit_s, attempt.ends_at = sent_at, limit_s, ends_at
            attempt.pieces = pieces = []
            found: Whole | None = None
            is_head = True
            n_bytes = 0
            in_flight[attempt] = ends_at
            if ends_at < deadlines.wake_at:
                deadlines.rouse(ends_at)
            if id_line is None or request_id is None:
                data = f"{method} {target} HTTP/1.1\r\n{lines}{tail[2:]}\r\n".encode("latin-1")
            else:
                data = f"{method} {target} HTTP/1.1\r\n{lines}{id_line}{request_id}{tail}\r\n".encode(
                    "latin-1"
                )
            if body:
                data += body
            try:
                # One limit for sending and for the head: a socket between two answers takes this much at once.
                silence_s = limit_s if limit_s < timeouts.read_s else timeouts.read_s
                # Where it can be waited for by itself, the socket has no limit to be set, and does not look whether it
                # may send: two system calls less.
                wait = conn.wait
                if wait is None:
                    sock.settimeout(silence_s)
                elif sock.gettimeout() != 0.0:
                    sock.settimeout(0.0)
                sys.audit("http.client.send", conn, data)
                try:
                    sent = sock.send(data)
                except BlockingIOError:
                    sent = 0
                if sent != len(data):
                    sock.settimeout(timeouts.write_s / LOOKS)
                    send_rest(sock, memoryview(data)[sent:], most=conn.most_at_once)
                    sock.settimeout(silence_s)
                    wait = None
                attempt.is_unsent = False
                while True:
                    if wait is not None and not wait(silence_s * 1000.0):
                        raise TimeoutError("timed out")  # as a socket has it
                    piece = sock.recv(PIECE_BYTES)
                    if not piece:
                        break
                    pieces.append(piece)
                    if len(pieces) == 1:
                        found = reader.whole(method, piece)
                        if found is not None:
                            break
                        reader.begin(method)
                        if reader.feed(piece, True):
                            break
                    elif reader.feed(piece):
                        break
                    if reader.head_done:
                        if is_head:
                            is_head = False
                            if not 200 <= reader.status < RETRY_AFTER_FROM or reader.status in lane.trouble:
                                break
                            # As in `engine.call`: a good answer is bounded by silence and by the deadline. The attempt
                            # is taken out first, for one that was cut stays so.
                            if in_flight.pop(attempt, None) is None:
                                break
                            in_flight[attempt] = attempt.ends_at = (
                                _NEVER if deadline_at is None else deadline_at
                            )
                            if attempt.ends_at < deadlines.wake_at:
                                deadlines.rouse(attempt.ends_at)
                            silence_s = timeouts.read_s
                            if wait is None:
                                sock.settimeout(silence_s)
                        n_bytes += len(piece)
                        if n_bytes > MOST_BYTES:
                            break
            except Exception as raised:
                attempt.broke = raised
            if found is None and pieces and reader.done and reader.version == 11:
                found = reader.status, reader.head, reader.lowered, reader.take(), False, reader.reusable
            if (
                found is not None
                and found[5]
                and 200 <= (status := found[0]) < RETRY_AFTER_FROM
                and status not in lane.trouble
                and lease.aborted is None
            ):
                _, head, lowered, whole, _, _ = found
                now = monotonic()
                duration_s, wait_s = now - sent_at, sent_at - began
                told = upstream, method, target, request_id, status, began, wait_s, duration_s, lowered
                answer = view(status, head, whole, told)
                if answer is not None and in_flight.pop(attempt, None) is not None:
                    if endpoint.misses:
                        endpoint.forget_misses()
                    settle(
                        circuit,
                        permit,
                        learned.counters,
                        _GOOD,
                        now,
                        duration_s,
                        now - began,
                        left_s,
                        timeouts.asked is not None,
                    )
                    pool.num_requests += 1
                    # No other reference: the next call may hold the lease before this one has left.
                    mine.append(lease)
                    lease = None
                    leases.park(mine, now)
                    return answer
    except BaseException as raised:
        error = raised
    try:
        if mine:
            lease = mine.pop()
        send = send or _decided(timeouts, circuit, permit, began, deadline_at)
        return Begun(send, circuit, budget, request_id, began, lease, attempt, error, headers)
    finally:
        # What has broken refers to this frame. An exception that its own frame refers to is a cycle, which lives until
        # the next collection; and crash reporters ship the locals of a frame.
        error = attempt = lease = body = None
        data, lines = b"", ""


def _decided(
    timeouts: TimeoutPlan, circuit: Circuit, permit: Permit, began: float, deadline_at: float | None
) -> Any:
    """The `Send` of a call that has its permit, and has paid."""
    return next_send(timeouts, circuit, began, deadline_at=deadline_at, pay=None, renew=lambda now: permit)
