"""Durations and sizes as the file writes them: text with a unit."""

from __future__ import annotations

import re
from fractions import Fraction

UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"
"""What an editor checks; bounds are the loader's."""

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h)", re.ASCII)


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


_NUMBER = r"(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+|[0-9]+,[0-9]{1,2})(?:[eE][+-]?[0-9]{1,2})?"
"""A number as people write it. A comma before three digits may group thousands, so it is none here."""

# Not compiled here: only a refusal asks for these, and they were 1 ms of each import.
_PART = rf"({_NUMBER})\s*([A-Za-zµμ]+)(?:[\s,]+(?:and\s+)?)?"
_ISO = (  # ISO 8601; its years and months have no length of their own
    r"(?i:P(?:([0-9.,]+)W)?(?:([0-9.,]+)D)?(?:T(?:([0-9.,]+)H)?(?:([0-9.,]+)M)?(?:([0-9.,]+)S)?)?)"
)
_CLOCK = r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]+)?)"
_UNITS_S = {
    Fraction(1, 10**9): ("ns",),
    Fraction(1, 10**6): ("us", "µs", "μs", "usec", "usecs", "micros", "microsecond", "microseconds"),
    Fraction(1, 1000): ("ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds"),
    Fraction(1): ("s", "sec", "secs", "second", "seconds"),
    Fraction(60): ("m", "min", "mins", "minute", "minutes"),
    Fraction(3600): ("h", "hr", "hrs", "hour", "hours"),
    Fraction(24 * 3600): ("d", "day", "days"),
    Fraction(7 * 24 * 3600): ("w", "week", "weeks"),
}
_SPELLINGS_S = {word: unit_s for unit_s, words in _UNITS_S.items() for word in words}
_OURS = {Fraction(1, 1000): "ms", Fraction(1): "s", Fraction(60): "m", Fraction(3600): "h"}
_ZERO = Fraction(0)
_MOST_CHARACTERS = 60  # nobody writes a longer one


def nearest_duration(found: object) -> str | None:
    """The duration that *found* says in another spelling, or None: `5 sec` is `5s`, `1m30s` and `PT1M30S` are `90s`.

    It is exactly as long. A number without a unit is taken for seconds. `1:30` may be minutes or hours, and is none.
    """
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    text = str(found).strip()
    if len(text) > _MOST_CHARACTERS:
        return None
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", text):
        return f"{text}s"
    part = re.fullmatch(_PART, text)
    if part is not None and (unit := _OURS.get(_SPELLINGS_S.get(part[2].lower(), _ZERO))):
        same = f"{part[1]}{unit}"
        if _DURATION.fullmatch(same):
            return same  # in the unit that its author has chosen
    total_s = _total_s(text)
    if total_s is None:
        return None
    exact = format_duration(float(total_s))
    return exact if _total_s(exact) == total_s else None


def _total_s(text: str) -> Fraction | None:
    clock = re.fullmatch(_CLOCK, text)
    if clock is not None:
        return sum(
            (_number(part) * unit for part, unit in zip(clock.groups(), (3600, 60, 1), strict=True)), _ZERO
        )
    iso = re.fullmatch(_ISO, text)
    if iso is not None:
        units = (7 * 24 * 3600, 24 * 3600, 3600, 60, 1)
        parts = [(part, unit) for part, unit in zip(iso.groups(), units, strict=True) if part]
        if not parts or not all(re.fullmatch(r"[0-9]+(?:[.,][0-9]+)?", part) for part, _ in parts):
            return None
        return sum((_number(part) * unit for part, unit in parts), _ZERO)
    total, before, end = _ZERO, None, 0
    while end < len(text):
        found = re.compile(_PART).match(text, end)
        unit_s = None if found is None else _SPELLINGS_S.get(found[2].lower())
        if found is None or unit_s is None or (before is not None and unit_s >= before):
            return None
        total, before, end = total + _number(found[1]) * unit_s, unit_s, found.end()
    return None if before is None else total


def _number(text: str) -> Fraction:
    return Fraction(
        text.replace(",", ".").replace("_", "").removesuffix(".").replace(".e", "e").replace(".E", "e")
    )


SIZE_PATTERN = r"^[0-9]+(B|KiB|MiB|GiB)$"
"""What an editor checks; bounds are the loader's."""

_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)", re.ASCII)
_UNIT_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NEAR_SIZE = rf"({_NUMBER})\s*([A-Za-z]*)"
_OTHER_SIZES = {  # in bytes, by IEC 80000-13: a kB is 1000 of them. A bare k, m or g may be either
    "": 1,
    "b": 1,
    "byte": 1,
    "bytes": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
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
    if isinstance(found, bool) or not isinstance(found, int | str) or len(str(found)) > _MOST_CHARACTERS:
        return None
    match = re.fullmatch(_NEAR_SIZE, str(found).strip())
    if match is None or match[2].lower() not in _OTHER_SIZES:
        return None
    size = _number(match[1]) * _OTHER_SIZES[match[2].lower()]
    return format_size(int(size)) if size.denominator == 1 else None


def _plain_decimal(value: float) -> str:
    # The parser takes nine decimals. repr would show 66.60000000000001 for 1.11m.
    return f"{value:.9f}".rstrip("0").rstrip(".")
