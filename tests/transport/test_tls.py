"""The shared TLS contexts: what they trust, and that nothing changes it."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from prometheus_client import CollectorRegistry

from headrace import Headrace
from headrace.policy.plan import TlsPlan
from headrace.transport.dial.client import SealedContextError, TlsClient, trust_of
from headrace.transport.dial.liveness import is_alive
from headrace.transport.dial.tls import TlsError, context_for
from headrace.transport.stock import connection
from headrace.transport.stock.connection import GovernedHTTPSConnection
from support.faultserver import FaultServer, server_context
from support.leases import End
from support.waiting import wait_until

PLAN = TlsPlan(
    verify=True, ca=None, cert=None, key=None, server_name=None, min_version="1.2", fingerprint="none"
)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA(organization_name="somebody else")


@pytest.fixture
def plan(ca: trustme.CA, tmp_path: Path) -> TlsPlan:
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    return replace(PLAN, ca=str(tmp_path / "ca.pem"), fingerprint="ca")


@pytest.fixture
def server(ca: trustme.CA) -> Iterator[FaultServer]:
    with FaultServer(tls=server_context(ca)) as server:
        yield server


def get(server: FaultServer, context: Any, **kw: Any) -> int:
    with urllib3.HTTPSConnectionPool(
        server.host, server.port, ssl_context=context, retries=False, **kw
    ) as pool:
        return pool.request("GET", "/").status


def test_equal_plans_share_the_very_same_context_and_unequal_ones_do_not(plan: TlsPlan) -> None:
    context = context_for(plan)
    assert context_for(replace(plan)) is context
    assert (
        context_for(replace(plan, server_name="billing.internal")) is context
    )  # it is said for each handshake
    assert context_for(replace(plan, fingerprint="rotated")) is not context
    assert context_for(replace(plan, min_version="1.3")) is not context
    by_identity = context_for(replace(plan, identities=("billing.internal",)))
    assert by_identity is not context
    assert (by_identity.check_hostname, context.check_hostname) == (False, True)
    assert by_identity is context_for(replace(plan, identities=("another.internal",)))
    assert context_for(replace(plan, verify=False)) is not context


def test_a_context_that_nobody_holds_is_forgotten(plan: TlsPlan) -> None:
    from headrace.transport.dial import tls

    gc.collect()
    before = len(tls._contexts)
    first = TlsClient(plan)
    assert len(tls._contexts) == before + 1
    del first
    gc.collect()
    assert len(tls._contexts) == before


def test_a_server_of_the_private_ca_is_trusted_and_one_of_another_is_not(
    plan: TlsPlan, server: FaultServer, stranger: trustme.CA
) -> None:
    assert get(server, TlsClient(plan)) == 200
    with FaultServer(tls=server_context(stranger)) as impostor:
        with pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(impostor, TlsClient(plan))


def test_a_certificate_for_another_name_is_refused(plan: TlsPlan, ca: trustme.CA) -> None:
    with FaultServer(tls=server_context(ca, "elsewhere.example")) as server:
        with pytest.raises(urllib3.exceptions.SSLError, match="IP address mismatch"):
            get(server, TlsClient(plan))
        assert get(server, TlsClient(plan), server_hostname="elsewhere.example") == 200


def test_a_directory_of_hashed_names_is_trusted(ca: trustme.CA, server: FaultServer, tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    directory.mkdir()
    digest = _subject_hash(ca, tmp_path)
    ca.cert_pem.write_to_path(directory / f"{digest}.0")
    assert get(server, TlsClient(replace(PLAN, ca=str(directory), fingerprint="dir"))) == 200


def test_a_directory_with_a_pipe_in_the_place_of_a_certificate_is_refused(tmp_path: Path) -> None:
    """failures.md 35: OpenSSL would open it amid a handshake, and wait for ever."""
    (tmp_path / "0badcafe.1").symlink_to("gone")  # as openssl rehash leaves them
    os.mkfifo(tmp_path / "0badcafe.0")
    with pytest.raises(TlsError, match=r"0badcafe\.0: is not a regular file"):
        context_for(replace(PLAN, ca=str(tmp_path), fingerprint="pipe"))
    (tmp_path / "0badcafe.0").unlink()
    context_for(replace(PLAN, ca=str(tmp_path), fingerprint="pipe"))


def _subject_hash(ca: trustme.CA, tmp_path: Path) -> str:
    import subprocess

    ca.cert_pem.write_to_path(tmp_path / "one.pem")
    try:
        found = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", str(tmp_path / "one.pem")],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("no openssl command here")
    return found.stdout.strip()


def test_requests_cannot_widen_a_private_ca_by_the_public_ones(plan: TlsPlan) -> None:
    """failures.md 31."""
    context = TlsClient(plan)
    before = context.cert_store_stats()
    context.load_verify_locations(requests.certs.where())
    assert context.cert_store_stats() == before


def test_a_call_that_asks_for_no_verification_is_verified_all_the_same(
    plan: TlsPlan, stranger: trustme.CA
) -> None:
    context = TlsClient(plan)
    with FaultServer(tls=server_context(stranger)) as impostor:
        with pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(impostor, context, cert_reqs="CERT_NONE", assert_hostname=False)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    "loosen",
    [
        pytest.param(lambda c: setattr(c, "options", 0), id="options"),
        pytest.param(lambda c: setattr(c, "verify_flags", 0), id="verify_flags"),
        pytest.param(lambda c: setattr(c, "minimum_version", ssl.TLSVersion.TLSv1), id="minimum_version"),
        pytest.param(lambda c: setattr(c, "hostname_checks_common_name", True), id="common name"),
        pytest.param(lambda c: setattr(c, "keylog_filename", "keys"), id="keylog"),
        pytest.param(lambda c: setattr(c, "_now", None), id="what it holds"),
        pytest.param(lambda c: delattr(c, "_now"), id="what it holds, deleted"),
        pytest.param(lambda c: delattr(c, "verify_mode"), id="verify_mode, deleted"),
        pytest.param(lambda c: c.set_ecdh_curve("prime256v1"), id="curve"),
        pytest.param(lambda c: c.load_dh_params("dh.pem"), id="dh"),
        pytest.param(lambda c: setattr(c, "sslsocket_class", ssl.SSLSocket), id="class of its sockets"),
        pytest.param(lambda c: c.load_default_certs(), id="default certs"),
        pytest.param(lambda c: c.set_default_verify_paths(), id="default paths"),
        pytest.param(lambda c: c.load_cert_chain("cert.pem"), id="client certificate"),
        pytest.param(lambda c: c.set_ciphers("ALL:@SECLEVEL=0"), id="ciphers"),
    ],
)
def test_a_sealed_context_refuses_to_be_changed(plan: TlsPlan, loosen: Any) -> None:
    """failures.md 33 and failures.md 31."""
    with pytest.raises(SealedContextError, match="shared by all calls"):
        loosen(TlsClient(plan))


def test_what_a_context_has_can_be_read(plan: TlsPlan) -> None:
    client, context = TlsClient(plan), context_for(plan)
    for name in ("verify_mode", "check_hostname", "minimum_version", "options", "verify_flags", "protocol"):
        assert getattr(client, name) == getattr(context, name)
    assert client.get_ca_certs() == context.get_ca_certs()
    assert client.get_ciphers() == context.get_ciphers()
    assert not hasattr(client, "nothing_of_the_kind")


def test_a_client_goes_by_another_plan_from_the_next_handshake_on(
    plan: TlsPlan, server: FaultServer, stranger: trustme.CA, tmp_path: Path
) -> None:
    client = TlsClient(plan)
    stranger.cert_pem.write_to_path(tmp_path / "other.pem")
    other = replace(plan, ca=str(tmp_path / "other.pem"), fingerprint="other")
    with FaultServer(tls=server_context(stranger)) as theirs:
        assert get(server, client) == 200
        client.follow(other)
        assert get(theirs, client) == 200
        with pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(server, client)
        with pytest.raises(TlsError):
            client.follow(replace(plan, ca=str(tmp_path / "missing.pem")))
        assert client.plan == other
        assert get(theirs, client) == 200


def loads(do: Callable[[], object]) -> int:
    """How often certificates of CAs are loaded into a context while *do* runs in this thread."""
    seen = []

    def profile(frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in ("load_verify_locations", "set_default_verify_paths"):
            seen.append(function)

    sys.setprofile(profile)
    try:
        do()
    finally:
        sys.setprofile(None)
    return len(seen)


def test_a_thousand_upstreams_of_one_policy_load_the_bundle_once(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(Path(requests.certs.where()).read_bytes())
    file = tmp_path / "upstreams.yaml"

    def write(attempts: int) -> None:
        named = "".join(f"  u{n}: {{base_url: 'https://u{n}.internal'}}\n" for n in range(1000))
        file.write_text(
            f"version: 1\ndefaults: {{tls: {{ca: '{bundle}'}}, retry: {{max_attempts: {attempts}}}}}\n"
            f"upstreams:\n{named}"
        )

    write(2)
    instance: list[Headrace] = []
    assert loads(lambda: instance.append(Headrace(file, registry=CollectorRegistry()))) == 1
    (hr,) = instance
    clients = {one.endpoint.tls for one in hr.snapshot.upstreams.values()}
    assert len(clients) == 1000
    before = hr.snapshot.upstreams["u7"].endpoint.tls.plan  # type: ignore[union-attr]
    write(3)
    assert loads(hr.reload) == 0
    with bundle.open("a") as text:
        text.write("\n")  # other bytes: another generation
    assert loads(hr.reload) == 1
    assert {one.endpoint.tls for one in hr.snapshot.upstreams.values()} == clients  # they follow
    assert hr.snapshot.upstreams["u7"].endpoint.tls.plan.fingerprint != before.fingerprint  # type: ignore[union-attr]
    hr.close()


def test_verify_false_trusts_any_server(server: FaultServer) -> None:
    context = TlsClient(replace(PLAN, verify=False))
    assert context.verify_mode is ssl.CERT_NONE
    with socket.create_connection((server.host, server.port)) as plain, context.wrap_socket(plain) as sock:
        assert sock.getpeercert() == {}


def test_the_minimum_version_is_kept(plan: TlsPlan, ca: trustme.CA) -> None:
    old = server_context(ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with FaultServer(tls=old) as server:
        assert get(server, TlsClient(plan)) == 200
        with pytest.raises(urllib3.exceptions.SSLError):
            get(server, TlsClient(replace(plan, min_version="1.3")))


@pytest.mark.parametrize("one_file", [pytest.param(False, id="two files"), pytest.param(True, id="one file")])
def test_the_client_certificate_is_presented(
    plan: TlsPlan, ca: trustme.CA, tmp_path: Path, one_file: bool
) -> None:
    me = ca.issue_cert("client@example.org")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    if one_file:
        me.private_key_and_cert_chain_pem.write_to_path(cert)
    else:
        me.cert_chain_pems[0].write_to_path(cert)
        me.private_key_pem.write_to_path(key)
    mutual = replace(plan, cert=str(cert), key=None if one_file else str(key))
    with FaultServer(tls=server_context(ca, client_ca=ca)) as server:
        assert get(server, TlsClient(mutual)) == 200
        (request,) = server.requests
        assert request.client_cert is not None
        assert ("email", "client@example.org") in request.client_cert["subjectAltName"]


def _files(ca: trustme.CA, directory: Path) -> dict[str, str]:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    me, other = ca.issue_cert("me.example"), ca.issue_cert("other.example")
    locked = load_pem_private_key(me.private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    contents = {
        "cert": me.cert_chain_pems[0].bytes(),
        "other-key": other.private_key_pem.bytes(),
        "locked-key": locked,
        "junk": b"not PEM at all\n",
        "empty": b"",
    }
    for name, data in contents.items():
        (directory / name).write_bytes(data)
    (directory / "bare-directory").mkdir()
    return {name: str(directory / name) for name in (*contents, "bare-directory", "missing")}


@pytest.mark.parametrize(
    ("changes", "at_fault", "words"),
    [
        pytest.param({"ca": "missing"}, "missing", "cannot read the CA file", id="no CA file"),
        pytest.param({"ca": "junk"}, "junk", "holds no CA certificate", id="CA junk"),
        pytest.param({"ca": "empty"}, "empty", "holds no CA certificate", id="CA empty"),
        pytest.param(
            {"ca": "bare-directory"}, "bare-directory", "openssl rehash", id="CA directory not hashed"
        ),
        pytest.param(
            {"cert": "missing", "key": "other-key"}, "missing", "cannot read the client cert", id="no cert"
        ),
        pytest.param(
            {"cert": "cert", "key": "missing"}, "missing", "cannot read the client key", id="no key"
        ),
        pytest.param({"cert": "junk", "key": "other-key"}, "junk", "no client certificate", id="cert junk"),
        pytest.param({"cert": "cert", "key": "junk"}, "junk", "no private key", id="key junk"),
        pytest.param({"cert": "cert"}, "cert", "`key` is not given", id="key nowhere"),
        pytest.param({"key": "other-key"}, "other-key", "without a certificate", id="cert nowhere"),
        pytest.param(
            {"cert": "cert", "key": "other-key"}, "other-key", "does not belong", id="pair mismatch"
        ),
        pytest.param({"cert": "cert", "key": "locked-key"}, "locked-key", "is encrypted", id="key encrypted"),
    ],
)
def test_files_that_cannot_be_taken_into_force_are_named_and_nothing_falls_back(
    ca: trustme.CA, tmp_path: Path, changes: dict[str, str], at_fault: str, words: str
) -> None:
    """failures.md 35."""
    files = _files(ca, tmp_path)
    with pytest.raises(TlsError, match=words) as caught:
        TlsClient(replace(PLAN, **{key: files[name] for key, name in changes.items()}))
    assert str(caught.value).startswith(files[at_fault] + ": ")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_ticket_does_not_make_an_idle_connection_look_dead(
    plan: TlsPlan, ca: trustme.CA, version: ssl.TLSVersion
) -> None:
    """failures.md 22."""
    tls = server_context(ca)
    tls.minimum_version = tls.maximum_version = version
    with FaultServer(tls=tls) as server:
        plain = socket.create_connection((server.host, server.port))
        with TlsClient(plan).wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            server.wait_for(lambda: server.open_connections == 1)
            for _ in range(3):
                assert is_alive(End(sock))  # TLS 1.3: two tickets are readable
            sock.settimeout(5.0)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK")
            server.drop_all()
            server.wait_for(lambda: server.open_connections == 0)
            assert not is_alive(End(sock))


@pytest.mark.parametrize(
    ("act", "alive"),
    [
        pytest.param(lambda peer: None, True, id="quiet"),
        pytest.param(lambda peer: peer.close(), False, id="closed"),
        pytest.param(lambda peer: peer.shutdown(socket.SHUT_WR), False, id="half closed"),
        pytest.param(lambda peer: peer.sendall(b"HTTP/1.1 408"), False, id="data nobody asked for"),
    ],
)
@pytest.mark.parametrize("timeout_s", [None, 0.0, 5.0])
def test_an_idle_socket_is_alive_while_its_peer_is_there_and_silent(
    act: Any, alive: bool, timeout_s: float | None
) -> None:
    sock, peer = socket.socketpair()
    with sock, peer:
        sock.settimeout(timeout_s)
        act(peer)
        assert is_alive(End(sock)) is alive


def test_a_closed_socket_is_not_alive() -> None:
    sock, peer = socket.socketpair()
    peer.close()
    sock.close()
    assert not is_alive(End(sock))


@pytest.mark.parametrize("sent", [b"", b"x"])
def test_a_peer_that_is_gone_before_the_handshake_leaves_no_descriptor(plan: TlsPlan, sent: bytes) -> None:
    # CPython up to 3.12 leaves it to the collector, and a ResourceWarning then fails whatever test it falls in.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=10)
        theirs, _ = listener.accept()
        theirs.sendall(sent)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()  # a reset
        wait_until(lambda: is_gone(ours))
        descriptor = ours.fileno()
        with pytest.raises(OSError) as caught:
            TlsClient(plan).wrap_socket(ours, server_hostname="127.0.0.1")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)  # while the error, which holds its frames, still lives
        del caught


def is_gone(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


# --- The way that a connection is secured ---------------------------------------------------------------


@pytest.mark.parametrize("patched", ["connect", "ssl_wrap_socket", "_ssl_wrap_socket_and_match_hostname"])
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param({}, id="the host"),
        pytest.param({"server_name": "localhost"}, id="another name"),
        pytest.param({"server_name": "localhost."}, id="a final dot"),
        pytest.param({"verify": False}, id="not verified"),
        pytest.param({"identities": ("localhost",)}, id="identities"),
    ],
)
def test_a_connection_is_what_urllib3_makes_of_it_and_who_replaces_a_part_of_that_sees_it(
    server: FaultServer, plan: TlsPlan, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any], patched: str
) -> None:
    import urllib3.connection

    owner: Any = urllib3.connection.HTTPSConnection if patched == "connect" else urllib3.connection
    own, seen = getattr(owner, patched), []

    def noted(*args: Any, **kw: Any) -> Any:
        seen.append(patched)
        return own(*args, **kw)

    def made() -> dict[str, Any]:
        trust = trust_of(TlsClient(replace(plan, **rules)))
        conn = GovernedHTTPSConnection(host=server.host, port=server.port, timeout=5, **trust)
        conn.connect()
        try:
            conn.request("GET", "/")
            assert conn.getresponse().status == 200
            names = (
                "is_verified",
                "proxy_is_verified",
                "has_connected_to_proxy",
                "is_connected",
                "is_closed",
            )
            own = {"session": conn.unread is not None, "name": conn.sock.server_hostname}
            return own | {name: getattr(conn, name) for name in names}
        finally:
            conn.close()

    without = made()
    monkeypatch.setattr(owner, patched, noted)
    assert made() == without
    assert seen == [patched]
    monkeypatch.undo()
    assert made() == without
    assert seen == [patched]


@pytest.mark.parametrize("name", ["::1", "[::1]", "fe80::1%25lo", "127.0.0.1%lo"])
def test_what_urllib3_takes_off_an_address_is_left_to_it(name: str) -> None:
    assert not connection._is_name(name)
