"""What a peer can make of an answer, and data of a request, asked of every surface and of both wire paths.

The request in question goes over a connection that was used before, so that what has a short way takes it.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

import headrace
from headrace.transport.stock.framing import AT_ONCE_BYTES, declared_bytes
from support.faultserver import Answer, Break, FaultServer, Raw, server_context
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
    body_of,
    read,
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


STOLEN = b"GET /stolen HTTP/1.1\r\nX-Of: data\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Length": "2"}, b"xx" + STOLEN),
        ({"content-length": "02"}, b"xx" + STOLEN),
        ({"Content-Length": str(len(STOLEN) + 2), "content-length": "2"}, b"xx" + STOLEN),
        ({"Content-Length": str(len(STOLEN) + 5), "Transfer-Encoding": "chunked"}, b"0\r\n\r\n" + STOLEN),
    ],
    ids=["a length", "a length with a zero", "two lengths", "a length and chunks"],
)
@across(URLOPEN, MANAGER)
def test_a_body_that_is_another_request_too_answers_nobody(
    tmp_path: Path, call: Surface, headers: dict[str, str], body: bytes
) -> None:
    """failures.md 91. Who passes headers on sends a length that is not the body's: what is behind it is a request."""
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.at("/stolen", Answer(delay_s=0.3, body=b"stolen"))
        server.at("/mine", Answer(body=b"mine"))
        call(hr, server.url)
        call(hr, server.url, "POST", data=body, headers=headers)
        assert body_of(call(hr, server.url, path="/mine")) == b"mine"
        # The server may read what was behind the body only now, on the connection that nobody reads any more.
        (mine,) = [one for one in server.requests if one.target == "/mine"]
        assert mine.connection == 2


@everywhere
def test_a_length_that_is_the_bodys_keeps_the_connection(tmp_path: Path, call: Surface) -> None:
    """failures.md 91. The other side of it."""
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        for body, headers in [
            (b"four", {"Content-Length": "4"}),
            (b"four", {}),
            (iter([b"fo", b"ur"]), {}),
            (b"", {"Content-Length": "0"}),
            (None, {}),
        ]:
            call(hr, server.url, "POST", data=body, headers=headers)
        assert [one.body for one in server.requests] == [b"four"] * 3 + [b""] * 2
        assert {one.connection for one in server.requests} == {1}


def test_a_length_of_a_body_that_is_none_ends_the_connection(tmp_path: Path) -> None:
    """failures.md 91. A server that answers before it has read the body takes the next request for it."""
    early = Raw(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", then="keep")
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES)) as hr:
        server.on_expect = "answer"  # the body is not read
        for call in (URLOPEN, HANDLE):
            call(hr, server.url)
            server.next(early)
            call(hr, server.url, headers={"Content-Length": "5", "Expect": "100-continue"})
        call(hr, server.url)
        assert [one.connection for one in server.requests] == [1, 1, 2, 2, 3]


class Named(str, enum.Enum):  # noqa: UP042
    """As people wrote them before StrEnum: formatted, a member is its name since Python 3.12."""

    Accept = "Accept"


@everywhere
def test_a_header_is_named_as_it_reads(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        call(hr, server.url, headers={"Accept": "a/b"})
        call(hr, server.url, headers={Named.Accept: "a/b"})
        assert [one.header("Accept") for one in server.requests] == ["a/b"] * 2


INJECTED: dict[str, dict[Any, Any]] = {
    "CR LF": {"X-A": "a\r\nX-B: b"},
    "LF": {"X-A": "a\nX-B: b"},
    "CR": {"X-A": "a\rX-B: b"},
    "a fold": {"X-A": "a\r\n X-B: b"},
    "a fold of LF": {"X-A": "a\n\tX-B: b"},
    "a fold in bytes": {"X-A": b"a\r\n X-B: b"},
    "NUL": {"X-A": "a\0b"},
    "NUL in bytes": {"X-A": b"a\0b"},
    "a name with CR LF": {"X-A: a\r\nX-B": "b"},
    "a name with a blank": {"X-A: a X-B": "b"},
    "a blank before the colon": {"Transfer-Encoding ": "chunked"},
    "a tab before the colon": {b"Transfer-Encoding\t": "chunked"},
    "a name with NUL": {"Transfer-Encoding\0": "chunked"},
}


@pytest.mark.parametrize("headers", INJECTED.values(), ids=INJECTED)
@everywhere
def test_a_header_that_could_be_read_as_two_is_not_sent(
    tmp_path: Path, call: Surface, headers: dict[Any, Any]
) -> None:
    """failures.md 92. http.client sends NUL, folded values, and names that end in a blank."""
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        call(hr, server.url)
        with pytest.raises((ValueError, requests.exceptions.InvalidHeader)):
            call(hr, server.url, headers=headers)
        assert server.first_lines == 1
        call(hr, server.url)
        view = hr.status()["upstreams"]["billing"]["pool"]
        assert (view["inuse"], view["idle"]) == (0, 1)


@across(HANDLE, URLOPEN)
def test_a_query_without_a_path_is_asked_of_the_root(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES)) as hr:
        for _ in range(2):
            call(hr, server.url, path="?a=1")
        assert [one.target for one in server.requests] == ["/?a=1"] * 2


@pytest.mark.parametrize("size", [b"+4", b"0x4", b"0_4", b" 4", b"4_"], ids=bytes.decode)
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@everywhere
def test_a_chunk_size_that_others_read_otherwise_ends_its_connection(
    tmp_path: Path, call: Surface, size: bytes, stream: bool
) -> None:
    """failures.md 53. Python's numbers have signs, prefixes and underscores; those of RFC 9112 have not."""
    odd = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\nmine\r\n0\r\n\r\n" % size
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        call(hr, server.url)
        server.next(Raw(odd, then="keep"))
        try:
            assert read(call(hr, server.url, stream=stream)) in (
                b"mine",
                b"",
            )  # it was read, or has been read
        except call.error:
            assert size == b"4_"
        call(hr, server.url)
        assert server.requests[-1].connection == 2


@pytest.mark.parametrize(
    ("lines", "declared"),
    [
        (b"", 0),
        (b"content-length: 0\r\n", 0),
        (b"content-length:12 \r\n", 12),
        (b"content-length: 12\r\ncontent-length: 12\r\n", 12),
        (b"content-length: 12\r\ncontent-length: 13\r\n", -1),
        (b"content-length: 12, 12\r\n", -1),
        (b"content-length: +12\r\n", -1),
        (b"content-length: \r\n", -1),
        (b"content-length: " + b"9" * 30 + b"\r\n", -1),
        (b"transfer-encoding: chunked\r\n", None),
        (b"transfer-encoding: identity\r\n", -1),
        (b"transfer-encoding: gzip, chunked\r\n", -1),
        (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", -1),
        (b"transfer-encoding: chunked\r\ncontent-length: 12\r\n", -1),
        (b"x-content-length: 12\r\n", 0),
    ],
)
def test_what_a_request_says_of_its_body(lines: bytes, declared: int | None) -> None:
    assert declared_bytes(b"post / http/1.1\r\n%bhost: a\r\n\r\n" % lines) == declared


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("announced", [b"Content-Length: 1%b" % (b"0" * 15), b"Transfer-Encoding: chunked"])
@everywhere
def test_no_memory_is_taken_for_what_is_only_announced(
    tmp_path: Path, call: Surface, announced: bytes, stream: bool
) -> None:
    """failures.md 64. http.client asks for all of it at once: a MemoryError, which nobody catches or retries."""
    body = b"hello" if b"Length" in announced else b"38d7ea4c68000\r\nhello"
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        call(hr, server.url)
        server.always(Raw(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (announced, body), "fin"))
        with pytest.raises(call.error) as caught:
            read(call(hr, server.url, stream=stream))
        if not stream:
            record = headrace.record_of(caught.value)
            assert record is not None
            assert [(one.outcome, one.verdict) for one in record.attempts] == [("reset", "failure")]
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@everywhere
def test_a_body_that_is_long_indeed_comes_whole(tmp_path: Path, call: Surface, stream: bool) -> None:
    """The other side of it."""
    body = bytes(range(256)) * (AT_ONCE_BYTES // 256 + 1)
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.always(Answer(body=body))
        for _ in range(2):
            assert read(call(hr, server.url, stream=stream)) in (body, b"")  # b"": it was read already
        assert {one.connection for one in server.requests} == {1}
