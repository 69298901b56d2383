"""A connection class of the caller's that settles in its constructor where it leads or whom it trusts: left alone."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

import headrace
from headrace.transport.stock.own_class import governed_over
from support.faultserver import FaultServer, server_context
from support.governed import rules, running


def manager_of(settle: Callable[[Any], object]) -> urllib3.PoolManager:
    """A manager whose connections are settled by *settle* once they are made."""

    class Settled(HTTPSConnection):
        def __init__(self, *args: Any, **kw: Any) -> None:
            super().__init__(*args, **kw)
            settle(self)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Settled

    manager = urllib3.PoolManager()
    manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "https": Pool}
    return manager


@pytest.mark.parametrize(
    "name", ["ca_certs", "ca_cert_data", "assert_hostname", "assert_fingerprint", "cert_file"]
)
def test_what_it_trusts_is_what_holds(tmp_path: Path, name: str) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    values = {
        "ca_certs": str(tmp_path / "other.pem"),
        "ca_cert_data": other.cert_pem.bytes().decode(),
        "assert_hostname": "other.example",
        "assert_fingerprint": "00" * 32,
        "cert_file": str(tmp_path / "none.pem"),
    }
    file_rules = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n    retry: {{max_attempts: 1}}\n"

    def settle(conn: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"
        setattr(conn, name, values[name])

    with FaultServer(tls=server_context(authority, "127.0.0.1")) as server:
        text = rules(server.url, file_rules, more="install: {urllib3: true}\n")
        with running(tmp_path, text) as hr:
            with pytest.raises((urllib3.exceptions.HTTPError, OSError)):
                manager_of(settle).request("GET", server.url, retries=False)
            assert hr.status()["ungoverned"] == {"pool_class": 1}


def test_one_that_does_so_for_some_peers_only_makes_no_call(tmp_path: Path) -> None:
    """The look beforehand cannot know of it."""
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))

    def settle(conn: Any) -> None:
        if conn.host == "127.0.0.1":
            conn.ca_certs = str(tmp_path / "other.pem")

    with FaultServer(tls=server_context(authority, "127.0.0.1")) as server:
        file_rules = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n    retry: {{max_attempts: 1}}\n"
        with running(tmp_path, rules(server.url, file_rules, more="install: {urllib3: true}\n")):
            with pytest.raises(urllib3.exceptions.SSLError, match="settles where it leads or whom it trusts"):
                manager_of(settle).request("GET", server.url, retries=False)
        assert server.requests == []


def test_one_that_leads_elsewhere_or_cannot_be_made_is_none_of_ours() -> None:
    class Elsewhere(HTTPConnection):
        def __init__(self, host: str, *args: Any, **kw: Any) -> None:
            super().__init__("elsewhere", *args, **kw)

    class Wants(HTTPConnection):
        def __init__(self, *args: Any, token: str, **kw: Any) -> None:
            super().__init__(*args, **kw)

    assert governed_over(Elsewhere) is None
    assert governed_over(Wants) is None


def test_an_error_of_tls_that_was_made_in_python_reaches_the_caller_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As truststore makes them on macOS and Windows: without a reason of OpenSSL's."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    wrap = ssl.SSLContext.wrap_socket

    def refuse(self: ssl.SSLContext, *args: Any, **kw: Any) -> ssl.SSLSocket:
        if kw.get("server_side"):
            return wrap(self, *args, **kw)
        raise ssl.SSLCertVerificationError("not trusted")

    with FaultServer(tls=server_context(authority, "127.0.0.1")) as server:
        with running(tmp_path, rules(server.url, f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n")) as hr:
            monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refuse)
            with pytest.raises(urllib3.exceptions.SSLError, match="not trusted") as caught:
                hr.upstream("billing").urlopen("GET", "/")
    assert headrace.record_of(caught.value).reason == "certificate"  # type: ignore[union-attr]
