"""The circuit of an upstream for calls outside requests and urllib3: a gRPC stub, a database driver, boto3.

Such a call gets the breaker and nothing else: no retry, no limit, no pool. The function runs on the caller's
thread, as often as it is called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar

from headrace.clock import monotonic
from headrace.errors import CircuitOpenError, DeadlineExceeded, UpstreamError
from headrace.forks import current_pid, pid_page
from headrace.policy.breaker.circuit import Refused, Verdict
from headrace.policy.counters import add
from headrace.policy.decision import EndReason
from headrace.policy.plan import CircuitPlan
from headrace.policy.record import Record
from headrace.runtime.carrying import carry
from headrace.runtime.inbound import inbound_var
from headrace.runtime.upstream import Upstream

if TYPE_CHECKING:
    from headrace.observe.tracing.call_trace import CallTrace
    from headrace.transport.lease.pool import LeasePool

P = ParamSpec("P")
T = TypeVar("T")

Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
"""Which exceptions: by class, or by a function that is asked about each."""

# A global is one look-up; a member of an enum class goes through its metaclass.
_SUCCESS: Final = Verdict.SUCCESS
_FAILURE: Final = Verdict.FAILURE
_IGNORED: Final = Verdict.IGNORED


class InForce(Protocol):
    """Has the snapshot in force. Compared by identity, and nothing else is asked of it here."""

    @property
    def snapshot(self) -> object:
        """It, now."""


def protected(
    name: str,
    resolve: Callable[[str], Upstream],
    in_force: InForce,
    function: Callable[P, T],
    *,
    failure_on: Errors,
    success_on: Errors,
) -> Callable[P, T]:
    """*function* behind the circuit of the upstream called *name*; see `Handle.protect`.

    Args:
        in_force: Its `snapshot` is a plain attribute: each call reads it.
    """
    _refuse_deferred_work(function)
    is_failure, is_success = _matcher(failure_on), _matcher(success_on)
    inbound_of = inbound_var.get
    # What was resolved last: for which snapshot and process; its pool; and, of what may be counted, the likely one.
    known: tuple[object, int, Upstream, LeasePool[Any], Callable[[], int]] | None = None

    def call(*args: P.args, **kw: P.kwargs) -> T:
        # Flat: a Python-level call costs more than everything else here, and resolving the name takes several.
        nonlocal known
        snapshot, pid, found = in_force.snapshot, pid_page[0] or current_pid(), known
        if (
            found is not None
            and found[0] is snapshot
            and found[1] == pid
            and inbound_of() is None
            and not found[3].stopped
        ):
            _, _, upstream, _, count_success = found
        else:
            upstream = resolve(name)
            count_success = upstream.learned.counters.protected["success"].tick
            if inbound_of() is None:
                known = (snapshot, pid, upstream, upstream.endpoint.pool.leases, count_success)
        if upstream.mode == "off":
            return function(*args, **kw)
        learned, tracing = upstream.learned, upstream.tracing
        circuit = learned.circuit
        trace = None
        if tracing is not None and tracing.has_context():
            trace = tracing.protected_call(name, circuit)
        began = monotonic()
        permit = circuit.shared_permit
        if permit is None:
            answer = circuit.acquire(began)
            if isinstance(answer, Refused):
                if upstream.mode == "enforce":
                    raise _refusal(upstream, answer, trace)
                with learned.counters.lock:
                    add(learned.counters.observed, "refused")
                return function(*args, **kw)
            permit = answer
        verdict = _IGNORED
        try:
            result = function(*args, **kw)
            verdict = _SUCCESS
            return result
        except Exception as error:
            if is_success(error):
                verdict = _SUCCESS
            elif is_failure(error) and not _is_ours(
                error, monotonic() - began, upstream.plan.circuit_breaker
            ):
                verdict = _FAILURE
            raise
        finally:  # the permit goes back, after an interrupt too
            now = monotonic()
            circuit.record(permit, verdict, now, now - began)
            if verdict is _SUCCESS:
                count_success()
            else:
                learned.counters.protected["failure" if verdict is _FAILURE else "ignored"].tick()
            if trace is not None:
                trace.end_protected(None)

    return functools.update_wrapper(call, function)


def _is_ours(error: Exception, duration_s: float, plan: CircuitPlan) -> bool:
    """Whether *error* says nothing about the upstream: a nested refusal of ours, or a timer that ended it too early."""
    if isinstance(error, (TimeoutError, DeadlineExceeded)):
        return duration_s < plan.blame_after_s
    # A governed call inside the function has already reported to its own circuit.
    return isinstance(error, UpstreamError)


def _refusal(upstream: Upstream, refused: Refused, trace: CallTrace | None) -> CircuitOpenError:
    """A new error for a refused call. Counts the refusal."""
    counters = upstream.learned.counters
    with counters.lock:
        counters.refused += 1
    counters.protected["refused"].tick()
    inbound = inbound_var.get()
    request_id = None if inbound is None else inbound.request_id
    name = upstream.plan.name
    error = CircuitOpenError(
        f'upstream "{name}": {refused}',
        retry_after_s=refused.retry_after_s,
        upstream=name,
        request_id=request_id,
    )
    reason, digest = EndReason.CIRCUIT_OPEN, upstream.digest
    carry(Record(name, "", request_id, reason, refused.retry_after_s, digest, [], []), on=error)
    if trace is not None:
        trace.end_protected(refused)
    return error


def _matcher(errors: Errors) -> Callable[[Exception], object]:
    """A function that answers whether an exception is one of *errors*.

    Raises:
        TypeError: *errors* names no exception class, and is no function.
    """
    classes = errors if isinstance(errors, tuple) else (errors,)
    if all(isinstance(one, type) and issubclass(one, Exception) for one in classes):
        return lambda error: isinstance(error, classes)  # type: ignore[arg-type]
    if isinstance(errors, (tuple, type)) or not callable(errors):
        raise TypeError(
            f"{errors!r} does not say which exceptions: give classes below Exception (KeyboardInterrupt, "
            f"CancelledError and their like never count), or a function of one exception"
        )
    return errors


def _refuse_deferred_work(function: object) -> None:
    """Refuse a function that returns before its work has begun.

    Raises:
        TypeError: *function* cannot be called, or only makes a coroutine or generator.
    """
    if not callable(function):
        raise TypeError(f"protect() takes a function, not {function!r}")
    for one in (function, getattr(function, "__call__", None)):  # noqa: B004 - the method itself is looked at
        if inspect.iscoroutinefunction(one):
            kind = "a coroutine"
        elif inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            kind = "a generator"
        else:
            continue
        raise TypeError(
            f"protect() is for plain functions, and {function!r} only makes {kind}: it would count as a success "
            f"before it has begun. Protect the blocking call within it"
        )
