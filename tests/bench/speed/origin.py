"""The one nginx that all clients call, and which core whose process runs on."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from reconnects import KINDS

from support.nginx import Nginx

_SERVER = """\
access_log off;
keepalive_requests 100000000;
keepalive_timeout 1h;
sendfile on;
tcp_nopush on;
root {files};
location = /1k {{ return 200 "{kibibyte}"; }}
location = /gzip {{ default_type application/json; add_header Content-Encoding gzip; }}
location = /chunked {{ ssi on; }}
"""

_CONNECTIONS = 4096
"""More than all rows of a group keep open: nginx closes what it has no room for, and a client would dial again."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where it listens; all but http is empty if nobody asked for TLS.

    Attributes:
        fresh: By kind of TLS, where each connection is closed after its answer.
        fresh_ca: File of the authorities of those.
    """

    http: str
    https: str
    ca: str
    fresh: Mapping[str, str] = field(default_factory=dict)
    fresh_ca: str = ""


@contextlib.contextmanager
def serving(folder: Path, program: str, *, with_tls: bool) -> Iterator[Origin]:
    """An nginx, and with TLS a second one that is its like. Each has one worker."""
    files = folder / "files"
    files.mkdir()
    (files / "gzip").write_bytes(gzip.compress(_json(8 * 1024).encode()))
    # A page that server-side includes look through has no length beforehand.
    (files / "chunked").write_bytes(b"x" * 8 * 1024)
    (files / "100k").write_bytes(b"x" * 100 * 1024)
    (files / "10m").write_bytes(b"x" * 10 * 1024**2)
    server = _SERVER.format(files=files, kibibyte="x" * 1024)
    with contextlib.ExitStack() as stack:
        with core(0):
            plain = stack.enter_context(Nginx(folder / "plain", program, server, connections=_CONNECTIONS))
        if not with_tls:
            yield Origin(plain.url, "", "")
            return
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        with core(0):
            secure = Nginx(folder / "secure", program, server, ca=ca, connections=_CONNECTIONS)
        stack.enter_context(secure)
        fresh = _fresh(folder, program, stack)
        yield Origin(plain.url, secure.url, str(folder / "ca.pem"), fresh, str(folder / "fresh.pem"))


def _fresh(folder: Path, program: str, stack: contextlib.ExitStack) -> dict[str, str]:
    """An nginx for each of KINDS that closes each connection after its answer. Writes their authorities' file."""
    found, pems = {}, b""
    for kind in KINDS:
        version, key = kind.removeprefix("TLS ").split(", ")
        authority = _Authority(trustme.KeyType[key])
        pems += authority.ca.cert_pem.bytes()
        server = f'access_log off;\nkeepalive_timeout 0;\nlocation / {{ return 200 "{"x" * 1024}"; }}\n'
        tls = f"ssl_protocols TLSv{version};\nssl_session_tickets on;\n"
        with core(0):
            nginx = Nginx(folder / f"fresh-{version}-{key}", program, server, ca=authority, tls=tls)
        found[kind] = stack.enter_context(nginx).url
    (folder / "fresh.pem").write_bytes(pems)
    return found


class _Authority:
    """One whose certificates, and its own, have keys of one kind."""

    def __init__(self, kind: trustme.KeyType) -> None:
        self.ca, self._kind = trustme.CA(key_type=kind), kind

    def issue_cert(self, *names: str) -> trustme.LeafCert:
        return self.ca.issue_cert(*names, key_type=self._kind)


def _json(least_bytes: int) -> str:
    """Rows of a table, as an API would answer."""
    found = []
    while len(text := json.dumps(found)) < least_bytes:
        at = len(found)
        found.append({"id": at, "customer": f"customer-{at * 7919 % 1000}", "cents": at * 104729 % 100_000})
    return text


@contextlib.contextmanager
def core(number: int) -> Iterator[None]:
    """What is started in here runs on one core: 0 for nginx, 1 for clients. On a machine of one, no matter."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
