"""What a scripted upstream does with the attempts that reach it, in the words of the file's rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TypeAlias

from headrace.config.check.problems import did_you_mean
from headrace.config.source.units import nearest_duration, parse_duration
from headrace.errors import HeadraceError
from headrace.policy.frozen import frozen
from headrace.policy.outcome import Fault

What: TypeAlias = int | str
"""A status code, or a fault: `dns_failure`, `resolve_timeout`, `connect_failure`, `tls_failure`, `certificate`,
`reset`, `timeout`, `protocol_error`, `pool_timeout`, `pool_rejected`, `cancelled` (the caller goes away meanwhile),
`response_too_large`, `local_error`."""

_FAULTS = {fault.value: fault for fault in Fault}
_TAKE_NO_TIME = frozenset({Fault.POOL_TIMEOUT, Fault.POOL_REJECTED, Fault.LOCAL_ERROR})


class ScriptExhausted(HeadraceError, LookupError):
    """An attempt was made for which the script has no answer."""


@frozen
class Reply:
    """What one attempt meets.

    Attributes:
        what: A status code, or why there is no answer.
        takes_s: When it comes, seconds into the attempt. inf: not before a limit cuts the attempt.
        retry_after_s: The answer's `Retry-After`, seconds from then, or None.
        body: The answer's; empty when there is none.
    """

    what: int | Fault
    takes_s: float
    retry_after_s: float | None
    body: bytes


def reply(what: What, *, takes: str | None, retry_after: str | None, body: bytes) -> Reply:
    """What the test's words stand for.

    Raises:
        ValueError: A word, status or duration is none, or they do not go together.
    """
    meant = _status_or_fault(what)
    if (retry_after is not None or body) and isinstance(meant, Fault):
        option = "body" if retry_after is None else "retry_after"
        raise ValueError(f"{option}= belongs to an answer, and {meant.value!r} is none")
    if takes is not None and meant in _TAKE_NO_TIME:
        raise ValueError(
            f"takes= does not go with {what!r}: how long that takes is up to the file's own limits"
        )
    takes_s = 0.0 if takes is None else seconds(takes)
    if takes is None and meant in (Fault.TIMEOUT, Fault.RESOLVE_TIMEOUT):
        takes_s = inf
    return Reply(meant, takes_s, None if retry_after is None else seconds(retry_after), body)


def seconds(duration: str) -> float:
    """Seconds of *duration*, written as in the file.

    Raises:
        ValueError: It is not text with a unit; the text says what to write.
    """
    try:
        return parse_duration(duration)
    except (TypeError, ValueError):
        near = nearest_duration(duration)
        fix = f"write {near!r}" if near else "write one as in the file, such as '250ms', '2s', '5m'"
        raise ValueError(f"{duration!r} is not a duration; {fix}") from None


def _status_or_fault(what: What) -> int | Fault:
    if isinstance(what, int) and not isinstance(what, bool):
        if 100 <= what <= 599:
            return what
        raise ValueError(f"{what} is no status code: they go from 100 to 599")
    if isinstance(what, str) and what in _FAULTS:
        return _FAULTS[what]
    near = did_you_mean(what, list(_FAULTS)) if isinstance(what, str) else None
    fix = f"did you mean {near!r}?" if near else f"known here: a status code, {', '.join(_FAULTS)}"
    raise ValueError(f"{what!r} is not what an upstream can do; {fix}")


class Script:
    """Replies in their order, and what follows when they are played out. Not thread-safe.

    Attributes:
        waiting: Replies that no attempt has met yet.
    """

    __slots__ = ("_rest", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Reply] = deque()
        self._rest: Callable[[float], Reply] | None = None

    def then_always(self, rest: Callable[[float], Reply]) -> None:
        """Once the replies are played out, answer what *rest* makes of the instant. Mutates."""
        self._rest = rest

    def next(self, at_s: float) -> Reply:
        """What an attempt at *at_s* meets. Mutates.

        Raises:
            ScriptExhausted: Nothing is left, and nothing was said to come after.
        """
        if self.waiting:
            return self.waiting.popleft()
        if self._rest is None:
            raise ScriptExhausted("the script is played out")
        return self._rest(at_s)
