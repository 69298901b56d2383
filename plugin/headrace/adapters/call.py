"""One governed call on a blocking surface: what requests and urllib3 have in common.

A surface knows how to send, how to read a status, how to keep or drop an answer,
and which exception classes its callers expect; everything else is decided by the
exchange and done here. Long, for whatever may happen between taking a lease and giving it
back (a cut, a cancellation, an interrupt, a resend) is to be read in one place.
"""

from __future__ import annotations

import random
import time
from asyncio import _get_running_loop
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from urllib3.exceptions import ProtocolError, ReadTimeoutError

from headrace.adapters.endings import final_error, pool_error, too_large
from headrace.adapters.streamed import follow
from headrace.adapters.surface import Surface
from headrace.adapters.timeouts import with_asked
from headrace.clock import monotonic
from headrace.engine.blocking import run
from headrace.engine.notices import report_event_loop, report_withheld
from headrace.engine.outbound import Outbound
from headrace.engine.predicate import is_condemned
from headrace.engine.retry_after import retry_after_s
from headrace.engine.tries import Tries
from headrace.errors import CircuitOpenError, ResponseTooLarge, UpstreamError
from headrace.policy.exchange import Divert, End, EndReason, Exchange, Performer, Send
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import TimeoutPlan
from headrace.policy.record import Record, tally
from headrace.policy.retry import RETRY_AFTER_FROM, is_resendable
from headrace.runtime.carrying import add_notes, carry, record_of
from headrace.runtime.deadlines import deadlines
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.lease.pool import Lease, LeaseCancelled, LeaseError, LeaseTimeout
from headrace.transport.stock.draining import KEEP_S
from headrace.transport.stock.faults import CUT_IN, advice_on, callers_own, fault_of
from headrace.transport.stock.garbage import told_as_broken
from headrace.transport.stock.timeout import AttemptTimeout

in_flight = deadlines.table

_SHORTEST_S = 0.001  # a socket limit of 0 would mean non-blocking
_NEVER = float("inf")


T = TypeVar("T")


class Call(Generic[T]):
    """One logical call; an `engine.blocking.Attempt`. Owned by one thread.

    Attributes:
        answer: The answer of the last attempt, kept; None when there is none.
        error: The exception of the last attempt; None when it had an answer.
        outbound: What identifies it on the wire.

    Args:
        headers: What the call itself has set.
        tries: What it shares with the other tries of a caller who retries himself; None: this call is the whole.
        deadline_at: When whatever this call is part of must be over, monotonic seconds.
    """

    __slots__ = (
        "_answered",
        "_cancellation",
        "_exchange",
        "_made",
        "_may_wait",
        "_message",
        "_method",
        "_opened_in",
        "_replayable",
        "_streamed",
        "_surface",
        "_suspects_idle",
        "_timeouts",
        "_trace",
        "_tries",
        "_upstream",
        "answer",
        "error",
        "outbound",
    )

    def __init__(
        self,
        upstream: Upstream,
        surface: Surface[T],
        *,
        message: object,
        streamed: bool,
        timeouts: TimeoutPlan,
        method: str,
        replayable: bool,
        headers: Mapping[str, Any] | None,
        tries: Tries | None = None,
        deadline_at: float | None = None,
    ) -> None:
        plan, state = upstream.plan, upstream.state
        self._upstream = upstream
        self._surface = surface
        self._message = message
        self._method = method
        self._streamed = streamed
        self._timeouts = timeouts
        self._answered = self._suspects_idle = False
        self._made: Attempt | None = None  # the last attempt
        self._tries = tries
        if tries is None:
            self.outbound = outbound = Outbound(upstream, method, headers)
        else:
            self.outbound = outbound = tries.begin(upstream, method, headers)
            self._suspects_idle = tries.suspects_idle
        # On the thread of a running event loop any wait stalls the loop, and whoever holds the connection that
        # we wait for may need that loop to give it back.
        self._may_wait = _get_running_loop() is None
        self.answer: T | None = None
        self.error: Exception | None = None
        self._replayable = replayable
        inbound = outbound.inbound
        # What a request has left running behind keeps its id and its trace.
        served = None if inbound is None or inbound.is_over else inbound
        self._opened_in = served if streamed else None
        if deadline_at is None and served is not None:
            deadline_at = served.deadline_at
        self._cancellation = None if inbound is None else inbound.cancellation
        tracing = upstream.tracing
        self._trace = None
        if tracing is not None and tracing.is_wanted():  # asked in C: nothing is paid without a span around
            self._trace = tracing.call(
                plan.name,
                state.circuit,
                address=state.pool.host,
                port=state.pool.port,
                method=method,
                url=surface.url,
                propagates=plan.propagate.traceparent,
                own=(*(headers or ()), *dict(plan.headers)),
                request=inbound,
                earlier=() if tries is None else tuple(tries.outcomes),
            )
        self._exchange = Exchange(
            plan,
            state.circuit,
            state.budget,
            now=monotonic() if tries is None else tries.began,
            rng=random.random,
            method=method,
            replayable=replayable,
            timeouts=timeouts,
            max_attempts=plan.retry.max_attempts,
            may_sleep=self._may_wait,
            deadline_at=deadline_at,
            allowance=None if served is None else served.allowance,
            keyed=outbound.keyed,
            cancellation=self._cancellation,
            nth_try=0 if tries is None else tries.made,
            after=None if tries is None else tries.last,
        )

    def run(self) -> T:
        """The answer, with the record on it. Blocks.

        Raises:
            UpstreamError: Refused by the circuit, the pool or the deadline (the surface's twin).
            Exception: What the library raised in the last attempt, with the record and notes on it.
        """
        began = monotonic()
        end: End | None = None
        performer: Performer = self
        if self._trace is not None:
            self._trace.performer = self
            performer = self._trace
        try:
            sleep = time.sleep if self._cancellation is None else self._cancellation.sleep
            end = run(self._exchange, performer, clock=monotonic, sleep=sleep)
        except Exception as raised:  # a signal handler's amid a wait or a pause, a bug of ours
            carry(self._record(EndReason.CANCELLED), on=raised)
            raise
        finally:
            self._count(end, monotonic() - began)
        record = self._record(end.reason)
        if end.reason is not EndReason.SUCCESS:
            self._say(record)
        if self.answer is not None:
            if end.reason is not EndReason.CANCELLED:
                carry(record, on=self.answer)
                if self._streamed:
                    follow(
                        self._surface.raw(self.answer),
                        self._exchange,
                        record,
                        self._upstream,
                        self._surface,
                        self._trace,
                        opened_in=self._opened_in,
                        pool=self._upstream.state.pool.leases,
                    )
                return self.answer
            self.answer.close()  # type: ignore[attr-defined]  # a failed one, and nobody waits for it
        if isinstance(end, Divert):
            answer = self._divert(record)
            if answer is not None:
                return answer
            end = end.otherwise
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
        try:
            raise error
        finally:
            # An exception that refers to its own frame is a cycle, kept until the next collection.
            self.error = None
            del error

    def _record(self, reason: EndReason) -> Record:
        made = self._exchange if self._tries is None else self._tries
        return Record(
            self._upstream.plan.name,
            self._method,
            self.outbound.request_id,
            reason,
            self._exchange.retry_after_s,
            self._upstream.digest,
            made.outcomes,
            made.verdicts,
        )

    def perform(self, send: Send) -> Outcome:
        """Make one attempt: lease, send, read. Blocks."""
        leases = self._upstream.state.pool.leases
        deadline_at = self._exchange.deadline_at
        timeouts = self._timeouts
        cancellation = self._cancellation
        started = monotonic()
        patience_s = timeouts.acquire_s if self._may_wait else 0.0
        by_deadline = deadline_at is not None and deadline_at - started < patience_s
        if deadline_at is not None and by_deadline:
            patience_s = deadline_at - started
        try:
            lease = leases.acquire(
                patience_s,
                by_deadline=by_deadline,
                fresh=self._suspects_idle,
                owner=self._surface.owner,
                on_wait=None if cancellation is None else partial(cancellation.covers, pool=leases),
            )
        except LeaseError as error:
            return self._no_lease(error, started)
        if cancellation is not None and cancellation.is_cancelled:
            leases.give_back(lease, reusable=True)
            return Outcome(Fault.CANCELLED, started_s=started, wait_s=monotonic() - started)
        outcome = self._attempt(send, lease, started)
        if outcome.fault is not None:
            if is_resendable(
                outcome,
                reused=lease.reused,
                answered=self._answered,
                repeatable=self._exchange.is_repeatable,
            ):
                outcome = self._resend(send, outcome)
            else:
                # What has silently dropped this connection (a NAT) has dropped its idle neighbours, too: each of
                # them would cost the next attempt its whole timeout (Pitfall 18).
                self._suspects_idle = lease.reused and not self._answered
        if outcome.sent:
            self.outbound.sent += 1
        return outcome

    def _resend(self, send: Send, failed: Outcome) -> Outcome:
        """The attempt once more over a fresh connection, within what it has left; *failed* if there is none."""
        now = monotonic()
        left_s = failed.started_s + failed.wait_s + send.timeout_s - now
        if left_s <= _SHORTEST_S:
            return failed
        try:
            lease = self._upstream.state.pool.leases.acquire(0.0, fresh=True)
        except LeaseError:
            return failed  # somebody else took the slot: a retry can wait for one, this cannot
        outcome = self._attempt(Send(send.attempt, left_s), lease, now)
        outcome.started_s, outcome.wait_s, outcome.resent = failed.started_s, failed.wait_s, True
        outcome.sent = outcome.sent or failed.sent  # the fresh connection may never have come about
        outcome.duration_s += now - failed.started_s - failed.wait_s
        return outcome

    def _attempt(self, send: Send, lease: Lease[Any], started: float) -> Outcome:
        state = self._upstream.state
        leases = state.pool.leases
        deadline_at = self._exchange.deadline_at
        timeouts = self._timeouts
        retried = self._upstream.plan.retry.retry_on.statuses
        cancellation, token = self._cancellation, lease.token
        outer = current_attempt.get()
        try:
            leased = monotonic()
            if cancellation is not None and token is not None:
                cancellation.covers(token, leases)
            # Only now: without a lease the answer kept from before is the caller's.
            self.answer = self.error = None
            limit_s = send.timeout_s
            if deadline_at is not None and deadline_at - leased < limit_s:
                limit_s = max(_SHORTEST_S, deadline_at - leased)
            outbound = self.outbound
            extra = outbound.headers
            if outbound.sent or outbound.deadline_header is not None:
                extra = outbound.for_attempt(None if deadline_at is None else deadline_at - leased)
            if self._trace is not None:
                extra = self._trace.headers(extra)
            attempt = Attempt(
                state.pool,
                self._message,
                lease,
                extra,
                timeouts,
                leased + limit_s,
                self._streamed,
            )
            attempt.token = lease.token
            attempt.max_body_bytes = max_body = self._upstream.plan.pool.max_response_body_bytes
            attempt.owner = self._surface.owner
            self._made = attempt
            fault = None
            status = asked_s = None
            cut = condemned = broken_off = False
            advice = None
            try:
                current_attempt.set(attempt)
                in_flight[attempt] = attempt.ends_at
                if attempt.ends_at < deadlines.wake_at:
                    deadlines.rouse(attempt.ends_at)
                answer = self._surface.send(
                    AttemptTimeout(total=limit_s, connect=timeouts.connect_s, read=timeouts.read_s)
                )
                status, headers = self._surface.head(answer)
                if not self._streamed:
                    # An answer that is not retried is bounded by silence and by the deadline (Pitfall 89). What was cut
                    # off already stays so.
                    is_retried = status in retried and self._exchange.is_retried(status)
                    if not is_retried and in_flight.pop(attempt, None) is not None:
                        ends_at = _NEVER if deadline_at is None else deadline_at
                        in_flight[attempt] = attempt.ends_at = ends_at
                        if ends_at < deadlines.wake_at:
                            deadlines.rouse(ends_at)
                        limit_s = ends_at - leased
                        if attempt.sock is not None:
                            attempt.sock.settimeout(timeouts.read_s)
                    self._surface.read(answer, attempt)
                if in_flight.pop(attempt, None) is None:
                    # Cut off, and it looks whole all the same: a body, or a head, that ended with the connection.
                    answer.close()  # type: ignore[attr-defined]
                    raise self._timed_out(limit_s)
                if lease.aborted is not None:  # the same, where it was not the time that was up
                    answer.close()  # type: ignore[attr-defined]
                    broken_off = True
                    text = "the call was broken off amid the answer"
                    raise self._surface.broken_off(ProtocolError(text, ConnectionAbortedError(text)))
            except Exception as error:
                self.error = error
                status = None  # there may be one of an answer that broke off
                # An answer that its surface could make nothing of (an adapter's own `build_response` raised) still
                # holds its connection, and nobody has it who would close it. Does nothing if that has gone back.
                leases.give_back(lease, reusable=False)
                self._answered = attempt.answered
                fault, cut = fault_of(error, attempt.phase)
                if isinstance(broken := told_as_broken(error), ProtocolError) and broken is not error:
                    self.error = self._surface.broken_off(broken)
                if fault is Fault.CERTIFICATE:
                    presents = (tls := self._upstream.plan.tls) is not None and tls.cert is not None
                    advice = advice_on(error, attempt.phase, presents=presents)
                own = attempt.own_error
                if own is None and fault is Fault.LOCAL_ERROR:
                    own = callers_own(error)
                if (
                    own is not None
                ):  # the caller's code has ended the call, even if our time was up: it leaves as it is
                    fault, cut, self.error = Fault.LOCAL_ERROR, False, own
                elif cancellation is not None and cancellation.is_cancelled:
                    fault, cut = Fault.CANCELLED, False  # broken off by us, not by the upstream
                elif broken_off or in_flight.pop(attempt, None) is not None:
                    broken_off = lease.aborted is not None
                    if fault is Fault.RESPONSE_TOO_LARGE and max_body is not None:
                        self.error = self._too_large(max_body)
                elif not cut and fault is not Fault.CERTIFICATE:
                    fault, cut = CUT_IN[attempt.phase], True
                    self.error = self._timed_out(limit_s)
                    self.error.__cause__ = error
            else:
                self.answer = answer
                if state.misses:  # it has answered
                    state.misses = 0
                    state.suspect = False
                if not self._streamed and self._upstream.plan.circuit_breaker.failure_if is not None:
                    condemned = is_condemned(self._upstream, answer, status)
                    self._surface.hand_out(answer)
                if status >= RETRY_AFTER_FROM:
                    wanted = self._upstream.plan.retry.retry_after.headers
                    asked_s = retry_after_s(headers, wanted, wall_clock=time.time)
            finally:
                current_attempt.set(outer)  # not reset(): an interrupt may have taken the token
                in_flight.pop(attempt, None)  # an interrupt
                if (
                    cancellation is not None
                    and token is not None
                    and not (self._streamed and self.answer is not None)
                ):
                    cancellation.releases(token)
                if attempt.lease is not None:  # urllib3 never asked for it: a mocked or subclassed adapter
                    leases.give_back(attempt.lease, reusable=True)
            is_failed = fault is not None or status in retried
            # Now, not when it is sent again: a file that will not go back must not cost the caller this answer.
            if is_failed and not self._surface.rewind():
                self._replayable = False
                self._exchange.body_is_spent()
            return Outcome(
                fault,
                status,
                attempt.phase == "sent",
                cut,
                started,
                leased - started,
                attempt.connect_took_s,
                monotonic() - leased,
                asked_s,
                condemned=condemned,
                broken_off=broken_off,
                excused=attempt.excused,
                advice=advice,
            )
        except BaseException:
            # An interrupt, and wherever it hit, amid `finally` too: the slot is free. A lease that went back
            # already stays as it is.
            current_attempt.set(outer)
            leases.give_back(lease, reusable=False)
            raise

    def _divert(self, record: Record) -> T | None:
        """What the refused call gets instead, or None where its path elsewhere is not certain. Blocks.

        Raises what the call to the other upstream raises.
        """
        refused, other = self._upstream, self._upstream.fallback
        if other is None:
            assert refused.plan.fallback is not None, "the exchange diverts by its plan"
            answer = self._surface.canned(refused.plan.fallback)
            carry(record, on=answer)
        else:
            substitute = self._surface.towards(other, refused)
            if substitute is None:
                return None
            timeouts, own = other.plan.timeouts, self._timeouts
            if own.asked is not None:
                timeouts = with_asked(timeouts, own.asked)
            if own.acquire_s != refused.plan.timeouts.acquire_s:
                timeouts = replace(timeouts, acquire_s=own.acquire_s)
            try:
                answer = Call(
                    other,
                    substitute.surface,
                    message=substitute.message,
                    streamed=self._streamed,
                    timeouts=timeouts,
                    method=self._method,
                    replayable=self._replayable,
                    headers=substitute.headers,
                    deadline_at=self._exchange.deadline_at,
                ).run()
            except Exception as error:
                if (told := record_of(error)) is not None:
                    told.fallback_for = refused.plan.name
                add_notes(
                    error,
                    [f'headrace: this was the fallback for upstream "{refused.plan.name}", which refused'],
                )
                raise
        if (told := record_of(answer)) is not None:
            told.fallback_for = refused.plan.name
        counters = refused.state.counters
        with counters.lock:
            counters.fallbacks += 1
        return answer

    def _timed_out(self, limit_s: float) -> Exception:
        text = f"Read timed out. (attempt={limit_s:g}: the peer went on too slowly, and was cut off)"
        return self._surface.timed_out(ReadTimeoutError(self._upstream.state.pool, "", text))

    def _too_large(self, max_bytes: int) -> ResponseTooLarge:
        return too_large(self._upstream, self._surface, max_bytes, request_id=self.outbound.request_id)

    def set_aside(self) -> None:
        """Free the slot of the failed answer before the pause; keep the answer if it can be kept. Blocks for KEEP_S."""
        answer, attempt = self.answer, self._made
        if answer is None or attempt is None or not self._streamed:
            return  # a buffered one has been read, and its slot is free
        ends_at, deadline_at = monotonic() + KEEP_S, self._exchange.deadline_at
        in_flight[attempt] = ends_at = ends_at if deadline_at is None else min(ends_at, deadline_at)
        if ends_at < deadlines.wake_at:
            deadlines.rouse(ends_at)
        try:
            self.answer = self._surface.set_aside(answer)
        finally:
            if in_flight.pop(attempt, None) is None:
                self.answer = None  # cut off: what is there of it need not be all
            if self.answer is None:
                self._exchange.answer_is_lost()

    def _say(self, record: Record) -> None:
        """Log what the code at the call site could do better, if that is why the call ended."""
        wants_retries = self._upstream.plan.retry.max_attempts > 1
        if record.reason is EndReason.EVENT_LOOP:
            report_event_loop(self._upstream, "sleep before its next attempt")
        elif wants_retries and record.reason in (EndReason.METHOD, EndReason.NOT_REPLAYABLE):
            report_withheld(self._upstream, record)

    def _no_lease(self, error: LeaseError, started: float) -> Outcome:
        if isinstance(error, LeaseCancelled):
            return Outcome(Fault.CANCELLED, started_s=started, wait_s=error.waited_s)
        timed_out = isinstance(error, LeaseTimeout) and self._may_wait
        if isinstance(error, LeaseTimeout) and not self._may_wait:
            report_event_loop(self._upstream, "wait for a connection")
        self.error = pool_error(
            self._upstream, self._surface, error, request_id=self.outbound.request_id, timed_out=timed_out
        )
        return Outcome(
            fault=Fault.POOL_TIMEOUT if timed_out else Fault.POOL_REJECTED,
            started_s=started,
            wait_s=monotonic() - started,
        )

    def _count(self, end: End | None, duration_s: float) -> None:
        label = None  # of the last attempt
        if end is None or end.reason is EndReason.CANCELLED:
            label = Fault.CANCELLED.value
        elif not self._exchange.outcomes:
            label = end.reason.value
        if self._trace is not None:
            self._trace.end(self._exchange, label=label)
        if self._tries is not None:
            self._tries.add(self._exchange, label=label, suspects_idle=self._suspects_idle, trace=self._trace)
            return
        tally(
            self._upstream.state.counters,
            self._exchange,
            label=label,
            duration_s=duration_s,
            exemplar=None if self._trace is None else self._trace.exemplar(duration_s),
        )
