"""A new TLS connection for each call: resumed against full, against urllib3 with one context, and requests' default.

nginx closes each connection after its answer. stock urllib3 gets a context that all its connections share: by itself it
would load the bundle for each of them, as requests does.
"""

from __future__ import annotations

import functools
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clients import LIMIT_S, Act
from table import Factory, Gauge, Lab, Work

KINDS = tuple(f"TLS {version}, {key}" for version in ("1.2", "1.3") for key in ("ECDSA", "RSA"))
"""Those that nginx offers, by the version and the key of its certificate."""

PATH = "/1k"
_TURNS = 20  # of one reading of the clock

Client = Callable[[Lab, str], Any]


def on_cpu(client: Client, kind: str) -> Factory:
    """CPU of the process for one call of *client*."""

    @contextmanager
    def make(lab: Lab) -> Iterator[Work]:
        with client(lab, kind) as act:
            yield act

    return make


def by_the_clock(client: Client, kind: str) -> Factory:
    """Seconds that one call of *client* takes."""

    @contextmanager
    def make(lab: Lab) -> Iterator[Work]:
        with client(lab, kind) as act:
            act()

            def once_s() -> float:
                began = time.perf_counter()
                for _ in range(_TURNS):
                    act()
                return (time.perf_counter() - began) / _TURNS

            yield Gauge(once_s)

    return make


@contextmanager
def raw_socket(lab: Lab, kind: str) -> Iterator[Act]:
    """What no client can be below: a socket, one session kept, and an answer that nobody reads but for its end."""
    context = ssl.create_default_context(cafile=lab.fresh_ca)
    where = urlsplit(lab.fresh[kind])
    assert where.hostname is not None
    host, port = where.hostname, where.port or 443
    request = f"GET {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    kept: Any = None

    def act() -> object:
        nonlocal kept
        plain = socket.create_connection((host, port), LIMIT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else TLS 1.2 waits 40 ms for an ACK
        with context.wrap_socket(plain, server_hostname=host, session=kept) as sock:
            sock.sendall(request)
            while sock.recv(4096):
                if kept is None:
                    kept = sock.session
        return sock.session_reused

    yield act


@contextmanager
def shared_context(lab: Lab, kind: str) -> Iterator[Act]:
    """urllib3, as fast as its users can make it."""
    import urllib3

    context = ssl.create_default_context(cafile=lab.fresh_ca)
    with urllib3.PoolManager(ssl_context=context, timeout=LIMIT_S) as pools:

        def act() -> object:
            answer = pools.request("GET", lab.fresh[kind] + PATH)
            return answer.status, answer.data

        yield act


@contextmanager
def requests_default(lab: Lab, kind: str) -> Iterator[Act]:
    """`requests.get`: a bundle as long as its own is loaded for each connection."""
    import requests

    bundle = lab.folder / "bundle.pem"
    bundle.write_bytes(Path(requests.certs.where()).read_bytes() + Path(lab.fresh_ca).read_bytes())

    def act() -> object:
        answer = requests.get(lab.fresh[kind] + PATH, verify=str(bundle), timeout=LIMIT_S)
        return answer.status_code, answer.content

    yield act


@contextmanager
def _instance(lab: Lab) -> Iterator[Any]:
    import ours

    text = "version: 1\ninstall: {requests: false}\nupstreams:\n"
    for number, url in enumerate(lab.fresh.values()):
        for name, more in (("resumed", ""), ("full", ", session_resumption: false")):
            tls = f"tls: {{ca: {lab.fresh_ca!r}{more}}}"
            text += f"  {name}_{number}:\n    base_url: {url}/{name}\n    {tls}\n{ours.RULES}"
    # What nginx answers to is the path below each of them.
    with ours.running(lab, text, "reconnects") as hr:
        yield hr


@contextmanager
def _governed(lab: Lab, kind: str, *, name: str) -> Iterator[Act]:
    one = lab.once(_instance).upstream(f"{name}_{list(lab.fresh).index(kind)}")

    def act() -> object:
        answer = one.urlopen("GET", PATH)
        return answer.status, answer.data

    yield act


resumed: Client = functools.partial(_governed, name="resumed")
full: Client = functools.partial(_governed, name="full")


@contextmanager
def identity(lab: Lab) -> Iterator[Work]:
    """What `tls.identities` adds to a handshake: the certificate is read, and its names are compared."""
    from headrace.policy.identities import names_of
    from headrace.transport.dial.identity import require_identity

    where = urlsplit(next(iter(lab.fresh.values())))
    assert where.hostname is not None
    accepted = names_of(("spiffe://prod/billing", "localhost"))
    context = ssl.create_default_context(cafile=lab.fresh_ca)
    with (
        socket.create_connection((where.hostname, where.port or 0), LIMIT_S) as plain,
        context.wrap_socket(plain, server_hostname=where.hostname) as sock,
    ):
        yield lambda: require_identity(sock, accepted)
