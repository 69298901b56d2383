"""What others put around stock's `urlopen`: it is called as everybody calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import urllib3
from urllib3.util.retry import Retry

from support.faultserver import FaultServer
from support.governed import rules, running
from support.surfaces import (
    HANDLE,
    INSTALL,
    MANAGER,
    REQUESTS,
    URLOPEN,
    Surface,
    across,
    retrying_adapter,
    retrying_call,
)

RETRY = Retry(2, status_forcelist=[503], backoff_factor=0)


@across(REQUESTS, retrying_adapter(RETRY), MANAGER, retrying_call(RETRY), HANDLE, URLOPEN)
@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
def test_an_instrumentation_that_adds_headers_by_keyword_meets_none_by_position(
    tmp_path: Path, call: Surface, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenTelemetry's did until 2025: `kwargs["headers"] = …` is a TypeError where they came by position."""
    stock = urllib3.HTTPConnectionPool.urlopen

    def instrumented(pool: Any, *args: Any, **kw: Any) -> Any:
        kw["headers"] = {**(kw.get("headers") or {}), "X-Added": "yes"}
        return stock(pool, *args, **kw)

    with FaultServer() as server:
        monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", instrumented)
        text = rules(server.url, f"    mode: {mode}\n", more=INSTALL)
        with running(tmp_path, text) as hr:
            call(hr, server.url)
            call(hr, server.url)
        assert [one.header("X-Added") for one in server.requests] == ["yes", "yes"]
