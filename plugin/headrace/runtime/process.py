"""Which process this is, and what a forked child has to renew before it uses anything of the parent's.

Python's fork hook runs the renewals. Raw fork(2), as uWSGI does it, skips the hook. So each call compares `pid` when it
resolves its upstream, before it takes any lock, and runs the renewals itself.

`_lock` guards the renewal: threads of a child that begin at once wait until all of it is done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from headrace.observe.isolation import each

pid = os.getpid()
"""The process whose locks and connections are in memory."""

_renewals: list[Callable[[], None]] = []
_lock = threading.Lock()


def after_fork(renewal: Callable[[], None]) -> None:
    """Have *renewal* run in every forked child, in the order of these calls. At import only."""
    _renewals.append(renewal)


def renew() -> None:
    """In a forked child: renew everything, once. Thread-safe; elsewhere it does nothing."""
    global pid
    with _lock:
        if pid != os.getpid():
            each(_renewals, lambda renewal: renewal(), doing="renew in a forked child what was the parent's")
            pid = os.getpid()


def _hook() -> None:
    global _lock  # a thread that is not in this process may have held it
    _lock = threading.Lock()
    renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hook)
