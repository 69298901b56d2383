"""A server that refuses TLS with us will do so again: said once, with what to do, neither retried nor blamed."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3

import headrace
from support.faultserver import FaultServer, server_context
from support.governed import rules, running
from support.untrusted import UNTRUSTED, PlainServer, trusting
from support.waiting import wait_until

SSL_ERRORS = (requests.exceptions.SSLError, urllib3.exceptions.SSLError)
LARGE = b"x" * 3_000_000


@dataclass(frozen=True)
class Refusing:
    """A server that refuses, the rules by which it is called, and what the caller is told to do."""

    server: Any
    tls: str
    advice: str


AUTHORITY = trustme.CA()
STRANGER = trustme.CA()  # the CA of a client certificate that the server does not know


def _trusting(folder: Path, more: str = "") -> str:
    AUTHORITY.cert_pem.write_to_path(str(folder / "ca.pem"))
    return f"    tls: {{ca: '{folder / 'ca.pem'}'{more}}}\n"


def _demanding(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = server_context(AUTHORITY, client_ca=AUTHORITY)
    context.minimum_version = context.maximum_version = version
    return context


def _wants_a_certificate(folder: Path, version: ssl.TLSVersion) -> Refusing:
    server = FaultServer(tls=_demanding(version))
    return Refusing(server, _trusting(folder), "write tls.cert and tls.key")


def _knows_another_ca(folder: Path, version: ssl.TLSVersion) -> Refusing:
    client = STRANGER.issue_cert("client@example.com")
    client.private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    server = FaultServer(tls=_demanding(version))
    return Refusing(server, _trusting(folder, f", cert: '{folder / 'client.pem'}'"), "does not know the CA")


def _speaks_plain_http(folder: Path, version: ssl.TLSVersion) -> Refusing:
    return Refusing(PlainServer(), _trusting(folder), "does not speak TLS on this port")


def _has_no_version_in_common(folder: Path, version: ssl.TLSVersion) -> Refusing:
    context = server_context(AUTHORITY)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return Refusing(FaultServer(tls=context), _trusting(folder, ', min_version: "1.3"'), "tls.min_version")


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CASES = [
    pytest.param(_wants_a_certificate, V12, id="wants a certificate, 1.2"),
    pytest.param(_wants_a_certificate, V13, id="wants a certificate, 1.3"),
    pytest.param(_knows_another_ca, V12, id="knows another CA, 1.2"),
    pytest.param(_knows_another_ca, V13, id="knows another CA, 1.3"),
    pytest.param(_speaks_plain_http, V13, id="speaks plain HTTP"),
    pytest.param(_has_no_version_in_common, V13, id="no version in common"),
]
refusals = pytest.mark.parametrize(("make", "version"), CASES)
Make = Callable[[Path, ssl.TLSVersion], Refusing]


@contextlib.contextmanager
def refusing(make: Make, version: ssl.TLSVersion, folder: Path, body: str = "") -> Iterator[Any]:
    made = make(folder, version)
    with made.server as server, running(folder, rules(server.url, made.tls + body)) as hr:
        yield hr, server, made.advice


SURFACES = {
    "requests": lambda hr, url: requests.get(url),
    "stream": lambda hr, url: requests.get(url, stream=True),
    "large": lambda hr, url: requests.put(url, data=LARGE),
    "pieces": lambda hr, url: requests.put(url, data=iter([b"x" * 100_000] * 30)),
    "urlopen": lambda hr, url: hr.upstream("billing").urlopen("GET", "/"),
    "urlopen large": lambda hr, url: hr.upstream("billing").urlopen("PUT", "/", body=LARGE),
    "urlopen stream": lambda hr, url: hr.upstream("billing").urlopen("GET", "/", preload_content=False),
}


@refusals
@pytest.mark.parametrize("surface", SURFACES)
def test_a_refusal_that_will_not_change_is_neither_retried_nor_blamed_and_says_what_to_do(
    tmp_path: Path, make: Make, version: ssl.TLSVersion, surface: str
) -> None:
    """failures.md 71."""
    with refusing(make, version, tmp_path) as (hr, server, advice):
        for made in range(1, 6):  # under 1.3 it is a race whether the read or the write comes first
            with pytest.raises(SSL_ERRORS) as caught:
                SURFACES[surface](hr, server.url)
            record = headrace.record_of(caught.value)
            assert record is not None
            assert record.reason == "certificate"
            assert [(one.outcome, one.verdict) for one in record.attempts] == [("certificate", "ignored")]
            assert advice in record.why
            assert any(advice in note for note in caught.value.__notes__)
            assert server.connections == made
        assert hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic()).calls == 0
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


@pytest.mark.parametrize(("make", "version"), [one for one in CASES if "1.3" not in str(one.id)])
def test_observed_it_is_not_blamed(tmp_path: Path, make: Make, version: ssl.TLSVersion) -> None:
    """failures.md 71. During the handshake: stock does not look at what comes after its connection's failed write."""
    with refusing(make, version, tmp_path, "    mode: observe\n") as (hr, _, _):
        for _ in range(3):
            with pytest.raises((requests.ConnectionError, *SSL_ERRORS)):
                hr.upstream("billing").get("/")
        view = hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic())
        assert view.failures == 0


@refusals
def test_warm_up_and_heartbeats_do_not_hammer_at_it(
    tmp_path: Path, make: Make, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 71."""
    body = "    pool: {min_idle: 2, heartbeat: {path: /health, interval: 1s, timeout: 500ms}}\n"
    with refusing(make, version, tmp_path, body) as (_, server, _):
        wait_until(lambda: server.connections >= 1)
        threading.Event().wait(2.5)  # five rounds of housekeeping
        assert server.connections <= 10
    assert len([one for one in caplog.records if one.levelname != "DEBUG"]) <= 3


def test_a_handshake_that_is_broken_off_is_still_the_networks(tmp_path: Path) -> None:
    """failures.md 71. The other side of it."""
    with FaultServer(tls=server_context(AUTHORITY)) as server:
        server.on_accept = "fin"
        with running(tmp_path, rules(server.url, _trusting(tmp_path))) as hr:
            with pytest.raises(requests.ConnectionError) as caught:
                hr.upstream("billing").get("/")
            record = headrace.record_of(caught.value)
            assert record is not None
            assert [one.outcome for one in record.attempts] == ["tls_failure"] * 3


@pytest.mark.parametrize("name", UNTRUSTED)
@pytest.mark.parametrize("surface", ["requests", "urlopen"])
def test_a_certificate_that_is_not_accepted_says_what_to_do_and_is_neither_retried_nor_blamed(
    tmp_path: Path, name: str, surface: str
) -> None:
    """failures.md 71. `headrace check --connect` says the same: `tests/cli/test_connect.py`."""
    case = UNTRUSTED[name]
    with FaultServer(tls=case.makes(tmp_path)) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        with running(tmp_path, rules(url, f"    tls: {{{trusting(tmp_path)}}}\n")) as hr:
            with pytest.raises(SSL_ERRORS) as caught:
                SURFACES[surface](hr, url)
            record = headrace.record_of(caught.value)
            assert record is not None
            assert [(one.outcome, one.verdict) for one in record.attempts] == [("certificate", "ignored")]
            assert record.why.startswith("never retried: ")
            assert case.advice in record.why
            assert case.says in str(caught.value)
            assert server.connections == 1
            assert hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic()).calls == 0
