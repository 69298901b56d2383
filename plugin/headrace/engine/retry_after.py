"""How long an answer asks to wait, turned into seconds at the edge."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

from headrace.policy.plan import RetryAfterFormat, RetryAfterHeader

LONGEST_S = 1e12
"""A longer wait is taken for this. It is finite because records and JSON problems hold it."""

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?", re.ASCII)
_READ_CHARACTERS = 256  # honest headers are shorter; a hostile one must not cost anything


def retry_after_s(
    headers: Mapping[str, str], wanted: Sequence[RetryAfterHeader], *, wall_clock: Callable[[], float]
) -> float | None:
    """Seconds from now that the first usable of *wanted* asks for, or None where none says anything usable.

    At least 0: an instant that has passed means that the time has come. These headers are no lists, but where
    one has several values, the longest wait counts. An instant is compared with the answer's own
    `Date`, since the same clock made both (failures.md 72), or with our clock where there is no `Date`.

    Args:
        headers: Headers of the answer; looked up without regard to case.
        wall_clock: Seconds since the epoch; asked only for an instant in an answer without a `Date`. If the clock
            has jumped, the wait is as wrong as the clock; `retry_after.max` bounds it.
    """

    def now_there() -> float:
        dated = headers.get("Date")
        at = None if dated is None else _instant_s(dated[:_READ_CHARACTERS].strip())
        return wall_clock() if at is None else at

    for one in wanted:
        value = headers.get(one.name)
        if value is not None:
            waits = list(_waits_s(value, one.format, now_there))
            if waits:
                return min(max(0.0, *waits), LONGEST_S)
    return None


def _waits_s(value: str, format: RetryAfterFormat, now_there: Callable[[], float]) -> Iterable[float]:
    # A comma separates the values. It also separates a weekday from its date, which is readable without the weekday.
    for part in value[:_READ_CHARACTERS].split(","):
        text = part.strip()
        if _NUMBER.fullmatch(text):
            yield float(text) if format == "auto" else float(text) - now_there()
        elif format == "auto" and (instant := _instant_s(text)) is not None:
            yield instant - now_there()


def _instant_s(text: str) -> float | None:
    """Seconds since the epoch of an HTTP date, any of the three forms of RFC 9110 §5.6.7, or None."""
    try:
        at = parsedate_to_datetime(text)
        # The form of asctime names no zone; all three forms are UTC. A naive datetime would be read as local time.
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):  # what the parser raises for garbage
        return None
