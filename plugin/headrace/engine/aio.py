"""One governed call on an event loop: it does what the exchange decides, and awaits where `engine.call` blocks.

Every decision is the blocking side's. `Call` prepares an attempt, judges its end and tells of the call, whoever drives
it; what lies in between is here: the lease of the loop's shelf, the dial, the exchange over the wire, the pause. A call
has one `Limit` at a time in the table of its loop, which is moved on with what it does: look up, connect, shake hands,
send, wait for the head, read.

**Cancelled**, at any await, a call gives its lease back once: as an interrupt does on the blocking side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, assert_never
from weakref import ref

from headrace.clock import monotonic
from headrace.engine.call import Call
from headrace.policy.attempt_end import Phase
from headrace.policy.decision import Divert, End, EndReason, Finish, Refuse, Renew, Resend, Send, Sleep
from headrace.policy.exchange import KEEP_S, Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.request import Request
from headrace.policy.retry import RETRY_AFTER_FROM
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.carrying import carry
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.dial.aio import dial
from headrace.transport.lease.errors import LeaseError
from headrace.transport.lease.place import CloseReason, Lease
from headrace.transport.lease.shelf import Shelf, shelf_of
from headrace.transport.loop_deadlines import EMPTY, Limit, LoopDeadlines, deadlines_of
from headrace.transport.wire.aio import Body, LoopWire

T = TypeVar("T")

_SHORTEST_S = 0.001
_NEVER = float("inf")


class Awaited(Protocol):
    """How one call is sent, and awaited; as `policy.decision.Performer`."""

    async def perform(self, send: Send) -> Outcome:
        """Make one attempt. Turns every error of the transport into an Outcome."""

    async def resend(self, resend: Resend) -> Outcome | None:
        """Make the attempt once more, over a fresh connection; None: none was free at once."""

    async def renew(self, renew: Renew) -> bool:
        """Whether the call has another secret now than it was sent with; then the 401 is set aside."""

    async def set_aside(self) -> None:
        """Give the slot back and keep or close the failed answer: another attempt may follow."""


async def run(
    exchange: Exchange,
    performer: Awaited,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> End:
    """Drive *exchange* to its end, as `engine.blocking.run` does; exceptions pass through, a cancellation as well."""
    try:
        while True:
            decision = exchange.decide(clock())
            match decision:
                case Send():
                    outcome = await performer.perform(decision)
                    exchange.record(outcome, clock())
                case Resend():
                    exchange.record(await performer.resend(decision), clock())
                case Renew():
                    exchange.renewed(await performer.renew(decision), clock())
                case Sleep():
                    await performer.set_aside()
                    if decision.delay_s > 0.0:
                        await sleep(decision.delay_s)
                case Divert() | Finish() | Refuse():
                    return decision
                case _:
                    assert_never(decision)
    finally:
        exchange.abandon(clock())


@dataclass(slots=True, eq=False)
class Way:
    """What one attempt goes over. Owned by its task.

    Attributes:
        limit: In the table of *deadlines* until what it limits is over.
    """

    shelf: Shelf[LoopWire]
    lease: Lease[LoopWire]
    deadlines: LoopDeadlines
    limit: Limit


class LoopSurface(Protocol[T]):
    """How one library sends one call over a `LoopWire`; what is not awaited is as in `engine.surface.Surface`."""

    def head(self, attempt: Attempt) -> bytes:
        """The head of the request, for this attempt."""

    def body(self, attempt: Attempt) -> Body:
        """Its body, from the start."""

    def answer(self, wire: LoopWire, way: Way, attempt: Attempt) -> T:
        """What the caller gets, of which *wire* has the head, and the whole where the caller does not read it."""

    def family(self) -> dict[str, Any]:
        """As `Surface.family`."""

    def headers(self, answer: T) -> Mapping[str, str]:
        """As `Surface.headers`."""

    async def aside(self, answer: T, ends_at: float) -> T | None:
        """*answer*, streamed, with its connection freed and its body kept; None where that cannot be had by then."""

    def address_family(self) -> int:
        """Which addresses are looked up."""


class AwaitedCall(Generic[T]):
    """One logical call of an event loop; an `Awaited`. Arguments as `Call`'s."""

    __slots__ = ("_call", "_surface")

    def __init__(
        self,
        upstream: Upstream,
        surface: LoopSurface[T],
        request: Request,
        *,
        deadline_at: float | None = None,
    ) -> None:
        self._surface = surface
        whole: Any = surface  # a Surface, too, but for what it would block for
        self._call: Call[T] = Call(upstream, whole, request, deadline_at=deadline_at, awaits=True)

    async def run(self) -> T:
        """The answer, with the record on it. Raises as `Call.run`."""
        call, began, end = self._call, monotonic(), None
        try:
            sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
            if call._cancellation is not None:
                sleep = partial(_sleep_until_cancelled, call._cancellation)
            end = await run(call._exchange, self, clock=monotonic, sleep=sleep)
        except Exception as raised:
            carry(call.record(EndReason.CANCELLED), on=raised)
            raise
        finally:
            call.count(end, monotonic() - began)
        record = call.conclude(end)
        answer = call.answer
        if answer is None and isinstance(end, Divert):
            other = call._upstream.fallback
            answer = call.canned(record) if other is None else await self._divert(other)
        if answer is None:
            call.raise_end(end, record)
        return answer

    async def perform(self, send: Send) -> Outcome:
        """Make one attempt: lease, dial, send, read."""
        call, started = self._call, monotonic()
        cancellation = call._cancellation
        try:
            call.leases = shelf = await shelf_of(call._upstream.endpoint.pool.leases)
            lease = await shelf.acquire(
                send.patience_s,
                by_deadline=send.by_deadline,
                fresh=send.fresh,
                on_wait=None if cancellation is None else partial(cancellation.cover, pool=call.leases),
            )
        except LeaseError as error:
            return call.no_lease(error, started)
        if cancellation is not None and cancellation.is_cancelled:
            shelf.give_back(lease, reusable=True)
            return Outcome(Fault.CANCELLED, started_s=started, wait_s=monotonic() - started)
        return await self._attempt(shelf, lease, send.timeout_s, started)

    async def resend(self, resend: Resend) -> Outcome | None:
        """Make the attempt once more over a fresh connection; None if no connection is free at once."""
        call, started = self._call, monotonic()
        try:
            call.leases = shelf = await shelf_of(call._upstream.endpoint.pool.leases)
            lease = await shelf.acquire(0.0, fresh=True)
        except LeaseError:
            return None
        return await self._attempt(shelf, lease, resend.timeout_s, started)

    async def renew(self, renew: Renew) -> bool:
        """Whether headers of the rules have other values by now; files are read on another thread."""
        is_newer = await asyncio.to_thread(self._call.rule_anew, renew)
        if is_newer:
            await self.set_aside()
        return is_newer

    async def set_aside(self) -> None:
        """Free the slot of the failed answer before the pause; keep the answer if it can be kept."""
        call = self._call
        answer = call.answer
        if answer is None or not call._request.streamed:
            return  # a buffered answer has been read, and its slot is free
        ends_at, deadline_at = monotonic() + KEEP_S, call._exchange.deadline_at
        call.answer = None  # a cancellation leaves nothing
        call.answer = await self._surface.aside(
            answer, ends_at if deadline_at is None else min(ends_at, deadline_at)
        )
        if call.answer is None:
            call._exchange.answer_is_lost()

    async def _divert(self, other: Upstream) -> T | None:
        call = self._call
        found = call.towards(other)
        if found is None:
            return None
        surface, request = found
        there: Any = surface
        try:
            answer: T = await AwaitedCall(other, there, request, deadline_at=call._exchange.deadline_at).run()
        except Exception as error:
            call.stood_in_vain(error)
            raise
        return call.stood_in(answer)

    async def _attempt(
        self, shelf: Shelf[LoopWire], lease: Lease[LoopWire], limit_s: float, started: float
    ) -> Outcome:
        call, token, cancellation = self._call, lease.token, self._call._cancellation
        try:
            attempt = call.begin(lease, limit_s)
            attempt.lease = None  # it goes back from here alone
            outcome = Outcome(None, None, False, False, started, attempt.began - started)
            deadlines = deadlines_of(shelf.loop)
            way = Way(shelf, lease, deadlines, Limit(attempt.began, _nothing, ends_at=attempt.ends_at))
            deadlines.add(way.limit, attempt.began)
            try:
                call.answer = answer = await self._send(attempt, way, outcome)
            except Exception as error:
                shelf.give_back(lease, reusable=False)
                attempt.was_in_time = way.limit.ended_by != "time"
                attempt.excused = way.limit.was_extended
                call.fail(error, attempt, lease, outcome)
            else:
                attempt.was_in_time = True
                rules = call._upstream.plan.circuit_breaker
                if (outcome.status or 0) >= RETRY_AFTER_FROM or rules.failure_if is not None:
                    call.judge(answer, outcome)
            finally:
                deadlines.remove(way.limit)
                is_held = attempt.streamed and call.answer is not None
                if cancellation is not None and token is not None and not is_held:
                    cancellation.release(token)
            call.note(attempt, outcome)
            return outcome
        except BaseException:
            # A cancellation. Wherever it came, the slot is free after this.
            shelf.give_back(lease, reusable=False)
            raise

    async def _send(self, attempt: Attempt, way: Way, outcome: Outcome) -> T:
        """The answer: its head, and its body unless the caller reads that itself. Mutates *outcome*."""
        call, surface, lease, limit = self._call, self._surface, way.lease, way.limit
        exchange, timeouts = call._exchange, attempt.timeouts
        head = surface.head(attempt)  # what cannot be sent is told before there is a connection
        wire = lease.conn
        if wire is None:
            wire = await self._open(attempt, way)
        attempt.phase = "sent"
        if lease.aborted is not None:  # before there was anything to break off
            raise ConnectionAbortedError("the call was broken off while it was connecting")
        limit.on_end = wire.cut
        limit.step(monotonic(), timeouts.read_s)
        try:
            wire.begin(
                call._request.method,
                limit,
                streamed=attempt.streamed,
                max_body_bytes=attempt.max_body_bytes,
            )
            await wire.send(head, surface.body(attempt), write_s=timeouts.write_s, read_s=timeouts.read_s)
            await wire.head()
            outcome.status = status = wire.reader.status
            if not attempt.streamed and not wire.reader.done:
                if not exchange.is_retried(status) and limit.ended_by is None:
                    # An answer that is not retried is bounded by silence and by the deadline (failures.md 89).
                    attempt.ends_at = _NEVER if exchange.deadline_at is None else exchange.deadline_at
                    limit.ends_at = attempt.ends_at
                await wire.complete()
        except Exception:
            outcome.status = None
            raise
        finally:
            attempt.answered = wire.reader.started
        try:
            answer = surface.answer(wire, way, attempt)
        except Exception:
            outcome.status = None
            raise
        if not attempt.streamed:
            reason: CloseReason = "dead" if wire.reader.done else "error"
            way.shelf.give_back(lease, reusable=wire.is_reusable, reason=reason)
        endpoint = call._upstream.endpoint
        if endpoint.misses:  # it has answered
            endpoint.forget_misses()
        return answer

    async def _open(self, attempt: Attempt, way: Way) -> LoopWire:
        """A connection for the lease, opened in a task without a context: it outlives the call."""
        endpoint, timeouts, lease, limit = (
            self._call._upstream.endpoint,
            attempt.timeouts,
            way.lease,
            way.limit,
        )
        pool, tls, shelf, began = endpoint.pool, endpoint.tls, way.shelf, monotonic()
        loop, token = shelf.loop, lease.token
        assert token is not None

        def step(phase: Phase) -> None:
            attempt.phase, now = phase, monotonic()
            limit_s = timeouts.tls_handshake_s
            if phase != "tls":  # looking the name up is a part of connecting
                limit_s = max(timeouts.connect_s - (now - began), _SHORTEST_S)
                limit_s = min(limit_s, timeouts.resolve_s) if phase == "dns" else limit_s
            limit.step(now, limit_s)
            way.deadlines.add(limit, now)

        task = loop.create_task(
            dial(
                pool.in_force.dns_name,
                pool.port or endpoint.origin.port,
                partial(LoopWire, loop, way.deadlines),
                family=self._surface.address_family(),
                options=pool.conn_kw["socket_options"],
                connect_s=timeouts.connect_s,
                tls=tls,
                server_name=endpoint.origin.host
                if tls is None
                else tls.plan.server_name or endpoint.origin.host,
                step=step,
            ),
            context=EMPTY.copy(),
        )
        me = asyncio.current_task()
        cancelled = 0 if me is None else me.cancelling()
        limit.on_end = lambda by: task.cancel()
        shelf.breakers[token] = task.cancel
        try:
            wire, unread = await task
        except asyncio.CancelledError:
            task.add_done_callback(_close_made)  # in the very turn in which it stood
            if me is not None and me.cancelling() > cancelled:
                raise
            if limit.ended_by is not None:
                raise TimeoutError("timed out") from None
            if lease.aborted is not None:
                raise ConnectionAbortedError("the call was broken off while it was connecting") from None
            raise
        finally:
            shelf.breakers.pop(token, None)
            limit.on_end = _nothing
        lease.connection.conn = wire
        attempt.connect_took_s = monotonic() - began
        if unread is not None:
            wire.on_answer = lambda answering: unread.read(answering.tls)
        return wire


def _close_made(task: asyncio.Task[tuple[LoopWire, Any]]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result()[0].close()


def _nothing(by: object) -> None:
    """Nobody is told: whoever waits looks at the limit itself."""


class _Nap:
    """A pause, which a cancellation knows as it knows a lease."""

    __slots__ = ("__weakref__", "_loop", "_over", "token")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._over = asyncio.Event()
        self.token = ref(self)

    def abort(self, token: object) -> None:
        """End it. Any thread."""
        try:
            self._loop.call_soon_threadsafe(self._over.set)
        except RuntimeError:
            pass

    async def over(self, delay_s: float) -> None:
        try:
            await asyncio.wait_for(self._over.wait(), delay_s)
        except TimeoutError:
            pass


async def _sleep_until_cancelled(cancellation: Cancellation, delay_s: float) -> None:
    """Pause for *delay_s*, or until the client leaves."""
    nap: Any = _Nap(asyncio.get_running_loop())
    cancellation.cover(nap.token, nap)
    try:
        await nap.over(delay_s)
    finally:
        cancellation.release(nap.token)
