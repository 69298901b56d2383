"""Both interfaces, and errors as governed calls let them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3.exceptions

from headrace.adapters.twins import REQUESTS, URLLIB3
from headrace.policy.decision import EndReason
from headrace.policy.record import Record
from support.gateways import AsgiGateway, Gateway, Handler, WsgiGateway

Serve = Callable[[Handler, Any], Gateway]


@pytest.fixture(params=[AsgiGateway, WsgiGateway], ids=["asgi", "wsgi"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """Serves a handler behind our middleware, once through each interface."""
    gateway: Serve = request.param
    return gateway


def with_record(
    exc: Exception, *, request_id: str | None = "of-the-call", retry_after_s: float | None = None
) -> Exception:
    """*exc* as headrace lets it out."""
    exc.headrace = Record(  # type: ignore[attr-defined]
        upstream="billing",
        method="GET",
        request_id=request_id,
        reason=EndReason.ATTEMPTS,
        retry_after_s=retry_after_s,
        config_digest="0" * 64,
        _outcomes=[],
        _verdicts=[],
    )
    return exc


SECRET_URL = "https://user:hunter2@billing.internal/pay?token=hunter2"

ERRORS = [
    pytest.param(
        lambda: REQUESTS.circuit_open(SECRET_URL, upstream="billing", retry_after_s=2.3),
        503,
        "circuit_open",
        "3",
        id="requests: circuit open",
    ),
    pytest.param(
        lambda: URLLIB3.circuit_open(SECRET_URL, upstream="billing", retry_after_s=0.0),
        503,
        "circuit_open",
        "1",
        id="urllib3: circuit open, a probe is due",
    ),
    pytest.param(
        lambda: REQUESTS.pool_timeout(SECRET_URL, upstream="billing"),
        503,
        "pool_full",
        "1",
        id="pool timeout",
    ),
    pytest.param(
        lambda: URLLIB3.pool_rejected(SECRET_URL, upstream="billing"),
        503,
        "pool_full",
        "1",
        id="pool rejected",
    ),
    pytest.param(
        lambda: REQUESTS.deadline(SECRET_URL, upstream="billing", deadline_s=15.0),
        504,
        "timeout",
        None,
        id="deadline",
    ),
    pytest.param(lambda: requests.ReadTimeout(SECRET_URL), 504, "timeout", None, id="requests: read timeout"),
    pytest.param(
        lambda: requests.ConnectTimeout(SECRET_URL), 504, "timeout", None, id="requests: connect timeout"
    ),
    pytest.param(
        lambda: urllib3.exceptions.ReadTimeoutError(None, SECRET_URL, SECRET_URL),  # type: ignore[arg-type]
        504,
        "timeout",
        None,
        id="urllib3: read timeout",
    ),
    pytest.param(
        lambda: urllib3.exceptions.MaxRetryError(
            None,  # type: ignore[arg-type]
            SECRET_URL,
            urllib3.exceptions.ConnectTimeoutError(SECRET_URL),
        ),
        504,
        "timeout",
        None,
        id="urllib3: a timeout wrapped",
    ),
    pytest.param(
        lambda: requests.ConnectionError(SECRET_URL), 502, "upstream_failed", None, id="requests: reset"
    ),
    pytest.param(
        lambda: requests.exceptions.SSLError(SECRET_URL), 502, "upstream_failed", None, id="requests: tls"
    ),
    pytest.param(
        lambda: urllib3.exceptions.ProtocolError(SECRET_URL),
        502,
        "upstream_failed",
        None,
        id="urllib3: protocol",
    ),
]
"""(make, status, word, Retry-After)."""
