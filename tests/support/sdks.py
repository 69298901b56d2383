"""SDKs with retries above their HTTP library, as the real ones make their calls: written after their behaviour.

`StripeLike`: a requests session per thread, an idempotency key of its own on POST,
`max_network_retries` around `session.request`. `BotocoreLike`: urllib3 with pool
classes of its own, `retries=False` below and its own loop above, bodies rewound by itself.
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

import requests
import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.retry import Retry


class SdkConnectionError(Exception):
    """The call could not be made; `__cause__` is what the HTTP library raised."""


class SdkApiError(Exception):
    """The service answered with an error."""

    def __init__(self, status: int, headers: Any) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers


class StripeLike:
    """A client as stripe's: it retries connection errors, 409 and 5xx, and heeds `Stripe-Should-Retry`.

    Attributes:
        tries: How many calls of requests it has made.
    """

    def __init__(self, base: str, *, max_network_retries: int = 0) -> None:
        self._base = base
        self._max_network_retries = max_network_retries
        self._local = threading.local()
        self.tries = 0

    def charge(self, amount: int) -> dict[str, Any]:
        """POST /charges; raises SdkApiError or SdkConnectionError."""
        headers = {"Idempotency-Key": str(uuid.uuid4()), "Authorization": "Bearer sk_test"}
        return self._request("POST", "/charges", headers, {"amount": amount})

    def balance(self) -> dict[str, Any]:
        """GET /balance; the same errors."""
        return self._request("GET", "/balance", {"Authorization": "Bearer sk_test"}, None)

    def _request(self, method: str, path: str, headers: dict[str, str], data: Any) -> dict[str, Any]:
        retries = 0
        while True:
            response, error = None, None
            try:
                response = self._send(method, path, headers, data)
            except SdkConnectionError as caught:
                error = caught
            if self._should_retry(response, error, retries):
                retries += 1
                continue
            if error is not None:
                raise error
            assert response is not None
            if response.status_code >= 400:
                raise SdkApiError(response.status_code, response.headers)
            return {"body": response.content, "response": response}

    def _send(self, method: str, path: str, headers: dict[str, str], data: Any) -> requests.Response:
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        self.tries += 1
        try:
            response: requests.Response = session.request(
                method, self._base + path, headers=headers, data=data, timeout=80
            )
            response.content  # noqa: B018 - as the real one reads it
            return response
        except requests.RequestException as error:
            raise SdkConnectionError(f"Unexpected error communicating: {type(error).__name__}") from error

    def _should_retry(
        self, response: requests.Response | None, error: SdkConnectionError | None, retries: int
    ) -> bool:
        if retries >= self._max_network_retries:
            return False
        if error is not None:
            return isinstance(error.__cause__, (requests.Timeout, requests.ConnectionError))
        assert response is not None
        told = response.headers.get("stripe-should-retry")
        if told is not None:
            return bool(told == "true")
        return response.status_code == 409 or response.status_code >= 500

    def close(self) -> None:
        session = getattr(self._local, "session", None)
        if session is not None:
            session.close()


class _OwnHTTPPool(HTTPConnectionPool):
    pass


class _OwnHTTPSPool(HTTPSConnectionPool):
    pass


class BotocoreLike:
    """A client as botocore's: `legacy` retries, so up to `max_attempts` tries of urllib3.

    Attributes:
        tries: How many calls of urllib3 it has made.
    """

    def __init__(self, base: str, *, max_attempts: int = 5) -> None:
        self._base = base
        self._max_attempts = max_attempts
        self._manager = urllib3.PoolManager(maxsize=10, timeout=urllib3.Timeout(connect=60, read=60))
        self._manager.pool_classes_by_scheme = {"http": _OwnHTTPPool, "https": _OwnHTTPSPool}
        self.tries = 0

    def put(self, key: str, body: Any) -> Any:
        """PUT of an object; raises SdkApiError or SdkConnectionError."""
        begins_at = body.tell() if hasattr(body, "tell") else None
        for attempt in range(1, self._max_attempts + 1):
            if begins_at is not None:
                body.seek(begins_at)
            try:
                response = self._send("PUT", f"/{key}", body)
            except urllib3.exceptions.HTTPError as error:
                if attempt == self._max_attempts:
                    raise SdkConnectionError("Could not connect to the endpoint") from error
                continue
            if response.status < 500:
                return response
            if attempt == self._max_attempts:
                raise SdkApiError(response.status, response.headers)
        raise AssertionError("unreachable")

    def _send(self, method: str, path: str, body: Any) -> Any:
        self.tries += 1
        response = self._manager.connection_from_url(self._base).urlopen(
            method=method,
            url=path,
            body=body,
            headers={"User-Agent": "Botocore/1"},
            retries=Retry(False),
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )
        response.read()
        return response

    def close(self) -> None:
        self._manager.clear()
