"""W3C Trace Context: which `traceparent` and `tracestate` of a caller are fit to be passed on.

Source: https://www.w3.org/TR/trace-context/, sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

Trace = tuple[tuple[str, str], ...]
"""Headers to pass on, valid: `traceparent`, and perhaps `tracestate`; or none."""

MAX_BYTES = 512
"""Bytes of a tracestate that every vendor has to accept (section 3.3.1.5). A traceparent of a later version may
be no longer."""

_MAX_MEMBERS = 32
_LONG_MEMBER = 128  # longer members are the first to go

_IDS = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# Version 00 ends after the flags; a later one may go on behind another dash; ff is forbidden.
_TRACEPARENT = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-[\x21-\x7e]*)?")
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


def trace_of(traceparents: Sequence[str], tracestates: Sequence[str]) -> Trace:
    """The caller's trace headers that are passed on.

    Two traceparents contradict each other, and a tracestate without a valid traceparent means nothing.
    """
    if len(traceparents) != 1 or trace_id_of(traceparents[0]) is None:
        return ()
    state = joined_tracestate(tracestates) if tracestates else None
    if state is None:
        return ((TRACEPARENT, traceparents[0]),)
    return (TRACEPARENT, traceparents[0]), (TRACESTATE, state)


def trace_id_of(traceparent: str) -> str | None:
    """The trace id in *traceparent*, 32 hex digits, or None when it is not valid."""
    if len(traceparent) > MAX_BYTES or _TRACEPARENT.fullmatch(traceparent) is None:
        return None
    return traceparent[3:35]


def joined_tracestate(values: Sequence[str]) -> str | None:
    """The `tracestate` headers *values* as one, or None when there is none worth passing on.

    One malformed member, or more than 32 members, and all of it is dropped, as vendors do.
    Above 512 bytes, members of more than 128 bytes go first, then the last ones. Only whole members are dropped.
    """
    members = [member.strip(" \t") for value in values for member in value.split(",")]
    members = [member for member in members if member]
    if len(members) > _MAX_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return None
    if _length(members) > MAX_BYTES:
        members = [member for member in members if len(member) <= _LONG_MEMBER]
    while members and _length(members) > MAX_BYTES:
        members.pop()
    return ",".join(members) or None


def _length(members: Sequence[str]) -> int:
    return sum(map(len, members)) + len(members) - 1
