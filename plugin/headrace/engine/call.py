"""One governed call, blocking: it does what the exchange decides, over the surface of a library.

A surface knows how to send, how to read a status, how to keep or drop an answer,
and which exception classes its callers expect. The exchange decides. This module does what lies between: the lease,
the limits, the deadline thread's table, and the reports of the end. It is long because everything that may happen
between taking a lease and giving it back (a cut, a cancellation, an interrupt) is meant to be read in one place.
"""

from __future__ import annotations

import random
import time
from asyncio import _get_running_loop
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from headrace.clock import monotonic
from headrace.engine.begun import Begun
from headrace.engine.blocking import run
from headrace.engine.endings import final_error, pool_error, too_large, wrong_identity
from headrace.engine.notices import report_event_loop, report_withheld
from headrace.engine.outbound import Outbound
from headrace.engine.predicate import is_condemned
from headrace.engine.retry_after import retry_after_s
from headrace.engine.streamed import follow
from headrace.engine.surface import Surface
from headrace.engine.timeouts import with_asked
from headrace.engine.tries import Tries
from headrace.errors import CircuitOpenError, UpstreamError
from headrace.policy.attempt_end import EndedBy, end_of
from headrace.policy.decision import Divert, End, EndReason, Finish, Performer, Refuse, Renew, Resend, Send
from headrace.policy.exchange import KEEP_S, UNAUTHORISED, Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.record import Record, tally
from headrace.policy.request import Request
from headrace.policy.retry import RETRY_AFTER_FROM
from headrace.policy.served import Served
from headrace.runtime.carrying import add_notes, carried_by, carry
from headrace.runtime.deadlines import deadlines
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.lease.pool import Lease, LeaseCancelled, LeaseError, LeaseTimeout

in_flight = deadlines.table

_SHORTEST_S = 0.001  # a socket limit of 0 would mean non-blocking
_NEVER = float("inf")


T = TypeVar("T")


class Call(Generic[T]):
    """One logical call; a `Performer`. Owned by one thread.

    Attributes:
        answer: The answer of the last attempt, kept; None when there is none.
        error: The exception of the last attempt; None when it had an answer.
        outbound: What identifies the call on the wire.
        leases: Where its leases are from, and may be broken off.

    Args:
        request: What is sent. The call takes it over.
        tries: What this call shares with the other tries of a caller that retries by itself; None: it is the only one.
        deadline_at: When the work that this call is part of must be over, monotonic seconds.
        begun: The first attempt, where it was begun without this call; None: it was not.
        awaits: Its waits stall no loop: `engine.aio` drives it. That calls what stands here without an underscore.
    """

    __slots__ = (
        "_begun",
        "_cancellation",
        "_exchange",
        "_last_attempt",
        "_opened_in",
        "_request",
        "_surface",
        "_trace",
        "_tries",
        "_upstream",
        "answer",
        "error",
        "leases",
        "outbound",
    )

    def __init__(
        self,
        upstream: Upstream,
        surface: Surface[T],
        request: Request,
        *,
        tries: Tries | None = None,
        deadline_at: float | None = None,
        begun: Begun | None = None,
        awaits: bool = False,
    ) -> None:
        plan, endpoint, learned = upstream.plan, upstream.endpoint, upstream.learned
        # Here alone: the call keeps what it began with.
        circuit, budget = (
            (learned.circuit, learned.budget) if begun is None else (begun.circuit, begun.budget)
        )
        self._begun = begun
        self.leases: Any = endpoint.pool.leases
        self._upstream = upstream
        self._surface = surface
        self._request = request
        self._tries = tries
        self._last_attempt: Attempt | None = None  # the last attempt
        self.answer: T | None = None
        self.error: Exception | None = None
        if tries is None:
            request_id, ruled = (None, None) if begun is None else (begun.request_id, begun.headers)
            self.outbound = outbound = Outbound(upstream, request.method, request.headers, request_id, ruled)
        else:
            self.outbound = outbound = tries.begin(upstream, request.method, request.headers)
        request.keyed = outbound.keyed
        inbound = outbound.inbound
        # A call that outlives its inbound request keeps the request's id and trace.
        serving = None if inbound is None or inbound.is_over else inbound
        self._opened_in = serving if request.streamed else None
        self._cancellation = None if serving is None else serving.cancellation
        self._trace = None
        tracing = upstream.tracing
        # Asked in C: outside of a span this costs nothing.
        if tracing is not None and not awaits and tracing.is_wanted():
            self._trace = tracing.call(
                plan.name,
                circuit,
                address=endpoint.pool.host,
                port=endpoint.pool.port,
                method=request.method,
                url=surface.url,
                propagates=plan.propagate.traceparent,
                own=(*(request.headers or ()), *dict(plan.headers)),
                request=inbound,
                earlier=() if tries is None else tuple(tries.outcomes),
            )
        served = None
        if inbound is not None or deadline_at is not None:
            served = Served(
                serving.deadline_at if deadline_at is None and serving is not None else deadline_at,
                None if serving is None else serving.allowance,
                self._cancellation,
            )
        began = monotonic()
        if tries is not None:
            began = tries.began
        elif begun is not None:
            began = begun.began
        self._exchange = Exchange(
            plan,
            circuit,
            budget,
            request,
            now=began,
            rng=random.random,
            # On the thread of a running event loop any wait stalls the loop. The holder of the connection that
            # we wait for may need that loop to give it back.
            may_wait=awaits or _get_running_loop() is None,
            served=served,
            nth_try=0 if tries is None else tries.made,
            after=None if tries is None else tries.last,
            renews=upstream.live is not None,
        )

    def run(self) -> T:
        """The answer, with the record on it. Blocks.

        Raises:
            UpstreamError: Refused by the circuit, the pool or the deadline (the surface's twin).
            Exception: What the library raised in the last attempt, with the record and notes on it.
        """
        begun = self._begun
        began = monotonic() if begun is None else begun.began
        end: End | None = None
        performer: Performer = self
        if self._trace is not None:
            self._trace.performer = self
            performer = self._trace
        try:
            sleep = time.sleep if self._cancellation is None else self._cancellation.sleep
            first = None if begun is None else begun.first
            end = run(self._exchange, performer, clock=monotonic, sleep=sleep, first=first)
        except Exception as raised:  # a signal handler's, raised in a wait or a pause; or a bug of ours
            carry(self.record(EndReason.CANCELLED), on=raised)
            raise
        finally:
            self.count(end, monotonic() - began)
        record = self.conclude(end)
        answer = self.answer
        if answer is None and isinstance(end, Divert):
            answer = self._divert(record)
        if answer is None:
            self.raise_end(end, record)
        return answer

    def conclude(self, end: End) -> Record:
        """The record of the call, which has ended so, on its answer if it has one. Mutates."""
        record = self.record(end.reason)
        if end.reason is not EndReason.SUCCESS:
            self._report(record)
            if self.answer is not None and self._exchange.kept is None:
                self._surface.close(self.answer)  # it failed, and nobody waits for it
                self.answer = None
        answer = self.answer
        if answer is not None:
            carry(record, on=answer)
            if self._request.streamed:
                self._follow(answer, record)
        return record

    def raise_end(self, end: End, record: Record) -> NoReturn:
        """Raise what a call without an answer ends in."""
        error = self._error_of(end.otherwise if isinstance(end, Divert) else end, record)
        try:
            raise error
        finally:
            # An exception that refers to its own frame is a cycle, which lives until the next collection.
            self.error = None
            del error

    def perform(self, send: Send) -> Outcome:
        """Make one attempt: lease, send, read. Blocks."""
        if self._begun is not None:
            return self._go_on(self._begun, send.timeout_s)
        leases = self._upstream.endpoint.pool.leases
        cancellation = self._cancellation
        started = monotonic()
        try:
            lease = leases.acquire(
                send.patience_s,
                by_deadline=send.by_deadline,
                fresh=send.fresh,
                owner=self._surface.owner,
                own_only=self._surface.owns_all,
                on_wait=None if cancellation is None else partial(cancellation.cover, pool=leases),
            )
        except LeaseError as error:
            return self.no_lease(error, started)
        if cancellation is not None and cancellation.is_cancelled:
            leases.give_back(lease, reusable=True)
            return Outcome(Fault.CANCELLED, started_s=started, wait_s=monotonic() - started)
        return self._attempt(lease, send.timeout_s, started)

    def resend(self, resend: Resend) -> Outcome | None:
        """Make the attempt once more over a fresh connection; None if no connection is free at once. Blocks."""
        started = monotonic()
        try:
            lease = self._upstream.endpoint.pool.leases.acquire(0.0, fresh=True)
        except LeaseError:
            return None  # another call took the slot: a retry can wait for one, a resend cannot
        return self._attempt(lease, resend.timeout_s, started)

    def _go_on(self, begun: Begun, limit_s: float) -> Outcome:
        """Make the rest of the attempt that was begun. Blocks."""
        self._begun = None
        if begun.lease is not None:
            return self._attempt(begun.lease, limit_s, begun.began, begun)
        if isinstance(begun.error, LeaseError):
            return self.no_lease(begun.error, begun.began)
        begun.raise_error()
        raise AssertionError("it has no lease, and nothing has kept it from one")

    def _attempt(
        self, lease: Lease[Any], limit_s: float, started: float, begun: Begun | None = None
    ) -> Outcome:
        leases, cancellation, token = self._upstream.endpoint.pool.leases, self._cancellation, lease.token
        outer = current_attempt.get()
        try:
            attempt = (
                self.begin(lease, limit_s) if begun is None else self._begun_attempt(begun, lease, limit_s)
            )
            outcome = Outcome(None, None, False, False, started, attempt.began - started)
            try:
                current_attempt.set(attempt)
                if begun is not None:
                    begun.raise_error()
                self.answer = answer = self._send(attempt, lease, outcome)
            except Exception as error:
                # The surface may have failed over an answer that had come (an adapter's own `build_response` raised).
                # Such an answer still holds its connection, and nothing else would close it. If the lease has gone
                # back already, this does nothing.
                leases.give_back(lease, reusable=False)
                self.fail(error, attempt, lease, outcome)
            else:
                plan = self._upstream.plan
                if (outcome.status or 0) >= RETRY_AFTER_FROM or plan.circuit_breaker.failure_if is not None:
                    self.judge(answer, outcome)
            finally:
                current_attempt.set(outer)  # not reset(): an interrupt may have taken the token
                in_flight.pop(attempt, None)  # an interrupt
                is_held = attempt.streamed and self.answer is not None
                if cancellation is not None and token is not None and not is_held:
                    cancellation.release(token)
                if attempt.lease is not None:  # urllib3 never asked for it: a mocked or subclassed adapter
                    leases.give_back(attempt.lease, reusable=True)
            self.note(attempt, outcome)
            return outcome
        except BaseException:
            # An interrupt. Wherever it hit, in `finally` too, the slot is free after this. A lease that went back
            # already stays as it is.
            current_attempt.set(outer)
            leases.give_back(lease, reusable=False)
            raise

    def note(self, attempt: Attempt, outcome: Outcome) -> None:
        """Note in *outcome* how far *attempt* has come, and whether it can be made again. Mutates."""
        # Rewound now, not when it is sent again: a file that cannot rewind must not cost the caller this answer.
        is_failed = outcome.fault is not None or outcome.status in self._exchange.retried
        may_renew = outcome.status == UNAUTHORISED and self._upstream.live is not None
        if (is_failed or may_renew) and not self._surface.rewind():
            self._exchange.body_is_spent()
        outcome.sent = attempt.phase == "sent"
        outcome.connect_s = attempt.connect_took_s
        if attempt.was_played is not None:
            outcome.played = attempt.was_played()
        outcome.duration_s = monotonic() - attempt.began

    def begin(self, lease: Lease[Any], limit_s: float) -> Attempt:
        """A new attempt over *lease*: what it may use, and its limits."""
        upstream, exchange, outbound = self._upstream, self._exchange, self.outbound
        began = monotonic()
        if self._cancellation is not None and lease.token is not None:
            self._cancellation.cover(lease.token, self.leases)
        # Cleared only now: without a lease, the caller gets the answer that was kept from the attempt before.
        self.answer = self.error = None
        left_s = None if exchange.deadline_at is None else exchange.deadline_at - began
        if left_s is not None and left_s < limit_s:
            limit_s = max(_SHORTEST_S, left_s)
        headers = outbound.headers
        if exchange.sent or outbound.deadline_header is not None:
            headers = outbound.for_attempt(exchange.sent, left_s)
        if self._trace is not None:
            headers = self._trace.headers(headers)
        request = self._request
        self._last_attempt = attempt = Attempt(
            upstream.endpoint.pool,
            request.message,
            lease,
            headers,
            request.timeouts,
            began + limit_s,
            request.streamed,
        )
        attempt.began, attempt.limit_s = began, limit_s
        attempt.token = lease.token
        attempt.max_body_bytes = upstream.plan.pool.max_response_body_bytes
        attempt.owner = self._surface.owner
        return attempt

    def _begun_attempt(self, begun: Begun, lease: Lease[Any], limit_s: float) -> Attempt:
        """The attempt that was begun over *lease*; a new one where nothing was sent yet."""
        if begun.attempt is None:
            return self.begin(lease, limit_s)
        self._last_attempt = attempt = begun.attempt
        # What sends it asks for these two; where it was begun, nobody had them.
        attempt.message, attempt.owner = self._request.message, self._surface.owner
        return attempt

    def _send(self, attempt: Attempt, lease: Lease[Any], outcome: Outcome) -> T:
        """The answer: its head, and its body unless the caller reads that itself. Blocks; mutates *outcome*.

        Raises what the library raises, also where the answer came too late or we broke it off.
        """
        surface = self._surface
        if attempt.pieces is None:  # else it was written in before it was sent, and may have been cut since
            in_flight[attempt] = attempt.ends_at
            if attempt.ends_at < deadlines.wake_at:
                deadlines.rouse(attempt.ends_at)
        answer = surface.send(attempt)
        status = surface.status(answer)
        if not attempt.streamed:
            # An answer that is not retried is bounded by silence and by the deadline (failures.md 89). An attempt
            # that was cut off already stays so.
            is_bounded = status in self._exchange.retried and self._exchange.is_retried(status)
            if not is_bounded and in_flight.pop(attempt, None) is not None:
                deadline_at = self._exchange.deadline_at
                in_flight[attempt] = attempt.ends_at = _NEVER if deadline_at is None else deadline_at
                if attempt.ends_at < deadlines.wake_at:
                    deadlines.rouse(attempt.ends_at)
                if attempt.sock is not None:
                    attempt.sock.settimeout(attempt.timeouts.read_s)
            surface.read(answer, attempt)
        attempt.was_in_time = in_flight.pop(attempt, None) is not None
        if not attempt.was_in_time:
            # It was cut off but looks whole: a body, or a head, that ended with the connection.
            surface.close(answer)
            raise self._timed_out(attempt)
        if lease.aborted is not None:  # the same, where something other than the time ended it
            surface.close(answer)
            raise surface.broken_off("the call was broken off during the answer")
        outcome.status = status
        endpoint = self._upstream.endpoint
        if endpoint.misses:  # it has answered
            endpoint.misses = 0
            endpoint.suspect = False
        return answer

    def judge(self, answer: T, outcome: Outcome) -> None:
        """Note in *outcome* what the rules need to know of *answer*. Mutates *outcome*."""
        plan, status = self._upstream.plan, outcome.status or 0
        if not self._request.streamed and plan.circuit_breaker.failure_if is not None:
            outcome.condemned = is_condemned(self._upstream, answer, status)
            self._surface.hand_out(answer)
        if status >= RETRY_AFTER_FROM:
            headers = self._surface.headers(answer)
            outcome.retry_after_s = retry_after_s(
                headers, plan.retry.retry_after.headers, wall_clock=time.time
            )

    def fail(self, error: Exception, attempt: Attempt, lease: Lease[Any], outcome: Outcome) -> None:
        """Note in *outcome* how *error* ended *attempt*. Mutates *outcome*."""
        tls, cancellation = self._upstream.plan.tls, self._cancellation
        presents = tls is not None and tls.cert is not None
        failure = self._surface.failure(error, attempt, presents=presents)
        if attempt.was_in_time is None:
            attempt.was_in_time = in_flight.pop(attempt, None) is not None
        end = end_of(
            failure.fault,
            attempt.phase,
            cut=failure.cut,
            is_callers=failure.own is not None,
            is_cancelled=cancellation is not None and cancellation.is_cancelled,
            was_in_time=attempt.was_in_time,
            was_shut=lease.aborted is not None,
        )
        self.error = failure.error
        if failure.own is not None:  # the caller's code has ended the call: its error leaves as it is
            self.error = failure.own
        elif end.by is EndedBy.TIMER:
            self.error = self._timed_out(attempt)
            self.error.__cause__ = error
        elif end.fault is Fault.RESPONSE_TOO_LARGE and attempt.max_body_bytes is not None:
            self.error = too_large(
                self._upstream, self._surface, attempt.max_body_bytes, request_id=self.outbound.request_id
            )
        elif failure.mismatch is not None:
            self.error = wrong_identity(
                self._upstream, self._surface, failure.mismatch, request_id=self.outbound.request_id
            )
            self.error.__cause__ = failure.error
        outcome.fault, outcome.cut = end.fault, end.cut
        outcome.broken_off = end.by is EndedBy.OURSELVES
        outcome.excused, outcome.advice = attempt.excused, failure.advice
        outcome.reused, outcome.answered = lease.reused, attempt.answered

    def no_lease(self, error: LeaseError, started: float) -> Outcome:
        """The outcome of an attempt that got no lease. Mutates."""
        if isinstance(error, LeaseCancelled):
            return Outcome(Fault.CANCELLED, started_s=started, wait_s=error.waited_s)
        timed_out = isinstance(error, LeaseTimeout)
        if timed_out and not self._exchange.may_wait:
            timed_out = False
            report_event_loop(self._upstream, "wait for a connection")
        self.error = pool_error(
            self._upstream, self._surface, error, request_id=self.outbound.request_id, timed_out=timed_out
        )
        return Outcome(
            fault=Fault.POOL_TIMEOUT if timed_out else Fault.POOL_REJECTED,
            started_s=started,
            wait_s=monotonic() - started,
        )

    def renew(self, renew: Renew) -> bool:
        """Whether headers of the rules that the call was sent with have other values by now; it takes them. Blocks."""
        is_newer = self.rule_anew(renew)
        if is_newer:
            self.set_aside()
        return is_newer

    def rule_anew(self, renew: Renew) -> bool:
        """The same, and the failed answer is left as it is. Blocks."""
        live, outbound, own = self._upstream.live, self.outbound, self._request.headers or {}
        if live is None:
            return False
        left_s = None if renew.until is None else renew.until - monotonic()
        ruled = live.renew(
            outbound.ruled,
            but={name.lower() for name in own},
            patience_s=left_s if self._exchange.may_wait else 0.0,
            upstream=self._upstream.plan.name,
        )
        if ruled is None:
            return False
        outbound.rule_anew(ruled)
        return True

    def set_aside(self) -> None:
        """Free the slot of the failed answer before the pause; keep the answer if it can be kept. Blocks for KEEP_S."""
        answer, attempt = self.answer, self._last_attempt
        if answer is None or attempt is None or not attempt.streamed:
            return  # a buffered answer has been read, and its slot is free
        ends_at, deadline_at = monotonic() + KEEP_S, self._exchange.deadline_at
        in_flight[attempt] = ends_at = ends_at if deadline_at is None else min(ends_at, deadline_at)
        if ends_at < deadlines.wake_at:
            deadlines.rouse(ends_at)
        try:
            self.answer = self._surface.set_aside(answer)
        finally:
            if in_flight.pop(attempt, None) is None:
                self.answer = None  # it was cut off, so it may not be complete
            if self.answer is None:
                self._exchange.answer_is_lost()

    def _divert(self, record: Record) -> T | None:
        """The fallback's answer to the refused call; None where its path at the other upstream is not certain. Blocks.

        Raises what the call to the other upstream raises.
        """
        other = self._upstream.fallback
        if other is None:
            return self.canned(record)
        found = self.towards(other)
        if found is None:
            return None
        surface, request = found
        try:
            answer = Call(other, surface, request, deadline_at=self._exchange.deadline_at).run()
        except Exception as error:
            self.stood_in_vain(error)
            raise
        return self.stood_in(answer)

    def canned(self, record: Record) -> T:
        """The answer that the file has for the refused call."""
        fallback = self._upstream.plan.fallback
        assert fallback is not None, "the exchange diverts by its plan"
        answer = self._surface.canned(fallback)
        carry(record, on=answer)
        return self.stood_in(answer)

    def towards(self, other: Upstream) -> tuple[Surface[T], Request] | None:
        """The same call as it is made to *other*; None where its path there is not certain."""
        refused = self._upstream
        substitute = self._surface.towards(other, refused)
        if substitute is None:
            return None
        timeouts, own = other.plan.timeouts, self._request.timeouts
        if own.asked is not None:
            timeouts = with_asked(timeouts, own.asked)
        if own.acquire_s != refused.plan.timeouts.acquire_s:
            timeouts = replace(timeouts, acquire_s=own.acquire_s)
        request = replace(
            self._request, message=substitute.message, headers=substitute.headers, timeouts=timeouts
        )
        return substitute.surface, request

    def stood_in_vain(self, error: Exception) -> None:
        """Tell on *error*, which the fallback's call has raised, whose fallback that was. Mutates *error*."""
        name = self._upstream.plan.name
        if (told := carried_by(error)) is not None:
            told.fallback_for = name
        add_notes(error, [f'headrace: this was the fallback for upstream "{name}", which refused'])

    def stood_in(self, answer: T) -> T:
        """*answer*, which is a fallback's, with what is told and counted of that. Mutates."""
        if (told := carried_by(answer)) is not None:
            told.fallback_for = self._upstream.plan.name
        counters = self._upstream.learned.counters
        with counters.lock:
            counters.fallbacks += 1
        return answer

    def _follow(self, answer: T, record: Record) -> None:
        """Listen for a break in the body of *answer*, which the caller reads itself."""
        body = self._surface.streamed(answer)
        if body is not None:
            follow(
                body,
                self._exchange,
                record,
                self._upstream,
                self._surface,
                self._trace,
                opened_in=self._opened_in,
                pool=self.leases,
            )

    def _error_of(self, end: Finish | Refuse, record: Record) -> Exception:
        """The exception that leaves, with the record and its notes on it."""
        error = final_error(
            self._upstream,
            self._surface,
            self._exchange,
            end,
            request_id=self.outbound.request_id,
            last=self.error,
        )
        if isinstance(error, UpstreamError):
            error.attempts = record.attempts
            if self._trace is not None and isinstance(error, CircuitOpenError):
                self._trace.refused(str(error))
        carry(record, on=error)
        add_notes(error, record.notes())
        return error

    def _timed_out(self, attempt: Attempt) -> Exception:
        limit_s = attempt.ends_at - attempt.began
        return self._surface.timed_out(
            f"Read timed out. (attempt={limit_s:g}: the peer went on too slowly, and was cut off)", attempt
        )

    def record(self, reason: EndReason) -> Record:
        """What became of the call, which has ended for *reason*."""
        made = self._exchange if self._tries is None else self._tries
        return Record(
            self._upstream.plan.name,
            self._request.method,
            self.outbound.request_id,
            reason,
            self._exchange.retry_after_s,
            self._upstream.digest,
            made.outcomes,
            made.verdicts,
        )

    def _report(self, record: Record) -> None:
        """Log what the call site could do better, if that is why the call ended."""
        wants_retries = self._upstream.plan.retry.max_attempts > 1
        if record.reason is EndReason.EVENT_LOOP:
            report_event_loop(self._upstream, "sleep before its next attempt")
        elif wants_retries and record.reason in (EndReason.METHOD, EndReason.NOT_REPLAYABLE):
            report_withheld(self._upstream, record)

    def count(self, end: End | None, duration_s: float) -> None:
        """Count the call, which has ended; None: by what its driver did not catch."""
        label = None  # None: that of the last attempt counts
        if end is None or end.reason is EndReason.CANCELLED:
            label = Fault.CANCELLED.value
        elif not self._exchange.outcomes:
            label = end.reason.value
        if self._trace is not None:
            self._trace.end(self._exchange, label=label)
        own_timeout = self._request.timeouts.asked is not None
        if self._tries is not None:
            self._tries.own_timeout = own_timeout
            self._tries.add(self._exchange, label=label, trace=self._trace)
            return
        tally(
            self._upstream.learned.counters,
            self._exchange,
            label=label,
            duration_s=duration_s,
            exemplar=None if self._trace is None else self._trace.exemplar(duration_s),
            own_timeout=own_timeout,
        )
