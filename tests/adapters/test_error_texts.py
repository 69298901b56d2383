"""What a governed call says where it fails, and while it connects: the words of stock, whatever our classes are."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3

import headrace
from support.faultserver import Answer, Break, FaultServer, Raw, Silence, server_context
from support.governed import rules, running
from support.surfaces import INSTALL

pytestmark = pytest.mark.both_parsers

ONCE = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n"


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def plain() -> Iterator[FaultServer]:
    with FaultServer() as server:
        for path, reply in (
            ("/silent", Silence()),
            ("/reset", Break("request")),
            ("/fin", Break("request", "fin")),
            ("/garbage", Raw(b"garbage\r\n\r\n")),
            ("/head", Break("head")),
            ("/truncated", Break("body", "fin")),
            ("/torn", Break("body")),
            ("/encoded", Answer(headers=(("Content-Encoding", "gzip"),), body=b"not gzip")),
        ):
            server.at(path, reply)
        yield server


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Iterator[FaultServer]:
    with FaultServer(tls=server_context(authority)) as server:
        yield server


@pytest.fixture(scope="module")
def strange(authority: trustme.CA) -> Iterator[FaultServer]:
    """It shows the certificate of another host."""
    with FaultServer(tls=server_context(authority, "other.test")) as server:
        yield server


@pytest.fixture(scope="module")
def broken(authority: trustme.CA) -> Iterator[FaultServer]:
    """It breaks off each handshake."""
    with FaultServer(tls=server_context(authority)) as server:
        server.on_accept = "fin"
        yield server


@pytest.fixture(scope="module")
def hole() -> Iterator[str]:
    """A port whose queue is full: nobody answers there."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        for one in fillers:
            one.close()


@pytest.fixture(scope="module")
def closed() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


Get = Callable[[str, str], object]


def by_requests(url: str, ca: str) -> object:
    return requests.get(url, timeout=0.5, verify=ca or True)


def by_manager(url: str, ca: str) -> object:
    with urllib3.PoolManager(**({"ca_certs": ca} if ca else {})) as manager:
        return manager.request("GET", url, timeout=0.5, retries=0)


def by_manager_without_retries(url: str, ca: str) -> object:
    with urllib3.PoolManager(**({"ca_certs": ca} if ca else {})) as manager:
        return manager.request("GET", url, timeout=0.5, retries=False)


def told(get: Callable[[], object]) -> str:
    """Class and text of the error that *get* ends with, addresses masked."""
    try:
        get()
    except Exception as error:
        text = f"{type(error).__module__}.{type(error).__name__}: {error}"
    else:
        raise AssertionError("no error")
    text = re.sub(r"<urllib3\.connection\.(\w+) object at 0x[0-9a-f]+>", r"\1", text)  # urllib3 before 2.4
    text = re.sub(r"<?(HTTPS?Connection)\(host='[^']*', port=\d+\)( at 0x[0-9a-f]+>)?", r"\1", text)
    return re.sub(r"_ssl\.c:\d+", "_ssl.c", text)


KINDS = {
    "refused": ("http://{closed}/a?b=c", False),
    "refused, TLS": ("https://{closed}/a", False),
    "name look-up": ("http://nowhere.invalid/a", False),
    "name look-up, TLS and a port": ("https://nowhere.invalid:8443/a", False),
    "connect timeout": ("http://{hole}/a", False),
    "connect timeout, TLS": ("https://{hole}/a", False),
    "read timeout": ("{plain}/silent", False),
    "read timeout, TLS": ("{secure}/silent", True),
    "reset": ("{plain}/reset", False),
    "end without an answer": ("{plain}/fin", False),
    "garbage": ("{plain}/garbage", False),
    "reset amid the head": ("{plain}/head", False),
    "truncated body": ("{plain}/truncated", False),
    "reset amid the body": ("{plain}/torn", False),
    "a body that cannot be decoded": ("{plain}/encoded", False),
    "unknown authority": ("{secure}/a", False),
    "another host's certificate": ("{strange}/a", True),
    "a handshake broken off": ("{broken}/a", True),
}


@pytest.mark.parametrize(
    "get",
    [by_requests, by_manager, by_manager_without_retries],
    ids=lambda get: get.__name__.removeprefix("by_"),
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_what_stocks_says(
    tmp_path: Path,
    plain: FaultServer,
    secure: FaultServer,
    strange: FaultServer,
    broken: FaultServer,
    ca: Path,
    hole: str,
    closed: str,
    kind: str,
    get: Get,
) -> None:
    pattern, trusts = KINDS[kind]
    secure.at("/silent", Silence())
    url = pattern.format(
        plain=plain.url,
        secure=secure.url,
        strange=strange.url,
        broken=broken.url,
        hole=hole,
        closed=closed,
    )
    bundle = str(ca) if trusts else ""
    stock = told(lambda: get(url, bundle))
    body = ONCE + (f"    tls: {{ca: '{ca}'}}\n" if trusts else "")
    with running(tmp_path, rules("/".join(url.split("/")[:3]), body, more=INSTALL)) as hr:
        assert told(lambda: get(url, bundle)) == stock
        assert hr.status()["ungoverned"] == {}
        assert len(hr.status()["upstreams"]["billing"]["requests"]) == 1


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda hr, url: requests.get(url), id="requests"),
        pytest.param(lambda hr, url: hr.upstream("billing").urlopen("GET", "/"), id="urlopen"),
        pytest.param(lambda hr, url: urllib3.PoolManager().request("GET", url), id="urllib3"),
    ],
)
@pytest.mark.parametrize("is_secure", [False, True], ids=["http", "https"])
def test_a_new_connection_is_said_in_urllib3s_log(
    tmp_path: Path,
    plain: FaultServer,
    secure: FaultServer,
    ca: Path,
    call: Callable[[headrace.Headrace, str], Any],
    is_secure: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, scheme = (secure, "HTTPS") if is_secure else (plain, "HTTP")
    body = f"    tls: {{ca: '{ca}'}}\n" if is_secure else ""
    with (
        running(tmp_path, rules(server.url, body, more=INSTALL)) as hr,
        caplog.at_level(logging.DEBUG, "urllib3.connectionpool"),
    ):
        for _ in range(2):
            call(hr, server.url)
        server.next(Answer(close=True))
        call(hr, server.url)
        call(hr, server.url)
    said = [one.getMessage() for one in caplog.records if "Starting new" in one.getMessage()]
    where = server.url.rpartition("/")[2]
    assert said == [f"Starting new {scheme} connection ({number}): {where}" for number in (1, 2)]
    assert {one.name for one in caplog.records if "Starting new" in one.getMessage()} == {
        "urllib3.connectionpool"
    }
