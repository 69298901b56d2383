"""What others put around stock's `urlopen`: it is called as everybody calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from support.faultserver import FaultServer
from support.governed import rules, running

RETRY = Retry(2, status_forcelist=[503], backoff_factor=0)


def with_own_retries(hr: headrace.Headrace, url: str) -> object:
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=RETRY))
        return session.get(url)


CALLS = [
    pytest.param(lambda hr, url: requests.get(url), id="requests"),
    pytest.param(with_own_retries, id="requests with own retries"),
    pytest.param(lambda hr, url: urllib3.PoolManager().request("GET", url), id="urllib3"),
    pytest.param(
        lambda hr, url: urllib3.PoolManager().request("GET", url, retries=RETRY),
        id="urllib3 with own retries",
    ),
    pytest.param(lambda hr, url: hr.upstream("billing").get("/"), id="handle.get"),
    pytest.param(lambda hr, url: hr.upstream("billing").urlopen("GET", "/"), id="handle.urlopen"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
def test_an_instrumentation_that_adds_headers_by_keyword_meets_none_by_position(
    tmp_path: Path, call: Callable[..., object], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenTelemetry's did until 2025: `kwargs["headers"] = …` is a TypeError where they came by position."""
    stock = urllib3.HTTPConnectionPool.urlopen

    def instrumented(pool: Any, *args: Any, **kw: Any) -> Any:
        kw["headers"] = {**(kw.get("headers") or {}), "X-Added": "yes"}
        return stock(pool, *args, **kw)

    with FaultServer() as server:
        monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", instrumented)
        text = rules(server.url, f"    mode: {mode}\n", more="install: {urllib3: true}\n")
        with running(tmp_path, text) as hr:
            call(hr, server.url)
            call(hr, server.url)
        assert [one.header("X-Added") for one in server.requests] == ["yes", "yes"]
