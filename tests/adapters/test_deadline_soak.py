"""Whatever the server does, every call has ended by its deadline. Punctuality is tests/bench/deadlines.py's."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
import trustme
import urllib3

import headrace
from support.faultserver import FaultServer, server_context
from support.governed import rules, running
from support.hostility import prepare, suffer
from support.waiting import BUSY

DEADLINE_S = 0.6
BODY = (
    "    timeouts: {deadline: 600ms, attempt: 250ms}\n"
    "    retry: {max_attempts: 4, backoff: {base: 10ms, throttled: 1ms}}\n"
    "    circuit_breaker: {mode: disabled}\n"
    "    pool: {max_connections: 12}\n"
)
INSTALL = "install: {urllib3: true}\n"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_whatever_the_server_does_every_call_ends_with_its_deadline(
    tmp_path: Path, secure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 27."""
    authority = trustme.CA()
    trust = ""
    if secure:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        trust = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n"
    with (
        FaultServer(tls=server_context(authority) if secure else None) as server,
        running(tmp_path, rules(server.url, BODY + trust, more=INSTALL)) as hr,
    ):
        prepare(server)
        ended = suffer(hr, server.url, calls=200, threads=6, seed=27)

        late = [one for one in ended if one.took_s > BUSY * DEADLINE_S]
        assert late == []
        assert len(ended) == 200
        families = (requests.RequestException, urllib3.exceptions.HTTPError)
        assert [one for one in ended if one.error is not None and not isinstance(one.error, families)] == []
        untold = [one for one in ended if one.error is not None and not hasattr(one.error, "headrace")]
        assert untold == [], "every exception that headrace lets out has the record"
        too_late = [one for one in ended if isinstance(one.error, headrace.DeadlineExceeded)]
        assert too_late, "the deadline was met at all"
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (pool["inuse"], pool["waiting"]) == (0, 0)
