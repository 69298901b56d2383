"""Whether the body of a request can be sent again, and putting it back to where it began.

Bytes and text always can, files if they can seek. Nothing else can: an iterator that is
used up would go out as an empty body, and the server could not tell (failures.md 13).
"""

from __future__ import annotations

from typing import Any


def position_of(body: Any) -> tuple[bool, int | None]:
    """Whether *body* can be sent again from where it begins now, and where that is in a file."""
    if body is None or isinstance(body, (bytes, str, bytearray, memoryview)):
        return True, None
    try:  # a caller's object: whatever it raises, the call is still sent once
        # An object that is no file may have inherited `seek` and `tell`: a urllib3 response, a pipe.
        can_seek = body.seekable() if hasattr(body, "seekable") else hasattr(body, "seek")
        begins_at = body.tell() if can_seek else None
    except Exception:
        return False, None
    return isinstance(begins_at, int), begins_at


def rewind(body: Any, begins_at: int | None) -> bool:
    """Put a file back to *begins_at*. False if that fails (it was closed meanwhile, say). Mutates *body*."""
    if begins_at is None:
        return True
    try:
        body.seek(begins_at)
        return bool(body.tell() == begins_at)
    except Exception:
        return False
