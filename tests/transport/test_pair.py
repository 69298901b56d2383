"""What is wrong with a client certificate or its key has a text of its own, which names the file and the fix."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

from headrace.policy.plan import TlsPlan
from headrace.policy.secret import Secret
from headrace.transport.dial.files import held
from headrace.transport.dial.tls import TlsChanged, TlsError, context_for
from support.faultserver import FaultServer, server_context
from support.pairs import Pair, issue, seen_by

RSA = trustme.KeyType.RSA


@pytest.fixture(scope="module")
def pair(authority: trustme.CA) -> Pair:
    return issue(authority)


@pytest.fixture(scope="module")
def rsa(authority: trustme.CA) -> Pair:
    return issue(authority, key_type=RSA)


def plan(folder: Path, cert: bytes, key: bytes | None, passphrase: str | None = None) -> TlsPlan:
    (folder / "cert.pem").write_bytes(cert)
    if key is not None:
        (folder / "key.pem").write_bytes(key)
    return TlsPlan(
        verify=True,
        ca=None,
        cert=str(folder / "cert.pem"),
        key=None if key is None else str(folder / "key.pem"),
        server_name=None,
        min_version="1.2",
        fingerprint=str(folder),
        key_passphrase=None if passphrase is None else Secret(passphrase),
    )


FORMS = [
    pytest.param("pair", PrivateFormat.PKCS8, None, id="EC, PKCS#8"),
    pytest.param("pair", PrivateFormat.TraditionalOpenSSL, None, id="EC, traditional"),
    pytest.param("pair", PrivateFormat.PKCS8, "a word", id="EC, PKCS#8, encrypted"),
    pytest.param("pair", PrivateFormat.TraditionalOpenSSL, "a word", id="EC, traditional, encrypted"),
    pytest.param("rsa", PrivateFormat.PKCS8, None, id="RSA, PKCS#8"),
    pytest.param(
        "rsa", PrivateFormat.TraditionalOpenSSL, "ein längeres Wort", id="RSA, traditional, encrypted"
    ),
    pytest.param(
        "rsa", PrivateFormat.PKCS8, "w" * 1023, id="RSA, a passphrase as long as cryptography makes it"
    ),
]


@pytest.mark.parametrize(("which", "form", "passphrase"), FORMS)
def test_every_form_of_a_key_is_presented(
    which: str,
    form: PrivateFormat,
    passphrase: str | None,
    authority: trustme.CA,
    ca: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    import urllib3

    one: Pair = request.getfixturevalue(which)
    key = one.key_as(form, None if passphrase is None else passphrase.encode())
    made = replace(plan(tmp_path, one.cert, key, passphrase), ca=str(ca))
    with FaultServer(tls=server_context(authority, client_ca=authority)) as server:
        with urllib3.PoolManager(ssl_context=context_for(made)) as http:
            assert http.request("GET", server.url).status == 200
        assert seen_by(server) == [one.serial]


def test_what_is_wrong_is_said(authority: trustme.CA, pair: Pair, rsa: Pair, tmp_path: Path) -> None:
    """failures.md 35."""
    other = issue(authority)
    locked = pair.key_as(PrivateFormat.PKCS8, b"a word")
    old_locked = pair.key_as(PrivateFormat.TraditionalOpenSSL, b"a word")
    der = subprocess.run(
        ["openssl", "x509", "-outform", "DER"], input=pair.cert, capture_output=True, check=True
    ).stdout
    key_der = subprocess.run(
        ["openssl", "pkey", "-outform", "DER"], input=pair.key, capture_output=True, check=True
    ).stdout
    from cryptography.hazmat.primitives.serialization import NoEncryption, load_pem_private_key

    openssh = load_pem_private_key(rsa.key, None).private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )
    cases: list[tuple[tuple[Any, ...], str, str]] = [
        ((pair.cert, other.key), "key.pem", "does not belong to the certificate"),
        ((rsa.cert, pair.key), "key.pem", "is of another kind"),
        ((pair.cert, rsa.key), "key.pem", "is of another kind"),
        ((pair.cert, locked), "key.pem", "is encrypted, and there is nobody to ask"),
        ((pair.cert, old_locked), "key.pem", "is encrypted, and there is nobody to ask"),
        ((pair.cert, locked, "another"), "key.pem", "passphrase in tls.key_passphrase is not the one"),
        ((pair.cert, old_locked, "another"), "key.pem", "passphrase in tls.key_passphrase is not the one"),
        ((pair.cert, locked, "w" * 1025), "key.pem", "at most 1024 bytes"),
        ((pair.cert, b""), "key.pem", "is empty"),
        ((b"", pair.key), "cert.pem", "is empty"),
        ((b"\n", pair.key), "cert.pem", "is empty"),
        ((pair.cert, pair.key[:-40]), "key.pem", "ends within a private key"),
        ((pair.cert, pair.key[:-8]), "key.pem", "ends within a private key"),
        ((pair.cert[:300], pair.key), "cert.pem", "ends within a certificate"),
        ((pair.cert + other.cert[:300], pair.key), "cert.pem", "ends within a certificate"),
        ((der, pair.key), "cert.pem", "openssl x509 -inform DER"),
        ((pair.cert, key_der), "key.pem", "openssl pkey -inform DER"),
        ((rsa.cert, openssh), "key.pem", "ssh-keygen -p -m PEM"),
        ((pair.cert, pair.cert), "key.pem", "holds no private key in PEM form"),
        ((pair.key, pair.key), "cert.pem", "holds no client certificate in PEM form"),
        ((pair.cert, None), "cert.pem", "`key` is not given"),
        ((pair.cert + pair.key[:-40], None), "cert.pem", "ends within a private key"),
    ]
    for nth, (contents, at_fault, words) in enumerate(cases):
        folder = tmp_path / str(nth)
        folder.mkdir()
        with pytest.raises(TlsError) as caught:
            context_for(plan(folder, *contents))
        text = str(caught.value)
        assert text.startswith(f"{folder / at_fault}: "), (nth, text)
        assert words in text, (nth, text)
        assert "another" not in text.replace("of another kind", "")
        assert "wwww" not in text


def test_a_file_that_was_written_since_it_was_hashed_is_not_taken(
    authority: trustme.CA, pair: Pair, tmp_path: Path
) -> None:
    import hashlib

    made = plan(tmp_path, pair.cert, pair.key)
    made = replace(
        made,
        cert_digest=hashlib.sha256(pair.cert).hexdigest(),
        key_digest=hashlib.sha256(pair.key).hexdigest(),
    )
    new = issue(authority)
    (tmp_path / "cert.pem").write_bytes(new.cert)
    (tmp_path / "key.pem").write_bytes(new.key)
    with pytest.raises(TlsChanged, match="was written while"):
        context_for(made)
    plan(tmp_path, pair.cert, pair.key)
    context_for(made)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory here")
def test_openssl_finds_what_was_read_whoever_writes_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_bytes(b"read")
    with held(b"read", str(file)) as name:
        file.write_bytes(b"written")
        assert Path(name).read_bytes() == b"read"


def without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As BSD and macOS are."""
    monkeypatch.delattr(os, "memfd_create", raising=False)


def without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows is: a descriptor has no name, so a pipe would be no help either."""
    without_memory_files(monkeypatch)
    monkeypatch.setattr("headrace.transport.dial.files._NAMES", ("/nowhere",))


SYSTEMS = pytest.mark.parametrize(
    "system",
    [
        pytest.param(lambda monkeypatch: None, id="Linux"),
        pytest.param(without_memory_files, id="a system without files in memory"),
        pytest.param(without_names, id="one without names of descriptors"),
    ],
)


@SYSTEMS
@pytest.mark.parametrize("content", [b"read", b"read" * 50_000], ids=["short", "longer than a pipe holds"])
def test_openssl_is_given_what_was_read_whoever_writes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Any, content: bytes
) -> None:
    """A file that is written twice in between looks the same before and after."""
    system(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    file = tmp_path / "cert.pem"
    file.write_bytes(content)
    with held(content, str(file)) as name:
        file.write_bytes(b"written")
        assert name != str(file)
        if not name.startswith("/proc/self/fd/"):
            assert os.stat(os.path.dirname(name)).st_mode & 0o077 == 0
        assert Path(name).read_bytes() == content
        file.write_bytes(content)
    assert len(os.listdir("/proc/self/fd")) == before
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_key_is_never_put_on_a_disk_and_one_that_was_written_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    without_names(monkeypatch)
    file = tmp_path / "key.pem"
    file.write_bytes(pair.key)
    with held(pair.key, str(file)) as name:
        assert name == str(file)
    with pytest.raises(TlsChanged, match="was written while"), held(pair.key, str(file)):
        file.write_bytes(b"written")


def test_without_a_place_for_it_the_file_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_names(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    file = tmp_path / "ca.pem"
    file.write_bytes(b"read")
    with held(b"read", str(file)) as name:
        assert name == str(file)
    with pytest.raises(TlsChanged, match="was written while"), held(b"read", str(file)):
        file.write_bytes(b"written")


@SYSTEMS
@pytest.mark.parametrize("is_one_file", [False, True], ids=["two files", "one file"])
def test_every_system_presents_the_pair_and_trusts_the_authority(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    authority: trustme.CA,
    pair: Pair,
    ca: Path,
    system: Any,
    is_one_file: bool,
) -> None:
    import urllib3

    ca.write_bytes(b"# a comment, as bundles have\n" * 5000 + ca.read_bytes())
    made = plan(tmp_path, *((pair.cert + pair.key, None) if is_one_file else (pair.cert, pair.key)))
    system(monkeypatch)
    with FaultServer(tls=server_context(authority, client_ca=authority)) as server:
        with urllib3.PoolManager(ssl_context=context_for(replace(made, ca=str(ca)))) as http:
            assert http.request("GET", server.url).status == 200
        assert seen_by(server) == [pair.serial]


def break_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def break_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def break_by_size(file: Path) -> None:
    with file.open("r+b") as content:
        content.truncate(1 << 30)  # a hole


@pytest.mark.parametrize(
    ("name", "breaks", "words"),
    [
        (name, breaks, words)
        for name in ("cert.pem", "key.pem", "ca.pem")
        for breaks, words in (
            (break_by_pipe, "is not a regular file"),
            (break_by_folder, "is a directory"),
            (break_by_size, "is longer than 8 MiB"),
        )
        if (name, breaks) != ("ca.pem", break_by_folder)  # a CA may be one
    ],
)
def test_what_is_no_file_of_ours_by_now_is_not_waited_for_and_not_read(
    tmp_path: Path, pair: Pair, ca: Path, name: str, breaks: Any, words: str
) -> None:
    """Between the load and the context: a FIFO would hold the lock of all contexts for ever."""
    made = replace(plan(tmp_path, pair.cert, pair.key), ca=str(ca))
    breaks(tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises(TlsError, match=words):
            context_for(made)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
