"""What the pages show of TLS, against servers that ask for it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import trustme
from cryptography.hazmat.primitives.serialization import PrivateFormat

import headrace
from support.authorities import server_of
from support.faultserver import FaultServer, server_context
from support.pages import BILLING, blocks, shows
from support.pairs import in_folder, issue, put_files_of_the_pages, seen_by
from support.waiting import wait_until

PRIVATE_CA, CLIENT, SPIFFE = (f"tls: From a private CA to SPIFFE/{n}" for n in (1, 2, 3))


@contextmanager
def in_force(key: str, folder: Path, url: str) -> Iterator[headrace.Headrace]:
    (folder / "upstreams.yaml").write_text(in_folder(blocks()[key].text, folder).replace(BILLING, url))
    with headrace.install(folder / "upstreams.yaml") as hr:
        yield hr


@shows("tls: From a private CA to SPIFFE/1")
def test_a_private_ca_is_trusted_where_the_file_names_it(
    tmp_path: Path, authority: trustme.CA, secure: FaultServer
) -> None:
    put_files_of_the_pages(tmp_path, authority)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(secure.url, timeout=30)
    with in_force(PRIVATE_CA, tmp_path, secure.url):
        assert requests.get(secure.url).ok


@shows("tls: From a private CA to SPIFFE/2")
def test_a_client_certificate_that_is_written_anew_is_the_one_that_the_server_sees(
    tmp_path: Path, authority: trustme.CA
) -> None:
    first, second = put_files_of_the_pages(tmp_path, authority), issue(authority)
    with FaultServer(tls=server_context(authority, client_ca=authority)) as server:

        def serial() -> str:
            assert requests.get(server.url).ok
            return seen_by(server)[-1]

        with in_force(CLIENT, tmp_path, server.url):
            assert serial() == first.serial
            (tmp_path / "client.pem").write_bytes(second.cert)
            (tmp_path / "client.key").write_bytes(second.key_as(PrivateFormat.PKCS8, b"of the key"))
            wait_until(lambda: serial() == second.serial)


@shows("README: TLS/1")
def test_both_ends_are_known_by_their_certificates(tmp_path: Path, authority: trustme.CA) -> None:
    pair = put_files_of_the_pages(tmp_path, authority)
    context = server_of(authority, "spiffe://prod/billing")
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with FaultServer(tls=context) as server, in_force("README: TLS/1", tmp_path, server.url):
        assert requests.get(server.url).ok
        assert seen_by(server) == [pair.serial]


@shows("tls: From a private CA to SPIFFE/3")
def test_a_server_is_known_by_its_identity_and_a_token_follows_its_file(
    tmp_path: Path, authority: trustme.CA
) -> None:
    put_files_of_the_pages(tmp_path, authority)
    with FaultServer(tls=server_of(authority, "spiffe://prod/billing")) as server:

        def token() -> str | None:
            assert requests.get(server.url).ok
            return server.requests[-1].header("Authorization")

        with in_force(SPIFFE, tmp_path, server.url):
            assert token() == "Bearer first"
            (tmp_path / "token").write_text("second\n")
            wait_until(lambda: token() == "Bearer second")
    with (
        FaultServer(tls=server_of(authority, "spiffe://prod/other")) as server,
        in_force(SPIFFE, tmp_path, server.url),
        pytest.raises(headrace.IdentityMismatch, match="spiffe://prod/other"),
    ):
        requests.get(server.url)
