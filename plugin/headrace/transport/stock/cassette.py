"""Recorders that put a connection class of theirs into urllib3's pools: vcrpy, while a cassette is in use.

Such a connection records what a real one sends, or plays what was recorded. Governed calls go by it as others do, so
that tests with cassettes run the rules as well. It takes the place of a leased connection and is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_STOCK = HTTPConnection


def is_recorder(kind: Any) -> bool:
    """Whether *kind*, a connection class, has a cassette."""
    return getattr(kind, "cassette", None) is not None


def recorder_in_use(scheme: str) -> Any:
    """The recorder's class that stock's pools make connections of now; None: there is no recorder."""
    if HTTPConnectionPool.ConnectionCls is _STOCK:  # nearly always
        return None
    kind = (HTTPSConnectionPool if scheme == "https" else HTTPConnectionPool).ConnectionCls
    return kind if is_recorder(kind) else None


def plays_of(kind: Any) -> Callable[[], bool]:
    """Answers, later, whether the cassette of *kind* has played an answer since now."""
    cassette = kind.cassette
    before = getattr(cassette, "play_count", None)
    return lambda: bool(before is not None and cassette.play_count > before)
