"""`tls.identities` over real handshakes: whom the server is taken for before a byte of a request is sent."""

from __future__ import annotations

import pickle
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3

import headrace
from headrace.policy.plan import TlsPlan
from headrace.transport.dial.client import SealedContextError, TlsClient
from headrace.transport.dial.identity import IdentityError
from support.authorities import ADDRESS, DNS, URI, server_of
from support.faultserver import Answer, FaultServer
from support.governed import reason_of, rules, running
from support.surfaces import INSTALL, SURFACES, Surface, across

SPIFFE = "spiffe://prod/billing"


def text_of(url: str, ca: Path, *identities: str, body: str = "", more: str = "") -> str:
    listed = ", ".join(f"'{one}'" for one in identities)
    return rules(url, f"    tls: {{ca: '{ca}', identities: [{listed}]{more}}}\n{body}", more=INSTALL)


@across(*SURFACES)
def test_a_server_of_that_identity_is_called_whatever_its_address(
    tmp_path: Path, authority: trustme.CA, ca: Path, call: Surface
) -> None:
    with (
        FaultServer(tls=server_of(authority, SPIFFE)) as server,
        running(tmp_path, text_of(server.url, ca, "billing.internal", SPIFFE)) as hr,
    ):
        for _ in range(2):
            assert call(hr, server.url).headrace.upstream == "billing"
        assert server.connections == 1
        assert hr.status()["ungoverned"] == {}


@across(*SURFACES)
def test_any_other_is_told_closed_and_neither_retried_nor_blamed(
    tmp_path: Path, authority: trustme.CA, ca: Path, call: Surface
) -> None:
    with (
        FaultServer(tls=server_of(authority, "spiffe://prod/other", dns=("127.0.0.1", "a"))) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)) as hr,
    ):
        with pytest.raises(headrace.IdentityMismatch) as caught:
            call(hr, server.url)
        error = caught.value
        assert isinstance(
            error,
            requests.exceptions.SSLError if call.library == "requests" else urllib3.exceptions.SSLError,
        )
        assert error.offered == ("spiffe://prod/other", "127.0.0.1", "a")
        assert error.wanted == (SPIFFE,)
        assert "names spiffe://prod/other, 127.0.0.1, a; tls.identities accepts spiffe://prod/billing" in str(
            error
        )
        assert error.upstream == "billing"
        assert len(error.attempts) == 1
        assert reason_of(error) == "certificate"
        again = pickle.loads(pickle.dumps(error))
        assert (again.offered, again.wanted, str(again)) == (error.offered, error.wanted, str(error))
        server.wait_for(lambda: server.connections == 1 and server.open_connections == 0)
        assert server.requests == []
        circuit = hr.status()["upstreams"]["billing"]["circuit_breaker"]
        assert (circuit["calls"], circuit["failures"]) == (0, 0)


def test_it_is_compared_after_resumed_handshakes_too(tmp_path: Path, authority: trustme.CA, ca: Path) -> None:
    """The list is put into force behind the session's back: nothing of ours does that without dropping it."""
    with (
        FaultServer(tls=server_of(authority, SPIFFE)) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)) as hr,
    ):
        server.always(Answer(close=True))
        for _ in range(2):
            requests.get(server.url)
        assert [one.resumed for one in server.requests] == [False, True]
        client = hr.snapshot.upstreams["billing"].endpoint.tls
        assert client is not None
        accepted = frozenset({("URI", "spiffe://prod/other")})
        object.__setattr__(client._now, "accepted", accepted)
        with pytest.raises(headrace.IdentityMismatch):
            requests.get(server.url)
        assert hr.status()["upstreams"]["billing"]["pool"]["tls_handshakes"] == {"no": 1, "yes": 1}
        assert len(server.requests) == 2


def test_an_edit_of_the_list_holds_for_connections_that_are_there(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    with (
        FaultServer(tls=server_of(authority, SPIFFE)) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)) as hr,
    ):
        requests.get(server.url)
        (tmp_path / "upstreams.yaml").write_text(text_of(server.url, ca, "spiffe://prod/other"))
        assert hr.reload() == "applied"
        with pytest.raises(headrace.IdentityMismatch):
            requests.get(server.url)


def test_the_name_of_the_host_is_compared_where_no_identity_is_given(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    with FaultServer(tls=server_of(authority, SPIFFE)) as server:
        with (
            running(tmp_path, text_of(server.url, ca)),
            pytest.raises(requests.exceptions.SSLError) as caught,
        ):
            requests.get(server.url)
        assert not isinstance(caught.value, headrace.IdentityMismatch)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param([(URI, b"spiffe://prod/billing\xff")], "something that is no text", id="URI, no UTF-8"),
        pytest.param(
            [(URI, SPIFFE.encode()), (DNS, b"\xff\xfe")], "something that is no text", id="DNS, no UTF-8"
        ),
        pytest.param(
            [(URI, SPIFFE.encode() + b"\0.evil")], r"names spiffe://prod/billing\x00.evil;", id="NUL"
        ),
        pytest.param(
            [(URI, b"spiffe://prod/b\nok: fine")], r"names spiffe://prod/b\nok: fine;", id="line break"
        ),
        pytest.param([(ADDRESS, SPIFFE.encode())], "names nobody;", id="an address of 21 bytes"),
        pytest.param([(DNS, b"n%d.evil" % nth) for nth in range(2000)], "and 1995 more;", id="2000 names"),
    ],
)
@across(*SURFACES)
def test_whatever_a_certificate_holds_it_is_refused_in_the_same_way(
    tmp_path: Path, authority: trustme.CA, ca: Path, names: Any, words: str, call: Surface
) -> None:
    """Its CA has signed it: an intermediate of some team may sign anything."""
    with (
        FaultServer(tls=server_of(authority, raw=names)) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)) as hr,
    ):
        with pytest.raises(headrace.IdentityMismatch) as caught:
            call(hr, server.url)
        assert words in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(caught.value.attempts) == 1
        assert server.requests == []


def test_a_certificate_that_cannot_be_read_is_refused_where_the_names_of_its_host_can(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    """Without identities OpenSSL compares the host, and nobody else looks: the call gets its answer."""
    names = [(ADDRESS, bytes([127, 0, 0, 1])), (URI, b"\xff")]
    with FaultServer(tls=server_of(authority, raw=names)) as server:
        with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")):
            for _ in range(2):
                assert requests.get(server.url, headers={"Connection": "close"}).status_code == 200
            assert [one.resumed for one in server.requests] == [False, False]  # who knows when it ends?
        with (
            running(tmp_path, text_of(server.url, ca, SPIFFE)),
            pytest.raises(headrace.IdentityMismatch),
        ):
            requests.get(server.url)


def test_who_vouches_is_asked_first(tmp_path: Path, authority: trustme.CA, ca: Path) -> None:
    with (
        FaultServer(tls=server_of(trustme.CA(), SPIFFE)) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)),
        pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        requests.get(server.url)


def test_a_certificate_with_two_uris_is_no_svid(tmp_path: Path, authority: trustme.CA, ca: Path) -> None:
    with (
        FaultServer(tls=server_of(authority, SPIFFE, "spiffe://prod/b")) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)),
        pytest.raises(headrace.IdentityMismatch, match="names spiffe://prod/billing, spiffe://prod/b"),
    ):
        requests.get(server.url)


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_by_name_it_holds_where_the_rules_are_not_in_force(
    tmp_path: Path, authority: trustme.CA, ca: Path, mode: str
) -> None:
    """The address is the file's in every mode, and so is who may answer there."""
    body = f"    mode: {mode}\n"
    calls: tuple[Callable[[headrace.Headrace], Any], ...] = (
        lambda hr: hr.upstream("billing").get("/"),
        lambda hr: hr.upstream("billing").urlopen("GET", "/"),
    )
    with FaultServer(tls=server_of(authority, SPIFFE)) as server:
        with running(tmp_path, text_of(server.url, ca, SPIFFE, body=body)) as hr:
            for call in calls:
                call(hr)
        with running(tmp_path, text_of(server.url, ca, "spiffe://prod/other", body=body)) as hr:
            before = len(server.requests)
            for call in calls:
                with pytest.raises((requests.exceptions.SSLError, urllib3.exceptions.HTTPError)) as caught:
                    call(hr)
                assert "accepts spiffe://prod/other" in str(caught.value)
            assert len(server.requests) == before


def test_a_manager_that_asks_for_the_name_of_the_host_never_gets_less(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    with (
        FaultServer(tls=server_of(authority, SPIFFE)) as server,
        running(tmp_path, text_of(server.url, ca, SPIFFE)) as hr,
        urllib3.PoolManager(assert_hostname="127.0.0.1", ca_certs=str(ca)) as manager,
    ):
        with pytest.raises(urllib3.exceptions.HTTPError):
            manager.request("GET", server.url, retries=False)
        assert hr.status()["ungoverned"] == {"tls": 1}


def plan_of(ca: Path) -> TlsPlan:
    return TlsPlan(True, str(ca), None, None, None, "1.2", "x", identities=(SPIFFE,))


def test_where_it_could_not_be_compared_there_is_no_connection(ca: Path) -> None:
    client = TlsClient(plan_of(ca))
    with pytest.raises(SealedContextError, match="identities"):
        client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="a")
    with pytest.raises(SealedContextError, match="identities"):
        client.wrap_socket(socket.socket(), server_hostname="a")


def test_a_handshake_that_is_put_off_is_refused(authority: trustme.CA, ca: Path) -> None:
    with FaultServer(tls=server_of(authority, SPIFFE)) as server:
        sock = socket.create_connection((server.host, server.port))
        with pytest.raises((SealedContextError, ValueError)):
            TlsClient(plan_of(ca)).wrap_socket(sock, server_hostname="a", do_handshake_on_connect=False)
        assert sock.fileno() == -1


def test_the_error_of_the_transport_pickles() -> None:
    error = IdentityError(("a",), (SPIFFE,))
    again = pickle.loads(pickle.dumps(error))
    assert (again.offered, again.wanted, str(again)) == (("a",), (SPIFFE,), str(error))
    assert str(error) == "the certificate of the server names a; tls.identities accepts spiffe://prod/billing"
