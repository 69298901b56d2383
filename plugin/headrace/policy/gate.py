"""The gate of a call: whether an attempt may be sent, and within which limits. It needs no `Exchange`.

An `Exchange` asks `next_send` before each of its attempts. Code that would rather not make an exchange for a call that
succeeds at once asks it before the first. If the attempt then ends in trouble, an exchange takes the answer over
(`Exchange.decide` with `first`), is told the outcome, and goes on as if it had asked by itself.

`settle` ends a call that had its answer at once, where there is no exchange either.

The permit travels in the `Send`. Who is given one owes the circuit a verdict; an exchange that takes it over, owes it
in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.breaker.permit import Permit, Refused, Verdict
from headrace.policy.counters import MANY, UpstreamCounters
from headrace.policy.decision import EndReason, Send
from headrace.policy.plan import TimeoutPlan
from headrace.policy.served import Cancellable, Served

Answer: TypeAlias = Send | Refused | EndReason
"""The attempt, with its permit; or what forbids it: the circuit, or DEADLINE or CANCELLED."""

_CANCELLED: Final = EndReason.CANCELLED
_DEADLINE: Final = EndReason.DEADLINE
_IGNORED: Final = Verdict.IGNORED
_SUCCESS: Final = Verdict.SUCCESS


def deadline_of(timeouts: TimeoutPlan, began: float, served: Served | None = None) -> float | None:
    """When a call that began at *began* must be over, or None for no deadline. Monotonic seconds."""
    own_s, inbound_at = timeouts.deadline_s, None if served is None else served.deadline_at
    if inbound_at is not None and (own_s is None or inbound_at < began + own_s):
        return inbound_at
    return None if own_s is None else began + own_s


def next_send(
    timeouts: TimeoutPlan,
    circuit: Circuit,
    now: float,
    *,
    deadline_at: float | None,
    may_wait: bool = True,
    cancellation: Cancellable | None = None,
    pay: Callable[[float], object] | None,
    renew: Callable[[float], Permit | Refused] | None = None,
    attempt: int = 1,
    fresh: bool = False,
) -> Answer:
    """Whether attempt number *attempt* may be sent. Mutates: takes a permit, and pays.

    The order is that of `exchange`: the client has gone, the deadline, the circuit.

    Args:
        deadline_at: As `deadline_of` answers it.
        may_wait: False where waiting would stall an event loop.
        pay: Told *now* where the attempt may be sent. For a first attempt `RetryBudget.deposit`; None: it is paid for.
        renew: Makes sure of the permit that the call holds, as `Circuit.acquire` gives one; None: it holds none.
        fresh: No idle connection will do.
    """
    # Flat: every call comes through here, and a Python call costs about a microsecond in situ.
    if cancellation is not None and cancellation.is_cancelled:
        return _CANCELLED
    timeout_s = timeouts.attempt_s
    patience_s, by_deadline = timeouts.acquire_s if may_wait else 0.0, False
    if deadline_at is not None:
        left_s = deadline_at - now
        if left_s <= 0.0:
            return _DEADLINE
        if left_s < timeout_s:
            timeout_s = left_s
        if left_s < patience_s:
            patience_s, by_deadline = left_s, True
    permit = renew(now) if renew is not None else circuit.shared_permit or circuit.acquire(now)
    if isinstance(permit, Refused):
        return permit
    try:
        if pay is not None:
            pay(now)
        return Send(attempt, timeout_s, patience_s, by_deadline, fresh, permit)
    except BaseException:  # an interrupt: nobody holds the permit, and a probe's place must not be lost
        if renew is None:
            circuit.record(permit, _IGNORED, now)
        raise


def settle(
    circuit: Circuit,
    permit: Permit,
    counters: UpstreamCounters,
    label: str,
    now: float,
    duration_s: float,
    took_s: float,
    left_s: float | None,
    own_timeout: bool = False,
) -> int | None:
    """Tell the circuit and the counters of a call that had a good answer at its first attempt. Mutates.

    That is all that an exchange and `record.tally` would have told them.

    Args:
        label: Outcome label of the answer (`2xx`).
        duration_s: Of the attempt; the circuit decides whether that is slow.
        took_s: The whole call.
        left_s: What the call had left of its deadline when it got its connection; None: it has no deadline.
        own_timeout: As in `record.tally`.

    Returns:
        Where the circuit counts the call, as `Circuit.record` answers it.
    """
    # Positional, as every call comes through here: a keyword costs a twentieth of a microsecond.
    place = circuit.record(permit, _SUCCESS, now, duration_s)
    answered = counters.answered
    answered.append((label, took_s, left_s, own_timeout))
    if len(answered) >= MANY:
        counters.add_up()
    return place
