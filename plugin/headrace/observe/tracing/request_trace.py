"""What the span of one inbound request is going to be told."""

from __future__ import annotations

import os
import threading
from typing import Protocol

from opentelemetry.trace import Span


class RequestTrace:
    """What there is to tell of one inbound request. Thread-safe.

    Attributes:
        span: The span that the request is served in, or None as long as none was seen.
        retries: Retries used, by upstream called; guarded by `lock`.
    """

    __slots__ = ("lock", "retries", "span")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.span: Span | None = None
        self.retries: dict[str, int] = {}


class Request(Protocol):
    """An inbound request, as far as it is told of."""

    request_id: str
    told: RequestTrace | None


_making = threading.Lock()


def told_of(request: Request) -> RequestTrace:
    """What is told of *request*. The first call sets it on *request*; several threads may make that call at once."""
    told = request.told
    if told is None:
        with _making:
            told = request.told
            if told is None:
                told = request.told = RequestTrace()
    return told


def _forget_inherited() -> None:
    """In a forked child: the thread that held the lock does not exist here."""
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
