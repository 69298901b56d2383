"""Durations and sizes as the file writes them: text with a unit."""

from __future__ import annotations

import re

UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"
"""What an editor checks; bounds are the loader's."""

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h)", re.ASCII)
_NEAR = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([A-Za-zµ]*)")
_OTHER_SPELLINGS = {
    "": "s",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "msec": "ms",
    "millis": "ms",
    "milliseconds": "ms",
    "min": "m",
    "mins": "m",
    "minute": "m",
    "minutes": "m",
    "hr": "h",
    "hour": "h",
    "hours": "h",
}


def parse_duration(text: str) -> float:
    """Seconds of *text* such as `250ms`, `1.5s`, `5m`, `1h`.

    One number and one unit, nothing between or around them.

    Raises:
        ValueError: *text* is not a duration. The message does not hold it.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("not a duration")
    number, unit = found.groups()
    # 250 / 1000 is the float nearest to 0.25; 250 * 0.001 need not be.
    return float(number) / 1000 if unit == "ms" else float(number) * UNIT_S[unit]


def format_duration(value_s: float) -> str:
    """*value_s* in the largest unit that leaves no fraction: `250ms`, `1.5s`, `60s`, `5m`.

    It is exact to the nanosecond.
    """
    if value_s == 0:
        return "0s"
    for unit in ("h", "m", "s"):
        count = value_s / UNIT_S[unit]
        if unit == "m" and count < 2:
            continue  # 90s and 60s read better than 1.5m and 1m beside 30s
        if count == int(count) and count * UNIT_S[unit] == value_s:
            return f"{int(count)}{unit}"
    milliseconds = round(value_s * 1000)
    if value_s < 1 and milliseconds and milliseconds / 1000 == value_s:
        return f"{milliseconds}ms"
    return f"{_plain_decimal(value_s)}s"


def nearest_duration(found: object) -> str | None:
    """What the author of *found* may have meant, or None: `4` is `4s`, `5 sec` is `5s`."""
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    match = _NEAR.fullmatch(str(found).strip())
    if match is None:
        return None
    number, unit = match.group(1), match.group(2).lower()
    unit = _OTHER_SPELLINGS.get(unit, unit)
    return f"{number}{unit}" if unit in UNIT_S else None


SIZE_PATTERN = r"^[0-9]+(B|KiB|MiB|GiB)$"
"""What an editor checks; bounds are the loader's."""

_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)", re.ASCII)
_UNIT_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NEAR_SIZE = re.compile(r"([0-9]{1,12})\s*([A-Za-z]*)")
_OTHER_SIZES = {  # in bytes, by IEC 80000-13: a kB is 1000 of them
    "": 1,
    "b": 1,
    "byte": 1,
    "bytes": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}


def parse_size(text: str) -> int:
    """Bytes of *text* such as `512B`, `64KiB`, `10MiB`, `1GiB`.

    Raises:
        ValueError: *text* is not a size. The message does not hold it.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("not a size")
    return int(found.group(1)) * _UNIT_BYTES[found.group(2)]


def format_size(value_bytes: int) -> str:
    """*value_bytes* in the largest unit that leaves no fraction: `64KiB`, `1500B`."""
    for unit in ("GiB", "MiB", "KiB"):
        if value_bytes and value_bytes % _UNIT_BYTES[unit] == 0:
            return f"{value_bytes // _UNIT_BYTES[unit]}{unit}"
    return f"{value_bytes}B"


def nearest_size(found: object) -> str | None:
    """The size that *found* says in another spelling, or None: `65536` is `64KiB`, `64 kB` is `64000B`."""
    if isinstance(found, bool) or not isinstance(found, int | str):
        return None
    match = _NEAR_SIZE.fullmatch(str(found).strip())
    if match is None or match.group(2).lower() not in _OTHER_SIZES:
        return None
    return format_size(int(match.group(1)) * _OTHER_SIZES[match.group(2).lower()])


def _plain_decimal(value: float) -> str:
    # The parser takes nine decimals. repr would show 66.60000000000001 for 1.11m.
    return f"{value:.9f}".rstrip("0").rstrip(".")
