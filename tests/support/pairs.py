"""Client certificates with their keys, and the ways in which those who issue them write the two files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from support.faultserver import FaultServer


@dataclass(frozen=True)
class Pair:
    """A client certificate and its key, both PEM."""

    cert: bytes
    key: bytes

    @property
    def serial(self) -> str:
        """As `getpeercert()` has it at the server."""
        found = f"{x509.load_pem_x509_certificate(self.cert).serial_number:X}"
        return found if len(found) % 2 == 0 else f"0{found}"

    def key_as(self, form: PrivateFormat, passphrase: bytes | None = None) -> bytes:
        """The key in another form."""
        how = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        return load_pem_private_key(self.key, None).private_bytes(Encoding.PEM, form, how)


def issue(ca: trustme.CA, *, days: float = 365, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> Pair:
    """A pair of *ca*'s that holds for *days*; fewer than none: it has expired."""
    made = ca.issue_cert(
        "client@example.org",
        not_after=datetime.now(UTC) + timedelta(days=days),
        not_before=datetime.now(UTC) - timedelta(days=400),
        key_type=key_type,
    )
    return Pair(made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes())


def put_files_of_the_pages(folder: Path, ca: trustme.CA) -> Pair:
    """Write what the pages call `/etc/tls` and `/run/secrets` into *folder*, and answer the client's pair."""
    pair = issue(ca)
    files = {
        "ca.pem": ca.cert_pem.bytes(),
        "client.pem": pair.cert,
        "client.key": pair.key_as(PrivateFormat.PKCS8, b"of the key"),
        "key-pass": b"of the key\n",
        "token": b"first\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    return pair


def in_folder(text: str, folder: Path) -> str:
    """*text* of a page, its files looked for in *folder*."""
    return text.replace("/run/secrets", str(folder)).replace("/etc/tls", str(folder))


def seen_by(server: FaultServer) -> list[str]:
    """The serial of the client certificate of each request, as the server saw it."""
    return [str((request.client_cert or {}).get("serialNumber")) for request in server.requests]


class Files:
    """`cert.pem` and `key.pem` in a directory, and the ways in which they are replaced."""

    def __init__(self, folder: Path, first: Pair) -> None:
        self.folder = folder
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.cert.write_bytes(first.cert)
        self.key.write_bytes(first.key)
        self.pause_s = 0.0

    def yaml(self, *more: str) -> str:
        """The two, as keys of `tls`."""
        return ", ".join((f"cert: '{self.cert}'", f"key: '{self.key}'", *more))

    def rotate(self, pair: Pair, dice: random.Random) -> None:
        """Put *pair* in place, in one of *WAYS*."""
        dice.choice([*WAYS.values()])(self, pair)

    def rename(self, pair: Pair) -> None:
        """Each under another name first, and then renamed: what Vault's agent and most others do."""
        for path, content in ((self.cert, pair.cert), (self.key, pair.key)):
            _put(path, content)
            time.sleep(self.pause_s)

    def key_first(self, pair: Pair) -> None:
        _put(self.key, pair.key)
        time.sleep(self.pause_s)
        _put(self.cert, pair.cert)

    def in_place(self, pair: Pair) -> None:
        """Truncated, and written in pieces."""
        for path, content in ((self.cert, pair.cert), (self.key, pair.key)):
            with open(path, "wb", buffering=0) as file:
                for at in range(0, len(content), 100):
                    file.write(content[at : at + 100])
                    time.sleep(self.pause_s / 10)

    def gone_for_a_moment(self, pair: Pair) -> None:
        self.cert.unlink()
        time.sleep(self.pause_s)
        self.rename(pair)


class Volume(Files):
    """The same in a directory as Kubernetes makes it: `..data` is swapped, and the names lead through it."""

    def __init__(self, folder: Path, first: Pair) -> None:
        folder.mkdir()
        self.folder, self.pause_s, self._nth = folder, 0.0, 0
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.swap(first)
        for name in ("cert.pem", "key.pem"):
            (folder / name).symlink_to(Path("..data") / name)

    def rotate(self, pair: Pair, dice: random.Random) -> None:
        self.swap(pair)

    def swap(self, pair: Pair) -> None:
        self._nth += 1
        new = self.folder / f"..{self._nth}"
        new.mkdir()
        (new / "cert.pem").write_bytes(pair.cert)
        (new / "key.pem").write_bytes(pair.key)
        (self.folder / "..data_tmp").symlink_to(new.name)
        os.replace(self.folder / "..data_tmp", self.folder / "..data")
        if self._nth > 1:
            shutil.rmtree(self.folder / f"..{self._nth - 1}")


class Rendered(Files):
    """Certificate and key in one file, written as Vault's agent does: another process renders it, and renames it."""

    def __init__(self, folder: Path, first: Pair) -> None:
        self.folder, self.pause_s = folder, 0.0
        self.cert = self.key = folder / "bundle.pem"
        self.rotate(first, random.Random())

    def yaml(self, *more: str) -> str:
        return ", ".join((f"cert: '{self.cert}'", *more))

    def rotate(self, pair: Pair, dice: random.Random) -> None:
        script = 'umask 077 && cat >"$1.rendered" && mv "$1.rendered" "$1"'
        subprocess.run(["sh", "-c", script, "sh", self.cert], input=pair.cert + pair.key, check=True)


def _put(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_bytes(content)
    os.replace(beside, path)


WAYS: Mapping[str, Callable[[Files, Pair], None]] = {
    "atomic renames, the certificate first": Files.rename,
    "atomic renames, the key first": Files.key_first,
    "truncated and written in place": Files.in_place,
    "gone for a moment": Files.gone_for_a_moment,
}
