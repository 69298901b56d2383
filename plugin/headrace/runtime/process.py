"""Which process this is, and what has to be renewed in a forked child before anything of the parent's is used.

Python's fork hook runs the renewals. Raw fork(2), as uWSGI does it, skips the hook: so each call
compares `pid` where it resolves its upstream, before it takes any lock, and runs them itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from headrace.observe.isolation import each

pid = os.getpid()
"""The process whose locks and connections are in memory."""

_renewals: list[Callable[[], None]] = []
_lock = threading.Lock()  # held while renewing only, by a child that has just begun


def after_fork(renewal: Callable[[], None]) -> None:
    """Have *renewal* run in every forked child, in the order of these calls. At import only."""
    _renewals.append(renewal)


def renew() -> None:
    """In a forked child: renew everything. Thread-safe; does nothing in a process that has done so."""
    global pid
    with _lock:
        if pid != os.getpid():
            each(_renewals, lambda renewal: renewal(), doing="renew in a forked child what was the parent's")
            pid = os.getpid()


def _hook() -> None:
    global _lock
    _lock = threading.Lock()
    renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hook)
