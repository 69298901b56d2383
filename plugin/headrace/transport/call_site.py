"""Which line of the application a call comes from."""

from __future__ import annotations

import sys

_LIBRARIES = ("headrace.", "requests.", "urllib3.", "httpx.", "httpx2.")


def call_site() -> str:
    """`file:line` of the nearest caller outside the HTTP libraries and headrace."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        if not f"{module}.".startswith(_LIBRARIES):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
