"""gevent that patches the process late: after an instance has made its locks, threads and TLS contexts."""

from __future__ import annotations

import sys

from headrace.observe.events import PatchedLate
from headrace.observe.logs import emit


class LatePatch:
    """Says once that gevent has patched after this was made."""

    def __init__(self) -> None:
        self._is_settled = _has_patched()  # it came first, as it should, or all has been said

    def look(self, now: float) -> None:
        """Look whether it has. Logs."""
        if not self._is_settled and _has_patched():
            self._is_settled = True
            emit(PatchedLate())


def _has_patched() -> bool:
    # Not imported here: the code that patches has imported it.
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("socket")
