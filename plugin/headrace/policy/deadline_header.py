"""A deadline on its way between services: how a header says what is left, and when it is not believed."""

from __future__ import annotations

import re

from headrace.policy.breaker.window import TimeWindow
from headrace.policy.plan import InboundDeadlinePlan

GRPC_HEADER = "grpc-timeout"
"""The header with gRPC's values: an integer and a unit letter, instead of seconds."""

_LONGEST_TEXT = 32  # more digits than a double can tell apart; a longer text is no duration
_SECONDS = re.compile(r"(-?)([0-9]+(?:\.[0-9]+)?)(ms)?")
_GRPC = re.compile(r"([0-9]{1,8})([HMSmun])")
_GRPC_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_GRPC_MOST = 99_999_999


def parse_remaining_s(text: str, *, is_grpc: bool) -> float | None:
    """Seconds left by *text*, or None when it cannot be read.

    0 means that the time was over when the caller sent it. A caller that rounds what is left of
    an overrun deadline writes `-0.000`: that is 0 too. Any other negative value is nonsense. So
    are NaN, infinity, exponents and units that the header does not have.

    Args:
        is_grpc: The header is `grpc-timeout`: an integer of at most 8 digits and one of H M S m u n,
            as gRPC over HTTP/2 defines it. Otherwise decimal seconds, or milliseconds followed by `ms`.
    """
    if len(text) > _LONGEST_TEXT:
        return None
    if is_grpc:
        found = _GRPC.fullmatch(text)
        return None if found is None else int(found[1]) * _GRPC_UNIT_S[found[2]]
    found = _SECONDS.fullmatch(text)
    if found is None:
        return None
    value = float(found[2])
    if found[1] and value:
        return None
    return value / 1000 if found[3] else value


def format_remaining(remaining_s: float, *, is_grpc: bool) -> str:
    """*remaining_s* for the header: seconds with three decimals; whole milliseconds under `grpc-timeout`.

    It is rounded down, so that no more is promised than there is. It is never rounded to 0: the attempt is
    being made, and an upstream that refused it as too late would be blamed for that.
    """
    left_ms = max(int(remaining_s * 1000), 1)
    if not is_grpc:
        return f"{left_ms // 1000}.{left_ms % 1000:03}"
    return f"{left_ms}m" if left_ms <= _GRPC_MOST else f"{min(left_ms // 1000, _GRPC_MOST)}S"


def allowed_s(plan: InboundDeadlinePlan | None, said_s: float | None) -> float | None:
    """How long a request's caller waits, seconds from when it came, or None for no deadline.

    Args:
        plan: None: the file has no rule, and the caller's word holds.
        said_s: What is left by the caller's word, above 0; None: nothing readable.
    """
    if plan is None:
        return said_s
    return plan.default_s if said_s is None else min(said_s, plan.max_s)


class ExpiryGuard:
    """Whether a request whose deadline is already past may be refused.

    A few such requests are refused: their senders have given up. Many at once mean that a clock, a
    unit or a proxy is wrong, and refusing all of them would be an outage. So at every refusal, the
    refusals of the last `period_s`, this one included, are at most `share` of the requests of that
    time. Where fewer than 1 / share requests come in that time, none is refused.

    The requests are counted over a little less than the period (whole slices), the refusals over
    a little more. So the bound holds for the period itself.

    Not thread-safe: the owner's lock guards it.

    Source: Finagle's DeadlineFilter, rejectPeriod 10 s and maxRejectFraction 0.2.
    """

    __slots__ = ("_refused", "_requests", "_share")

    def __init__(self, *, share: float = 0.2, period_s: float = 10.0) -> None:
        self._share = share
        self._requests = TimeWindow(period_s)
        self._refused = TimeWindow(period_s, n_slices=11, slice_s=period_s / 10)

    def count(self, now: float) -> None:
        """Count one request, refused or not. Mutates."""
        self._requests.add(now, 1, 0)

    def may_refuse(self, now: float) -> bool:
        """Whether the request just counted may be refused; if so, the refusal is counted. Mutates."""
        self._requests.advance(now)
        self._refused.advance(now)
        if self._refused.calls + 1 > self._share * self._requests.calls:
            return False
        self._refused.add(now, 1, 0)
        return True

    @property
    def is_exhausted(self) -> bool:
        """Whether another refusal is barred by the refusals before it, and not by too few requests."""
        return self._refused.calls > 0
