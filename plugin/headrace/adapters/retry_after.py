"""`Retry-After` turned into seconds, at the edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from email.utils import parsedate_to_datetime


def retry_after_s(value: str | None, *, wall_clock: Callable[[], float]) -> float | None:
    """Seconds from now that a `Retry-After` asks for, or None where it says nothing usable.

    A date in the past is 0: the time has come. Negative or garbled values are ignored.

    Args:
        value: Decimal seconds or an HTTP date (RFC 9110 §10.2.3).
        wall_clock: Seconds since the epoch; asked only for a date.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value) if len(value) <= 12 else math.inf  # int() of a megabyte of digits is quadratic
    try:
        at = parsedate_to_datetime(value[:64])
        return max(0.0, at.timestamp() - wall_clock())
    except (TypeError, ValueError, OverflowError):
        return None
