"""What a peer, or whoever speaks in its place, can make of an answer, asked of every surface and of both wire paths.

The request in question goes over a connection that was used before, so that what has a short way takes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

import headrace
from support.faultserver import Break, FaultServer, Raw, server_context
from support.governed import rules, running
from support.surfaces import (
    HANDLE,
    INSTALL,
    MANAGER,
    REQUESTS,
    SESSION,
    URLOPEN,
    Surface,
    across,
)

pytestmark = pytest.mark.both_parsers

RULES = "    timeouts: {attempt: 10s, deadline: 40s, read: 2s}\n    retry: {max_attempts: 1}\n"
everywhere = across(REQUESTS, SESSION, HANDLE, URLOPEN, MANAGER)

CUT_HEADS: dict[str, bytes] = {
    "a status line": b"HTTP/1.1 200 OK",
    "a status line with its end": b"HTTP/1.1 200 OK\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Le",
    "headers and no end": b"HTTP/1.1 200 OK\r\nX-One: 1\r\n",
    "behind a 100": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-One: 1\r\n",
}


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("cut", CUT_HEADS)
@everywhere
def test_a_head_that_is_cut_short_is_no_answer(tmp_path: Path, call: Surface, cut: str, stream: bool) -> None:
    """failures.md 90. http.client takes it for an answer without a body, and so for a success."""
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        call(hr, server.url)
        server.always(Raw(CUT_HEADS[cut], then="fin"))
        with pytest.raises(call.error) as caught:
            call(hr, server.url, stream=stream)
        record = headrace.record_of(caught.value)
        assert record is not None
        assert [(one.outcome, one.verdict) for one in record.attempts] == [("reset", "failure")]
        assert (server.first_lines, hr.status()["upstreams"]["billing"]["pool"]["inuse"]) == (2, 0)


@everywhere
def test_a_head_that_ends_with_a_reset_under_tls_is_no_answer(tmp_path: Path, call: Surface) -> None:
    """failures.md 90. OpenSSL reads such an end as an orderly one."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trust = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n"
    with (
        FaultServer(tls=server_context(authority)) as server,
        running(tmp_path, rules(server.url, RULES + trust, more=INSTALL)) as hr,
    ):
        call(hr, server.url)
        server.always(Break("head"))
        with pytest.raises(call.error) as caught:
            call(hr, server.url)
        record = headrace.record_of(caught.value)
        assert record is not None
        assert [one.outcome for one in record.attempts] == ["reset"]
