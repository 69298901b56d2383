"""Servers whose certificate a client refuses, each for another reason: what badssl.com has, on loopback."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import trustme

NOW = datetime.now(UTC)
ROOT = trustme.CA()
"""The CA that the client trusts."""


@dataclass(frozen=True)
class Untrusted:
    """One of them.

    Attributes:
        makes: The server's side.
        says: What OpenSSL has to say of it.
        advice: What a call and `check --connect` say about it.
    """

    makes: Callable[[Path], ssl.SSLContext]
    says: str
    advice: str


def _server(*certs: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for cert in certs:
        cert.configure_cert(context)
    return context


def _dated(since: timedelta, until: timedelta) -> Callable[[Path], ssl.SSLContext]:
    return lambda _: _server(ROOT.issue_cert("localhost", not_before=NOW + since, not_after=NOW + until))


def _signed_by_itself(folder: Path) -> ssl.SSLContext:
    own, context = trustme.CA(), _server()
    return _loaded(context, folder, own.cert_pem, own.private_key_pem)


def _without_intermediate(folder: Path) -> ssl.SSLContext:
    leaf = ROOT.create_child_ca().issue_cert("localhost")
    return _loaded(_server(), folder, leaf.cert_chain_pems[0], leaf.private_key_pem)


def _loaded(context: ssl.SSLContext, folder: Path, cert: trustme.Blob, key: trustme.Blob) -> ssl.SSLContext:
    cert.write_to_path(str(folder / "server.pem"))
    key.write_to_path(str(folder / "server.key"))
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


_DAY = timedelta(days=1)

UNTRUSTED: Mapping[str, Untrusted] = MappingProxyType(
    {
        "expired": Untrusted(
            _dated(-9 * _DAY, -_DAY), "certificate has expired", "a certificate of the server has expired"
        ),
        "not yet valid": Untrusted(
            _dated(_DAY, 9 * _DAY),
            "certificate is not yet valid",
            "a certificate of the server is not valid yet",
        ),
        "wrong host": Untrusted(
            lambda _: _server(ROOT.issue_cert("other.test")), "Hostname mismatch", "is for another name"
        ),
        "self-signed": Untrusted(_signed_by_itself, "self-signed certificate", "is signed by itself"),
        "unknown CA": Untrusted(
            lambda _: _server(trustme.CA().create_child_ca().issue_cert("localhost")),
            "unable to get",
            "the issuer of the server's certificate is not known here",
        ),
        "missing intermediate": Untrusted(
            _without_intermediate, "unable to get", "send the certificates of its intermediate CAs along"
        ),
    }
)


def trusting(folder: Path) -> str:
    """The `ca` of a file's `tls`: ROOT alone."""
    ROOT.cert_pem.write_to_path(str(folder / "root.pem"))
    return f"ca: '{folder / 'root.pem'}'"


class PlainServer:
    """Speaks HTTP where TLS is expected, as nginx does: 400, and hangs up."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with sock, contextlib.suppress(OSError):
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    def __enter__(self) -> PlainServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5.0)
