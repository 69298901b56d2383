"""Whether a failed attempt may be followed by another, and out of which budget."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Any, Final

from headrace.policy.breaker.window import Slot, TimeWindow
from headrace.policy.outcome import UPSTREAM_FAULTS, Fault, Outcome
from headrace.policy.plan import BudgetPlan, RetryPlan, UpstreamPlan


class Retriability(StrEnum):
    """What the rules say about a further attempt, before limits and circumstances are asked."""

    RETRIABLE = "retriable"
    UNWANTED = "unwanted"  # `retry_on` does not name the outcome; that includes every success
    LOCAL = "local"  # our own refusal or trouble: another attempt would meet the same
    CERTIFICATE = "certificate"  # the peer is not what it should be, or refuses TLS with us for good: never
    METHOD = "method"  # wanted, but it may have been sent and `methods` does not name the method
    NOT_REPLAYABLE = "not_replayable"  # wanted, but the body can be sent only once


def classify(
    outcome: Outcome, plan: RetryPlan, *, method: str, replayable: bool, keyed: bool = False
) -> Retriability:
    """Whether the rules want, and allow, another attempt after *outcome*.

    Args:
        method: Upper case.
        keyed: The request carries an idempotency key, so its server can tell a repetition.
        replayable: The body is bytes, text or seekable. Asked even when nothing was
            sent: a generator may have been advanced before the connection was made.
    """
    fault = outcome.fault
    if fault is Fault.CERTIFICATE:
        return Retriability.CERTIFICATE
    if fault is not None and fault not in UPSTREAM_FAULTS:
        return Retriability.LOCAL
    if not plan.retry_on.matches(outcome):
        return Retriability.UNWANTED
    never_sent = fault is not None and not outcome.sent
    if method not in plan.methods and not keyed and not never_sent:
        return Retriability.METHOD
    if not replayable:
        return Retriability.NOT_REPLAYABLE
    return Retriability.RETRIABLE


RETRY_AFTER_FROM: Final = 300
"""The lowest status with which an answer may ask for patience: Retry-After has a meaning with 3xx, 429 and 503.

Source: RFC 9110 §10.2.3.
"""

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
"""The header of draft-ietf-httpapi-idempotency-key-header: a caller that sets it says that repetitions are recognised.
"""


def key_header(plan: RetryPlan) -> str:
    """Name of the header by which the upstream can tell a repetition."""
    return IDEMPOTENCY_KEY if plan.idempotency_key is None else plan.idempotency_key.header


def is_keyed(plan: UpstreamPlan, method: str, own: Iterable[str]) -> bool:
    """Whether a call carries an idempotency key: its own, one of the file's `headers`, or one that is made for it.

    False where the method may be repeated in any case: then no key is needed.

    Args:
        method: Upper case.
        own: Names of the headers that the call itself sets.
    """
    key = plan.retry.idempotency_key
    if method in plan.retry.methods:
        return False
    if key is not None and method in key.methods:
        return True
    return sets_key(plan, own)


def sets_key(plan: UpstreamPlan, own: Iterable[str]) -> bool:
    """Whether the key is set already, by the call (*own*: names of its headers) or by the file. Then none is made."""
    header = key_header(plan.retry).lower()
    return any(name.lower() == header for name in (*own, *dict(plan.headers)))


def is_resendable(outcome: Outcome, *, repeatable: bool) -> bool:
    """Whether a failed send is repeated at once on a fresh connection, as if it had not happened.

    A pooled connection that the peer closed meanwhile looks like this: reset, and not a
    byte of an answer. The repetition is no further attempt and costs no budget. RFC 9110 §9.2.2
    allows it for what may be repeated, and the upstream has done no work yet.

    Args:
        repeatable: The method is one of `retry.methods`, and the body can be sent again.
    """
    return outcome.fault is Fault.RESET and outcome.reused and not outcome.answered and repeatable


class RetryAllowance(list[None]):
    """Retries that one inbound request may still cause, over all its outbound calls: an item is a retry.

    Shared by the request's threads and tasks. Exact without a lock: `pop` and `append`
    of a list are single steps, with and without the GIL. Each inbound request makes one, and a list is made in half
    the time of a deque.
    """

    __slots__ = ()

    def take(self) -> bool:
        """Use up one retry; False when none is left. Mutates."""
        try:
            self.pop()
        except IndexError:
            return False
        return True

    def put_back(self) -> None:
        """Undo a `take`: the retry was not made after all. Mutates."""
        self.append(None)


class RehearsedAllowance(RetryAllowance):
    """What a request would have left if the retries that are only rehearsed were made: an item is one of them.

    Rehearsed retries take nothing from *real*: that pays for the retries that are made.
    """

    __slots__ = ("_real",)

    def __init__(self, real: RetryAllowance) -> None:
        super().__init__()
        self._real = real

    def take(self) -> bool:
        """Rehearse one retry; False when none would be left. Mutates."""
        if len(self) >= len(self._real):
            return False
        self.append(None)
        return True

    def put_back(self) -> None:
        """Undo a `take`. Mutates."""
        self.pop()


_SLICES = 10
_ROUNDING = 1e-9  # 0.29 × 100 is 28.999…: a token earned exactly must not be lost to binary fractions


def _window(plan: BudgetPlan) -> TimeWindow:
    return TimeWindow(plan.ttl_s, n_slices=_SLICES + 1, slice_s=plan.ttl_s / _SLICES)


class RetryBudget:
    """Tokens that retries of one upstream are paid from; shared by all its callers.

    Each first attempt earns `ratio` of a retry; a retry costs one. Both are forgotten
    after `ttl`. `min_per_second · ttl` retries are there without any traffic. So in
    any `ttl` seconds that end with a retry, retries are at most ratio × first attempts +
    min_per_second · ttl. In any other `ttl` seconds the same holds with the first attempts of 2 · ttl.

    Thread-safe with a plain *lock*, held for arithmetic only. Most deposits are counted without it, in the `Slot` of
    the window's present slice: the order in which they come says nothing.

    Source: Finagle RetryBudget and its leaky TokenBucket. Finagle forgets both in slices of
    ttl/10. Here a retry is remembered for at least `ttl`, and nothing older than `ttl` pays for
    one: otherwise the promise would hold only approximately.
    """

    __slots__ = ("_last_place", "_lock", "_plan", "_slot", "_window")

    def __init__(self, plan: BudgetPlan, *, lock: AbstractContextManager[Any] | None = None) -> None:
        self._plan = plan
        self._lock: AbstractContextManager[Any] = nullcontext() if lock is None else lock
        self._window = _window(plan)
        self._slot: Slot | None = None  # the window's; replaced under the lock, read without it
        self._last_place = -1

    def apply(self, plan: BudgetPlan, now: float) -> None:
        """Go by *plan* from now on. What was earned and spent stays known, as far as `ttl` reaches. Mutates."""
        with self._lock:
            if plan.ttl_s != self._plan.ttl_s:
                window = _window(plan)
                window.take_over(self._window, now)
                self._window, self._slot = window, None
            self._plan = plan

    def deposit(self, now: float) -> None:
        """Count a first attempt. Mutates."""
        slot = self._slot
        if slot is not None and slot.begins_at <= now < slot.ends_at:
            slot.tick()
            return
        with self._lock:
            window, before = self._window, self._last_place
            self._last_place = place = window.add(now)
            self._slot = window.open() if place == before else window.slot  # they come often enough for one

    def try_withdraw(self, now: float) -> bool:
        """Pay for one retry; False, and nothing changed, when the budget is spent. Mutates."""
        with self._lock:
            if self._tokens(now) < 1.0 - _ROUNDING:
                return False
            self._window.add(now, 1, 0, 0)
            self._slot = self._window.slot
            return True

    def balance(self, now: float) -> float:
        """Retries that could be paid now; below 0 when deposits expired before the retries that they paid for."""
        with self._lock:
            return self._tokens(now)

    def __repr__(self) -> str:
        return f"<RetryBudget: {self._window.marked} retries over {self._window.calls_so_far} first attempts>"

    def _tokens(self, now: float) -> float:
        plan, window = self._plan, self._window
        window.advance(now)
        self._slot = window.slot  # None where it has moved on
        earned = plan.ratio * (window.calls - window.oldest_calls)
        return plan.min_per_second * plan.ttl_s + earned - window.marked
