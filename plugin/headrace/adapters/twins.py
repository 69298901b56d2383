"""Each plain error paired with the class that callers of requests or urllib3 already catch.

A call through requests raises the requests twin, a call through urllib3 the urllib3
twin. `except headrace.CircuitOpenError` catches both. All of them pickle.
"""

from __future__ import annotations

import requests
import urllib3.exceptions

from headrace.engine.surface import Twins
from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    DeadlineExceeded,
    IdentityMismatch,
    PoolRejected,
    PoolTimeout,
    ResponseTooLarge,
    StatusError,
    TransportError,
)

FAMILIES: tuple[type[Exception], ...] = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    TransportError,
    StatusError,
)
"""The base classes of what callers of each library catch; the last two are those of awaited calls."""


class RequestsCircuitOpenError(CircuitOpenError, requests.ConnectionError):
    """CircuitOpenError for callers of requests."""


class RequestsDeadlineExceeded(DeadlineExceeded, requests.Timeout):
    """DeadlineExceeded for callers of requests."""


class RequestsPoolTimeout(PoolTimeout, requests.ConnectionError):
    """PoolTimeout for callers of requests."""


class RequestsPoolRejected(PoolRejected, requests.ConnectionError):
    """PoolRejected for callers of requests."""


class RequestsCallCancelled(CallCancelled, requests.ConnectionError):
    """CallCancelled for callers of requests."""


class RequestsResponseTooLarge(ResponseTooLarge, requests.RequestException):
    """ResponseTooLarge for callers of requests."""


class RequestsIdentityMismatch(IdentityMismatch, requests.exceptions.SSLError):
    """IdentityMismatch for callers of requests."""


class Urllib3CircuitOpenError(CircuitOpenError, urllib3.exceptions.HTTPError):
    """CircuitOpenError for callers of urllib3."""


class Urllib3DeadlineExceeded(DeadlineExceeded, urllib3.exceptions.TimeoutError):
    """DeadlineExceeded for callers of urllib3."""


class Urllib3PoolTimeout(PoolTimeout, urllib3.exceptions.EmptyPoolError):
    """PoolTimeout for callers of urllib3."""


class Urllib3PoolRejected(PoolRejected, urllib3.exceptions.EmptyPoolError):
    """PoolRejected for callers of urllib3."""


class Urllib3CallCancelled(CallCancelled, urllib3.exceptions.HTTPError):
    """CallCancelled for callers of urllib3."""


class Urllib3ResponseTooLarge(ResponseTooLarge, urllib3.exceptions.HTTPError):
    """ResponseTooLarge for callers of urllib3."""


class Urllib3IdentityMismatch(IdentityMismatch, urllib3.exceptions.SSLError):
    """IdentityMismatch for callers of urllib3."""


REQUESTS = Twins(
    circuit_open=RequestsCircuitOpenError,
    deadline=RequestsDeadlineExceeded,
    pool_timeout=RequestsPoolTimeout,
    pool_rejected=RequestsPoolRejected,
    cancelled=RequestsCallCancelled,
    too_large=RequestsResponseTooLarge,
    identity=RequestsIdentityMismatch,
)
URLLIB3 = Twins(
    circuit_open=Urllib3CircuitOpenError,
    deadline=Urllib3DeadlineExceeded,
    pool_timeout=Urllib3PoolTimeout,
    pool_rejected=Urllib3PoolRejected,
    cancelled=Urllib3CallCancelled,
    too_large=Urllib3ResponseTooLarge,
    identity=Urllib3IdentityMismatch,
)
