"""What an explicit `timeout=` of a call means for its limits."""

from __future__ import annotations

from typing import Any, Final

from urllib3.util.timeout import _DEFAULT_TIMEOUT, Timeout

from headrace.engine.timeouts import with_asked
from headrace.policy.plan import NO_LIMIT_S, AskedTimeout, TimeoutPlan
from headrace.runtime.upstream import Upstream

NOT_GIVEN: Any = _DEFAULT_TIMEOUT
"""urllib3's word for a timeout that nobody has given: with urllib3, None is one."""


def timeouts_of_call(plan: TimeoutPlan, timeout: Any) -> TimeoutPlan:
    """The limits of one call: *plan*, changed by what the call's explicit *timeout* asks for.

    A timeout is silence, as requests documents it: c for connecting, r for reading. It takes the place of `connect`
    and `read`, up or down. As in urllib3, c holds for TCP and once more for the TLS handshake; r is
    also how long sending may stall. `attempt` is raised to c + r, written or not, and never lowered: a caller
    that bears that silence bears an attempt of that length. So is a `deadline` that is a default; a written one
    stays, above all. A written None is no limit of that kind. urllib3's `total` bounds an attempt as
    it says, and it stands for c and r where they are not given. Where the file says `caller: ignore`, nothing of this
    holds.

    Args:
        timeout: As requests and urllib3 take it: seconds, (connect, read), or a Timeout. None: no limit of any kind,
            as in urllib3. What stands for "not given" there, `Timeout.DEFAULT_TIMEOUT`, changes nothing.

    Raises:
        ValueError: Not a timeout, in the words of urllib3.
    """
    if timeout is NOT_GIVEN:
        return plan
    if isinstance(timeout, tuple):
        try:
            connect, read = timeout
        except ValueError:
            raise ValueError(
                f"Invalid timeout {timeout}. Pass a (connect, read) timeout tuple, "
                f"or a single float to set both timeouts to the same value."
            ) from None
        timeout = Timeout(connect=connect, read=read)
    elif not isinstance(timeout, Timeout):
        timeout = Timeout(connect=timeout, read=timeout)
    asked = AskedTimeout(
        _seconds(timeout._connect),
        _seconds(timeout._read),
        None if timeout.total is None else _seconds(timeout.total),  # no total is the default
    )
    if asked.connect_s is asked.read_s is asked.total_s is None:
        return plan
    return with_asked(plan, asked)


_PLAIN: Final = frozenset({float, int, type(None), type(NOT_GIVEN)})  # no bool: it equals a number
_MAKER: Final = "timeouts"
_MOST: Final = 64  # callers who work out what is left of their time never ask for the same twice


def limits_of(upstream: Upstream, timeout: Any) -> TimeoutPlan:
    """`timeouts_of_call` for the plan of *upstream*, whose answers are kept: one that is new takes 30 calls."""
    kind: Any = type(timeout)
    asked: tuple[Any, ...]
    if kind is Timeout:
        asked = kind, timeout._connect, timeout._read, timeout.total
        if asked[1] is asked[2] is NOT_GIVEN and asked[3] is None:
            return upstream.plan.timeouts
    elif kind is tuple and len(timeout) == 2:
        asked = kind, timeout[0], timeout[1], None
    else:
        asked = kind, timeout, None, None
    if not (type(asked[1]) in _PLAIN and type(asked[2]) in _PLAIN and type(asked[3]) in _PLAIN):
        return timeouts_of_call(upstream.plan.timeouts, timeout)
    known = upstream.compiled.get(_MAKER)
    if known is None:
        known = upstream.compiled[_MAKER] = {}
    limits: TimeoutPlan | None = known.get(asked)
    if limits is None:
        limits = timeouts_of_call(upstream.plan.timeouts, timeout)
        if len(known) < _MOST:
            known[asked] = limits
    return limits


def _seconds(value: Any) -> float | None:
    """Seconds; None where nothing was said (urllib3's sentinel)."""
    if value is None:
        return NO_LIMIT_S
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return min(float(value), NO_LIMIT_S) if is_number else None
