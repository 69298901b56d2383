"""KeyboardInterrupt at a chosen point of a piece of code, on the thread that runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

_FINALIZERS = ("weakref.py", "_weakrefset.py")
"""What these raise, CPython swallows: their callbacks run as part of whatever is under way."""


def interrupted_at(
    point: int, act: Callable[[], object], *, within: tuple[str, ...] | None = None
) -> tuple[bool, bool]:
    """Run *act*, raising KeyboardInterrupt at its *point*-th; whether it got that far, and whether it came out.

    The points are those where CPython looks for signals: the beginning of a Python
    function, and the return from a C function. After a plain store it does not look, nor between the last
    call of a `with` block and the end of it: so a line is no point.

    Args:
        within: Count only what files that end so call, or are called by; None: everything.
    """
    left = point

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event not in ("call", "c_return") or frame.f_code.co_filename.endswith(_FINALIZERS):
            return
        if within is not None and not frame.f_code.co_filename.endswith(within):
            caller = frame.f_back if event == "call" else None
            if caller is None or not caller.f_code.co_filename.endswith(within):
                return
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    came_out = False
    sys.setprofile(note)
    try:
        act()
    except KeyboardInterrupt:
        came_out = True
    finally:
        sys.setprofile(None)
    return left <= 0, came_out
