"""An inbound request whose client may leave, and the calls that it has made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import requests
import urllib3

import headrace
from headrace.policy.retry import RetryAllowance
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.inbound import Inbound, inbound_var
from support.governed import reason_of
from support.surfaces import Surface
from support.waiting import wait_until

PATIENT = "    timeouts: {deadline: 60s, attempt: 60s, acquire: 60s, read: 60s, connect: 60s}\n"
ENOUGH_S = 10.0
"""Far less than the patience of the calls, far more than a machine under load needs."""


class Request:
    """An inbound request whose calls are made on threads of their own."""

    def __init__(self, hr: headrace.Headrace) -> None:
        self.cancellation = Cancellation()
        self._inbound = Inbound(
            hr, hr.snapshot, "mine", RetryAllowance([None] * 10), cancellation=self.cancellation
        )

    def start(self, act: Callable[[], Any]) -> Outbound:
        """*act* as part of it, on a thread."""
        return Outbound(self, act)

    def within(self, act: Callable[[], Any]) -> Any:
        """What *act* returns as part of it."""

        def bound() -> Any:
            inbound_var.set(self._inbound)
            return act()

        return copy_context().run(bound)


class Outbound:
    """An act on a thread; what it returned, or raised."""

    def __init__(self, request: Request, act: Callable[[], Any]) -> None:
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, args=(request, act))
        self._thread.start()

    def _run(self, request: Request, act: Callable[[], Any]) -> None:
        try:
            self._result = request.within(act)
        except Exception as error:
            self._result = error

    def outcome(self) -> Any:
        self._thread.join(ENOUGH_S)
        assert not self._thread.is_alive(), "it goes on"
        return self._result


def assert_cancelled(error: Any, call: Surface) -> None:
    assert isinstance(error, headrace.CallCancelled)
    family = requests.ConnectionError if call.library == "requests" else urllib3.exceptions.HTTPError
    assert isinstance(error, family)
    assert reason_of(error) == "cancelled"
    assert error.request_id == "mine"
    assert 'upstream "billing"' in str(error)


def assert_pool_is_whole(hr: headrace.Headrace) -> None:
    leases = hr.snapshot.upstream("billing").endpoint.pool.leases
    wait_until(lambda: (leases.view().inuse, leases.view().waiting) == (0, 0), what="nothing in use")
