"""Who calls in the storm: each library as its documentation says, with three retries where it wants a number.

A side is given the URL that its clients call and yields what one call is; a call
returns the record of headrace, or None. Every side retries a 503 and gives up after
four attempts (httpx-retries by itself would after eleven). Pauses and jitter are
each library's defaults; only headrace has any.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import httpx_retries
import requests
import tenacity
import urllib3
from prometheus_client import CollectorRegistry

import headrace

CLIENTS_MOST = 200
Call = Callable[[], Any]
Side = Callable[[str], AbstractContextManager[Call]]

RULES = """\
version: 1
install: {{requests: false}}
upstreams:
  storm:
    base_url: {url}
    retry: {{max_attempts: 4}}
    circuit_breaker: {{mode: disabled}}
"""


@contextmanager
def governed(url: str) -> Iterator[Call]:
    """headrace with the default budget, and as many attempts as the others."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        file.write_text(RULES.format(url=url))
        with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
            storm = hr.upstream("storm")

            def call() -> Any:
                try:
                    return storm.get("/").headrace
                except requests.RequestException as error:
                    return error.headrace  # type: ignore[attr-defined]

            yield call


@contextmanager
def by_urllib3(url: str) -> Iterator[Call]:
    """`Retry(3)`, told which answers are failures."""
    retry = urllib3.Retry(3, status_forcelist=[502, 503, 504])
    with urllib3.PoolManager(maxsize=CLIENTS_MOST, retries=retry) as manager:

        def call() -> None:
            with suppress(urllib3.exceptions.HTTPError):
                manager.request("GET", url)

        yield call


@contextmanager
def by_tenacity(url: str) -> Iterator[Call]:
    """`stop_after_attempt(4)` around requests."""
    with requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=CLIENTS_MOST))

        @tenacity.retry(stop=tenacity.stop_after_attempt(4))
        def insist() -> None:
            session.get(url).raise_for_status()

        def call() -> None:
            with suppress(tenacity.RetryError):
                insist()

        yield call


@contextmanager
def by_httpx_retries(url: str) -> Iterator[Call]:
    """The transport, with `Retry(total=3)`."""
    limits = httpx.Limits(max_connections=CLIENTS_MOST, max_keepalive_connections=CLIENTS_MOST)
    retry = httpx_retries.Retry(total=3)
    transport = httpx_retries.RetryTransport(httpx.HTTPTransport(limits=limits), retry=retry)
    with httpx.Client(transport=transport) as client:

        def call() -> None:
            with suppress(httpx.HTTPError):
                client.get(url)

        yield call


SIDES: Mapping[str, Side] = {
    "headrace": governed,
    "urllib3 Retry(3)": by_urllib3,
    "tenacity stop_after_attempt(4)": by_tenacity,
    "httpx-retries Retry(total=3)": by_httpx_retries,
}
